"""Pause, resume and cancel, in a running cluster and without one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from bench import Bench
from celery.exceptions import TaskRevokedError
from cluster import Cluster
from command import ask, run
from documents import write
from services import PATIENCE, wait_for
from steering import change, fail, rest, result, retry, shards_of, start, states

from semantik import jobs
from semantik.database import connect, query
from semantik.exceptions import Refused


def test_a_pause_in_the_middle_lets_nothing_begin_until_it_ends(
    half_cluster: Cluster, tmp_path: Path
) -> None:
    cluster = half_cluster
    write(tmp_path / "docs", 100)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "paused")
        cluster.wait_running(job)
        assert change(cluster, "pause", job).paused
        before = states(cluster, job)
        assert "queued" not in before
        rest(cluster, job)
        ended = states(cluster, job)["done"] - before.get("done", 0)
        assert ended == before.get("running", 0), "one shard each"
        assert states(cluster, job)["pending"] > 0
        now = cluster.get(job)
        assert (now.state, now.paused) == ("running", True)
        assert "running, paused" in run(cluster, "jobs").stdout
        assert "state:      running, paused" in run(cluster, "show", str(job.id)).stdout
        assert change(cluster, "pause", job).paused, "once more is no error"
        wait_for(
            lambda: result(cluster, job)[1]["paused"],
            what="Celery's state to say so",
        )
    assert not change(cluster, "resume", job).paused
    assert cluster.finish(job).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 100}
    with pytest.raises(Refused, match="already ended: it is completed"):
        change(cluster, "resume", job)
    assert cluster.rows(
        "SELECT sum(crashes), sum(expiries), max(attempt) FROM shards WHERE job_id = %s", str(job.id)
    ) == [(0, 0, 1)]


def test_a_paused_job_that_waits_lets_later_ones_pass(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    for name in ("one", "two", "three"):
        write(tmp_path / name, 10, seed=len(name))
    with cluster.slowed():
        first = cluster.submit(tmp_path / "one", "passing")
        wait_for(lambda: cluster.get(first).state in ("planning", "running"), what="the first to begin")
        second = cluster.submit(tmp_path / "two", "passing")
        assert change(cluster, "pause", second).state == "queued"
        third = cluster.submit(tmp_path / "three", "passing")
    assert cluster.finish(first).state == "completed"
    assert cluster.finish(third).state == "completed"
    waiting = cluster.get(second)
    assert (waiting.state, waiting.paused) == ("queued", True)
    said = ask(cluster, "resume", str(second.id))
    assert said["job"]["paused"] is False
    assert cluster.finish(second).state == "completed"


def test_cancel_of_a_paused_job_stops_it_within_a_batch(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    folder = tmp_path / "docs"
    write(folder, 100)
    with cluster.slowed():
        job = cluster.submit(folder, "halted")
        shard, _ = cluster.wait_running(job)
        change(cluster, "pause", job)
        said = ask(cluster, "cancel", str(job.id))
        assert (said["job"]["state"], said["job"]["paused"]) == ("cancelled", False)
        wait_for(
            lambda: not cluster.rows("SELECT FROM slots WHERE state = 'busy'"), seconds=8,
            what="the slots to stop",
        )  # fmt: skip
    assert cluster.rows("SELECT state FROM shards WHERE id = %s", shard) == [("cancelled",)]
    assert states(cluster, job).keys() <= {"cancelled", "done"}
    cluster.check_collection("halted")
    with pytest.raises(TaskRevokedError):
        cluster.app.AsyncResult(str(job.id)).get(timeout=10 * PATIENCE)
    with pytest.raises(Refused, match="was cancelled: submit"):
        retry(cluster, job)
    assert cluster.finish(cluster.submit(folder, "halted")).state == "completed"


def test_cancel_of_a_job_that_waits_for_its_retry_keeps_its_shards_closed(bench: Bench) -> None:
    fail(bench, "broken", "broken")
    job = retry(bench.cluster, bench.job)
    assert change(bench.cluster, "cancel", job).state == "cancelled"
    assert [row[1] for row in shards_of(bench)] == ["cancelled"]
    start(bench)
    assert bench.cluster.rows("SELECT state FROM jobs WHERE id = %s", bench.job) == [("cancelled",)]


def test_cancel_meets_the_shards_that_a_crash_sets_apart_in_the_same_moment(bench: Bench) -> None:
    with bench.worker() as worker:
        held = bench.claim(worker, "a:0")
        assert held is not None
        # As `crashed` does, with its transaction open when the cancel begins.
        values = {"shard": bench.shard, "fence": held.fence, "reason": "SIGSEGV", "crashes": 2}
        worker.execute(query("shards.crashed"), values)
        ((document,),) = bench.cluster.rows(
            "SELECT min(document_id) FROM job_documents WHERE shard_id = %s", bench.shard
        )
        worker.execute(query("shards.set_apart"), values | {"document": document})
        worker.execute(query("shards.shrink"), values)

        def cancel() -> None:
            with bench.cluster.connection() as operator:
                jobs.cancel(operator, bench.job)

        thread = threading.Thread(target=cancel)
        thread.start()
        wait_for(
            lambda: bench.cluster.rows("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"),
            what="the cancel to wait",
        )
        worker.commit()
        thread.join(20)
    assert bench.cluster.rows("SELECT DISTINCT state FROM shards WHERE job_id = %s", bench.job) == [
        ("cancelled",)
    ]


def test_cancel_stops_a_plan_that_is_written(idle_cluster: Cluster, tmp_path: Path) -> None:
    job = idle_cluster.submit(tmp_path, "planned-late", send=False)
    with idle_cluster.connection("planner") as planner:
        claimed = planner.execute(
            query("planner.claim"),
            {"job": str(job.id), "node": "planner@x", "lease": 60, "count": True, "limit": 5},
        ).fetchone()
        assert claimed is not None
        planner.commit()
        planner.execute(
            "INSERT INTO shards (job_id, number, documents, bytes) VALUES (%s, 1, 1, 1)", (job.id,)
        )
        assert change(idle_cluster, "cancel", job).state == "cancelled"
        planner.execute("CREATE TEMPORARY TABLE planned (id bigint) ON COMMIT DROP")
        values = {"job": str(job.id), "fence": claimed[1], "listed": 1}
        assert planner.execute(query("planner.planned"), values).rowcount == 0
        assert planner.execute(query("planner.renew"), values | {"lease": 60}).rowcount == 0
        planner.rollback()
    assert idle_cluster.rows("SELECT FROM shards WHERE job_id = %s", str(job.id)) == []


def test_a_paused_job_is_neither_started_nor_planned_nor_claimed(bench: Bench, tmp_path: Path) -> None:
    cluster = bench.cluster
    with bench.worker() as worker:
        with cluster.connection() as operator:
            jobs.pause(operator, bench.job)
        assert bench.claim(worker, "a:0") is None
        with connect(bench.settings, autocommit=True) as connection:
            given = connection.execute(query("scheduler.hand_out"), {"window": 99}).fetchall()
            assert bench.job not in [job for _, job in given]
        waiting = cluster.submit(tmp_path, f"{bench.name[:20]}-waits", send=False)
        change(cluster, "pause", waiting)
        bench.job, kept = str(waiting.id), bench.job
        start(bench)
        assert cluster.get(waiting).state == "queued"
        values = {"job": str(waiting.id), "node": "planner@x", "lease": 60, "count": True, "limit": 5}
        with cluster.connection("planner") as planner:
            assert planner.execute(query("planner.claim"), values).fetchone() is None
        change(cluster, "resume", waiting)
        start(bench)
        assert cluster.get(waiting).state == "planning"
        change(cluster, "pause", waiting)
        with connect(bench.settings, autocommit=True) as connection:
            found = connection.execute(query("scheduler.unplanned"), {"grace": 0}).fetchall()
            assert str(waiting.id) not in [job for job, *_ in found]
        change(cluster, "cancel", waiting)
        bench.job = kept
        with cluster.connection() as operator:
            jobs.resume(operator, bench.job)
        assert bench.claim(worker, "a:0") is not None


def test_a_claim_in_the_moment_of_a_pause_leaves_the_shard(bench: Bench) -> None:
    with bench.worker() as worker, bench.cluster.connection() as operator:
        with operator.transaction():
            operator.execute(query("jobs.pause"), {"job": bench.job})
            operator.execute(query("jobs.pause_shards"), {"job": bench.job})
            assert bench.claim(worker, "a:0") is None, "the job is being changed"
        assert bench.claim(worker, "a:0") is None, "it is paused"
