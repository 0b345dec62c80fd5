"""What a lab consists of: hosts, releases, groups, GPUs; read from a TOML file and checked as a whole."""

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, TypeVar

from semantik_lab.errors import LabError

DEFAULT_TOPOLOGY = Path(__file__).resolve().parent.parent / "topology.toml"
T = TypeVar("T")
_UNITS = {"M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Gpu:
    """A GPU stand-in: what the driver would say of it."""

    name: str
    memory_mib: int
    pci_bus_id: str
    minor: int
    #: Of an L4, where the file does not say.
    pci_device_id: str = "27B8"
    compute_cap: str = "8.9"


@dataclass(frozen=True)
class Host:
    """A host of the lab; `address` is the last part of its address, `memory` is in bytes."""

    name: str
    release: str
    address: int
    groups: tuple[str, ...]
    memory: int
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True)
class Topology:
    """Everything that the file says; immutable once checked."""

    subnet: IPv4Network
    proxy_port: int
    proxy_extra_hosts: tuple[str, ...]
    packages: tuple[str, ...]
    hosts: tuple[Host, ...]

    def select(self, names: Collection[str]) -> tuple[Host, ...]:
        """Return the named hosts in the file's order; all of them for no names."""
        known = {host.name for host in self.hosts}
        unknown = sorted(set(names) - known)
        if unknown:
            raise LabError(f"no host {', '.join(unknown)} in the topology; it has {', '.join(sorted(known))}")
        return tuple(host for host in self.hosts if not names or host.name in names)


def load(path: Path) -> Topology:
    """Read and check a topology file; a LabError names the file, the place in it and what is expected."""
    try:
        with path.open("rb") as file:
            return parse(tomllib.load(file), str(path))
    except OSError as error:
        raise LabError(f"topology {path} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise LabError(f"topology {path} is not TOML: {error}") from None


def parse(data: dict[str, Any], source: str) -> Topology:
    """Check the file's content; `source` is its name in errors."""
    lab = _take(data, "lab", dict, source)
    hosts = _take(data, "hosts", dict, source)
    _nothing_else(data, ("lab", "hosts"), source)
    where = f"{source}: [lab]"
    _nothing_else(lab, ("subnet", "proxy_port", "proxy_extra_hosts", "packages"), where)
    topology = Topology(
        subnet=parse_subnet(_take(lab, "subnet", str, where)),
        proxy_port=_take(lab, "proxy_port", int, where),
        proxy_extra_hosts=_strings(lab, "proxy_extra_hosts", where),
        packages=_strings(lab, "packages", where),
        hosts=tuple(_host(name, value, source) for name, value in hosts.items()),
    )
    if not topology.hosts:
        raise LabError(f"{source}: no [hosts.NAME] section; a lab needs at least one host")
    seen: dict[int, str] = {}
    for host in topology.hosts:
        if host.address in seen:
            raise LabError(f"{source}: {seen[host.address]} and {host.name} both have address {host.address}")
        seen[host.address] = host.name
    return topology


def parse_subnet(text: str) -> IPv4Network:
    """Accept a private IPv4 network with room for the hosts' addresses."""
    try:
        subnet = IPv4Network(text)
    except ValueError as error:
        raise LabError(f"subnet {text!r} is not a network: {error}; write it like 10.77.0.0/24") from None
    if not subnet.is_private or not 16 <= subnet.prefixlen <= 28:
        raise LabError(
            f"subnet {text} does not fit: a private network between /16 and /28 is needed, like 10.77.0.0/24"
        )
    return subnet


def parse_memory(text: str, where: str) -> int:
    """Turn 512M or 6G into bytes."""
    match = re.fullmatch(r"([1-9][0-9]*)([MG])", text)
    if match is None:
        raise LabError(f"{where}: memory {text!r} is not a size; write it like 512M or 6G")
    return int(match[1]) * _UNITS[match[2]]


def check_name(name: str) -> str:
    """Accept what fits into a host name, a unit name and a file name."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,29}", name) or name.endswith("-"):
        raise LabError(
            f"name {name!r} does not fit: lower-case letters, digits and inner dashes, "
            "30 at most, a letter first"
        )
    return name


def _host(name: str, data: object, source: str) -> Host:
    where = f"{source}: [hosts.{name}]"
    if not isinstance(data, dict):
        raise LabError(f"{where} is not a section")
    check_name(name)
    _nothing_else(data, ("release", "address", "groups", "memory", "gpus"), where)
    gpus = tuple(
        _gpu(gpu, f"{where} gpus[{index}]") for index, gpu in enumerate(_take(data, "gpus", list, where, []))
    )
    for field in ("minor", "pci_bus_id"):
        values = [getattr(gpu, field) for gpu in gpus]
        if len(set(values)) != len(values):
            raise LabError(f"{where}: two GPUs have the same {field}")
    if list(gpus) != sorted(gpus, key=lambda gpu: gpu.pci_bus_id):
        raise LabError(
            f"{where}: gpus are not in the order of their pci_bus_id, which is how the driver numbers them"
        )
    return Host(
        name=name,
        release=check_name(_take(data, "release", str, where)),
        address=_take(data, "address", int, where),
        groups=_strings(data, "groups", where),
        memory=parse_memory(_take(data, "memory", str, where), where),
        gpus=gpus,
    )


def _gpu(data: object, where: str) -> Gpu:
    if not isinstance(data, dict):
        raise LabError(f"{where} is not a table")
    _nothing_else(data, ("name", "memory_mib", "pci_bus_id", "minor", "pci_device_id", "compute_cap"), where)
    gpu = Gpu(
        name=_take(data, "name", str, where),
        memory_mib=_take(data, "memory_mib", int, where),
        pci_bus_id=_take(data, "pci_bus_id", str, where),
        minor=_take(data, "minor", int, where),
        pci_device_id=_take(data, "pci_device_id", str, where, Gpu.pci_device_id),
        compute_cap=_take(data, "compute_cap", str, where, Gpu.compute_cap),
    )
    if not re.fullmatch(r"[0-9A-F]{8}:[0-9A-F]{2}:[0-9A-F]{2}\.[0-7]", gpu.pci_bus_id):
        raise LabError(f"{where}: pci_bus_id {gpu.pci_bus_id!r} is not one; write it like 00000000:3B:00.0")
    if not re.fullmatch(r"[0-9A-F]{4}", gpu.pci_device_id):
        raise LabError(f"{where}: pci_device_id {gpu.pci_device_id!r} is not one; write it like 27B8")
    if not re.fullmatch(r"\d+\.\d", gpu.compute_cap):
        raise LabError(f"{where}: compute_cap {gpu.compute_cap!r} is not one; write it like 8.9")
    if not 0 <= gpu.minor < 254:
        raise LabError(
            f"{where}: minor {gpu.minor} is outside 0 to 253, which is what the driver gives to GPUs"
        )
    return gpu


def _take(data: dict[str, Any], key: str, kind: type[T], where: str, default: T | None = None) -> T:
    value = data.get(key, default)
    if value is None:
        raise LabError(f"{where}: {key} is missing")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise LabError(f"{where}: {key} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def _strings(data: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = _take(data, key, list, where)
    for value in values:
        if not isinstance(value, str):
            raise LabError(f"{where}: {key} must be a list of strings, but holds {value!r}")
    return tuple(values)


def _nothing_else(data: dict[str, Any], allowed: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(data) - set(allowed))
    if unknown:
        raise LabError(f"{where}: {', '.join(unknown)} is not known here; allowed: {', '.join(allowed)}")
