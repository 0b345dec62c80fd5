"""Which errors pass by themselves, retries, and the SQL files."""

from __future__ import annotations

import re
from pathlib import Path

import psycopg
import pytest

from semantik import database, migrate
from semantik.exceptions import DatabaseUnavailable


@pytest.mark.parametrize(
    "error",
    [
        DatabaseUnavailable("away"),
        psycopg.OperationalError("server closed the connection unexpectedly"),
        psycopg.InterfaceError("the connection is closed"),
        psycopg.errors.AdminShutdown(),
        psycopg.errors.CannotConnectNow(),
        psycopg.errors.DiskFull(),
        psycopg.errors.TooManyConnections(),
        psycopg.errors.DeadlockDetected(),
        psycopg.errors.IdleInTransactionSessionTimeout(),
        psycopg.errors.ReadOnlySqlTransaction(),
    ],
)
def test_errors_that_pass(error: Exception) -> None:
    assert database.passes(error)


@pytest.mark.parametrize(
    "error",
    [
        psycopg.errors.UniqueViolation(),
        psycopg.errors.InsufficientPrivilege(),
        psycopg.errors.UndefinedTable(),
        psycopg.DataError("a NUL in a text"),
        ValueError("no database error at all"),
    ],
)
def test_errors_that_a_retry_repeats(error: Exception) -> None:
    assert not database.passes(error)


def test_retry_ends_with_success_a_mistake_or_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(database.time, "sleep", slept.append)
    answers = [psycopg.OperationalError("away"), psycopg.OperationalError("away"), "there"]

    def action() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert database.retry(action, seconds=5) == "there"
    assert len(slept) == 2 and slept[1] > 0

    answers[:] = [psycopg.errors.UndefinedTable()]
    with pytest.raises(psycopg.errors.UndefinedTable):
        database.retry(action, seconds=5)
    answers[:] = [psycopg.OperationalError("away")]
    with pytest.raises(psycopg.OperationalError):
        database.retry(action, seconds=0)


def test_backoff_grows_to_its_limit() -> None:
    pauses = database.backoff(first=1.0, most=4.0)
    bounds = [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (2.0, 4.0)]
    for (least, most), pause in zip(bounds, pauses, strict=False):
        assert least <= pause <= most


def test_every_statement_asked_for_is_there_and_every_one_there_is_asked_for() -> None:
    package = Path(database.__file__).parent
    code = "\n".join(path.read_text() for path in package.rglob("*.py"))
    files = [path.stem for path in (package / "sql").glob("*.sql")]
    there = {f"{file}.{name}" for file in files for name in database._queries(file)}
    assert set(re.findall(r'query\("([\w.]+)"\)', code)) <= there
    named = set(re.findall(r'"(\w+\.\w+)"', code))
    assert there - named == set(), "statements that nothing runs"


def test_migrations_are_named_in_order_and_numbered_without_a_gap() -> None:
    names = [migration.name for migration in migrate.migrations()]
    assert [int(name.partition("_")[0]) for name in names] == list(range(1, len(names) + 1))
