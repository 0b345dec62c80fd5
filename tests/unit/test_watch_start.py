"""What is refused before a worker's pool starts, because of its GPU."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nvml_driver import CARD, PART, Driver

from semantik import health, notes, watch
from semantik.exceptions import GpuLost, GpuSilent, GpuTaken, SettingsError
from semantik.health import CONDEMNED, Verdict
from semantik.pulse import Pulse
from semantik.settings import Settings
from semantik.watch import Watch

BASE = {
    "CELERY_BROKER_URL": "memory://",
    "SEMANTIK_DATABASE_URL": "postgresql://127.0.0.1:1/none",
    "CREDENTIALS_DIRECTORY": "/nonexistent",
    "CUDA_VISIBLE_DEVICES": CARD,
    "SEMANTIK_HOST": "gpu1",
    "SEMANTIK_SLOT": "gpu1:0",
    "SEMANTIK_ROLE": "worker",
}


def begun(settings: Settings, **more: Any) -> Watch | None:
    return watch.begin(settings, Pulse(), **{"wait_seconds": 0.0, **more})


def test_a_slot_without_a_gpu_is_not_watched(driver: Driver, gpu_settings: Settings) -> None:
    assert begun(replace(gpu_settings, cuda_visible_devices="")) is None
    assert begun(replace(gpu_settings, cuda_visible_devices="0")) is None


def test_what_an_earlier_service_noted_is_forgotten(
    driver: Driver, gpu_settings: Settings, gpu_pulse: Pulse
) -> None:
    health.write(gpu_settings, Verdict(CONDEMNED, "of yesterday"), None)
    assert begun(gpu_settings) is not None
    assert '"state": "good"' in (notes.directory(gpu_settings) / "health.json").read_text()
    begun(replace(gpu_settings, cuda_visible_devices=""))
    assert list(notes.directory(gpu_settings).iterdir()) == []


def test_a_gpu_that_is_not_there_is_refused(driver: Driver, gpu_settings: Settings) -> None:
    with pytest.raises(GpuLost, match="GPU-gone is not there"):
        begun(replace(gpu_settings, cuda_visible_devices="GPU-gone"))
    driver.say(lost="1")
    with pytest.raises(GpuLost, match=CARD):
        begun(gpu_settings)
    driver.unload()
    with pytest.raises(GpuSilent, match="Driver Not Loaded"):
        begun(gpu_settings)


def test_a_gpu_that_comes_in_time_is_waited_for(
    driver: Driver, gpu_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        driver.say(lost="1")
        well = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _seconds: driver.say(lost="0"))
        monkeypatch.setattr(watch, "time", well)
        assert begun(gpu_settings, wait_seconds=60.0) is not None
        states = told.recv(4096).decode().splitlines()
    assert states[0].startswith(f"STATUS=waits for its GPU: GPU {CARD} is not there")
    assert states[1] == "EXTEND_TIMEOUT_USEC=600000000"


def test_a_gpu_that_somebody_else_has_is_refused(driver: Driver, gpu_settings: Settings) -> None:
    driver.say(processes="4711", compute_mode="0")
    assert begun(gpu_settings) is not None, "in this mode many processes may compute"
    driver.say(processes=f"{os.getpid()}", compute_mode="3")
    assert begun(gpu_settings) is not None, "itself"
    driver.say(processes="4712 4711")
    with pytest.raises(GpuTaken, match="EXCLUSIVE_PROCESS, and process 4711, 4712 has it"):
        begun(gpu_settings)
    driver.say(processes="", compute_mode="2")
    with pytest.raises(GpuTaken, match="PROHIBITED"):
        begun(gpu_settings)
    driver.say(compute_mode="3")
    with pytest.raises(SettingsError, match="SEMANTIK_CONCURRENCY is 2"):
        begun(gpu_settings, concurrency=2)


def test_a_cap_above_the_cards_memory_is_refused(driver: Driver, gpu_settings: Settings) -> None:
    driver.say(memory_mib="24576")
    assert begun(replace(gpu_settings, model_max_memory_gb=12.0), concurrency=2) is not None
    with pytest.raises(SettingsError, match=r"=24\.5 is more than GPU .* has, 24\.0 GB"):
        begun(replace(gpu_settings, model_max_memory_gb=24.5))
    with pytest.raises(SettingsError, match=r"=12\.5 x 2 processes \(SEMANTIK_CONCURRENCY\) is more than"):
        begun(replace(gpu_settings, model_max_memory_gb=12.5), concurrency=2)
    driver.say(memory_mib=None)
    assert begun(replace(gpu_settings, model_max_memory_gb=999.0)) is not None, "the card does not say"


def test_the_cap_is_held_against_the_part_of_the_card(driver: Driver, gpu_settings: Settings) -> None:
    driver.behind = f"mig {PART} {CARD} 3\n  memory_mib 9856\n"
    driver.say()
    part = replace(gpu_settings, cuda_visible_devices=PART)
    assert begun(replace(part, model_max_memory_gb=9.0)) is not None
    with pytest.raises(SettingsError, match=f"more than GPU {PART} has, 9.6 GB"):
        begun(replace(part, model_max_memory_gb=10.0))


def test_a_failed_remap_is_refused_and_older_trouble_is_not(driver: Driver, gpu_settings: Settings) -> None:
    driver.say(ecc_volatile="8", remap_pending="1", retired_pending="1", reasons="0x40")
    assert begun(gpu_settings) is not None
    driver.say(remap_failed="1")
    with pytest.raises(SettingsError, match="it has to be replaced"):
        begun(gpu_settings)


def test_a_host_without_the_library_is_warned_of_once_and_only_for_a_gpu(
    driver: Driver, gpu_settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pynvml

    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    assert begun(replace(gpu_settings, device="cpu")) is None
    assert not caplog.records
    assert begun(gpu_settings) is None
    assert caplog.messages == ['the GPU\'s health is not watched reason="there is no libnvidia-ml.so.1"']


def service(library: Path, tmp_path: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Start a worker as its unit does, in a world where it gets no further than its GPU."""
    env = {
        **BASE, "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path),
        "LD_LIBRARY_PATH": str(library.parent), "SEMANTIK_LAB_NVML": str(tmp_path / "nvml.conf"),
        "RUNTIME_DIRECTORY": str(tmp_path / "run"), **more,
    }  # fmt: skip
    command = [sys.executable, "-m", "celery", "--app", "semantik.celery_app", "worker", "--concurrency", "1"]
    return subprocess.run(
        [*command, *options], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_a_refusal_ends_the_service_with_its_reason(library: Path, tmp_path: Path) -> None:
    Driver(tmp_path / "nvml.conf")
    ended = service(library, tmp_path, MODEL_MAX_MEMORY_GB="80")
    assert ended.returncode == 78, ended.stderr
    assert 'cannot start reason="MODEL_MAX_MEMORY_GB=80 is more than GPU' in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("error", "status"), [(GpuTaken("taken"), 1), (SettingsError("never"), 78)])
def test_what_may_pass_is_tried_again_by_systemd(
    gpu_settings: Settings, error: Exception, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise error

    receivers: list[Any] = []
    monkeypatch.setattr(watch, "begin", refused)
    monkeypatch.setattr(
        watch.signals.worker_init, "connect", lambda receiver, weak: receivers.append(receiver)
    )
    watch.install(gpu_settings, Pulse())
    with pytest.raises(SystemExit) as ended:
        receivers[0](sender=SimpleNamespace(concurrency=1))
    assert ended.value.code == status
