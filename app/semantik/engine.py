"""Documents in, rows out: parsing, cutting and the forward pass overlap, and the caller's writing with them.

    sources -> parse threads (a parser process each) -> chunk thread -> forward pass, in the caller's thread
    -> rows

Between the stages are bounded channels, so memory does not depend on how many documents there are. Chunks of
many documents share a batch: they are packed by length under a token budget. Any stage's error ends the run
and is raised to the caller; closing the generator ends every thread and parser.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semantik.channel import Empty
from semantik.chunking import Chunk, Chunker
from semantik.items import EngineStats, Finished, Mark, Outcome, Row, Source, Stopped
from semantik.stages import Chunks, Stages

if TYPE_CHECKING:
    from semantik.model import Model, Pending
    from semantik.settings import Settings

__all__ = ["Engine", "EngineStats", "Finished", "Mark", "Outcome", "Row", "Source", "Stopped"]

# Chunks wait for a batch in a pool of this many batches, sorted by length: enough that little is padding.
_POOL_BATCHES = 16
# How long the forward pass waits for chunks before it asks again whether to stop, seconds.
_POLL_SECONDS = 0.5

Batch = list[tuple[int, Chunk]]


class Engine:
    """Runs one model over documents; a run at a time."""

    def __init__(
        self,
        model: Model,
        settings: Settings,
        *,
        chunk_tokens: int,
        chunk_overlap: int,
        opener: Callable[[str], int] | None = None,
        ordered: bool = False,
    ) -> None:
        """Take chunk sizes in tokens (0 for the model's limit).

        `opener` turns a URI into an open descriptor; the default opens what `semantik.sources` knows.
        `ordered`: documents are cut in the order of the sources, and the batches between two marks follow
        from the sources there and the token budget alone, so that another run gives the same bits. Otherwise
        a document that takes long to parse lets others pass, and a device that waits takes what there is.
        Raises SettingsError when the sizes do not fit the model.
        """
        self.stats = EngineStats()
        self._model = model
        self._settings = settings
        self._chunker = Chunker(model, chunk_tokens=chunk_tokens, chunk_overlap=chunk_overlap)
        self._opener = opener or _open_source
        self._ordered = ordered

    def run(
        self, sources: Iterable[Source | Mark], should_stop: Callable[[], bool]
    ) -> Iterator[Row | Finished | Mark]:
        """Yield the rows of all documents, and a Finished behind the last row of each.

        Marks need `ordered`. `sources` is read from another thread. `should_stop` is asked before each batch
        and at least every half second while the next is waited for; when it says true, Stopped is raised.
        """
        self.stats = EngineStats()
        stages = Stages(
            self._settings,
            self._chunker,
            self._opener,
            self.stats,
            sources,
            ordered=self._ordered,
            waiting_tokens=_POOL_BATCHES * self._model.token_budget,
        )
        run = _Run(self._model, stages, self.stats, should_stop, ordered=self._ordered)
        started = time.monotonic()
        try:
            with closing(stages):
                yield from run.results()
        finally:
            self.stats.seconds = time.monotonic() - started
            self.stats.waits |= {**stages.waits(), "write": run.write_seconds}
            del run, stages
            _give_memory_back(self._model.device)


@dataclass
class _Document:
    """A document between its first chunk and its end."""

    pending: int = 0  # chunks whose vectors are not out yet
    finished: Finished | None = None  # set when all its chunks are known
    error: str | None = None  # why it fails though all was well until the forward pass


class _Run:
    """The forward pass of one run, in the caller's thread: chunks are pooled, packed and computed."""

    def __init__(
        self,
        model: Model,
        stages: Stages,
        stats: EngineStats,
        should_stop: Callable[[], bool],
        *,
        ordered: bool,
    ) -> None:
        self.write_seconds = 0.0
        self._model = model
        self._chunks = stages.chunks
        self._stats = stats
        self._should_stop = should_stop
        self._ordered = ordered
        self._asked = 0.0
        self._open: dict[int, _Document] = {}
        self._pool: Batch = []
        self._pooled = 0  # tokens
        self._under_way: deque[tuple[Batch, Pending]] = deque()
        self._splits = model.oom_splits

    def results(self) -> Iterator[Row | Finished | Mark]:
        """Pool chunks, run them by length in batches under the budget, and hand out what is done."""
        more = True
        while more:
            border: Mark | None = None
            while self._pooled < _POOL_BATCHES * self._model.token_budget:
                item = self._next()
                if item is Empty.EMPTY:
                    if self._under_way:
                        yield from self._given(self._collect())
                    elif self._enough():
                        break
                    continue
                if item is None:
                    more = False
                    break
                if isinstance(item, Mark):
                    border = item
                    break
                self._pool += ((item.key, chunk) for chunk in item.chunks)
                self._pooled += sum(len(chunk.ids) for chunk in item.chunks)
                yield from self._given(self._take(item))
            self._pool.sort(key=lambda entry: len(entry[1].ids))
            # While more is to come, what does not fill a batch waits for company of its length.
            keep_rest = more and border is None
            pack = _batches if self._model.pads else _flat_batches
            for batch in pack(self._pool, self._model.token_budget, keep_rest=keep_rest):
                yield from self._given(self._start(batch))
            self._pooled = sum(len(chunk.ids) for _, chunk in self._pool)
            if not keep_rest:
                while self._under_way:
                    yield from self._given(self._collect())
            if border is not None:
                yield from self._given(iter((border,)))

    def _next(self) -> Chunks | Mark | Empty | None:
        """Return the next item; None for the end, EMPTY when there is something better to do than wait."""
        # With work in hand nothing is waited for: the device must not.
        busy = bool(self._under_way) or self._enough()
        item = self._chunks.get(0.0 if busy else _POLL_SECONDS)
        if (item is Empty.EMPTY and not busy) or time.monotonic() - self._asked > _POLL_SECONDS:
            self._ask()
        return item

    def _enough(self) -> bool:
        """Return whether a batch may be packed now, though the pool has room."""
        return not self._ordered and self._pooled >= self._model.token_budget

    def _take(self, item: Chunks) -> Iterator[Finished]:
        document = self._open.setdefault(item.key, _Document())
        document.pending += len(item.chunks)
        document.finished = item.finished
        if item.finished is not None and not document.pending:
            yield self._end(item.key, item.finished)

    def _start(self, batch: Batch) -> Iterator[Row | Finished]:
        """Send a batch to the device; hand out the oldest one when as many as allowed are under way."""
        stats = self._stats
        stats._batches.append(frozenset(key for key, _ in batch))
        self._ask()
        started = time.monotonic()
        pending = self._model.start([chunk.ids for _, chunk in batch])
        stats.forward_seconds += time.monotonic() - started
        self._under_way.append((batch, pending))
        while len(self._under_way) >= self._model.depth:
            yield from self._collect()

    def _collect(self) -> Iterator[Row | Finished]:
        """Wait for the oldest batch under way and hand out its rows."""
        stats = self._stats
        batch, pending = self._under_way.popleft()
        started = time.monotonic()
        vectors = pending.result().astype(np.float16)
        stats.forward_seconds += time.monotonic() - started
        stats.batches += 1
        stats.chunks += len(batch)
        tokens = sum(len(chunk.ids) for _, chunk in batch)
        stats.tokens += tokens
        if self._model.pads:
            stats.padding_tokens += len(batch) * max(len(chunk.ids) for _, chunk in batch) - tokens
        stats.oom_splits = self._model.oom_splits - self._splits
        stats._batches.pop(0)
        for (key, chunk), vector in zip(batch, vectors, strict=True):
            document = self._open[key]
            if np.isfinite(vector).all():
                yield Row(key, chunk.ordinal, chunk.text, chunk.place, len(chunk.ids), vector)
            else:
                document.error = (
                    f"the model gives chunk {chunk.ordinal} no finite vector in {self._model.precision}: "
                    "a number in it overflows"
                )
            document.pending -= 1
            if document.finished is not None and not document.pending:
                yield self._end(key, document.finished)

    def _end(self, key: int, finished: Finished) -> Finished:
        document = self._open.pop(key)
        self._stats.documents += 1
        if document.error is None:
            return finished
        return Finished(key, "failed", document.error, finished.content_hash, finished.size)

    def _given(self, results: Iterator[Row | Finished | Mark]) -> Iterator[Row | Finished | Mark]:
        """Hand results out, counting the time that the caller keeps each."""
        for result in results:
            started = time.monotonic()
            yield result
            self.write_seconds += time.monotonic() - started

    def _ask(self) -> None:
        if self._should_stop():
            raise Stopped("told to stop")
        self._asked = time.monotonic()


def _batches(pool: Batch, budget: int, *, keep_rest: bool) -> Iterator[Batch]:
    """Take batches off the end of `pool`, which is sorted by length: the longest first.

    A batch is at most `budget` tokens, padding included, or a single chunk. Once a quarter full, it takes no
    chunk that would be padded by more than a third.
    """
    while pool:
        longest = len(pool[-1][1].ids)
        count = max(1, budget // longest)
        if keep_rest and count > len(pool):
            return
        count = min(count, len(pool))
        enough = budget // (4 * longest)
        while count > max(1, enough) and 4 * len(pool[-count][1].ids) < 3 * longest:
            count -= 1
        batch = pool[-count:]
        del pool[-count:]
        yield batch


def _flat_batches(pool: Batch, budget: int, *, keep_rest: bool) -> Iterator[Batch]:
    """As `_batches`, where nothing is padded: as many tokens as the budget allows.

    Texts of like length share a batch, since attention takes those of one length at once; the room that is
    left is filled with the longest that fits.
    """
    while pool:
        tokens = count = 0
        while count < len(pool) and tokens + len(pool[-count - 1][1].ids) <= budget:
            count += 1
            tokens += len(pool[-count][1].ids)
        if keep_rest and count == len(pool) and tokens < budget:
            return
        count = max(1, count)
        batch = pool[-count:]
        del pool[-count:]
        while at := bisect_right(pool, budget - tokens, key=lambda entry: len(entry[1].ids)):
            batch.append(pool.pop(at - 1))
            tokens += len(batch[-1][1].ids)
        yield batch


def _open_source(uri: str) -> int:
    from semantik.sources import open_source

    return open_source(uri)


def _give_memory_back(device: str) -> None:
    """Return what a run freed to the system: a worker's resident set must not grow from shard to shard."""
    if device == "cuda":
        import torch

        # A context that broke answers every call with an error; the one that broke it is to be told.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)
