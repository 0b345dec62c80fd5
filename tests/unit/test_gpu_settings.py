"""Settings of GPUs, declared and applied: against the lab's nvidia-smi stand-in, run as a program."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_settings
import pytest

ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "lab/standins/nvidia-smi"
A100 = {
    "uuid": "GPU-a", "name": "NVIDIA A100-SXM4-40GB", "pci_bus_id": "00000000:01:00.0", "minor": 0,
    "memory_mib": 40960, "mig_capable": True, "current_ecc": "Enabled", "power_limit": 400.0,
    "min_power_limit": 100.0, "max_power_limit": 400.0, "pci_device_id": "20B0", "compute_cap": "8.0",
}  # fmt: skip
L4 = {
    "uuid": "GPU-b", "name": "NVIDIA L4", "pci_bus_id": "00000000:3B:00.0", "minor": 1, "memory_mib": 23034,
    "power_limit": 72.0, "min_power_limit": 40.0, "max_power_limit": 72.0, "pci_device_id": "27B8",
    "compute_cap": "8.9",
}  # fmt: skip


class Driver:
    """The stand-in's file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fit(self, *gpus: dict[str, Any]) -> None:
        """Write the cards."""
        known = {
            "driver_version": "550.163.01",
            "cuda_version": "12.4",
            "gpus": [{"index": at, **one} for at, one in enumerate(gpus)],
        }
        self.path.write_text(json.dumps(known))

    def now(self, at: int = 0) -> dict[str, Any]:
        """Return a card as it is."""
        found: dict[str, Any] = json.loads(self.path.read_text())["gpus"][at]
        return found


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setenv("SEMANTIK_LAB_GPUS", str(tmp_path / "gpus.json"))
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {STANDIN} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return Driver(tmp_path / "gpus.json")


def test_what_differs_is_set_and_the_second_time_nothing(driver: Driver) -> None:
    driver.fit(L4)
    wanted = {"power_limit_watts": 60, "compute_mode": "exclusive_process"}
    first = gpu_settings.apply(wanted, check=False)
    assert first["done"] == [
        "nvidia-smi -i 00000000:3B:00.0 -pl 60",
        "nvidia-smi -i 00000000:3B:00.0 -c EXCLUSIVE_PROCESS",
    ]
    assert (driver.now()["power_limit"], driver.now()["compute_mode"]) == (60.0, "Exclusive_Process")
    assert gpu_settings.apply(wanted, check=False) == {
        "changed": False,
        "done": [],
        "pending": [],
        "problems": [],
    }


def test_a_check_says_what_it_would_do_and_does_nothing(driver: Driver) -> None:
    driver.fit(L4)
    answer = gpu_settings.apply({"power_limit_watts": 60}, check=True)
    assert answer["changed"] and len(answer["done"]) == 1
    assert driver.now()["power_limit"] == 72.0


def test_nothing_declared_leaves_everything(driver: Driver) -> None:
    driver.fit(A100, L4)
    assert not gpu_settings.apply({}, check=False)["changed"]


def test_ecc_holds_from_the_next_boot_and_says_so(driver: Driver) -> None:
    driver.fit(A100)
    answer = gpu_settings.apply({"ecc": "off"}, check=False)
    assert answer["pending"] == ["GPU 00000000:01:00.0: ECC is Enabled, and Disabled from the next boot on"]
    again = gpu_settings.apply({"ecc": "off"}, check=False)
    assert (again["changed"], len(again["pending"])) == (False, 1)


def test_mig_is_switched_on_and_cut_as_declared(driver: Driver) -> None:
    driver.fit(A100)
    wanted = {"mig": "on", "mig_profiles": ["3g.20gb", "4g.20gb"]}
    gpu_settings.apply(wanted, check=False)
    assert [part["profile"] for part in driver.now()["mig"]] == ["3g.20gb", "4g.20gb"]
    assert not gpu_settings.apply(wanted, check=False)["changed"]
    other = gpu_settings.apply({"mig": "on", "mig_profiles": ["7g.40gb"]}, check=False)
    assert [line.split()[-1] for line in other["done"]] == ["-dci", "-dgi", "-C"]
    assert [part["profile"] for part in driver.now()["mig"]] == ["7g.40gb"]
    gpu_settings.apply({"mig": "off"}, check=False)
    assert "mig" not in driver.now()


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        (
            ["1g.99gb"],
            "GPU 00000000:01:00.0 has no room for 1 x 1g.99gb: its profiles are 1g.5gb (up to 7), 2g",
        ),
        (["4g.20gb", "4g.20gb"], "has no room for 2 x 4g.20gb"),
    ],
)
def test_a_profile_that_a_card_lacks_is_refused_before_the_others_are_taken_away(
    driver: Driver, profiles: list[str], words: str
) -> None:
    driver.fit(A100)
    gpu_settings.apply({"mig": "on", "mig_profiles": ["3g.20gb"]}, check=False)
    before = driver.now()
    for check in (True, False):
        answer = gpu_settings.apply(
            {"mig": "on", "mig_profiles": profiles, "power_limit_watts": 200}, check=check
        )
        assert (answer["changed"], answer["done"], driver.now()) == (False, [], before)
        assert len(answer["problems"]) == 1 and words in answer["problems"][0]


def test_devices_that_do_not_fit_beside_each_other_leave_those_of_before(driver: Driver) -> None:
    driver.fit(A100)
    gpu_settings.apply({"mig": "on", "mig_profiles": ["3g.20gb", "2g.10gb"]}, check=False)
    answer = gpu_settings.apply({"mig": "on", "mig_profiles": ["3g.20gb", "3g.20gb", "1g.5gb"]}, check=False)
    assert "Insufficient Resources" in answer["problems"][0]
    assert answer["problems"][0].endswith("; its MIG devices are those of before again (2g.10gb, 3g.20gb)")
    assert sorted(part["profile"] for part in driver.now()["mig"]) == ["2g.10gb", "3g.20gb"]


def test_the_profiles_are_read_from_the_drivers_own_table() -> None:
    """The layout of two rows: of `nvidia-smi mig -lgip` of an H100, driver 550."""
    listing = """\
| GPU instance profiles:                                                        |
| GPU   Name               ID    Instances   Memory     P2P    SM    DEC   ENC  |
|                                Free/Total   GiB              CE    JPEG  OFA  |
|===============================================================================|
|   0  MIG 1g.10gb         19     5/7        9.75       No     16     1     0   |
|                                                               1     1     0   |
+-------------------------------------------------------------------------------+
|   0  MIG 1g.10gb+me      20     1/1        9.75       No     16     1     0   |
|                                                               1     1     1   |
"""
    assert gpu_settings.offered(listing) == {"1g.10gb": 7, "1g.10gb+me": 1}


def test_a_card_that_needs_a_reset_is_cut_after_it(driver: Driver) -> None:
    driver.fit({**A100, "mig_needs_reset": True})
    answer = gpu_settings.apply({"mig": "on", "mig_profiles": ["7g.40gb"]}, check=False)
    assert answer["done"] == ["nvidia-smi -i 00000000:01:00.0 -mig 1"]
    assert answer["pending"] == [
        "GPU 00000000:01:00.0: MIG is Disabled, and Enabled from the next boot on; run site.yml after it, "
        "since its slots will be others"
    ]


def test_what_is_declared_may_stand_in_the_command_itself(
    driver: Driver, capsys: pytest.CaptureFixture[str]
) -> None:
    driver.fit(L4)
    assert gpu_settings.main(['{"power_limit_watts": 300}', "--check"]) == 1
    assert "takes power limits from 40 to 72 W, not 300" in capsys.readouterr().out
    assert gpu_settings.main(["--check", '{"power_limit_watts": 60}']) == 0
    assert json.loads(capsys.readouterr().out)["done"] == ["nvidia-smi -i 00000000:3B:00.0 -pl 60"]


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"power_limit_watts": 300}, "GPU 00000000:3B:00.0 takes power limits from 40 to 72 W, not 300"),
        ({"mig": "on"}, "GPU 00000000:3B:00.0 (NVIDIA L4) has no MIG mode"),
        ({"ecc": "on"}, "GPU 00000000:3B:00.0 has no ECC to switch on"),
    ],
)
def test_what_one_card_cannot_do_leaves_all_as_they_were(
    driver: Driver, wanted: dict[str, Any], words: str
) -> None:
    driver.fit(A100, L4)
    before = (driver.now(0), driver.now(1))
    answer = gpu_settings.apply({**wanted, "compute_mode": "prohibited"}, check=False)
    assert answer["problems"] == [words]
    assert (answer["changed"], (driver.now(0), driver.now(1))) == (False, before)


def test_as_a_program_it_ends_with_status_1_where_there_is_a_problem(driver: Driver, tmp_path: Path) -> None:
    driver.fit(L4)
    program = [sys.executable, str(ROOT / "roles/nvidia_driver/files/gpu_settings.py")]
    file = tmp_path / "settings.json"
    file.write_text('{"power_limit_watts": 50}')
    done = subprocess.run([*program, str(file)], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stdout)["changed"]) == (0, True)
    file.write_text('{"power_limit_watts": 500}')
    done = subprocess.run([*program, str(file), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "from 40 to 72 W" in json.loads(done.stdout)["problems"][0]
    file.write_text("{")
    assert subprocess.run([*program, str(file)], capture_output=True, check=False).returncode == 1
    assert subprocess.run(program, capture_output=True, check=False).returncode == 2
