"""watch: a job's progress, read from the database alone, so that it is right whatever Redis forgets."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

import click

from semantik.cli.output import (
    duration,
    emit,
    json_option,
    number,
    outcome,
    plural,
    printable,
    standing,
    wants_json,
)
from semantik.exceptions import DatabaseUnavailable

if TYPE_CHECKING:
    from semantik.database import Connection
    from semantik.jobs import Progress
    from semantik.settings import Settings

POLL_SECONDS = 1.0
#: Between two lines where no terminal redraws them.
LINE_SECONDS = 5.0
RETRY_SECONDS = 3.0
#: Without any change; then a person is told what the job waits for.
STALL_SECONDS = 10.0

#: The exit status of `watch` by the state in which the job ended.
EXIT = {"completed": 0, "completed_with_errors": 3, "failed": 1, "cancelled": 1}


@click.command()
@click.argument("job")
@json_option
def watch(job: str) -> int:
    """Show a job's progress until it has ended. JOB is an id or the beginning of one.

    Exit status: 0 completed, 3 completed with failed documents, 1 failed or cancelled. Ctrl-C ends the
    watching (130), never the job. With --json, one line of JSON whenever something changed.
    """
    from semantik import jobs as records
    from semantik.database import connect
    from semantik.settings import load

    settings = load()
    with connect(settings, autocommit=True, application_name="semantik watch") as connection:
        job_id = str(records.get(connection, job).id)
    return follow(settings, job_id)


def follow(settings: Settings, job_id: str) -> int:
    """Show the job's progress until it has ended and return the exit status.

    A database that goes away is waited for: the watched job does the same.
    """
    view: View = JsonLines(job_id) if wants_json() else Bars() if redraws() else Lines()
    try:
        with view:
            last, unchanged = _poll(settings, job_id, view)
    except KeyboardInterrupt:
        click.echo(f"semantik: no longer watching; the job goes on: semantik watch {job_id[:8]}", err=True)
        return 130
    if not wants_json():
        click.echo(summary(last, unchanged))
        if last.error and not _listed_nothing(last):
            click.echo(f"reason: {printable(last.error)}")
        if last.failed:
            click.echo(f"semantik show {job_id[:8]}   lists what failed and why")
    return EXIT[last.state]


def summary(last: Progress, unchanged: int) -> str:
    """Return what became of a job that has ended; of one that ended before its listing did, the reason."""
    state = last.state.replace("_", " ")
    if _listed_nothing(last):
        return f"{state}: {printable(last.error)}" if last.error else state
    left = f", {number(unchanged)} unchanged" if unchanged else ""
    return f"{state}: {outcome(last)}{left}; {plural(last.chunks, 'chunk')}, {plural(last.tokens, 'token')}"


def _listed_nothing(progress: Progress) -> bool:
    """Return whether the job ended without a document of its own, so that counts say nothing."""
    return progress.state in ("failed", "cancelled") and not progress.documents_total


def redraws() -> bool:
    """Return whether stdout is a terminal that a bar can be redrawn on."""
    import os

    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def _poll(settings: Settings, job_id: str, view: View) -> tuple[Progress, int]:
    """Show the job until it has ended; return its last progress and the number of unchanged documents."""
    import psycopg

    from semantik import jobs as records
    from semantik.database import connect

    connection: Connection | None = None
    away = False
    last: Progress | None = None
    changed, told = time.monotonic(), ""
    try:
        while True:
            try:
                if connection is None:
                    connection = connect(settings, autocommit=True, application_name="semantik watch")
                progress = records.progress(connection, job_id)
                unchanged = records.get(connection, job_id).unchanged if progress.state in EXIT else 0
                reason = ""
                if time.monotonic() - changed > STALL_SECONDS:
                    reason = waits_for(connection, settings, job_id, progress)
            except (DatabaseUnavailable, psycopg.OperationalError, psycopg.InterfaceError) as error:
                if not away:
                    view.note(f"PostgreSQL cannot be reached, trying again ({printable(error)})")
                away, connection = True, None
                time.sleep(RETRY_SECONDS)
                continue
            if away:
                view.note("PostgreSQL is back")
                away = False
            if reason and reason != told:
                view.note(reason)
                told = reason
            if last is None or _stage(progress) != _stage(last):
                last, changed = progress, time.monotonic()
            view.show(progress)
            if progress.state in EXIT:
                return progress, unchanged
            time.sleep(POLL_SECONDS)
    finally:
        if connection is not None:
            connection.close()


def _stage(progress: Progress) -> tuple[object, ...]:
    """Return what changes while a job gets on."""
    return progress.state, progress.paused, progress.tokens


def waits_for(connection: Connection, settings: Settings, job_id: str, progress: Progress) -> str:
    """Return why nothing happens, as far as the database knows; "" where it does not."""
    from semantik import jobs as records
    from semantik.database import query

    if progress.paused:
        return f"paused: semantik resume {job_id[:8]}"
    if progress.state == "queued":
        mine = records.get(connection, job_id)
        for other in records.list_jobs(connection):
            if other.collection == mine.collection and other.state in ("planning", "running"):
                rests = " and is paused" if other.paused else ""
                return f"waiting for job {str(other.id)[:8]}, which fills the same collection{rests}"
        if not mine.planned:
            return "waiting for the planner: 'semantik check' shows whether it and Redis are there"
        return "waiting for the scheduler to give it its turn: 'semantik check' shows whether it is there"
    for name, host, age in connection.execute(query("check.heartbeats")).fetchall():
        if name == "scheduler" and age > settings.live_seconds + settings.tick_seconds:
            return f"the scheduler on {host} shows no sign of life: 'semantik check' shows why"
    live = connection.execute(query("check.working"), {"seconds": settings.live_seconds}).fetchone()
    return "no worker is live: 'semantik check' shows why" if live == (0,) else ""


class View(Protocol):
    """A way to show progress."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, progress: Progress) -> None:
        """Show the job as it is now."""

    def note(self, text: str) -> None:
        """Say something beside the progress."""


class Lines:
    """Plain lines, for logs: when the state changed at once, when only numbers did every few seconds."""

    def __init__(self) -> None:
        self._line = ""
        self._state = ("", False)
        self._at = 0.0

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()

    def show(self, progress: Progress) -> None:
        """Print a line when it says something new and the last one is old enough."""
        line, now = describe(progress), time.monotonic()
        state = progress.state, progress.paused
        if line == self._line or (state == self._state and now - self._at < LINE_SECONDS):
            return
        self._line, self._state, self._at = line, state, now
        click.echo(f"{time.strftime('%H:%M:%S')} {line}")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print `text` on stderr."""
        click.echo(f"semantik: {text}", err=True)


class JsonLines:
    """One JSON object a line, for programs."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._last: Progress | None = None

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()

    def show(self, progress: Progress) -> None:
        """Print the progress when it differs from the last line's."""
        if progress == self._last:
            return
        self._last = progress
        from dataclasses import asdict

        emit({"job_id": self._job_id, **asdict(progress)})
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print `text` on stderr, so that stdout stays JSON."""
        click.echo(f"semantik: {text}", err=True)


class Bars:
    """A bar on a terminal: documents, tokens/s and the time left."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[documents]}"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            expand=True,
        )
        self._task = self._bars.add_task("", total=None, documents="", rate="", left="")

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, progress: Progress) -> None:
        """Redraw the bar."""
        known = progress.state not in ("queued", "planning") and not _listed_nothing(progress)
        ended = progress.state in EXIT
        self._bars.update(
            self._task,
            description=standing(progress.state.replace("_", " "), progress.paused),
            # Without a total the bar only moves; a job that had nothing to do ends with a full one.
            total=max(progress.documents_total, 1) if known or ended else None,
            completed=(progress.documents_done or (1 if ended else 0)) if known else 0,
            documents=f"{number(progress.documents_done)}/{plural(progress.documents_total, 'document')}"
            if known
            else "",
            rate=f"{number(progress.tokens_per_second)} tokens/s" if progress.tokens_per_second else "",
            left=f"{duration(progress.seconds_left)} left"
            if progress.seconds_left is not None and not ended
            else "",
        )

    def note(self, text: str) -> None:
        """Print `text` above the bar."""
        self._bars.console.print(text, markup=False, highlight=False)


def describe(progress: Progress) -> str:
    """Return the job as it is now on one line."""
    state = standing(progress.state.replace("_", " "), progress.paused)
    if progress.state in ("queued", "planning") or _listed_nothing(progress):
        return state
    parts = [
        f"{number(progress.documents_done)}/{plural(progress.documents_total, 'document')}",
        plural(progress.chunks, "chunk"),
        plural(progress.tokens, "token"),
    ]
    if progress.tokens_per_second and progress.state not in EXIT:
        parts.append(f"{number(progress.tokens_per_second)} tokens/s")
    if progress.seconds_left is not None and progress.state not in EXIT:
        parts.append(f"{duration(progress.seconds_left)} left")
    return f"{state}: {', '.join(parts)}"
