"""What the harness did and saw, on the machine's own disk: no fault reaches it, a cut-off run keeps it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any


class EventLog:
    """JSON lines, each on the disk before the next thing happens. Times are seconds since the epoch."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.begun = time.time()
        self._file = path.open("w", encoding="utf-8")
        self._lock = threading.Lock()

    def write(self, event: str, *, at: float | None = None, show: str = "", **values: Any) -> float:
        """Record an event, print `show` for who watches, and return the event's time."""
        moment = time.time() if at is None else at
        with self._lock:
            if self._file.closed:
                return moment
            self._file.write(json.dumps({"at": round(moment, 3), "event": event, **values}) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        if show:
            print(f"{moment - self.begun:7.1f} s  {show}", file=sys.stderr, flush=True)
        return moment

    def close(self) -> None:
        """End the log."""
        with self._lock:
            self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Return a log's events; a last line that was cut off is left out."""
    events = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            break
    return events
