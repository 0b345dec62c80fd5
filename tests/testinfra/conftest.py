"""Fixtures for any provisioned cluster, and what a failing test needs: the journals of the units it is about.

Molecule passes its own inventory; by hand it is
`pytest tests/testinfra --ansible-inventory inventories/lab/hosts.yml`.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator

import pytest
from clusters import Cluster, Operator, reach
from testinfra.utils.ansible_runner import AnsibleRunner

JOURNAL_LINES = 40
#: The directory that all hosts have in common.
SHARED = "/srv/documents"
#: Runs on the control host: one command for all files, readable by the services.
WRITE = """
import base64, json, os, pathlib, sys
folder, files, repeat = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
os.umask(0o022)
folder.mkdir(parents=True, exist_ok=True)
for name, content in files.items():
    (folder / name).write_bytes(base64.b64decode(content) * repeat)
"""


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that names the units a test is about."""
    config.addinivalue_line("markers", "unit(name, ...): the systemd units whose journals explain a failure")


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Cluster:
    """Return the cluster that the command line, or molecule, names."""
    inventory = request.config.getoption("ansible_inventory") or os.environ.get("MOLECULE_INVENTORY_FILE")
    if not inventory:
        pytest.fail(
            "name the inventory: pytest tests/testinfra --ansible-inventory inventories/lab/hosts.yml"
        )
    return Cluster(AnsibleRunner(inventory), inventory)


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Iterator[Operator]:
    """Return a person of the group `semantik`, made for the tests and removed after them."""
    name = "semantik-member"
    cluster.control.check_output(
        f"id {name} >/dev/null 2>&1 || useradd --create-home --groups semantik {name}"
    )
    yield Operator(cluster.control, name)
    cluster.control.check_output(f"userdel --force --remove {name} 2>/dev/null")


@pytest.fixture
def documents(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """Return a function that writes files, each `repeat` times, into a shared folder and returns its URI."""
    folder = f"{SHARED}/test-{request.node.name.replace('[', '-').replace(']', '')[:60]}"
    cluster.control.check_output("rm -rf %s", folder)

    def put(files: dict[str, str | bytes], repeat: int = 1) -> str:
        coded = {
            name: base64.b64encode(content.encode() if isinstance(content, str) else content).decode()
            for name, content in files.items()
        }
        cluster.control.check_output("python3 -c %s %s %s %s", WRITE, folder, json.dumps(coded), str(repeat))
        return folder

    yield put
    cluster.control.check_output("rm -rf %s", folder)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the journals of a failed test's units, from every host that has them, to its report."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    marks = list(item.iter_markers("unit"))
    cluster = getattr(item, "funcargs", {}).get("cluster")
    if not report.failed or not marks or cluster is None:
        return
    for unit in dict.fromkeys(name for mark in marks for name in mark.args):
        for name in cluster.names("all"):
            command = f"journalctl --unit '{unit}' --lines {JOURNAL_LINES} --no-pager --quiet"
            found = reach(cluster.host(name), command)
            journal = "the host does not answer" if found is None else found.stdout
            if journal.strip():
                report.sections.append((f"journal of {unit} on {name}", journal))
