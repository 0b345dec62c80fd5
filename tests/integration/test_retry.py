"""Failed documents of a job that has ended are tried again, in a running cluster and without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench import Bench
from cluster import Cluster
from command import ask, run
from documents import write
from services import PATIENCE, wait_for
from steering import change, events, fail, failures, result, retry, shards_of, start

from semantik import jobs
from semantik.database import connect, query
from semantik.exceptions import JobFailed, NotFound, Refused

BROKEN = b"%PDF-1.7 nothing of the kind"


def test_failed_documents_are_tried_again_all_or_one(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    folder = tmp_path / "docs"
    write(folder, 4)
    one, two = folder / "one.txt", folder / "two.txt"
    for path in (one, two):
        path.write_bytes(BROKEN)
    job = cluster.finish(cluster.submit(folder, "retried"))
    assert (job.state, set(failures(cluster, job))) == ("completed_with_errors", {str(one), str(two)})
    assert cluster.app.AsyncResult(str(job.id)).get(timeout=10 * PATIENCE)["failed"] == 2

    one.write_text("Readable by now.\n", encoding="utf-8")
    with pytest.raises(NotFound, match="no failed document"):
        retry(cluster, job, str(folder / "document-0000.txt"))
    assert cluster.get(job).state == "completed_with_errors", "a refused retry changes nothing"
    with events(cluster) as flower, cluster.slowed():
        again = retry(cluster, job)
        assert (again.state, again.planned, again.error, again.finished_at) == ("queued", True, None, None)
        assert again.documents_total - again.documents_done == 2
        wait_for(lambda: result(cluster, job)[0] == "PROGRESS", what="the earlier result to go")
        wait_for(
            lambda: (task := flower.tasks.get(str(job.id))) and task.state == "RETRY",
            what="Flower to hear of it",
        )
    done = cluster.finish(job)
    assert done.state == "completed_with_errors"
    assert cluster.outcomes(job) == {"embedded": 5, "failed": 1}
    assert failures(cluster, job).keys() == {str(two)}
    wait_for(lambda: result(cluster, job)[0] == "SUCCESS", what="the new result")
    assert result(cluster, job)[1]["failed"] == 1

    two.write_text("This one, too.\n", encoding="utf-8")
    retry(cluster, job, str(two))
    assert cluster.finish(job).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 6}
    wait_for(lambda: result(cluster, job)[1]["failed"] == 0, what="the last result")
    with pytest.raises(Refused, match="nothing to retry"):
        retry(cluster, job)
    ((documents, attempts),) = cluster.rows(
        "SELECT sum(documents), max(attempt) FROM shards WHERE job_id = %s", str(job.id)
    )
    assert (documents, attempts) == (6 + 2 + 1, 1), "what was embedded is not embedded again"


def test_a_job_that_waits_for_its_retry_lets_the_active_one_end(
    half_cluster: Cluster, tmp_path: Path
) -> None:
    cluster = half_cluster
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "late.txt").write_bytes(BROKEN)
    write(tmp_path / "second", 40)
    first = cluster.finish(cluster.submit(tmp_path / "first", "waiting"))
    assert first.state == "failed"
    with pytest.raises(JobFailed, match="none of 1 documents"):
        cluster.app.AsyncResult(str(first.id)).get(timeout=10 * PATIENCE)
    (tmp_path / "first" / "late.txt").write_text("Here I am.\n", encoding="utf-8")
    with cluster.slowed():
        second = cluster.submit(tmp_path / "second", "waiting")
        cluster.wait_running(second)
        with pytest.raises(Refused, match="has not ended: it is running"):
            retry(cluster, second)
        retry(cluster, first)
        wait_for(lambda: result(cluster, first)[0] == "PROGRESS", what="the failure to go")
        assert cluster.get(first).state == "queued"
        assert cluster.get(second).state == "running"
    ended = cluster.finish(second), cluster.finish(first)
    assert [job.state for job in ended] == ["completed", "completed"], ended
    assert ended[0].finished_at and ended[1].started_at and ended[0].finished_at <= ended[1].started_at
    said = cluster.app.AsyncResult(str(first.id)).get(timeout=10 * PATIENCE)
    assert (said["state"], said["failed"]) == ("completed", 0)


def test_a_job_that_failed_before_its_plan_is_planned_anew(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    folder = tmp_path / "late"
    job = cluster.finish(cluster.submit(folder, "unplanned"))
    assert job.state == "failed" and job.error and "does not exist" in job.error
    with pytest.raises(Refused, match="before it listed documents"):
        retry(cluster, job, str(folder / "x.txt"))
    write(folder, 3)
    shown = run(cluster, "show", str(job.id))
    assert f"semantik retry {str(job.id)[:8]}   tries it again" in shown.stdout
    said = ask(cluster, "retry", str(job.id))
    assert (said["job"]["state"], said["sent"]) == ("queued", True)
    assert cluster.finish(job).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 3}
    assert cluster.rows("SELECT plan_attempts FROM jobs WHERE id = %s", str(job.id)) == [(1,)]


def test_a_quarantined_document_has_three_attempts_again(half_cluster: Cluster, tmp_path: Path) -> None:
    cluster = half_cluster
    folder = tmp_path / "docs"
    write(folder, 6)
    poison = folder / "poison.txt"
    poison.write_text("A glass of strychnine, please.\n", encoding="utf-8")
    job = cluster.finish(cluster.submit(folder, "antidote"), seconds=180)
    assert failures(cluster, job)[str(poison)].startswith("quarantined: its worker crashed 3 times")
    again = cluster.submit(folder, "antidote")
    wait_for(lambda: cluster.get(again).planned, what="its plan")
    assert cluster.rows("SELECT documents FROM shards WHERE job_id = %s", str(again.id)) == [(1,)], (
        "submitted again, it is alone from the start"
    )
    with cluster.connection() as connection:
        jobs.cancel(connection, again.id)
    retry(cluster, job, str(poison))
    job = cluster.finish(job, seconds=180)
    assert job.state == "completed_with_errors"
    assert failures(cluster, job)[str(poison)].startswith("quarantined: its worker crashed 3 times")
    ((documents, attempt, crashes, state),) = cluster.rows(
        "SELECT documents, attempt, crashes, state FROM shards WHERE job_id = %s ORDER BY id DESC LIMIT 1",
        str(job.id),
    )
    assert (documents, attempt, crashes, state) == (1, 3, 3, "failed")
    poison.write_text("A glass of milk, please.\n", encoding="utf-8")
    retry(cluster, job)
    assert cluster.finish(job, seconds=120).state == "completed"
    assert cluster.outcomes(job) == {"embedded": 7}


def test_with_redis_down_a_retry_is_recorded_and_starts_when_it_is_back(
    half_cluster: Cluster, tmp_path: Path
) -> None:
    cluster = half_cluster
    folder = tmp_path / "later"
    job = cluster.finish(cluster.submit(folder, "later-retry"))
    assert job.state == "failed"
    write(folder, 2)
    cluster.services.stop("redis")
    try:
        result = run(cluster, "retry", str(job.id), "--json")
    finally:
        cluster.services.start_redis()
    assert result.returncode == 0
    assert result.stderr.startswith("semantik: warning: Redis cannot be reached")
    assert json.loads(result.stdout)["sent"] is False
    assert cluster.finish(job).state == "completed"


def test_quarantined_documents_come_alone_and_the_others_together(
    idle_cluster: Cluster, tmp_path: Path
) -> None:
    bench = Bench(idle_cluster, tmp_path / "together", 50)
    with idle_cluster.superuser() as connection:
        connection.execute("UPDATE shards SET bytes = 1000 WHERE id = %s", (bench.shard,))
    reasons = ["quarantined: its worker crashed 3 times", "given up: the lease of its shard ran out 5 times"]
    reasons += ["broken"] * 45
    fail(bench, *reasons)
    job = retry(idle_cluster, bench.job)  # 20 documents in a shard at most
    assert (job.state, job.planned, job.documents_done) == ("queued", True, 3)
    assert sorted(documents for _, _, documents, _ in shards_of(bench)) == [1, 1, 5, 20, 20]
    assert [number for number, *_ in shards_of(bench)] == [2, 3, 4, 5, 6]
    start(bench)
    assert idle_cluster.rows("SELECT state, fence FROM jobs WHERE id = %s", bench.job) == [("running", 2)]


def test_documents_that_another_job_removed_meanwhile_end_as_removed(bench: Bench) -> None:
    fail(bench, "broken", "broken", "quarantined: its worker crashed 3 times")
    retry(bench.cluster, bench.job)
    with bench.cluster.superuser() as connection:
        connection.execute("DELETE FROM documents WHERE uri ~ '/[02].txt$' AND collection_id = "
                           "(SELECT collection_id FROM jobs WHERE id = %s)", (bench.job,))  # fmt: skip
    start(bench)
    outcomes = bench.cluster.rows(
        "SELECT outcome, shard_id IS NULL FROM job_documents WHERE job_id = %s ORDER BY uri", bench.job
    )
    assert outcomes == [("removed", True), (None, False), ("removed", True)]
    assert sorted(row[1:3] for row in shards_of(bench)) == [("done", 0), ("pending", 1)]


def test_documents_that_have_left_the_collection_keep_their_failure(bench: Bench) -> None:
    fail(bench, "broken", "broken")
    gone, here = (
        uri for (uri,) in bench.cluster.rows(
            "SELECT uri FROM job_documents WHERE job_id = %s AND outcome = 'failed' ORDER BY uri", bench.job
        )
    )  # fmt: skip
    with bench.cluster.superuser() as connection:
        connection.execute("DELETE FROM documents WHERE uri = %s", (gone,))
    with pytest.raises(Refused, match="has left collection"):
        retry(bench.cluster, bench.job, here, gone)
    job = retry(bench.cluster, bench.job)
    assert job.documents_total - job.documents_done == 1
    assert failures(bench.cluster, job).keys() == {gone}
    change(bench.cluster, "cancel", job)


def test_a_retry_with_nothing_left_changes_nothing(bench: Bench) -> None:
    fail(bench, "broken")
    with bench.cluster.superuser() as connection:
        connection.execute("DELETE FROM documents WHERE uri LIKE %s", (f"%/{bench.name}/%",))
    ((before,),) = bench.cluster.rows("SELECT to_jsonb(j) FROM jobs j WHERE id = %s", bench.job)
    with pytest.raises(Refused, match=r"no failed document of job .* is still in collection"):
        retry(bench.cluster, bench.job)
    assert bench.cluster.rows("SELECT to_jsonb(j) FROM jobs j WHERE id = %s", bench.job) == [(before,)]


def test_a_result_of_the_run_before_is_not_taken_for_the_one_after(bench: Bench) -> None:
    fail(bench, "broken")
    with connect(bench.settings, autocommit=True) as connection:
        (ended,) = [
            row for row in connection.execute(query("scheduler.unreported")).fetchall() if row[0] == bench.job
        ]
        retry(bench.cluster, bench.job)  # while the scheduler reports the end before
        late = connection.execute(query("scheduler.reported"), {"job": bench.job, "fence": ended[-1]})
        assert late.rowcount == 0
        assert bench.job in [job for job, _ in connection.execute(query("scheduler.active")).fetchall()]
    with bench.cluster.connection() as operator:
        jobs.cancel(operator, bench.job)
