"""Kills parsers in the middle of a document."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager


@contextmanager
def killing(pids: Callable[[], Iterable[int]], *, times: int) -> Iterator[list[int]]:
    """Kill so many of `pids`, each while it has a document: then alone is its memory limited."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while len(killed) < times and not over.wait(0.002):
            for pid in set(pids()) - set(killed):
                with contextlib.suppress(ProcessLookupError):
                    if resource.prlimit(pid, resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()
