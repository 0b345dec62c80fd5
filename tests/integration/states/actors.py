"""Processes that stop before each statement: the real code in a thread, moved on one step at a time.

A thread parks before every statement and every commit until it is told to go on. One that is left parked is a
frozen process, with its transaction open; one that is killed leaves as a process does, without a word. A
statement that waits for a lock is seen as waiting, and goes on when the holder's transaction ends.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from semantik import database

#: Seconds that a step may take before the test gives up on it.
PATIENCE = 20.0
_numbers = itertools.count(1)
_CHUNKS = re.compile(r'"chunks_\d+"')
_LOCK_TIMEOUT = re.compile(r"lock_timeout = '2s'")


class Killed(BaseException):
    """The process is gone: no handler of the code under test runs for it."""


class Violation(AssertionError):
    """Something that must never be."""


@dataclass(frozen=True)
class Statement:
    """A statement that ran, for the rules to judge."""

    actor: Actor
    label: str
    values: dict[str, Any]
    rowcount: int
    rows: list[tuple[Any, ...]]
    commits: bool = False
    waited: bool = False  # for another's lock: it judged rows as they were before


def labels() -> dict[str, str]:
    """Return the names of all statements by their text, as they read now."""
    found = {}
    for file in ("jobs", "planner", "scheduler", "shards", "slots"):
        for name, text in database._queries(file).items():
            found[text] = f"{file}.{name}"
    return found


class Session(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose actor parks before each statement and each commit."""

    actor: Actor | None = None
    kept_under = ""
    number = 0  # of its backend

    def execute(self, query: Any, params: Any = None, **options: Any) -> psycopg.Cursor[tuple[Any, ...]]:
        actor = self.actor
        if actor is None:
            return super().execute(query, params, **options)
        text = query.as_string(self) if isinstance(query, sql.Composable) else str(query)
        label = actor.stage.labels.get(_CHUNKS.sub("{chunks}", text), text.split(" (")[0].split(".")[0])
        if "." in label:
            actor.gate(label)
        elif label.startswith("SET LOCAL"):
            query = _LOCK_TIMEOUT.sub("lock_timeout = '60ms'", text)
        actor.waited = False
        cursor = super().execute(query, params, **options)
        rows: list[tuple[Any, ...]] = []
        if cursor.description and cursor.rowcount > 0:
            rows = cursor.fetchall()
            cursor.scroll(0, mode="absolute")
        values = dict(params) if isinstance(params, dict) else {}
        alone = self.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        alone = alone and not (cursor.statusmessage or "").startswith(("SELECT", "SET"))
        actor.stage.log.append(Statement(actor, label, values, cursor.rowcount, rows, alone, actor.waited))
        return cursor

    def commit(self) -> None:
        if self.actor is not None:
            self.actor.gate("commit")
        super().commit()
        self._note("commit")

    def rollback(self) -> None:
        super().rollback()
        self._note("rollback")

    def _note(self, label: str) -> None:
        if self.actor is not None:
            self.actor.stage.log.append(Statement(self.actor, label, {}, 0, [], label == "commit"))

    @contextmanager
    def transaction(self, *arguments: Any, **options: Any) -> Iterator[psycopg.Transaction]:
        outermost = self.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        with super().transaction(*arguments, **options) as transaction:
            yield transaction
            if self.actor is not None and outermost:
                self.actor.gate("commit")
        if outermost:
            self._note("commit")

    def close(self) -> None:
        actor, self.actor = self.actor, None
        if actor is None or actor.killed or self.broken or self.closed:
            super().close()
            return
        try:
            self.rollback()
        except psycopg.OperationalError:
            super().close()
        else:
            actor.session = None
            actor.stage.keep(self)


class Actor(threading.Thread):
    """A process of the cluster. `at` is the statement that it runs next."""

    def __init__(self, stage: Stage, name: str, kind: str, body: Callable[[Actor], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.stage, self.kind, self._body = stage, kind, body
        self.number = next(_numbers)
        self.state = "going"
        self.at = ""
        self.waited = False
        self.killed = False
        self.died = ""  # the reason of a death of its own
        self.fault = ""  # what goes wrong at its next document
        self.error: BaseException | None = None
        self.session: Session | None = None
        self.facts: dict[str, Any] = {}
        self._go = False

    def run(self) -> None:
        _current.actor = self
        try:
            self.gate("begin")
            self._body(self)
        except Killed:
            pass
        except BaseException as error:
            self.error = error
        finally:
            if self.session is not None and not self.session.closed:
                self.session.close()
            with self.stage.turn:
                self.state = "ended"
                self.stage.turn.notify_all()

    def gate(self, label: str) -> None:
        """Park until told to go on. Raises Killed in a process that is no more."""
        with self.stage.turn:
            if not self.killed:
                self.at, self.state, self._go = label, "parked", False
                self.stage.turn.notify_all()
                while not self._go and not self.killed:
                    self.stage.turn.wait()
                self.state = "going"
        if self.killed:
            raise Killed

    def die(self, reason: str) -> None:
        """End this process, from within."""
        self.died, self.killed = reason, True
        raise Killed

    def release(self) -> None:
        with self.stage.turn:
            self._go, self.state = True, "going"
            self.stage.turn.notify_all()

    @property
    def pid(self) -> int:
        """The backend of its session, 0 without one."""
        session = self.session
        return 0 if session is None or session.closed else session.number

    def connect(self, settings: Any, *, autocommit: bool = False, application_name: str = "") -> Session:
        """Return a session of this actor's, as `semantik.database.connect` makes one."""
        self.gate("connect")
        session = self.stage.take(settings.database_url)
        session.autocommit = autocommit
        session.actor, self.session = self, session
        session._note("rollback")  # of what was open in the one before
        return session


_current = threading.local()


def current() -> Actor:
    """Return the actor whose thread this is."""
    actor: Actor = _current.actor
    return actor


class Stage:
    """All actors, one of which moves at a time."""

    def __init__(self, monitor: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.turn = threading.Condition()
        self.monitor = monitor
        self.actors: list[Actor] = []
        self.log: list[Statement] = []
        self.labels = labels()
        self._pool: dict[str, list[Session]] = {}

    # --- sessions ---

    def take(self, url: str) -> Session:
        kept = self._pool.setdefault(url, [])
        while kept:
            session = kept.pop()
            if session.info.transaction_status == psycopg.pq.TransactionStatus.IDLE:
                return session
            psycopg.Connection.close(session)
        session = Session.connect(url, options=database._SESSION)
        session.kept_under, session.number = url, session.info.backend_pid
        return session

    def keep(self, session: Session) -> None:
        """Keep a session for the next actor: a new one costs more than all that an actor does."""
        self._pool[session.kept_under].append(session)

    def close(self) -> None:
        for sessions in self._pool.values():
            for session in sessions:
                psycopg.Connection.close(session)
        self._pool.clear()

    # --- steps ---

    def spawn(self, name: str, kind: str, body: Callable[[Actor], None]) -> Actor:
        """Start a process, parked before it does anything."""
        actor = Actor(self, name, kind, body)
        self.actors.append(actor)
        actor.start()
        self.settle()
        return actor

    def step(self, actor: Actor) -> None:
        """Let a parked actor run its next statement."""
        assert actor.state == "parked", f"{actor.name} is {actor.state}"
        actor.release()
        self.settle()

    def kill(self, actor: Actor) -> None:
        """End a process: its connection breaks, and its transaction with it."""
        waiting = actor.state == "blocked"
        with self.turn:
            actor.killed = True
            self.turn.notify_all()
        if waiting:
            self.monitor.execute("SELECT pg_terminate_backend(%s, 5000)", (actor.pid,))
        actor.join(PATIENCE)
        self.settle()

    def settle(self) -> None:
        """Wait until every actor is parked, has ended, or waits for a lock that a parked one holds."""
        deadline = time.monotonic() + PATIENCE
        pause = 0.004
        while True:
            with self.turn:
                moving = [actor for actor in self.actors if actor.state in ("going", "blocked")]
                if not moving:
                    break
                if any(actor.state == "going" for actor in moving):
                    self.turn.wait(pause)
                    moving = [actor for actor in self.actors if actor.state in ("going", "blocked")]
            if self._stuck(moving):
                break
            pause = min(pause * 1.5, 0.05)
            if time.monotonic() > deadline:
                raise AssertionError(f"{[(actor.name, actor.at) for actor in moving]} hang")
        gone = [actor for actor in self.actors if actor.state == "ended"]
        self.actors = [actor for actor in self.actors if actor.state != "ended"]
        for actor in gone:
            if actor.error is not None and not actor.killed:
                raise Violation(f"{actor.name}: {type(actor.error).__name__}: {actor.error}") from actor.error

    def _stuck(self, moving: list[Actor]) -> bool:
        """Whether all of `moving` wait for locks of parked actors; marks those that do."""
        parked = {actor.pid for actor in self.actors if actor.state == "parked"} - {0}
        pids = [actor.pid for actor in moving if actor.pid]
        if not parked or not pids:
            return not moving
        waits = dict(
            self.monitor.execute(
                "SELECT pid, pg_blocking_pids(pid) FROM unnest(%s::int[]) pid", (pids,)
            ).fetchall()
        )

        def held(pid: int, seen: frozenset[int] = frozenset()) -> bool:
            return any(
                by in parked or (by not in seen and held(by, seen | {pid})) for by in waits.get(pid, ())
            )

        with self.turn:
            for actor in moving:
                if actor.state in ("going", "blocked"):
                    actor.state = "blocked" if actor.pid and held(actor.pid) else "going"
                    actor.waited = actor.waited or actor.state == "blocked"
            return all(actor.state != "going" for actor in moving)
