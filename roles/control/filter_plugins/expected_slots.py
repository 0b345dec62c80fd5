"""Which slots the cluster should have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any


def expected_slots(workers: Sequence[str], hostvars: Mapping[str, Any], recorded: str) -> list[str]:
    """Return `host:n` of every slot of the group `workers`, sorted.

    Slots of hosts that this run did not look at (--limit, or a host that is down) are those on record,
    `recorded` being the file of the last run; hosts that left the inventory drop out.
    """
    match = re.search(r"(?m)^SEMANTIK_EXPECTED_SLOTS=(.*)$", recorded)
    known = [slot for slot in match[1].split(",") if slot] if match else []
    slots: set[str] = set()
    for host in workers:
        found = hostvars[host].get("worker_slot_names")
        if found is None:
            short = host.partition(".")[0]
            found = [slot for slot in known if slot.rpartition(":")[0] == short]
        slots.update(found)
    return sorted(slots, key=lambda slot: (slot.rpartition(":")[0], int(slot.rpartition(":")[2])))


class FilterModule:
    """Ansible's entry point."""

    def filters(self) -> dict[str, Any]:
        """Return the filters by name."""
        return {"expected_slots": expected_slots}
