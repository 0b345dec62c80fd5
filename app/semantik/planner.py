"""Planning: a listing becomes shards, in one transaction whose last statement checks the fence.

The listing streams into a temporary table and everything after it is set-based, so that memory does not
depend on the number of documents. Starting over is harmless: nothing of a planning that broke off remains.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from semantik import jobs, sources
from semantik.database import WAKE, Connection, backoff, connect, passes, query
from semantik.exceptions import Absent, FenceLost, NotFound, Refused, SemantikError
from semantik.leases import Keeper, database_works
from semantik.logs import event
from semantik.pulse import ChildPulse
from semantik.settings import Settings
from semantik.shards import GIVEN_UP, QUARANTINED

log = logging.getLogger("semantik.planner")

#: Source bytes per second of a slot that has not measured its speed: a small model on two CPU cores, and on a
#: GPU.
CPU_RATE, GPU_RATE = 20_000.0, 1_000_000.0
#: Seconds of work below which a shard costs more to hand out than it spreads.
SHORTEST_SHARD = 5.0
#: Shards per live slot that a small job is cut into at least, so that all slots end at about the same time.
SPREAD = 2


class Interrupted(Exception):
    """The service stops; the job is left for the next planner."""


@dataclass
class PlanLease:
    """A job under planning."""

    settings: Settings
    job_id: str
    fence: int
    listed: int = 0
    advanced_at: float = field(default_factory=time.monotonic)
    lost: threading.Event = field(default_factory=threading.Event)

    def renew(self, connection: Connection) -> bool:
        """Extend the lease; the count of documents listed so far goes with it."""
        values = {
            "job": self.job_id,
            "fence": self.fence,
            "lease": self.settings.lease_seconds,
            "listed": self.listed,
        }
        return connection.execute(query("planner.renew"), values).rowcount == 1


@dataclass(frozen=True)
class _Job:
    id: str
    fence: int
    uri: str
    collection_id: int
    allow_removal: bool
    attempt: int


@dataclass
class Planner:
    """Plans the jobs that its Celery node (`planner@host`) is told of."""

    settings: Settings
    node: str
    keeper: Keeper
    pulse: ChildPulse
    stopping: Callable[[], bool]

    def plan(self, job_id: str) -> None:
        """Plan the job, through outages of the database; leave it when it is another's or not its turn."""
        self.pulse.work()
        again = False
        try:
            for pause in backoff():
                try:
                    with connect(self.settings, application_name=f"semantik plan {job_id[:8]}") as connection:
                        return self._attempt(connection, job_id, again=again)
                except Exception as error:
                    if not passes(error):
                        raise
                    event(
                        log, "planning waits for the database", level=logging.WARNING, job=job_id, error=error
                    )
                    # The lease may run out meanwhile; another planner may then take the job.
                    self.keeper.release()
                    again = True
                if self.stopping():
                    return None
                self.pulse.advance()
                time.sleep(pause)
        finally:
            self.keeper.release()
            self.pulse.rest()

    def _attempt(self, connection: Connection, job_id: str, *, again: bool) -> None:
        job = self._claim(connection, job_id, again=again)
        if job is None:
            event(log, "left: not its turn, or planned by another", job=job_id)
            return
        event(log, "planning", job=job_id, uri=job.uri, attempt=job.attempt)
        lease = PlanLease(self.settings, job_id, job.fence)
        self.keeper.hold(lease)
        try:
            self._plan(connection, job, lease)
            jobs.close(connection, job_id)
        except FenceLost:
            connection.rollback()
            event(log, "dropped: cancelled, or planned by another now", level=logging.WARNING, job=job_id)
        except Interrupted:
            reason = "interrupted: the planner was stopped"
            self._end(connection, job, "planner.release", reason, interrupted=True)
        except SemantikError as error:
            self._end(connection, job, "planner.fail", str(error))
            event(log, "job failed", level=logging.WARNING, job=job_id, error=error)
        except Exception as error:
            if passes(error):
                raise
            event(
                log, "planning failed unexpectedly", level=logging.ERROR, traceback=True,
                job=job_id, error=error,
            )  # fmt: skip
            self._end(connection, job, "planner.release", f"unexpected: {type(error).__name__}: {error}")

    def _claim(self, connection: Connection, job_id: str, *, again: bool) -> _Job | None:
        # An attempt that the database broke off is no mark against the job.
        values = {
            "job": job_id,
            "node": self.node,
            "lease": self.settings.lease_seconds,
            "count": not again,
            "limit": self.settings.plan_limit,
        }
        try:
            connection.execute(query("planner.end_own"), values)
            row = connection.execute(query("planner.claim"), values).fetchone()
            connection.commit()
        except psycopg.errors.UniqueViolation:
            connection.rollback()  # another job of the collection is active
            return None
        return None if row is None else _Job(*row)

    def _end(
        self, connection: Connection, job: _Job, statement: str, reason: str, *, interrupted: bool = False
    ) -> None:
        self.keeper.release()
        connection.rollback()
        values = {"job": job.id, "fence": job.fence, "error": reason, "interrupted": interrupted}
        connection.execute(query(statement), values)
        connection.execute("SELECT pg_notify(%s, '')", (WAKE,))
        connection.commit()

    def _plan(self, connection: Connection, job: _Job, lease: PlanLease) -> None:
        complete = self._list(connection, job, lease)
        # Everything under the root is one range: "0" follows "/" bytewise.
        root = job.uri.rstrip("/")
        values: dict[str, object] = {
            "job": job.id, "fence": job.fence, "collection": job.collection_id,
            "root": job.uri, "below": f"{root}/", "beyond": f"{root}0",
        }  # fmt: skip
        with database_works(lease, self.pulse):
            connection.execute(query("planner.index_listed"))
            connection.execute("ANALYZE listed")
            row = connection.execute(query("planner.weigh"), values).fetchone()
        assert row is not None, "an aggregate returns a row"
        listed, known, gone = row
        _guard(job, listed, known, gone, complete)
        values |= {
            "listed": listed,
            "target": self._target(connection),
            "most": self.settings.shard_documents,
            "quarantined": QUARANTINED,
            "given_up": GIVEN_UP,
        }
        remove = [
            "planner.make_gone",
            "planner.remove_chunks",
            "planner.record_removed",
            "planner.remove_documents",
        ]
        for statement in (
            "planner.add_documents", "planner.make_planned", "planner.cut", "planner.refuse",
            *(remove if complete else []),
        ):  # fmt: skip
            self._step(lease)
            composed = sql.SQL(query(statement)).format(chunks=sql.Identifier(f"chunks_{job.collection_id}"))
            with database_works(lease, self.pulse):
                connection.execute(composed, values)
        self.keeper.release()
        with database_works(lease, self.pulse):
            if connection.execute(query("planner.planned"), values).rowcount != 1:
                raise FenceLost(f"job {job.id} was taken over")
            connection.execute("SELECT pg_notify(%s, '')", (WAKE,))
            connection.commit()
        event(log, "planned", job=job.id, documents=listed, removed=gone if complete else 0)

    def _list(self, connection: Connection, job: _Job, lease: PlanLease) -> bool:
        """Stream the listing into the table `listed`; return whether it is complete."""
        complete = True
        connection.execute(query("planner.make_listed"))
        with connection.cursor().copy("COPY listed FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["text", "int8", "text", "text"])
            for found in _found(job):
                complete = complete and not found.incomplete
                copy.write_row((found.uri, found.size, found.version, found.error))
                lease.listed += 1
                self._step(lease)
        return complete

    def _step(self, lease: PlanLease) -> None:
        lease.advanced_at = time.monotonic()
        self.pulse.advance()
        if lease.lost.is_set():
            raise FenceLost(f"job {lease.job_id} was taken over")
        if self.stopping():
            raise Interrupted

    def _target(self, connection: Connection) -> float:
        """Return the source bytes that a shard should have."""
        settings = self.settings
        row = connection.execute(
            query("planner.target"),
            {"live": settings.live_seconds, "cpu_rate": CPU_RATE, "gpu_rate": GPU_RATE},
        ).fetchone()
        total = connection.execute(query("planner.total")).fetchone()
        assert row is not None and total is not None, "an aggregate returns a row"
        return shard_bytes(total[1], rate=row[0], slots=row[1], seconds=settings.shard_seconds)


def shard_bytes(total: int, *, rate: float, slots: int, seconds: float) -> float:
    """Return the source bytes of a shard, for `total` bytes at `rate` bytes/s on each of `slots`.

    `seconds` of work; less when the job is so small that some slots would get nothing to do, but never so
    little that handing it out costs more than doing it.
    """
    even = total / (slots * SPREAD) if slots > 1 else total  # a slot alone has nobody to wait for
    return max(1.0, min(rate * seconds, max(even, rate * min(SHORTEST_SHARD, seconds))))


def _found(job: _Job) -> Iterator[sources.Listed]:
    """Yield the job's listing: none, where the source itself is gone and its removal is meant.

    Links to directories are left out: not to follow them is how listings are, and no document's failure.
    """
    try:
        for found in sources.list_source(job.uri):
            if found.error != sources.LINK_TO_DIRECTORY:
                yield found
    except Absent:
        # A prefix without objects does not exist, nor does a root that was one file. A path's directory must
        # hold something still: with the share unmounted it holds nothing either.
        if not job.allow_removal or not sources.visible(sources.folder(job.uri)):
            raise


def _guard(job: _Job, listed: int, known: int, gone: int, complete: bool) -> None:
    """Refuse a listing that would empty a collection: an unmounted share looks like one."""
    if job.allow_removal:
        return
    if listed == 0:
        raise NotFound(
            f"{job.uri} is empty: is the share mounted? If it is meant to be, submit with --allow-removal"
        )
    if complete and gone * 2 > known:
        raise Refused(
            f"{gone} of the {known} documents held from {job.uri} are gone, more than half: is the share "
            "mounted? If they were removed on purpose, submit with --allow-removal"
        )
