"""What the lab writes for others: inventory, SSH configuration, squid's configuration, device nodes."""

import json
import re
import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import yaml

from semantik_lab import gpus, inventory, keys, proxy, shell, state
from semantik_lab.errors import LabError
from semantik_lab.host import Node
from semantik_lab.topology import DEFAULT_TOPOLOGY, load

PATHS = state.Paths("semantik")
HOSTS = {host.name: host for host in load(DEFAULT_TOPOLOGY).hosts}
NODES = [Node(PATHS, host, f"10.77.0.{host.address}", "smk-semantik") for host in HOSTS.values()]


@pytest.fixture
def rendered() -> str:
    return inventory.render(PATHS, NODES, "10.77.0.0/24", "http://10.77.0.1:3128")


def test_ansible_reads_the_inventory_as_it_is_meant(rendered: str, tmp_path: Path):
    path = tmp_path / "hosts.yml"
    path.write_text(rendered)
    command = [str(Path(sys.executable).parent / "ansible-inventory"), "-i", str(path), "--list"]
    read = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {group: read[group]["hosts"] for group in ("redis", "postgresql", "control", "workers")} == {
        "redis": ["head"],
        "postgresql": ["head"],
        "control": ["head"],
        "workers": ["gpu1", "gpu2"],
    }
    gpu2 = read["_meta"]["hostvars"]["gpu2"]
    assert gpu2["ansible_host"] == "10.77.0.22"
    assert gpu2["ansible_user"] == "root"
    assert gpu2["cluster_apt_proxy"] == "http://10.77.0.1:3128"


def test_connections_check_the_pinned_key_and_no_other(rendered: str):
    arguments = yaml.safe_load(rendered)["all"]["vars"]["ansible_ssh_common_args"]
    assert "-o StrictHostKeyChecking=yes" in arguments
    assert f"-o UserKnownHostsFile={PATHS.known_hosts}" in arguments
    assert "-o GlobalKnownHostsFile=/dev/null" in arguments


def test_the_socket_of_a_shared_connection_fits_its_limit():
    longest = state.Paths("a" * 30)
    directory = keys.control_path(longest).removeprefix("ControlPath=").removesuffix("%C")
    # 40 characters of hash, and 17 that ssh appends while it makes the socket; the kernel takes 107.
    assert len(directory) + 40 + 17 <= 107


def test_the_inventory_is_removed_only_where_the_lab_wrote_it(rendered: str, tmp_path: Path):
    path = tmp_path / "hosts.yml"
    path.write_text("all: {}\n")
    inventory.remove(path)
    assert path.exists()
    inventory.save(path, rendered)
    inventory.remove(path)
    assert not path.exists()


def test_ssh_accepts_the_configuration(tmp_path: Path):
    path = tmp_path / "config"
    path.write_text(keys.ssh_config(PATHS, {"head": "10.77.0.11", "gpu1": "10.77.0.21"}))
    asked = subprocess.run(["ssh", "-F", str(path), "-G", "gpu1"], capture_output=True, text=True, check=True)
    answer = asked.stdout.splitlines()
    assert "hostname 10.77.0.21" in answer
    assert f"identityfile {PATHS.identity}" in answer
    assert "stricthostkeychecking true" in answer


def test_the_proxy_serves_the_lab_and_its_mirrors_alone():
    text = proxy.configuration(
        "semantik", IPv4Network("10.77.0.0/24"), 3128, ["b.example", "a.example"], None
    )
    assert "http_port 10.77.0.1:3128\n" in text
    assert "acl hosts src 10.77.0.0/24\n" in text
    assert "acl mirrors dstdomain a.example b.example\n" in text
    rules = re.findall(r"^http_access (.+)$", text, re.MULTILINE)
    assert rules == ["deny !hosts", "deny !web", "deny CONNECT !tls", "allow mirrors", "deny all"]
    assert "cache_peer" not in text


def test_the_machines_own_proxy_is_asked_in_turn():
    subnet = IPv4Network("10.77.0.0/24")
    text = proxy.configuration("semantik", subnet, 3128, [], "http://cache.example:8080")
    assert "cache_peer cache.example parent 8080 0 no-query default\nnever_direct allow all\n" in text


def test_gpu_identities_are_distinct_and_stable():
    everywhere = [gpus.gpu_uuid(lab, host, n) for lab in "ab" for host in ("gpu1", "gpu2") for n in (0, 1)]
    assert len(set(everywhere)) == 8
    assert gpus.gpu_uuid("semantik", "gpu1", 0) == gpus.gpu_uuid("semantik", "gpu1", 0)
    assert re.fullmatch(r"GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", everywhere[0])


def test_device_nodes_follow_the_minors():
    lines = gpus.device_nodes(HOSTS["gpu2"]).splitlines()
    assert "c /dev/nvidia0 0666 root root - 195:0" in lines
    assert "c /dev/nvidia1 0666 root root - 195:1" in lines
    assert "c /dev/nvidiactl 0666 root root - 195:255" in lines


def test_a_failing_command_is_reported_with_what_it_was_for():
    with pytest.raises(LabError, match=r"making soup: sh failed with status 3: no salt"):
        shell.run(["sh", "-c", "echo no salt >&2; exit 3"], what="making soup")
    with pytest.raises(LabError, match=r"making soup: no-such-program is not installed"):
        shell.run(["no-such-program"], what="making soup")
    with pytest.raises(LabError, match=r"making soup: sleep did not end within 0 s"):
        shell.run(["sleep", "5"], what="making soup", seconds=0.1)


def test_errors_of_apt_show_the_cause_rather_than_the_end():
    script = "echo 'E: no package x' >&2; echo 'I: cleaning up' >&2; exit 25"
    with pytest.raises(LabError, match=r"status 25: E: no package x$"):
        shell.run(["sh", "-c", script], what="building")


def test_files_are_replaced_whole(tmp_path: Path):
    path = tmp_path / "deep" / "file"
    shell.write(path, "one", 0o600)
    shell.write(path, "two", 0o600)
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]
