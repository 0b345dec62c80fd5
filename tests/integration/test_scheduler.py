"""The scheduler's turns, against a real PostgreSQL; Redis is away, and nobody works."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bench import Bench
from cluster import Cluster
from services import wait_for

from semantik import collections, jobs
from semantik.database import connect, query
from semantik.exceptions import SettingsError
from semantik.leases import Keeper
from semantik.progress import progress
from semantik.pulse import Pulse
from semantik.runner import Runner
from semantik.scheduler import Scheduler
from semantik_demo.summary import JOB

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def redis_away(idle_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery prefers these variables to the settings that its application is made of."""
    import semantik.celery_app  # noqa: F401  (other tests' application has the Redis that is there)

    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        monkeypatch.setenv(name, NOWHERE)


def scheduler(cluster: Cluster, **more: str) -> Scheduler:
    from semantik.celery_app import make_app  # loads the settings of the process

    settings = cluster.settings("scheduler", CELERY_BROKER_URL=NOWHERE, **more)
    return Scheduler(settings, make_app(settings))


def turn(made: Scheduler) -> None:
    with connect(made.settings, autocommit=True) as connection:
        made.turn(connection)


def age(cluster: Cluster, *found: str) -> None:
    """Let the jobs be old enough that the scheduler starts them itself."""
    with cluster.superuser() as connection:
        connection.execute(
            "UPDATE jobs SET created_at = created_at - interval '5 s' WHERE id::text = ANY(%s)",
            (list(found),),
        )


def test_jobs_of_another_model_end_with_what_to_do(bench: Bench, tmp_path: Path) -> None:
    cluster = bench.cluster
    waiting = str(cluster.submit(tmp_path, bench.name, send=False).id)
    with cluster.superuser() as connection:
        connection.execute(
            "UPDATE shards SET state = 'queued', queued_at = now() WHERE id = %s", (bench.shard,)
        )
        connection.execute(
            "UPDATE job_documents SET outcome = 'embedded' WHERE document_id = "
            "(SELECT min(document_id) FROM job_documents WHERE shard_id = %s)",
            (bench.shard,),
        )
    (fence,) = bench.row("fence")
    turn(scheduler(cluster, SEMANTIK_MODEL="other-model", SEMANTIK_MODEL_REVISION="0" * 64))
    for job in (bench.job, waiting):
        ((state, error),) = cluster.rows("SELECT state, error FROM jobs WHERE id = %s", job)
        assert state == "failed"
        for word in (
            bench.name,
            "all-MiniLM-L6-v2",
            "other-model 00000000",
            "new collection",
            "cluster_model",
        ):
            assert word in error
    assert bench.row("state, fence") == ("failed", fence + 1)
    outcomes = cluster.rows(
        "SELECT outcome, error ~ 'other-model' FROM job_documents WHERE job_id = %s ORDER BY document_id",
        bench.job,
    )
    assert outcomes == [("embedded", None), ("failed", True), ("failed", True)]


def test_a_shard_that_is_left_is_logged_with_its_job(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings, pulse = bench.cluster.settings("worker"), Pulse()
    other: Any = SimpleNamespace(revision="0" * 64)
    slot: Any = SimpleNamespace(busy=False)
    keeper = Keeper(settings, lambda _connection: None, "test keeper")
    Runner(settings, other, slot, keeper, pulse, pulse.child(0)).run(bench.shard)
    assert f"left job={bench.job} shard={bench.shard} state=pending" in caplog.text


def test_jobs_of_the_clusters_model_go_on(bench: Bench) -> None:
    turn(scheduler(bench.cluster))
    assert bench.cluster.rows("SELECT state FROM jobs WHERE id = %s", bench.job) == [("running",)]
    turn(scheduler(bench.cluster, SEMANTIK_MODEL_REVISION=""))
    assert bench.row("state") == ("pending",)


def test_a_planner_that_takes_another_job_meanwhile_is_no_error(
    idle_cluster: Cluster, tmp_path: Path
) -> None:
    first, second = (str(idle_cluster.submit(tmp_path, "raced", send=False).id) for _ in range(2))
    age(idle_cluster, first)
    made, failed = scheduler(idle_cluster), []

    def start() -> None:
        try:
            with connect(made.settings, autocommit=True, application_name="test start") as connection:
                made.start(connection)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=start)
    with idle_cluster.superuser() as planner, planner.transaction():
        planner.execute("UPDATE jobs SET state = 'planning' WHERE id = %s", (second,))
        thread.start()
        wait_for(
            lambda: idle_cluster.rows(
                "SELECT 1 FROM pg_stat_activity "
                "WHERE application_name = 'test start' AND wait_event_type = 'Lock'"
            ),
            what="the scheduler waits for the planner's transaction",
        )
    thread.join(10)
    assert failed == []
    states = dict(
        idle_cluster.rows("SELECT id::text, state FROM jobs WHERE id::text IN (%s, %s)", first, second)
    )
    assert states == {first: "queued", second: "planning"}


def test_old_jobs_go_one_at_a_time_and_the_loop_does_not_wait(bench: Bench, tmp_path: Path) -> None:
    cluster = bench.cluster
    other = str(cluster.submit(tmp_path, f"{bench.name}-other", send=False).id)
    fresh = str(cluster.submit(tmp_path, f"{bench.name}-fresh", send=False).id)
    ended = (
        "UPDATE jobs SET state = 'failed', reported_at = now(), finished_at = now() - %s::interval "
        "WHERE id = %s"
    )
    with cluster.superuser() as connection:
        for job, days in ((other, "99 d"), (bench.job, "98 d"), (fresh, "1 d")):
            connection.execute(ended, (days, job))

    def left() -> set[str]:
        found = cluster.rows("SELECT id::text FROM jobs WHERE id::text = ANY(%s)", [other, bench.job, fresh])
        return {job for (job,) in found}

    made = scheduler(cluster)
    with cluster.superuser() as holder, holder.transaction():
        # The cascade to this job's documents cannot end while another holds one of them.
        holder.execute("SELECT FROM job_documents WHERE job_id = %s FOR UPDATE", (bench.job,))
        turning = threading.Thread(target=turn, args=(made,), daemon=True)
        turning.start()
        turning.join(5)
        assert not turning.is_alive(), "the turn waits for the deletion"
        wait_for(lambda: left() == {bench.job, fresh}, what="the older job is gone on its own")
    wait_for(lambda: left() == {fresh}, what="the other follows once nobody holds it")


def test_an_old_job_that_is_retried_in_this_moment_is_kept(bench: Bench) -> None:
    cluster = bench.cluster
    with cluster.superuser() as connection:
        connection.execute(
            "UPDATE jobs SET state = 'failed', reported_at = now(), finished_at = now() - interval '99 d' "
            "WHERE id = %s", (bench.job,),
        )  # fmt: skip
    made, gone = scheduler(cluster), []

    def purge() -> None:
        with connect(made.settings, autocommit=True, application_name="test purge") as connection:
            values = {"keep": made.settings.keep_jobs_days * 86_400}
            gone.append(connection.execute(query("scheduler.purge"), values).rowcount)

    thread = threading.Thread(target=purge)
    with cluster.superuser() as retrying, retrying.transaction():
        retrying.execute(query("jobs.retry"), {"job": bench.job})
        thread.start()
        wait_for(
            lambda: cluster.rows(
                "SELECT 1 FROM pg_stat_activity "
                "WHERE application_name = 'test purge' AND wait_event_type = 'Lock'"
            ),
            what="the purge waits for the retry",
        )
    thread.join(10)
    assert gone == [0]
    assert cluster.rows("SELECT state FROM jobs WHERE id = %s", bench.job) == [("queued",)]


def test_an_index_that_cannot_be_built_holds_up_no_job(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = bench.cluster
    of_job = "(SELECT collection_id FROM jobs WHERE id = %s)"
    with cluster.superuser() as connection:
        connection.execute(
            "UPDATE shards SET state = 'cancelled', finished_at = now(), fence = fence + 1 WHERE job_id = %s",
            (bench.job,),
        )
        connection.execute(
            "UPDATE jobs SET state = 'cancelled', finished_at = now(), fence = fence + 1 WHERE id = %s",
            (bench.job,),
        )
        connection.execute(
            f"UPDATE documents SET state = 'embedded', chunks = 1 WHERE collection_id = {of_job}",
            (bench.job,),
        )
        ((collection,),) = cluster.rows(f"SELECT {of_job}", bench.job)
        connection.execute(f"ALTER TABLE chunks_{collection} RENAME COLUMN embedding TO away")

    def state() -> str:
        return str(cluster.rows("SELECT index_state FROM collections WHERE id = %s", collection)[0][0])

    made = scheduler(cluster, SEMANTIK_EXACT_SEARCH_CHUNKS="0")
    with connect(made.settings, autocommit=True) as connection:
        made.build_indexes(connection)
        assert made._build is not None
        made._build.join(30)
        assert "the index could not be built" in caplog.text
        assert state() == "none", "or no job of the collection would be started until the next attempt"
        made._build_due = 0.0
        with cluster.superuser() as superuser:
            superuser.execute(f"ALTER TABLE chunks_{collection} RENAME COLUMN away TO embedding")
        made.build_indexes(connection)
        made._build.join(30)
    assert state() == "ready"


def test_a_worker_that_froze_while_it_closed_a_job_holds_up_no_other(bench: Bench) -> None:
    made = scheduler(bench.cluster)
    with (
        bench.cluster.superuser() as frozen,
        frozen.transaction(),
        connect(made.settings, autocommit=True) as connection,
    ):
        frozen.execute("SELECT FROM jobs WHERE id = %s FOR UPDATE", (bench.job,))
        with bench.cluster.superuser() as other:
            other.execute(
                "UPDATE shards SET state = 'cancelled', finished_at = now(), fence = fence + 1 "
                "WHERE job_id = %s", (bench.job,),
            )  # fmt: skip
        connection.execute("SET lock_timeout = '200ms'")
        made._close(connection, bench.job)
    assert bench.cluster.rows("SELECT state FROM jobs WHERE id = %s", bench.job) == [("running",)]


def test_only_what_was_kept_is_counted(bench: Bench) -> None:
    cluster = bench.cluster
    with cluster.superuser() as connection:
        for number, state in enumerate(("done", "failed", "cancelled"), start=2):
            connection.execute(
                "INSERT INTO shards (job_id, number, documents, bytes, state, started_at, finished_at, "
                "chunks, tokens, truncated_tokens) VALUES (%s, %s, 1, 10, %s, now(), now(), 1, 100, 10)",
                (bench.job, number, state),
            )
        connection.execute(
            "UPDATE shards SET chunks = 5, tokens = 500, truncated_tokens = 50 WHERE id = %s", (bench.shard,)
        )
        now = progress(connection, bench.job)
        assert (now.chunks, now.tokens, now.truncated_tokens) == (1, 100, 10)
        ((told,),) = connection.execute(JOB.format(job=bench.job)).fetchall()
        assert (told["chunks"], told["tokens"], told["truncated_tokens"]) == (1, 100, 10)


@pytest.mark.parametrize(
    ("tokens", "overlap", "words"),
    [
        ("0", "256", r"SEMANTIK_CHUNK_OVERLAP=256 does not fit chunks of 256 tokens .*: choose 0 to 127"),
        ("0", "128", "choose 0 to 127"),
        ("300", "8", "SEMANTIK_CHUNK_TOKENS=300, and .* takes at most 256 tokens"),
        ("12", "2", "SEMANTIK_CHUNK_TOKENS=12: choose 16 or more"),
    ],
)
def test_chunks_that_the_model_cannot_make_are_one_sentence(
    idle_cluster: Cluster, tmp_path: Path, tokens: str, overlap: str, words: str
) -> None:
    wrong = idle_cluster.settings(SEMANTIK_CHUNK_TOKENS=tokens, SEMANTIK_CHUNK_OVERLAP=overlap)
    with idle_cluster.connection() as operator:
        with pytest.raises(SettingsError, match=words):
            jobs.submit(operator, wrong, str(tmp_path), "overlapping")
        operator.rollback()
        assert collections.find(operator, "overlapping") is None


def test_a_statement_whose_client_is_gone_ends(idle_cluster: Cluster) -> None:
    connection = connect(idle_cluster.settings("worker"), application_name="test orphan")
    connection.pgconn.send_query(b"SELECT pg_sleep(60)")
    running = "SELECT pid FROM pg_stat_activity WHERE application_name = 'test orphan' AND state = 'active'"
    wait_for(lambda: idle_cluster.rows(running), what="the statement runs")
    connection.pgconn.finish()
    wait_for(lambda: not idle_cluster.rows(running), seconds=12, what="the orphan has ended")


@pytest.mark.parametrize(
    ("command", "role"),
    [
        (["semantik.scheduler"], ""),
        (["celery", "--app", "semantik.celery_app", "worker"], "worker"),
        (["celery", "--app", "semantik.celery_app", "worker"], "planner"),
    ],
)
def test_settings_that_cannot_be_used_end_a_service_for_good(command: list[str], role: str) -> None:
    env = {
        "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "SEMANTIK_ROLE": role,
        "CREDENTIALS_DIRECTORY": "/nonexistent", "CELERY_BROKER_URL": NOWHERE,
        "SEMANTIK_DATABASE_URL": "postgresql://127.0.0.1:1/none", "SEMANTIK_LEASE_SECONDS": "soon",
    }  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", *command], env=env, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 78, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert "SEMANTIK_LEASE_SECONDS='soon' is not a number" in line
