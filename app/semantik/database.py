"""Connections to PostgreSQL, the SQL files, and which errors pass by themselves."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib import resources
from typing import Any, TypeVar

import psycopg

from semantik.exceptions import DatabaseUnavailable
from semantik.settings import Settings

#: Seconds for a connection to be made; a name that resolves to several addresses may take this long for each.
CONNECT_SECONDS = 5
#: Notifications on this channel wake the scheduler.
WAKE = "semantik"
#: The id of a cancelled job is the payload on this channel: workers stop within a batch.
CANCELLED = "semantik_cancelled"

#: The server's side watches too: a host without power must not hold its locks until the kernel's two hours
#: end, and a statement whose client was killed ends within seconds instead of running on for nobody.
_SESSION = " ".join(
    f"-c {setting}"
    for setting in (
        "search_path=semantik,public",
        "timezone=UTC",
        "tcp_keepalives_idle=10",
        "tcp_keepalives_interval=5",
        "tcp_keepalives_count=3",
        "tcp_user_timeout=25000",
        "client_connection_check_interval=5s",
    )
)

Connection = psycopg.Connection[tuple[Any, ...]]
T = TypeVar("T")

#: What a lost connection, a restart or a failover looks like. Everything else is a mistake that a retry
#: repeats.
_PASSING = (
    "08",  # connection exceptions
    "57P01",  # the administrator ended the session or shut down
    "57P02",  # crash of another backend
    "57P03",  # starting up or in recovery
    "57P05",  # idle session ended
    "25P03",  # idle in a transaction for too long, 25P04: the transaction took too long; both an operator's
    "25P04",  # settings, and no document's fault
    "57014",  # the administrator cancelled the statement
    "53",  # out of disk, memory or connections
    "40001",  # serialization failure
    "40P01",  # deadlock
    "55P03",  # lock not available within lock_timeout
    "58",  # an I/O error of the server's system
    "25006",  # read-only: the server is a standby that is not yet promoted
)


def connect(
    settings: Settings, *, autocommit: bool = False, application_name: str = "semantik"
) -> Connection:
    """Return a connection with the schema on its search path and time-outs that notice a dead network.

    Raises DatabaseUnavailable, with the reason on one line, when none can be made.
    """
    try:
        return psycopg.connect(
            settings.database_url,
            autocommit=autocommit,
            application_name=application_name,
            connect_timeout=CONNECT_SECONDS,
            # A peer that is gone without a word is noticed in about 25 s, below the lease.
            keepalives=1,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=25_000,
            options=f"{_SESSION} -c idle_in_transaction_session_timeout={_idle_milliseconds(settings)}",
        )
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        raise DatabaseUnavailable(
            f"PostgreSQL cannot be reached ({reason}): see 'semantik check', or on the postgresql host "
            "'systemctl status postgresql'"
        ) from error


def _idle_milliseconds(settings: Settings) -> int:
    """Return for how long a session may stand still between two statements of a transaction: as a lease.

    Nothing here does, and a process that froze there may hold locks without a lease that could run out. One
    that froze in a COPY is not idle, and the reaper's.
    """
    return int(settings.lease_seconds * 1000)


def passes(error: BaseException) -> bool:
    """Return whether `error` goes away by itself: connection lost, server restarting, disk full, deadlock."""
    if isinstance(error, DatabaseUnavailable):
        return True
    # Class 25, a standby or a session that was idle for too long, is of psycopg's InternalError.
    if not isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)):
        return False
    # libpq's own errors, such as a connection that broke, carry no SQLSTATE.
    return error.sqlstate is None or error.sqlstate.startswith(_PASSING)


def backoff(first: float = 0.2, most: float = 5.0) -> Iterator[float]:
    """Yield seconds to wait before each new attempt: doubling, with jitter so that hosts spread."""
    seconds = first
    while True:
        yield seconds * random.uniform(0.5, 1.0)  # noqa: S311 (spreads load, guards nothing)
        seconds = min(seconds * 2, most)


def retry(action: Callable[[], T], *, seconds: float) -> T:
    """Run `action` until it returns, again after errors that pass, for `seconds` at most."""
    deadline = time.monotonic() + seconds
    for pause in backoff():
        try:
            return action()
        except Exception as error:
            if not passes(error) or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
    raise AssertionError("unreachable: backoff() never ends")


_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


@cache
def _queries(file: str) -> dict[str, str]:
    text = resources.files("semantik.sql").joinpath(f"{file}.sql").read_text(encoding="utf-8")
    parts = _NAME.split(text)
    return dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))


def query(name: str) -> str:
    """Return the statement `file.name` from sql/file.sql, where `-- name: ...` stands above it."""
    file, _, statement = name.partition(".")
    return _queries(file)[statement]
