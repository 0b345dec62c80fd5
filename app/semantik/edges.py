"""The edges of a chunk: where the tokenizer reads its text otherwise when nothing stands around it.

A chunk is a slice of the whole text's tokens. A tokenizer may put the space before a word into the word's
token (bytes), mark what begins a text (SentencePiece), or see one word where the chunk ends: then the tokens
at that edge are read again, up to where both readings are alike.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

import numpy as np

from semantik.tokens import Tokens, first_alike

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from semantik.reader import Reader

# Tokens read again at an edge: enough, with most texts, to meet some that are alike in both readings.
_EDGE_TOKENS = 6
_SPACE = re.compile(r"\s+")


class Counts(Protocol):
    """What is counted here."""

    edges: int
    parted_words: int
    parted_chunks: int


class Edges:
    """Gives the ids of one text's chunks."""

    def __init__(self, reader: Reader, tokens: Tokens, text: str, counts: Counts) -> None:
        self._reader = reader
        self._tokens = tokens
        self._text = text
        self._counts = counts

    def ids(self, start: int, stop: int, first: int, last: int) -> NDArray[np.int64]:
        """Return the ids of text[first:last], which tokens [start, stop) are but for their edges."""
        tokens, reader, text = self._tokens, self._reader, self._text
        ids = tokens.slice(start, stop)
        spaced = first > 0 and text[first - 1].isspace()
        head = first > 0 and (reader.minds_space if spaced else reader.minds_others)
        tail = tokens.span(stop - 1)[1] > last
        through = not reader.unigram and not (
            (not first or spaced or tokens.parts_nothing(start))
            and (text[last : last + 1].isspace() or tokens.parts_nothing(stop))
        )
        if self._counts.parted_words and tokens.any_in_parts(start, stop):
            self._counts.parted_chunks += 1
            return ids
        if through:
            self._counts.edges += 1
            return reader.ids(text[first:last])
        if not head and not tail:
            return ids
        self._counts.edges += 1
        if head and (mended := self._first_word(ids, first, last, start, stop)) is not None:
            ids, head = mended, False
        if not head and not tail:
            return ids
        for some in (_EDGE_TOKENS, 4 * _EDGE_TOKENS):
            if stop - start <= 2 * some:
                break
            mended = self._head(ids, first, start, some) if head else ids
            if mended is not None and tail:
                mended = self._tail(mended, last, stop, some)
            if mended is not None:
                return mended
        return reader.ids(text[first:last])

    def _first_word(
        self, ids: NDArray[np.int64], first: int, last: int, start: int, stop: int
    ) -> NDArray[np.int64] | None:
        """Read the first word again; None where the space behind it is in one of its tokens."""
        space = _SPACE.search(self._text, first, min(last, first + 100))
        if space is None:
            return None
        end = space.start()
        behind = self._tokens.at(end, start, stop)
        if behind in (start, stop) or self._tokens.span(behind - 1)[1] > end:
            return None
        return np.concatenate((self._reader.word(self._text[first:end]), ids[behind - start :]))

    def _head(self, ids: NDArray[np.int64], first: int, start: int, some: int) -> NDArray[np.int64] | None:
        """Read the beginning again, up to where it is as before; None if that is not near."""
        spans = [self._tokens.span(start + at) for at in range(some)]
        again = self._reader.encode(self._text[first : spans[-1][1]])
        new = [(first + begin, token) for (begin, _), token in zip(again.offsets, again.ids, strict=True)]
        old = list(zip((begin for begin, _ in spans), ids[:some].tolist(), strict=True))
        found = first_alike(new, old)
        if found is None:
            return None
        return np.concatenate((np.array(again.ids[: found[0]], dtype=np.int64), ids[found[1] :]))

    def _tail(self, ids: NDArray[np.int64], last: int, stop: int, some: int) -> NDArray[np.int64] | None:
        """As _head(), for the end."""
        spans = [self._tokens.span(at) for at in range(stop - some, stop)]
        begin = spans[0][0]
        again = self._reader.encode(self._text[begin:last])
        new = [(begin + low, token) for (low, _), token in zip(again.offsets, again.ids, strict=True)]
        old = list(zip((low for low, _ in spans), ids[-some:].tolist(), strict=True))
        found = first_alike(new[::-1], old[::-1])
        if found is None:
            return None
        return np.concatenate(
            (ids[: len(ids) - found[1]], np.array(again.ids[len(new) - found[0] :], dtype=np.int64))
        )
