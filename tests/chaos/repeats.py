"""Every execution of a shard beyond the first, and the fault that explains it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from chaos.journal import Execution
from chaos.kinds import AGAIN, CRASH, EXPIRY
from chaos.schedule import Fault

#: Seconds between the end of a fault and the last thing that it can explain, beside lease and reaper
#: interval: a process is missed after 5 s, and what its successor finds, it says once its model is loaded.
_SLACK = 20.0
#: What lines of a host that lost its power may have told.
_UNSAID = frozenset({CRASH, EXPIRY, AGAIN})


@dataclass(frozen=True)
class Happened:
    """A fault as it was done. Times are seconds since the epoch."""

    fault: Fault
    slots: tuple[str, ...]  # that it touched
    injected: float
    back: float  # when the part was there again, or nothing of the fault was left
    note: Mapping[str, Any] = field(default_factory=dict)
    failed: str = ""  # why it could not be done
    recovered: bool = True  # whether the run saw work go on in time

    def explains(self, one: Execution, moment: float, *, reaping: float) -> bool:
        """Whether it can be why `one` ended at `moment` without a commit."""
        what = self.fault.what
        ends = what.explains & _UNSAID if one.end in ("", "refused", "dropped") else {one.end} & what.explains
        here = one.job == self.note.get("job") if what.name == "poison" else one.slot in self.slots
        # A poisonous document is there as long as its job.
        over = self.back if what.name != "poison" else moment
        now = self.injected - 1.0 <= moment <= over + reaping + _SLACK and one.begun <= over + 1.0
        return bool(ends) and here and now


@dataclass(frozen=True)
class Repeat:
    """A shard that was executed again."""

    shard: int
    job: str
    slot: str  # of the execution before
    end: str  # how that ended
    at: float
    faults: tuple[int, ...]  # that explain it; none do: a defect

    def __str__(self) -> str:
        end = self.end or "no word of its end"
        return f"shard {self.shard} of job {self.job[:8]}: again after {end} on {self.slot} at {self.at:.1f}"


def repeats(
    executions: Mapping[int, Sequence[Execution]], happened: Sequence[Happened], *, reaping: float
) -> list[Repeat]:
    """Return all repeated executions; `reaping` is lease and reaper interval together, in seconds."""
    found = []
    for held in executions.values():
        for one, after in pairwise(held):
            moment = one.freed or one.ended or after.begun
            if one.committed:
                faults: tuple[int, ...] = ()
            else:
                faults = tuple(
                    each.fault.number for each in happened if each.explains(one, moment, reaping=reaping)
                )
            found.append(Repeat(one.shard, one.job, one.slot, one.end, moment, faults))
    return found


def unsaid(
    executions: Mapping[int, Sequence[Execution]],
    attempts: Iterable[tuple[int, str, int]],
    happened: Sequence[Happened],
) -> list[str]:
    """Return shards (id, job, attempts by their row) with claims that no journal has, and no fault explains.

    A process that dies between its claim and the line about it leaves the row alone.
    """
    found = []
    deadly = [each for each in happened if each.fault.what.explains & {CRASH, EXPIRY}]
    for shard, job, attempt in attempts:
        held = executions.get(shard, ())
        missing = attempt - len(held)
        if missing > 0 and len(deadly) < missing:
            found.append(f"shard {shard} of job {job[:8]}: {attempt} claims, {len(held)} in the journals")
    return found
