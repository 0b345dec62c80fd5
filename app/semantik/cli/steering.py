"""retry, pause, resume and cancel: what people do to a job that is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from semantik.cli.jobs import tell_planner
from semantik.cli.output import emit, json_option, plural, standing, wants_json

if TYPE_CHECKING:
    from semantik.jobs import Job


@click.command(short_help="Try a job's failed documents again.")
@click.argument("job")
@click.argument("documents", nargs=-1, metavar="[DOCUMENT]...")
@json_option
def retry(job: str, documents: tuple[str, ...]) -> None:
    """Try the failed documents of a job again that has ended: all, or the given ones.

    JOB is an id or the beginning of one, DOCUMENT is a name as `semantik show JOB` prints it. What was
    embedded stays as it is. A job that failed before it had a list of documents is planned anew. While
    another job fills the collection, this one waits its turn.
    """
    from semantik import jobs as records
    from semantik.database import connect
    from semantik.settings import load

    settings = load()
    with connect(settings, application_name="semantik retry") as connection:
        found = records.retry(connection, settings, records.get(connection, job).id, documents)
    sent = None if found.planned else tell_planner(str(found.id))
    if wants_json():
        emit({"job": found, "sent": sent})
        return
    again = "everything"
    if found.planned:
        again = plural(found.documents_total - found.documents_done, "document")
    click.echo(f"job {found.id}: {again} once more")
    click.echo(f"semantik watch {str(found.id)[:8]}   shows its progress")


@click.command(short_help="Let a job rest.")
@click.argument("job")
@json_option
def pause(job: str) -> None:
    """Begin nothing more of a job until `semantik resume JOB`.

    Its shards that are at work go on to their end, within a minute or so. A job that has begun keeps its
    place: no other fills its collection meanwhile. One that still waits lets others of its collection pass.

    JOB is an id or the beginning of one.
    """
    _print(_changed("pause", job))


@click.command(short_help="Let a paused job go on.")
@click.argument("job")
@json_option
def resume(job: str) -> None:
    """Let a paused job go on. JOB is an id or the beginning of one."""
    _print(_changed("resume", job))


@click.command(short_help="Stop a job.")
@click.argument("job")
@json_option
def cancel(job: str) -> None:
    """Stop a job: what it has embedded stays, the rest is left as it was.

    JOB is an id or the beginning of one.
    """
    _print(_changed("cancel", job))


def _changed(action: str, job: str) -> Job:
    from semantik import jobs as records
    from semantik.database import connect
    from semantik.settings import load

    change = {"pause": records.pause, "resume": records.resume, "cancel": records.cancel}[action]
    with connect(load(), application_name=f"semantik {action}") as connection:
        return change(connection, records.get(connection, job).id)


def _print(job: Job) -> None:
    if wants_json():
        emit({"job": job})
    else:
        click.echo(f"job {job.id} is {standing(job.state, job.paused)}")
