"""Jobs as people meet them: submitted, looked at, paused, cancelled, tried again. The row is the truth, the
message a hint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import kombu.exceptions
import psycopg
import redis.exceptions
from psycopg.rows import class_row

from semantik import collections, sources
from semantik.broker import reach
from semantik.database import CANCELLED, WAKE, Connection, query
from semantik.exceptions import BrokerUnavailable, NotFound, Refused
from semantik.progress import Progress, progress
from semantik.settings import Settings
from semantik.shards import GIVEN_UP, QUARANTINED

__all__ = [
    "Failure",
    "Job",
    "Progress",
    "came_back",
    "cancel",
    "failures",
    "get",
    "list_jobs",
    "pause",
    "progress",
    "resume",
    "retry",
    "send",
    "submit",
]

PLAN_TASK = "semantik.tasks.process_embedding_job_task"
#: What a broker that is away looks like from kombu and redis-py.
BROKER_ERRORS = (kombu.exceptions.OperationalError, redis.exceptions.RedisError, OSError)


@dataclass(frozen=True)
class Job:
    """One submission, as it is now."""

    id: UUID
    collection: str
    uri: str
    state: str
    priority: int
    allow_removal: bool
    submitted_by: str
    planned: bool
    paused: bool  # nothing of it is begun; what runs goes on to the end of its shard
    listed: int  # documents under the URI
    unchanged: int  # of them, not planned again
    documents_total: int
    documents_done: int
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True)
class Failure:
    """A document that failed, and why."""

    uri: str
    error: str


def submit(
    connection: Connection,
    settings: Settings,
    uri: str,
    collection: str,
    *,
    priority: int = 0,
    allow_removal: bool = False,
    submitted_by: str = "",
) -> Job:
    """Record a job, making its collection when it is new, in one transaction; the caller then calls `send`.

    Raises NotFound when `uri` cannot be a source, Refused when the collection belongs to another model.
    """
    root = sources.normalize(uri)
    with connection.transaction():
        found = collections.find(connection, collection) or collections.create(
            connection, settings, collection
        )
        if settings.model and (found.model, found.model_revision) != (
            settings.model,
            settings.model_revision,
        ):
            raise Refused(
                f"collection {collection!r} was embedded with {found.model} {found.model_revision[:8]}, "
                f"this cluster has {settings.model} {settings.model_revision[:8]}: choose another "
                "collection, or drop this one"
            )
        row = connection.execute(
            query("jobs.insert"),
            {
                "collection": found.id,
                "uri": root,
                "priority": priority,
                "allow_removal": allow_removal,
                "submitted_by": submitted_by,
            },
        ).fetchone()
        assert row is not None, "INSERT ... RETURNING returns its row"
        connection.execute("SELECT pg_notify(%s, '')", (WAKE,))
        return get(connection, str(row[0]))


def broker_connection(app: Any) -> Any:
    """Return a broker connection that gives up after one attempt, where pooled ones would try for ever."""
    return app.connection_for_write(
        transport_options={"max_retries": 1, "interval_start": 0, "interval_max": 0}
    )


def send(app: Any, job_id: UUID | str) -> None:
    """Tell the planner of the job, its id being the task's. Raises BrokerUnavailable within about 5 s."""
    reach(app)
    try:
        with broker_connection(app) as connection:
            send_over(app, connection, job_id)
    except BROKER_ERRORS as error:
        reason = " ".join(str(error).split())
        raise BrokerUnavailable(f"Redis cannot be reached ({reason})") from error


def send_over(app: Any, connection: Any, job_id: UUID | str) -> None:
    """Send the job's planning message over a broker connection that is there."""
    app.send_task(PLAN_TASK, args=[str(job_id)], task_id=str(job_id), connection=connection, retry=False)


def get(connection: Connection, job: UUID | str) -> Job:
    """Return the job with this id or beginning of an id. Raises NotFound, Refused when several begin so."""
    prefix = str(job).lower()
    if not re.fullmatch(r"[0-9a-f-]{1,36}", prefix):
        raise NotFound(f"{str(job)!r} is no job id: 'semantik jobs --all' lists them")
    with connection.cursor(row_factory=class_row(Job)) as cursor:
        found = cursor.execute(query("jobs.by_prefix"), {"prefix": prefix}).fetchmany(2)
    if not found:
        raise NotFound(f"there is no job {job}: 'semantik jobs --all' lists them")
    if len(found) > 1:
        raise Refused(f"several jobs begin with {job}: give more of the id")
    return found[0]


def list_jobs(connection: Connection, *, everything: bool = False) -> list[Job]:
    """Return the jobs that have not ended, or all, the newest last."""
    with connection.cursor(row_factory=class_row(Job)) as cursor:
        return cursor.execute(query("jobs.listing"), {"everything": everything}).fetchall()


def failures(connection: Connection, job_id: UUID | str) -> list[Failure]:
    """Return the job's failed documents in the order of their names."""
    with connection.cursor(row_factory=class_row(Failure)) as cursor:
        return cursor.execute(query("jobs.failures"), {"job": str(job_id)}).fetchall()


def came_back(connection: Connection, job_id: UUID | str) -> list[str]:
    """Return for each open shard that a slot gave up why it last did: it crashed, or could not do it."""
    return [reason for (reason,) in connection.execute(query("jobs.came_back"), {"job": str(job_id)})]


def waits(connection: Connection, job_id: UUID | str) -> tuple[float, dict[str, float]]:
    """Return the seconds of work in all finished shards, and those that each stage waited."""
    rows = connection.execute(query("jobs.waits"), {"job": str(job_id)}).fetchall()
    stages = {str(stage): float(seconds) for stage, seconds in rows if stage is not None}
    return sum(float(seconds) for stage, seconds in rows if stage is None), stages


@contextmanager
def _changing(connection: Connection, job: UUID) -> Iterator[None]:
    """Change a job in one transaction. Raises Refused when its rows stay locked."""
    try:
        with connection.transaction():
            # A worker that froze in its commit holds its row until the scheduler ends its session.
            connection.execute("SET LOCAL lock_timeout = '30s'")
            yield
    except psycopg.errors.LockNotAvailable as error:
        raise Refused(
            f"job {job} is being committed by a worker that does not answer: try again in a minute"
        ) from error


def _ended(job: Job) -> Refused:
    return Refused(f"job {job.id} has already ended: it is {job.state}")


def cancel(connection: Connection, job_id: UUID | str) -> Job:
    """Stop the job; its fences rise, so no late commit lands. Raises NotFound, Refused when it has ended."""
    job = get(connection, job_id)
    values = {"job": str(job.id)}
    with _changing(connection, job.id):
        if not connection.execute(query("jobs.cancel"), values).rowcount:
            raise _ended(get(connection, str(job.id)))
        connection.execute(query("jobs.lock_shards"), values)
        connection.execute(query("jobs.cancel_shards"), values)
        connection.execute("SELECT pg_notify(%s, %s), pg_notify(%s, '')", (CANCELLED, str(job.id), WAKE))
    return get(connection, str(job.id))


def pause(connection: Connection, job_id: UUID | str) -> Job:
    """Begin nothing more of the job until `resume`; shards at work end by themselves, after a minute or so.

    Raises NotFound, Refused when it has ended.
    """
    job = get(connection, job_id)
    values = {"job": str(job.id)}
    with _changing(connection, job.id):
        if not connection.execute(query("jobs.pause"), values).rowcount:
            raise _ended(get(connection, str(job.id)))
        connection.execute(query("jobs.pause_shards"), values)
        connection.execute("SELECT pg_notify(%s, '')", (WAKE,))
    return get(connection, str(job.id))


def resume(connection: Connection, job_id: UUID | str) -> Job:
    """Let a paused job go on; the scheduler sends messages. Raises NotFound, Refused when it has ended."""
    job = get(connection, job_id)
    with _changing(connection, job.id):
        if not connection.execute(query("jobs.resume"), {"job": str(job.id)}).rowcount:
            now = get(connection, str(job.id))
            if now.finished_at is not None:
                raise _ended(now)
        connection.execute("SELECT pg_notify(%s, '')", (WAKE,))
    return get(connection, str(job.id))


def retry(
    connection: Connection, settings: Settings, job_id: UUID | str, documents: Sequence[str] = ()
) -> Job:
    """Queue a job that has ended once more: all its failed documents, or those whose URIs are given.

    One that failed before it had a plan is planned anew: the caller then calls `send`, unless `planned`.
    Raises NotFound for a URI that is no failed document of the job, Refused when there is nothing to retry.
    """
    job = get(connection, job_id)
    with _changing(connection, job.id):
        row = connection.execute(query("jobs.retry"), {"job": str(job.id)}).fetchone()
        if row is None:
            raise _not_retried(get(connection, str(job.id)))
        if row[0]:
            _retry_documents(connection, settings, job, documents)
        elif documents:
            raise Refused(f"job {job.id} failed before it listed documents: retry it without naming any")
        connection.execute("SELECT pg_notify(%s, '')", (WAKE,))
    return get(connection, str(job.id))


def _not_retried(job: Job) -> Refused:
    if job.finished_at is None:
        return Refused(f"job {job.id} has not ended: it is {job.state}")
    if job.state == "cancelled":
        return Refused(f"job {job.id} was cancelled: submit {job.uri} again")
    return Refused(f"nothing to retry: no document of job {job.id} failed")


def _retry_documents(connection: Connection, settings: Settings, job: Job, documents: Sequence[str]) -> None:
    values = {
        "job": str(job.id),
        "documents": list(documents),
        "all": not documents,
        "most": settings.shard_documents,
        "quarantined": QUARANTINED,
        "given_up": GIVEN_UP,
    }
    for uri, failed, held in connection.execute(query("jobs.retry_given"), values).fetchall():
        if not failed:
            raise NotFound(
                f"{uri} is no failed document of job {job.id}: 'semantik show --all {job.id}' lists them"
            )
        if not held:
            raise Refused(f"{uri} has left collection {job.collection!r} since: submit {job.uri} again")
    if not connection.execute(query("jobs.retry_documents"), values).rowcount:
        raise Refused(
            f"nothing to retry: no failed document of job {job.id} is still in collection "
            f"{job.collection!r}; submit {job.uri} again"
        )


def close(connection: Connection, job_id: UUID | str) -> str | None:
    """End the job when nothing of it is left to do, and return its state; None while something is."""
    with connection.transaction():
        row = connection.execute(query("jobs.close"), {"job": str(job_id)}).fetchone()
        if row is not None:
            connection.execute("SELECT pg_notify(%s, '')", (WAKE,))
    return None if row is None else str(row[0])
