"""From inside the running services: a worker reaches its own GPU alone, a parser reaches nothing."""

from __future__ import annotations

import errno
import re

import pytest
from clusters import Cluster
from testinfra.host import Host

#: Joins the service's control group, where its device rules are enforced, and opens a node.
OPEN_AS_UNIT = """
import errno, os, sys
group, node = sys.argv[1:]
with open(f"/sys/fs/cgroup{group}/cgroup.procs", "w") as file:
    file.write(str(os.getpid()))
try:
    os.close(os.open(node, os.O_RDWR))
    print("0")
except OSError as error:
    print(error.errno)
"""
#: Keeps a connection open, so that systemd starts a parser for it, until its standard input ends.
HOLD_PARSER = (
    "import socket,sys,time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); time.sleep(60)"
)
#: What `ls` ends with: all shown, or something missing or shut. nsenter and setpriv end with other numbers.
LS_STATUS = {0, 2}
#: No driver is behind a stand-in's node; a real card opens.
ALLOWED = {0, errno.ENXIO}


def minors(host: Host) -> list[int]:
    """Return the device minors in the order of the slots, which is the PCI bus's."""
    report = host.check_output("nvidia-smi -q -x")
    found = re.findall(r'<gpu id="([^"]+)">.*?<minor_number>(\d+)</minor_number>', report, re.DOTALL)
    return [int(minor) for _, minor in sorted(found)]


@pytest.mark.unit("semantik-worker@0.service", "semantik-worker@1.service")
def test_worker_opens_its_own_gpu_and_not_its_neighbours(cluster: Cluster) -> None:
    for name in cluster.names("workers"):
        host = cluster.host(name)
        fitted = minors(host)
        assert len(fitted) >= 2
        for slot, own in enumerate(fitted):
            group = host.check_output(
                "systemctl show --property ControlGroup --value semantik-worker@%s", str(slot)
            )
            for minor in fitted:
                seen = int(
                    host.check_output("python3 -c %s %s %s", OPEN_AS_UNIT, group, f"/dev/nvidia{minor}")
                )
                if minor == own:
                    assert seen in ALLOWED, (
                        f"{name}: slot {slot} cannot open its own /dev/nvidia{minor}: {seen}"
                    )
                else:
                    assert seen == errno.EPERM, f"{name}: slot {slot} may open /dev/nvidia{minor}: {seen}"


@pytest.mark.unit("semantik-query.service")
def test_query_service_opens_no_gpu(cluster: Cluster) -> None:
    for host in cluster.group("workers"):
        group = host.check_output("systemctl show --property ControlGroup --value semantik-query")
        for minor in minors(host):
            seen = int(host.check_output("python3 -c %s %s %s", OPEN_AS_UNIT, group, f"/dev/nvidia{minor}"))
            assert seen == errno.EPERM


@pytest.mark.unit("semantik-parser.socket", "semantik-parser@*.service")
def test_parser_has_no_network_no_credentials_and_no_gpu(cluster: Cluster) -> None:
    host = cluster.group("workers")[0]
    path = host.check_output("systemctl show --property Listen --value semantik-parser.socket").split()[0]
    before = set(parsers(host))
    holder = host.check_output(f"python3 -c '{HOLD_PARSER}' {path} >/dev/null 2>&1 & echo $!")
    try:
        host.check_output(
            'for n in $(seq 50); do test -n "$(systemctl list-units --plain --no-legend '
            "--state=running 'semantik-parser@*')\" && break; sleep 0.1; done"
        )
        started = [unit for unit in parsers(host) if unit not in before]
        assert started, "no parser was started for a connection"
        pid = host.check_output("systemctl show --property MainPID --value %s", started[0])
        inside = f"nsenter --target {pid}"
        links = host.check_output(f"{inside} --net ip -oneline link").splitlines()
        assert len(links) == 1 and "lo:" in links[0], links
        status = host.check_output(f"cat /proc/{pid}/status")
        assert re.search(r"^Seccomp:\s+2$", status, re.MULTILINE), status
        assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE), status
        assert "PASSWORD" not in host.check_output(f"tr '\\0' '\\n' < /proc/{pid}/environ").upper()
        uid = re.search(r"^Uid:\s+(\d+)", status, re.MULTILINE)
        assert uid is not None and int(uid[1]) != 0
        # As the parser's user, without capabilities, in the parser's own view of the file system.
        look = f"{inside} --mount setpriv --reuid {uid[1]} --clear-groups --bounding-set -all ls -A %s"
        # The same command shows what a parser may see: otherwise its silence below would say nothing.
        assert "bin" in host.check_output(look, "/opt/semantik/current/venv").split()
        for hidden in ("/etc/semantik/secrets", "/run/credentials", "/var/lib/semantik", "/dev/nvidia0"):
            # What does not exist there, is shut, or is empty shows nothing to anyone without capabilities.
            listed = host.run(look, hidden)
            assert listed.rc in LS_STATUS, listed.stderr
            assert not listed.stdout.strip(), f"{hidden}: {listed.stdout}"
    finally:
        host.check_output(f"kill {holder}")


def parsers(host: Host) -> list[str]:
    """Return the parser instances that run now."""
    output = host.check_output("systemctl list-units --plain --no-legend --state=running 'semantik-parser@*'")
    return [line.split()[0] for line in output.splitlines()]
