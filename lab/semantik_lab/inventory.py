"""The lab as an Ansible inventory, and as JSON for programs that drive it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semantik_lab.host import DOCUMENTS, Node
from semantik_lab.keys import control_path, ssh_options
from semantik_lab.shell import give_to_caller, write
from semantik_lab.state import Paths

_HEADER = "# Written by lab/lab up; changes are lost. Settings belong into group_vars beside this file.\n"


def render(paths: Paths, nodes: Sequence[Node], subnet: str, proxy: str) -> str:
    """Return the inventory: YAML that is also JSON below its comment, so nothing needs quoting rules."""
    # Connections are shared by sockets in a directory of the lab, which ends them when hosts go away.
    options = [*ssh_options(paths), control_path(paths)]
    groups: dict[str, Any] = {}
    for node in nodes:
        for group in node.host.groups:
            groups.setdefault(group, {"hosts": {}})["hosts"][node.host.name] = {}
    inventory = {
        "all": {
            "vars": {
                "ansible_user": "root",
                "ansible_python_interpreter": "/usr/bin/python3",
                "ansible_ssh_private_key_file": str(paths.identity),
                "ansible_ssh_common_args": " ".join(f"-o {option}" for option in options),
                "cluster_networks": [subnet],
                "cluster_apt_proxy": proxy,
            },
            "hosts": {node.host.name: {"ansible_host": node.address} for node in nodes},
            "children": groups,
        }
    }
    return _HEADER + json.dumps(inventory, indent=2) + "\n"


def save(path: Path, text: str) -> None:
    """Write the inventory where the caller of sudo can read and replace it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, text)
    give_to_caller(path)


def remove(path: Path) -> None:
    """Delete an inventory that this tool wrote; one that somebody else put there stays."""
    if path.exists() and path.read_text(encoding="utf-8").startswith(_HEADER):
        path.unlink()


def describe(paths: Paths, nodes: Sequence[Node], subnet: str, proxy: str, inventory: Path) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "name": paths.lab,
        "subnet": subnet,
        "apt_proxy": proxy,
        "inventory": str(inventory),
        "identity_file": str(paths.identity),
        "known_hosts": str(paths.known_hosts),
        "ssh_common_args": " ".join(f"-o {option}" for option in ssh_options(paths)),
        "documents": {"controller": str(paths.documents), "hosts": DOCUMENTS},
        "hosts": [
            {
                "name": node.host.name,
                "address": node.address,
                "port": 22,
                "user": "root",
                "identity_file": str(paths.identity),
                "groups": list(node.host.groups),
                "release": node.host.release,
                "gpus": len(node.host.gpus),
                "state": node.state().value,
            }
            for node in nodes
        ],
    }
