"""What a GPU's driver says, read by NVIDIA's binding from a compiled stand-in of its library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nvml_driver import CARD, PART, WELL, Driver

from semantik.exceptions import GpuLost, GpuSilent
from semantik.nvml import UUID, Gpu, Reading

LOOK = f"from semantik.nvml import Gpu; print(Gpu({CARD!r}).read().sm_mhz)"


def test_a_card_says_everything(driver: Driver) -> None:
    driver.say(processes="4711 4712", compute_mode="3", reasons="0xe0", remap_pending="1")
    assert Gpu(CARD).read() == Reading(
        uncorrected_volatile=3,
        uncorrected_aggregate=5,
        remap_pending=True,
        remap_failed=False,
        retirement_pending=False,
        temperature=41,
        clock_reasons=0xE0,
        memory_bytes=23034 << 20,
        compute_mode=3,
        processes=(4711, 4712),
        sm_mhz=2040,
        power_watts=72.5,
    )


def test_what_a_card_does_not_have_is_none(driver: Driver) -> None:
    driver.say(**dict.fromkeys(WELL))
    gpu = Gpu(CARD)
    assert gpu.read() == Reading()
    driver.event("79")
    assert gpu.xids() == [], "a card without events has none"


@pytest.mark.parametrize("error", ["!4", "!13", "!21"])  # no permission, an older driver, no data
def test_what_is_not_told_is_none(driver: Driver, error: str) -> None:
    driver.say(ecc_volatile=error, remap_failed=error)
    reading = Gpu(CARD).read()
    assert (reading.uncorrected_volatile, reading.uncorrected_aggregate) == (None, 5)
    assert (reading.remap_pending, reading.remap_failed) == (None, None)


def test_a_part_of_a_card_has_its_own_memory_and_the_cards_health(driver: Driver) -> None:
    driver.behind = f"mig {PART} {CARD} 3\n  memory_mib 9856\n  processes 99\n"
    driver.say(ecc_volatile="7", processes="1 2 99")
    reading = Gpu(PART).read()
    assert (reading.memory_bytes, reading.processes) == (9856 << 20, (99,))
    assert (reading.uncorrected_volatile, reading.temperature) == (7, 41)


def test_events_of_another_part_of_the_card_are_not_its_own(driver: Driver) -> None:
    part = f"mig {PART} {CARD} 3\n"
    driver.before = part
    driver.say()
    gpu = Gpu(PART)
    for xid in ("94 1", "94 3", "31 2", "79"):
        driver.event(xid)
    assert gpu.xids() == [94, 79]


def test_events_are_told_once_and_from_now_on(driver: Driver) -> None:
    driver.event("48")
    gpu = Gpu(CARD)
    assert gpu.xids() == [], "it was before"
    driver.event("13")
    driver.event("94")
    assert gpu.xids() == [13, 94]
    assert gpu.xids() == []


@pytest.mark.parametrize("code", ["15", "16"])  # lost, in need of a reset
def test_a_gpu_that_is_lost(driver: Driver, code: str) -> None:
    gpu = Gpu(CARD)
    driver.say(temperature=f"!{code}")
    with pytest.raises(GpuLost, match=CARD):
        gpu.read()


def test_a_gpu_that_falls_off_its_bus(driver: Driver) -> None:
    gpu = Gpu(CARD)
    driver.say(lost="1")
    with pytest.raises(GpuLost, match="is not there"):
        gpu.read()
    with pytest.raises(GpuLost):
        Gpu(CARD)


def test_an_unknown_error_is_the_end_only_behind_xid_79(driver: Driver) -> None:
    gpu = Gpu(CARD)
    driver.say(memory_mib="!999")
    with pytest.raises(GpuSilent):
        gpu.read()
    driver.event("79")
    assert gpu.xids() == [79]
    with pytest.raises(GpuLost):
        gpu.read()


def test_a_gpu_that_is_not_there(driver: Driver) -> None:
    with pytest.raises(GpuLost, match=r"GPU-other is not there \(Not Found\)"):
        Gpu("GPU-other")


def test_a_driver_that_is_not_loaded(driver: Driver) -> None:
    driver.unload()
    with pytest.raises(GpuSilent, match="Driver Not Loaded"):
        Gpu(CARD)


def test_the_binding_loads_the_library_by_its_name(library: Path, tmp_path: Path) -> None:
    Driver(tmp_path / "nvml.conf")
    assert _look(library.parent, tmp_path).stdout == "2040\n"


def test_a_host_without_the_library(tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").write_text(
        "not a library"
    )  # comes before one that this machine may have
    assert "NoLibrary: there is no libnvidia-ml.so.1" in _look(tmp_path, tmp_path).stderr


def _look(libraries: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    more = {"LD_LIBRARY_PATH": str(libraries), "SEMANTIK_LAB_NVML": str(directory / "nvml.conf")}
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **more}
    return subprocess.run([sys.executable, "-c", LOOK], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [(CARD, True), (PART, True), ("0", False), ("", False), ("GPU-", False), ("GPU-a,GPU-b", False)],
)
def test_what_names_a_gpu(text: str, is_one: bool) -> None:
    assert (UUID.fullmatch(text) is not None) is is_one
