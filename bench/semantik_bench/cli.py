"""The command line: what is measured, in which order, and what is left where."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from semantik_bench import chunks, documents, memory, report
from semantik_bench.contenders import BEST, CONTENDERS, DEFAULT, FORWARD, Place
from semantik_bench.errors import BenchError
from semantik_bench.race import Plan, Race, best_peer

BUILD = documents.ROOT / "build"
FULL = Plan(rounds=3, batch_sizes=(8, 16, 32, 64, 128), search_tokens=30_000, searches=1)
QUICK = Plan(rounds=2, batch_sizes=(8, 32), search_tokens=6_000, searches=1)
# Tokens of the profile of short texts.
_SHORT_TOKENS = {False: 40_000, True: 6_000}
# Beside the best peer.
_SHORT_ROWS = (DEFAULT, BEST, FORWARD, "forward_bf16")


def main() -> int:
    """Run the bench; return the exit status."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure this engine beside what others use.")
    parser.add_argument("--quick", action="store_true", help="few documents and rounds: not for figures")
    parser.add_argument("--rounds", type=int, metavar="N", help="instead of 3 (quick: 2)")
    parser.add_argument("--only", metavar="NAME,NAME", help=f"of {', '.join(one.name for one in CONTENDERS)}")
    parser.add_argument("--no-memory", action="store_true", help="leave out N against 10 N documents")
    arguments = parser.parse_args()
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begin:5.0f} s] {text}", file=sys.stderr, flush=True)

    try:
        with alone(BUILD):
            result = measure(arguments, say)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; nothing is written", file=sys.stderr)
        return 130
    result["seconds"] = time.monotonic() - begin
    report.write(result, BUILD)
    print("\n".join(report.lines(result)))
    say(f"written to {BUILD / 'bench.json'} and {BUILD / 'bench.md'}")
    return 0


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the only place that there is. Raises BenchError while another bench does: both would be wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "bench.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BenchError("another bench is running here: wait for it, or stop it") from None
        yield


def measure(arguments: argparse.Namespace, say: Any) -> dict[str, Any]:
    """Return everything that was measured. Raises BenchError when there is nothing to compare with."""
    quick = arguments.quick
    plan = QUICK if quick else FULL
    if arguments.rounds:
        plan = Plan(**{**asdict(plan), "rounds": arguments.rounds})
    names = _names(arguments.only)
    place = _place(quick)
    result: dict[str, Any] = {"quick": quick, "rounds": plan.rounds, "notes": []}
    result["machine"] = report.machine(place.threads)
    say(f"cutting the documents in {place.documents}")
    result["documents"] = chunks.prepare(place, _SHORT_TOKENS[quick])
    profiles: dict[str, dict[str, Any]] = result["documents"].pop("profiles")
    race = Race(place, plan, say)
    try:
        for contender in CONTENDERS:
            if contender.name in names:
                race.enter(contender)
        tokens, count = profiles["long"]["tokens"], profiles["long"]["chunks"]
        race.run("long", list(race.entries), tokens, count)
        peer = best_peer(race.entries.values(), "long", tokens)
        short = dict.fromkeys((*_SHORT_ROWS, *((peer.contender.name,) if peer else ())))
        some = [name for name in race.entries if name in short]
        race.run("short", some, profiles["short"]["tokens"], profiles["short"]["chunks"])
    finally:
        race.close()
    figures = report.headlines(race, tokens)
    rows = {"long": list(race.entries), "short": some}
    for profile, facts in profiles.items():
        reference = race.entries[DEFAULT]
        entries = (race.entries[name] for name in rows[profile])
        facts["rows"] = [report.row(entry, reference, profile, facts["tokens"]) for entry in entries]
    result["profiles"] = profiles
    _beside(result, figures, place, None if arguments.no_memory else quick, say)
    result["headlines"] = list(figures)
    return {**figures, **result}


def _beside(
    result: dict[str, Any], figures: dict[str, Any], place: Place, quick: bool | None, say: Any
) -> None:
    """Add what is no row of the table: the chunker against the tokenizer, and memory (quick None: not)."""
    figures |= {"chunk_vs_tokenizer": None, "peak_rss_ratio_10x": None}
    try:
        say("the chunker against the bare tokenizer")
        result["chunking"] = chunks.against_tokenizer(place)
        figures["chunk_vs_tokenizer"] = result["chunking"]["chunk_vs_tokenizer"]
    except BenchError as error:
        result["notes"].append(f"chunk_vs_tokenizer was not measured: {error}")
    if quick is None:
        return
    try:
        say("peak memory at N and at 10 N documents")
        one, ten = documents.one_and_ten(documents.corpus(), place.folder / "memory", quick=quick)
        result["memory"] = memory.compare(one, ten, place)
        figures["peak_rss_ratio_10x"] = result["memory"]["ratio"]
    except BenchError as error:
        result["notes"].append(f"peak_rss_ratio_10x was not measured: {error}")


def _names(only: str | None) -> list[str]:
    known = [one.name for one in CONTENDERS]
    if only is None:
        return known
    wanted = [name.strip() for name in only.split(",")]
    if unknown := [name for name in wanted if name not in known]:
        raise BenchError(f"unknown: {', '.join(unknown)}; choose from {', '.join(known)}")
    return [DEFAULT, *(name for name in wanted if name != DEFAULT)]  # all others are compared with it


def _place(quick: bool) -> Place:
    sys.path.insert(0, str(documents.ROOT / "app"))
    from semantik.description import describe_model

    folder = BUILD / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.npy"):
        old.unlink()
    model = chunks.model_directory()
    chosen = documents.select(documents.corpus(), folder / "documents", quick=quick)
    facts = asdict(describe_model(model)) | {"name": "all-MiniLM-L6-v2"}
    return Place(model, facts, folder, chosen, len(os.sched_getaffinity(0)))
