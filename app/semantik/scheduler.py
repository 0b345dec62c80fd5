"""The one loop that moves jobs on: `python -m semantik.scheduler`, run by semantik-scheduler.service.

It starts jobs, hands shards out, takes back what dead workers held, closes jobs, reports them to Celery,
builds indexes and forgets old jobs. It is no Celery task: what watches the queue must not wait in it. An
advisory lock lets one work; a second waits for it.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import psycopg

from semantik import jobs, reports
from semantik.broker import describe, reach
from semantik.database import CANCELLED, WAKE, Connection, backoff, connect, passes, query
from semantik.exceptions import EX_CONFIG, BrokerUnavailable, NotFound, SemantikError, SettingsError
from semantik.housekeeping import SHARD_TASK, Sweeper
from semantik.jobs import BROKER_ERRORS
from semantik.logs import configure, event
from semantik.notify import notify
from semantik.progress import Progress
from semantik.progress import progress as progress_of
from semantik.settings import Settings
from semantik.shards import GIVEN_UP
from semantik.slots import heartbeat

log = logging.getLogger("semantik.scheduler")

#: Seconds between two looks at a stop request and at systemd's watchdog.
_GLANCE = 1.0
#: Seconds between two turns at least, however often it is woken: one turn then serves many shards.
_REST = 0.2
_PURGE_SECONDS = 3600.0
#: Seconds until an index that could not be built is tried again.
_BUILD_AGAIN_SECONDS = 300.0
#: How long a turn waits for a row that another session holds, which may have frozen.
_LOCK_WAIT = "2s"
#: Seconds between two signs of life while one statement after the other belongs to a single transaction.
_ALIVE_SECONDS = 10.0
_LOCK = "SELECT pg_try_advisory_lock(hashtext('semantik scheduler'))"


class Scheduler:
    """The loop's state. Everything that matters is in the database; losing this loses nothing."""

    def __init__(self, settings: Settings, app: Any) -> None:
        self.settings = settings
        self.app = app
        self.stopping = threading.Event()
        self._broker: Any = None
        self._broker_away = False
        self._reported: dict[str, Progress] = {}
        self._purge_due = 0.0
        self._reap_due = 0.0
        self._report_due = 0.0
        self._sweep_due = 0.0
        self._sweeper = Sweeper()
        #: Whether leases may have run out because the database or this loop was away, not their holders.
        self._excused = False
        self._build: threading.Thread | None = None
        self._build_due = 0.0
        self._purge: threading.Thread | None = None
        self._alive_at = 0.0

    # --- the loop ---

    def run(self) -> None:
        """Work until `stopping` is set, through outages of PostgreSQL and Redis."""
        pauses = backoff()
        while not self.stopping.is_set():
            try:
                with connect(
                    self.settings, autocommit=True, application_name="semantik scheduler"
                ) as connection:
                    self.tell_again(connection)
                    if self._lock(connection):
                        pauses = backoff()
                        self._serve(connection)
            except Exception as error:
                if not passes(error):
                    raise
                event(log, "database away", level=logging.WARNING, error=error)
                self._wait(next(pauses))

    def tell_again(self, connection: Connection) -> None:
        """Have the ends of jobs reported once more that this scheduler has called unfinished.

        Frozen, it may have woken after another took its place, and overwritten with PROGRESS what that one
        had reported.
        """
        if self._reported:
            connection.execute(query("scheduler.tell_again"), {"jobs": list(self._reported)})
            self._reported = {}

    def _lock(self, connection: Connection) -> bool:
        """Wait to be the one; False when asked to stop meanwhile."""
        said = False
        while not self.stopping.is_set():
            if connection.execute(_LOCK).fetchone() == (True,):
                return True
            if not said:
                event(log, "another scheduler works, waiting")
                notify("STATUS=another scheduler works, waiting")
                said = True
            silent = {"silent": self.settings.lease_seconds}
            for pid, _ in connection.execute(query("scheduler.end_frozen"), silent).fetchall():
                event(log, "ended the session of a scheduler that is frozen", level=logging.WARNING, pid=pid)
            self._wait(2.0)
        return False

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.stopping.is_set() and (left := deadline - time.monotonic()) > 0:
            notify("WATCHDOG=1")
            self.stopping.wait(min(left, _GLANCE))

    def _serve(self, connection: Connection) -> None:
        event(log, "working")
        notify("STATUS=working")
        connection.execute(f"LISTEN {WAKE}")
        connection.execute(f"SET lock_timeout = '{_LOCK_WAIT}'")
        # After an outage of the database every lease has run out, and those who hold them come back first.
        self._reap_due = time.monotonic() + self.settings.renew_seconds
        self._excused = True
        while not self.stopping.is_set():
            try:
                self.turn(connection)
            except psycopg.errors.LockNotAvailable as error:
                event(log, "a row is locked; the next turn goes on", level=logging.WARNING, error=error)
            self._wait(_REST)
            self._sleep(connection, self.settings.tick_seconds - _REST)

    def _sleep(self, connection: Connection, seconds: float) -> None:
        """Sleep until someone has something to do."""
        deadline = time.monotonic() + seconds
        while not self.stopping.is_set() and (left := deadline - time.monotonic()) > 0:
            notify("WATCHDOG=1")
            for _ in connection.notifies(timeout=min(left, _GLANCE), stop_after=1):
                return

    def turn(self, connection: Connection) -> None:
        """Do once all there is to do: what needs the database alone first, then what needs Redis."""
        heartbeat(connection, "scheduler", self.settings.host)
        self._alive_at = time.monotonic()
        if time.monotonic() >= self._reap_due:
            self.reap(connection)
        self.fail_foreign(connection)
        for (job,) in connection.execute(query("scheduler.running")).fetchall():
            self._close(connection, job)
        self.build_indexes(connection)
        self.start(connection)
        self.purge()
        try:
            with self._connected() as broker:
                self.send_plans(connection, broker)
                self.hand_out(connection, broker)
                self.report(connection, broker)
                self.sweep(connection, broker)
        except (BrokerUnavailable, *BROKER_ERRORS) as error:
            if not self._broker_away:
                event(log, describe(error), level=logging.WARNING, error=error)
            self._broker_away = True
        else:
            if self._broker_away:
                event(log, "redis back")
            self._broker_away = False

    def _alive(self) -> None:
        """Show life within a long transaction, which hides its own: another scheduler would end it."""
        notify("WATCHDOG=1")
        if time.monotonic() - self._alive_at < _ALIVE_SECONDS:
            return
        with connect(self.settings, autocommit=True, application_name="semantik scheduler alive") as beside:
            heartbeat(beside, "scheduler", self.settings.host)
        self._alive_at = time.monotonic()

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Yield the broker's connection, made anew after any error."""
        if self._broker is None:
            reach(self.app)  # says within seconds what Celery's connections would take 20 s for
            self._broker = jobs.broker_connection(self.app)
        try:
            yield self._broker
        except BaseException:
            self._broker, broken = None, self._broker
            broken.release()
            raise

    def _close(self, connection: Connection, job: str) -> None:
        try:
            if state := jobs.close(connection, job):
                event(log, "job ended", job=job, state=state)
        except psycopg.errors.LockNotAvailable as error:
            # A worker that closes it and froze: the other jobs do not wait for it.
            event(log, "a row is locked; the next turn closes the job", job=job, error=error)

    def start(self, connection: Connection) -> None:
        """Give each collection without an active job its next one."""
        try:
            with connection.transaction():
                for (job,) in connection.execute(query("scheduler.start")).fetchall():
                    connection.execute(query("scheduler.settle_removed"), {"job": job})
                    event(log, "job's turn", job=job)
        except psycopg.errors.UniqueViolation as error:
            # A planner took a job of the collection at the same moment; the next turn sees it.
            event(log, "another job's turn meanwhile", error=error)

    def fail_foreign(self, connection: Connection) -> None:
        """End jobs that the cluster's model cannot serve: their shards would be sent round for ever."""
        settings = self.settings
        if not settings.model_revision:
            return
        values = {"model_revision": settings.model_revision}
        for job, name, model, revision in connection.execute(query("scheduler.foreign"), values).fetchall():
            reason = (
                f"collection {name!r} was embedded with {model} {revision[:8]}, and this cluster now runs "
                f"{settings.model} {settings.model_revision[:8]}: submit to a new collection, or set "
                f"cluster_model back to {model}"
            )
            try:
                self._fail(connection, job, reason)
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                event(log, "a row is locked; the next turn fails the job", job=job, error=error)

    def _fail(self, connection: Connection, job: str, reason: str) -> None:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'")
            values = {"job": job, "reason": reason}
            if connection.execute(query("scheduler.fail_job"), values).rowcount != 1:
                return  # it has ended meanwhile
            connection.execute(query("jobs.lock_shards"), values)
            for (shard,) in connection.execute(query("scheduler.fail_shards"), values).fetchall():
                connection.execute(query("shards.fail_documents"), {"shard": shard, "reason": reason})
                self._alive()  # a large job has thousands of shards
            connection.execute("SELECT pg_notify(%s, %s), pg_notify(%s, '')", (CANCELLED, job, WAKE))
        event(log, "job failed", level=logging.ERROR, job=job, reason=reason)

    # --- taking back ---

    def reap(self, connection: Connection) -> None:
        """Free expired leases, of shards and of plans, after the sessions of those that held them."""
        settings = self.settings
        connection.execute(query("scheduler.end_expired_shards"))
        try:
            self._reap_shards(connection)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
            event(log, "a row is locked; the next turn takes it", level=logging.WARNING, error=error)
        else:
            self._excused = False
        connection.execute(query("scheduler.end_expired_plans"))
        for job, planner, attempts in connection.execute(query("scheduler.reap_plans")).fetchall():
            event(
                log,
                "planner's lease ran out",
                level=logging.WARNING,
                job=job,
                planner=planner,
                attempts=attempts,
            )
        for (job,) in connection.execute(
            query("scheduler.give_up_plans"), {"limit": settings.plan_limit}
        ).fetchall():
            event(log, "job failed: planning broke off too often", level=logging.ERROR, job=job)

    def _reap_shards(self, connection: Connection) -> None:
        with connection.transaction():
            connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_WAIT}'")
            values = {"limit": self.settings.expiry_limit, "count": 0 if self._excused else 1}
            for shard, job, slot, expiries, state in connection.execute(
                query("scheduler.reap_shards"), values
            ).fetchall():
                event(
                    log, "lease ran out", level=logging.WARNING,
                    job=job, shard=shard, slot=slot, expiries=expiries, state=state,
                )  # fmt: skip
                if expiries < self.settings.expiry_limit:
                    continue
                reason = f"the lease of its shard ran out {expiries} times, the last on {slot}"
                of_shard = {"shard": shard, "reason": f"{GIVEN_UP}{reason}" if state == "failed" else reason}
                if state == "failed":
                    connection.execute(query("shards.fail_documents"), of_shard)
                else:
                    apart = connection.execute(query("scheduler.set_all_apart"), of_shard).rowcount
                    connection.execute(query("shards.shrink"), of_shard)
                    self._alive()
                    event(log, "set apart", level=logging.WARNING, job=job, shard=shard, documents=apart)

    # --- handing out ---

    def send_plans(self, connection: Connection, broker: Any) -> None:
        """Send the messages of jobs that wait for the planner; again when Redis holds too few."""
        waiting = connection.execute(query("scheduler.unplanned"), {"grace": self._grace}).fetchall()
        if not waiting:
            return
        held = waiting_messages(broker, "ingest")
        for job, due, unsent in waiting:
            if unsent or (due and held < len(waiting)):
                jobs.send_over(self.app, broker, job)
                connection.execute(query("scheduler.sent_plan"), {"job": job})

    def hand_out(self, connection: Connection, broker: Any) -> None:
        """Hand shards out by priority and age, within the window; send again what Redis has lost."""
        row = connection.execute(query("scheduler.queued"), {"grace": self._grace}).fetchone()
        assert row is not None, "an aggregate returns a row"
        queued, due = row
        if due and (missing := queued - waiting_messages(broker, "embed")) > 0:
            values = {"grace": self._grace, "missing": missing}
            for shard, job in connection.execute(query("scheduler.resend"), values).fetchall():
                self._send_shard(broker, shard)
                event(log, "sent again", job=job, shard=shard)
        window = connection.execute(
            query("scheduler.window"),
            {"per_slot": self.settings.shards_per_slot, "live": self.settings.live_seconds},
        ).fetchone()
        if window is None or not window[0]:
            return
        # Rows first, then messages: one that is lost is sent again, one without its row would be refused.
        for shard, job in connection.execute(query("scheduler.hand_out"), {"window": window[0]}).fetchall():
            self._send_shard(broker, shard)
            event(log, "handed out", job=job, shard=shard)

    @property
    def _grace(self) -> float:
        return self.settings.tick_seconds

    def _send_shard(self, broker: Any, shard: int) -> None:
        self.app.send_task(SHARD_TASK, args=[shard], connection=broker, retry=False, ignore_result=True)

    # --- reporting ---

    def report(self, connection: Connection, broker: Any) -> None:
        """Write active jobs' progress and ended jobs' results where Celery looks for them."""
        if time.monotonic() >= self._report_due:
            self._report_progress(connection, broker)
            # Adding up a large job's shards costs the database more than a number is worth that often.
            self._report_due = time.monotonic() + self.settings.tick_seconds / 5
        for row in connection.execute(query("scheduler.unreported")).fetchall():
            ended = reports.Ended(*row)
            try:
                progress = progress_of(connection, ended.id)
            except NotFound:  # dropped meanwhile, with its collection
                continue
            reports.ended(self.app, broker, ended, progress)
            connection.execute(query("scheduler.reported"), {"job": ended.id, "fence": ended.fence})

    def _report_progress(self, connection: Connection, broker: Any) -> None:
        active: dict[str, str | None] = dict(connection.execute(query("scheduler.active")).fetchall())
        for job, planner in active.items():
            try:
                now = progress_of(connection, job)
            except NotFound:  # dropped meanwhile, with its collection
                continue
            if self._reported.get(job) != now and now.state in ("queued", "planning", "running"):
                reports.progress(self.app, broker, job, planner, now)
                self._reported[job] = now
        self._reported = {job: seen for job, seen in self._reported.items() if job in active}

    # --- housekeeping ---

    def sweep(self, connection: Connection, broker: Any) -> None:
        """Remove from Redis what killed workers have left there, once per tick."""
        if time.monotonic() >= self._sweep_due:
            expected = [slot for slot in self.settings.expected_slots.split(",") if slot]
            self._sweeper.sweep(connection, broker, expected)
            self._sweep_due = time.monotonic() + self.settings.tick_seconds

    def _building(self) -> bool:
        return self._build is not None and self._build.is_alive()

    def build_indexes(self, connection: Connection) -> None:
        """Build one HNSW index at a time, beside the loop, where a collection has outgrown exact search."""
        if time.monotonic() < self._build_due or self._building():
            return
        self._build_due = time.monotonic() + self.settings.tick_seconds
        # Of a scheduler that died while it built.
        connection.execute(query("scheduler.forget_builds"))
        values = {"exact": self.settings.exact_search_chunks}
        wanted = connection.execute(query("scheduler.want_index"), values).fetchall()
        if wanted:
            self._build = threading.Thread(target=self._build_all, args=(wanted,), name="index", daemon=True)
            self._build.start()

    def _build_all(self, collections: list[tuple[int, str]]) -> None:
        for key, name in collections:
            started = time.monotonic()
            try:
                with connect(self.settings, autocommit=True, application_name="semantik index") as connection:
                    connection.execute("SELECT ensure_index(%s)", (key,))
            except Exception as error:
                # Until then search is exact, and right.
                self._build_due = time.monotonic() + _BUILD_AGAIN_SECONDS
                event(
                    log, "the index could not be built", level=logging.ERROR, traceback=True,
                    collection=name, error=error,
                )  # fmt: skip
                self._forget_build(key)
            else:
                event(log, "index built", collection=name, seconds=time.monotonic() - started)

    def _forget_build(self, collection: int) -> None:
        """Let the collection's jobs go on: they wait for an index that is being built."""
        try:
            with connect(self.settings, autocommit=True, application_name="semantik index") as connection:
                connection.execute(query("scheduler.forget_build"), {"collection": collection})
        except Exception as error:
            if not passes(error):
                raise
            self._build_due = 0.0  # the next look, once the database is back, forgets all of them

    def purge(self) -> None:
        """Forget jobs that ended long ago, and slots that are no more, beside the loop."""
        if time.monotonic() < self._purge_due or (self._purge is not None and self._purge.is_alive()):
            return
        self._purge_due = time.monotonic() + _PURGE_SECONDS
        self._purge = threading.Thread(target=self._purge_all, name="purge", daemon=True)
        self._purge.start()

    def _purge_all(self) -> None:
        values = {"keep": self.settings.keep_jobs_days * 86_400}
        gone = 0
        try:
            with connect(self.settings, autocommit=True, application_name="semantik purge") as connection:
                statement = query("scheduler.purge")
                while not self.stopping.is_set() and connection.execute(statement, values).rowcount:
                    gone += 1
                connection.execute(query("scheduler.purge_slots"), values)
        except Exception as error:
            event(
                log, "old jobs are kept for another hour", level=logging.WARNING,
                traceback=not passes(error), error=error,
            )  # fmt: skip
        if gone:
            event(log, "forgot old jobs", jobs=gone)


def waiting_messages(broker: Any, queue: str) -> int:
    """Return how many messages wait in `queue`; those a worker holds are not among them."""
    return int(broker.default_channel.client.llen(queue))


def main() -> int:
    """Run until SIGTERM; returns the exit status."""
    configure()
    try:
        from semantik.celery_app import app, settings

        scheduler = Scheduler(settings, app)

        def stop(_signal: int, _frame: FrameType | None) -> None:
            scheduler.stopping.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        notify("READY=1")
        scheduler.run()
    except SemantikError as error:
        event(log, "cannot run", level=logging.CRITICAL, reason=error)
        return EX_CONFIG if isinstance(error, SettingsError) else 1
    notify("STOPPING=1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
