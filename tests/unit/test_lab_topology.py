"""The lab's topology file: what is read from it, and what is refused with which words."""

import copy
from pathlib import Path
from typing import Any

import pytest

from semantik_lab.errors import LabError
from semantik_lab.topology import DEFAULT_TOPOLOGY, load, parse, parse_memory, parse_subnet

GPU = {"name": "Stand-in", "memory_mib": 1024, "pci_bus_id": "00000000:3B:00.0", "minor": 0}
VALID: dict[str, Any] = {
    "lab": {"subnet": "10.77.0.0/24", "proxy_port": 3128, "proxy_extra_hosts": [], "packages": ["systemd"]},
    "hosts": {
        "head": {"release": "trixie", "address": 11, "groups": ["control"], "memory": "2G"},
        "gpu1": {
            "release": "bookworm",
            "address": 21,
            "groups": ["workers"],
            "memory": "512M",
            "gpus": [GPU],
        },
    },
}


def changed(path: str, value: object) -> dict[str, Any]:
    """VALID with one value replaced (or removed, for None); `path` is dotted."""
    data = copy.deepcopy(VALID)
    *parents, last = path.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return data


def test_the_default_lab_is_the_one_that_the_documentation_describes():
    topology = load(DEFAULT_TOPOLOGY)
    assert {host.name: (host.release, host.address, len(host.gpus)) for host in topology.hosts} == {
        "head": ("trixie", 11, 0),
        "gpu1": ("bookworm", 21, 2),
        "gpu2": ("bookworm", 22, 2),
    }
    assert str(topology.subnet) == "10.77.0.0/24"
    assert {group for host in topology.hosts for group in host.groups} == {
        "redis",
        "postgresql",
        "control",
        "workers",
    }


def test_one_default_host_has_minors_that_are_not_in_bus_order():
    orders = [[gpu.minor for gpu in host.gpus] for host in load(DEFAULT_TOPOLOGY).hosts if host.gpus]
    assert [0, 1] in orders
    assert [1, 0] in orders


def test_values_arrive_with_their_units():
    head, gpu1 = parse(VALID, "file").hosts
    assert (head.memory, gpu1.memory) == (2 * 2**30, 512 * 2**20)
    assert gpu1.gpus[0].memory_mib == 1024


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("lab", None, "lab is missing"),
        ("hosts", {}, "at least one host"),
        ("extra", 1, "extra is not known here"),
        ("lab.proxy_port", "3128", "proxy_port must be of type int, not str"),
        ("lab.proxy_port", True, "proxy_port must be of type int, not bool"),
        ("lab.packages", ["a", 1], "list of strings"),
        ("hosts.head.release", None, r"\[hosts.head\]: release is missing"),
        ("hosts.head.memory", "2 GB", "'2 GB' is not a size"),
        ("hosts.head.address", 21, "head and gpu1 both have address 21"),
        ("hosts.head.adress", 12, "adress is not known here; allowed: release, address"),
        ("hosts.Head", VALID["hosts"]["head"], "'Head' does not fit"),
        ("hosts.gpu1.gpus", [GPU, GPU], "two GPUs have the same minor"),
        ("hosts.gpu1.gpus", [GPU | {"minor": 255}], "minor 255 is outside"),
        ("hosts.gpu1.gpus", [GPU | {"pci_bus_id": "3b:0"}], "'3b:0' is not one"),
        ("hosts.gpu1.gpus", [GPU | {"pci_device_id": "L4"}], "'L4' is not one; write it like 27B8"),
        ("hosts.gpu1.gpus", [GPU | {"compute_cap": "sm_89"}], "'sm_89' is not one; write it like 8.9"),
        (
            "hosts.gpu1.gpus",
            [GPU | {"pci_bus_id": "00000000:AF:00.0"}, GPU | {"minor": 1}],
            "not in the order of their pci_bus_id",
        ),
    ],
)
def test_a_mistake_is_named_with_its_place(path: str, value: object, words: str):
    with pytest.raises(LabError, match=words) as caught:
        parse(changed(path, value), "file.toml")
    assert "file.toml" in str(caught.value) or "Head" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("10.77.0.1/24", "host bits"),
        ("8.8.8.0/24", "private network"),
        ("10.0.0.0/8", "between /16 and /28"),
        ("lab", "not a network"),
    ],
)
def test_a_subnet_that_does_not_fit_is_refused(text: str, words: str):
    with pytest.raises(LabError, match=words):
        parse_subnet(text)


def test_memory_needs_a_unit():
    with pytest.raises(LabError, match="512M or 6G"):
        parse_memory("512", "here")


def test_unreadable_files_are_named(tmp_path: Path):
    with pytest.raises(LabError, match=r"missing\.toml cannot be read: No such file"):
        load(tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[lab\n")
    with pytest.raises(LabError, match=r"broken\.toml is not TOML"):
        load(broken)


def test_selecting_hosts():
    topology = parse(VALID, "file")
    assert [host.name for host in topology.select([])] == ["head", "gpu1"]
    assert [host.name for host in topology.select(["gpu1"])] == ["gpu1"]
    with pytest.raises(LabError, match="no host gpu9 in the topology; it has gpu1, head"):
        topology.select(["gpu9"])
