#!/usr/bin/python3
"""Name the running units that were started before a file they read was written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: stale_units
short_description: Name the running units that were started before a file they read was written
description:
  - Compares the start of each running unit with the change times of its unit file, drop-ins, environment
    files and credentials, as systemd and the unit itself name them. A handler loses its notice when a run
    ends before it; this does not.
  - Changes nothing.
options:
  units:
    description: Names of units.
    type: list
    elements: str
    required: true
  reads:
    description: Further files that they read when they start; a link counts itself, not its target.
    type: list
    elements: path
    default: []
author: Semantik cluster
"""

RETURN = """
stale:
  description: For each unit that must be restarted, the file that changed.
  type: dict
  returned: always
"""

PROPERTIES = (
    "ActiveState",
    "ExecMainStartTimestamp",
    "InactiveExitTimestamp",
    "FragmentPath",
    "DropInPaths",
    "EnvironmentFiles",
)
RUNNING = ("active", "activating", "reloading", "deactivating")


def parse(text: str) -> dict[str, list[str]]:
    """Read `systemctl show`: a property that is set several times has several lines."""
    properties: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, found, value = line.partition("=")
        if found and value:
            properties.setdefault(name, []).append(value)
    return properties


def started(properties: Mapping[str, Sequence[str]]) -> float | None:
    """Return when the unit read its files, in seconds since 1970; None when it does not run."""
    if properties.get("ActiveState", [""])[0] not in RUNNING:
        return None
    # A socket has no process. Of a service the process counts: systemd restarts it while "activating".
    for name in ("ExecMainStartTimestamp", "InactiveExitTimestamp"):
        match = re.search(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) UTC", properties.get(name, [""])[0])
        if match:
            layout = "%Y-%m-%d %H:%M:%S.%f" if "." in match[1] else "%Y-%m-%d %H:%M:%S"
            return datetime.strptime(match[1], layout).replace(tzinfo=UTC).timestamp()
    return None


def files(properties: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the files that the unit reads, unit file and drop-ins included."""
    paths = [*properties.get("FragmentPath", []), *" ".join(properties.get("DropInPaths", [])).split()]
    # `systemctl show` calls credentials unprintable, so they are read where they are written.
    for path in list(paths):
        paths += re.findall(r"(?m)^LoadCredential=[^:\n]+:(/\S+)", Path(path).read_text(encoding="utf-8"))
    for line in properties.get("EnvironmentFiles", []):
        paths.append(line.rpartition(" (")[0] or line)
    return paths


def changed_since(moment: float, paths: Sequence[str]) -> str | None:
    """Return a path whose content or place changed after `moment`; a file that is not there is none."""
    for path in paths:
        try:
            # Not the modification time, which a copy may preserve.
            changed = os.lstat(path).st_ctime
        except FileNotFoundError:
            continue
        if changed > moment:
            return path
    return None


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "required": True},
            "reads": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    stale = {}
    for unit in module.params["units"]:
        command = [
            "systemctl",
            "show",
            "--timestamp=us+utc",
            f"--property={','.join(PROPERTIES)}",
            "--",
            unit,
        ]
        _, output, _ = module.run_command(command, check_rc=True)
        properties = parse(output)
        moment = started(properties)
        if moment is not None and (
            path := changed_since(moment, [*files(properties), *module.params["reads"]])
        ):
            stale[unit] = path
    module.exit_json(changed=False, stale=stale)


if __name__ == "__main__":
    main()
