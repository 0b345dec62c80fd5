"""A cluster whose processes are actors: slots, planners, a scheduler and people, over one PostgreSQL."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import psycopg
from services import Services

from semantik import jobs, planner, runner, scheduler, settings

from .actors import Actor, Stage, current, labels
from .ending import Ending
from .parts import COLLECTIONS, FINAL, LIVE, PLANNERS, SLOTS, Message, Place
from .processes import Processes
from .rules import Rules
from .toy import DIM, REVISION, Notes, ToyEngine, ToyProcess

__all__ = ["COLLECTIONS", "FINAL", "PLANNERS", "SLOTS", "Message", "World"]


@dataclass
class World(Processes, Ending):
    """The database, the files, the messages and all processes. A test's example begins with `reset`."""

    services: Services
    database: str
    folder: Path
    messages: list[Message] = field(default_factory=list)
    redis_away: bool = False
    quarrels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        with self.services.superuser("postgres") as connection:
            # Two processes that wait for each other are found out at once.
            connection.execute(f"ALTER DATABASE {self.database} SET deadlock_timeout = '10ms'")
        self.monitor = self.services.superuser(self.database)
        self._numbers = itertools.count(1)
        self._settings: dict[str, settings.Settings] = {}
        # Thousands of lives would be told; other tests of the same process read the log.
        self._levels = {name: logging.getLogger(name).level for name in ("semantik", "psycopg")}
        for name in self._levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with self.operator() as connection:
            for name in COLLECTIONS:
                jobs.submit(connection, self.settings("operator"), "/srv/none", name)
        self.keys = {
            name: key for key, name in self.monitor.execute("SELECT id, name FROM collections").fetchall()
        }
        self.stage = Stage(self.monitor)
        self.rules = Rules(self)

    def operator(self) -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            self.settings("operator").database_url, options="-c search_path=semantik,public"
        )

    def settings(self, role: str, slot: str = "") -> settings.Settings:
        key = slot or role
        if key not in self._settings:
            found = settings.load(
                {
                    "CELERY_BROKER_URL": self.services.redis_url,
                    "CREDENTIALS_DIRECTORY": "/nonexistent",
                    "SEMANTIK_DATABASE_URL": self.services.database_url(role, self.database),
                    "SEMANTIK_MODEL": "toy",
                    "SEMANTIK_MODEL_REVISION": REVISION,
                    "SEMANTIK_MODEL_DIM": str(DIM),
                    "SEMANTIK_MODEL_MAX_TOKENS": "256",
                    "SEMANTIK_SHARD_DOCUMENTS": "2",
                    "SEMANTIK_HOST": "here",
                    "SEMANTIK_SLOT": slot,
                }
            )
            # Each turn is long after the one before it.
            self._settings[key] = replace(found, tick_seconds=5.0, lease_seconds=600.0, live_seconds=900.0)
        return self._settings[key]

    @contextmanager
    def patched(self) -> Iterator[None]:
        """Put actors in the places of processes, their connections in the places of connections."""

        def connect(found: settings.Settings, **options: Any) -> Any:
            return current().connect(found, **options)

        def backoff() -> Iterator[float]:
            return itertools.repeat(0.0)

        def waiting(_: Any, queue: str) -> int:
            return sum(message.queue == queue for message in self.messages)

        self.notes = Notes()
        with contextlib.ExitStack() as stack:
            for module in (runner, planner):
                stack.enter_context(mock.patch.multiple(module, connect=connect, backoff=backoff))
            stack.enter_context(
                mock.patch.multiple(runner, Engine=ToyEngine, notes=self.notes, os=ToyProcess, IDLE_PAUSE=0.0)
            )
            stack.enter_context(mock.patch.multiple(scheduler, waiting_messages=waiting, connect=connect))
            yield

    # --- an example ---

    def reset(self, *, triggers: bool = True) -> None:
        """Begin anew: no jobs, no documents, no messages; every slot idle."""
        self.monitor.execute("DELETE FROM job_documents; DELETE FROM shards; DELETE FROM jobs")
        self.monitor.execute("DELETE FROM documents; UPDATE collections SET index_state = 'none'")
        for key in self.keys.values():
            self.monitor.execute(f"TRUNCATE chunks_{key}")
        for table in ("documents", "shards"):
            self.monitor.execute(f"ALTER TABLE {table} ALTER COLUMN id RESTART")
        verb = "ENABLE" if triggers else "DISABLE"
        for table in ("jobs", "shards", "job_documents"):
            self.monitor.execute(f"ALTER TABLE {table} {verb} TRIGGER USER")
        self.messages.clear()
        self.notes.kept.clear()
        self.redis_away = False
        self.places = {name: self._boot(Place(name, 0, 0)) for name in (*SLOTS, *PLANNERS)}
        self.scheduler: Actor | None = None
        self.stage.actors.clear()
        self.stage.log.clear()
        self.stage.labels = labels()
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in COLLECTIONS:
            (self.folder / name).mkdir(parents=True)
        self.monitor.execute("DELETE FROM slots")
        self.slots: dict[str, str] = {}
        for at, slot in enumerate(SLOTS):
            self.beat(slot, "idle" if at < LIVE else "stopped")
        self.indexing: set[int] = set()
        self.exact = 10**9  # chunks above which an index is built
        self.reported: list[tuple[str, str]] = []
        self.deaths = 0  # of workers by their documents
        self.rules.reset()

    def end(self) -> None:
        """Leave no process of this example behind."""
        for actor in list(self.stage.actors):
            if actor.state != "ended":
                self.stage.kill(actor)

    def close(self) -> None:
        self.stage.close()
        self.monitor.close()
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)

    def _boot(self, place: Place) -> Place:
        place.parent, place.run = next(self._numbers), next(self._numbers)
        place.child = place.dead = None
        return place

    @property
    def revision(self) -> str:
        return REVISION

    @property
    def crash_limit(self) -> int:
        return self.settings("worker").crash_limit

    @property
    def plan_limit(self) -> int:
        return self.settings("scheduler").plan_limit

    def live(self) -> list[str]:
        """The slots that may be given work."""
        return [slot for slot, state in self.slots.items() if state in ("idle", "busy")]

    def building(self) -> set[int]:
        """The collections whose index is being built."""
        return set(self.indexing)

    def observe(self) -> None:
        """Let the rules judge what has just happened."""
        self.rules.judge()

    # --- documents ---

    def write(self, collection: str, at: int, content: str) -> Path:
        path = self.folder / collection / f"{at}.txt"
        path.write_text(content, encoding="utf-8")
        number = next(self._numbers)
        os.utime(path, ns=(number * 10**9, number * 10**9))
        return path

    def remove(self, collection: str, at: int) -> None:
        (self.folder / collection / f"{at}.txt").unlink(missing_ok=True)

    # --- time ---

    def expire(self, shard: int | None = None, job: str | None = None) -> None:
        """Let a lease run out; one in a row that a transaction holds keeps its time."""
        self.monitor.execute(
            "UPDATE shards SET lease_until = now() - interval '1 s' WHERE id IN (SELECT id FROM shards "
            "WHERE state = 'running' AND (%(shard)s::bigint IS NULL OR id = %(shard)s) "
            "FOR NO KEY UPDATE SKIP LOCKED)",
            {"shard": shard},
        )
        self.monitor.execute(
            "UPDATE jobs SET lease_until = now() - interval '1 s' WHERE id IN (SELECT id FROM jobs "
            "WHERE lease_until IS NOT NULL AND (%(job)s::uuid IS NULL OR id = %(job)s) "
            "FOR NO KEY UPDATE SKIP LOCKED)",
            {"job": job},
        )
        self.rules.refresh()

    def age(self) -> None:
        """Let ten minutes pass for what was sent and submitted."""
        self.monitor.execute(
            "UPDATE shards SET queued_at = queued_at - interval '10 min' WHERE id IN (SELECT id FROM shards "
            "FOR NO KEY UPDATE SKIP LOCKED)"
        )
        self.monitor.execute(
            "UPDATE jobs "
            "SET sent_at = sent_at - interval '10 min', created_at = created_at - interval '10 min' "
            "WHERE id IN (SELECT id FROM jobs WHERE finished_at IS NULL FOR NO KEY UPDATE SKIP LOCKED)"
        )
        self.rules.refresh()

    # --- Celery's part ---

    def send_task(self, name: str, args: list[Any], **_: Any) -> None:
        self.messages.append(Message(name, args[0]))
