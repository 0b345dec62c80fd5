"""The state machine as the database keeps it: what is not in its tables is refused, whoever asks."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from cluster import Cluster
from services import Services

from semantik import migrate
from semantik.database import connect
from semantik.exceptions import Refused

Row = dict[str, Any]

#: A job's states; those with a plan are marked where a job may be in them without one.
JOB = (
    "queued", "queued+plan", "planning", "running", "completed", "completed_with_errors",
    "failed", "failed+plan", "cancelled", "cancelled+plan",
)  # fmt: skip
JOB_MAY = {
    ("queued", "planning"), ("queued", "failed"), ("queued", "cancelled"),
    ("queued+plan", "running"), ("queued+plan", "failed+plan"), ("queued+plan", "cancelled+plan"),
    ("planning", "running"), ("planning", "failed"), ("planning", "cancelled"),
    ("running", "completed"), ("running", "completed_with_errors"), ("running", "failed+plan"),
    ("running", "cancelled+plan"),
    ("completed_with_errors", "queued+plan"), ("failed", "queued"), ("failed+plan", "queued+plan"),
}  # fmt: skip
#: Those that a job makes without a new fence: nobody holds it, or its holder finishes.
JOB_KEEPS_FENCE = {
    ("queued", "planning"), ("queued", "failed"), ("queued", "cancelled"),
    ("queued+plan", "failed+plan"), ("queued+plan", "cancelled+plan"),
    ("planning", "running"),
    ("running", "completed"), ("running", "completed_with_errors"), ("running", "failed+plan"),
}  # fmt: skip

SHARD = ("pending", "queued", "running", "done", "failed", "cancelled")
SHARD_MAY = {
    ("pending", "queued"), ("pending", "running"), ("pending", "failed"), ("pending", "cancelled"),
    ("queued", "pending"), ("queued", "running"), ("queued", "failed"), ("queued", "cancelled"),
    ("running", "pending"), ("running", "done"), ("running", "failed"), ("running", "cancelled"),
}  # fmt: skip
SHARD_KEEPS_FENCE = {
    ("pending", "queued"), ("pending", "failed"), ("pending", "cancelled"),
    ("queued", "pending"), ("queued", "failed"), ("queued", "cancelled"),
    ("running", "done"),
}  # fmt: skip

OUTCOME = (None, "embedded", "skipped", "failed", "removed")
#: In the shard it was in, or in another: an open document may be in any, and end there.
OUTCOME_MAY = {(None, outcome, elsewhere) for outcome in OUTCOME for elsewhere in (False, True)}
OUTCOME_MAY |= {("failed", None, True)}

ENDED = ("completed", "completed_with_errors", "failed", "cancelled", "done")


def job_row(state: str) -> Row:
    """A job in `state` with all columns as they belong to it."""
    name, _, plan = state.partition("+")
    planned = bool(plan) or name in ("running", "completed", "completed_with_errors")
    ended = "2026-01-01" if name in ENDED else None
    return {"state": name, "planned": planned, "finished_at": ended, "lease_until": None, "planner": None}


def shard_row(state: str) -> Row:
    return {
        "state": state,
        "finished_at": "2026-01-01" if state in ("done", "failed", "cancelled") else None,
        "lease_until": "2026-01-01" if state == "running" else None,
        "slot": "a:0" if state == "running" else None,
    }


class Table:
    """A collection with a job, two shards and a document, of which none outlives the test."""

    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self.connection = connection
        self.collection = self.insert(
            "collections", name="transitions", model="m", model_revision="r", dim=3, chunk_tokens=0,
            chunk_overlap=0,
        )  # fmt: skip

    def insert(self, table: str, **values: Any) -> Any:
        columns, marks = ", ".join(values), ", ".join(["%s"] * len(values))
        key = "document_id" if table == "job_documents" else "id"
        row = self.connection.execute(
            f"INSERT INTO {table} ({columns}) VALUES ({marks}) RETURNING {key}", list(values.values())
        ).fetchone()
        assert row is not None
        return row[0]

    def update(self, table: str, key: Any, **values: Any) -> None:
        """Change a row, and take the change back. Raises what the database answers."""
        sets = ", ".join(f"{column} = %s" for column in values)
        column = "document_id" if table == "job_documents" else "id"
        with self.connection.transaction() as kept:
            changed = self.connection.execute(
                f"UPDATE {table} SET {sets} WHERE {column} = %s", [*values.values(), key]
            ).rowcount
            assert changed == 1
            raise psycopg.Rollback(kept)

    def may(self, table: str, key: Any, **values: Any) -> bool:
        try:
            self.update(table, key, **values)
        except psycopg.errors.CheckViolation:
            return False
        return True

    def job(self, state: str = "running", **more: Any) -> Any:
        return self.insert("jobs", collection_id=self.collection, uri="/x", **job_row(state) | more)

    def shard(self, job: Any, state: str = "pending", number: int = 1, **more: Any) -> Any:
        values = {"documents": 2, "bytes": 1, **shard_row(state), **more}
        return self.insert("shards", job_id=job, number=number, **values)

    def document(self, job: Any, shard: Any, outcome: str | None) -> Any:
        return self.insert(
            "job_documents", job_id=job, document_id=777_777_777, uri="/x", shard_id=shard, outcome=outcome,
            error="broken" if outcome == "failed" else None,
        )  # fmt: skip


@contextmanager
def opened(cluster: Cluster) -> Iterator[Table]:
    with cluster.superuser() as connection, connection.transaction() as kept:
        yield Table(connection)
        raise psycopg.Rollback(kept)


@pytest.fixture
def table(idle_cluster: Cluster) -> Iterator[Table]:
    with opened(idle_cluster) as found:
        yield found


@pytest.mark.parametrize("old", JOB)
def test_a_job_makes_the_steps_of_its_table_alone(table: Table, old: str) -> None:
    job = table.job(old, fence=3)
    for new in JOB:
        if new != old:
            may = table.may("jobs", job, **job_row(new), fence=4)
            assert may == ((old, new) in JOB_MAY), f"{old} to {new}"
            kept = table.may("jobs", job, **job_row(new), fence=3)
            assert kept == ((old, new) in JOB_KEEPS_FENCE), f"{old} to {new} under the same fence"
    assert not table.may("jobs", job, fence=2), "a fence never falls"


@pytest.mark.parametrize("old", SHARD)
def test_a_shard_makes_the_steps_of_its_table_alone(table: Table, old: str) -> None:
    shard = table.shard(table.job(), old, fence=3)
    for new in SHARD:
        if new != old:
            may = table.may("shards", shard, **shard_row(new), fence=4)
            assert may == ((old, new) in SHARD_MAY), f"{old} to {new}"
            kept = table.may("shards", shard, **shard_row(new), fence=3)
            assert kept == ((old, new) in SHARD_KEEPS_FENCE), f"{old} to {new} under the same fence"
    assert not table.may("shards", shard, fence=2), "a fence never falls"


def test_a_shard_is_done_without_being_held_only_when_nothing_is_left_in_it(table: Table) -> None:
    shard = table.shard(table.job(), "pending")
    assert table.may("shards", shard, **shard_row("done"), documents=0)
    assert not table.may("shards", shard, **shard_row("done"), documents=1)


@pytest.mark.parametrize("old", OUTCOME)
def test_a_documents_outcome_is_final_but_for_a_failure_tried_again(table: Table, old: str | None) -> None:
    job = table.job()
    first, second = table.shard(job), table.shard(job, number=2)
    document = table.document(job, first, old)
    for new, elsewhere in itertools.product(OUTCOME, (False, True)):
        if (new, elsewhere) == (old, False):
            continue
        may = table.may(
            "job_documents", document, outcome=new, error="broken" if new == "failed" else None,
            shard_id=second if elsewhere else first,
        )  # fmt: skip
        assert may == ((old, new, elsewhere) in OUTCOME_MAY), f"{old} to {new}, shard changed: {elsewhere}"


def test_leases_change_hands_under_a_new_fence_alone(table: Table) -> None:
    soon = {"lease_until": "2026-01-02"}
    free = table.job("planning", fence=3)
    assert not table.may("jobs", free, **soon, planner="a"), "a lease begins"
    assert table.may("jobs", free, **soon, planner="a", fence=4)
    table.connection.execute(
        "UPDATE jobs SET fence = 4, planner = 'a', lease_until = '2026-01-01' WHERE id = %s", (free,)
    )
    assert table.may("jobs", free, **soon), "it is renewed"
    assert table.may("jobs", free, **soon, fence=5, plan_attempts=2), "its holder begins anew"
    assert not table.may("jobs", free, **soon, plan_attempts=2), "under the old fence"
    assert not table.may("jobs", free, **soon, planner="b", fence=5), "another holds it"
    assert not table.may("jobs", free, lease_until=None), "it is taken"
    assert table.may("jobs", free, lease_until=None, fence=5)
    assert table.may("jobs", free, **job_row("running")), "its holder finishes"

    held = table.shard(free, "running", fence=3, attempt=1)
    assert table.may("shards", held, **soon), "it is renewed"
    assert table.may("shards", held, **soon, fence=4, attempt=2), "its own slot begins anew"
    assert not table.may("shards", held, **soon, attempt=2), "under the old fence"
    assert not table.may("shards", held, **soon, slot="b:0", fence=4, attempt=2), "another slot holds it"


def test_a_plan_is_made_by_planning_and_stays(table: Table) -> None:
    for state in ("queued", "planning", "failed", "cancelled"):
        job = table.job(state)
        assert not table.may("jobs", job, planned=True), state
        table.connection.execute("DELETE FROM jobs WHERE id = %s", (job,))
    for state in ("queued+plan", "running", "failed+plan", "completed"):
        job = table.job(state)
        assert not table.may("jobs", job, planned=False), state
        table.connection.execute("DELETE FROM jobs WHERE id = %s", (job,))


@pytest.mark.parametrize("state", ["pending", "queued", "running"])
def test_a_job_with_an_open_shard_does_not_complete(table: Table, state: str) -> None:
    job = table.job("running")
    table.shard(job, state)
    for end in ("completed", "completed_with_errors"):
        with pytest.raises(psycopg.errors.CheckViolation, match=f"running to {end}: some of its shards"):
            table.update("jobs", job, **job_row(end))
    assert table.may("jobs", job, **job_row("failed+plan"), fence=1)
    assert table.may("jobs", job, **job_row("cancelled+plan"), fence=1)


def test_a_refusal_names_both_states_and_the_reason(table: Table) -> None:
    job = table.job("completed")
    with pytest.raises(psycopg.errors.CheckViolation) as refused:
        table.update("jobs", job, **job_row("running"), fence=1)
    assert refused.value.diag.message_primary == f"job {job} may not go from completed to running"
    assert (refused.value.diag.table_name, refused.value.diag.constraint_name) == ("jobs", "jobs_transition")
    shard = table.shard(job, "running", fence=2)
    with pytest.raises(psycopg.errors.CheckViolation, match="from running to pending: its fence must rise"):
        table.update("shards", shard, **shard_row("pending"))
    document = table.document(job, shard, "embedded")
    with pytest.raises(
        psycopg.errors.CheckViolation, match="document 777777777 may not go from embedded to open"
    ):
        table.update("job_documents", document, outcome=None)


def test_what_is_legal_calls_no_trigger(idle_cluster: Cluster) -> None:
    triggers = idle_cluster.rows(
        "SELECT tgrelid::regclass::text, tgqual IS NOT NULL FROM pg_trigger "
        "WHERE NOT tgisinternal AND tgrelid::regclass::text IN ('jobs', 'shards', 'job_documents')"
    )
    assert {of for of, _ in triggers} == {"jobs", "shards", "job_documents"}
    assert all(conditional for _, conditional in triggers)


@pytest.fixture
def older(services: Services, idle_cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster whose database the release before has migrated."""
    name = f"older_{abs(hash(request.node.name))}"
    with pytest.MonkeyPatch.context() as patch:
        first = migrate.migrations()[:1]
        patch.setattr(migrate, "migrations", lambda: first)
        services.make_database(name)
    yield Cluster(services, idle_cluster.directory, idle_cluster.model, name)


def migrate_now(cluster: Cluster) -> list[str]:
    with connect(cluster.settings("migrate")) as connection:
        return migrate.migrate(connection)


@contextmanager
def planning(cluster: Cluster) -> Iterator[tuple[Any, psycopg.Connection[tuple[Any, ...]]]]:
    """A job whose planner, of the release before, is writing its plan."""
    with cluster.superuser() as connection, cluster.connection("planner") as planner:
        job = Table(connection).job("planning", fence=1, lease_until="2026-01-01")
        planner.execute("INSERT INTO shards (job_id, number, documents, bytes) VALUES (%s, 1, 2, 1)", (job,))
        yield job, planner


def test_a_migration_waits_for_a_planner_and_holds_up_nobody_meanwhile(
    older: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "_WAIT", "SET LOCAL lock_timeout = '300ms'")
    monkeypatch.setattr(migrate, "_PAUSE_SECONDS", 0.3)
    applied: list[str] = []
    with planning(older) as (job, planner):
        thread = threading.Thread(target=lambda: applied.extend(migrate_now(older)))
        thread.start()
        with older.connection("planner") as keeper:
            keeper.execute("SET lock_timeout = '2s'")
            for _ in range(5):
                time.sleep(0.2)
                keeper.execute("UPDATE jobs SET lease_until = now() + interval '5 s' WHERE id = %s", (job,))
                keeper.commit()
        assert applied == []
        planner.execute(
            "UPDATE jobs SET planned = true, state = 'running', lease_until = NULL WHERE id = %s", (job,)
        )
        planner.commit()
        thread.join(30)
    assert applied == [migration.name for migration in migrate.migrations()[1:]]
    assert older.rows("SELECT state, paused FROM jobs WHERE id = %s", job) == [("running", False)]


def test_a_migration_gives_up_with_a_reason(older: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migrate, "_WAIT", "SET LOCAL lock_timeout = '100ms'")
    monkeypatch.setattr(migrate, "_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(migrate, "PATIENCE_SECONDS", 0.5)
    with planning(older), pytest.raises(Refused, match="0002_states changes has been in use"):
        migrate_now(older)
    assert migrate_now(older)[0] == "0002_states"


def test_the_scheduler_of_the_release_before_still_starts_jobs(older: Cluster) -> None:
    migrate_now(older)
    with older.superuser() as connection:
        job = Table(connection).job("queued")
    with older.connection("scheduler") as scheduler:
        # Without a new fence: nobody holds it yet.
        scheduler.execute(
            "UPDATE jobs SET state = 'planning', started_at = now(), sent_at = NULL WHERE id = %s", (job,)
        )
    assert older.rows("SELECT state, fence FROM jobs WHERE id = %s", job) == [("planning", 0)]
