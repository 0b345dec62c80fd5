"""The module that numbers slots: order, minors, NUMA nodes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import gpu_slots
import pytest


def report(*gpus: tuple[str, str, int, str]) -> str:
    """Return `nvidia-smi -q -x` of GPUs given as bus id, uuid, minor, MIG mode."""
    body = "".join(
        f"""<gpu id="{bus}"><product_name>NVIDIA L4</product_name>
        <mig_mode><current_mig>{mig}</current_mig></mig_mode>
        <uuid>{uuid}</uuid><minor_number>{minor}</minor_number>
        <fb_memory_usage><total>23034 MiB</total></fb_memory_usage></gpu>"""
        for bus, uuid, minor, mig in gpus
    )
    head = '<?xml version="1.0"?><!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">'
    return f"{head}<nvidia_smi_log>{body}</nvidia_smi_log>"


FIRST = ("00000000:3B:00.0", "GPU-a", 1, "N/A")
SECOND = ("00000000:AF:00.0", "GPU-b", 0, "Disabled")


def test_slots_follow_the_bus_and_keep_the_drivers_minors() -> None:
    gpus = gpu_slots.parse(report(SECOND, FIRST))
    assert [(gpu["uuid"], gpu["minor"], gpu["bus_id"]) for gpu in gpus] == [
        ("GPU-a", 1, "00000000:3b:00.0"),
        ("GPU-b", 0, "00000000:af:00.0"),
    ]
    assert gpus[0]["memory_mib"] == 23034


def test_the_bus_is_compared_as_numbers_with_its_domain() -> None:
    gpus = gpu_slots.parse(
        report(("00010000:01:00.0", "GPU-far", 0, "N/A"), ("00000000:C1:00.0", "GPU-near", 1, "N/A"))
    )
    assert [gpu["uuid"] for gpu in gpus] == ["GPU-near", "GPU-far"]


def test_a_gpu_cut_up_by_mig_is_refused_with_the_command_that_helps() -> None:
    with pytest.raises(gpu_slots.SlotError, match=r"MIG is enabled .* nvidia-smi -i 00000000:3b:00.0 -mig 0"):
        gpu_slots.parse(report((FIRST[0], "GPU-a", 0, "Enabled")))


def test_a_report_without_a_minor_is_refused() -> None:
    with pytest.raises(gpu_slots.SlotError, match="reports no minor_number"):
        gpu_slots.parse(report(FIRST).replace("<minor_number>1</minor_number>", ""))


def test_the_numa_node_is_read_by_the_kernels_name_of_the_device(tmp_path: Path) -> None:
    device = tmp_path / "0000:3b:00.0"
    device.mkdir()
    (device / "numa_node").write_text("1\n")
    assert gpu_slots.numa_node("00000000:3b:00.0", tmp_path) == 1
    assert gpu_slots.numa_node("00000000:af:00.0", tmp_path) == -1


def test_auto_takes_every_gpu_and_a_number_the_first_ones() -> None:
    gpus = gpu_slots.parse(report(FIRST, SECOND))
    assert gpu_slots.choose(gpus, "auto", "auto") == gpus
    assert gpu_slots.choose(gpus, "1", "auto") == gpus[:1]


@pytest.mark.parametrize(
    ("slots", "device", "words"),
    [
        ("auto", "cpu", "no GPU found"),
        ("2", "auto", "asks for 2 GPUs and the driver shows 0"),
        ("0", "cpu", "a number above 0"),
        ("many", "auto", "use auto"),
    ],
)
def test_what_is_not_there_is_refused(slots: str, device: str, words: str) -> None:
    with pytest.raises(gpu_slots.SlotError, match=words):
        gpu_slots.choose([], slots, device)


def test_a_lost_gpu_is_noticed() -> None:
    with pytest.raises(gpu_slots.SlotError, match="asks for 2 GPUs and the driver shows 1"):
        gpu_slots.choose(gpu_slots.parse(report(FIRST)), "2", "cpu")


def test_a_host_without_gpus_has_slots_on_the_cpu() -> None:
    slots = gpu_slots.choose([], "3", "cpu")
    assert [(slot["uuid"], slot["minor"], slot["numa_node"]) for slot in slots] == [("", -1, -1)] * 3
