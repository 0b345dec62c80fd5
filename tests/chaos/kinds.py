"""The kinds of faults: where each strikes, for how long, and which repeated executions it can explain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# How a claim of a shard can end without a commit, as the journals tell it.
CRASH = "crash"  # the worker's process died with it
EXPIRY = "expiry"  # its lease ran out
GIVEN_BACK = "given back"  # the service stopped, or had no parser
AGAIN = "again"  # its own slot claimed it anew, after the loss of its database session


class ChaosError(Exception):
    """What stands in the way of a run: a sentence for the person who started it."""


@dataclass(frozen=True)
class Kind:
    """One way in which a part fails. `hold` is (least, most) seconds; `leases` adds multiples of a lease."""

    name: str
    text: str
    target: str  # "slot", "host" (of workers), or the service that all hosts need
    explains: frozenset[str] = frozenset()
    hold: tuple[float, float] = (0.0, 0.0)
    leases: tuple[float, float] = (0.0, 0.0)
    weight: int = 2  # cards in the deck that a schedule is dealt from

    @property
    def of_workers(self) -> bool:
        """Whether it strikes workers, and leaves what all hosts need alone."""
        return self.target in ("slot", "host")


def _kind(name: str, text: str, target: str, explains: Iterable[str] = (), **more: object) -> Kind:
    return Kind(name, text, target, frozenset(explains), **more)  # type: ignore[arg-type]


_DIES = (CRASH, AGAIN)
_AWAY = (EXPIRY, AGAIN)

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _kind("child_kill", "worker's child: SIGKILL", "slot", _DIES, weight=3),
        _kind("child_segv", "worker's child: SIGSEGV", "slot", _DIES),
        _kind("child_oom", "worker's child: out of memory", "slot", _DIES),
        _kind("parent_kill", "worker's parent: SIGKILL", "slot", (CRASH, EXPIRY, AGAIN), weight=3),
        _kind("unit_restart", "worker: systemctl restart", "slot", (GIVEN_BACK, AGAIN)),
        _kind("unit_stop", "worker: stopped and started", "slot", (GIVEN_BACK, AGAIN), hold=(2, 15)),
        _kind("host_power", "host: power cut", "host", _AWAY, hold=(1, 8), weight=3),
        _kind("cut_redis", "host: cut off from Redis", "host", hold=(8, 25)),
        _kind("cut_postgresql", "host: cut off from PostgreSQL", "host", _AWAY, hold=(4, 8), leases=(0, 1.5)),
        _kind("cut_both", "host: cut off from both", "host", _AWAY, hold=(4, 8), leases=(0, 1.5)),
        _kind("freeze", "worker's child: SIGSTOP past its lease", "slot", _AWAY, hold=(5, 9), leases=(1, 1)),
        _kind("redis_kill", "Redis: SIGKILL", "redis"),
        _kind("redis_restart", "Redis: restart", "redis"),
        _kind("redis_flush", "Redis: FLUSHALL", "redis", weight=3),
        _kind("redis_full", "Redis: filled to maxmemory", "redis", hold=(5, 20)),
        _kind("postgresql_kill", "PostgreSQL: postmaster SIGKILL", "postgresql", _AWAY),
        _kind("backend_kill", "PostgreSQL: backend SIGKILL", "postgresql", _AWAY),
        _kind("postgresql_restart", "PostgreSQL: restart", "postgresql", _AWAY),
        _kind("disk_full", "PostgreSQL: disk full", "postgresql", _AWAY, hold=(4, 12)),
        _kind("scheduler_kill", "scheduler: SIGKILL", "scheduler"),
        _kind("planner_kill", "planner: SIGKILL in mid-plan", "planner"),
        _kind("parser_kill", "parsers of a host: SIGKILL", "host", (GIVEN_BACK,)),
        _kind("duplicate", "the same message twice", "message"),
        _kind("clock", "host's services an hour ahead", "host", (GIVEN_BACK, AGAIN), hold=(10, 20), weight=1),
        _kind("poison", "document that crashes its worker", "document", _DIES, weight=1),
    )
}
