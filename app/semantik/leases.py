"""Holding work: a lease in the database, renewed by a thread with a connection of its own.

The thread also tells the database that this process lives, and hears of cancelled jobs at once. It renews
only while the work advances: a process that hangs loses its lease as a dead one does.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from semantik.database import CANCELLED, Connection, backoff, connect, passes
from semantik.logs import event
from semantik.pulse import ChildPulse
from semantik.settings import Settings

log = logging.getLogger("semantik.leases")

#: Seconds the thread sleeps at most, so that new work and a stop are seen.
_GLANCE = 1.0


def stall_seconds(settings: Settings) -> float:
    """Return how long work may stand still: while two documents time out and a shard is written."""
    return 2 * settings.parse_seconds + 60


class Lease(Protocol):
    """Work that is held under a fence."""

    lost: threading.Event
    advanced_at: float

    @property
    def job_id(self) -> str:
        """The job, whose cancelling ends the lease."""
        ...

    def renew(self, connection: Connection) -> bool:
        """Extend the lease and record progress; return whether it is still held."""
        ...


@contextmanager
def database_works(lease: Lease, pulse: ChildPulse) -> Iterator[None]:
    """Count a statement's time as progress, however long it takes: over millions of rows that is minutes.

    A connection whose other end is gone breaks by its own time-outs, so this cannot last for ever.
    """
    lease.advanced_at = math.inf
    pulse.wait()
    try:
        yield
    finally:
        lease.advanced_at = time.monotonic()
        pulse.advance()


class Keeper(threading.Thread):
    """The thread. `beat` is called with its connection every `live_seconds / 3`."""

    def __init__(self, settings: Settings, beat: Callable[[Connection], None], name: str) -> None:
        super().__init__(name="keeper", daemon=True)
        self._settings = settings
        self._beat = beat
        self._application_name = name
        self._beat_due = 0.0
        self._renew_due = 0.0
        self._lease: Lease | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def hold(self, lease: Lease) -> None:
        """Renew `lease` until `release`."""
        with self._lock:
            self._lease = lease
            self._renew_due = time.monotonic() + self._settings.renew_seconds
            self._beat_due = 0.0

    def release(self) -> None:
        """Stop renewing; no renewal is under way when this returns."""
        with self._lock:
            self._lease = None
            self._beat_due = 0.0

    def nudge(self) -> None:
        """Call `beat` at the next glance: something about this process has changed."""
        self._beat_due = 0.0

    def end(self) -> None:
        """Ask the thread to end."""
        self._ended.set()

    def run(self) -> None:
        """Keep at it through outages of the database."""
        pauses = backoff()
        while not self._ended.is_set():
            try:
                with connect(
                    self._settings, autocommit=True, application_name=self._application_name
                ) as connection:
                    connection.execute(f"LISTEN {CANCELLED}")
                    self._beat_due = 0.0
                    while not self._ended.is_set():
                        self._turn(connection)
                        pauses = backoff()
            except Exception as error:
                if passes(error):
                    event(log, "database away", level=logging.WARNING, error=error)
                else:
                    job = self._lease.job_id if self._lease else None
                    event(
                        log, "the thread that keeps leases failed, and goes on", level=logging.ERROR,
                        traceback=True, job=job, error=error,
                    )  # fmt: skip
                self._ended.wait(next(pauses))

    def _turn(self, connection: Connection) -> None:
        now = time.monotonic()
        if now >= self._beat_due:
            self._beat(connection)
            self._beat_due = now + self._settings.live_seconds / 3
        with self._lock:
            lease = self._lease
            if lease is not None and now >= self._renew_due:
                self._renew(connection, lease)
                self._renew_due = now + self._settings.renew_seconds
        glance = min(_GLANCE, self._settings.renew_seconds / 2)
        for notification in connection.notifies(timeout=glance, stop_after=1):
            if lease is not None and notification.payload == lease.job_id:
                lease.lost.set()

    def _renew(self, connection: Connection, lease: Lease) -> None:
        still = time.monotonic() - lease.advanced_at
        if still > stall_seconds(self._settings):
            event(log, "not renewed: no progress", level=logging.WARNING, job=lease.job_id, seconds=still)
        elif not lease.renew(connection):
            lease.lost.set()
