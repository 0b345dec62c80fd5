"""Jobs as people meet them: submitted, looked at, cancelled. The row is the truth, the message a hint."""

from __future__ import annotations

import re
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

__all__ = [
    "Failure",
    "Job",
    "Progress",
    "cancel",
    "failures",
    "get",
    "list_jobs",
    "progress",
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


def waits(connection: Connection, job_id: UUID | str) -> tuple[float, dict[str, float]]:
    """Return the seconds of work in all finished shards, and those that each stage waited."""
    rows = connection.execute(query("jobs.waits"), {"job": str(job_id)}).fetchall()
    stages = {str(stage): float(seconds) for stage, seconds in rows if stage is not None}
    return sum(float(seconds) for stage, seconds in rows if stage is None), stages


def cancel(connection: Connection, job_id: UUID | str) -> Job:
    """Stop the job; its fences rise, so no late commit lands. Raises NotFound, Refused when it has ended."""
    job = get(connection, job_id)
    try:
        with connection.transaction():
            # A worker that froze in its commit holds its row until the scheduler ends its session.
            connection.execute("SET LOCAL lock_timeout = '30s'")
            cancelled = connection.execute(query("jobs.cancel"), {"job": str(job.id)}).rowcount
            if cancelled:
                connection.execute(query("jobs.cancel_shards"), {"job": str(job.id)})
                connection.execute(
                    "SELECT pg_notify(%s, %s), pg_notify(%s, '')", (CANCELLED, str(job.id), WAKE)
                )
    except psycopg.errors.LockNotAvailable as error:
        raise Refused(
            f"job {job.id} is being committed by a worker that does not answer: try again in a minute"
        ) from error
    found = get(connection, str(job.id))
    if not cancelled:
        raise Refused(f"job {job.id} has already ended: it is {found.state}")
    return found


def close(connection: Connection, job_id: UUID | str) -> str | None:
    """End the job when nothing of it is left to do, and return its state; None while something is."""
    with connection.transaction():
        row = connection.execute(query("jobs.close"), {"job": str(job_id)}).fetchone()
        if row is not None:
            connection.execute("SELECT pg_notify(%s, '')", (WAKE,))
    return None if row is None else str(row[0])
