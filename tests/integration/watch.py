"""Something that is watched from a thread of its own while a test goes on."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from cluster import Cluster


class Watch:
    """Runs `_watch` until the block ends; that looks at `_ended` between two looks."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        raise NotImplementedError
