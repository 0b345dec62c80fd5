"""What a job survives. Each test takes a part away in the middle of one, and the job completes all the same.

Tests that take a slot away are followed by others, so that it loads its model again while those run.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from cluster import Cluster
from documents import write
from services import PATIENCE, wait_for

from semantik import jobs
from semantik.exceptions import BrokerUnavailable


def test_child_killed_in_the_middle_of_a_shard(cluster: Cluster, tmp_path: Path) -> None:
    write(tmp_path / "docs", 60)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "killed")
        shard, slot = cluster.wait_running(job)
        os.kill(cluster.child(f"worker{slot[-1]}"), signal.SIGKILL)
        wait_for(
            lambda: cluster.rows("SELECT crashes FROM shards WHERE id = %s", shard) == [(1,)],
            what="the crash to be counted",
        )
    assert cluster.finish(job).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 60}
    assert cluster.rows("SELECT crashes, expiries FROM shards WHERE id = %s", shard) == [(1, 0)]


def test_redis_flushed_in_the_middle(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    write(tmp_path / "docs", 100)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "flushed")
        cluster.wait_running(job)
        cluster.services.redis().flushall()
    done = cluster.finish(job)
    assert done.state == "completed"
    assert cluster.outcomes(job) == {"embedded": 100}
    result = cluster.app.AsyncResult(str(job.id)).get(timeout=10 * PATIENCE)
    assert result["documents_done"] == 100


def test_redis_down_at_submit_and_back(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    write(tmp_path / "docs", 5)
    cluster.services.stop("redis", signal.SIGKILL)
    job = cluster.submit(tmp_path / "docs", "down", send=False)
    with pytest.raises(BrokerUnavailable):
        jobs.send(cluster.app, job.id)
    time.sleep(2)
    cluster.services.start_redis()
    assert cluster.finish(job).state == "completed"


def test_redis_killed_in_the_middle(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    write(tmp_path / "docs", 60)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "restarted")
        cluster.wait_running(job)
        cluster.services.stop("redis", signal.SIGKILL)
        time.sleep(2)
        cluster.services.start_redis()
    assert cluster.finish(job).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 60}


def test_worker_killed_whole_in_the_middle_of_a_shard(cluster: Cluster, tmp_path: Path) -> None:
    write(tmp_path / "docs", 60)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "gone")
        shard, slot = cluster.wait_running(job)
        number = int(slot[-1])
        cluster.stop(f"worker{number}", signal.SIGKILL)
    # The other slot does it all, before the killed one is back.
    assert cluster.finish(job).state == "completed"
    cluster.start_worker(number)
    assert cluster.outcomes(job) == {"embedded": 60}
    assert cluster.rows("SELECT crashes, expiries FROM shards WHERE id = %s", shard) == [(0, 1)]


def test_postgresql_restarted_in_the_middle(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    write(tmp_path / "docs", 60)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "database")
        cluster.wait_running(job)
        cluster.services.stop("postgres", signal.SIGINT)
        time.sleep(2)
        cluster.services.start_postgres()
    assert cluster.finish(job).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 60}
    assert cluster.rows("SELECT sum(crashes) FROM shards WHERE job_id = %s", str(job.id)) == [(0,)]


def test_planner_killed_in_the_middle_of_planning(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    write(tmp_path / "docs", 40)
    parent = cluster.processes["planner"].pid
    os.killpg(parent, signal.SIGSTOP)
    job = cluster.submit(tmp_path / "docs", "planned")
    with cluster.connection("planner") as connection:
        # A planner that claimed the job and died.
        connection.execute(
            "UPDATE jobs SET state = 'planning', fence = fence + 1, lease_until = now() + interval '1 s', "
            "planner = 'planner@elsewhere', plan_attempts = 1 WHERE id = %s",
            (str(job.id),),
        )
    os.killpg(parent, signal.SIGCONT)
    assert cluster.finish(job).state == "completed"
    assert cluster.rows("SELECT plan_attempts, planner FROM jobs WHERE id = %s", str(job.id)) == [
        (2, "planner@here")
    ]


def test_worker_frozen_past_its_lease_and_woken(cluster: Cluster, tmp_path: Path) -> None:
    write(tmp_path / "docs", 60)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "frozen")
        shard, slot = cluster.wait_running(job)
        group = cluster.processes[f"worker{slot[-1]}"].pid
        os.killpg(group, signal.SIGSTOP)
    assert cluster.finish(job).state == "completed"
    os.killpg(group, signal.SIGCONT)
    assert cluster.outcomes(job) == {"embedded": 60}
    ((expiries, holder),) = cluster.rows("SELECT expiries, slot FROM shards WHERE id = %s", shard)
    assert expiries == 1 and holder != slot
    log = cluster.log(f"worker{slot[-1]}")
    wait_for(
        lambda: f"left job={job.id} shard={shard}" in log.read_text(),
        what="the woken worker to leave the shard",
    )
    assert f"commit refused job={job.id} shard={shard}" in log.read_text()
    cluster.check_collection("frozen")


def test_worker_stopped_gives_its_shard_back(cluster: Cluster, tmp_path: Path) -> None:
    # Long enough that no shard is through within the drain time.
    write(tmp_path / "docs", 40, words=900)
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "drained")
        shard, slot = cluster.wait_running(job)
        number = int(slot[-1])
        assert cluster.stop(f"worker{number}") == 0
        assert cluster.rows("SELECT state FROM slots WHERE slot = %s", slot) == [("stopped",)]
    assert cluster.finish(job).state == "completed"
    cluster.start_worker(number)
    assert cluster.outcomes(job) == {"embedded": 40}
    assert cluster.rows("SELECT attempt, crashes, expiries FROM shards WHERE id = %s", shard) == [(2, 0, 0)]
    assert (
        f"given back: the service stops job={job.id} shard={shard}"
        in cluster.log(f"worker{number}").read_text()
    )


def test_a_device_without_memory_gives_the_shard_back_and_blames_nobody(
    cluster: Cluster, tmp_path: Path
) -> None:
    # Both slots have their model: one that loads it would meet the full device in its probe.
    write(tmp_path / "docs", 40)
    full = cluster.directory / "full"
    full.touch()
    job = cluster.finish(cluster.submit(tmp_path / "docs", "full"))
    assert job.state == "completed"
    assert not full.exists(), "a batch met it"
    assert cluster.outcomes(job) == {"embedded": 40}
    assert cluster.rows("SELECT sum(crashes), sum(expiries) FROM shards WHERE job_id = %s", job.id) == [
        (0, 0)
    ]
    logs = [cluster.log(name).read_text() for name in ("worker0", "worker1")]
    assert sum(f"given back job={job.id}" in log and "no memory for one text" in log for log in logs) == 1


def test_scheduler_killed_and_its_second_takes_over(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    write(tmp_path / "docs", 60)
    cluster.start_scheduler("second")
    wait_for(
        lambda: "another scheduler works" in cluster.log("second").read_text(), what="the second to wait"
    )
    with cluster.slowed():
        job = cluster.submit(tmp_path / "docs", "scheduled")
        cluster.wait_running(job)
        cluster.stop("scheduler", signal.SIGKILL)
    assert cluster.finish(job).state == "completed"
    assert "semantik.scheduler: working" in cluster.log("second").read_text()
    cluster.start_scheduler()
    assert cluster.stop("second") == 0


def test_scheduler_frozen_and_its_second_takes_over(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    write(tmp_path / "docs", 60)
    frozen = cluster.processes["scheduler"].pid
    cluster.start_scheduler("third")
    wait_for(lambda: "another scheduler works" in cluster.log("third").read_text(), what="the third to wait")
    os.killpg(frozen, signal.SIGSTOP)
    # Nobody but a scheduler sends its message and hands its shards out.
    job = cluster.submit(tmp_path / "docs", "scheduler-frozen", send=False)
    assert cluster.finish(job).state == "completed"
    text = cluster.log("third").read_text()
    assert text.count("ended the session of a scheduler that is frozen") == 1
    assert "semantik.scheduler: working" in text
    os.killpg(frozen, signal.SIGCONT)
    wait_for(
        lambda: cluster.log("scheduler").read_text().rstrip().endswith("another scheduler works, waiting"),
        what="the woken one to wait in its turn",
    )
    assert cluster.stop("third") == 0
    assert cluster.processes["scheduler"].poll() is None


def test_a_model_that_cannot_be_loaded_ends_the_worker_with_a_reason(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.start_worker(9, SEMANTIK_MODEL_DIR=str(tmp_path))
    process = cluster.processes.pop("worker9")
    assert process.wait(40) == 78
    text = cluster.log("worker9").read_text()
    assert "cannot start reason=" in text and "modules.json" in text
    assert any(state.startswith("STATUS=cannot start") for state in cluster.told("worker9"))


def test_poison_is_quarantined_and_the_rest_embedded(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    write(tmp_path / "docs", 30)
    (tmp_path / "docs" / "poison.txt").write_text("A glass of strychnine, please.\n", encoding="utf-8")
    job = cluster.finish(cluster.submit(tmp_path / "docs", "poison"), seconds=180)
    assert job.state == "completed_with_errors"
    assert cluster.outcomes(job) == {"embedded": 30, "failed": 1}
    with cluster.connection() as connection:
        (failure,) = jobs.failures(connection, job.id)
    assert failure.uri.endswith("/poison.txt")
    assert failure.error.startswith("quarantined: its worker crashed 3 times")
    logs = [cluster.log(name).read_text() for name in ("worker0", "worker1")]
    assert sum(log.count(f"crashed job={job.id}") for log in logs) == 3
