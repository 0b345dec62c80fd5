"""The parts of a cluster: messages, the places where processes run, and the scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from semantik.database import query
from semantik.exceptions import BrokerUnavailable
from semantik.scheduler import SHARD_TASK, Scheduler

from .actors import Actor
from .statements import must

if TYPE_CHECKING:
    from .world import World

COLLECTIONS = ("one", "two")
SLOTS = ("a:0", "b:0", "c:0")
PLANNERS = ("planner@a", "planner@b")
#: Two slots are live at first: their window of four is less than what two jobs have.
LIVE = 2
FINAL = ("completed", "completed_with_errors", "failed", "cancelled")


@dataclass(frozen=True, order=True)
class Message:
    """What Redis holds."""

    task: str
    argument: Any

    @property
    def queue(self) -> str:
        return "embed" if self.task == SHARD_TASK else "ingest"


@dataclass
class Place:
    """A slot or a planner: the parent process of this boot, its runtime directory and its child."""

    name: str
    parent: int
    run: int
    child: Actor | None = None
    dead: Actor | None = None  # a child that died, and of which nothing was recorded yet


class Turns(Scheduler):
    """The scheduler without threads and without Celery's results."""

    def __init__(self, world: World) -> None:
        super().__init__(world.settings("scheduler"), world)
        self._purge_due = float("inf")
        self.world = world

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        if self.world.redis_away:
            raise BrokerUnavailable("Redis is away")
        yield None

    def report(self, connection: Any, broker: Any) -> None:
        for row in connection.execute(query("scheduler.unreported")).fetchall():
            self.world.reported.append((row[0], row[1]))
            connection.execute(query("scheduler.reported"), {"job": row[0], "fence": row[-1]})

    def sweep(self, connection: Any, broker: Any) -> None:
        pass

    def build_indexes(self, connection: Any) -> None:
        for key, _ in connection.execute(
            query("scheduler.want_index"), {"exact": self.world.exact}
        ).fetchall():
            must(key not in self.world.indexing, f"the index of collection {key} is built twice at once")
            self.world.indexing.add(key)  # until the test says that it is built
