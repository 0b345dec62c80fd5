"""Documents in, rows out: parsing, cutting and the forward pass overlap, and the caller's writing with them.

    sources -> parse threads (a parser process each) -> chunk thread -> forward pass, in the caller's thread
    -> rows

Between the stages are bounded channels, so memory does not depend on how many documents there are. Chunks of
many documents share a batch: they are packed by length under a token budget. Any stage's error ends the run
and is raised to the caller; closing the generator ends every thread and parser.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from semantik.channel import Channel, Closed, Empty
from semantik.chunking import Chunk, ChunkCounts, Chunker
from semantik.exceptions import DocumentError, NotFound, SemantikError
from semantik.parser import Parsed, ParserClient

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from semantik.model import Model
    from semantik.settings import Settings

log = logging.getLogger(__name__)

Outcome = Literal["embedded", "skipped", "failed", "removed"]

# Chunks wait for a batch in a pool of this many batches, sorted by length: enough that little is padding.
_POOL_BATCHES = 16
# Texts that wait to be cut, characters in all; and what an item that is no text weighs.
_PARSED_CHARACTERS = 8 * 2**20
_ITEM_WEIGHT = 64
# Chunks handed over at once: a lock per chunk would cost more than the tokenizer.
_CHUNKS_PER_ITEM = 64
# How long the forward pass waits for chunks before it asks again whether to stop, seconds.
_POLL_SECONDS = 0.5
# How long a closing run waits for a thread that the operating system holds (a dead file server), seconds.
_JOIN_SECONDS = 10.0


class Stopped(SemantikError):
    """The run was told to stop; what it had not finished is not embedded."""


@dataclass(frozen=True)
class Source:
    """A document to embed. `known_hash` is the SHA-256 of the bytes already embedded, None for none."""

    key: int
    uri: str
    known_hash: bytes | None
    size: int | None


@dataclass(frozen=True)
class Row:
    """One chunk with its vector: float16 (dim,). Rows of a document come in any order."""

    key: int
    ordinal: int
    text: str
    place: str | None
    token_count: int  # what the model saw: special tokens included
    vector: NDArray[np.float16]


@dataclass(frozen=True)
class Finished:
    """A document's end, after all its rows. `error`: why it failed, or a note on an embedded one."""

    key: int
    outcome: Outcome
    error: str | None = None
    content_hash: bytes | None = None
    size: int | None = None  # bytes
    chunks: int = 0
    tokens: int = 0
    truncated_tokens: int = 0


@dataclass
class EngineStats:
    """What a run did, and how long each stage waited for another (seconds, summed over its threads).

    `waits`: parse_out and chunk_out waited for room, chunk_in and forward_in for work, write is the caller's
    time. The stage that others wait for is the one to make faster.
    """

    seconds: float = 0.0
    documents: int = 0
    chunks: int = 0
    tokens: int = 0
    padding_tokens: int = 0
    batches: int = 0
    forward_seconds: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)
    _batch: frozenset[int] = frozenset()
    _cutting: int | None = None

    def inflight(self) -> list[int]:
        """Return the keys of the documents that a crash of this process now would be put down to.

        They are those in the current batch and the one being tokenized, known before `should_stop` is asked.
        """
        keys = set(self._batch)
        if (cutting := self._cutting) is not None:
            keys.add(cutting)
        return sorted(keys)


@dataclass
class _Document:
    """A document between its first chunk and its end."""

    pending: int = 0  # chunks whose vectors are not out yet
    finished: Finished | None = None  # set when all its chunks are known


@dataclass(frozen=True)
class _Chunks:
    """Chunks of one document on their way to the forward pass; `finished` with the last of them."""

    key: int
    chunks: list[Chunk]
    finished: Finished | None


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
    ) -> None:
        """Take chunk sizes in tokens (0 for the model's limit).

        `opener` turns a URI into an open descriptor; the default opens what `semantik.sources` knows.
        Raises SettingsError when the sizes do not fit the model.
        """
        self.stats = EngineStats()
        self._model = model
        self._settings = settings
        self._chunker = Chunker(model, chunk_tokens=chunk_tokens, chunk_overlap=chunk_overlap)
        self._opener = opener or _open_source

    def run(self, sources: Iterable[Source], should_stop: Callable[[], bool]) -> Iterator[Row | Finished]:
        """Yield the rows of all documents, and a Finished behind the last row of each.

        `sources` is read from another thread. `should_stop` is asked before each batch and at least every
        half second while the next is waited for; when it says true, Stopped is raised.
        """
        self.stats = EngineStats()
        run = _Run(self._model, self._settings, self._chunker, self._opener, self.stats, sources)
        started = time.monotonic()
        try:
            with closing(run):
                yield from run.results(should_stop)
        finally:
            self.stats.seconds = time.monotonic() - started
            self.stats.waits |= run.waits()
            del run
            _give_memory_back(self._model.device)


class _Run:
    """The threads and channels of one run."""

    def __init__(
        self,
        model: Model,
        settings: Settings,
        chunker: Chunker,
        opener: Callable[[str], int],
        stats: EngineStats,
        sources: Iterable[Source],
    ) -> None:
        self._model = model
        self._chunker = chunker
        self._opener = opener
        self._stats = stats
        self._sources = iter(sources)
        self._sources_lock = threading.Lock()
        self._asked = 0.0
        parsers = max(1, settings.parser_count)
        self._parsed: Channel[tuple[int, Parsed] | Finished] = Channel(_PARSED_CHARACTERS, producers=parsers)
        self._chunks: Channel[_Chunks] = Channel(_POOL_BATCHES * model.token_budget, producers=1)
        self._clients = [ParserClient(settings) for _ in range(parsers)]
        self._threads = [
            threading.Thread(
                target=self._guard, args=(self._parse, client, self._parsed), name=f"parse-{at}", daemon=True
            )
            for at, client in enumerate(self._clients)
        ]
        self._threads.append(
            threading.Thread(
                target=self._guard, args=(self._cut, None, self._chunks), name="chunk", daemon=True
            )
        )
        self._write_seconds = 0.0
        self._open: dict[int, _Document] = {}
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End all threads and parsers."""
        for channel in (self._parsed, self._chunks):
            channel.close()
        for client in self._clients:
            client.abort()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("thread %s does not end: the operating system holds it", thread.name)

    def waits(self) -> dict[str, float]:
        return {
            "parse_out": self._parsed.put_seconds,
            "chunk_in": self._parsed.get_seconds,
            "chunk_out": self._chunks.put_seconds,
            "forward_in": self._chunks.get_seconds,
            "write": self._write_seconds,
        }

    # --- the stages that have threads of their own ---

    def _guard(self, stage: Callable[[Any], None], argument: Any, out: Channel[Any]) -> None:
        """Run a stage; whatever ends it, the stage behind learns of it."""
        try:
            stage(argument)
        except Closed:
            return  # the run is over
        except BaseException as error:  # raised again in the caller's thread
            out.fail(error)
            return
        out.done()

    def _parse(self, client: ParserClient) -> None:
        with client:
            while True:
                with self._sources_lock:
                    source = next(self._sources, None)
                if source is None:
                    return
                item = self._parse_one(client, source)
                length = 0 if isinstance(item, Finished) else len(item[1].text)
                self._parsed.put(item, length + _ITEM_WEIGHT)

    def _parse_one(self, client: ParserClient, source: Source) -> tuple[int, Parsed] | Finished:
        try:
            fd = self._opener(source.uri)
        except (FileNotFoundError, NotFound):
            return Finished(source.key, "removed")
        except DocumentError as error:
            return Finished(source.key, "failed", str(error))
        except OSError as error:
            return Finished(source.key, "failed", f"cannot be opened: {error.strerror or error}")
        try:
            parsed = client.parse(fd, source.uri, source.known_hash)
        except DocumentError as error:
            return Finished(source.key, "failed", str(error))
        finally:
            os.close(fd)
        if parsed.unchanged:
            return Finished(source.key, "skipped", None, parsed.sha256, parsed.size)
        return source.key, parsed

    def _cut(self, _: None) -> None:
        while (item := self._parsed.get()) is not None:
            if isinstance(item, Finished):
                self._hand_on(_Chunks(item.key, [], item))
            elif item is not Empty.EMPTY:
                self._cut_one(*item)
            del item  # a text is not held while the next is waited for

    def _cut_one(self, key: int, parsed: Parsed) -> None:
        counts = ChunkCounts()
        self._stats._cutting = key
        chunks = self._chunker.cut(parsed.text, parsed.sections, counts)
        while len(some := list(islice(chunks, _CHUNKS_PER_ITEM))) == _CHUNKS_PER_ITEM:
            self._hand_on(_Chunks(key, some, None))
        self._stats._cutting = None
        notes = [parsed.note] if parsed.note else []
        if counts.split_words:
            notes.append(f"text without spaces was cut inside words in {counts.split_words} places")
        finished = Finished(
            key,
            "embedded",
            "; ".join(notes) or None,
            parsed.sha256,
            parsed.size,
            counts.chunks,
            counts.tokens,
            counts.truncated_tokens,
        )
        self._hand_on(_Chunks(key, some, finished))

    def _hand_on(self, item: _Chunks) -> None:
        self._chunks.put(item, sum(len(chunk.ids) for chunk in item.chunks) + _ITEM_WEIGHT)

    # --- the stage in the caller's thread ---

    def results(self, should_stop: Callable[[], bool]) -> Iterator[Row | Finished]:
        """Pool chunks, run them by length in batches under the budget, and hand out what is done."""
        budget = self._model.token_budget
        pool: list[tuple[int, Chunk]] = []
        pooled = 0
        more = True
        while more or pool:
            while more and pooled < _POOL_BATCHES * budget:
                # With a batch in hand nothing is waited for: the device must not.
                item = self._chunks.get(0.0 if pooled >= budget else _POLL_SECONDS)
                if item is Empty.EMPTY:
                    if pooled >= budget:
                        break
                    self._ask(should_stop)
                    continue
                if time.monotonic() - self._asked > _POLL_SECONDS:
                    self._ask(should_stop)
                if item is None:
                    more = False
                    break
                pool += ((item.key, chunk) for chunk in item.chunks)
                pooled += sum(len(chunk.ids) for chunk in item.chunks)
                yield from self._given(self._take(item))
            pool.sort(key=lambda entry: len(entry[1].ids))
            # While more is to come, what does not fill a batch waits for company of its length.
            for batch in _batches(pool, budget, keep_rest=more):
                yield from self._given(self._forward(batch, should_stop))
            pooled = sum(len(chunk.ids) for _, chunk in pool)

    def _take(self, item: _Chunks) -> Iterator[Finished]:
        document = self._open.setdefault(item.key, _Document())
        document.pending += len(item.chunks)
        document.finished = item.finished
        if item.finished is not None and not document.pending:
            yield self._end(item.key, item.finished)

    def _forward(
        self, batch: list[tuple[int, Chunk]], should_stop: Callable[[], bool]
    ) -> Iterator[Row | Finished]:
        stats = self._stats
        stats._batch = frozenset(key for key, _ in batch)
        self._ask(should_stop)
        started = time.monotonic()
        vectors = self._model.embed_ids([chunk.ids for _, chunk in batch]).astype(np.float16)
        stats.forward_seconds += time.monotonic() - started
        stats.batches += 1
        stats.chunks += len(batch)
        tokens = sum(len(chunk.ids) for _, chunk in batch)
        stats.tokens += tokens
        stats.padding_tokens += len(batch) * max(len(chunk.ids) for _, chunk in batch) - tokens
        stats._batch = frozenset()
        for (key, chunk), vector in zip(batch, vectors, strict=True):
            yield Row(key, chunk.ordinal, chunk.text, chunk.place, len(chunk.ids), vector)
            document = self._open[key]
            document.pending -= 1
            if document.finished is not None and not document.pending:
                yield self._end(key, document.finished)

    def _end(self, key: int, finished: Finished) -> Finished:
        del self._open[key]
        self._stats.documents += 1
        return finished

    def _given(self, results: Iterator[Row | Finished]) -> Iterator[Row | Finished]:
        """Hand results out, counting the time that the caller keeps each."""
        for result in results:
            started = time.monotonic()
            yield result
            self._write_seconds += time.monotonic() - started

    def _ask(self, should_stop: Callable[[], bool]) -> None:
        if should_stop():
            raise Stopped("told to stop")
        self._asked = time.monotonic()


def _batches(
    pool: list[tuple[int, Chunk]], budget: int, *, keep_rest: bool
) -> Iterator[list[tuple[int, Chunk]]]:
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


def _open_source(uri: str) -> int:
    from semantik.sources import open_source

    return open_source(uri)


def _give_memory_back(device: str) -> None:
    """Return what a run freed to the system: a worker's resident set must not grow from shard to shard."""
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
    if trim is not None:
        trim(0)
