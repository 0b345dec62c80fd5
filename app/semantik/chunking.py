"""Text into chunks: tokenized once, each chunk a slice of those ids and of the text they came from.

The text goes through the tokenizer in windows, since a call on a whole book is slower and takes 180 bytes of
memory per character. Windows end at whitespace, where no token spans the cut; chunks end at the end of a
section, a paragraph or a sentence where one lies near the limit, else between words. So the ids of a chunk
are what the tokenizer gives for the chunk's text alone, and that is what the model sees.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from semantik.exceptions import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding

    from semantik.model import Model

#: Characters per call of the tokenizer; measured: larger windows are slower.
WINDOW_CHARACTERS = 65_536
# Windows handed to the tokenizer in one call, which releases the GIL and may use a core for each.
_WINDOWS_PER_CALL = 4
#: Characters per token of a chunk's limit: four times what prose has, so that it binds only on layout and
#: noise.
CHARACTERS_PER_TOKEN = 16

_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
# A sentence ends with its mark, closing quotes and space; CJK marks need no space.
_SENTENCE = re.compile(
    r"[.!?\u2026][\"'\u2019\u201d)\]]*\s+|[\u3002\uff01\uff1f]+[\u300d\u300f\uff09]*\s*|:\s*\n\s*"
)
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Chunk:
    """A slice of a document. `ids` are what the model gets: int64, special tokens and prompt included."""

    ordinal: int
    offset: int  # of `text` in the document, characters
    text: str
    place: str | None  # label of the section that it starts in
    ids: NDArray[np.int64]


@dataclass
class ChunkCounts:
    """What was counted while one document was cut."""

    chunks: int = 0
    tokens: int = 0  # of all chunks, special tokens and overlap included
    truncated_tokens: int = 0  # tokens of the text that no chunk holds
    split_words: int = 0  # cuts inside a run of characters without space, longer than a chunk


@dataclass(frozen=True)
class _Window:
    """A piece of the text with its tokens, numbered through the whole text."""

    first_token: int
    offset: int  # in the text, characters
    encoding: Encoding
    ids: NDArray[np.int64] = field(repr=False)

    @property
    def end_token(self) -> int:
        return self.first_token + len(self.ids)


class Chunker:
    """Cuts texts for one model. Keeps no state between texts; use from one thread at a time."""

    def __init__(self, model: Model, *, chunk_tokens: int = 0, chunk_overlap: int = 0) -> None:
        """Take at most `chunk_tokens` per chunk, special tokens included (0: the model's limit).

        Raises SettingsError when the limit is above the model's or leaves no room beside the overlap.
        """
        limit = chunk_tokens or model.max_tokens
        if limit > model.max_tokens:
            raise SettingsError(
                f"SEMANTIK_CHUNK_TOKENS={limit}: {model.name} takes at most {model.max_tokens} tokens"
            )
        self._prefix, self._suffix = model.prefix, model.suffix
        self._room = limit - len(self._prefix) - len(self._suffix)
        if self._room < 8:
            raise SettingsError(
                f"SEMANTIK_CHUNK_TOKENS={limit} leaves {self._room} tokens for text: choose 16 or more"
            )
        if not 0 <= chunk_overlap <= self._room // 2:
            raise SettingsError(
                f"SEMANTIK_CHUNK_OVERLAP={chunk_overlap}: choose 0 to {self._room // 2} (half a chunk)"
            )
        self._overlap = chunk_overlap
        self._tokenizer = model.tokenizer
        self._max_characters = limit * CHARACTERS_PER_TOKEN

    def cut(self, text: str, sections: Sequence[tuple[int, str]], counts: ChunkCounts) -> Iterator[Chunk]:
        """Yield the chunks of `text` in order, counting into `counts`; `sections`: (offset, label) pairs."""
        tokens = _Tokens(self._windows(text))
        offsets = [offset for offset, _ in sections]
        start = 0
        while tokens.load(start + self._room + 1) > start:
            first = tokens.span(start)[0]
            end = self._limit(tokens, start, first)
            if end == start:  # one token of more characters than a chunk may have
                yield from self._pieces(text, *tokens.span(start), sections, offsets, counts)
                start += 1
                tokens.forget(start)
                continue
            if end < tokens.loaded:
                end = self._cut(tokens, text, offsets, start, end, counts)
            chunk_ids = np.concatenate((self._prefix, tokens.slice(start, end), self._suffix))
            yield self._chunk(text, first, tokens.span(end - 1)[1], chunk_ids, sections, offsets, counts)
            if end >= tokens.loaded:
                return
            start = self._restart(tokens, text, offsets, start, end)
            tokens.forget(start)

    def _chunk(
        self,
        text: str,
        first: int,
        last: int,
        ids: NDArray[np.int64],
        sections: Sequence[tuple[int, str]],
        offsets: list[int],
        counts: ChunkCounts,
    ) -> Chunk:
        at = bisect_right(offsets, first) - 1
        chunk = Chunk(counts.chunks, first, text[first:last], sections[at][1] if at >= 0 else None, ids)
        counts.chunks += 1
        counts.tokens += len(ids)
        return chunk

    def _limit(self, tokens: _Tokens, start: int, first: int) -> int:
        """Return the token behind the last that fits into a chunk, by tokens and by characters."""
        end = min(start + self._room, tokens.loaded)
        if tokens.span(end - 1)[1] - first > self._max_characters:
            return (
                bisect_right(
                    range(start, end), first + self._max_characters, key=lambda at: tokens.span(at)[1]
                )
                + start
            )
        return end

    def _cut(
        self, tokens: _Tokens, text: str, offsets: list[int], start: int, end: int, counts: ChunkCounts
    ) -> int:
        """Move `end`, the furthest that fits, back to a better place, by at most a quarter of the chunk."""
        low = end - max(1, (end - start) // 4)
        begin, limit = tokens.span(low)[0], tokens.span(end)[0]
        section = bisect_right(offsets, limit) - 1
        if section >= 0 and offsets[section] > begin:
            return self._token_at(tokens, offsets[section], low, end)
        near = text[begin:limit]
        for pattern in (_PARAGRAPH, _SENTENCE, _SPACE):
            found = [match.end() for match in pattern.finditer(near)]
            if found and (cut := self._token_at(tokens, begin + found[-1], low, end)) > start:
                return cut
        # No space near the limit: any place where the tokenizer starts a new word, over the whole chunk.
        for at in range(end, start, -1):
            if tokens.starts_word(at):
                return at
        counts.split_words += 1
        return end

    def _restart(self, tokens: _Tokens, text: str, offsets: list[int], start: int, end: int) -> int:
        """Return where the next chunk starts: at most the overlap before `end`, at a sentence or a word.

        It does not start before the section that it is mostly in, or its place would be the wrong one.
        """
        low = max(start + 1, end - self._overlap)
        if low >= end:
            return end
        begin, limit = tokens.span(low)[0], tokens.span(end)[0]
        section = bisect_right(offsets, limit) - 1
        if section >= 0 and offsets[section] > begin:
            return self._token_at(tokens, offsets[section], low, end)
        near = text[begin:limit]
        # At the limit itself there is no overlap, so a match that ends there is none.
        for pattern in (_PARAGRAPH, _SENTENCE, _SPACE):
            for match in pattern.finditer(near):
                if match.end() < len(near):
                    return self._token_at(tokens, begin + match.end(), low, end)
        return end

    @staticmethod
    def _token_at(tokens: _Tokens, offset: int, low: int, high: int) -> int:
        """Return the first token in [low, high] that starts at `offset` or behind it."""
        return low + bisect_left(range(low, high), offset, key=lambda at: tokens.span(at)[0])

    def _pieces(
        self,
        text: str,
        first: int,
        last: int,
        sections: Sequence[tuple[int, str]],
        offsets: list[int],
        counts: ChunkCounts,
    ) -> Iterator[Chunk]:
        """Cut one giant token (an unknown word of any length) into chunks by characters."""
        for begin in range(first, last, self._max_characters):
            end = min(begin + self._max_characters, last)
            ids = np.array(
                self._tokenizer.encode(text[begin:end], add_special_tokens=False).ids, dtype=np.int64
            )
            counts.split_words += begin > 0 and text[begin - 1].isalnum()
            counts.truncated_tokens += max(0, len(ids) - self._room)
            whole = np.concatenate((self._prefix, ids[: self._room], self._suffix))
            yield self._chunk(text, begin, end, whole, sections, offsets, counts)

    def _windows(self, text: str) -> Iterator[_Window]:
        first_token = 0
        bounds = list(_bounds(text))
        for at in range(0, len(bounds), _WINDOWS_PER_CALL):
            some = bounds[at : at + _WINDOWS_PER_CALL]
            encodings = self._tokenizer.encode_batch(
                [text[low:high] for low, high in some], add_special_tokens=False
            )
            for (low, _), encoding in zip(some, encodings, strict=True):
                window = _Window(first_token, low, encoding, np.array(encoding.ids, dtype=np.int64))
                yield window
                first_token = window.end_token


def _bounds(text: str) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) of each window: behind a line's end, else before a space, else anywhere."""
    start = 0
    while len(text) - start > WINDOW_CHARACTERS:
        limit = start + WINDOW_CHARACTERS
        earliest = limit - WINDOW_CHARACTERS // 4
        end = text.rfind("\n", earliest, limit) + 1
        if not end:
            end = text.rfind(" ", earliest, limit)
        if end <= start:
            end = limit
        yield start, end
        start = end
    yield start, len(text)


class _Tokens:
    """The tokens of a text, numbered through all windows; only the windows in use are held."""

    def __init__(self, windows: Iterator[_Window]) -> None:
        self._source = windows
        self._held: deque[_Window] = deque()
        self._exhausted = False
        self.loaded = 0  # tokens up to here are known

    def load(self, upto: int) -> int:
        """Read windows until `upto` tokens are known or the text ends; return how many are known."""
        while self.loaded < upto and not self._exhausted:
            window = next(self._source, None)
            if window is None:
                self._exhausted = True
            else:
                self._held.append(window)
                self.loaded = window.end_token
        return self.loaded

    def forget(self, before: int) -> None:
        """Drop the windows that end before token `before`."""
        while self._held and self._held[0].end_token <= before:
            self._held.popleft()

    def slice(self, start: int, end: int) -> NDArray[np.int64]:
        """Return the ids of tokens [start, end)."""
        parts = [
            window.ids[max(0, start - window.first_token) : max(0, end - window.first_token)]
            for window in self._held
        ]
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def span(self, token: int) -> tuple[int, int]:
        """Return where a token stands in the text: (start, end) in characters."""
        window = self._window(token)
        # Every token has a span, since none here is a special one.
        start, end = cast("tuple[int, int]", window.encoding.token_to_chars(token - window.first_token))
        return window.offset + start, window.offset + end

    def starts_word(self, token: int) -> bool:
        """Say whether the tokenizer began a new word with this token."""
        window = self._window(token)
        local = token - window.first_token
        if local == 0:
            return True
        word: Any = window.encoding.token_to_word(local)
        return bool(word != window.encoding.token_to_word(local - 1))

    def _window(self, token: int) -> _Window:
        for window in self._held:
            if token < window.end_token:
                return window
        raise IndexError(f"token {token} of {self.loaded}")
