"""Which slots the cluster should have, and which sets of packages its hosts need."""

from __future__ import annotations

from typing import Any

from expected_slots import expected_slots
from wheelhouse_targets import wheelhouse_targets

RECORDED = "# managed\nSEMANTIK_EXPECTED_SLOTS=gpu1:0,gpu2:0,gpu2:1,gone:0\nSEMANTIK_NGINX=head:443\n"


def test_slots_are_sorted_by_number_not_by_letter() -> None:
    hostvars = {"gpu1": {"worker_slot_names": [f"gpu1:{number}" for number in (10, 9, 0)]}}
    assert expected_slots(["gpu1"], hostvars, "") == ["gpu1:0", "gpu1:9", "gpu1:10"]


def test_a_host_that_was_not_looked_at_keeps_its_slots_and_one_that_left_loses_them() -> None:
    hostvars: dict[str, Any] = {"gpu1": {"worker_slot_names": ["gpu1:0", "gpu1:1"]}, "gpu2.example.org": {}}
    assert expected_slots(["gpu1", "gpu2.example.org"], hostvars, RECORDED) == [
        "gpu1:0",
        "gpu1:1",
        "gpu2:0",
        "gpu2:1",
    ]


def facts(minor: int, architecture: str = "x86_64") -> dict[str, Any]:
    """Return a host's variables as Ansible has them after gathering facts."""
    version = {"major": 3, "minor": minor, "micro": 2}
    return {"ansible_facts": {"python": {"version": version}, "architecture": architecture}}


def test_each_set_python_and_architecture_is_built_once() -> None:
    hostvars = {"head": facts(13), "gpu1": facts(11), "gpu2": facts(11), "gpu3": facts(12, "aarch64")}
    groups = {"control": ["head"], "workers": ["gpu1", "gpu2", "gpu3"], "redis": ["head"]}
    assert wheelhouse_targets(groups, hostvars) == [
        "control:3.13:x86_64",
        "worker:3.11:x86_64",
        "worker:3.12:aarch64",
    ]


def test_a_host_in_both_groups_takes_the_worker_set_alone() -> None:
    groups = {"control": ["all-in-one"], "workers": ["all-in-one"]}
    assert wheelhouse_targets(groups, {"all-in-one": facts(11)}) == ["worker:3.11:x86_64"]


def test_hosts_left_out_by_limit_have_no_facts_and_no_target() -> None:
    assert wheelhouse_targets(
        {"control": ["head"], "workers": ["gpu1"]}, {"head": facts(13), "gpu1": {}}
    ) == ["control:3.13:x86_64"]
