"""Check mode and diff tell the truth: nothing on a finished cluster, and after one edit exactly that."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from clusters import Cluster
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[2]
RECAP = re.compile(r"^(\S+)\s*: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


def playbook(cluster: Cluster, *arguments: str) -> str:
    """Run site.yml on the inventory under test from this machine, as the operator would."""
    # Molecule asks Ansible for colours, which would stand between the words that are looked for.
    command = [
        "env",
        "ANSIBLE_FORCE_COLOR=false",
        "ANSIBLE_NOCOLOR=true",
        "ansible-playbook",
        "-i",
        cluster.inventory,
        *arguments,
        str(ROOT / "site.yml"),
    ]
    result = Host.get_host("local://").run(
        f"cd {shlex.quote(str(ROOT))} && {shlex.join(command)}".replace("%", "%%")
    )
    assert result.rc == 0, result.stdout + result.stderr
    return str(result.stdout)


def recap(output: str) -> dict[str, int]:
    """Return how many tasks changed, or would have changed, each host."""
    found = {
        name: (int(changed), int(lost), int(failed)) for name, changed, lost, failed in RECAP.findall(output)
    }
    assert found, output
    assert all(lost == failed == 0 for _, lost, failed in found.values()), output
    return {name: changed for name, (changed, _, _) in found.items()}


def test_check_mode_reports_nothing_on_a_finished_cluster(cluster: Cluster) -> None:
    output = playbook(cluster, "--check", "--diff")
    changes = recap(output)
    assert set(cluster.names("all")) <= set(changes)
    assert set(changes.values()) == {0}, output


@pytest.mark.unit("semantik-flower.service")
def test_check_mode_reports_one_edit_and_nothing_else(cluster: Cluster) -> None:
    output = playbook(cluster, "--check", "--diff", "--extra-vars", "cluster_chunk_overlap=48")
    lines = [line for line in output.splitlines() if re.match(r"^[-+](?![-+])", line)]
    assert lines, output
    assert {line.split("=")[0].lstrip("-+") for line in lines} == {"SEMANTIK_CHUNK_OVERLAP"}, lines
    assert {line for line in lines if line[0] == "+"} == {"+SEMANTIK_CHUNK_OVERLAP=48"}
    # Nothing was written: the hosts still say what they said.
    for host in cluster.group("all"):
        assert "SEMANTIK_CHUNK_OVERLAP=48" not in host.check_output("cat /etc/semantik/semantik.env")
