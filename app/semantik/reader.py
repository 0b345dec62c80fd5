"""Texts through the model's tokenizer, in windows.

A call of the tokenizer on a whole book is slower and takes 180 bytes of memory per character, so a text is
read in windows. They end at whitespace. A tokenizer that reads a word alike wherever it stands (BERT's) needs
no more; for the others (bytes with the space before a word in its token, SentencePiece with a sign for the
beginning) windows overlap and are joined at tokens that both read alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from semantik.tokens import Window, first_alike

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding, Tokenizer

#: UTF-8 bytes per window, about; measured: larger ones are slower.
WINDOW_BYTES = 65_536
# Windows handed to the tokenizer in one call, which releases the GIL and may use a core for each.
_WINDOWS_PER_CALL = 4
# Characters that neighbouring windows share, where the tokenizer looks beyond a word.
_MARGIN = 512
# What a word is read behind, to learn whether the tokenizer cares: whitespace, then anything else.
_SPACES, _OTHERS = ("x ", "x\n", "x.  "), ("(", "x-", "\u4e2d")
_WORDS = ("word", "Word", "(word", "7", "\u4e2d\u6587")


class Counts(Protocol):
    """What reading a text counts."""

    unknown_tokens: int
    unknown_characters: int
    parted_words: int


class Reader:
    """What the chunker knows of one tokenizer, which from then on takes no special tokens from texts."""

    def __init__(self, tokenizer: Tokenizer, *, longest_word: int) -> None:
        """Read words above the tokenizer's limit, up to `longest_word` characters, in parts."""
        # "[SEP]" or "<|im_end|>" written in a document is text: it must not end the model's input.
        tokenizer.encode_special_tokens = True
        self.tokenizer = tokenizer
        self.unknown = _unknown(tokenizer)
        #: The best split of a whole is the best split of its parts: any token's end may be a chunk's.
        self.unigram = type(tokenizer.model).__name__ == "Unigram"
        self._word_limit: int = getattr(tokenizer.model, "max_input_chars_per_word", 0)
        self._longest_word = longest_word
        # Of the words at the edges of chunks many are the same.
        self.word = lru_cache(4_096)(self.ids)
        #: Whether a word behind whitespace, or behind anything else, has other ids than on its own.
        self.minds_space = any(map(self._minds, _SPACES))
        self.minds_others = any(map(self._minds, _OTHERS))

    def encode(self, text: str) -> Encoding:
        """Return what the tokenizer gives for `text` alone, without special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def ids(self, text: str) -> NDArray[np.int64]:
        """Return the ids of `text` alone, without special tokens: int64 (n,)."""
        return np.array(self.encode(text).ids, dtype=np.int64)

    def windows(self, text: str, counts: Counts) -> Iterator[Window]:
        """Yield the windows of `text`, counting unknown tokens and words read in parts."""
        margin = _MARGIN if self.minds_space or self.minds_others else 0
        before: Window | None = None
        for group in _groups(text, margin):
            encodings = self.tokenizer.encode_batch(
                [text[low - extra : high] for low, high, extra in group], add_special_tokens=False
            )
            encodings.reverse()
            for low, high, extra in group:
                # One at a time, each gone before the next: an encoding takes 180 bytes per character.
                window = self._window(encodings.pop(), low - extra, text, counts)
                if before is not None and extra and not _join(before, window, low):
                    window = self._window(self.encode(text[low:high]), low, text, counts)
                if before is not None:
                    yield self._number(before, window, counts)
                before = window
        if before is not None:
            yield self._number(before, None, counts)

    def _window(self, encoding: Encoding, base: int, text: str, counts: Counts) -> Window:
        ids = np.array(encoding.ids, dtype=np.int64)
        # Every token has a span and a word, since none here is a special one.
        chars = cast("Callable[[int], tuple[int, int]]", encoding.token_to_chars)
        window = Window(base, ids, chars, encoding.token_to_word, end=len(ids))
        if self._word_limit and self.unknown is not None:
            self._part(window, encoding, text, counts)
        return window

    def _number(self, window: Window, after: Window | None, counts: Counts) -> Window:
        """Count what is unknown in a window that is joined on both sides, and number the one behind it."""
        if self.unknown is not None:
            skipped, kept = window.first - window.shift, window.end - window.shift
            found = np.flatnonzero(window.ids[skipped:kept] == self.unknown)
            counts.unknown_tokens += len(found)
            for at in found.tolist():
                start, end = window.chars(skipped + at)
                counts.unknown_characters += end - start
        if after is not None:
            # What the join left out of the window's beginning stays out of the numbers.
            left_out = after.first
            after.shift = window.end - left_out
            after.first = window.end
            after.end += after.shift
        return window

    def _part(self, window: Window, encoding: Encoding, text: str, counts: Counts) -> None:
        """Read again, in parts, what the tokenizer took for one unknown word only because it is long.

        Half the tokenizer's limit each, since normalizing may make a text longer. Else a checksum or a
        sentence in Thai would say nothing at all.
        """
        long = [
            at
            for at in np.flatnonzero(window.ids == self.unknown).tolist()
            if self._word_limit < window.chars(at)[1] - window.chars(at)[0] <= self._longest_word
        ]
        if not long:
            return
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        words: list[int | None] = []
        all_spans, all_words = encoding.offsets, encoding.word_ids
        step = self._word_limit // 2
        done = 0
        for at in long:
            start, end = all_spans[at]
            counts.parted_words += 1
            ids += window.ids[done:at].tolist()
            spans += all_spans[done:at]
            words += all_words[done:at]
            done = at + 1
            for low in range(start, end, step):
                part = self.encode(text[window.base + low : window.base + min(low + step, end)])
                ids += part.ids
                spans += ((low + begin, low + stop) for begin, stop in part.offsets)
                words += [-counts.parted_words] * len(part.ids)
        window.ids = np.concatenate((np.array(ids, dtype=np.int64), window.ids[done:]))
        spans += all_spans[done:]
        words += all_words[done:]
        window.chars, window.word = spans.__getitem__, words.__getitem__
        window.end = len(window.ids)

    def _minds(self, before: str) -> bool:
        for word in _WORDS:
            whole = self.encode(before + word)
            there = [at for at, (_, end) in zip(whole.ids, whole.offsets, strict=True) if end > len(before)]
            if there != self.encode(word).ids:
                return True
        return False


def _join(before: Window, window: Window, seam: int) -> bool:
    """Join two windows that overlap before `seam`, at tokens amid the overlap; False if none are."""
    middle = seam - _MARGIN // 2
    low = before.bisect(middle, 0, len(before.ids))
    old = [
        (before.base + before.chars(low + at)[0], token) for at, token in enumerate(before.ids[low:].tolist())
    ]
    high = window.bisect(seam, 0, len(window.ids))
    new = [(window.base + window.chars(at)[0], token) for at, token in enumerate(window.ids[:high].tolist())]
    found = first_alike(old, new)
    if found is None:
        return False
    before.end = before.shift + low + found[0]
    window.first = found[1]
    return True


def _groups(text: str, margin: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yield the windows of a text as (start, end, characters before it to read as well), some at a time.

    A window ends behind a line's end, else before a space, else anywhere.
    """
    group: list[tuple[int, int, int]] = []
    start, extra = 0, 0
    while start < len(text):
        end = len(text)
        reach = _reach(text, start)
        if end - start > reach - margin:
            limit = start + reach - margin
            earliest = limit - reach // 4
            end = text.rfind("\n", earliest, limit) + 1 or text.rfind(" ", earliest, limit)
            if end <= start:
                end = limit
        group.append((start, end, extra))
        if len(group) == _WINDOWS_PER_CALL:
            yield group
            group = []
        if end == len(text):
            break
        start, extra = end, min(margin, end)
    if group:
        yield group


def _reach(text: str, start: int) -> int:
    """Return how many characters from `start` on make a window: fewer where they take more bytes."""
    piece = text[start : start + WINDOW_BYTES]
    if piece.isascii() or (size := len(piece.encode())) <= WINDOW_BYTES:
        return WINDOW_BYTES
    return len(piece) * WINDOW_BYTES // size


def _unknown(tokenizer: Any) -> int | None:
    """Return the id that stands for what the tokenizer has no token for; None where it reads bytes."""
    name = getattr(tokenizer.model, "unk_token", None)
    if name is not None:
        found: int | None = tokenizer.token_to_id(name)
        return found
    character = "\ue123"  # of private use: no vocabulary has it
    ids = tokenizer.encode(character, add_special_tokens=False).ids
    token = tokenizer.id_to_token(ids[-1]) if ids else ""
    return ids[-1] if token in ("<unk>", "[UNK]", "<UNK>", "\u2047") else None
