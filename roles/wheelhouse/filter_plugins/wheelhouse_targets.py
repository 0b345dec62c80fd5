"""Which sets of packages the hosts of an inventory need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: A host in both groups takes the worker set, which contains the control set.
GROUPS = {"workers": "worker", "control": "control"}


def wheelhouse_targets(groups: Mapping[str, Sequence[str]], hostvars: Mapping[str, Any]) -> list[str]:
    """Return SET:PYTHON:ARCHITECTURE of each host whose facts are known, without repetition, sorted.

    Hosts without facts are those that --limit leaves out.
    """
    targets = set()
    seen: set[str] = set()
    for group, name in GROUPS.items():
        for host in groups.get(group, []):
            facts = hostvars[host].get("ansible_facts") or {}
            if host in seen or "python" not in facts:
                continue
            seen.add(host)
            version = facts["python"]["version"]
            targets.add(f"{name}:{version['major']}.{version['minor']}:{facts['architecture']}")
    return sorted(targets)


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"wheelhouse_targets": wheelhouse_targets}
