"""submit, jobs and show: a job from its recording to its report."""

from __future__ import annotations

import getpass
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from semantik.cli import waits as waiting
from semantik.cli.output import (
    duration,
    emit,
    json_option,
    moment,
    number,
    outcome,
    plural,
    printable,
    standing,
    table,
    wants_json,
)
from semantik.exceptions import BrokerUnavailable, NotFound

if TYPE_CHECKING:
    from semantik.jobs import Failure

#: Failed documents that `show` prints without --all; a broken share can fail a million.
SHOWN_FAILURES = 50
#: Reasons that `show` counts where it does not print all failed documents, the most frequent ones.
SHOWN_REASONS = 10
#: What `semantik retry` does to a job that ended in this state.
RETRIED = {"completed_with_errors": "tries them again", "failed": "tries it again"}
#: Directories of one host: a path below them is hardly one that every worker has.
PRIVATE = ("/root", "/home", "/tmp", "/var/tmp", "/run", "/proc", "/sys", "/dev", "/etc")  # noqa: S108


class Source(click.ParamType[str]):
    """An absolute path or a URL; what is relative means something else on every host."""

    name = "URI"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return `value`; a relative path is wrong usage, and the message has an absolute one."""
        if "://" not in value and not value.startswith("/"):
            self.fail(
                f"{value!r} is relative: give the path that every worker has, {absolute(value)}", param, ctx
            )
        return value


def absolute(relative: str) -> str:
    """Return the words that name a path to give instead of `relative`.

    That is the absolute path, unless it lies where hosts keep what is theirs alone.
    """
    here = Path(os.path.normpath(Path.cwd() / relative))
    if any(here.is_relative_to(private) for private in PRIVATE) or here == Path("/"):
        return "an absolute path such as /srv/documents/NAME"
    return f"such as {here}"


def look(uri: str, *, allow_removal: bool = False) -> None:
    """Raise NotFound when this host already sees that nothing can be read at `uri`.

    With `allow_removal` there may be nothing: so the last documents of a source leave the collection.

    Only paths are looked at: the keys to object stores are the services' alone. What workers do not see is
    for the planner to find out, and shown by `semantik watch`.
    """
    from semantik.sources import is_local, normalize

    root = normalize(uri)
    if not is_local(root):
        from fsspec.registry import known_implementations, registry

        scheme = urlsplit(root).scheme
        if scheme not in known_implementations and scheme not in registry:
            raise NotFound(
                f"{uri}: nothing here reads {scheme}:// URLs; use an absolute path or, say, s3://bucket/folder"
            )
        return
    try:
        Path(root).stat()
    except FileNotFoundError:
        if allow_removal:
            return
        raise NotFound(
            f"{uri} does not exist on this host: give a folder or file that this host and all workers have "
            "at the same path, such as a shared mount"
        ) from None
    except PermissionError:
        return  # not for this user; the services may read it, and the planner says so when they may not
    except OSError as error:
        raise NotFound(f"{uri} cannot be looked at ({error.strerror}): is the share mounted?") from error


@click.command()
@click.argument("uri", type=Source())
@click.option("--collection", required=True, metavar="NAME", help="Where the vectors go; made if it is new.")
@click.option("--watch", "watching", is_flag=True, help="Show progress until the job has ended.")
@click.option(
    "--priority", type=click.IntRange(-100, 100), default=0, show_default=True, help="Higher goes first."
)
@click.option(
    "--allow-removal", is_flag=True, help="Accept an empty listing, or one with more than half gone."
)
@json_option
def submit(uri: str, collection: str, watching: bool, priority: int, allow_removal: bool) -> int:
    """Embed the documents under URI into a collection.

    URI is an absolute path that every worker has, or a URL such as s3://bucket/folder. Documents that have
    not changed since they were embedded are left as they are; those gone from URI go from the collection.

    With Redis down the job is recorded all the same and starts when Redis is back.
    """
    from semantik import jobs as records
    from semantik.database import connect
    from semantik.settings import load

    look(uri, allow_removal=allow_removal)
    settings = load()
    with connect(settings, application_name="semantik submit") as connection:
        job = records.submit(
            connection,
            settings,
            uri,
            collection,
            priority=priority,
            allow_removal=allow_removal,
            submitted_by=os.environ.get("SUDO_USER") or getpass.getuser(),
        )
    sent = tell_planner(str(job.id))
    if wants_json() and not watching:
        emit({"job": job, "sent": sent})
    elif not wants_json():
        click.echo(f"job {job.id}: {printable(uri)} into {collection}")
    if watching:
        from semantik.cli.watch import follow

        return follow(settings, str(job.id))
    if not wants_json():
        click.echo(f"semantik watch {str(job.id)[:8]}   shows its progress")
    return 0


def tell_planner(job_id: str) -> bool:
    """Tell the planner; warn, and return False, where Redis is away. The scheduler sends it again then."""
    from semantik import jobs as records
    from semantik.celery_app import app

    try:
        records.send(app, job_id)
    except BrokerUnavailable as error:
        click.echo(
            f"semantik: warning: {printable(error)}; the job is recorded and starts when Redis is back",
            err=True,
        )
        return False
    return True


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also jobs that have ended.")
@json_option
def jobs(everything: bool) -> None:
    """List jobs that have not ended, the newest last."""
    from semantik import jobs as records
    from semantik.database import connect
    from semantik.settings import load

    settings = load()
    with connect(settings, autocommit=True, application_name="semantik jobs") as connection:
        found = records.list_jobs(connection, everything=everything)
    if wants_json():
        emit(found)
        return
    if not found:
        click.echo("no jobs" if everything else "no job is active; --all lists those that have ended")
        return
    table(
        ["JOB", "STATE", "COLLECTION", "DOCUMENTS", "SUBMITTED", "BY", "URI"],
        [
            [
                str(job.id)[:8],
                standing(job.state, job.paused),
                job.collection,
                f"{number(job.documents_done)}/{number(job.documents_total)}" if job.planned else "-",
                moment(job.created_at),
                job.submitted_by,
                job.uri,
            ]
            for job in found
        ],
        right=[3],
    )


@click.command()
@click.argument("job")
@click.option(
    "--all", "everything", is_flag=True, help=f"All failed documents, not the first {SHOWN_FAILURES}."
)
@json_option
def show(job: str, everything: bool) -> None:
    """Show one job, with the documents that failed and why. JOB is an id or the beginning of one."""
    from semantik import jobs as records
    from semantik.database import connect
    from semantik.settings import load

    settings = load()
    with connect(settings, autocommit=True, application_name="semantik show") as connection:
        found = records.get(connection, job)
        progress = records.progress(connection, found.id)
        failures = records.failures(connection, found.id)
        came_back = records.came_back(connection, found.id)
        worked, waits = records.waits(connection, found.id)
    if wants_json():
        emit(
            {
                "job": found, "progress": progress, "failures": failures, "came_back": came_back,
                "worked": worked, "waits": waits,
            }
        )  # fmt: skip
        return
    lines = [
        ("job", found.id),
        ("state", standing(found.state, found.paused)),
        ("collection", found.collection),
        ("URI", found.uri),
        (
            "submitted",
            f"{moment(found.created_at)} by {found.submitted_by or 'unknown'}, priority {found.priority}",
        ),
        ("started", moment(found.started_at)),
        ("ended", moment(found.finished_at)),
    ]
    if found.started_at and found.finished_at:
        lines.append(("took", duration((found.finished_at - found.started_at).total_seconds())))
    if found.planned:
        lines.append(("documents", outcome(progress)))
        lines.append(("unchanged", f"{number(found.unchanged)} of {number(found.listed)} under the URI"))
        truncated = f"{number(progress.truncated_tokens)} truncated"
        lines.append(
            ("chunks", f"{number(progress.chunks)}, {plural(progress.tokens, 'token')}, {truncated}")
        )
    if waits:
        lines.append(("worked", f"{duration(worked)} in all shards together"))
        lines.append(("waited", waiting.waited(waits, "the database")))
        lines += [("", words) for words in waiting.advice(waits, worked)]
    if progress.error:
        lines.append(("reason", progress.error))
    for title, text in lines:
        click.echo(f"{title + ':' if title else '':<12}{printable(text)}")
    if came_back:
        click.echo(f"\n{plural(len(came_back), 'shard')} came back and will be tried again:")
        for line in map(printable, came_back) if everything else by_reason(came_back):
            click.echo(f"  {line}")
    if failures:
        show_failures(failures, everything=everything)
    if found.state in RETRIED:
        click.echo(f"\nsemantik retry {str(found.id)[:8]}   {RETRIED[found.state]}")


def show_failures(failures: Sequence[Failure], *, everything: bool) -> None:
    """Print a job's failed documents, all or the first ones with a count of the reasons of all."""
    click.echo(f"\n{plural(len(failures), 'document')} failed:")
    if not everything and len(failures) > SHOWN_FAILURES:
        for line in by_reason([failure.error for failure in failures]):
            click.echo(f"  {line}")
        click.echo(f"\nThe first {SHOWN_FAILURES}:")
    for failure in failures if everything else failures[:SHOWN_FAILURES]:
        click.echo(f"  {printable(failure.uri)}\n      {printable(failure.error)}")
    if not everything and len(failures) > SHOWN_FAILURES:
        click.echo(f"  and {number(len(failures) - SHOWN_FAILURES)} more: --all")


def by_reason(errors: Sequence[str]) -> list[str]:
    """Return a line for each reason, the most frequent first, as in "437 x not found on gpu2"."""
    reasons = Counter(printable(error) for error in errors).most_common()
    lines = [f"{number(count)} x {reason}" for reason, count in reasons[:SHOWN_REASONS]]
    rest = reasons[SHOWN_REASONS:]
    if rest:
        lines.append(
            f"{number(sum(count for _, count in rest))} x {plural(len(rest), 'other reason')}: --all"
        )
    return lines
