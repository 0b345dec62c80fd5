"""Is the cluster set up? From the controller, against the cluster that an inventory names:

    pytest tests/test_celery_setup.py --inventory inventories/lab
    python tests/test_celery_setup.py

It runs `semantik check --gpu` on the control host, as an operator would, and holds each part to it. With a
job on every GPU the answers take their turn: allow a few minutes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

#: Seconds that a busy slot may take to answer.
GPU_SECONDS = 180
ROOT = Path(__file__).parents[1]

Report = dict[str, Any]


def no_cluster(inventory: Path, reason: str) -> NoReturn:
    pytest.exit(
        f"no cluster to check behind {inventory}: {' '.join(reason.split())}\n"
        "'make demo' builds one, 'ansible-playbook -i INVENTORY site.yml' sets one up; name another with "
        "--inventory or SEMANTIK_INVENTORY",
        returncode=1,
    )


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    """What `semantik check --gpu --json` says on the control host."""
    from testinfra.utils.ansible_runner import AnsibleRunner

    # AnsibleRunner starts `ansible-inventory` and `ansible` by name. They are beside this interpreter, also
    # where its virtual environment is not activated.
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setenv("PATH", tools)
    given = Path(request.config.getoption("--inventory"))
    inventory = given if given.is_absolute() or given.exists() else ROOT / given
    if not inventory.exists():
        no_cluster(inventory, "there is no such inventory")
    runner = AnsibleRunner(str(inventory))
    try:
        control = sorted(runner.get_hosts("control"))
    except RuntimeError as error:
        no_cluster(inventory, str(error))
    if not control:
        no_cluster(inventory, "its group 'control' has no host")
    try:
        said = runner.get_host(control[0]).run(f"semantik check --gpu --timeout {GPU_SECONDS} --json")
    except RuntimeError as error:  # testinfra's, when SSH gets no connection
        no_cluster(inventory, f"{control[0]} cannot be reached: {error}")
    try:
        return json.loads(said.stdout)
    except ValueError:
        no_cluster(
            inventory, f"'semantik check' on {control[0]} ended with {said.rc}: {said.stderr or said.stdout}"
        )


def named(report: Report, kind: str) -> list[dict[str, Any]]:
    """The parts called `kind`, or `kind` and the name of a host or slot."""
    return [part for part in report["parts"] if part["name"].split()[0] == kind]


@pytest.mark.parametrize(
    "kind", ["redis", "postgresql", "planner", "scheduler", "query", "slot", "flower", "nginx"]
)
def test_part_is_there_and_in_order(report: Report, kind: str) -> None:
    parts = named(report, kind)
    assert parts, f"the check does not know of any {kind}"
    bad = [f"{part['name']}: {part['detail']}" for part in parts if not part["ok"]]
    assert not bad, "\n".join(bad)


def test_no_other_part_is_bad(report: Report) -> None:
    assert [part for part in report["parts"] if not part["ok"]] == []


def test_every_slot_ran_a_task_on_its_own_gpu(report: Report) -> None:
    slots = [part["name"].split()[1] for part in named(report, "slot")]
    answers = report["gpus"]
    bad = [f"{answer['slot']}: {answer['detail']}" for answer in answers if not answer["ok"]]
    assert not bad, "\n".join(bad)
    assert sorted(answer["slot"] for answer in answers) == sorted(slots)
    uuids = [answer["gpu_uuid"] for answer in answers]
    assert len(set(uuids)) == len(uuids), f"slots share a GPU: {uuids}"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *sys.argv[1:]]))
