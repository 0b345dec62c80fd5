"""From a listing to the output: what is missing is embedded, a part file for each group of documents, and the
parts are merged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from semantik import sources, vectors
from semantik.engine import Engine, Finished, Mark, Row, Source, Stopped
from semantik.groups import Group, Listing, cut
from semantik.model import TOKEN_BUDGETS, Model, load_model
from semantik.settings import Settings
from semantik.workplace import Workplace

if TYPE_CHECKING:
    from semantik.sources import Listed

#: Batches in a group, so many that the half-empty ones at its end do not matter. Four bytes of document make
#: about a token, so that a group takes a few CPU cores half a minute, and a GPU some seconds.
_GROUP_BATCHES = 64
_BYTES_PER_TOKEN = 4
#: Remarks that a summary carries; the report file has them all.
SHOWN_REMARKS = 10


@dataclass(frozen=True)
class Request:
    """What to embed, into which file, and what may be lost for it."""

    root: str  # as sources.normalize returns it
    output: Path
    settings: Settings
    restart: bool = False  # throw away what an interrupted run has finished
    force: bool = False  # replace any file, and embed again what has not changed


@dataclass(frozen=True)
class Remark:
    """Something to know about a document: why it failed, was passed over, or has no or odd chunks."""

    document: str
    outcome: str  # embedded, failed or "no document"
    reason: str


@dataclass
class Counts:
    """What became of documents; kept in each part and, summed up, in the output."""

    documents: int = 0  # listed, those that failed included
    embedded: int = 0
    failed: int = 0
    passed_over: int = 0
    chunks: int = 0
    tokens: int = 0
    truncated_tokens: int = 0

    def add(self, other: Mapping[str, Any]) -> None:
        """Add the counts of a part."""
        for name in (item.name for item in fields(self)):
            setattr(self, name, getattr(self, name) + int(other[name]))


@dataclass
class Summary:
    """How a run ended. `waits` and the rate are of this run alone, the counts of the whole output."""

    output: str
    state: str  # completed or completed_with_errors
    unchanged: bool  # nothing had to be done
    counts: Counts
    taken_over: int = 0  # documents embedded by earlier runs
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)  # seconds by stage, as EngineStats
    report: str | None = None  # the file with all remarks
    remarks: list[Remark] = field(default_factory=list)  # the first of them, failures before all others


@dataclass
class Progress:
    """How far a run is."""

    documents: int = 0
    documents_done: int = 0
    failed: int = 0
    chunks: int = 0
    tokens: int = 0  # of the whole output
    bytes_to_do: int = 0  # by this run, documents that failed meanwhile not included
    tokens_done: int = 0  # by this run
    embedded_bytes: int = 0  # of the documents that this run has finished
    embedded_tokens: int = 0
    started: float = 0.0  # time.monotonic()

    def end(self, finished: Finished, weight: int) -> None:
        """Count a document of `weight` bytes that has ended."""
        self.documents_done += 1
        if finished.outcome == "embedded":
            self.embedded_bytes += weight
            self.embedded_tokens += finished.tokens
        else:
            self.failed += 1
            self.bytes_to_do -= weight

    def rate(self) -> float:
        """Return tokens per second of this run."""
        return self.tokens_done / max(time.monotonic() - self.started, 1e-3)

    def seconds_left(self) -> float | None:
        """Return the time that the rest takes, if it has as many tokens a byte as the documents so far.

        None while nothing is known of them.
        """
        if not self.embedded_tokens:
            return None
        expected = self.bytes_to_do * self.embedded_tokens / self.embedded_bytes
        return max(expected - self.tokens_done, 0.0) / self.rate()


class View(Protocol):
    """Someone who is told how a run goes."""

    def note(self, text: str) -> None:
        """Say something beside the progress."""

    def show(self, progress: Progress) -> None:
        """Show how far it is; called often."""


def state(counts: Counts) -> str:
    """Return the state in which a run ends that could do its work."""
    return "completed_with_errors" if counts.failed else "completed"


class Run:
    """One run over a listing: what is missing is embedded, part by part."""

    def __init__(
        self,
        request: Request,
        listing: Listing,
        place: Workplace,
        view: View,
        should_stop: Callable[[], bool],
    ) -> None:
        self._request = request
        self._listing = listing
        self._place = place
        self._view = view
        self._should_stop = should_stop
        self._parts: list[Path] = []

    def embed(self, asked: dict[str, Any]) -> Summary:
        """Embed the groups that have no part yet; return the summary, but for the report."""
        settings = self._request.settings
        self._view.note("loading the model")
        model = load_model(settings)
        budget = settings.token_budget or TOKEN_BUDGETS[model.device]
        groups = list(cut(self._listing.documents, budget * _GROUP_BATCHES * _BYTES_PER_TOKEN))
        key = canonical({**asked, "device": model.device, "precision": model.precision})
        self._parts = [self._place.part(group.fingerprint(key)) for group in groups]
        todo = [number for number, part in enumerate(self._parts) if not part.exists()]
        counts, progress = Counts(), self._progress(groups, todo)
        taken_over = progress.documents_done - len(self._listing.refused)
        summary = Summary(str(self._request.output), "", False, counts, taken_over)
        self._view.note(
            f"{model.name} on {model.device} in {model.precision}; {progress.documents:,} documents"
            + (f", of which an interrupted run has done {taken_over:,}" if taken_over else "")
        )
        if todo:
            engine = Engine(
                model,
                settings,
                chunk_tokens=settings.chunk_tokens,
                chunk_overlap=settings.chunk_overlap,
                opener=self._open,
                ordered=True,
            )
            self._embed(engine, model, groups, todo, progress)
            summary.seconds, summary.waits = engine.stats.seconds, engine.stats.waits
            summary.tokens_per_second = progress.tokens_done / max(summary.seconds, 1e-3)
        for part in self._parts:
            counts.add(vectors.read_header(part)["counts"])
        counts.documents += len(self._listing.refused)
        counts.failed += len(self._listing.refused)
        counts.passed_over = len(self._listing.passed_over)
        summary.state = state(counts)
        return summary

    def _open(self, uri: str) -> int:
        return sources.open_source(uri, most_bytes=self._request.settings.document_max_mb << 20)

    def _progress(self, groups: list[Group], todo: list[int]) -> Progress:
        refused = len(self._listing.refused)
        progress = Progress(
            len(self._listing.documents) + refused, refused, refused, started=time.monotonic()
        )
        for number in set(range(len(groups))) - set(todo):
            counts = vectors.read_header(self._parts[number])["counts"]
            progress.documents_done += counts["documents"]
            progress.failed += counts["failed"]
            progress.chunks += counts["chunks"]
            progress.tokens += counts["tokens"]
        progress.bytes_to_do = sum(_weight(item) for number in todo for item in groups[number].documents)
        return progress

    def _embed(
        self, engine: Engine, model: Model, groups: list[Group], todo: list[int], progress: Progress
    ) -> None:
        def pulled() -> Iterator[Source | Mark]:
            for number in todo:
                for at, item in enumerate(groups[number].documents, groups[number].first):
                    yield Source(at, item.uri, None, item.size)
                yield Mark(number)

        rows: dict[int, list[Row]] = {}
        ends: dict[int, Finished] = {}
        for result in engine.run(pulled(), self._should_stop):
            if isinstance(result, Row):
                rows.setdefault(result.key, []).append(result)
                progress.chunks += 1
                progress.tokens += result.token_count
                progress.tokens_done += result.token_count
            elif isinstance(result, Finished):
                ends[result.key] = result
                progress.end(result, _weight(self._listing.documents[result.key]))
            else:
                self._write_part(self._parts[result.number], groups[result.number], rows, ends, model.dim)
                rows, ends = {}, {}
            self._view.show(progress)

    def _write_part(
        self, part: Path, group: Group, rows: dict[int, list[Row]], ends: dict[int, Finished], dim: int
    ) -> None:
        """Keep a finished group: its rows in order, and what became of its documents."""
        keys = range(group.first, group.first + len(group.documents))
        if sorted(ends) != list(keys):
            raise RuntimeError(f"the engine finished {len(ends)} documents of {len(keys)}")
        counts = Counts(documents=len(keys))
        remarks: list[Remark] = []
        entries: list[tuple[str, str, Row]] = []
        for key, item in zip(keys, group.documents, strict=True):
            end = ends[key]
            kept = rows.get(key, ()) if end.outcome == "embedded" else ()
            own = sorted(kept, key=lambda row: row.ordinal)
            if [row.ordinal for row in own] != list(range(end.chunks)):
                raise RuntimeError(f"{item.uri} has {len(own)} rows, and says {end.chunks}")
            digest = end.content_hash.hex() if end.content_hash else ""
            entries += ((item.uri, digest, row) for row in own)
            if end.outcome == "embedded":
                counts.embedded += 1
                counts.chunks += end.chunks
                counts.tokens += end.tokens
                counts.truncated_tokens += end.truncated_tokens
            else:
                counts.failed += 1
            remarks += _remarks(item, end)
        header = {
            "format": vectors.FORMAT,
            "counts": vars(counts),
            "remarks": [vars(remark) for remark in remarks],
        }
        with vectors.replacing(part, self._place.draft("part")) as file:
            vectors.write(file, [vectors.table(entries, dim)], dim, header)

    def merge(self, dim: int, header: dict[str, Any], summary: Summary) -> None:
        """Write the report and the output from the parts; the output last, since it says that all is done."""
        place = self._place
        remarks = self._all_remarks()
        summary.remarks = remarks[:SHOWN_REMARKS]
        if remarks:
            summary.report = str(place.report)
            with vectors.replacing(place.report, place.draft("report")) as file:
                file.writelines(json.dumps(vars(remark)).encode() + b"\n" for remark in remarks)
        else:
            place.report.unlink(missing_ok=True)

        def tables() -> Iterator[Any]:
            for part in self._parts:
                if self._should_stop():
                    raise Stopped("told to stop")
                yield from vectors.read(part)

        with vectors.replacing(self._request.output, place.draft("output")) as file:
            vectors.write(file, tables(), dim, header)

    def _all_remarks(self) -> list[Remark]:
        """Return all remarks, failures first."""
        remarks = [Remark(item.uri, "failed", item.error or "") for item in self._listing.refused]
        remarks += [Remark(item.uri, "no document", item.error or "") for item in self._listing.passed_over]
        for part in self._parts:
            remarks += (Remark(**remark) for remark in vectors.read_header(part)["remarks"])
        return sorted(remarks, key=lambda remark: (remark.outcome != "failed", remark.document))


def canonical(value: Any) -> str:
    """Return JSON that is the same for equal values."""
    return json.dumps(value, sort_keys=True)


def _weight(item: Listed) -> int:
    return max(item.size or 0, 1)


def _remarks(item: Listed, end: Finished) -> Iterator[Remark]:
    """Yield what is to be said of a document whose end came."""
    if end.outcome == "removed":
        yield Remark(item.uri, "failed", "was gone when it was to be read")
    elif end.outcome != "embedded":
        yield Remark(item.uri, "failed", end.error or "without a reason")
    else:
        reasons = [end.error] if end.error else []
        if not end.chunks and not end.error:
            reasons.append("holds no text")
        if _changed(item):
            reasons.append("changed after it was listed: run the command again to embed it as it is now")
        if reasons:
            yield Remark(item.uri, "embedded", "; ".join(reasons))


def _changed(item: Listed) -> bool:
    """Return whether a path is another file now than when it was listed."""
    if not sources.is_local(item.uri):
        return False
    try:
        found = Path(item.uri).stat()
    except OSError:
        return True
    return (found.st_size, str(found.st_mtime_ns)) != (item.size, item.version)
