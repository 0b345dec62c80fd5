"""Contenders as processes of their own, and the memory and CPU time that their trees take."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semantik_bench.errors import BenchError

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# How often the resident memory of a tree is looked at, seconds; the root's own peak is the kernel's.
_SAMPLE_SECONDS = 0.2
# How long a contender may take to end: one with services of its own stops them, others have nothing to lose.
_END_SECONDS = {True: 3.0, False: 60.0}


def tree(root: int) -> list[int]:
    """Return the ids of `root` and of all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    found = [root]
    for process in found:
        found += children.get(process, [])
    return found


def cpu_seconds(root: int) -> float:
    """Return the CPU time that the tree of `root` has taken, with that of its members that have ended."""
    return sum(sum(map(int, stat[11:15])) for process in tree(root) if (stat := _stat(process))) / _TICKS


def resident_bytes(root: int) -> int:
    """Return the resident memory of the tree: pages shared by two of its processes count twice."""
    total = 0
    for process in tree(root):
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            continue
    return total


def peak_bytes(process: int) -> int:
    """Return the most that one process has had resident, as the kernel counted it; 0 when it is gone."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def _stat(process: int) -> list[str]:
    """Return the fields of /proc/PID/stat behind the command's name, which may hold spaces."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class PeakSampler:
    """Watches a tree's resident memory until it is stopped."""

    def __init__(self, root: int) -> None:
        self.peak = 0
        self._root = root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, resident_bytes(self._root))
            if self._ended.wait(_SAMPLE_SECONDS):
                return

    def stop(self) -> int:
        """Return the peak in bytes."""
        self._ended.set()
        self._thread.join()
        return self.peak


@dataclass
class Worker:
    """A contender's process: loaded once, run many times, standing still in between."""

    command: Sequence[str]
    settings: dict[str, Any]
    environment: dict[str, str]
    log: Path
    load_seconds: float = 0.0
    tree_peak: int = 0
    main_peak: int = 0
    _process: subprocess.Popen[str] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start and load it. Raises BenchError with what it said when it cannot."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        sampler = PeakSampler(self._process.pid)
        try:
            self.load_seconds = float(self._ask(self.settings)["load_seconds"])
        finally:
            self.tree_peak = max(self.tree_peak, sampler.stop())
        self._signal(signal.SIGSTOP)

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run it once: its own answer, with the CPU seconds of its tree. Raises BenchError when it fails."""
        assert self._process is not None
        root = self._process.pid
        self._signal(signal.SIGCONT)
        before = cpu_seconds(root)
        sampler = PeakSampler(root)
        try:
            answer = self._ask(request)
        finally:
            self.tree_peak = max(self.tree_peak, sampler.stop())
        # The process that holds the model, where it is not the root.
        self.main_peak = max(self.main_peak, peak_bytes(answer.get("main_process", root)))
        answer["cpu_seconds"] = cpu_seconds(root) - before
        # A thread that spins while it has nothing to do must not take a core from the next contender.
        self._signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """End it and all that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGCONT)
        process.stdin.close()
        try:
            process.wait(_END_SECONDS[self.settings.get("pausable", True)])
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()

    def _signal(self, number: int) -> None:
        """Stop or wake the process's whole group, except one that started services of its own."""
        if self._process is not None and self.settings.get("pausable", True):
            os.killpg(self._process.pid, number)

    def _ask(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # its last words, if any, are still to be read
            self._process.stdin.write(json.dumps(line) + "\n")
            self._process.stdin.flush()
        text = self._process.stdout.readline()
        if not text:
            raise BenchError(f"ended with status {self._process.wait()}; see {self.log}")
        answer: dict[str, Any] = json.loads(text)
        if "error" in answer:
            raise BenchError(str(answer["error"]))
        return answer
