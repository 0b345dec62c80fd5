#!/usr/bin/python3
"""Wait on the host until units are active, and stop waiting once one cannot become so."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: active_units
short_description: Wait until units are active, or one of them cannot become so
description:
  - Polls systemd once a second, so that a play shows one line however long a model takes to load.
  - Fails when a unit has failed, has been restarted by systemd I(restarts) times, or when the time is up.
  - Changes nothing.
options:
  units:
    description: Names of units.
    type: list
    elements: str
    required: true
  timeout:
    description: Seconds to wait at most.
    type: float
    default: 120
  restarts:
    description: Restarts by systemd since the unit was started, after which it will not mend itself.
    type: int
    default: 3
author: Semantik cluster
"""

RETURN = """
states:
  description: The last state of each unit.
  type: dict
  returned: always
"""


def read(output: str) -> tuple[str, int]:
    """Return state and count of restarts from `systemctl show`."""
    properties = dict(line.partition("=")[::2] for line in output.splitlines())
    state = properties["ActiveState"]
    # A restart that waits for its turn: the unit is active still, and about not to be.
    if state == "active" and properties.get("Job", "0") not in ("", "0"):
        state = "active, with a job that waits"
    # A socket is never restarted and has no such count.
    return state, int(properties.get("NRestarts") or 0)


def verdict(shown: Mapping[str, tuple[str, int]], restarts: int) -> bool | None:
    """Judge states and counts of restarts: True all active, False one cannot become so, None wait."""
    if any(state == "failed" or (state != "active" and count >= restarts) for state, count in shown.values()):
        return False
    return True if all(state == "active" for state, _ in shown.values()) else None


def wait(
    show: Callable[[], Mapping[str, tuple[str, int]]], timeout: float, restarts: int
) -> tuple[bool, str, dict[str, str]]:
    """Poll `show` until there is a verdict; return it, why it is bad, and the last states."""
    deadline = time.monotonic() + timeout
    while True:
        shown = show()
        states = {unit: state for unit, (state, _) in shown.items()}
        answer = verdict(shown, restarts)
        if answer is not None:
            return answer, "" if answer else "a unit cannot start", states
        if time.monotonic() > deadline:
            return False, f"not active after {timeout:.0f} s", states
        time.sleep(1)


def main() -> None:
    """Run as a module."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "required": True},
            "timeout": {"type": "float", "default": 120.0},
            "restarts": {"type": "int", "default": 3},
        },
        supports_check_mode=True,
    )

    def show() -> dict[str, tuple[str, int]]:
        found = {}
        for unit in module.params["units"]:
            command = ["systemctl", "show", "--property=ActiveState,NRestarts,Job", "--", unit]
            _, output, _ = module.run_command(command, check_rc=True)
            found[unit] = read(output)
        return found

    if module.check_mode:
        module.exit_json(changed=False, states={unit: state for unit, (state, _) in show().items()})
    active, reason, states = wait(show, module.params["timeout"], module.params["restarts"])
    if not active:
        module.fail_json(msg=reason, states=states)
    module.exit_json(changed=False, states=states)


if __name__ == "__main__":
    main()
