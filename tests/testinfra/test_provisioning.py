"""Check mode and diff tell the truth: nothing on a finished cluster, and after one edit exactly that."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from clusters import Cluster

ROOT = Path(__file__).resolve().parents[2]
RECAP = re.compile(r"^(\S+)\s*: ok=\d+\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)
EDIT = "cluster_chunk_overlap=48"


@dataclass(frozen=True)
class Run:
    """A run of site.yml under way, and the file that it writes to."""

    process: subprocess.Popen[bytes]
    output: Path


@pytest.fixture(scope="module")
def runs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Run, Run]]:
    """Start site.yml in check mode on the inventory under test, as it is and with one variable edited.

    Both at once: most of such a run is waiting for the hosts.
    """
    command = ["ansible-playbook", "-i", cluster.inventory, "--check", "--diff", str(ROOT / "site.yml")]
    # Molecule asks Ansible for colours, which would stand between the words that are looked for.
    environment = {**os.environ, "ANSIBLE_FORCE_COLOR": "false", "ANSIBLE_NOCOLOR": "true"}
    directory = tmp_path_factory.mktemp("runs")
    started = []
    for name, arguments in (("as-it-is", []), ("edited", ["--extra-vars", EDIT])):
        with (directory / name).open("wb") as output:
            process = subprocess.Popen(
                [*command, *arguments], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        started.append(Run(process, directory / name))
    yield started[0], started[1]
    for run in started:
        run.process.kill()
        run.process.wait()


def finish(run: Run) -> tuple[str, dict[str, int]]:
    """Wait for a run, which must succeed; return its output and how many tasks would change each host."""
    status = run.process.wait(timeout=600)
    output = run.output.read_text(encoding="utf-8")
    assert status == 0, output
    found = {
        name: (int(changed), int(lost), int(failed)) for name, changed, lost, failed in RECAP.findall(output)
    }
    assert found, output
    assert all(lost == failed == 0 for _, lost, failed in found.values()), output
    return output, {name: changed for name, (changed, _, _) in found.items()}


def test_check_mode_reports_nothing_on_a_finished_cluster(cluster: Cluster, runs: tuple[Run, Run]) -> None:
    output, changes = finish(runs[0])
    assert set(cluster.names("all")) <= set(changes)
    assert set(changes.values()) == {0}, output


def test_check_mode_reports_one_edit_and_nothing_else(cluster: Cluster, runs: tuple[Run, Run]) -> None:
    output, changes = finish(runs[1])
    lines = [line for line in output.splitlines() if re.match(r"^[-+](?![-+])", line)]
    assert {line.split("=")[0].lstrip("-+") for line in lines} == {"SEMANTIK_CHUNK_OVERLAP"}, output
    assert {line for line in lines if line[0] == "+"} == {"+SEMANTIK_CHUNK_OVERLAP=48"}
    assert all(changes[name] > 0 for name in cluster.names("all")), changes
    # Nothing was written: the hosts still say what they said.
    for host in cluster.group("all"):
        assert "SEMANTIK_CHUNK_OVERLAP=48" not in host.check_output("cat /etc/semantik/semantik.env")
