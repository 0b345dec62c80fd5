"""GPUs of a host and the slots that they become: order, minors, MIG, what stays bound, what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import semantik_gpus
from gpu_slots import gpu_slots, ill, slot_names

ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "lab/standins/nvidia-smi"
L4, A100 = "NVIDIA L4", "NVIDIA A100-SXM4-40GB"


def gpu(bus: str, uuid: str, minor: int, name: str = L4, **more: Any) -> dict[str, Any]:
    """Return a GPU as the stand-in's file has it."""
    return {"uuid": uuid, "name": name, "pci_bus_id": bus, "minor": minor, "memory_mib": 23034, **more}


#: Two cards whose minors run against the bus.
FIRST = gpu("00000000:3B:00.0", "GPU-a", 1)
SECOND = gpu("00000000:AF:00.0", "GPU-b", 0)
EIGHT = [
    gpu(f"00000000:{bus:02X}:00.0", f"GPU-{bus}", 7 - at) for at, bus in enumerate(range(0x10, 0x90, 0x10))
]
PARTS = [
    {"uuid": f"MIG-{number}", "profile": "3g.20gb", "gi": number, "ci": 0, "memory_mib": 19968}
    for number in (1, 2)
]
CUT = gpu("00000000:01:00.0", "GPU-cut", 0, A100, mig=PARTS)


class Host:
    """A host's files as the program reads them, and its nvidia-smi: the lab's stand-in, as a program."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.pci, self.config, self.dev = place / "pci", place / "etc", place / "dev"
        for folder in (self.pci, self.config, self.dev, place / "bin"):
            folder.mkdir()
        monkeypatch.setenv("SEMANTIK_LAB_GPUS", str(place / "gpus.json"))
        program = place / "bin/nvidia-smi"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {STANDIN} "$@"\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")

    def fit(self, *gpus: dict[str, Any]) -> None:
        """Put cards into the host: on the bus, and shown by the driver."""
        known = {
            "driver_version": "550.163.01",
            "cuda_version": "12.4",
            "gpus": [{"index": at, **one} for at, one in enumerate(gpus)],
        }
        (self.place / "gpus.json").write_text(json.dumps(known))
        for one in gpus:
            self.device(one["pci_bus_id"], "0x030200")

    def device(self, bus: str, kind: str, device: str = "0x27b8") -> None:
        """Put a device on the bus."""
        path = self.pci / semantik_gpus.kernel_name(bus)
        path.mkdir(exist_ok=True)
        for name, text in (("vendor", "0x10de"), ("class", kind), ("device", device), ("numa_node", "-1")):
            (path / name).write_text(f"{text}\n")

    def bind(self, **slots: str) -> None:
        """Write the settings of slots, given as s0="GPU-a"."""
        for slot, uuid in slots.items():
            (self.config / f"gpu-{slot[1:]}.env").write_text(f"# x\nCUDA_VISIBLE_DEVICES={uuid}\nOTHER=1\n")

    def report(self) -> dict[str, Any]:
        """Return what the host says of itself."""
        return semantik_gpus.report(self.pci, self.config)

    def slots(self, *arguments: Any) -> list[tuple[int, str]]:
        """Return number and UUID of each slot; nothing may be wrong."""
        answer = gpu_slots(self.report(), *arguments)
        assert answer["problems"] == []
        return [(slot["slot"], slot["uuid"]) for slot in answer["slots"]]

    def problem(self, *arguments: Any) -> str:
        """Return what is wrong."""
        return "\n".join(gpu_slots(self.report(), *arguments)["problems"])

    def nodes(self, slot: str) -> dict[str, str]:
        """Return the links of a slot and where they lead."""
        folder = self.dev / "semantik" / slot
        return {path.name: os.path.normpath(folder / path.readlink()) for path in folder.iterdir()}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_slots_follow_the_bus_and_keep_the_drivers_minors(host: Host) -> None:
    host.fit(SECOND, FIRST)
    answer = gpu_slots(host.report())
    found = [(slot["slot"], slot["uuid"], slot["minor"], slot["memory_mib"]) for slot in answer["slots"]]
    assert found == [(0, "GPU-a", 1, 23034), (1, "GPU-b", 0, 23034)]
    assert slot_names(answer["slots"], "gpu1") == ["gpu1:0", "gpu1:1"]


def test_eight_gpus_are_eight_slots_in_the_order_of_the_bus(host: Host) -> None:
    host.fit(*reversed(EIGHT))
    assert host.slots() == [(at, f"GPU-{bus}") for at, bus in enumerate(range(0x10, 0x90, 0x10))]


def test_the_bus_is_compared_as_numbers_with_its_domain(host: Host) -> None:
    host.fit(gpu("00010000:01:00.0", "GPU-far", 0), gpu("00000000:C1:00.0", "GPU-near", 1))
    assert host.slots() == [(0, "GPU-near"), (1, "GPU-far")]


def test_a_slot_keeps_its_gpu_when_the_bus_is_numbered_anew(host: Host) -> None:
    host.bind(s0="GPU-a", s1="GPU-b")
    host.fit(gpu("00000000:3B:00.0", "GPU-b", 0), gpu("00000000:AF:00.0", "GPU-a", 1))
    assert host.slots() == [(0, "GPU-a"), (1, "GPU-b")]


def test_a_lost_gpu_leaves_its_number_free_for_the_next_card(host: Host) -> None:
    host.bind(s0="GPU-16", s1="GPU-32", s2="GPU-48")
    host.fit(EIGHT[0], EIGHT[2])
    assert host.slots() == [(0, "GPU-16"), (2, "GPU-48")]
    host.fit(EIGHT[0], EIGHT[2], gpu("00000000:05:00.0", "GPU-new", 3))
    assert host.slots() == [(0, "GPU-16"), (1, "GPU-new"), (2, "GPU-48")]


def test_a_number_takes_so_many_and_those_that_had_a_slot_first(host: Host) -> None:
    host.fit(*EIGHT)
    assert host.slots(2) == [(0, "GPU-16"), (1, "GPU-32")]
    host.bind(s0="GPU-96", s5="GPU-32")
    assert host.slots("2") == [(0, "GPU-96"), (5, "GPU-32")]


def test_each_mig_device_is_a_slot_with_its_own_memory(host: Host) -> None:
    host.fit(CUT, SECOND)
    answer = gpu_slots(host.report())
    assert [(slot["uuid"], slot["name"], slot["memory_mib"]) for slot in answer["slots"]] == [
        ("MIG-1", f"{A100} MIG 3g.20gb", 19968),
        ("MIG-2", f"{A100} MIG 3g.20gb", 19968),
        ("GPU-b", L4, 23034),
    ]


def test_a_gpu_in_mig_mode_without_a_device_is_refused_with_what_helps(host: Host) -> None:
    host.fit(gpu("00000000:01:00.0", "GPU-cut", 0, A100, mig=[]))
    assert "nvidia-smi -i 00000000:01:00.0 -mig 0" in host.problem()


@pytest.mark.parametrize(
    ("slots", "device", "words"),
    [
        ("auto", "cpu", "no GPU found (nvidia-smi -q -x ended with status 9"),
        ("2", "auto", "worker_slots asks for 2 GPUs and no GPU found"),
        ("0", "cpu", "a number above 0"),
        ("many", "auto", "use auto"),
    ],
)
def test_what_is_not_there_is_refused(host: Host, slots: str, device: str, words: str) -> None:
    assert words in host.problem(slots, device)


def test_a_host_without_gpus_has_slots_on_the_cpu(host: Host) -> None:
    slots = gpu_slots(host.report(), "3", "cpu")["slots"]
    assert [(slot["slot"], slot["uuid"], slot["minor"], slot["numa_node"]) for slot in slots] == [
        (number, "", -1, -1) for number in range(3)
    ]


def test_a_gpu_that_fell_off_is_named_by_the_bus(host: Host) -> None:
    host.fit(FIRST)
    host.device("00000000:AF:00.0", "0x030000")
    assert (
        "asks for 2 GPUs and the driver shows 1. On the PCI bus, but not shown by the driver: 0000:af:00.0"
        in (host.problem(2))
    )
    assert [line.partition(" (")[0] for line in ill(host.report())] == [
        "GPU 0000:af:00.0: on the PCI bus, but not shown by the driver"
    ]


def test_models_that_the_inventory_promises_must_be_there(host: Host) -> None:
    host.fit(FIRST, SECOND, CUT)
    assert host.problem("auto", "auto", {L4: 2, A100: 1}) == ""
    assert "4 x NVIDIA L4, and the driver shows 2 (all that is there: 1 x NVIDIA A100" in (
        host.problem("auto", "auto", {L4: 4})
    )
    assert "1 x NVIDIA H100, and the driver shows 0" in host.problem("auto", "auto", {"NVIDIA H100": 1})


def test_the_report_tells_what_the_driver_finds_fault_with_and_the_switches(host: Host) -> None:
    host.fit({**FIRST, "remap_failed": True}, {**SECOND, "remap_pending": True}, *EIGHT[:1])
    host.device("00000000:05:00.0", "0x068000", "0x22a3")
    host.device("00000000:06:00.0", "0x068000", "0x0368")  # a bridge of another kind
    seen = host.report()
    assert [line.partition(":")[0] for line in ill(seen)] == ["GPU 00000000", "GPU 00000000"]
    assert "replace the card" in ill(seen)[0] and "3b:00.0" in ill(seen)[0]
    assert "reset the GPU or reboot" in ill(seen)[1]
    assert seen["nvswitches"] == ["0000:05:00.0"]
    assert (seen["driver_version"], seen["cuda_version"]) == ("550.163.01", "12.4")


def test_blackwells_switches_are_known_by_the_card_that_manages_them(host: Host, tmp_path: Path) -> None:
    host.fit(FIRST)
    card = tmp_path / "cards/mlx5_0/device"
    card.mkdir(parents=True)
    (card / "vpd").write_bytes(b"\x82\x10ConnectX-7")
    assert semantik_gpus.report(host.pci, host.config, tmp_path / "cards")["nvlink5"] is False
    (card / "vpd").write_bytes(b"\x82\x10V0\x06SW_MNG")
    assert semantik_gpus.report(host.pci, host.config, tmp_path / "cards")["nvlink5"] is True


def test_each_gpu_says_what_it_computes_where_the_driver_knows(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.fit(FIRST, {**SECOND, "compute_cap": "9.0"})
    assert [one["capability"] for one in host.report()["gpus"]] == ["8.9", "9.0"]
    known = semantik_gpus.nvidia_smi

    def before_510(*arguments: str) -> str:
        if "compute_cap" in " ".join(arguments):
            raise semantik_gpus.DriverError('Field "compute_cap" is not a valid field to query.')
        return known(*arguments)

    monkeypatch.setattr(semantik_gpus, "nvidia_smi", before_510)
    assert [one["capability"] for one in host.report()["gpus"]] == ["", ""]


def test_numa_node_and_cpus_come_from_the_kernel(host: Host, tmp_path: Path) -> None:
    host.fit(FIRST)
    (host.pci / "0000:3b:00.0/numa_node").write_text("1\n")
    nodes = tmp_path / "node"
    (nodes / "node1").mkdir(parents=True)
    (nodes / "node1/cpulist").write_text("8-15,24-31\n")
    xml = semantik_gpus.nvidia_smi("-q", "-x")
    seen = semantik_gpus.parse(xml, "", pci=host.pci, nodes=nodes)["gpus"][0]
    assert (seen["numa_node"], seen["cpus"]) == (1, "8-15,24-31")


@pytest.mark.parametrize(
    ("path", "text"), [("minor_number", "N/A"), ("uuid", ""), ("minor_number", "Unknown Error")]
)
def test_a_card_that_lacks_what_is_needed_is_left_out_and_the_others_are_not(
    host: Host, path: str, text: str
) -> None:
    host.fit(FIRST, SECOND)
    xml = semantik_gpus.nvidia_smi("-q", "-x")
    broken = re.sub(f"<{path}>.*?</{path}>", f"<{path}>{text}</{path}>", xml, count=1)
    seen = semantik_gpus.parse(broken, "", pci=host.pci)
    assert [gpu["uuid"] for gpu in seen["gpus"]] == ["GPU-b"]
    assert path in seen["error"] and "3b:00.0" in seen["error"]
    with pytest.raises(semantik_gpus.DriverError, match="no element found"):
        semantik_gpus.parse("", "")


def test_one_card_that_makes_nvidia_smi_fail_takes_no_links_from_the_others(
    host: Host, tmp_path: Path
) -> None:
    host.bind(s0="GPU-a", s1="GPU-b")
    host.fit(FIRST, SECOND)
    # As after "Unable to determine the device handle for GPU0000:AF:00.0".
    (host.place / "gpus.json").unlink()
    for bus_id, uuid, minor in (("0000:3b:00.0", "GPU-a", 4), ("0000:af:00.0", "GPU-??", 5)):
        path = tmp_path / "information" / bus_id / "information"
        path.parent.mkdir(parents=True)
        path.write_text(f"Model: \t\t NVIDIA L4\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n")
    seen = host.report()
    assert seen["error"] and not seen["gpus"]
    known = tmp_path / "information"
    assert semantik_gpus.targets("0", seen, known) == {"gpu": "nvidia4"}
    with pytest.raises(semantik_gpus.DriverError, match="GPU GPU-b is not there"):
        semantik_gpus.targets("1", seen, known)


def test_an_excluded_gpu_has_no_slot_and_the_others_keep_theirs(host: Host) -> None:
    host.fit(*EIGHT)
    host.bind(**{f"s{at}": one["uuid"] for at, one in enumerate(EIGHT)})
    left = [(at, one["uuid"]) for at, one in enumerate(EIGHT) if at != 3]
    assert host.slots("auto", "auto", {}, [EIGHT[3]["uuid"]]) == left
    assert "write whole GPUs by UUID" in host.problem("auto", "auto", {}, ["3"])
    assert "names every GPU" in host.problem("auto", "auto", {}, [one["uuid"] for one in EIGHT])


def test_links_lead_to_the_gpus_node_whatever_its_number_is_now(host: Host) -> None:
    host.bind(s0="GPU-a", s1="GPU-b")
    for boot in ((1, 0), (0, 1), (5, 3)):
        host.fit(gpu("00000000:3B:00.0", "GPU-a", boot[0]), gpu("00000000:AF:00.0", "GPU-b", boot[1]))
        for slot in ("0", "1"):
            semantik_gpus.link(slot, host.report(), host.dev)
        assert host.nodes("0") == {"gpu": str(host.dev / f"nvidia{boot[0]}")}
        assert host.nodes("1") == {"gpu": str(host.dev / f"nvidia{boot[1]}")}


def test_a_mig_device_has_links_to_its_capabilities(host: Host, tmp_path: Path) -> None:
    for at, number in ((1, 21), (2, 30)):
        for part, minor in ((f"gi{at}", number), (f"gi{at}/ci0", number + 1)):
            path = tmp_path / "capabilities/gpu0/mig" / part
            path.mkdir(parents=True)
            (path / "access").write_text(f"DeviceFileMinor: {minor}\nDeviceFileMode: 256\n")
    host.fit(CUT)
    host.bind(s0="MIG-2")
    seen = host.report() | semantik_gpus.parse(
        semantik_gpus.nvidia_smi("-q", "-x"),
        semantik_gpus.nvidia_smi("-L"),
        pci=host.pci,
        capabilities=tmp_path / "capabilities",
    )
    semantik_gpus.link("0", seen, host.dev)
    caps = host.dev / "nvidia-caps"
    assert host.nodes("0") == {
        "gpu": str(host.dev / "nvidia0"),
        "gi": str(caps / "nvidia-cap30"),
        "ci": str(caps / "nvidia-cap31"),
    }


def test_a_slot_whose_gpu_is_gone_keeps_no_link_to_what_another_has_now(host: Host) -> None:
    host.bind(s0="GPU-a")
    host.fit(FIRST, SECOND)
    semantik_gpus.link("0", host.report(), host.dev)
    host.fit(gpu("00000000:AF:00.0", "GPU-b", 1))
    with pytest.raises(
        semantik_gpus.DriverError, match=r"GPU GPU-a is not there; the driver shows GPU-b; on the bus"
    ):
        semantik_gpus.link("0", host.report(), host.dev)
    assert not (host.dev / "semantik/0").exists()
    with pytest.raises(semantik_gpus.DriverError, match="there is no slot 7"):
        semantik_gpus.link("7", host.report(), host.dev)


@pytest.mark.parametrize("status", [0, 1])
def test_a_slot_with_a_gpu_has_the_nodes_made_that_cuda_opens(
    host: Host,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    status: int,
) -> None:
    """By nvidia-modprobe, here a stand-in: the driver leaves them to the first CUDA process."""
    helper = tmp_path / "helper/nvidia-modprobe"
    helper.parent.mkdir()
    node = host.dev / "nvidia-uvm"
    helper.write_text(
        f'#!/bin/sh\n[ "$*" = "-c 0 -u" ] && touch {node} && echo no such module && exit {status}\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    host.bind(s0="GPU-a", s1="")
    host.fit(FIRST)
    semantik_gpus.link("1", host.report(), host.dev)
    assert not node.exists(), "a slot on the CPU needs none"
    semantik_gpus.link("0", host.report(), host.dev)
    assert node.exists()
    said = capsys.readouterr().err
    assert said == ("nvidia-modprobe -c 0 -u ended with status 1: no such module\n" if status else "")
    helper.unlink()
    semantik_gpus.link("0", host.report(), host.dev)
    assert capsys.readouterr().err == "", "they are there"


def test_a_slot_on_the_cpu_has_no_links(host: Host) -> None:
    host.bind(s0="")
    semantik_gpus.link("0", host.report(), host.dev)
    assert host.nodes("0") == {}


def test_as_a_program_it_is_a_local_fact_and_refuses_what_it_does_not_know(host: Host) -> None:
    host.fit(FIRST)
    program = [sys.executable, str(ROOT / "roles/worker/files/semantik_gpus.py")]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert [one["uuid"] for one in json.loads(done.stdout)["gpus"]] == ["GPU-a"]
    refused = subprocess.run([*program, "link"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "semantik-gpus link N" in refused.stderr
