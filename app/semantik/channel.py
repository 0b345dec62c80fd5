"""A bounded queue between two stages that can end, fail or close: no stage waits for a dead one."""

from __future__ import annotations

import threading
import time
from collections import deque
from enum import Enum
from typing import Generic, Literal, TypeVar

Item = TypeVar("Item")


class Closed(Exception):
    """The channel was closed: nobody wants what is put, nothing comes any more."""


class Empty(Enum):
    """What `get` returns when its time is up."""

    EMPTY = 0


class Channel(Generic[Item]):
    """Holds items of up to `size` weight in all, for any number of producers and one consumer.

    An item heavier than that passes alone. Counts the seconds that either side waited.
    """

    def __init__(self, size: int, *, producers: int) -> None:
        self._items: deque[tuple[Item, int]] = deque()
        self._size = size
        self._weight = 0
        self._producers = producers
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self.put_seconds = 0.0  # spent waiting for room, all producers
        self.get_seconds = 0.0  # spent waiting for items

    def put(self, item: Item, weight: int = 1, *, place: int = 0) -> None:
        """Append `item` when there is room; `place` is for channels that keep an order.

        Raises Closed when the channel is or becomes closed.
        """
        with self._changed:
            started = time.monotonic()
            while not self._closed and not self._has_room(weight, place):
                self._changed.wait()
            self.put_seconds += time.monotonic() - started
            if self._closed:
                raise Closed
            self._store(item, weight, place)
            self._weight += weight
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> Item | Literal[Empty.EMPTY] | None:
        """Return the next item; None when all producers are done; EMPTY after `timeout` seconds.

        Raises a producer's error as soon as it is there, and Closed when the channel is closed.
        """
        with self._changed:
            started = time.monotonic()
            self._changed.wait_for(self._readable, timeout)
            self.get_seconds += time.monotonic() - started
            if self._error is not None:
                raise self._error
            if self._closed:
                raise Closed
            if self._ready():
                item, weight = self._take()
                self._weight -= weight
                self._changed.notify_all()
                return item
            return None if not self._producers else Empty.EMPTY

    def done(self) -> None:
        """Say that one producer has put its last item."""
        with self._changed:
            self._producers -= 1
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End the channel with `error`, which `get` raises."""
        with self._changed:
            self._error = self._error or error
            self._closed = True
            self._changed.notify_all()

    def close(self) -> None:
        """End the channel for both sides."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def _readable(self) -> bool:
        return bool(self._ready() or self._closed or not self._producers)

    def _has_room(self, weight: int, _place: int) -> bool:
        return not self._items or self._weight + weight <= self._size

    def _store(self, item: Item, weight: int, _place: int) -> None:
        self._items.append((item, weight))

    def _ready(self) -> bool:
        return bool(self._items)

    def _take(self) -> tuple[Item, int]:
        return self._items.popleft()


class Ordered(Channel[Item]):
    """Gives items out by their place: 0, 1, 2 and so on, each of which one producer puts.

    The next in turn always has room, so that producers that are ahead wait for the one that is behind.
    """

    def __init__(self, size: int, *, producers: int) -> None:
        super().__init__(size, producers=producers)
        self._early: dict[int, tuple[Item, int]] = {}
        self._turn = 0

    def close(self) -> None:
        """End the channel for both sides."""
        with self._changed:
            self._early.clear()
            super().close()

    def _has_room(self, weight: int, place: int) -> bool:
        return place == self._turn or self._weight + weight <= self._size

    def _store(self, item: Item, weight: int, place: int) -> None:
        self._early[place] = (item, weight)

    def _ready(self) -> bool:
        return self._turn in self._early

    def _take(self) -> tuple[Item, int]:
        self._turn += 1
        return self._early.pop(self._turn - 1)
