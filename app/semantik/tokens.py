"""The tokens of a text, numbered through all windows in which it was read."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Tokens that two readings must have alike, one behind the other, to be joined there.
_ALIKE = 2


@dataclass(slots=True)
class Window:
    """A piece of the text with its tokens [first, end), numbered through the whole text.

    Token n has the id `ids[n - shift]`, stands at `chars(n - shift)` (characters from `base`) and belongs to
    the tokenizer's word `word(n - shift)`, below zero where that word was read in parts. Asking the encoding
    for the few that are needed costs less than its list of all.
    """

    base: int
    ids: NDArray[np.int64]
    chars: Callable[[int], tuple[int, int]]
    word: Callable[[int], int | None]
    shift: int = 0
    first: int = 0
    end: int = 0

    def bisect(self, offset: int, low: int, high: int) -> int:
        """Return the first index of [low, high) in `ids` whose token starts at `offset` or behind it."""
        chars = self.chars
        return bisect_left(range(high), offset - self.base, low, high, key=lambda at: chars(at)[0])


class Tokens:
    """The tokens of one text; only the windows in use are held."""

    def __init__(self, text: str, windows: Iterator[Window]) -> None:
        self._text = text
        self._source = windows
        self._held: deque[Window] = deque()
        self._exhausted = False
        self.loaded = 0  # tokens up to here are known

    def load(self, upto: int) -> int:
        """Read windows until `upto` tokens are known or the text ends; return how many are known."""
        while self.loaded < upto and not self._exhausted:
            window = next(self._source, None)
            if window is None:
                self._exhausted = True
            elif window.end > window.first:
                self._held.append(window)
                self.loaded = window.end
        return self.loaded

    def forget(self, before: int) -> None:
        """Drop the windows that end before token `before`."""
        while self._held and self._held[0].end <= before:
            self._held.popleft()

    def slice(self, start: int, end: int) -> NDArray[np.int64]:
        """Return the ids of tokens [start, end): int64."""
        parts = []
        for window in self._held:
            if start < window.end:
                parts.append(window.ids[start - window.shift : min(end, window.end) - window.shift])
                if end <= window.end:
                    break
                start = window.end
        return np.concatenate(parts) if len(parts) != 1 else parts[0]

    def span(self, token: int) -> tuple[int, int]:
        """Return where a token stands in the text: (start, end) in characters, space before it included."""
        for window in self._held:
            if token < window.end:
                start, end = window.chars(token - window.shift)
                return window.base + start, window.base + end
        raise IndexError(f"token {token} of {self.loaded}")

    def start(self, token: int) -> int:
        """Return where a token's first character that is no space stands, or its end if it has none."""
        start, end = self.span(token)
        text = self._text
        while start < end and text[start].isspace():
            start += 1
        return start

    def at(self, offset: int, low: int, high: int) -> int:
        """Return the first token in [low, high] that has nothing but space before `offset`."""
        for window in self._held:
            if low >= window.end:
                continue
            stop = min(high, window.end)
            shift = window.shift
            found = shift + window.bisect(offset, max(low, window.first) - shift, stop - shift)
            if found < stop or stop == high:
                break
        # The token of a word may begin with the space before it, and a character have several tokens.
        while found > low and (span := self.span(found - 1))[1] > offset:
            if span[0] < offset and not self._text[span[0] : offset].isspace():
                break
            found -= 1
        return found

    def seek(self, offset: int, low: int) -> int | None:
        """Read on until a token holds text at `offset` or behind it, and return the first; None if none does.

        `low` is a token before it. Windows between are dropped.
        """
        while self.loaded and self.span(self.loaded - 1)[1] <= offset:
            known = self.loaded
            if self.load(known + 1) == known:
                return None
            low = known
            self.forget(low)
        found = self.at(offset, low, self.loaded)
        return found if found < self.loaded else None

    def any_in_parts(self, start: int, end: int) -> bool:
        """Say whether any of the tokens [start, end) is of a word that was read in parts."""
        return any((self._word(token) or 0) < 0 for token in range(start, end))

    def parts_nothing(self, token: int) -> bool:
        """Say whether a cut before this token is at a space, or where the tokenizer itself cuts."""
        if token <= 0 or token >= self.loaded:
            return True
        start = self.span(token)[0]
        if start < self.span(token - 1)[1]:
            return False  # within a character
        if start == 0:
            return (
                False  # behind the space that some tokenizers put before a text: there is nothing to cut off
            )
        if self._text[start].isspace() or self._text[start - 1].isspace():
            return True
        window = self._window(token)
        at = token - window.shift
        return at > 0 and window.word(at) != window.word(at - 1)

    def shares_character(self, token: int) -> bool:
        """Say whether a cut before this token would be within a character."""
        return self.span(token)[0] < self.span(token - 1)[1]

    def _word(self, token: int) -> int | None:
        window = self._window(token)
        return window.word(token - window.shift)

    def _window(self, token: int) -> Window:
        for window in self._held:
            if token < window.end:
                return window
        raise IndexError(f"token {token} of {self.loaded}")


def first_alike(one: Sequence[tuple[int, int]], other: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Return where two readings, lists of (offset, id), begin to be alike: an index into each, or None."""
    places = {token: at for at, token in enumerate(other)}
    for at, token in enumerate(one):
        there = places.get(token)
        if (
            there is not None
            and len(one) >= at + _ALIKE
            and (list(one[at : at + _ALIKE]) == list(other[there : there + _ALIKE]))
        ):
            return at, there
    return None
