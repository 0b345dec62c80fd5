"""embed: a folder's documents into one Parquet file, on this machine alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from semantik.cli import waits
from semantik.cli.output import duration, emit, json_option, number, plural, printable, wants_json
from semantik.exceptions import SemantikError, SettingsError

if TYPE_CHECKING:
    from semantik import parts
    from semantik.cli.watch import View as Watching

EXIT_INTERRUPTED = 130
EXIT_DOCUMENTS_FAILED = 3
#: Between two looks at the progress.
SHOW_SECONDS = 0.5


class Interrupts:
    """Takes SIGINT and SIGTERM: the first asks for an orderly end if someone listens, the second insists."""

    def __init__(self) -> None:
        self._came = self._heard = False

    def should_stop(self) -> bool:
        """Return whether one came."""
        self._heard = True
        return self._came

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        if self._came or not self._heard:
            raise KeyboardInterrupt
        self._came = True

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take the signals while inside."""
        before = {which: signal.signal(which, self._take) for which in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for which, handler in before.items():
                signal.signal(which, handler)


@click.command(short_help="Embed a folder into a Parquet file, without a cluster.")
@click.argument("source", metavar="DIR")
@click.option(
    "-o", "--output", required=True, metavar="FILE", type=click.Path(path_type=Path), help="The Parquet file."
)
@click.option(
    "--model",
    "model_dir",
    metavar="DIR",
    help="A sentence-transformers directory, the one that holds modules.json; default: SEMANTIK_MODEL_DIR.",
)
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Default: a GPU where there is one."
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Of the forward pass on a CPU; default: torch's."
)
@click.option("--parsers", type=click.IntRange(1, 256), help="Processes that parse documents; default: 2.")
@click.option(
    "--chunk-tokens", type=click.IntRange(16), help="Tokens in a chunk at most; default: the model's limit."
)
@click.option(
    "--chunk-overlap", type=click.IntRange(0), help="Tokens that neighbouring chunks share; default: 32."
)
@click.option(
    "--token-budget", type=click.IntRange(1), help="Tokens in a batch; default: what suits the device."
)
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run has finished.")
@click.option(
    "--force", is_flag=True, help="Replace FILE whatever it is, and embed again though nothing has changed."
)
@click.option("--strict", is_flag=True, help="Exit with status 3 when documents failed.")
@json_option
def embed(source: str, output: Path, restart: bool, force: bool, strict: bool, **given: Any) -> int:
    """Embed the documents under DIR into a Parquet file: one row per chunk, with its text and vector.

    DIR is a folder, a single file or a URL such as s3://bucket/folder. Everything happens on this machine;
    no service is needed, only a model directory and the package's extra 'worker'.

    Interrupted by Ctrl-C, a crash or a power cut, the same command goes on where it was. FILE appears when it
    is complete, and until then stays what it was before. When neither documents nor settings have changed
    since, nothing is done.

    A document that cannot be read does not end the run: FILE.report.jsonl says why, and the state is
    completed_with_errors.

    Exit status: 0 done, 1 failed, 3 documents failed and --strict was given, 130 interrupted.
    """
    if not source.strip():
        # What an unset variable leaves; as a path it would be the current directory.
        raise click.BadParameter("is empty", param_hint="'DIR'")
    try:
        from semantik import local
        from semantik.engine import Stopped
        from semantik.parts import Request
        from semantik.sources import normalize
    except ModuleNotFoundError as error:
        raise without_extra(error) from error

    settings = local.settings_for(
        os.environ,
        model_dir=given["model_dir"],
        device=given["device"],
        threads=given["threads"],
        parser_count=given["parsers"],
        chunk_tokens=given["chunk_tokens"],
        chunk_overlap=given["chunk_overlap"],
        token_budget=given["token_budget"],
    )
    root = normalize(source if "://" in source else str(Path.cwd() / source))
    request = Request(
        root, Path(os.path.normpath(Path.cwd() / output)), settings, restart=restart, force=force
    )
    interrupts = Interrupts()
    shown = Shown()
    try:
        with interrupts.taken(), shown:
            summary = local.embed(request, shown, interrupts.should_stop)
    except (Stopped, KeyboardInterrupt):
        click.echo("semantik: interrupted; the same command goes on from here", err=True)
        return EXIT_INTERRUPTED
    if wants_json():
        emit(summary)
    else:
        for line in lines(summary):
            click.echo(line)
    return EXIT_DOCUMENTS_FAILED if strict and summary.counts.failed else 0


def without_extra(error: ModuleNotFoundError) -> SemantikError:
    """Return what to say where a package of the extra 'worker' is missing."""
    return SettingsError(
        f"{error.name} is not installed: this needs the package's extra 'worker', "
        "as in pip install './semantik-VERSION.whl[worker]'"
    )


# --- what is shown on the way ---


class Shown:
    """Shows a run as `semantik watch` shows a job: a bar on a terminal, else lines; nothing beside JSON."""

    def __init__(self) -> None:
        self._inner: Watching | None = None
        self._at = 0.0
        self._quiet = wants_json()

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        if self._inner is not None:
            self._inner.__exit__(None, None, None)

    def note(self, text: str) -> None:
        """Print `text` on stderr."""
        if not self._quiet:
            click.echo(printable(text), err=True)

    def show(self, progress: parts.Progress) -> None:
        """Show the progress, if the last look is old enough or this is the end."""
        now = time.monotonic()
        ended = progress.documents_done == progress.documents
        if self._quiet or (now - self._at < SHOW_SECONDS and not ended):
            return
        self._at = now
        from semantik.cli.watch import Bars, Lines, redraws
        from semantik.progress import Progress

        if self._inner is None:
            self._inner = Bars() if redraws() else Lines()
            self._inner.__enter__()
        self._inner.show(
            Progress(
                state="running",
                documents_total=progress.documents,
                documents_done=progress.documents_done,
                failed=progress.failed,
                skipped=0,
                removed=0,
                chunks=progress.chunks,
                tokens=progress.tokens,
                truncated_tokens=0,
                tokens_per_second=progress.rate(),
                seconds_left=progress.seconds_left(),
                error=None,
            )
        )


# --- what is said at the end ---


def lines(summary: parts.Summary) -> Iterator[str]:
    """Yield the summary for people."""
    counts = summary.counts
    state = "unchanged, nothing to do" if summary.unchanged else summary.state.replace("_", " ")
    failed = f", {number(counts.failed)} failed" if counts.failed else ""
    yield f"{state}: {plural(counts.embedded, 'document')} embedded{failed}"
    yield (
        f"{summary.output}: {plural(counts.chunks, 'chunk')}, {plural(counts.tokens, 'token')}, "
        f"{number(counts.truncated_tokens)} truncated"
    )
    if counts.passed_over:
        yield f"{plural(counts.passed_over, 'entry').replace('entrys', 'entries')} passed over: no documents"
    if summary.tokens_per_second:
        before = f"; {plural(summary.taken_over, 'document')} by an earlier run" if summary.taken_over else ""
        yield f"{number(summary.tokens_per_second)} tokens/s, {duration(summary.seconds)}{before}"
        yield f"waited: {waits.waited(summary.waits, 'the disk')}"
        yield from waits.advice(summary.waits, summary.seconds)
    failures = [remark for remark in summary.remarks if remark.outcome == "failed"]
    for remark in failures:
        yield f"  {printable(remark.document)}: {printable(remark.reason)}"
    if more := counts.failed - len(failures):
        yield f"  ... and {number(more)} more failed"
    if summary.report:
        yield f"{summary.report}   has all that failed, was passed over or is remarkable"
