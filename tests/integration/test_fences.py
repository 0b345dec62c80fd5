"""Claims, leases and fences, against a real PostgreSQL and without any worker."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest
from bench import Bench
from cluster import Cluster
from command import run
from services import Services, wait_for

from semantik import jobs, shards
from semantik.database import connect, passes, query
from semantik.exceptions import DatabaseUnavailable, Refused
from semantik.shards import ShardLease


def test_of_two_claims_one_holds(bench: Bench) -> None:
    with bench.worker() as one, bench.worker() as two:
        held = bench.claim(one, "a:0")
        assert held is not None
        assert (held.fence, held.attempt, held.documents) == (1, 1, 3)
        assert bench.claim(two, "b:0") is None, "a live lease of another slot is left alone"
        bench.expire()
        assert bench.claim(two, "b:0") is None, "an expired lease is the reaper's to give"
        assert bench.row("state, fence, slot") == ("running", 1, "a:0")


def test_a_slot_supersedes_its_own_lease(bench: Bench) -> None:
    with bench.worker() as one, bench.worker() as two:
        first = bench.claim(one, "a:0")
        one.execute("SELECT 1")  # a transaction is open, as in the middle of a shard
        second = bench.claim(two, "a:0")
        assert first and second
        assert second.fence == first.fence + 1
        with pytest.raises(Exception, match=r"terminating|closed"):
            one.execute("SELECT 1")


def test_what_comes_back_says_why_until_it_is_done(bench: Bench) -> None:
    words = "1 shard came back and will be tried again:\n  1 x cuda has no memory for one text\n"
    with bench.worker() as worker:
        held = bench.claim(worker, "a:0")
        assert held is not None
        assert shards.release(worker, held.shard, held.fence, "cuda has no memory for one text")
        assert words in run(bench.cluster, "show", bench.job).stdout
        held = bench.claim(worker, "a:0")
        assert held is not None
        assert shards.release(worker, held.shard, held.fence)
        assert words in run(bench.cluster, "show", bench.job).stdout, "a stop has no reason of its own"
        held = bench.claim(worker, "a:0")
        assert held is not None
        assert bench.done(worker, held) == 1
        worker.commit()
    assert "came back" not in run(bench.cluster, "show", bench.job).stdout


def test_a_late_commit_bounces_off_the_fence(bench: Bench) -> None:
    with bench.worker() as late, bench.worker() as next_one:
        old = bench.claim(late, "a:0")
        assert old is not None
        with bench.cluster.superuser() as connection:
            # As if the reaper could not end the session: the fence alone must hold.
            connection.execute("UPDATE shards SET backend_start = now() WHERE id = %s", (bench.shard,))
        bench.expire()
        bench.reap()
        assert bench.row("state, fence, expiries, crashes") == ("pending", 2, 1, 0)
        new = bench.claim(next_one, "b:0")
        assert new is not None
        assert new.fence == 3
        assert not ShardLease(old, 60.0).renew(late)
        late.commit()
        assert bench.done(late, old) == 0
        late.rollback()
        assert not shards.release(late, old.shard, old.fence)
        assert shards.crashed(late, old.shard, old.fence, [], limit=2, reason="late") is None
        assert bench.done(next_one, new) == 1


def test_the_reaper_ends_the_session_of_a_frozen_worker(bench: Bench) -> None:
    with bench.worker() as frozen, bench.worker() as next_one:
        held = bench.claim(frozen, "a:0", lease=60.0)
        assert held is not None
        assert bench.done(frozen, held) == 1  # not committed: the row is locked, as in a commit that froze
        bench.cluster.rows("SELECT 1")
        # The lease as others see it, made to run out without waiting for the locked row.
        with pytest.raises(Exception, match="lock timeout"), bench.cluster.superuser() as connection:
            connection.execute("SET lock_timeout = '200ms'")
            connection.execute("UPDATE shards SET lease_until = now() WHERE id = %s", (bench.shard,))
        frozen.rollback()
        short = bench.claim(frozen, "a:0", lease=0.5)
        assert short is not None
        assert bench.done(frozen, short) == 1
        wait_for(lambda: bench.row("lease_until < now()") == (True,), what="the lease to run out")
        bench.reap()
        assert bench.row("state, expiries") == ("pending", 1)
        with pytest.raises(Exception, match=r"terminating|closed"):
            frozen.commit()
        assert bench.claim(next_one, "b:0") is not None


def test_a_worker_that_freezes_in_its_claim_holds_nothing_for_long(bench: Bench) -> None:
    hasty = bench.cluster.settings("worker", SEMANTIK_LEASE_SECONDS="1", SEMANTIK_RENEW_SECONDS="0.3")
    values = {"shard": bench.shard, "slot": "a:0", "lease": 60.0, "model_revision": hasty.model_revision}
    with connect(hasty) as frozen, bench.worker() as next_one:
        assert frozen.execute(query("shards.claim"), values).rowcount == 1  # and no commit
        next_one.execute("SET lock_timeout = '10s'")
        assert bench.claim(next_one, "b:0") is not None, "it waited for the frozen session to be ended"
        with pytest.raises(psycopg.Error) as refused:
            frozen.commit()
        assert passes(refused.value), "the worker that wakes begins again"


def test_leases_that_only_run_out_set_documents_apart_and_fail_none_but_the_one_that_is_alone(
    bench: Bench,
) -> None:
    limit = bench.settings.expiry_limit
    whole = bench.shard
    for expiry in range(1, limit + 1):
        run_out(bench)
        apart = expiry == limit
        assert bench.row("state, documents, expiries, crashes") == (
            "done" if apart else "pending", 0 if apart else 3, expiry, 0,
        )  # fmt: skip
    parts = bench.cluster.rows(
        "SELECT s.id, s.state, s.documents, s.expiries, count(*), count(jd.outcome) FROM shards s "
        "JOIN job_documents jd ON jd.shard_id = s.id WHERE s.job_id = %s AND s.id <> %s "
        "GROUP BY s.id ORDER BY s.number", bench.job, whole,
    )  # fmt: skip
    assert [part[1:] for part in parts] == [("pending", 1, 0, 1, 0)] * 3
    bench.shard = parts[1][0]
    for _ in range(limit):
        run_out(bench)
    assert bench.row("state, expiries, crashes") == ("failed", limit, 0)
    outcomes = bench.cluster.rows(
        "SELECT shard_id, error FROM job_documents WHERE job_id = %s AND outcome IS NOT NULL", bench.job
    )
    assert [shard for shard, _ in outcomes] == [bench.shard]
    assert f"ran out {limit} times" in outcomes[0][1]


def run_out(bench: Bench) -> None:
    """Claim the shard, lose the session, and have the lease taken back."""
    with bench.worker() as worker:
        assert bench.claim(worker, "a:0") is not None
    bench.expire()
    bench.reap()


def test_crashes_set_the_documents_in_flight_apart(bench: Bench) -> None:
    keys = [key for (key,) in bench.cluster.rows(
        "SELECT document_id FROM job_documents WHERE shard_id = %s ORDER BY 1", bench.shard
    )]  # fmt: skip
    with bench.worker() as worker:
        for attempt in (1, 2):
            held = bench.claim(worker, "a:0")
            assert held is not None and held.attempt == attempt
            shards.crashed(worker, bench.shard, held.fence, [keys[1]], limit=2, reason="SIGSEGV")
        assert bench.row("state, documents, crashes") == ("pending", 2, 0)
        ((apart, crashes),) = bench.cluster.rows(
            "SELECT s.id, s.crashes FROM shards s JOIN job_documents USING (job_id) "
            "WHERE document_id = %s AND shard_id = s.id", keys[1],
        )  # fmt: skip
        assert apart != bench.shard and crashes == 2
        bench.shard = apart
        held = bench.claim(worker, "a:0")
        assert held is not None
        verdict = shards.crashed(worker, apart, held.fence, [], limit=2, reason="SIGSEGV")
        assert verdict == "quarantined"
    ((outcome, error),) = bench.cluster.rows(
        "SELECT outcome, error FROM job_documents WHERE document_id = %s", keys[1]
    )
    assert outcome == "failed" and error.startswith("quarantined: its worker crashed 3 times")


def test_cancel_raises_the_fences(bench: Bench) -> None:
    with bench.worker() as worker:
        held = bench.claim(worker, "a:0")
        assert held is not None
        with bench.cluster.connection() as operator:
            jobs.cancel(operator, bench.job)
        assert bench.row("state, fence") == ("cancelled", 2)
        assert bench.done(worker, held) == 0
        worker.rollback()
        assert bench.claim(worker, "a:0") is None
        assert jobs.close(worker, bench.job) is None


def test_a_collection_of_another_model_is_refused_and_leaves_no_job(
    idle_cluster: Cluster, tmp_path: Path
) -> None:
    with idle_cluster.connection() as operator:
        jobs.submit(operator, idle_cluster.settings(), str(tmp_path), "modelled")
        other = idle_cluster.settings(SEMANTIK_MODEL_REVISION="0" * 64)
        with pytest.raises(Refused, match="choose another collection"):
            jobs.submit(operator, other, str(tmp_path), "modelled")
        with pytest.raises(Refused, match="no name for a collection"):
            jobs.submit(operator, idle_cluster.settings(), str(tmp_path), "No Name")
    ((count,),) = idle_cluster.rows(
        "SELECT count(*) FROM jobs j JOIN collections c ON c.id = j.collection_id WHERE c.name = 'modelled'"
    )
    assert count == 1


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("worker", "INSERT INTO jobs (collection_id, uri) SELECT id, '/x' FROM collections LIMIT 1"),
        ("worker", "SELECT create_collection('mine', 'm', 'r', 3, 10, 0)"),
        ("worker", "DELETE FROM shards"),
        ("planner", "UPDATE shards SET state = 'done'"),
        ("scheduler", "INSERT INTO slots (slot, state) VALUES ('x:0', 'idle')"),
        ("operator", "UPDATE documents SET chunks = 0"),
        ("operator", "DELETE FROM jobs"),
        ("operator", "DELETE FROM shards"),
        (
            "operator",
            "INSERT INTO shards (job_id, number, documents, bytes, attempt) SELECT id, 9, 1, 1, 1 FROM jobs",
        ),
        ("operator", "INSERT INTO job_documents (job_id, document_id, uri) SELECT id, 1, '/x' FROM jobs"),
        ("operator", "UPDATE job_documents SET uri = '/x'"),
        ("worker", "UPDATE jobs SET paused = false"),
        ("operator", "CREATE TABLE semantik.mine (id int)"),
    ],
)
def test_each_role_may_do_its_own_part_alone(idle_cluster: Cluster, role: str, statement: str) -> None:
    with idle_cluster.connection(role) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


def test_an_unreachable_database_is_one_sentence(services: Services, idle_cluster: Cluster) -> None:
    away = idle_cluster.settings(SEMANTIK_DATABASE_URL="postgresql://semantik_operator@127.0.0.1:1/semantik")
    with pytest.raises(DatabaseUnavailable, match="semantik check"):
        connect(away)
