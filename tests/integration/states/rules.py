"""What must hold of the database after every step, and of every statement that ran."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from .actors import Actor, Statement
from .snapshot import Camera, Shard, Snapshot
from .statements import FINAL_JOB, FINAL_SHARD, OF_PLAN_HOLDERS, OF_SHARD_HOLDERS, OPEN, StatementRules, must

if TYPE_CHECKING:
    from .world import World


class Rules(StatementRules):
    """Judges each step of a world by the state before and after it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._camera = Camera(world.monitor, world.keys.values())

    def reset(self) -> None:
        self.claims: set[tuple[int, int]] = set()  # that were committed
        self._open_statements: defaultdict[Actor, list[Statement]] = defaultdict(list)
        self.expiries: Counter[int] = Counter()
        self.reused: set[int] = set()  # shards whose backend's number is another session's by now
        self.reused_plans: set[str] = set()
        self._window = 0
        self.before = self._camera.take()

    def refresh(self) -> None:
        """Take the state as it is: the test itself changed it."""
        self.before = self._camera.take()

    # --- each statement ---

    def judge(self) -> None:
        """Judge what ran since the last time, by itself and by what it changed."""
        log = list(self.world.stage.log)
        self.world.stage.log.clear()
        if not log:
            return
        committed: list[Statement] = []
        for statement in log:
            self._statement(statement)
            of_its_transaction = self._open_statements[statement.actor]
            of_its_transaction.append(statement)
            if statement.commits:
                committed += of_its_transaction
            if statement.commits or statement.label == "rollback":
                of_its_transaction.clear()
        if committed:
            after = self._camera.take()
            self._committed(committed)
            self._compare(self.before, after, committed)
            self._state(after)
            self.before = after

    def _committed(self, statements: list[Statement]) -> None:
        for it in statements:
            if it.label == "shards.claim" and it.rows:
                claim = (it.rows[0][0], it.rows[0][2])
                must(claim not in self.claims, f"two claims under one fence: {claim}")
                job = self.before.jobs[it.rows[0][1]]
                must(job.state == "running" and not job.paused, f"claimed of {job}, changed meanwhile")
                self.claims.add(claim)
            elif it.label == "scheduler.reap_shards":
                self.expiries.update({row[0]: it.values.get("count", 1) for row in it.rows})

    def _statement(self, it: Statement) -> None:
        before, label, values = self.before, it.label, it.values
        if label in OF_SHARD_HOLDERS and it.rowcount:
            shard = before.shards[values["shard"]]
            must(
                (shard.state, shard.fence) == ("running", values["fence"]) and it.rowcount == 1,
                f"{label} under fence {values['fence']} changed {shard}",
            )
        elif label in ("jobs.cancel_shards", "scheduler.fail_shards"):
            still = len(self._open(values["job"]))
            must(it.waited or it.rowcount <= still, f"{label} changed {it.rowcount} of {still} open shards")
        elif label in OF_PLAN_HOLDERS and it.rowcount:
            job = before.jobs[values["job"]]
            must(
                (job.state, job.fence, job.planned) == ("planning", values["fence"], False),
                f"{label} under fence {values['fence']} changed {job}",
            )
        elif (rule := getattr(self, f"_{label.replace('.', '_')}", None)) and (
            it.rows or label in ("scheduler.hand_out", "scheduler.resend")
        ):
            rule(it)
        elif label == "jobs.close":
            must(
                it.waited or not self._may_close(values["job"]),
                f"job {values['job']} has nothing open and stays",
            )

    # --- what a step changed ---

    def _compare(self, old: Snapshot, new: Snapshot, committed: list[Statement]) -> None:
        retried = any(it.label.startswith("jobs.retry") for it in committed)
        crashed = Counter(it.values["shard"] for it in committed if it.label == "shards.crashed" and it.rows)
        for key, now in new.jobs.items():
            if (was := old.jobs.get(key)) is None or was == now:
                continue
            must(now.fence >= was.fence, f"the fence fell: {was} to {now}")
            if not retried:
                must(was.state not in FINAL_JOB, f"{was} was final, and is {now}")
                must(now.planned >= was.planned, f"{was} is unplanned: {now}")
            if was.state in FINAL_JOB and now.state == "queued":
                must(now.fence > was.fence, f"tried again under its old fence: {was} to {now}")
            if was.leased and not now.leased and now.state == "planning":
                must(now.fence > was.fence, f"a planner is left its fence: {was} to {now}")
            if was.state == "queued" and now.state in ("planning", "running"):
                must(now.fence > was.fence, f"begun under its old fence: {was} to {now}")
            if was.state == "planning" and now.state not in ("planning", "running"):
                must(now.fence > was.fence, f"a planner is left its fence: {was} to {now}")
        for number, it in new.shards.items():
            if (of := old.shards.get(number)) is not None and of != it:
                self._changed_shard(of, it, crashed[number])
        for pair, (shard, outcome) in new.documents.items():
            had = old.documents.get(pair)
            if had is None or had == (shard, outcome):
                continue
            must(old.jobs[pair[0]].state != "cancelled", f"document {pair} of a cancelled job changed")
            if had[1] is not None:
                must(
                    retried and had[1] == "failed" and outcome is None,
                    f"document {pair}: {had[1]} became {outcome}",
                )
            elif outcome == "removed":
                must(pair[1] not in new.held, f"document {pair} is there, and called removed")
            elif outcome is not None:
                must(shard is not None, f"document {pair} ended as {outcome} in no shard")
                by = new.shards[shard or 0].state
                must(
                    by == "done" or (by == "failed" and outcome == "failed"),
                    f"document {pair} ended as {outcome} in a shard that is {by}",
                )
        must(
            all(pair in new.documents for pair in old.documents),
            "a job forgot a document",
        )
        for key, rows in new.chunks.items():
            if old.chunks.get(key) != rows:
                self._changed_chunks(key, rows, old)

    def _changed_shard(self, was: Shard, now: Shard, crashes: int) -> None:
        step = f"{was} to {now}"
        must(now.fence >= was.fence, f"the fence fell: {step}")
        must(was.state not in FINAL_SHARD, f"a final shard changed: {step}")
        must(now.attempt - was.attempt in (0, 1), f"attempts: {step}")
        if now.documents == was.documents:
            must(now.crashes == was.crashes + crashes, f"{crashes} crashes: {step}")
        if now.state == "running" and (was.state != "running" or now.slot != was.slot):
            must(now.fence > was.fence, f"claimed without a new fence: {step}")
        if was.state == "running" and now.state not in ("running", "done"):
            must(now.fence > was.fence, f"taken back without a new fence: {step}")
        if was.state == now.state == "running" and was.fence == now.fence:
            must(now.attempt == was.attempt, f"claimed without a new fence: {step}")
        if now.state == "done":
            must(was.state == "running" or now.documents == 0, f"done without being held: {step}")

    def _changed_chunks(self, key: int, rows: tuple[int, int, tuple[str, ...]], old: Snapshot) -> None:
        for place in rows[2]:
            number, fence = map(int, place.split(":"))
            shard = old.shards[number]
            must(
                (shard.state, shard.fence) == ("running", fence),
                f"chunks of document {key} were written under fence {fence} of {shard}",
            )

    # --- what holds at any time ---

    def _state(self, now: Snapshot) -> None:
        open_documents: Counter[int] = Counter()
        for (number, document), (shard, outcome) in now.documents.items():
            job, of = now.jobs[number], now.shards.get(shard or 0)
            if outcome is None:
                must(of is not None, f"document {document} of {job} has neither outcome nor shard")
                assert of is not None
                open_documents[of.id] += 1
                must(
                    of.state in OPEN or job.state == "cancelled",
                    f"document {document} of {job} is lost: no outcome, and {of}",
                )
            elif of is not None:
                must(of.state not in OPEN, f"document {document} is {outcome}, and open in {of}")
        active = Counter(job.collection for job in now.jobs.values() if job.state in ("planning", "running"))
        must(all(count == 1 for count in active.values()), "two active jobs in one collection")
        for shard_ in now.shards.values():
            job = now.jobs[shard_.job]
            if shard_.state in OPEN:
                must(job.state not in FINAL_JOB, f"{job} has ended with {shard_}")
                must(
                    shard_.documents == open_documents[shard_.id],
                    f"{shard_} has {open_documents[shard_.id]} documents",
                )
            if shard_.state == "queued":
                must(not job.paused, f"{job} has {shard_}")
            if shard_.state == "running":
                must((shard_.id, shard_.fence) in self.claims, f"nobody claimed {shard_}")
        for key, (_, state, chunks) in now.held.items():
            rows, last, places = now.chunks.get(key, (0, -1, ()))
            must(
                (rows, last) == (chunks, chunks - 1) and len(places) <= 1,
                f"document {key} ({state}) says {chunks} chunks and has {rows}, of {places}",
            )
        must(all(key in now.held for key in now.chunks), "chunks of a document that is not there")
        self._counters(now)

    def _counters(self, now: Snapshot) -> None:
        outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for (number, _), (_, outcome) in now.documents.items():
            outcomes[number][outcome or "open"] += 1
        for number, counts in now.counts.items():
            of = outcomes[number]
            told = (of.total(), of.total() - of["open"], of["failed"], of["skipped"], of["removed"])
            must(counts == told, f"{now.jobs[number]} counts {counts} and has {told}")
        for number, shard in now.shards.items():
            must(shard.expiries == self.expiries[number], f"{shard}: {self.expiries[number]} leases ran out")
            must(shard.crashes <= self.world.crash_limit + 1, f"{shard} crashes for ever")

    def documents_of(self, job: str) -> dict[str, int]:
        found: defaultdict[str, int] = defaultdict(int)
        for (of, _), (_, outcome) in self.before.documents.items():
            if of == job:
                found[outcome or "open"] += 1
        return dict(found)
