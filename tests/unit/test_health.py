"""What is made of a GPU's readings: judged, held on to, and noted for the child and for Prometheus."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from semantik import health, notes
from semantik.health import CONDEMNED, GOOD, RESTING, Condition, Verdict, judge
from semantik.nvml import Reading
from semantik.pulse import Pulse
from semantik.settings import Settings
from semantik.slots import Slot

START = Reading(
    uncorrected_volatile=3,
    uncorrected_aggregate=40,
    remap_pending=False,
    remap_failed=False,
    retirement_pending=False,
    temperature=60,
    clock_reasons=0,
    sm_mhz=1410,
)
SETTINGS = Settings("", "", "", cuda_visible_devices="GPU-a", host="gpu1", slot="gpu1:0")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return replace(SETTINGS, runtime_dir=str(tmp_path))


def test_what_was_there_at_the_start_is_let_pass() -> None:
    assert judge(START, START) == Verdict(GOOD, "")
    worn = replace(START, remap_pending=True, retirement_pending=True)
    assert judge(worn, worn) == Verdict(GOOD, "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uncorrected_volatile": 4}, "1 uncorrectable ECC error"),
        ({"uncorrected_aggregate": 42}, "2 uncorrectable ECC errors"),
        ({"remap_failed": True}, "a row of its memory could not be remapped"),
        ({"remap_pending": True}, "a row of its memory waits for a reset to be remapped"),
        ({"retirement_pending": True}, "a page of its memory waits for a reset to be retired"),
    ],
)
def test_memory_that_fails_condemns(change: dict[str, Any], reason: str) -> None:
    assert judge(replace(START, **change), START) == Verdict(CONDEMNED, reason)


@pytest.mark.parametrize(
    ("bits", "reason"),
    [
        (0x40, "thermal slowdown by the hardware at 60 degrees"),
        (0x20, "thermal slowdown by the driver at 60 degrees"),
        (0x80 | 0x8, "power brake at 60 degrees"),
        (0x40 | 0x80, "thermal slowdown by the hardware and power brake at 60 degrees"),
    ],
)
def test_heat_and_want_of_power_make_it_rest(bits: int, reason: str) -> None:
    assert judge(replace(START, clock_reasons=bits), START) == Verdict(RESTING, reason)


@pytest.mark.parametrize("bits", [0x1, 0x2, 0x4, 0x8, 0x10, 0x100])  # idle, its power cap and the like
def test_clocks_that_are_low_for_other_reasons_are_no_trouble(bits: int) -> None:
    assert judge(replace(START, clock_reasons=bits), START).state == GOOD


def test_a_card_that_tells_nothing_is_good() -> None:
    assert judge(Reading(), Reading()).state == GOOD
    assert judge(Reading(), START).state == GOOD
    assert judge(START, Reading()).state == GOOD


def test_counters_that_begin_anew_condemn_nothing() -> None:
    assert judge(replace(START, uncorrected_volatile=0), START).state == GOOD


@pytest.mark.parametrize("xid", [48, 64, 74, 79, 94, 95, 119, 120, 140])
def test_xids_that_ask_for_a_reset_condemn(xid: int) -> None:
    verdict = judge(START, START, {13, xid})
    assert verdict.state == CONDEMNED
    assert verdict.reason.startswith(f"Xid {xid}: ")


@pytest.mark.parametrize("xid", [13, 31, 43, 45, 63, 68, 69, 92])
def test_xids_of_an_application_or_to_be_ignored_do_not(xid: int) -> None:
    assert judge(START, START, {xid}).state == GOOD


def test_the_worst_comes_first() -> None:
    hot = replace(START, clock_reasons=0x40, uncorrected_volatile=4)
    assert judge(hot, START).state == CONDEMNED
    assert judge(hot, START, {48}).reason == "Xid 48: a double-bit ECC error"


def test_trouble_counts_at_once_and_its_end_after_a_rest() -> None:
    condition = Condition(60)
    hot = Verdict(RESTING, "too hot")
    assert condition.take(Verdict(), 0.0).state == GOOD
    assert condition.take(hot, 5.0) == hot
    assert condition.take(Verdict(), 10.0) == hot, "it has just cooled down"
    assert condition.take(hot, 50.0) == hot
    assert condition.take(Verdict(), 109.0) == hot, "60 s from the last time that it was too hot"
    assert condition.take(Verdict(), 110.0) == Verdict()
    assert condition.take(hot, 111.0) == hot


def test_a_condemned_gpu_stays_so() -> None:
    condition = Condition(60)
    lost = Verdict(CONDEMNED, "lost")
    condition.take(Verdict(RESTING, "too hot"), 0.0)
    assert condition.take(lost, 1.0) == lost
    assert condition.take(Verdict(), 1e6) == lost
    assert condition.take(Verdict(RESTING, "too hot"), 1e6) == lost


def test_a_child_reads_what_its_parent_notes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert health.read(settings) is None
    health.write(settings, Verdict(RESTING, "too hot"), START)
    assert health.read(settings) is None, "this process is not its own parent"
    monkeypatch.setattr(os, "getppid", os.getpid)
    note = health.read(settings)
    assert note is not None
    assert (note.state, note.reason, note.ecc_errors, note.sm_mhz) == (RESTING, "too hot", 3, 1410)
    health.write(settings, Verdict(CONDEMNED, "lost"), None)
    assert sorted(path.name for path in notes.directory(settings).iterdir()) == ["gpu.prom", "health.json"]
    health.forget(settings)
    health.forget(settings)
    assert health.read(settings) is None
    assert list(notes.directory(settings).iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"state": "good"}'])
def test_a_note_that_says_nothing_is_none(
    settings: Settings, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getppid", os.getpid)
    (notes.directory(settings) / "health.json").write_text(text)
    assert health.read(settings) is None


def test_a_slot_without_a_gpu_has_no_note(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", os.getpid)
    health.write(settings, Verdict(), START)
    assert health.read(replace(settings, cuda_visible_devices="")) is None


def test_a_driver_that_hangs_is_no_good_sign(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", os.getpid)
    health.write(settings, Verdict(), START)
    now = time.monotonic()
    monkeypatch.setattr(health, "time", SimpleNamespace(monotonic=lambda: now + 300))
    note = health.read(settings)
    assert note is not None
    assert note.state == RESTING
    assert note.reason.startswith("the driver has not answered for 300 s")
    assert health.age(settings, Verdict(CONDEMNED, "lost"), 300) == Verdict(CONDEMNED, "lost")
    assert health.age(settings, Verdict(), 60) == Verdict()


def test_a_slot_says_what_its_gpu_has(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", os.getpid)
    slot = Slot(settings, Pulse(), ready=True, busy=True)
    assert (slot.state, slot.trouble) == ("busy", Verdict())
    health.write(settings, Verdict(), START)
    assert slot.state == "busy"
    health.write(settings, Verdict(RESTING, "too hot"), START)
    assert (slot.state, slot.trouble.reason) == ("resting", "too hot")
    slot.ready = False
    assert slot.state == "starting"
    health.write(settings, Verdict(CONDEMNED, "lost"), None)
    assert slot.state == "condemned", "a new child may never get ready"
    slot.ready = True
    slot.pulse.drain(5)
    assert slot.state == "draining"


def test_a_gpu_is_condemned_for_all_processes() -> None:
    pulse = Pulse()
    child = pulse.child(0)
    assert not pulse.condemned
    pid = os.fork()
    if pid == 0:
        pulse.condemn()
        os._exit(0)
    os.waitpid(pid, 0)
    assert pulse.condemned and not pulse.draining and not pulse.failed
    child.work()
    assert pulse.condemned


def test_the_metrics_are_prometheus_text(settings: Settings) -> None:
    hot = replace(START, clock_reasons=0x40)
    health.write(replace(settings, slot='a"\\b'), Verdict(RESTING, "too hot"), hot)
    path = notes.directory(settings) / "gpu.prom"
    assert path.stat().st_mode & 0o777 == 0o644, "node_exporter has a user of its own"
    labels = r'{host="gpu1",slot="a\"\\b",uuid="GPU-a"}'
    samples = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert samples == [
        f"semantik_gpu_healthy{labels} 0",
        f"semantik_gpu_temperature_celsius{labels} 60",
        f"semantik_gpu_uncorrectable_ecc_errors_total{labels} 3",
        f"semantik_gpu_clocks_event_reasons{labels} 64",
    ]


def test_what_a_card_does_not_tell_is_no_metric(settings: Settings) -> None:
    health.write(settings, Verdict(), Reading())
    text = (notes.directory(settings) / "gpu.prom").read_text()
    assert text.splitlines()[-1] == 'semantik_gpu_healthy{host="gpu1",slot="gpu1:0",uuid="GPU-a"} 1'
    assert json.loads((notes.directory(settings) / "health.json").read_text())["sm_mhz"] is None
