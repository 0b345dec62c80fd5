"""The verdict on a run: what the log, the journals and the database say together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.accounts import Findings
from chaos.journal import Execution, Line, twice
from chaos.kinds import CRASH
from chaos.recovery import Recovery, rank, recoveries
from chaos.repeats import Happened, Repeat, repeats, unsaid

_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}")
#: Keys that a run may leave in Redis, and why.
MAY_STAY = {
    "semantik:celery-task-meta-*": "results of jobs, which expire after a day",
    "semantik:unacked_mutex": "a lock that some worker has for a moment, which expires",
}
#: The names of the queues: a FLUSHALL removes them, and each worker that starts writes its own again.
_QUEUE = re.compile(
    r"semantik:_kombu\.binding(_permanent)?\.(embed|ingest|query|celery\.pidbox|celeryev|slot\.[\w-]+\.\d+)$"
)
#: Attempts that a document may cost before it is set aside.
MOST_ATTEMPTS = 3


@dataclass
class Verdict:
    """What a run showed. `failures` are the sentences that make it a failed one."""

    happened: Sequence[Happened]
    findings: Findings
    repeats: list[Repeat]
    unsaid: list[str]
    twice: list[int]
    recoveries: list[Recovery]
    broker_left: list[str]
    failed_by_fault: list[str]
    throughput_ratio: float | None
    limit: float  # seconds of recovery, the 99th percentile
    trouble: list[str] = field(default_factory=list)

    @property
    def unexplained(self) -> list[str]:
        """Repeated executions that no fault explains."""
        again = [f"shard {shard} was committed twice" for shard in self.twice]
        return [*(str(one) for one in self.repeats if not one.faults), *self.unsaid, *again]

    def recovery(self, share: float, kind: str = "") -> float | None:
        """Return a quantile of the recoveries, of one kind or of all, in seconds."""
        values = [
            one.seconds for one in self.recoveries if one.seconds is not None and kind in ("", one.kind)
        ]
        return rank(values, share)

    def failures(self) -> list[str]:
        """Return what makes the run a failed one, worst first; nothing for one that passed."""
        found = [f"lost: {line}" for line in self.findings.lost]
        found += [f"duplicate: {line}" for line in self.findings.duplicates]
        found += [f"changed: {line}" for line in self.findings.changed]
        found += [f"unexplained: {line}" for line in self.unexplained]
        found += [f"still in Redis: {key}" for key in self.broker_left]
        found += [
            f"poison: {times} attempts, more than {MOST_ATTEMPTS}"
            for times in self.findings.poison
            if times > MOST_ATTEMPTS
        ]
        found += [f"not done: fault {each.fault}: {each.failed}" for each in self.happened if each.failed]
        found += [
            f"in vain: no work after fault {each.fault} for twice the time allowed"
            for each in self.happened
            if not each.recovered and not each.failed
        ]
        p99 = self.recovery(0.99)
        if p99 is not None and p99 > self.limit:
            found.append(f"recovery: p99 is {p99:.1f} s, more than {self.limit:.1f} s")
        return [*self.trouble, *found]


def left_in_redis(before: Iterable[str], after: Iterable[str]) -> list[str]:
    """Return keys of which there are more than before, ids taken for one another, but for what may stay."""
    held, now = (Counter(_ID.sub("*", key) for key in keys) for keys in (before, after))
    return [
        f"{key} ({count}, before: {held[key]})"
        for key, count in sorted(now.items())
        if count > held[key] and key not in MAY_STAY and not _QUEUE.match(key)
    ]


def explained_failure(error: str, happened: Sequence[Happened]) -> bool:
    """Whether a document's failure is what a fault of this run does to a document."""
    return error.startswith("quarantined") and any(CRASH in each.fault.what.explains for each in happened)


def judge(
    happened: Sequence[Happened],
    findings: Findings,
    lines: Sequence[Line],
    executions: Mapping[int, Sequence[Execution]],
    attempts: Iterable[tuple[int, str, int]],
    keys: tuple[Iterable[str], Iterable[str]],
    *,
    lease: float,
    tick: float,
    most: float,
    window: tuple[float, float],
    tokens_per_second: float,
) -> Verdict:
    """Put the verdict together. Times are seconds; `most` is the recovery allowed, `window` begin and end."""
    done = [each for each in happened if not each.failed]
    by_fault = []
    for uri, error in findings.failed:
        if explained_failure(error, done):
            by_fault.append(f"{uri}: {error}")
        else:
            findings.lost.append(f"{uri} failed, and no fault explains it: {error}")
    tokens = sum(
        one.tokens for held in executions.values() for one in held
        if one.committed and window[0] <= one.ended <= window[1]
    )  # fmt: skip
    seconds = window[1] - window[0]
    return Verdict(
        happened=happened,
        findings=findings,
        repeats=repeats(executions, done, reaping=lease + tick),
        unsaid=unsaid(executions, attempts, done),
        twice=twice(executions.values()),
        recoveries=recoveries(done, executions, lines, limit=2 * most),
        broker_left=left_in_redis(*keys),
        failed_by_fault=by_fault,
        throughput_ratio=tokens / seconds / tokens_per_second if seconds > 0 and tokens_per_second else None,
        limit=most,
    )


def counts(verdict: Verdict) -> dict[str, Any]:
    """Return the numbers that the file and the table both show."""
    return {
        "faults": sum(not each.failed for each in verdict.happened),
        "documents": verdict.findings.documents,
        "rows": verdict.findings.rows,
        "lost": len(verdict.findings.lost),
        "duplicates": len(verdict.findings.duplicates),
        "changed": len(verdict.findings.changed),
        "repeats": len(verdict.repeats),
        "unexplained_repeats": len(verdict.unexplained),
        "failed_by_fault": len(verdict.failed_by_fault),
        "poison_attempts": max(verdict.findings.poison, default=0),
        "recovery_p50_s": verdict.recovery(0.5),
        "recovery_p99_s": verdict.recovery(0.99),
        "recovery_worst_s": verdict.recovery(1.0),
        "throughput_ratio": verdict.throughput_ratio,
    }
