"""Snapshots: the trees of provisioned hosts, frozen, as lower layers of new hosts.

A host started from a snapshot keeps its address and name but gets new SSH keys and a new machine id. What was
provisioned with addresses in it (certificates, access lists) holds only in a lab of the same subnet.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from semantik_lab.errors import LabError
from semantik_lab.host import Node
from semantik_lab.shell import remove_tree, write
from semantik_lab.state import SNAPSHOTS, STATE
from semantik_lab.topology import check_name


def names() -> list[str]:
    """Names of the snapshots on this machine."""
    return sorted(path.parent.name for path in SNAPSHOTS.glob("*/hosts.json"))


def check_free(name: str) -> None:
    """Refuse to overwrite a snapshot."""
    if (SNAPSHOTS / name).exists():
        raise LabError(f"snapshot {name} exists; `lab/lab snapshot --delete {name}` removes it")


def take(name: str, nodes: Sequence[Node]) -> None:
    """Freeze the trees of stopped hosts: what a host changed becomes a layer below it; nothing is copied."""
    frozen = {}
    for node in nodes:
        layer = SNAPSHOTS / name / node.host.name
        layer.parent.mkdir(parents=True, exist_ok=True)
        layers = [layer, *node.layers()]
        node.upper.rename(layer)
        node.upper.mkdir()
        # The overlay ties its work directory to the upper one it was made for.
        remove_tree(node.directory / "work")
        (node.directory / "work").mkdir()
        write(node.directory / "layers.json", json.dumps([str(path) for path in layers]) + "\n")
        frozen[node.host.name] = [str(path) for path in layers]
    write(SNAPSHOTS / name / "hosts.json", json.dumps(frozen, indent=2) + "\n")


def layers(name: str, host: str) -> list[Path]:
    """Return the layers of a host in a snapshot, topmost first."""
    path = SNAPSHOTS / check_name(name) / "hosts.json"
    if not path.exists():
        raise LabError(f"there is no snapshot {name}; there are: {', '.join(names()) or 'none'}")
    found = json.loads(path.read_text(encoding="utf-8"))
    if host not in found:
        raise LabError(f"snapshot {name} has no host {host}; it has {', '.join(sorted(found))}")
    return [Path(text) for text in found[host]]


def used_layers() -> set[str]:
    """Return every layer that a host or a snapshot stands on."""
    used: set[str] = set()
    for path in STATE.glob("*/hosts/*/layers.json"):
        used |= set(json.loads(path.read_text(encoding="utf-8")))
    for path in SNAPSHOTS.glob("*/hosts.json"):
        for stack in json.loads(path.read_text(encoding="utf-8")).values():
            used |= set(stack[1:])
    return used


def delete(name: str) -> None:
    """Remove a snapshot unless something stands on it."""
    directory = SNAPSHOTS / check_name(name)
    if not directory.exists():
        raise LabError(f"there is no snapshot {name}; there are: {', '.join(names()) or 'none'}")
    if any(layer.startswith(f"{directory}/") for layer in used_layers()):
        raise LabError(
            f"snapshot {name} is in use: a lab or another snapshot stands on it; destroy that first"
        )
    remove_tree(directory)
