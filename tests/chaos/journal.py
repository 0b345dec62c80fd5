"""The hosts' journals, read from their disks: what the services said, and each execution of each shard."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from chaos.cluster import Cluster
from chaos.kinds import AGAIN, CRASH, EXPIRY, GIVEN_BACK

_LINE = re.compile(r"^(?P<level>[A-Z]+) (?P<logger>semantik[\w.]*): (?P<text>.*)$", re.DOTALL)
_VALUE = re.compile(r' (\w+)=("[^"]*"|\S*)')
#: What ends a claim, by how the line begins.
_ENDS = {
    "committed": "committed", "commit refused": "refused", "dropped": "dropped",
    "given back": GIVEN_BACK, "crashed": CRASH, "lease ran out": EXPIRY, "shard failed": CRASH,
}  # fmt: skip


@dataclass(frozen=True)
class Line:
    """An event that a service logged. `at` is seconds since the epoch, by the machine's clock."""

    at: float
    host: str
    unit: str  # semantik-worker-0, semantik-scheduler, ...
    what: str
    values: dict[str, str] = field(default_factory=dict)

    @property
    def slot(self) -> str:
        """The slot whose worker said it, "" for other services."""
        name, _, number = self.unit.rpartition("-")
        return f"{self.host}:{number}" if name == "semantik-worker" else ""

    @property
    def shard(self) -> int | None:
        """The shard that it is about."""
        return int(self.values["shard"]) if "shard" in self.values else None


@dataclass
class Execution:
    """One claim of a shard, and how it ended: `end` is "" while no line says so."""

    shard: int
    job: str
    slot: str
    attempt: int
    begun: float
    end: str = ""
    ended: float = 0.0  # 0 while it has not
    tokens: int = 0
    freed: float = 0.0  # when another could have it

    @property
    def committed(self) -> bool:
        """Whether its rows are in the database."""
        return self.end == "committed"


def parse(message: str, *, at: float, host: str, unit: str) -> Line | None:
    """Return what a line of the journal tells, None for one that is no event of ours."""
    found = _LINE.match(message)
    if found is None:
        return None
    text = found["text"]
    begins = _VALUE.search(text)
    what = text[: begins.start()] if begins else text
    values = {key: word.strip('"') for key, word in _VALUE.findall(text)}
    return Line(at, host, unit, what, values)


def read(cluster: Cluster, since: float) -> list[Line]:
    """Return the events of all hosts since a moment, in their order; hosts that are off are read too."""
    lines: list[Line] = []
    for node in cluster.lab.nodes():
        tree = node.root if os.path.ismount(node.root) else node.upper
        command = [
            "journalctl",
            "--directory",
            str(tree / "var/log/journal"),
            "--output",
            "json",
            "--no-pager",
        ]
        command += ["--quiet", "--since", f"@{since:.0f}"]
        command += ["--output-fields", "MESSAGE,SYSLOG_IDENTIFIER,__REALTIME_TIMESTAMP"]
        units = [f"semantik-worker-{n}" for n in range(max(1, len(node.host.gpus)))]
        for unit in (*units, "semantik-scheduler", "semantik-planner"):
            command += ["--identifier", unit]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for text in done.stdout.splitlines():
            entry = json.loads(text)
            if isinstance(entry.get("MESSAGE"), str):
                at = int(entry["__REALTIME_TIMESTAMP"]) / 1e6
                unit = entry["SYSLOG_IDENTIFIER"]
                if line := parse(entry["MESSAGE"], at=at, host=node.host.name, unit=unit):
                    lines.append(line)
    return sorted(lines, key=lambda line: line.at)


def executions(lines: Iterable[Line]) -> dict[int, list[Execution]]:
    """Return each shard's executions in their order.

    The end that counts is the first that says why the shard was free again. A claim that follows by the same
    slot, with nothing said between, superseded its own after the loss of its session.
    """
    found: dict[int, list[Execution]] = defaultdict(list)
    for line in lines:
        shard = line.shard
        if shard is None:
            continue
        held = found[shard]
        if line.what == "claimed" and line.slot:
            if held and not held[-1].end and held[-1].slot == line.slot:
                held[-1].end, held[-1].ended, held[-1].freed = AGAIN, line.at, line.at
            attempt = int(line.values.get("attempt", 0))
            held.append(Execution(shard, line.values.get("job", ""), line.slot, attempt, line.at))
            continue
        _end(held, line)
    return dict(found)


def _end(held: Sequence[Execution], line: Line) -> None:
    kind = next((end for text, end in _ENDS.items() if line.what.startswith(text)), None)
    if kind is None or not held:
        return
    slot = line.values.get("slot", "") if kind == EXPIRY else line.slot
    # A late word of a former holder is about his own claim, not about the one that followed.
    own = [one for one in held if one.slot == slot and one.begun <= line.at]
    if not own:
        return
    one = own[-1]
    if kind in (CRASH, EXPIRY, GIVEN_BACK) and one.end in ("", "refused", "dropped"):
        one.end, one.freed = kind, line.at
    elif not one.end:
        one.end = kind
    one.ended = one.ended or line.at
    if kind == "committed":
        one.tokens = int(line.values.get("tokens", 0))


def twice(found: Iterable[Sequence[Execution]]) -> list[int]:
    """Return the shards that were committed more than once."""
    return [held[0].shard for held in found if sum(one.committed for one in held) > 1]
