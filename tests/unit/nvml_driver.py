"""A driver for tests: lab/standins/nvml.c, compiled, under the name by which NVIDIA's binding loads NVML."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from semantik import watch
from semantik.pulse import Pulse
from semantik.settings import Settings
from semantik.watch import Watch

SOURCE = Path(__file__).parents[2] / "lab/standins/nvml.c"
CARD, PART = "GPU-0a1b2c3d-0000-1111-2222-333344445555", "MIG-77aa0000-1111-2222-3333-444455556666"
#: What a card says that is well, and has everything that NVML can tell of one.
WELL = {
    "name": "NVIDIA L4", "minor": "2", "memory_mib": "23034", "ecc_volatile": "3", "ecc_aggregate": "5",
    "remap_pending": "0", "remap_failed": "0", "retired_pending": "0", "temperature": "41", "reasons": "0x0",
    "compute_mode": "0", "sm_mhz": "2040", "power_mw": "72500", "processes": "", "events": "1",
}  # fmt: skip


class Driver:
    """What the driver says, which a test may change at any time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, str | None] = dict(WELL)
        self.before = ""  # lines before the card's
        self.behind = ""  # and behind its values: events, other sections
        self.say()

    def say(self, **values: str | None) -> None:
        """Change values of the card; None is one that it does not have."""
        self.values |= values
        lines = [f"  {name} {value}\n" for name, value in self.values.items() if value is not None]
        draft = self.path.with_suffix(".new")
        draft.write_text(f"{self.before}gpu {CARD}\n{''.join(lines)}{self.behind}")
        draft.replace(self.path)

    def event(self, xid: str) -> None:
        """Let an Xid happen; "94 3" is one of GPU instance 3."""
        self.behind += f"  xid {xid}\n"
        self.say()

    def unload(self) -> None:
        """Take the driver away."""
        self.path.unlink()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in, compiled; its directory is for LD_LIBRARY_PATH."""
    compiler = shutil.which("cc")
    assert compiler, "these tests need a C compiler: make setup-tests installs gcc"
    built = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    flags = ["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", f"-Wl,-soname,{built.name}"]
    subprocess.run([compiler, *flags, "-o", str(built), str(SOURCE)], check=True)
    return built


@pytest.fixture
def driver(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """A card that is well. The binding finds the library by its name, since one of this name is loaded."""
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    path = tmp_path / "nvml.conf"
    monkeypatch.setenv("SEMANTIK_LAB_NVML", str(path))
    yield Driver(path)


@pytest.fixture
def gpu_settings(tmp_path: Path) -> Settings:
    """Settings of the card's slot."""
    return Settings(
        "memory://", "memory://", "", cuda_visible_devices=CARD, host="gpu1", slot="gpu1:0",
        runtime_dir=str(tmp_path / "run"), rest_seconds=60.0,
    )  # fmt: skip


@pytest.fixture
def gpu_pulse() -> Pulse:
    return Pulse()


@pytest.fixture
def watched(
    gpu_settings: Settings, gpu_pulse: Pulse, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> Watch:
    """A watch whose looks are taken by the test; this process reads its own notes."""
    monkeypatch.setattr(os, "getppid", os.getpid)
    found = watch.begin(gpu_settings, gpu_pulse)
    assert found is not None
    monkeypatch.setattr(watch, "_watch", [found])
    return found


@pytest.fixture
def gpu_clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The watch's clock."""
    now = [time.monotonic()]
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    return now
