"""How far a job is: one row of numbers, from one statement, for `semantik watch` and Celery's task state."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from psycopg.rows import class_row

from semantik.database import Connection, query
from semantik.exceptions import NotFound


@dataclass(frozen=True)
class Progress:
    """A job's progress. What is counted are the documents planned: new, changed or removed ones."""

    state: str
    documents_total: int
    documents_done: int
    failed: int
    skipped: int
    removed: int
    chunks: int
    tokens: int
    truncated_tokens: int
    tokens_per_second: float  # over all slots at work on it now; of the whole job once it has ended
    seconds_left: float | None  # unknown until a shard has shown its speed
    error: str | None
    paused: bool = False


def progress(connection: Connection, job_id: UUID | str) -> Progress:
    """Return the job's progress. Raises NotFound."""
    with connection.cursor(row_factory=class_row(Progress)) as cursor:
        found = cursor.execute(query("progress.of_job"), {"job": str(job_id)}).fetchone()
    if found is None:
        raise NotFound(f"there is no job {job_id}: it may be older than SEMANTIK_KEEP_JOBS_DAYS")
    return found
