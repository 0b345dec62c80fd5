"""Contenders taking turns: batch sizes first, then rounds in which each runs once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from semantik_bench import stats
from semantik_bench.contenders import DEFAULT, Contender, Place, prepare
from semantik_bench.errors import BenchError
from semantik_bench.processes import Worker

# Chunks of the first, untimed run: kernels are chosen and memory is allocated in it.
_WARM_UP = 8


@dataclass
class Entry:
    """A contender on its way through the bench; `error` says why it takes no more part."""

    contender: Contender
    worker: Worker | None = None
    versions: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    batch_sizes: dict[str, int] = field(default_factory=dict)  # the best one, by profile
    searched: dict[str, dict[int, float]] = field(default_factory=dict)  # tokens/s of each, by profile
    runs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # answers, by profile
    cosines: dict[str, float] = field(default_factory=dict)  # least one to sentence-transformers' vectors

    def rates(self, profile: str, tokens: int, key: str = "seconds") -> list[float]:
        """Return tokens per second of each round."""
        return [tokens / run[key] for run in self.runs.get(profile, ())]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    batch_sizes: tuple[int, ...]
    search_tokens: int  # of the profile, about: with them batch sizes are compared
    searches: int  # times that each is tried


class Race:
    """All entries of one bench."""

    def __init__(self, place: Place, plan: Plan, say: Callable[[str], None]) -> None:
        self.entries: dict[str, Entry] = {}
        self._place = place
        self._plan = plan
        self._say = say

    def enter(self, contender: Contender) -> None:
        """Install, export and load a contender; one that cannot be is an entry with its reason."""
        entry = self.entries[contender.name] = Entry(contender)
        try:
            ready = prepare(contender, self._place, self._say)
            entry.versions = ready.pop("versions")
            entry.worker = Worker(log=self._place.folder / f"{contender.name}.log", **ready)
            entry.worker.start()
        except BenchError as error:
            self._fail(entry, error)
            return
        self._say(f"{contender.label}: ready in {entry.worker.load_seconds:.1f} s")

    def run(self, profile: str, names: Iterable[str], tokens: int, chunks: int) -> None:
        """Measure the entries named, in turns, on a profile of so many tokens and chunks."""
        running = [self.entries[name] for name in names if self.entries[name].error is None]
        for entry in running:
            if not entry.contender.from_disk:
                self._ask(entry, {"profile": profile, "limit": _WARM_UP})
            if entry.contender.batched and entry.error is None:
                self._search(entry, profile, tokens, chunks)
        for number in range(1, self._plan.rounds + 1):
            for entry in running:
                if entry.error is not None:
                    continue
                request: dict[str, Any] = {"profile": profile}
                if profile in entry.batch_sizes:
                    request["batch_size"] = entry.batch_sizes[profile]
                if number == 1:
                    request["vectors"] = str(self._vectors(entry, profile))
                answer = self._ask(entry, request)
                if answer is None:
                    continue
                if answer.get("tokens", tokens) != tokens:
                    self._fail(entry, BenchError(f"saw {answer['tokens']} tokens of {tokens}"))
                    continue
                entry.runs.setdefault(profile, []).append(answer)
                rate = tokens / answer["seconds"]
                self._say(f"{profile}, round {number}: {entry.contender.label}: {rate:,.0f} tokens/s")
        self._compare(running, profile)

    def close(self) -> None:
        """End all processes."""
        for entry in self.entries.values():
            if entry.worker is not None:
                entry.worker.close()

    def _search(self, entry: Entry, profile: str, tokens: int, chunks: int) -> None:
        limit = min(chunks, round(chunks * self._plan.search_tokens / tokens))
        found: dict[int, list[float]] = {}
        for _ in range(self._plan.searches):
            for size in self._plan.batch_sizes:
                request = {"profile": profile, "limit": limit, "batch_size": size}
                if (answer := self._ask(entry, request)) is None:
                    return
                found.setdefault(size, []).append(tokens * limit / chunks / answer["seconds"])
        entry.batch_sizes[profile] = size = stats.best(found)
        entry.searched[profile] = {size: max(rates) for size, rates in found.items()}
        self._say(f"{profile}: {entry.contender.label}: best batch size {size}")

    def _ask(self, entry: Entry, request: dict[str, Any]) -> dict[str, Any] | None:
        assert entry.worker is not None
        try:
            return entry.worker.run(request)
        except BenchError as error:
            self._fail(entry, error)
            return None

    def _fail(self, entry: Entry, error: BenchError) -> None:
        entry.error = str(error)
        self._say(f"{entry.contender.label}: takes no part: {error}")

    def _compare(self, running: list[Entry], profile: str) -> None:
        reference = self._vectors(self.entries[DEFAULT], profile)
        if not reference.is_file():
            raise BenchError(f"sentence-transformers does not run: {self.entries[DEFAULT].error}")
        wanted = np.load(reference)
        for entry in running:
            path = self._vectors(entry, profile)
            if entry.error is None and path.is_file():
                entry.cosines[profile] = stats.min_cosine(np.load(path), wanted)

    def _vectors(self, entry: Entry, profile: str) -> Path:
        return self._place.folder / f"{entry.contender.name}-{profile}.npy"


def best_peer(entries: Iterable[Entry], profile: str, tokens: int) -> Entry | None:
    """Return the fastest entry in float32 that is no row of this engine and not encode by default."""
    peers = [
        entry
        for entry in entries
        if entry.error is None and entry.contender.batched and not entry.contender.reduced
        and entry.runs.get(profile)
    ]  # fmt: skip
    return max(peers, key=lambda entry: median(entry.rates(profile, tokens)), default=None)
