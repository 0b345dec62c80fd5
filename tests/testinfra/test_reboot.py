"""A worker host that is rebooted comes back with every slot and each slot's GPU, without anyone's help."""

from __future__ import annotations

import errno
import re

import pytest
from clusters import Cluster, Operator, reach, rows, wait_for
from test_sandbox import ALLOWED, OPEN_AS_UNIT
from testinfra.host import Host

#: On a file system that a reboot empties.
MARK = "/run/before-the-reboot"
#: As a driver may after a boot: other device nodes, other places on the bus, another order of its list; and
#: as a card does, which forgets what it was set to.
SHUFFLE = """
import json, pathlib
path = pathlib.Path("/etc/semantik-lab/gpus.json")
known = json.loads(path.read_text())
gpus = known["gpus"]
for field in ("minor", "pci_bus_id"):
    values = [gpu[field] for gpu in gpus]
    for gpu, value in zip(gpus, values[1:] + values[:1]):
        gpu[field] = value
for gpu in gpus:
    gpu["power_limit"] = gpu["max_power_limit"]
    gpu["compute_mode"] = "Default"
known["gpus"] = [{**gpu, "index": at} for at, gpu in enumerate(reversed(gpus))]
path.write_text(json.dumps(known, indent=2))
"""


def reboot(host: Host, name: str) -> None:
    """Reboot a host and wait until all its units are there again."""
    host.check_output(f"touch {MARK}")
    # The connection may end before the command does: the mark, not the exit status, says whether it rebooted.
    reach(host, "systemctl reboot")

    def is_back() -> bool:
        seen = reach(host, f"test ! -e {MARK} && systemctl is-system-running --wait")
        return seen is not None and seen.rc == 0

    wait_for(is_back, 150, f"{name} to come back with all its units", lambda: units(host))


@pytest.mark.unit("semantik-worker@0.service", "semantik-worker@1.service", "semantik-query.service")
def test_worker_host_serves_again_after_a_reboot(cluster: Cluster, operator: Operator) -> None:
    name = cluster.names("workers")[0]
    host = cluster.host(name)
    begun = rows(cluster, "SELECT now()")[0]
    reboot(host, name)
    live = (
        f"SELECT count(*) FROM slots WHERE slot LIKE '{name}:%' AND state IN ('idle', 'busy') "
        f"AND last_seen > timestamptz '{begun}' + interval '3 s'"
    )
    wait_for(lambda: rows(cluster, live) == ["2"], 120, f"both slots of {name} to report")
    operator.run("check", "--gpu")


def fitted(host: Host) -> dict[str, int]:
    """Return UUID -> device minor, as the driver has them now."""
    report = host.check_output("nvidia-smi -q -x")
    found = re.findall(r"<uuid>(.*?)</uuid>\s*<minor_number>(\d+)</minor_number>", report)
    return {uuid: int(minor) for uuid, minor in found}


def settings(host: Host) -> set[tuple[str, str]]:
    """Return the power limits and compute modes of a host's GPUs."""
    report = host.check_output("nvidia-smi -q -x")
    found = re.findall(
        r"<current_power_limit>(.*?)</.*?<compute_mode>(.*?)</compute_mode>", report, re.DOTALL
    )
    return set(found)


def bound(host: Host) -> dict[str, str]:
    """Return slot -> UUID."""
    lines = host.check_output("grep -H ^CUDA_VISIBLE_DEVICES= /etc/semantik/gpu-*.env").splitlines()
    return dict(re.findall(r"gpu-(\d+)\.env:CUDA_VISIBLE_DEVICES=(\S+)", "\n".join(lines)))


@pytest.mark.unit("semantik-gpu@*.service", "semantik-gpu-settings.service", "semantik-worker@*.service")
def test_three_boots_that_number_the_gpus_anew_leave_each_slot_its_own_and_as_it_was_set(
    cluster: Cluster,
) -> None:
    name = cluster.names("workers")[-1]
    host = cluster.host(name)
    slots = bound(host)
    assert len(set(slots.values())) == len(slots) >= 2
    before, declared = fitted(host), settings(host)
    assert declared == {("60.00 W", "Exclusive_Process")}, "the inventory's settings are not the GPUs'"
    host.check_output("cp /etc/semantik-lab/gpus.json /etc/semantik-lab/gpus.json.before")
    try:
        for _ in range(3):
            host.check_output("python3 -c %s", SHUFFLE)
            now = fitted(host)
            assert now != before and set(now) == set(before)
            assert settings(host) == {("72.00 W", "Default")}
            before = now
            reboot(host, name)
            assert bound(host) == slots
            assert settings(host) == declared
            for slot, uuid in slots.items():
                group = host.check_output(
                    "systemctl show --property ControlGroup --value semantik-worker@%s", slot
                )
                for other, minor in now.items():
                    node = f"/dev/nvidia{minor}"
                    seen = int(host.check_output("python3 -c %s %s %s", OPEN_AS_UNIT, group, node))
                    assert seen in (ALLOWED if other == uuid else {errno.EPERM}), (
                        slot,
                        uuid,
                        other,
                        node,
                        seen,
                    )
    finally:
        host.check_output("mv /etc/semantik-lab/gpus.json.before /etc/semantik-lab/gpus.json")
        host.check_output("systemctl restart 'semantik-worker@*.service'")
        wait_for(
            lambda: host.run("systemctl is-active semantik-worker@0 semantik-worker@1").rc == 0,
            120,
            f"the workers of {name} to be at their own nodes again",
        )


def units(host: Host) -> str:
    """Return the units that are not as they should be, for the message of a failure."""
    found = reach(
        host, "systemctl list-units --state=failed,activating --no-legend --plain; systemctl list-jobs"
    )
    return "it does not answer" if found is None else str(found.stdout)
