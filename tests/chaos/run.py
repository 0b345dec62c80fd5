"""One run: the load, the faults one after the other, and everything that the verdict is made from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from chaos import journal, log, services
from chaos.accounts import Findings, Job, account
from chaos.cluster import DOCUMENTS, PREFIX, Cluster, wait
from chaos.documents import Documents
from chaos.faults import strike
from chaos.kinds import ChaosError
from chaos.load import Load
from chaos.log import EventLog
from chaos.reference import Reference, collection_rows
from chaos.repeats import Happened
from chaos.schedule import Fault, Schedule
from chaos.verdict import Verdict, judge, left_in_redis

#: Seconds until the load is at work, and for what is left of it once no fault comes any more.
_BEGIN, _REST = 180.0, 900.0
#: Seconds until nothing of the run may be in Redis any more: what a dead worker had taken goes with the
#: second of the scheduler's sweeps after its shard was done by another.
_SWEPT = 30.0
#: Times the allowed recovery that the run waits before the next fault comes all the same.
_PATIENCE = 2.0


@dataclass
class Run:
    """What a run needs, and what it finds."""

    cluster: Cluster
    schedule: Schedule
    documents: Documents
    reference: Reference
    log: EventLog
    most: float  # seconds of recovery that are allowed
    happened: list[Happened] = field(default_factory=list)
    keys: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    window: tuple[float, float] = (0.0, 0.0)

    def go(self) -> Verdict:
        """Run the schedule and return the verdict. Whatever happens, every fault is undone."""
        self.log.write("schedule", **self.schedule.record())
        self.keys = (self._keys(), [])
        load = Load(self.cluster, self.log, can_pause=self._can_pause())
        begun = time.time()
        load.start()
        try:
            if not wait(lambda: self._claims(begun) >= len(self.cluster.slots), _BEGIN, 1.0):
                raise ChaosError(
                    f"not every slot had work after {_BEGIN:.0f} s: see 'semantik jobs' on the head"
                )
            first = time.time()
            for round_ in rounds(self.schedule.faults):
                self._round(round_, load)
                if load.trouble:
                    raise ChaosError(f"the jobs could not be handed in: {load.trouble}")
            self.window = (first, time.time())
            load.wind_down()
            self.log.write("winding down", show="no more faults; the jobs that are left end")
            ended = wait(self._ended, _REST, 2.0)
        finally:
            load.end()
        trouble = [] if ended else [f"jobs had not ended {_REST:.0f} s after the last fault"]
        wait(self._reported, 60, 1.0)
        over = time.time()
        clean = wait(self._swept, _SWEPT, 1.0)
        self.log.write("swept", clean=clean, waited=round(time.time() - over, 1), held=self._held())
        verdict = self._judge(begun)
        verdict.trouble += trouble
        return verdict

    # --- faults ---

    def _round(self, faults: Sequence[Fault], load: Load) -> None:
        time.sleep(faults[0].gap)
        for planned in faults:
            if action := self.schedule.jobs.get(planned.number):
                load.act(action)
        done: list[tuple[Fault, float, dict[str, Any], str]] = []
        with ExitStack() as undo:
            for planned in faults:
                injected = self.log.write(
                    "inject", fault=planned.number, kind=planned.kind, show=str(planned)
                )
                note, failed = {}, ""
                try:
                    note = undo.enter_context(strike(self.cluster, planned))
                except Exception as error:
                    # The run goes on, and says so at its end.
                    failed = f"{type(error).__name__}: {error}"
                    self.log.write("not done", fault=planned.number, reason=failed, show=f"    {failed}")
                done.append((planned, injected, dict(note), failed))
            time.sleep(max(planned.hold for planned in faults))
            troubles = _left(undo)
        back = time.time()
        for planned, injected, note, failed in done:
            failed = failed or "; ".join(troubles)
            slots = self._slots(planned)
            recovered = bool(failed) or self._await(planned, note, back)
            self.happened.append(Happened(planned, tuple(slots), injected, back, note, failed, recovered))
            self.log.write(
                "over", fault=planned.number, kind=planned.kind, slots=slots, injected=injected, back=back,
                note=note, failed=failed, recovered=recovered, waited=round(time.time() - back, 2),
                show=f"    {planned.kind}: back after {back - injected:.1f} s, "
                f"work after {time.time() - back:.1f} s{'' if recovered else ', IN VAIN'}",
            )  # fmt: skip

    def _slots(self, planned: Fault) -> list[str]:
        return self.cluster.slots_of(planned.target) if planned.target else self.cluster.slots

    def _await(self, planned: Fault, note: dict[str, Any], back: float) -> bool:
        """Wait until work goes on; False when it takes far too long."""
        slots = self._slots(planned)
        if planned.kind in ("duplicate", "poison"):
            return True

        def on() -> bool:
            if planned.kind == "planner_kill":
                return self._quick("SELECT planned FROM jobs WHERE id = %s", note["job"]) == [(True,)]
            claimed = self._quick(
                "SELECT DISTINCT slot FROM shards WHERE slot = ANY(%s) AND started_at > to_timestamp(%s)",
                slots,
                back,
            )
            return len(claimed) == len(slots)

        return wait(on, _PATIENCE * self.most, 0.5)

    def _quick(self, statement: str, *values: Any) -> list[Any]:
        with suppress(ChaosError):
            return self.cluster.ask(statement, values, seconds=0)
        return []

    def _claims(self, since: float) -> int:
        return len(self._quick("SELECT DISTINCT slot FROM shards WHERE started_at > to_timestamp(%s)", since))

    # --- the end ---

    def _ended(self) -> bool:
        return self._quick("SELECT count(*) FROM jobs WHERE finished_at IS NULL") == [(0,)]

    def _reported(self) -> bool:
        return self._quick("SELECT count(*) FROM jobs WHERE reported_at IS NULL") == [(0,)]

    def _can_pause(self) -> bool:
        said = self.cluster.shell(self.cluster.head, "semantik pause --help", check=False)
        return "pause" in said

    def _keys(self) -> list[str]:
        with self.cluster.redis() as client:
            return sorted(str(key) for key in client.scan_iter(count=1000))

    def _swept(self) -> bool:
        self.keys = (self.keys[0], self._keys())
        return not left_in_redis(*self.keys)

    def _held(self) -> list[str]:
        """Return the messages that Redis still takes for a worker's, for those who have to find out whose."""
        with self.cluster.redis() as client:
            entries: Any = client.hvals(f"{PREFIX}unacked")
        return [str(entry)[:2000] for entry in entries]

    def _judge(self, begun: float) -> Verdict:
        lines = journal.read(self.cluster, begun - 5)
        found = Findings()
        jobs = self.cluster.ask(
            "SELECT j.id::text, c.name, j.state, c.id FROM jobs j "
            "JOIN collections c ON c.id = j.collection_id "
            "WHERE j.created_at > to_timestamp(%s) ORDER BY j.created_at", [begun - 1],
        )  # fmt: skip
        for key, name, state, collection in jobs:
            account(self._job(key, name, state, collection), self._expected(name), self.reference, found)
        attempts = self.cluster.ask(
            "SELECT s.id, s.job_id::text, s.attempt FROM shards s WHERE s.job_id = ANY(%s::uuid[])",
            [[job[0] for job in jobs]],
        )
        verdict = judge(
            self.happened, found, lines, journal.executions(lines), attempts, self.keys,
            lease=self.cluster.seconds("SEMANTIK_LEASE_SECONDS", 60),
            tick=self.cluster.seconds("SEMANTIK_TICK_SECONDS", 10),
            most=self.most, window=self.window, tokens_per_second=self.reference.tokens_per_second,
        )  # fmt: skip
        verdict.trouble += self._pauses(lines)
        return verdict

    def _job(self, key: str, name: str, state: str, collection: int) -> Job:
        outcomes = self.cluster.ask("SELECT uri, outcome, error FROM job_documents WHERE job_id = %s", [key])
        return Job(
            key, name, state, {uri: (outcome, error) for uri, outcome, error in outcomes},
            collection_rows(self.cluster, name),
            self.cluster.ask(f"SELECT count(*) FROM chunks_{collection}")[0][0],
        )  # fmt: skip

    def _expected(self, collection: str) -> list[str]:
        role = collection.partition("-")[0]
        folder = "short" if role == "cancel" else role
        return [f"{DOCUMENTS}/chaos/{folder}/{name}" for name in self.documents.folders.get(folder, ())]

    def _pauses(self, lines: Sequence[journal.Line]) -> list[str]:
        """Return claims of jobs while they were paused: a running shard may end, none may begin."""
        events = log.read(self.log.path)
        found = []
        for event in (one for one in events if one["event"] == "pause"):
            job, begin = event["job"], event["at"] + 1
            until = [one["before"] for one in events if one["event"] == "resume" and one["job"] == job]
            end = next((at for at in until if at > begin), float("inf"))
            claims = [
                line
                for line in lines
                if line.what == "claimed" and line.values.get("job") == job and begin < line.at < end
            ]
            found += [f"job {job[:8]} was paused, and shard {line.shard} claimed" for line in claims]
        return found


def _left(undo: ExitStack) -> list[str]:
    """Leave the contexts of the faults, all of them; return what went wrong with one."""
    try:
        undo.close()
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return []


def rounds(faults: Sequence[Fault]) -> list[list[Fault]]:
    """Return the faults that strike at the same moment together."""
    found: list[list[Fault]] = []
    for planned in faults:
        if planned.together and found:
            found[-1].append(planned)
        else:
            found.append([planned])
    return found


def clean(cluster: Cluster, report: Callable[[str], None]) -> None:
    """Heal what an earlier run left, end its jobs and drop its collections."""
    services.heal(cluster)
    for key, state in cluster.ask("SELECT id::text, state FROM jobs WHERE finished_at IS NULL"):
        report(f"job {key[:8]} of an earlier run is {state}: cancelled")
        with suppress(ChaosError):
            cluster.semantik("cancel", key)
    for (name,) in cluster.ask("SELECT name FROM collections ORDER BY name"):
        if name.partition("-")[0] in ("long", "short", "side", "poison", "cancel", "reference"):
            with suppress(ChaosError):
                cluster.semantik("collections", "drop", name, "--yes")
