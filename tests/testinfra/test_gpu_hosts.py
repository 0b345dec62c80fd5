"""What site.yml does with hosts that have other GPUs: none, eight, MIG, switches, dead ones, drivers too old.

The bus and the driver's answers are stand-ins, the playbook and the hosts are not.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from clusters import Cluster, rows
from testinfra.host import Host

ROOT = Path(__file__).parents[2]
DRIVER = "/etc/semantik-lab/gpus.json"
#: In place of the machine's own bus, which all of the lab's hosts see.
BUS, BUS_STANDIN = "/sys/bus/pci/devices", "/run/semantik-lab-pci"
L4 = "NVIDIA L4 (stand-in)"


def gpu(at: int, **more: Any) -> dict[str, Any]:
    """Return an L4 in its place on the bus; minors do not follow the order of the bus."""
    return {
        "index": at,
        "uuid": f"GPU-00000000-0000-4000-8000-{at:012}",
        "name": L4,
        "pci_bus_id": f"00000000:{0x10 + at:02X}:00.0",
        "minor": at ^ 1,
        "memory_mib": 23034,
        "min_power_limit": 40.0,
        "max_power_limit": 72.0,
        "power_limit": 60.0,
        "compute_mode": "Exclusive_Process",
        **more,
    }


def mig(*uuids: str) -> list[dict[str, Any]]:
    """Return MIG devices of an A100."""
    return [
        {"uuid": uuid, "profile": "3g.20gb", "gi": at + 1, "ci": 0, "memory_mib": 19968}
        for at, uuid in enumerate(uuids)
    ]


@dataclass(frozen=True)
class Run:
    """A run of the playbook that has ended."""

    status: int
    said: str

    def changed(self, host: str) -> int:
        """Return how many tasks changed a host."""
        found = re.search(rf"^{host}\s+: .*?changed=(\d+)", self.said, re.MULTILINE)
        assert found, self.said
        return int(found[1])


class Workers:
    """The worker hosts, which get other GPUs, and the playbook."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.names = cluster.names("workers")

    def host(self, at: int) -> Host:
        """Return the connection to one of them."""
        return self.cluster.host(self.names[at])

    def fit(self, at: int, gpus: Sequence[Mapping[str, Any]], driver: str = "550.163.01") -> None:
        """Give a host these GPUs, as its driver sees them."""
        cuda = {"550": "12.4", "470": "11.4"}[driver.partition(".")[0]]
        said = json.dumps({"driver_version": driver, "cuda_version": cuda, "gpus": list(gpus)}, indent=2)
        self.host(at).check_output("printf %%s %s > %s", said, DRIVER)

    def plug(self, at: int, devices: Mapping[str, tuple[str, str]]) -> None:
        """Give a host these devices of NVIDIA's: bus id -> class, device id."""
        host = self.host(at)
        lines = [f"mkdir -p {BUS_STANDIN}"]
        for bus_id, (kind, device) in devices.items():
            place = f"{BUS_STANDIN}/{bus_id}"
            lines.append(f"mkdir -p {place} && echo 0x10de > {place}/vendor")
            lines.append(f"echo {kind} > {place}/class && echo {device} > {place}/device")
        lines.append(f"mount --bind {BUS_STANDIN} {BUS}")
        host.check_output(" && ".join(lines))

    def unplug(self, at: int) -> None:
        """Let a host see the machine's bus again."""
        self.host(at).run(f"umount {BUS}; rm -rf {BUS_STANDIN}")

    def play(self, tags: str, at: Sequence[int] = (0, 1), **variables: Any) -> Run:
        """Run site.yml for these hosts."""
        limit = ",".join(["localhost", *(self.names[number] for number in at)])
        command = [
            "ansible-playbook",
            "-i",
            self.cluster.inventory,
            "--limit",
            limit,
            "--tags",
            tags,
            "site.yml",
        ]
        # Molecule asks for colours and for YAML, which would stand between the words that are looked for.
        plain = {"FORCE_COLOR": "false", "NOCOLOR": "true", "CALLBACK_RESULT_FORMAT": "json"}
        done = subprocess.run(
            [*command, "--extra-vars", json.dumps(variables)],
            env={**os.environ, **{f"ANSIBLE_{name}": value for name, value in plain.items()}},
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip
        return Run(done.returncode, done.stdout + done.stderr)

    def refused(self, *said: str, at: Sequence[int] = (0, 1), **variables: Any) -> None:
        """Run the playbook, which must stop before it changes a host, and say so."""
        run = self.play("worker,nvidia_driver", at, **variables)
        assert run.status != 0, run.said
        for words in said:
            assert words in run.said
        for number in at:
            assert run.changed(self.names[number]) == 0, run.said
            assert self.host(number).run("systemctl is-active semantik-worker@0 semantik-worker@1").rc == 0

    def slots(self, at: int) -> dict[str, str]:
        """Return slot -> UUID."""
        lines = self.host(at).check_output("grep -H ^CUDA_VISIBLE_DEVICES= /etc/semantik/gpu-*.env")
        return dict(re.findall(r"gpu-(\d+)\.env:CUDA_VISIBLE_DEVICES=(\S*)", lines))

    def units(self, at: int) -> list[str]:
        """Return the workers that the host would start at boot."""
        listed = self.host(at).check_output(
            "systemctl list-unit-files --no-legend --state=enabled 'semantik-worker@*' | cut -d ' ' -f 1; "
            "ls -d /etc/systemd/system/multi-user.target.wants/semantik-worker@* | xargs -n 1 basename"
        )
        return sorted(set(re.findall(r"semantik-worker@\d+\.service", listed)))


@pytest.fixture
def workers(cluster: Cluster) -> Iterator[Workers]:
    found = Workers(cluster)
    for at in (0, 1):
        found.host(at).check_output(f"cp -n {DRIVER} {DRIVER}.before")
    yield found
    for at in (0, 1):
        found.unplug(at)
        found.host(at).check_output(f"mv {DRIVER}.before {DRIVER}")


def test_no_gpu_and_mig_mode_without_a_device_stop_the_run(workers: Workers) -> None:
    workers.fit(0, [])
    workers.fit(1, [gpu(0, mig=[])])
    first, second = workers.names
    workers.refused(
        f"{first}: no GPU found: is the NVIDIA driver installed (nvidia-smi -L)?",
        f"{second}: GPU 00000000:10:00.0 is in MIG mode and has no MIG device",
    )


def test_a_dead_gpu_and_another_model_than_promised_stop_the_run(workers: Workers) -> None:
    workers.fit(0, [gpu(0)])
    workers.plug(0, {"0000:10:00.0": ("0x030200", "0x27b8"), "0000:11:00.0": ("0x030200", "0x27b8")})
    workers.fit(1, [gpu(0), gpu(1, name="NVIDIA H100 (stand-in)")])
    first, second = workers.names
    workers.refused(
        f"{first}: worker_gpu_models promises 2 x {L4}, and the driver shows 1",
        "On the PCI bus, but not shown by the driver: 0000:11:00.0",
        f"{second}: worker_gpu_models promises 2 x {L4}, and the driver shows 1",
        "1 x NVIDIA H100 (stand-in)",
        worker_gpu_models={L4: 2},
        nvidia_driver_source="none",
    )


def test_switches_stop_a_run_whose_source_has_no_fabric_manager(workers: Workers) -> None:
    eight = {f"0000:{0x10 + at:02x}:00.0": ("0x030200", "0x2330") for at in range(8)}
    switches = {f"0000:{0x30 + at:02x}:00.0": ("0x068000", "0x22a3") for at in range(4)}
    workers.plug(0, {**eight, **switches})
    workers.refused(
        f"{workers.names[0]}: NVSwitches need the fabric manager, and Debian has none: "
        "set nvidia_driver_source to cuda_repository",
        at=[0],
    )


def test_models_that_no_one_module_serves_stop_the_run(workers: Workers) -> None:
    workers.plug(0, {"0000:10:00.0": ("0x030200", "0x1db6"), "0000:11:00.0": ("0x030200", "0x2901")})
    workers.refused(
        f"{workers.names[0]}: GPUs of Blackwell need the open kernel module and those before Turing", at=[0]
    )


def test_a_driver_too_old_for_the_wheel_stops_the_run(workers: Workers) -> None:
    workers.fit(0, [gpu(0), gpu(1)], driver="470.256.02")
    workers.refused(
        f"{workers.names[0]}: driver 470.256.02 serves",
        "needs driver 525 or newer: set ",
        worker_device="auto",
        wheelhouse_torch="cu126",
    )


def test_a_driver_that_does_not_answer_costs_no_slot_its_gpu(workers: Workers) -> None:
    before = workers.slots(0)
    workers.plug(0, {"0000:10:00.0": ("0x030200", "0x27b8"), "0000:11:00.0": ("0x030200", "0x27b8")})
    workers.host(0).check_output(f"rm {DRIVER}")
    # Without the driver's own role, whose part it would be to bring one.
    run = workers.play("worker", [0])
    assert run.status != 0, run.said
    assert f"{workers.names[0]}: no GPU found (nvidia-smi -q -x ended with status 9" in run.said
    assert "On the PCI bus, but not shown by the driver: 0000:10:00.0, 0000:11:00.0" in run.said
    assert workers.slots(0) == before
    assert workers.units(0) == ["semantik-worker@0.service", "semantik-worker@1.service"]
    assert workers.host(0).run("systemctl is-active semantik-worker@0 semantik-worker@1").rc == 0


def test_slots_follow_the_gpus_up_and_down_and_back(cluster: Cluster, workers: Workers) -> None:
    before = [workers.slots(at) for at in (0, 1)]
    real = [json.loads(workers.host(at).check_output("cat %s", DRIVER))["gpus"] for at in (0, 1)]
    parts = ["MIG-00000000-0000-4000-8000-00000000000a", "MIG-00000000-0000-4000-8000-00000000000b"]
    try:
        # Eight on one host, two of them those that have their slots; a card in two parts on the other.
        workers.fit(0, [*(gpu(at) for at in range(6)), *real[0]])
        workers.fit(1, [*real[1], gpu(7, name="NVIDIA A100 (stand-in)", mig=mig(*parts))])
        # The lab's machine has no memory for eight, and none of the new ones is started.
        up = workers.play("configure", __worker_host_need_mb=0)
        assert up.status == 0, up.said
        eight = {**before[0], **{str(at + 2): gpu(at)["uuid"] for at in range(6)}}
        assert workers.slots(0) == eight
        assert workers.slots(1) == {**before[1], "2": parts[0], "3": parts[1]}
        # Down again: the surplus goes, and of those that are there one less than before.
        workers.fit(0, real[0])
        workers.fit(1, real[1][:1])
        left = {slot: uuid for slot, uuid in before[1].items() if uuid == real[1][0]["uuid"]}
        (lost,) = set(before[1]) - set(left)
        down = workers.play("worker")
        assert down.status == 0, down.said
        assert workers.slots(0) == before[0]
        assert workers.slots(1) == left
        assert workers.units(0) == ["semantik-worker@0.service", "semantik-worker@1.service"]
        assert workers.units(1) == [f"semantik-worker@{slot}.service" for slot in left]
        gone = f"/etc/systemd/system/semantik-worker@{lost}.service.d"
        assert workers.host(1).run(f"systemctl is-active semantik-worker@{lost}").rc != 0
        assert not workers.host(1).file(gone).exists
        state = f"SELECT state FROM slots WHERE slot = '{workers.names[1]}:{lost}'"
        assert rows(cluster, state) == ["stopped"]
    finally:
        for at in (0, 1):
            workers.host(at).check_output(f"cp {DRIVER}.before {DRIVER}")
        back = workers.play("worker")
    assert back.status == 0, back.said
    assert [workers.slots(at) for at in (0, 1)] == before
    for at in (0, 1):
        assert workers.host(at).run("systemctl is-active semantik-worker@0 semantik-worker@1").rc == 0
