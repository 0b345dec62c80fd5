"""What must hold of each statement, by the committed state in which it ran."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .actors import Statement, Violation
from .snapshot import Shard, Snapshot

if TYPE_CHECKING:
    from .world import World

FINAL_JOB = ("completed", "completed_with_errors", "failed", "cancelled")
FINAL_SHARD = ("done", "failed", "cancelled")
OPEN = ("pending", "queued", "running")
#: Statements of a holder: they may change a row only under its own fence, while it holds it.
OF_SHARD_HOLDERS = ("shards.renew", "shards.done", "shards.give_back", "shards.crashed")
OF_PLAN_HOLDERS = ("planner.renew", "planner.release", "planner.fail", "planner.planned")


def must(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)


class StatementRules:
    """A rule per statement, named as it is."""

    world: World
    before: Snapshot
    reused: set[int]
    reused_plans: set[str]
    _window = 0

    def _may_close(self, job: str) -> bool:
        row = self.before.jobs.get(job)
        return bool(row and row.state == "running" and row.planned) and not self._open(job)

    def _open(self, job: str) -> list[Shard]:
        return [shard for shard in self.before.shards.values() if shard.job == job and shard.state in OPEN]

    def _jobs_close(self, it: Statement) -> None:
        job = it.values["job"]
        must(self._may_close(job), f"closed {self.before.jobs[job]} with {self._open(job)}")
        outcomes = [outcome for (of, _), (_, outcome) in self.before.documents.items() if of == job]
        failed = outcomes.count("failed")
        wanted = (
            "completed" if not failed
            else "failed" if failed == len(outcomes) and not self.before.jobs[job].unchanged
            else "completed_with_errors"
        )  # fmt: skip
        must(it.rows[0][0] == wanted, f"closed as {it.rows[0][0]}, which is {wanted}: {outcomes}")

    def _shards_claim(self, it: Statement) -> None:
        number, _, _, attempt = it.rows[0][:4]
        shard = self.before.shards[number]
        job = self.before.jobs[shard.job]
        must(job.state == "running" and job.planned and not job.paused, f"claimed of {job}")
        free = shard.state in ("pending", "queued")
        must(free or (shard.state, shard.slot) == ("running", it.values["slot"]), f"claimed {shard}")
        must(attempt == shard.attempt + 1, f"attempt {attempt} of {shard}")
        must(it.values["model_revision"] == self.world.revision, "claimed for another model")

    def _shards_end_own(self, it: Statement) -> None:
        shard = self.before.shards[it.values["shard"]]
        must(
            shard.state == "running" and shard.slot == it.values["slot"] and shard.id not in self.reused,
            f"{it.actor.name} ended the session of {shard}",
        )

    def _scheduler_end_expired_shards(self, it: Statement) -> None:
        for number, _ in it.rows:
            shard = self.before.shards[number]
            must(
                shard.state == "running" and shard.expired and number not in self.reused,
                f"ended the session of {shard}, whose lease lives or whose session it is not",
            )

    def _scheduler_reap_shards(self, it: Statement) -> None:
        for number, *_ in it.rows:
            shard = self.before.shards[number]
            must(shard.state == "running" and shard.expired, f"took back {shard}")

    def _planner_end_own(self, it: Statement) -> None:
        job = self.before.jobs[it.values["job"]]
        must(
            (job.state, job.planner) == ("planning", it.values["node"]) and job.id not in self.reused_plans,
            f"{it.actor.name} ended the session of {job}",
        )

    def _scheduler_end_expired_plans(self, it: Statement) -> None:
        for number, _ in it.rows:
            job = self.before.jobs[str(number)]
            must(
                job.state == "planning" and job.expired and job.id not in self.reused_plans,
                f"ended the session of {job}",
            )

    def _scheduler_reap_plans(self, it: Statement) -> None:
        for number, *_ in it.rows:
            must(self.before.jobs[number].expired, f"took back {self.before.jobs[number]}")

    def _scheduler_give_up_plans(self, it: Statement) -> None:
        for (number,) in it.rows:
            job = self.before.jobs[number]
            must(
                job.state == "planning" and not job.leased and job.attempts >= self.world.plan_limit,
                f"gave up {job}",
            )

    def _planner_claim(self, it: Statement) -> None:
        job = self.before.jobs[it.values["job"]]
        must(not job.planned and not job.paused, f"planning of {job}")
        must(job.attempts < self.world.plan_limit or not it.values["count"], f"once more: {job}")
        must(
            job.state == "queued"
            or (job.state == "planning" and (not job.leased or job.planner == it.values["node"])),
            f"{it.values['node']} plans {job}",
        )
        must(job.collection not in self.world.building(), f"planning of {job} while its index is built")

    def _scheduler_start(self, it: Statement) -> None:
        for (number,) in it.rows:
            job = self.before.jobs[number]
            must(job.state == "queued" and not job.paused, f"started {job}")
            must(job.collection not in self.world.building(), f"started {job} while its index is built")
            rivals = [
                other
                for other in self.before.jobs.values()
                if other.collection == job.collection and other.state == "queued" and not other.paused
            ]
            must(job.priority == max(other.priority for other in rivals), f"{job} before {rivals}")

    def _scheduler_window(self, it: Statement) -> None:
        at_work = sum(shard.state in ("queued", "running") for shard in self.before.shards.values())
        window = max(0, 2 * len(self.world.live()) - at_work)
        must(it.rows[0][0] == window, f"the window is {window}, not {it.rows[0][0]}")
        self._window = window

    def _scheduler_hand_out(self, it: Statement) -> None:
        must(len(it.rows) <= self._window, f"{len(it.rows)} shards in a window of {self._window}")
        for number, _ in it.rows:
            shard = self.before.shards[number]
            job = self.before.jobs[shard.job]
            must(shard.state == "pending", f"handed out {shard}")
            must(job.state == "running" and job.planned and not job.paused, f"handed out of {job}")
        if all(actor.kind == "scheduler" for actor in self.world.stage.actors):
            ready = [
                self.before.jobs[shard.job].priority
                for shard in self.before.shards.values()
                if shard.state == "pending"
                and self.before.jobs[shard.job].state == "running"
                and not self.before.jobs[shard.job].paused
            ]
            must(
                len(it.rows) == min(self._window, len(ready)),
                f"{len(it.rows)} of {len(ready)} shards in a window of {self._window}",
            )
            best = sorted(ready, reverse=True)[: len(it.rows)]
            given = [self.before.jobs[job].priority for _, job in it.rows]
            must(sorted(given, reverse=True) == best, f"handed out priorities {given} of {ready}")

    def _scheduler_want_index(self, it: Statement) -> None:
        for key, _ in it.rows:
            busy = [job for job in self.before.jobs.values() if job.collection == key]
            must(
                all(job.state not in ("planning", "running") for job in busy),
                f"an index is built under {busy}",
            )

    def _scheduler_resend(self, it: Statement) -> None:
        queued = sum(shard.state == "queued" for shard in self.before.shards.values())
        if all(actor.kind == "scheduler" for actor in self.world.stage.actors):
            must(len(it.rows) > 0 or not queued, "what Redis has lost is not sent again")
        must(len(it.rows) <= it.values["missing"], "more messages than were missing")
        for number, _ in it.rows:
            must(self.before.shards[number].state == "queued", f"sent {self.before.shards[number]} again")
