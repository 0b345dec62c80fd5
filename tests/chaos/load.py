"""The jobs of a run: always two at work beside each other, now and then one that is cancelled or paused."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from chaos.cluster import DOCUMENTS, Cluster
from chaos.kinds import ChaosError
from chaos.log import EventLog

#: Folder and priority of each job that is there all the time, again and again in a new collection.
STREAMS = {"long": 0, "short": 5}
#: Seconds between a job's start and its cancelling, and those that one is paused.
_CANCEL_AFTER, _PAUSE = 8.0, 12.0


@dataclass
class Load(threading.Thread):
    """The thread that hands jobs in. What it did is in the log; what became of it, in the database."""

    cluster: Cluster
    log: EventLog
    can_pause: bool = False
    trouble: str = ""
    _wanted: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)
    _asked: list[str] = field(default_factory=list)
    _number: int = 0
    _timers: list[tuple[float, str, str]] = field(default_factory=list)  # when, what, job

    def __post_init__(self) -> None:
        super().__init__(name="load", daemon=True)
        self._wanted.set()

    __hash__ = threading.Thread.__hash__

    def act(self, action: str) -> None:
        """Ask for a job to be cancelled, or paused."""
        self._asked.append(action)

    def wind_down(self) -> None:
        """Hand in no further job."""
        self._wanted.clear()

    def end(self) -> None:
        """End the thread."""
        self._ended.set()
        self.join(60)

    def run(self) -> None:
        """Look once a second."""
        while not self._ended.wait(1.0):
            try:
                self._turn()
            except ChaosError as error:
                # Redis or PostgreSQL may be away: that is what the run is about. What lasts stops the run.
                self.log.write("load waits", reason=str(error))
            except Exception as error:
                self.trouble = f"{type(error).__name__}: {error}"
                self.log.write("load failed", reason=self.trouble)
                return

    def _turn(self) -> None:
        due = [timer for timer in self._timers if timer[0] <= time.monotonic()]
        for timer in due:
            self._timers.remove(timer)
            self._do(timer[1], timer[2])
        if not self._wanted.is_set():
            return
        active = self.cluster.ask(
            "SELECT j.id::text, split_part(c.name, '-', 1), j.state FROM jobs j JOIN collections c "
            "ON c.id = j.collection_id WHERE j.finished_at IS NULL ORDER BY j.created_at", seconds=0,
        )  # fmt: skip
        for folder, priority in STREAMS.items():
            if not any(role == folder for _, role, _ in active):
                self._submit(folder, folder, priority)
        while self._asked:
            action = self._asked[0]
            if action == "cancel":
                job = self._submit("cancel", "short", 7)
                self._timers.append((time.monotonic() + _CANCEL_AFTER, "cancel", job))
            elif self.can_pause:
                running = [job for job, role, state in active if role == "long" and state == "running"]
                if running:
                    self._do("pause", running[0])
            self._asked.pop(0)  # only now: what an outage was in the way of is tried again

    def _submit(self, role: str, folder: str, priority: int) -> str:
        self._number += 1
        collection = f"{role}-{self._number}"
        uri = f"{DOCUMENTS}/chaos/{folder}"
        said = self.cluster.semantik("submit", uri, "--collection", collection, "--priority", str(priority))
        job = str(said["job"]["id"])
        self.log.write("submitted", job=job, collection=collection, show=f"job {collection}")
        return job

    def _do(self, action: str, job: str) -> None:
        before = time.time()
        try:
            self.cluster.semantik(action, job)
        except ChaosError as error:
            # An ended job cannot be cancelled; an outage is over at the next try.
            if "already ended" in str(error):
                self.log.write(f"{action} too late", job=job)
                return
            self._timers.append((time.monotonic() + 3.0, action, job))
            raise
        self.log.write(action, job=job, before=before, show=f"{action} {job[:8]}")
        if action == "pause":
            self._timers.append((time.monotonic() + _PAUSE, "resume", job))
