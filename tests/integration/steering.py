"""What people do to a job, and what comes of it, for the tests of retry, pause and cancel."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench import Bench
from celery.events.state import State
from cluster import Cluster
from services import wait_for

from semantik import jobs
from semantik.database import connect
from semantik.jobs import Job
from semantik.scheduler import Scheduler


def retry(cluster: Cluster, job: Job | str, *documents: str) -> Job:
    key = job if isinstance(job, str) else job.id
    with cluster.connection() as connection:
        return jobs.retry(connection, cluster.settings(), key, documents)


def change(cluster: Cluster, action: str, job: Job) -> Job:
    with cluster.connection() as connection:
        changed: Job = getattr(jobs, action)(connection, job.id)
        return changed


def failures(cluster: Cluster, job: Job) -> dict[str, str]:
    with cluster.connection() as connection:
        return {failure.uri: failure.error for failure in jobs.failures(connection, job.id)}


def result(cluster: Cluster, job: Job) -> tuple[str, Any]:
    """Return the state and the result that Celery has, not those that this process remembers."""
    meta = cluster.app.backend.get_task_meta(str(job.id), cache=False)
    return meta["status"], meta["result"]


@contextmanager
def events(cluster: Cluster) -> Iterator[State]:
    """Yield the state of all tasks as Flower has it, from events."""
    state, receivers = State(), []

    def receive() -> None:
        with cluster.app.connection_for_read() as connection:
            receivers.append(cluster.app.events.Receiver(connection, handlers={"*": state.event}))
            receivers[0].capture(limit=None, timeout=None, wakeup=False)

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    try:
        wait_for(lambda: state.event_count, what="a worker's sign of life")
        yield state
    finally:
        receivers[0].should_stop = True
        thread.join(5)


def states(cluster: Cluster, job: Job) -> dict[str, int]:
    return dict(
        cluster.rows("SELECT state, count(*) FROM shards WHERE job_id = %s GROUP BY state", str(job.id))
    )


def rest(cluster: Cluster, job: Job) -> None:
    """Wait until what is at work has ended, and see that nothing more begins."""
    wait_for(
        lambda: not {"queued", "running"} & states(cluster, job).keys(), what="the shards at work to end"
    )
    seen = states(cluster, job)
    claimed = "SELECT sum(attempt) FROM shards WHERE job_id = %s"
    attempts = cluster.rows(claimed, str(job.id))
    time.sleep(3)  # three turns of the scheduler
    assert states(cluster, job) == seen
    assert cluster.rows(claimed, str(job.id)) == attempts


def fail(bench: Bench, *reasons: str) -> None:
    """End the job: a document fails for each reason, the rest is embedded."""
    with bench.cluster.superuser() as connection:
        keys = [
            key for (key,) in connection.execute(
                "SELECT document_id FROM job_documents WHERE job_id = %s ORDER BY uri", (bench.job,)
            )
        ]  # fmt: skip
        for at, key in enumerate(keys):
            reason = reasons[at] if at < len(reasons) else None
            connection.execute(
                "UPDATE job_documents SET outcome = %s, error = %s WHERE job_id = %s AND document_id = %s",
                ("failed" if reason else "embedded", reason, bench.job, key),
            )
        connection.execute(
            "UPDATE shards SET state = 'failed', finished_at = now() WHERE id = %s", (bench.shard,)
        )
        assert jobs.close(connection, bench.job) in ("completed_with_errors", "failed")


def start(bench: Bench) -> None:
    scheduler = Scheduler(bench.settings, None)
    with bench.cluster.superuser() as connection:
        connection.execute(
            "UPDATE jobs SET created_at = created_at - interval '5 s' WHERE id = %s", (bench.job,)
        )
    with connect(bench.settings, autocommit=True) as connection:
        scheduler.start(connection)


def shards_of(bench: Bench) -> list[tuple[Any, ...]]:
    return bench.cluster.rows(
        "SELECT number, state, documents, bytes FROM shards WHERE job_id = %s AND id <> %s ORDER BY number",
        bench.job, bench.shard,
    )  # fmt: skip
