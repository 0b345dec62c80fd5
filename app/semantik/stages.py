"""The engine's stages that have threads of their own: parsing and cutting.

sources -> parse threads (a parser process each) -> chunk thread -> `chunks`, which the caller reads
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from semantik.channel import Channel, Closed, Empty, Ordered
from semantik.chunking import Chunk, ChunkCounts, Chunker
from semantik.exceptions import DocumentError, NotFound
from semantik.items import EngineStats, Finished, Mark, Source
from semantik.parser import Parsed, ParserClient

if TYPE_CHECKING:
    from semantik.settings import Settings

log = logging.getLogger(__name__)

# Texts that wait to be cut, characters in all; and what an item that is no text weighs.
_PARSED_CHARACTERS = 8 * 2**20
_ITEM_WEIGHT = 64
# Chunks handed over at once: a lock per chunk would cost more than the tokenizer.
_CHUNKS_PER_ITEM = 64
# How long a closing run waits for a thread that the operating system holds (a dead file server), seconds.
_JOIN_SECONDS = 10.0


@dataclass(frozen=True)
class Chunks:
    """Chunks of one document on their way to the forward pass; `finished` with the last of them."""

    key: int
    chunks: list[Chunk]
    finished: Finished | None


class Stages:
    """The threads of one run, and the channel that they fill."""

    def __init__(
        self,
        settings: Settings,
        chunker: Chunker,
        opener: Callable[[str], int],
        stats: EngineStats,
        sources: Iterable[Source | Mark],
        *,
        ordered: bool,
        waiting_tokens: int,
    ) -> None:
        """Start them. `ordered`: documents are cut in the order of `sources`, not as their parsers finish.

        `waiting_tokens`: how many tokens may wait in `chunks`.
        """
        self._chunker = chunker
        self._opener = opener
        self._stats = stats
        self._sources = enumerate(sources)
        self._sources_lock = threading.Lock()
        parsers = max(1, settings.parser_count)
        kind = Ordered if ordered else Channel
        self._parsed: Channel[tuple[int, Parsed] | Finished | Mark] = kind(
            _PARSED_CHARACTERS, producers=parsers
        )
        self.chunks: Channel[Chunks | Mark] = Channel(waiting_tokens, producers=1)
        self._clients = [ParserClient(settings) for _ in range(parsers)]
        self._threads = [
            threading.Thread(
                target=self._guard, args=(self._parse, client, self._parsed), name=f"parse-{at}", daemon=True
            )
            for at, client in enumerate(self._clients)
        ]
        self._threads.append(
            threading.Thread(
                target=self._guard, args=(self._cut, None, self.chunks), name="chunk", daemon=True
            )
        )
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End all threads and parsers."""
        for channel in (self._parsed, self.chunks):
            channel.close()
        for client in self._clients:
            client.abort()
        deadline = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                log.warning("thread %s does not end: the operating system holds it", thread.name)

    def waits(self) -> dict[str, float]:
        """Return the seconds that each stage waited for its neighbour, by the names of EngineStats."""
        return {
            "parse_out": self._parsed.put_seconds,
            "chunk_in": self._parsed.get_seconds,
            "chunk_out": self.chunks.put_seconds,
            "forward_in": self.chunks.get_seconds,
        }

    def _guard(self, stage: Callable[[Any], None], argument: Any, out: Channel[Any]) -> None:
        """Run a stage; whatever ends it, the stage behind learns of it."""
        try:
            stage(argument)
        except Closed:
            return  # the run is over
        except Exception as error:  # raised again in the caller's thread
            out.fail(error)
            return
        except BaseException as error:
            # A panic in the tokenizer, which is no Exception and would pass the caller's handlers unseen.
            out.fail(RuntimeError(f"{type(error).__name__}: {error}"))
            return
        out.done()

    def _parse(self, client: ParserClient) -> None:
        with client:
            while True:
                with self._sources_lock:
                    at, source = next(self._sources, (0, None))
                if source is None:
                    return
                item = source if isinstance(source, Mark) else self._parse_one(client, source)
                length = len(item[1].text) if isinstance(item, tuple) else 0
                self._parsed.put(item, length + _ITEM_WEIGHT, place=at)

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
                self._hand_on(Chunks(item.key, [], item))
            elif isinstance(item, Mark):
                self.chunks.put(item, _ITEM_WEIGHT)
            elif item is not Empty.EMPTY:
                self._cut_one(*item)
            del item  # a text is not held while the next is waited for

    def _cut_one(self, key: int, parsed: Parsed) -> None:
        counts = ChunkCounts()
        self._stats._cutting = key
        chunks = self._chunker.cut(parsed.text, parsed.sections, counts)
        while len(some := list(islice(chunks, _CHUNKS_PER_ITEM))) == _CHUNKS_PER_ITEM:
            self._hand_on(Chunks(key, some, None))
        self._stats._cutting = None
        notes = [parsed.note] if parsed.note else []
        if (said := counts.note()) is not None:
            notes.append(said)
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
        self._hand_on(Chunks(key, some, finished))

    def _hand_on(self, item: Chunks) -> None:
        self.chunks.put(item, sum(len(chunk.ids) for chunk in item.chunks) + _ITEM_WEIGHT)
