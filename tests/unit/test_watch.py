"""A worker's parent watches its GPU: what it makes of what the driver says, and whom it tells."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from nvml_driver import CARD, WELL, Driver

from semantik import health, notes, watch
from semantik.health import CONDEMNED, GOOD, RESTING, Verdict
from semantik.pulse import Pulse
from semantik.settings import Settings
from semantik.watch import Watch


def test_a_gpu_that_is_well_is_noted_as_such(
    watched: Watch, gpu_settings: Settings, gpu_pulse: Pulse
) -> None:
    watched.look()
    assert watched.verdict == Verdict()
    note = health.read(gpu_settings)
    assert note is not None
    assert (note.state, note.ecc_errors, note.sm_mhz, note.temperature) == (GOOD, 3, 2040, 41)
    assert not gpu_pulse.condemned


def test_a_hot_gpu_rests_and_comes_back(
    watched: Watch, gpu_settings: Settings, gpu_pulse: Pulse, driver: Driver, gpu_clock: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    driver.say(reasons="0x40", temperature="96")
    watched.look()
    assert watched.verdict == Verdict(RESTING, "thermal slowdown by the hardware at 96 degrees")
    note = health.read(gpu_settings)
    assert note is not None and note.state == RESTING
    assert "semantik_gpu_healthy{" in (text := (notes.directory(gpu_settings) / "gpu.prom").read_text())
    assert f'uuid="{CARD}"}} 0\n' in text
    driver.say(reasons="0x0", temperature="60")
    gpu_clock[0] += 59
    watched.look()
    assert watched.verdict.state == RESTING
    gpu_clock[0] += 2
    watched.look()
    assert watched.verdict == Verdict()
    assert not gpu_pulse.condemned
    assert [record.getMessage().partition(" gpu=")[0] for record in caplog.records] == [
        "the GPU is resting", "the GPU is well again",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ecc_volatile": "4"}, "1 uncorrectable ECC error"),
        ({"ecc_aggregate": "7"}, "2 uncorrectable ECC errors"),
        ({"remap_failed": "1"}, "could not be remapped"),
        ({"remap_pending": "1"}, "waits for a reset to be remapped"),
        ({"retired_pending": "1"}, "waits for a reset to be retired"),
        ({"lost": "1"}, "is not there"),
    ],
)
def test_a_gpu_that_fails_is_condemned_for_good(
    watched: Watch, gpu_settings: Settings, gpu_pulse: Pulse, driver: Driver, change: dict[str, str],
    reason: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    driver.say(**change)
    watched.look()
    assert gpu_pulse.condemned
    assert watched.verdict.state == CONDEMNED
    assert reason in watched.verdict.reason
    assert "CRITICAL" in [record.levelname for record in caplog.records]
    driver.say(**{name: WELL.get(name) for name in change})
    watched.look()
    note = health.read(gpu_settings)
    assert gpu_pulse.condemned and note is not None
    assert (note.state, note.reason) == (CONDEMNED, watched.verdict.reason)


def test_an_xid_of_the_gpu_condemns_and_an_applications_own_is_told(
    watched: Watch, gpu_pulse: Pulse, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    driver.event("31")
    driver.event("63")
    watched.look()
    assert not gpu_pulse.condemned
    assert [record.getMessage() for record in caplog.records] == [
        f"Xid, let pass gpu={CARD} xid=31", f"Xid, let pass gpu={CARD} xid=63",
    ]  # fmt: skip
    driver.event("95")
    watched.look()
    assert gpu_pulse.condemned
    assert watched.verdict.reason == "Xid 95: an uncontained uncorrectable error"


def test_a_gpu_off_its_bus_is_named_by_its_xid(watched: Watch, gpu_pulse: Pulse, driver: Driver) -> None:
    driver.event("79")
    driver.say(temperature="!999")
    watched.look()
    assert gpu_pulse.condemned
    assert watched.verdict.reason == "Xid 79: the GPU has fallen off the bus"


def test_a_driver_that_answers_with_errors_makes_it_rest(
    watched: Watch, gpu_pulse: Pulse, driver: Driver, gpu_clock: list[float]
) -> None:
    driver.say(memory_mib="!999")
    watched.look()
    watched.look()
    assert watched.verdict == Verdict(), "another program may be resetting a card"
    watched.look()
    assert watched.verdict.state == RESTING
    assert not gpu_pulse.condemned
    driver.say(memory_mib="23034")
    gpu_clock[0] += 61
    watched.look()
    assert watched.verdict == Verdict()


def test_a_driver_that_hangs_makes_it_rest(watched: Watch, gpu_clock: list[float]) -> None:
    gpu_clock[0] += 66
    assert watched.verdict.state == RESTING
    assert "has not answered for 66 s" in watched.verdict.reason


def test_the_thread_looks_by_itself(
    gpu_settings: Settings, gpu_pulse: Pulse, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    thread = watch.begin(replace(gpu_settings, health_seconds=0.02), gpu_pulse)
    assert thread is not None
    thread.start()
    try:
        driver.event("48")
        deadline = time.monotonic() + 60
        while not gpu_pulse.condemned and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gpu_pulse.condemned
        assert thread.is_alive()
    finally:
        thread.end()
        thread.join(5)


def test_a_fork_waits_for_a_call_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import os, threading, time; from semantik import watch; watch._mind_forks()\n"
        "taken = threading.Event()\n"
        "def call():\n"
        "    with watch._calls: taken.set(); time.sleep(0.3)\n"
        "threading.Thread(target=call).start(); taken.wait()\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(watch._calls.locked())\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), watch._calls.locked())\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert ended.stdout == "0 False\n"
