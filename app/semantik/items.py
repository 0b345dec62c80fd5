"""What goes into the engine and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from semantik.exceptions import SemantikError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Outcome = Literal["embedded", "skipped", "failed", "removed"]


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
class Mark:
    """A border between sources: it comes out when all that was before it is out, and nothing behind it."""

    number: int


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
    """A document's end, after all its rows. `error`: why it failed, or a note on an embedded one.

    Rows of a document that then fails (the model overflowed on one of its chunks) are to be dropped.
    """

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
    padding_tokens: int = 0  # computed for nothing: none where batches go to the device without padding
    batches: int = 0
    oom_splits: int = 0  # batches that did not fit into the device's memory and were halved
    forward_seconds: float = 0.0
    waits: dict[str, float] = field(default_factory=dict)
    _batches: list[frozenset[int]] = field(default_factory=list)
    _cutting: int | None = None

    def inflight(self) -> list[int]:
        """Return the keys of the documents that a crash of this process now would be put down to.

        They are those in the batches under way and the one being tokenized, known before `should_stop` is
        asked.
        """
        keys = {key for batch in self._batches for key in batch}
        if (cutting := self._cutting) is not None:
            keys.add(cutting)
        return sorted(keys)
