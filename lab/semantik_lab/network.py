"""The lab's network: one bridge, addresses in one subnet, no route out of it."""

import hashlib
import json
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from semantik_lab.errors import LabError
from semantik_lab.shell import run
from semantik_lab.topology import Host

# Longest interface name that the kernel takes.
_NAME_LIMIT = 15


def bridge_name(lab: str) -> str:
    """Return the bridge's name; a lab name that does not fit is cut and gets a hash, so that no two meet."""
    name = f"smk-{lab}"
    if len(name) <= _NAME_LIMIT:
        return name
    digest = hashlib.sha256(lab.encode()).hexdigest()[:4]
    return f"{name[: _NAME_LIMIT - 5]}-{digest}"


def bridge_address(subnet: IPv4Network) -> IPv4Address:
    """The machine's own address in the lab: the first one."""
    return subnet[1]


def host_address(subnet: IPv4Network, host: Host) -> IPv4Address:
    """Return the host's address, refusing the network's own, the bridge's and the broadcast address."""
    if not 2 <= host.address < subnet.num_addresses - 1:
        raise LabError(
            f"host {host.name}: address {host.address} is not free in {subnet}; "
            f"choose one from 2 to {subnet.num_addresses - 2}"
        )
    return subnet[host.address]


def machine_networks() -> dict[str, list[IPv4Network]]:
    """Return the IPv4 networks that each of the machine's interfaces is in."""
    found: dict[str, list[IPv4Network]] = {}
    for link in _ip_json("-4", "address", "show"):
        for address in link.get("addr_info", []):
            network = IPv4Interface(f"{address['local']}/{address['prefixlen']}").network
            found.setdefault(link["ifname"], []).append(network)
    return found


def choose_subnet(first: IPv4Network, taken: Collection[IPv4Network]) -> IPv4Network:
    """Return `first` or the next network of its size that overlaps nothing taken; 64 are tried."""
    start = int(first.network_address)
    for index in range(64):
        candidate = IPv4Network((start + index * first.num_addresses, first.prefixlen))
        if not any(candidate.overlaps(other) for other in taken):
            return candidate
    raise LabError(f"none of the 64 networks from {first} on is free; name a free one with --subnet")


def check_subnet(subnet: IPv4Network, taken: dict[str, list[IPv4Network]]) -> None:
    """Refuse a subnet that meets another lab or an interface; `taken` maps owners to their networks."""
    for owner, networks in taken.items():
        for network in networks:
            if subnet.overlaps(network):
                raise LabError(
                    f"subnet {subnet} overlaps {network} of {owner}; name a free one with --subnet"
                )


def bridge_exists(name: str) -> bool:
    """Whether an interface of that name is there, whoever made it."""
    return Path("/sys/class/net", name).exists()


def make_bridge(name: str, lab: str, subnet: IPv4Network) -> None:
    """Create the bridge or correct what a killed run left half made; a foreign interface is refused."""
    if bridge_exists(name):
        _check_ours(name, lab)
    else:
        # forward_delay 0: without spanning tree there is no loop to wait for, and hosts answer at once.
        run(["ip", "link", "add", name, "type", "bridge", "forward_delay", "0"], what=f"making bridge {name}")
        run(["ip", "link", "set", name, "alias", _alias(lab)], what=f"marking bridge {name}")
    address = f"{bridge_address(subnet)}/{subnet.prefixlen}"
    run(["ip", "address", "replace", address, "dev", name], what=f"addressing bridge {name}")
    run(["ip", "link", "set", name, "up"], what=f"starting bridge {name}")


def remove_bridge(name: str, lab: str) -> None:
    """Delete the lab's bridge; nothing happens when it is gone already."""
    if bridge_exists(name):
        _check_ours(name, lab)
        run(["ip", "link", "delete", name], what=f"deleting bridge {name}")


def _check_ours(name: str, lab: str) -> None:
    alias = Path("/sys/class/net", name, "ifalias").read_text(encoding="utf-8").strip()
    # A run killed between making and marking leaves a bridge without an address: ours by its name.
    bare = Path("/sys/class/net", name, "bridge").exists() and name not in machine_networks()
    if alias != _alias(lab) and not (alias == "" and bare):
        raise LabError(
            f"interface {name} exists and is not lab {lab}'s; "
            f"delete it (ip link delete {name}) or choose --name"
        )


def _alias(lab: str) -> str:
    return f"semantik-lab {lab}"


def _ip_json(*arguments: str) -> list[dict[str, Any]]:
    links: list[dict[str, Any]] = json.loads(
        run(["ip", "-json", *arguments], what="reading the network's state")
    )
    return links
