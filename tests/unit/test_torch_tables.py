"""The tables of drivers, CUDA, torch and GPUs: they hold together, and the documentation shows them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch_fit
import torch_tables


@pytest.mark.parametrize(
    ("device", "capability"),
    [
        *(
            ("1db6", (7, 0)),
            ("1eb8", (7, 5)),
            ("20b2", (8, 0)),
            ("2236", (8, 6)),
            ("27b8", (8, 9)),
            ("2330", (9, 0)),
        ),
        *(
            ("2901", (10, 0)),
            ("2bb5", (12, 0)),
            ("2e12", (12, 1)),
            ("3182", (10, 3)),
            ("15f8", (6, 0)),
            ("ffff", ()),
        ),
    ],
)
def test_the_bus_says_which_generation_a_gpu_is(device: str, capability: tuple[int, ...]) -> None:
    assert torch_tables.capability_of_device(device) == capability
    assert torch_tables.capability_of_device(device.upper()) == capability


def test_tables_are_in_order() -> None:
    drivers = list(torch_tables.TOOLKIT_DRIVERS.values())
    assert drivers == sorted(drivers)
    ranges = [number for first, last, _ in torch_tables.DEVICES for number in (first, last)]
    assert ranges == sorted(ranges)
    for minor in ("2.11.0", "2.12.1", "2.13.0", "2.14.0"):
        for machine in ("x86_64", "aarch64"):
            assert set(torch_tables.builds(minor, machine)) >= {"cu126", "cu130"}


def test_the_page_about_drivers_has_the_tables_numbers() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "drivers.md").read_text(encoding="utf-8")
    for cuda, driver in torch_tables.TOOLKIT_DRIVERS.items():
        least = torch_fit.driver_text(torch_tables.FAMILY_DRIVERS[cuda[0]])
        row = f"| {torch_tables.text(cuda)} | {torch_fit.driver_text(driver)} | {least} |"
        assert row in page
    for torch, listed in (("2.11.0", "2.11"), ("2.12.0", "2.12 to 2.14"), ("2.14.0", "2.12 to 2.14")):
        arm = torch_tables.builds(torch, "aarch64")
        for build, compiled in torch_tables.builds(torch, "x86_64").items():
            shown = f"{build} (experimental before 2.14)" if build == "cu132" else build
            assert f"| {listed} | {shown} | {compiled} | {arm[build]} |" in page
    for capability, generation in torch_tables.GENERATIONS.items():
        if capability != (11, 0):  # in Jetson boards alone
            assert re.search(
                rf"^\| [^|]*\b{torch_tables.text(capability)}\b[^|]* \| {generation} \|", page, re.M
            )
