"""The nvidia-smi stand-in, asked as a program."""

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from semantik_lab import gpus
from semantik_lab.topology import DEFAULT_TOPOLOGY, load

GPU2 = next(host for host in load(DEFAULT_TOPOLOGY).hosts if host.name == "gpu2")
UUIDS = [gpus.gpu_uuid("semantik", "gpu2", index) for index in (0, 1)]


@pytest.fixture
def ask(tmp_path: Path):
    path = tmp_path / "gpus.json"
    path.write_text(gpus.fixture("semantik", GPU2))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(gpus.STANDINS / "nvidia-smi"), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "SEMANTIK_LAB_GPUS": str(path)},
        )

    return run


def test_it_lists_the_gpus(ask):
    assert ask("-L").stdout.splitlines() == [
        f"GPU 0: NVIDIA L4 (stand-in) (UUID: {UUIDS[0]})",
        f"GPU 1: NVIDIA L4 (stand-in) (UUID: {UUIDS[1]})",
    ]


def test_it_answers_queries_for_programs(ask):
    fields = "--query-gpu=index,uuid,pci.bus_id,memory.total,driver_version"
    assert ask(fields, "--format=csv,noheader,nounits").stdout.splitlines() == [
        f"0, {UUIDS[0]}, 00000000:3B:00.0, 23034, 550.163.01",
        f"1, {UUIDS[1]}, 00000000:AF:00.0, 23034, 550.163.01",
    ]


def test_it_says_what_a_gpu_computes_and_which_driver_serves_it(ask):
    fields = "--query-gpu=pci.bus_id,compute_cap,pci.device_id"
    assert ask(fields, "--format=csv,noheader").stdout.splitlines() == [
        "00000000:3B:00.0, 8.9, 0x27B810DE",
        "00000000:AF:00.0, 8.9, 0x27B810DE",
    ]
    log = ElementTree.fromstring(ask("-q", "-x").stdout)
    assert (log.findtext("driver_version"), log.findtext("cuda_version")) == ("550.163.01", "12.4")
    assert log.findtext("gpu/pci/pci_device_id") == "27B810DE"


def test_headers_and_units_come_when_asked_for(ask):
    assert ask("--query-gpu=gpu_name,memory.total", "--format=csv", "-i", "1").stdout.splitlines() == [
        "gpu_name, memory.total [MiB]",
        "NVIDIA L4 (stand-in), 23034 MiB",
    ]


def test_the_xml_tells_the_minor_apart_from_the_index(ask):
    log = ElementTree.fromstring(ask("-q", "-x").stdout)
    assert log.findtext("driver_version") == "550.163.01"
    found = [
        (
            gpu.get("id"),
            gpu.findtext("uuid"),
            gpu.findtext("minor_number"),
            gpu.findtext("fb_memory_usage/total"),
        )
        for gpu in log.iter("gpu")
    ]
    assert found == [
        ("00000000:3B:00.0", UUIDS[0], "1", "23034 MiB"),
        ("00000000:AF:00.0", UUIDS[1], "0", "23034 MiB"),
    ]
    assert log.findtext("gpu/product_name") == "NVIDIA L4 (stand-in)"
    assert log.findtext("gpu/pci/pci_bus_id") == "00000000:3B:00.0"


@pytest.mark.parametrize("wanted", ["1", UUIDS[1], "00000000:AF:00.0"])
def test_one_gpu_can_be_named(ask, wanted: str):
    assert ask("-L", "-i", wanted).stdout.splitlines() == [f"GPU 1: NVIDIA L4 (stand-in) (UUID: {UUIDS[1]})"]


def test_nothing_runs_on_a_stand_in(ask):
    done = ask("--query-compute-apps=pid,used_memory", "--format=csv,noheader")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--query-gpu=index,minor_number", "--format=csv"], 2, 'Field "minor_number" is not a valid field'),
        (["--query-gpu=index", "--format=json"], 2, "must be csv"),
        (["-i", "7", "-L"], 6, "No devices were found"),
        (["-q"], 2, "this stand-in answers -L"),
        (["--gpu-reset"], 2, "this stand-in answers -L"),
        ([], 2, "this stand-in answers -L"),
    ],
)
def test_what_it_does_not_know_is_refused(ask, arguments: list[str], status: int, words: str):
    done = ask(*arguments)
    assert done.returncode == status
    assert words in done.stdout + done.stderr


def test_without_its_file_it_fails_as_without_a_driver(tmp_path: Path):
    env = {**os.environ, "SEMANTIK_LAB_GPUS": str(tmp_path / "gone.json")}
    command = [sys.executable, str(gpus.STANDINS / "nvidia-smi"), "-L"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 9
    assert "couldn't communicate with the NVIDIA driver" in done.stdout
