"""The plan of a run: which fault, where, how long. The same seed and number make the same plan."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from chaos.kinds import KINDS, ChaosError, Kind

#: Of all faults, those that strike together with the one before.
_TOGETHER = 0.15
#: Seconds between the recovery from one fault and the next.
_GAP = (0.5, 4.0)
#: A job is cancelled, and one is paused, once per so many faults.
_EVERY = 12


@dataclass(frozen=True)
class Fault:
    """One fault of the plan. Durations are seconds."""

    number: int  # from 1
    kind: str
    target: str  # host:n, a host, or ""
    hold: float  # between its beginning and its end, where it does not end by itself
    gap: float  # after the recovery from the one before
    choice: int  # decides what else there is to choose
    together: bool  # at the same moment as the one before

    @property
    def what(self) -> Kind:
        """The fault's kind."""
        return KINDS[self.kind]

    def __str__(self) -> str:
        return f"{self.number:>3} {self.kind}{' ' + self.target if self.target else ''}"


@dataclass(frozen=True)
class Schedule:
    """Faults in their order; `jobs` maps the number of a fault to what is done to a job before it."""

    seed: int
    faults: tuple[Fault, ...]
    jobs: dict[int, str]

    def record(self) -> dict[str, Any]:
        """Return the plan for the log."""
        return {"seed": self.seed, "faults": [asdict(fault) for fault in self.faults], "jobs": self.jobs}


def choose(names: str) -> tuple[str, ...]:
    """Return the kinds in a list like `host_power,freeze`; "" means all. Raises ChaosError."""
    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    unknown = [name for name in chosen if name not in KINDS]
    if unknown:
        raise ChaosError(f"no kind of fault is called {', '.join(unknown)}; there are: {', '.join(KINDS)}")
    return chosen or tuple(KINDS)


def plan(
    seed: int, faults: int, slots: Sequence[str], *, lease: float, kinds: Sequence[str] = tuple(KINDS)
) -> Schedule:
    """Deal `faults` faults over `slots` (host:n).

    The deck holds each kind by its weight and is dealt out whole before it is shuffled anew, so that no kind
    is missing from a long run.
    """
    rng = random.Random(f"semantik chaos {seed}")
    hosts = sorted({slot.partition(":")[0] for slot in slots})
    deck: list[str] = []
    dealt: list[Fault] = []
    for number in range(1, faults + 1):
        if not deck:
            deck = [name for name in kinds for _ in range(KINDS[name].weight)]
            rng.shuffle(deck)
        kind = KINDS[deck.pop()]
        target = {"slot": rng.choice(sorted(slots)), "host": rng.choice(hosts)}.get(kind.target, "")
        hold = rng.uniform(*kind.hold) + lease * rng.uniform(*kind.leases)
        gap, wish = rng.uniform(*_GAP), rng.random() < _TOGETHER
        together = wish and bool(dealt) and not dealt[-1].together and _apart(dealt[-1], kind, target)
        dealt.append(
            Fault(number, kind.name, target, round(hold, 1), round(gap, 1), rng.randrange(2**16), together)
        )
    return Schedule(seed, tuple(dealt), _jobs(rng, dealt))


def _apart(before: Fault, kind: Kind, target: str) -> bool:
    """Whether two faults can strike at once: not the same part, nor two that bring a job of their own."""
    if before.what.of_workers and kind.of_workers:
        return before.target.partition(":")[0] != target.partition(":")[0]
    return before.what.target != kind.target and not {before.what.target, kind.target} <= {
        "planner", "document", "message", "scheduler", "postgresql", "redis",
    }  # fmt: skip


def _jobs(rng: random.Random, faults: Sequence[Fault]) -> dict[int, str]:
    """Choose before which faults a job is cancelled, and one paused: each about once in `_EVERY` faults."""
    first = [fault.number for fault in faults if not fault.together]
    actions: dict[int, str] = {}
    for begin in range(0, len(faults), _EVERY):
        among = [number for number in first if begin < number <= begin + _EVERY]
        for action, number in zip(("cancel", "pause"), rng.sample(among, min(2, len(among))), strict=False):
            actions[number] = action
    return dict(sorted(actions.items()))
