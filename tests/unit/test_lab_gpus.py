"""What a lab host gets in place of GPUs and a driver, seen by those that ask a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from semantik import health
from semantik_lab import gpus
from semantik_lab.errors import LabError
from semantik_lab.topology import DEFAULT_TOPOLOGY, load

GPU2 = next(host for host in load(DEFAULT_TOPOLOGY).hosts if host.name == "gpu2")
LOOK = """
import sys
from semantik import health
from semantik.nvml import Gpu
for uuid in sys.argv[1:]:
    gpu = Gpu(uuid)
    reading = gpu.read()
    print(reading.memory_bytes >> 20, health.judge(reading, reading, gpu.xids()).state)
"""


def look(root: Path) -> list[str]:
    """Ask NVIDIA's binding in a process of its own, as a worker does."""
    libraries = root / "usr/lib/x86_64-linux-gnu"
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(libraries),
        "SEMANTIK_LAB_NVML": str(root / "etc/semantik-lab/nvml.conf"),
    }
    uuids = [gpus.gpu_uuid("semantik", "gpu2", index) for index in (0, 1)]
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *uuids], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_host_has_gpus_that_are_well_until_someone_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    gpus.install(tmp_path, "semantik", GPU2)
    assert look(tmp_path) == [f"23034 {health.GOOD}"] * 2
    path = tmp_path / "etc/semantik-lab/nvml.conf"
    path.write_text(path.read_text().replace("reasons 0\n", "reasons 0x40\n", 1))
    assert look(tmp_path) == [f"23034 {health.RESTING}", f"23034 {health.GOOD}"]


def test_a_tree_that_is_no_debian_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="it is no Debian tree"):
        gpus.install(tmp_path, "semantik", GPU2)
