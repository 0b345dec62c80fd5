"""This engine from disk to PostgreSQL: a real job through Celery, on one worker, with services of its own.

The services and the processes are those of semantik_bench.services.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from semantik_bench import services
from semantik_bench.workers.protocol import Answer, in_order, serve

_JOB_SECONDS = 1800.0


def load(ends: contextlib.ExitStack, settings: Answer) -> Callable[[Answer], tuple[Any, Answer]]:
    """Start PostgreSQL, Redis, scheduler, planner and one worker; each run is a job into a new collection.

    `ends` stops them all.
    """
    cluster = services.start(ends, settings["environment"])
    cluster.start_scheduler()
    cluster.start_planner()
    cluster.start_worker(0)
    cluster.wait_live(least=1)
    number = 0

    def run(request: Answer) -> tuple[Any, Answer]:
        nonlocal number
        number += 1
        name = f"bench{number}"
        job = cluster.submit(settings["documents"], name)
        deadline = time.monotonic() + _JOB_SECONDS
        while (now := cluster.get(job)).finished_at is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job.id} is {now.state} after {_JOB_SECONDS:.0f} s")
            time.sleep(0.5)
        if now.state != "completed":
            raise RuntimeError(f"job {job.id} ended {now.state}: {now.error}")
        return _vectors(cluster, settings, request["profile"], name), _facts(cluster, now)

    return run


def _facts(cluster: Any, job: Any) -> Answer:
    """Return the job's times in seconds by the database's clock, and what its shards counted."""
    statement = (
        "SELECT extract(epoch FROM j.finished_at - j.created_at), "
        "extract(epoch FROM max(s.finished_at) - min(s.started_at)), "
        "extract(epoch FROM min(s.started_at) - j.created_at), sum(s.tokens), count(*) "
        "FROM jobs j JOIN shards s ON s.job_id = j.id WHERE j.id = %s GROUP BY j.id"
    )
    ((whole, work, planning, tokens, shards),) = cluster.rows(statement, str(job.id))
    waits: dict[str, float] = {}
    for (one,) in cluster.rows("SELECT waits FROM shards WHERE job_id = %s", str(job.id)):
        for stage, seconds in (one or {}).items():
            waits[stage] = waits.get(stage, 0.0) + float(seconds)
    return {
        "seconds": float(whole),
        "worker_seconds": float(work),
        "planning_seconds": float(planning),
        "tokens": int(tokens),
        "shards": int(shards),
        "waits": waits,
        **services.sql_waits(cluster, str(job.id)),
        "main_process": cluster.child("worker0"),
    }


def _vectors(cluster: Any, settings: Answer, profile: str, collection: str) -> np.ndarray:
    from pgvector.psycopg import register_vector

    ((number,),) = cluster.rows("SELECT id FROM collections WHERE name = %s", collection)
    with cluster.superuser() as connection:
        register_vector(connection)
        rows = connection.execute(
            f"SELECT d.uri, c.ordinal, c.embedding FROM chunks_{int(number)} c "  # noqa: S608
            "JOIN documents d ON d.id = c.document_id"
        ).fetchall()
    vectors = np.array([vector.to_numpy() for _, _, vector in rows], dtype=np.float32)
    return in_order(settings, profile, [(uri, ordinal) for uri, ordinal, _ in rows], vectors)


if __name__ == "__main__":
    with contextlib.ExitStack() as stack:
        serve(functools.partial(load, stack))
