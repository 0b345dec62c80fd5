"""Text into chunks: tokenized once, each chunk a slice of those ids and of the text they came from.

Chunks end at the end of a section, a paragraph or a sentence where one lies near the limit, else between
words. The ids of a chunk are what the tokenizer gives for the chunk's text alone, and that is what the model
sees. For most tokenizers the slice is just that; where the first token holds the space before a word, or a
cut had to go through one, the ids at that edge are read again.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semantik.edges import Edges
from semantik.exceptions import SettingsError
from semantik.reader import Reader
from semantik.tokens import Tokens

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from semantik.model import Model

#: Characters per token of a chunk's limit: four times what prose has, so that it binds only on layout and
#: noise.
CHARACTERS_PER_TOKEN = 16
# Unknown characters among a hundred from which on the document says so.
_UNKNOWN_PERCENT = 2

_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
# A sentence ends with its mark, closing quotes and space; CJK marks need no space.
_SENTENCE = re.compile(
    r"[.!?\u2026][\"'\u2019\u201d)\]]*\s+|[\u3002\uff01\uff1f]+[\u300d\u300f\uff09]*\s*|:\s*\n\s*"
)
_SPACE = re.compile(r"\s+")
_PLACES = (_PARAGRAPH, _SENTENCE, _SPACE)
_SOLID = re.compile(r"\S")


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

    characters: int = 0  # of the text
    chunks: int = 0
    tokens: int = 0  # of all chunks, special tokens and overlap included
    truncated_tokens: int = 0  # tokens of the text that no chunk holds
    split_words: int = 0  # cuts inside a run of characters without space, longer than a chunk
    parted_words: int = 0  # words above the tokenizer's own limit, read in parts
    unknown_tokens: int = 0  # tokens that stand for what the model has no token for, each counted once
    unknown_characters: int = 0  # the characters behind them
    parted_chunks: int = 0  # chunks that hold such parts
    edges: int = 0  # chunks of which an edge was read again

    def note(self) -> str | None:
        """Return what a reader of the job's report should know of this text, None for nothing."""
        notes = []
        if self.split_words:
            notes.append(f"text without spaces was cut inside words in {self.split_words} places")
        if 100 * self.unknown_characters >= _UNKNOWN_PERCENT * max(1, self.characters):
            notes.append(
                f"{self.unknown_characters} of {self.characters} characters are in {self.unknown_tokens} "
                "words that the model does not know: searches hardly find them"
            )
        if self.truncated_tokens:
            notes.append(f"{self.truncated_tokens} tokens are in no chunk")
        return "; ".join(notes) or None


@dataclass(frozen=True)
class _Shape:
    """What a chunk may be: `room` and `overlap` in tokens of text, `characters` of text at most."""

    prefix: NDArray[np.int64]
    suffix: NDArray[np.int64]
    room: int
    overlap: int
    characters: int


class Chunker:
    """Cuts texts for one model. Keeps no state between texts; use from one thread at a time."""

    def __init__(self, model: Model, *, chunk_tokens: int = 0, chunk_overlap: int = 0) -> None:
        """Take at most `chunk_tokens` per chunk, special tokens included (0: the model's limit).

        The model's tokenizer reads special tokens that stand in a text as text from here on. Raises
        SettingsError when the limit is above the model's or leaves no room beside the overlap.
        """
        limit = chunk_tokens or model.max_tokens
        if limit > model.max_tokens:
            raise SettingsError(
                f"SEMANTIK_CHUNK_TOKENS={limit} (semantik embed: --chunk-tokens): "
                f"{model.name} takes at most {model.max_tokens} tokens"
            )
        room = limit - len(model.prefix) - len(model.suffix)
        if room < 8:
            raise SettingsError(
                f"SEMANTIK_CHUNK_TOKENS={limit} leaves {room} tokens for text: choose 16 or more"
            )
        if not 0 <= chunk_overlap <= room // 2:
            raise SettingsError(
                f"SEMANTIK_CHUNK_OVERLAP={chunk_overlap} (semantik embed: --chunk-overlap): "
                f"choose 0 to {room // 2}, half of a chunk of {limit} tokens"
            )
        self._shape = _Shape(model.prefix, model.suffix, room, chunk_overlap, limit * CHARACTERS_PER_TOKEN)
        self._reader = Reader(model.tokenizer, longest_word=self._shape.characters)

    def cut(self, text: str, sections: Sequence[tuple[int, str]], counts: ChunkCounts) -> Iterator[Chunk]:
        """Yield the chunks of `text` in order, counting into `counts`; `sections`: (offset, label) pairs."""
        return _Cut(self._shape, self._reader, text, sections, counts).chunks()


class _Cut:
    """One text on its way into chunks."""

    def __init__(
        self,
        shape: _Shape,
        reader: Reader,
        text: str,
        sections: Sequence[tuple[int, str]],
        counts: ChunkCounts,
    ) -> None:
        self._shape = shape
        self._reader = reader
        self._text = text
        self._sections = sections
        self._offsets = [offset for offset, _ in sections]
        self._counts = counts
        self._tokens = Tokens(text, reader.windows(text, counts))
        self._edges = Edges(reader, self._tokens, text, counts)
        counts.characters += len(text)

    def chunks(self) -> Iterator[Chunk]:
        tokens, room = self._tokens, self._shape.room
        start = 0
        while tokens.load(start + room + 1) > start:
            first = tokens.start(start)
            begin, close = tokens.span(start)
            if first == close and (begin < close or first > 0 or self._text[0].isspace()):
                # A token of space alone; some tokenizers trim its span to nothing.
                solid = _SOLID.search(self._text, first)
                if solid is None or (found := tokens.seek(solid.start(), start + 1)) is None:
                    return
                start = found
                continue
            end = self._limit(start, first)
            if end == start:  # one token of more characters than a chunk may have
                yield from self._pieces(first, close)
                start += 1
            elif end == start + 1 < tokens.loaded and tokens.shares_character(end):
                start += 1  # a sign for the beginning, before such a token: the tokenizer puts it anew
            else:
                if end < tokens.loaded:
                    end = self._place(start, end)
                end, last, ids = self._fit(start, end, first)
                yield self._chunk(first, last, ids)
                if end >= tokens.loaded:
                    return
                start = self._restart(start, end)
            tokens.forget(start)

    def _chunk(self, first: int, last: int, ids: NDArray[np.int64]) -> Chunk:
        whole = np.concatenate((self._shape.prefix, ids, self._shape.suffix))
        at = bisect_right(self._offsets, first) - 1
        place = self._sections[at][1] if at >= 0 else None
        chunk = Chunk(self._counts.chunks, first, self._text[first:last], place, whole)
        self._counts.chunks += 1
        self._counts.tokens += len(whole)
        return chunk

    def _limit(self, start: int, first: int) -> int:
        """Return the token behind the last that fits into a chunk, by tokens and by characters."""
        tokens = self._tokens
        end = min(start + self._shape.room, tokens.loaded)
        furthest = first + self._shape.characters
        if tokens.span(end - 1)[1] > furthest:
            return start + bisect_right(range(start, end), furthest, key=lambda at: tokens.span(at)[1])
        return end

    def _place(self, start: int, end: int) -> int:
        """Move `end`, the furthest that fits, back to a better place, by at most a quarter of the chunk."""
        tokens = self._tokens
        low = max(start + 1, end - max(1, (end - start) // 4))
        begin, limit = tokens.start(low), tokens.start(end)
        section = bisect_right(self._offsets, limit) - 1
        if section >= 0 and self._offsets[section] > begin:
            return tokens.at(self._offsets[section], low, end)
        near = self._text[begin:limit]
        for pattern in _PLACES:
            found = [match.end() for match in pattern.finditer(near)]
            if found:
                return tokens.at(begin + found[-1], low, end)
        # No space near the limit: any place where the tokenizer starts a new word, over the whole chunk.
        for at in range(end, start, -1):
            if tokens.parts_nothing(at):
                return at
        while end > start + 1 and tokens.shares_character(end):
            end -= 1
        self._count_split(tokens.span(end)[0])
        return end

    def _restart(self, start: int, end: int) -> int:
        """Return where the next chunk starts: at most the overlap before `end`, at a sentence or a word.

        It does not start before the section that it is mostly in, or its place would be the wrong one.
        """
        low = max(start + 1, end - self._shape.overlap)
        if low >= end:
            return end
        tokens = self._tokens
        begin, limit = tokens.start(low), tokens.start(end)
        section = bisect_right(self._offsets, limit) - 1
        if section >= 0 and self._offsets[section] > begin:
            return tokens.at(self._offsets[section], low, end)
        near = self._text[begin:limit]
        # At the limit itself there is no overlap, so a match that ends there is none.
        for pattern in _PLACES:
            match = pattern.search(near)
            if match is not None and match.end() < len(near):
                return tokens.at(begin + match.end(), low, end)
        return end

    def _fit(self, start: int, end: int, first: int) -> tuple[int, int, NDArray[np.int64]]:
        """Return the end of a chunk, of its text without the space behind it, and its ids, `room` at most.

        The ids at an edge that were read again may be more than the slice had: then the end moves back.
        """
        tokens, text, room = self._tokens, self._text, self._shape.room
        while True:
            last = tokens.span(end - 1)[1]
            while last > first and text[last - 1].isspace():
                last -= 1
            # A mark that normalizing joined to its letter is in no token's span.
            bound = tokens.span(end)[0] if end < tokens.loaded else len(text)
            while last < bound and text[last] > "\u02ff" and unicodedata.category(text[last])[0] == "M":
                last += 1
            stop = end
            while stop > start + 1 and tokens.span(stop - 1)[0] >= last:
                stop -= 1
            ids = self._edges.ids(start, stop, first, last)
            over = len(ids) - room
            if over <= 0:
                return end, last, ids
            if stop == start + 1:
                self._counts.truncated_tokens += over
                return end, last, ids[:room]
            furthest = end = max(start + 1, stop - over)
            while end > start + 1 and not tokens.parts_nothing(end):
                end -= 1
            if end == start + 1:
                end = furthest
                while end > start + 1 and tokens.shares_character(end):
                    end -= 1
                self._count_split(tokens.span(end)[0])

    def _pieces(self, first: int, last: int) -> Iterator[Chunk]:
        """Cut one giant token (an unknown word of any length) into chunks by characters."""
        for begin in range(first, last, self._shape.characters):
            if begin > 0:
                self._count_split(begin)
            yield from self._piece(begin, min(begin + self._shape.characters, last))

    def _piece(self, begin: int, end: int) -> Iterator[Chunk]:
        """Make a chunk of text[begin:end], halved until its tokens fit: a short rest may be readable."""
        ids = self._reader.ids(self._text[begin:end])
        over = len(ids) - self._shape.room
        if over > 0 and end - begin > 1:
            middle = (begin + end) // 2
            yield from self._piece(begin, middle)
            self._count_split(middle)
            yield from self._piece(middle, end)
            return
        self._counts.truncated_tokens += max(0, over)
        yield self._chunk(begin, end, ids[: self._shape.room])

    def _count_split(self, at: int) -> None:
        """Count a cut before character `at` if it parts a word, in a script that has spaces between words."""
        before, behind = self._text[at - 1], self._text[at]
        wide = unicodedata.east_asian_width(behind) in "WF"
        self._counts.split_words += before.isalnum() and behind.isalnum() and not wide
