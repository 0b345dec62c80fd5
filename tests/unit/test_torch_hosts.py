"""What torch has to serve, read from what a host reports: its driver, the one that is to come, its GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from torch_hosts import PIN, Gpu, Host

FIRST, SECOND = "00000000:3b:00.0", "00000000:af:00.0"


def facts(driver: str = "550.163.01", **more: Any) -> dict[str, Any]:
    """The fact `worker_driver` of a host with an L4 and a V100; without a driver the bus alone shows them."""
    shown = [
        {"bus_id": FIRST, "name": "NVIDIA L4", "capability": "8.9"},
        {"bus_id": SECOND, "name": "Tesla V100", "capability": "7.0"},
    ]
    bus = [{"bus_id": "0000:3b:00.0", "device": "0x27b8"}, {"bus_id": "0000:af:00.0", "device": "0x1db6"}]
    seen = {"driver_version": driver, "cuda_version": "", "gpus": shown if driver else [], "pci": bus}
    seen["lost"] = [] if driver else [device["bus_id"] for device in bus]
    known = {"device": "auto", "seen": seen, "source": "distribution", "version": "", "comes": not driver}
    return known | {"system": "Debian 13", "machine": "x86_64"} | more


def read(known: dict[str, Any], *slots: str) -> Host:
    return Host.read("gpu1", known, [{"bus_id": bus_id} for bus_id in slots])


def test_the_driver_shows_the_gpus_and_slots_say_which_count() -> None:
    assert read(facts()).computes == (Gpu("NVIDIA L4", (8, 9)), Gpu("Tesla V100", (7, 0)))
    assert read(facts(), FIRST).computes == (Gpu("NVIDIA L4", (8, 9)),)
    assert read(facts(), "").computes == read(facts()).computes, "a slot on the CPU chooses none"
    assert read(facts(device="cpu")).computes == ()


def test_without_a_driver_the_bus_says_what_torch_will_have_to_serve() -> None:
    host = read(facts(""))
    assert [(str(gpu), gpu.shown) for gpu in host.computes] == [
        ("GPU 0000:3b:00.0 (Ada Lovelace 8.9)", False),
        ("GPU 0000:af:00.0 (Volta 7.0)", False),
    ]


def test_a_gpu_that_the_driver_does_not_show_is_no_work_for_torch() -> None:
    known = facts()
    known["seen"]["gpus"].pop()
    known["seen"]["lost"] = ["0000:af:00.0"]
    host = read(known)
    assert [gpu.name for gpu in host.computes] == ["NVIDIA L4"]
    assert [gpu.name for gpu in host.gpus] == ["NVIDIA L4", "GPU 0000:af:00.0"]


@pytest.mark.parametrize(
    ("known", "driver", "planned"),
    [
        (facts(), "550.163.01", ""),
        (facts(version="550"), "550.163.01", ""),
        (facts(version="580"), "580", PIN),
        (facts(version="580.95.05"), "580.95.05", PIN),
        (facts(version="580", source="none"), "550.163.01", ""),
        (facts("", version="580"), "580", PIN),
        (facts(""), "550", "Debian 13"),
        (facts("", system="Debian 12"), "535", "Debian 12"),
        (facts("", system="Ubuntu 24"), "", ""),
        (facts("", source="cuda_repository"), "", ""),
        (facts("", comes=False), "", ""),
        (facts(version="newest"), "550.163.01", ""),
    ],
)
def test_the_driver_that_will_be_there_counts(known: dict[str, Any], driver: str, planned: str) -> None:
    host = read(known)
    assert (host.driver, host.planned) == (driver, planned)


def test_a_branch_stands_for_its_newest_driver() -> None:
    assert read(facts(version="580")).number > (580, 65, 6)
    assert read(facts()).number == (550, 163, 1)
