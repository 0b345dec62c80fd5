"""Every service runs, starts at boot, is confined, and the cluster's own check agrees."""

from __future__ import annotations

import re

import pytest
from clusters import Cluster, Operator

CONTROL = (
    "semantik-planner.service",
    "semantik-scheduler.service",
    "semantik-flower.service",
    "nginx.service",
)
WORKERS = (
    "semantik-worker@0.service",
    "semantik-worker@1.service",
    "semantik-query.service",
    "semantik-parser.socket",
)
#: Ours and those we confine further than Debian does. 10 is wide open, 0 is shut.
CONFINED = {
    "workers": ("semantik-worker@0.service", "semantik-worker@1.service", "semantik-query.service"),
    "control": (
        "semantik-planner.service",
        "semantik-scheduler.service",
        "semantik-flower.service",
        "nginx.service",
    ),
    "redis": ("redis-server.service",),
}
MOST_EXPOSED = 1.5
MEBIBYTE = 1024 * 1024


@pytest.mark.parametrize("unit", CONTROL)
@pytest.mark.unit(*CONTROL)
def test_control_service_runs_and_starts_at_boot(cluster: Cluster, unit: str) -> None:
    assert cluster.control.check_output("systemctl is-active %s", unit) == "active"
    assert cluster.control.check_output("systemctl is-enabled %s", unit) == "enabled"


@pytest.mark.parametrize("unit", WORKERS)
@pytest.mark.unit(*WORKERS)
def test_worker_service_runs_and_starts_at_boot(cluster: Cluster, unit: str) -> None:
    for host in cluster.group("workers"):
        assert host.check_output("systemctl is-active %s", unit) == "active"
        assert host.check_output("systemctl is-enabled %s", unit) == "enabled"


def test_no_host_has_a_failed_unit(cluster: Cluster) -> None:
    for host in cluster.group("all"):
        assert host.check_output("systemctl list-units --failed --no-legend --plain") == ""


@pytest.mark.parametrize(
    ("group", "unit"), [(group, unit) for group, units in CONFINED.items() for unit in units]
)
def test_service_is_confined(cluster: Cluster, group: str, unit: str) -> None:
    for host in cluster.group(group):
        report = host.check_output("systemd-analyze security --no-pager %s", unit)
        found = re.search(r"Overall exposure level for \S+: ([\d.]+)", report)
        assert found, report
        assert float(found[1]) <= MOST_EXPOSED, report


def test_parser_is_confined_most(cluster: Cluster) -> None:
    for host in cluster.group("workers"):
        report = host.check_output("systemd-analyze security --no-pager semantik-parser@.service")
        found = re.search(r"Overall exposure level for \S+: ([\d.]+)", report)
        assert found, report
        assert float(found[1]) <= 0.5, report


@pytest.mark.parametrize(
    ("group", "unit", "most", "low"),
    [
        ("redis", "redis-server.service", 512, 256),
        ("workers", "semantik-worker@0.service", 4096, 2048),
        ("control", "semantik-flower.service", 512, 256),
    ],
)
def test_service_has_its_memory_limits(cluster: Cluster, group: str, unit: str, most: int, low: int) -> None:
    shown = cluster.group(group)[0].check_output(
        "systemctl show %s --property MemoryMax --property MemoryLow", unit
    )
    values = dict(line.split("=") for line in shown.splitlines())
    assert values == {"MemoryMax": str(most * MEBIBYTE), "MemoryLow": str(low * MEBIBYTE)}


@pytest.mark.unit(*CONTROL, *WORKERS, "redis-server.service", "postgresql@17-main.service")
def test_check_finds_every_part_in_order(operator: Operator) -> None:
    operator.run("check")


@pytest.mark.unit("semantik-worker@0.service", "semantik-worker@1.service")
def test_each_slot_answers_with_a_gpu_of_its_own(cluster: Cluster, operator: Operator) -> None:
    output = operator.run("check", "--gpu")
    fitted = [
        uuid
        for host in cluster.group("workers")
        for uuid in re.findall(r"GPU-[0-9a-f-]{36}", host.check_output("nvidia-smi -L"))
    ]
    assert len(set(fitted)) == len(fitted) >= 2
    answered = re.findall(r"GPU-[0-9a-f-]{36}", output)
    assert sorted(answered) == sorted(fitted), output


@pytest.mark.unit("semantik-worker@0.service")
def test_operator_restarts_one_slot_alone(cluster: Cluster) -> None:
    host = cluster.group("workers")[0]

    def started(unit: str) -> str:
        return host.check_output("systemctl show --property ExecMainStartTimestampMonotonic --value %s", unit)

    before, neighbour = started("semantik-worker@0"), started("semantik-worker@1")
    host.check_output("systemctl restart semantik-worker@0")
    assert host.check_output("systemctl is-active semantik-worker@0") == "active"
    assert started("semantik-worker@0") != before
    assert started("semantik-worker@1") == neighbour
