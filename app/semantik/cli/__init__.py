"""The `semantik` command: on the control host, for everyone in the group `semantik`, and on any machine for
embedding without a cluster.

It starts light: psycopg, Celery and Rich are imported by the commands that use them, where they use them.
"""

from __future__ import annotations

import os
import sys

import click

from semantik import __version__
from semantik.cli.check import check
from semantik.cli.collections import collections
from semantik.cli.embed import embed
from semantik.cli.jobs import jobs, show, submit
from semantik.cli.output import json_option
from semantik.cli.search import search
from semantik.cli.steering import cancel, pause, resume, retry
from semantik.cli.watch import watch
from semantik.exceptions import SemantikError

EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="semantik %(version)s")
@json_option
def cli() -> None:
    """Embed documents on the cluster, or on this machine alone, and search them.

    Exit status: 0 done, 1 failed (the reason is on stderr), 2 wrong usage, 3 a job ended with failed
    documents, 130 interrupted. SEMANTIK_DEBUG=1 shows the traceback of an error.
    """


COMMANDS = (
    submit, watch, jobs, show, retry, pause, resume, cancel, collections, embed, search, check,
)  # fmt: skip
for command in COMMANDS:
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; every error is one line on stderr. Returns the exit status."""
    debug = os.environ.get("SEMANTIK_DEBUG", "") not in ("", "0")
    try:
        status = cli.main(arguments, prog_name="semantik", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("semantik: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has left; the interpreter must not complain again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if debug:
            raise
        print(f"semantik: {_sentence(error)}", file=sys.stderr)
        return 1


def _sentence(error: Exception) -> str:
    """Return the one line for `error`, with what to do."""
    if isinstance(error, SemantikError):
        return " ".join(str(error).split())
    psycopg = sys.modules.get("psycopg")
    if psycopg is not None:
        line = " ".join(str(error).split())
        if isinstance(error, psycopg.errors.InsufficientPrivilege):
            return f"the database refuses: {line}; run site.yml, which grants what the command needs"
        if isinstance(error, psycopg.errors.UndefinedTable):
            return (
                f"the database's schema is older than this release: {line}; run site.yml, which migrates it"
            )
        if isinstance(error, psycopg.OperationalError):
            return f"PostgreSQL: {line}; see 'semantik check'"
    line = " ".join(f"{type(error).__name__}: {error}".split())
    return f"unexpected error: {line}; SEMANTIK_DEBUG=1 shows where"
