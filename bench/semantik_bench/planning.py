"""What the planning of many small files takes: memory of each part, keys in Redis, seconds by statement.

The parts are real: PostgreSQL, Redis, scheduler, planner and two workers on the CPU, as their units start
them. The workers wait while the job is planned; then they take shards for a while, so that the window is
open, and the job is cancelled. A tenth of the files is planned first, with everything started anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from semantik_bench import chunks, file_tree, services, stats
from semantik_bench.cli import BUILD, alone
from semantik_bench.contenders import Place
from semantik_bench.documents import ROOT
from semantik_bench.errors import BenchError
from semantik_bench.report import machine

SLOTS = 2
_SAMPLE_SECONDS = 0.5
_LINE_SECONDS = 10.0
_LEAST_FILES = 1_000
_MB = 1_000_000
_HEADER = (
    "s", "doing", "listed", "planner MB", "its child MB", "scheduler MB", "PostgreSQL MB", "its largest MB",
    "Redis MB", "keys", "in queue", "in flight",
)  # fmt: skip
Say = Callable[[str], None]


@dataclass(frozen=True)
class Sample:
    """One look at all parts. Sizes are bytes; PostgreSQL's without the buffers that its processes share."""

    second: float
    doing: str
    listed: int
    planner: int
    planner_child: int
    scheduler: int
    postgresql: int
    postgresql_largest: int
    redis: int
    redis_keys: int
    queue: int  # messages that wait in Redis
    in_flight: int  # shards that the database says are in Redis or at work

    def cells(self) -> list[str]:
        """Return it as a row of the table."""
        sizes = (
            self.planner, self.planner_child, self.scheduler, self.postgresql, self.postgresql_largest,
            self.redis,
        )  # fmt: skip
        return [
            f"{self.second:.0f}", self.doing, f"{self.listed:,}", *(f"{size / _MB:.1f}" for size in sizes),
            str(self.redis_keys), str(self.queue), str(self.in_flight),
        ]  # fmt: skip


@dataclass
class Watch:
    """Looks at a cluster's parts again and again, and keeps the lines of the table and the peaks."""

    cluster: Any
    job: str
    begin: float = field(default_factory=time.monotonic)
    lines: list[Sample] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    _line_due: float = 0.0
    _last: float = field(default_factory=time.monotonic)

    def look(self) -> str:
        """Take a sample; return the job's state."""
        now, cluster = time.monotonic(), self.cluster
        ((state, listed, doing, in_flight),) = cluster.rows(
            "SELECT j.state, j.listed, (SELECT query FROM pg_stat_activity WHERE application_name LIKE "
            "'semantik plan %%' AND application_name NOT LIKE '%%keeper' AND state = 'active'), "
            "(SELECT count(*) FROM shards WHERE state IN ('queued', 'running')) FROM jobs j WHERE id = %s",
            self.job,
        )
        what = _statement(doing) if doing else {"planning": "listing"}.get(state, state)
        redis, prefix = cluster.services.redis(), cluster.settings().key_prefix
        backends = [_anonymous(process) for process in _children(cluster.services._processes["postgres"].pid)]
        sample = Sample(
            now - self.begin, what, listed, *(_resident(process) for process in self.processes()),
            sum(backends), max(backends), redis.info("memory")["used_memory"], redis.dbsize(),
            redis.llen(f"{prefix}embed"), in_flight,
        )  # fmt: skip
        self.seconds[what] += now - self._last
        self._last = now
        for name, value in asdict(sample).items():
            if name not in ("second", "doing", "listed"):
                self.peaks[name] = max(self.peaks[name], value)
        if not self.lines or what != self.lines[-1].doing or now >= self._line_due:
            self.lines.append(sample)
            self._line_due = now + _LINE_SECONDS
        return str(state)

    def processes(self) -> tuple[int, int, int]:
        """Return the ids of the planner, its child and the scheduler."""
        running = self.cluster.processes
        return running["planner"].pid, self.cluster.child("planner"), running["scheduler"].pid

    def kernels_peaks(self) -> dict[str, int]:
        """Return the most that each process of this project has had resident, as the kernel counted it."""
        names = ("planner", "planner_child", "scheduler")
        return {
            name: _status(process, "VmHWM") for name, process in zip(names, self.processes(), strict=True)
        }


def plan(
    root: Path, files: int, environment: dict[str, str], watch_seconds: float, say: Say
) -> dict[str, Any]:
    """Plan the tree in a cluster of its own; return what it took. Raises BenchError when the job fails."""
    with contextlib.ExitStack() as ends:
        cluster = services.start(ends, environment)
        cluster.start_scheduler()
        cluster.start_planner()
        for number in range(SLOTS):
            cluster.start_worker(number)
        cluster.wait_live(least=SLOTS)
        say(f"{files:,} files: {SLOTS} live slots, submitting")
        redis = cluster.services.redis()
        keys = redis.dbsize()
        job = cluster.submit(root, "planning")
        watch = Watch(cluster, str(job.id))
        while (state := watch.look()) in ("queued", "planning"):
            time.sleep(_SAMPLE_SECONDS)
        planned = time.monotonic() - watch.begin
        if state != "running":
            raise BenchError(f"the job is {state}: {cluster.get(job).error}")
        say(f"{files:,} files: planned in {planned:.1f} s, watching the window")
        deadline = time.monotonic() + watch_seconds
        while time.monotonic() < deadline and watch.look() == "running":
            time.sleep(_SAMPLE_SECONDS)
        ((shards, done, documents),) = cluster.rows(
            "SELECT count(*), count(*) FILTER (WHERE state = 'done'), sum(documents)::bigint FROM shards"
        )
        if documents != files:
            raise BenchError(f"{documents} documents are planned of {files}")
        from semantik import jobs
        from semantik.progress import progress

        with cluster.connection() as connection:
            begin = time.monotonic()
            progress(connection, str(job.id))
            progress_seconds = time.monotonic() - begin
        peaks = dict(watch.peaks) | watch.kernels_peaks()
        with contextlib.suppress(Exception), cluster.connection() as connection:
            jobs.cancel(connection, job.id)
        cluster.finish(job)
        return {
            "files": files, "planned_seconds": planned, "files_per_second": files / planned,
            "statement_seconds": dict(watch.seconds), "peaks": peaks, "shards": shards, "shards_done": done,
            **services.sql_waits(cluster, str(job.id)),
            "slots": SLOTS, "window": SLOTS * cluster.settings().shards_per_slot,
            "progress_seconds": progress_seconds,
            "redis_keys_before": keys, "redis_peak_bytes": redis.info("memory")["used_memory_peak"],
            "database_bytes": cluster.rows("SELECT pg_database_size(current_database())")[0][0],
            "temporary_bytes": cluster.rows(
                "SELECT temp_bytes FROM pg_stat_database WHERE datname = current_database()"
            )[0][0],
            "table": [asdict(line) for line in watch.lines],
        }  # fmt: skip


def measure(files: int, watch_seconds: float, say: Say) -> dict[str, Any]:
    """Make the tree, plan a tenth of it and all of it; return both and the ratios of their peaks."""
    environment = _environment()
    with (
        tempfile.TemporaryDirectory(prefix="semantik-planning-") as folder,
        file_tree.mounted(Path(folder), files) as place,
    ):
        tenth = files // 10
        say(f"making {files:,} files")
        file_tree.fill(place / "tree" / "one", 0, tenth)
        file_tree.fill(place / "tree" / "nine", tenth, files)
        small = plan(place / "tree" / "one", tenth, environment, watch_seconds, say)
        large = plan(place / "tree", files, environment, watch_seconds, say)
    ratios = {
        name: large["peaks"][name] / small["peaks"][name] for name in small["peaks"] if small["peaks"][name]
    }
    return {"machine": machine(os.cpu_count() or 1), "small": small, "large": large, "ratios": ratios}


def _environment() -> dict[str, str]:
    sys.path.insert(0, str(ROOT / "app"))
    from semantik.description import describe_model

    model = chunks.model_directory()
    facts = asdict(describe_model(model)) | {"name": "all-MiniLM-L6-v2"}
    environment = Place(model, facts, BUILD, BUILD, 1).environment()
    del environment["CELERY_BROKER_URL"], environment["SEMANTIK_DATABASE_URL"]
    return environment


def lines(result: dict[str, Any]) -> list[str]:
    """Return the report in Markdown."""
    told = []
    for one in (result["small"], result["large"]):
        most = one["peaks"]["in_flight"]
        told += [
            f"{one['files']:,} files: planned in {one['planned_seconds']:.1f} s "
            f"({one['files_per_second']:,.0f} files/s) as {one['shards']:,} shards; {one['shards_done']} "
            f"were done before the job was cancelled, at most {most} in flight, {one['window']} allowed; "
            f"{one['sql_wait_share']:.1%} of the shards' time for SQL",
            "",
            *stats.markdown(_HEADER, [Sample(**line).cells() for line in one["table"]]),
            "",
        ]
    small, large = result["small"]["peaks"], result["large"]["peaks"]
    rows = [
        [name, f"{small[name]:,}", f"{large[name]:,}", f"{result['ratios'].get(name, 1.0):.3f}"]
        for name in small
    ]
    return [*told, *stats.markdown(("peak", "a tenth", "all", "ratio"), rows)]


def main() -> int:
    """Run it; return the exit status."""
    parser = argparse.ArgumentParser(prog="planning", description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--watch", type=float, default=60.0, metavar="SECONDS", help="after planning")
    arguments = parser.parse_args()
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begin:5.0f} s] {text}", file=sys.stderr, flush=True)

    try:
        if arguments.files < _LEAST_FILES:
            raise BenchError(f"--files {arguments.files}: give at least {_LEAST_FILES}")
        if os.geteuid() != 0:
            raise BenchError("it mounts a file system and starts services of its own: run it as root")
        with alone(BUILD):
            result = measure(arguments.files, arguments.watch, say)
    except BenchError as error:
        print(f"planning: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("planning: interrupted; nothing is written", file=sys.stderr)
        return 130
    (BUILD / "planning.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(result)))
    say(f"written to {BUILD / 'planning.json'}")
    return 0


def _statement(text: str) -> str:
    """Return the first words of a statement, without its comments."""
    words = " ".join(line for line in text.splitlines() if not line.lstrip().startswith("--")).split()
    if words[:1] == ["WITH"]:
        words = words[:2]
    return " ".join(words[:3])[:30]


def _children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii")
    return [int(word) for word in text.split()]


def _status(process: int, name: str) -> int:
    """Return a size in bytes from /proc/PID/status; 0 for a process that has ended."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{name}:")), 0)


def _resident(process: int) -> int:
    return _status(process, "VmRSS")


def _anonymous(process: int) -> int:
    return _status(process, "RssAnon")
