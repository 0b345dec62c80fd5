"""How long work stood still because of a fault.

For a worker: from the fault until the lease of what it held is free for others, and from the moment that the
slot is there again until it claims. For what all hosts need: from the moment that the part is back until each
slot, done with what it held, claims the next shard. A freed shard then waits its turn like any other: that is
no recovery, and is told apart (`again_s`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chaos.journal import Execution, Line
from chaos.repeats import Happened

#: Kinds that bring no part down.
_NOTHING_AWAY = ("duplicate", "poison")
#: Seconds that a new child may take until its model is there.
_LOADING = 60.0


@dataclass(frozen=True)
class Recovery:
    """Of one fault, seconds. None: nothing stood still, or another fault came before it could be seen."""

    number: int
    kind: str
    freed: float | None  # until the leases that it broke were free
    idle: float | None  # that the slowest slot stood idle although all was back
    again: float | None  # until all broken shards were at work again

    @property
    def seconds(self) -> float | None:
        """The longer of both."""
        known = [value for value in (self.freed, self.idle) if value is not None]
        return max(known) if known else None


def recoveries(
    happened: Sequence[Happened],
    executions: Mapping[int, Sequence[Execution]],
    lines: Sequence[Line],
    *,
    limit: float,
) -> list[Recovery]:
    """Return the recovery from each fault; where the run waited for it in vain, it is `limit` seconds."""
    by_slot: dict[str, list[Execution]] = {}
    for one in sorted((one for held in executions.values() for one in held), key=lambda one: one.begun):
        by_slot.setdefault(one.slot, []).append(one)
    found = []
    for each in happened:
        if each.failed or each.fault.kind in _NOTHING_AWAY:
            continue
        if each.fault.kind == "planner_kill":
            freed, idle, again = None, _planned(each, lines), None
        else:
            freed, again = _broken(each, by_slot, executions)
            idle = _idle(each, by_slot, happened, lines)
        if not each.recovered and idle is None:
            idle = limit
        found.append(Recovery(each.fault.number, each.fault.kind, freed, idle, again))
    return found


def _planned(each: Happened, lines: Sequence[Line]) -> float | None:
    """Return how long after the planner's return its job was planned."""
    job = each.note.get("job")
    planned = [line.at for line in lines if line.what == "planned" and line.values.get("job") == job]
    return max(0.0, planned[-1] - each.back) if planned else None


def _broken(
    each: Happened, by_slot: Mapping[str, Sequence[Execution]], executions: Mapping[int, Sequence[Execution]]
) -> tuple[float | None, float | None]:
    """Return when the last of the leases that the fault broke was free, and its shard at work again."""
    origin = each.injected if each.fault.what.of_workers else each.back
    freed, again = [], []
    for slot in each.slots:
        held = [one for one in by_slot.get(slot, ()) if one.begun <= each.injected]
        if not held or held[-1].committed or (held[-1].ended and held[-1].ended <= each.injected):
            continue
        one = held[-1]
        later = [other.begun for other in executions[one.shard] if other.begun > one.begun]
        free = one.freed or (later[0] if later else 0.0)
        if free:
            freed.append(max(0.0, free - origin))
        if later:
            again.append(max(0.0, later[0] - origin))
    return max(freed, default=None), max(again, default=None)


def _idle(
    each: Happened,
    by_slot: Mapping[str, Sequence[Execution]],
    happened: Sequence[Happened],
    lines: Sequence[Line],
) -> float | None:
    found = []
    for slot in each.slots:
        ready = _ready(each, slot, lines)
        before = [one for one in by_slot.get(slot, ()) if one.begun <= ready]
        after = [one.begun for one in by_slot.get(slot, ()) if one.begun > ready]
        if not after or _still_away(each, slot, before, happened):
            continue  # there was nothing left to claim, or an earlier fault is why it does not
        # What it held when all was back, it finishes first.
        start = max(ready, before[-1].ended) if before else ready
        disturbed = any(
            other is not each and slot in other.slots and start < other.injected < after[0]
            for other in happened
        )
        if not disturbed:
            found.append(max(0.0, after[0] - start))
    return max(found, default=None)


def _still_away(each: Happened, slot: str, before: Sequence[Execution], happened: Sequence[Happened]) -> bool:
    """Whether an earlier fault of workers had the slot, which has claimed nothing since."""
    last = before[-1].begun if before else 0.0
    return any(
        other is not each
        and other.fault.what.of_workers
        and slot in other.slots
        and last < other.injected < each.injected
        for other in happened
    )


def _ready(each: Happened, slot: str, lines: Sequence[Line]) -> float:
    """Return when the slot could work again: a process that was replaced loads its model first."""
    if not each.fault.what.of_workers:
        return each.back
    loaded = [
        line.at
        for line in lines
        if line.what == "model loaded"
        and line.slot == slot
        and each.injected < line.at < each.back + _LOADING
    ]
    # With its clock ahead a slot starts twice: the last start is the one after which all is as before.
    by_then = [at for at in loaded if at <= each.back]
    return by_then[-1] if by_then else loaded[0] if loaded else each.back


def rank(values: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank quantile, None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]
