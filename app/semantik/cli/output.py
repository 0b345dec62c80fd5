"""What the commands print: aligned text for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from semantik.jobs import Progress

F = TypeVar("F", bound=Callable[..., Any])

_JSON = "semantik.json"


def json_option(function: F) -> F:
    """Give a command `--json`; it means the same before and after the subcommand's name."""

    def remember(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            context.meta[_JSON] = True

    return click.option(
        "--json", is_flag=True, expose_value=False, callback=remember, help="Print JSON, for programs."
    )(function)


def wants_json() -> bool:
    """Return whether this run was started with `--json`."""
    return bool(click.get_current_context().meta.get(_JSON))


def emit(value: Any) -> None:
    """Print `value` (dataclasses, lists and dicts of them) as one line of JSON."""
    click.echo(json.dumps(_plain(value), default=str))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def printable(text: object) -> str:
    """Return `text` on one line, without control characters: names and contents of documents are anyone's."""
    line = " ".join(str(text).split())
    return "".join(character if character.isprintable() else "�" for character in line)


def shorten(text: str, length: int) -> str:
    """Return `text`, cut at a word's end to at most `length` characters."""
    if len(text) <= length:
        return text
    return f"{text[: length - 1].rsplit(' ', 1)[0]}…"


def number(value: float) -> str:
    """Return a whole number with thousands separated, as in 12,345."""
    return f"{value:,.0f}"


def plural(count: int, noun: str) -> str:
    """Return `count` with `noun` in the right number, as in "1 document" or "2 documents"."""
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"


def duration(seconds: float) -> str:
    """Return a time span in the two largest units that matter, as in 3 min 20 s."""
    whole = round(max(seconds, 0))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(value: datetime | None) -> str:
    """Return a time in the reader's time zone, or a dash."""
    return value.astimezone().strftime("%Y-%m-%d %H:%M:%S") if value else "-"


def outcome(progress: Progress) -> str:
    """Return what became of a job's documents, as in "12 embedded, 3 failed"."""
    done = progress.documents_done - progress.failed - progress.skipped - progress.removed
    counts = {
        "embedded": done,
        "skipped": progress.skipped,
        "removed": progress.removed,
        "failed": progress.failed,
    }
    parts = [f"{number(count)} {name}" for name, count in counts.items() if count or name == "embedded"]
    left = progress.documents_total - progress.documents_done
    rest = "to do" if progress.state in ("queued", "planning", "running") else "not done"
    return ", ".join([*parts, f"{number(left)} {rest}"] if left else parts)


def standing(state: str, paused: bool) -> str:
    """Return a job's state as lists show it, as in "running, paused"."""
    return f"{state}, paused" if paused else state


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """Print `rows` in aligned columns; columns numbered in `right` are set to the right."""
    from rich.cells import cell_len

    lines = [list(headings), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        cells = []
        for column, cell in enumerate(line):
            pad = " " * (widths[column] - cell_len(cell))
            cells.append(pad + cell if column in right else cell + pad)
        click.echo("  ".join(cells).rstrip())
