"""What a worker's parent and its children tell each other: numbers in shared memory, made before the fork.

No pipe, no lock and no broker is involved, so it works while any of them hangs. Times are CLOCK_MONOTONIC,
which all processes of a host share; an aligned 8-byte store is one store on every machine this runs on.
"""

from __future__ import annotations

import math
import mmap
import time

#: Celery's --concurrency at most.
CHILDREN = 64
_PARENT_CELLS = 3


class Pulse:
    """Three numbers of the parent and two of each child."""

    def __init__(self) -> None:
        self._cells = memoryview(mmap.mmap(-1, 8 * (_PARENT_CELLS + 2 * CHILDREN))).cast("d")

    def drain(self, seconds: float) -> None:
        """Parent: shards may run for `seconds` more, then are given back."""
        self._cells[0] = time.monotonic() + seconds

    @property
    def draining(self) -> bool:
        """Whether the service is stopping."""
        return self._cells[0] > 0

    @property
    def drained(self) -> bool:
        """Whether the time to stop in is over."""
        return 0 < self._cells[0] <= time.monotonic()

    def condemn(self) -> None:
        """Parent: the GPU must not compute any more, shards are given back at once."""
        self._cells[2] = 1

    @property
    def condemned(self) -> bool:
        """Whether the GPU is condemned; it stays so for the life of the service."""
        return self._cells[2] > 0

    def fail(self, status: int) -> None:
        """Child: the service cannot work, its parent is to exit with `status`."""
        self._cells[1] = status

    @property
    def failed(self) -> int:
        """The exit status that a child asked for, or 0."""
        return int(self._cells[1])

    def child(self, index: int) -> ChildPulse:
        """Return the numbers of child `index`, reset: a new child takes the place of a dead one."""
        cell = ChildPulse(self._cells, _PARENT_CELLS + 2 * index)
        cell.rest()
        return cell

    def stalled(self, seconds: float) -> bool:
        """Parent: whether a child holds work and has not advanced for `seconds`."""
        now = time.monotonic()
        for at in range(_PARENT_CELLS, len(self._cells), 2):
            busy, advanced_at = self._cells[at], self._cells[at + 1]
            if busy and now - advanced_at > seconds:
                return True
        return False


class ChildPulse:
    """One child's numbers: does it hold work, and when did that last advance."""

    def __init__(self, cells: memoryview[float], at: int) -> None:
        self._cells = cells
        self._at = at

    def work(self) -> None:
        """Work begins."""
        self._cells[self._at + 1] = time.monotonic()
        self._cells[self._at] = 1

    def advance(self) -> None:
        """Work advances, or waits for something outside that it cannot help."""
        self._cells[self._at + 1] = time.monotonic()

    def wait(self) -> None:
        """Work waits for something that has its own time-outs, until it advances again."""
        self._cells[self._at + 1] = math.inf

    def rest(self) -> None:
        """Work has ended."""
        self._cells[self._at] = 0
