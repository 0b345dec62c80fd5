"""Every guard of the SQL that changes state, and the sequence of steps that goes wrong without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

from semantik import database


@dataclass(frozen=True)
class Guard:
    """A condition in a statement. `shown_by` names the sequence that breaks a rule without it."""

    statement: str
    text: str
    shown_by: str
    instead: str = ""
    #: What else holds it, and is removed with it: (statement, text), or a constraint of the schema.
    along: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.statement}: {' '.join(self.text.split())}"

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Take the guard out of the statement's text, where it must stand exactly once."""
        edits: dict[str, list[tuple[str, str]]] = {}
        for statement, text, instead in (
            (self.statement, self.text, self.instead),
            *((statement, text, "") for statement, text in self.along),
        ):
            edits.setdefault(statement, []).append((text, instead))
        with ExitStack() as stack:
            for statement, changes in edits.items():
                file, _, name = statement.partition(".")
                now = database._queries(file)[name]
                for text, instead in changes:
                    assert now.count(text) == 1, (
                        f"{statement} has {text!r} {now.count(text)} times: bring this table up to date"
                    )
                    now = now.replace(text, instead)
                stack.enter_context(mock.patch.dict(database._queries(file), {name: now}))
            yield


_ENDS_CLAIM = "a.pid <> pg_backend_pid()"
OPEN_JOB = "AND state IN ('queued', 'planning', 'running')"
OPEN_SHARD = "AND state IN ('pending', 'queued', 'running')"
FENCE = "AND fence = %(fence)s"

GUARDS = (
    # --- people ---
    Guard("jobs.cancel", OPEN_JOB, "cancel_of_an_ended_job"),
    Guard("jobs.cancel", "fence = fence + 1, ", "cancel_under_a_plan"),
    Guard("jobs.cancel_shards", OPEN_SHARD, "cancel_of_half_a_job"),
    Guard("jobs.cancel_shards", "fence = fence + 1, ", "cancel_under_a_commit"),
    Guard("jobs.close", "j.state = 'running' AND ", "close_of_a_cancelled_job"),
    Guard(
        "jobs.close",
        "AND NOT EXISTS (SELECT FROM shards s WHERE s.job_id = j.id "
        "AND s.state IN ('pending', 'queued', 'running'))",
        "close_of_half_a_job",
    ),
    Guard("jobs.pause", OPEN_JOB, "pause_of_an_ended_job"),
    Guard("jobs.pause_shards", "AND state = 'queued'", "pause_and_resume"),
    Guard("jobs.resume", OPEN_JOB, "pause_of_an_ended_job", "OR id = %(job)s"),
    Guard("jobs.retry", "AND state IN ('completed_with_errors', 'failed')", "retry_that_is_refused"),
    Guard("jobs.retry", "fence = fence + 1, ", "report_of_a_job_that_is_retried"),
    Guard(
        "jobs.retry_documents",
        "AND jd.outcome = 'failed'\n",
        "retry_of_what_failed",
        "\n",
        along=(("jobs.retry_documents", " AND jd.outcome = 'failed'"),),
    ),
    # --- the planner ---
    Guard("planner.end_own", "j.state = 'planning' AND ", "session_of_a_finished_plan"),
    Guard("planner.end_own", "AND j.planner = %(node)s ", "one_plan_twice"),
    Guard(
        "planner.end_own",
        "AND a.backend_start = j.backend_start",
        "own_plan_of_a_number_used_again",
    ),
    Guard("planner.end_own", f"AND {_ENDS_CLAIM}", "claims_of_one_planning_session"),
    Guard("planner.claim", "AND NOT j.planned ", "retry_and_its_planning_message"),
    Guard("planner.claim", "AND NOT j.paused ", "pause_before_its_turn"),
    Guard("planner.claim", "AND c.index_state <> 'building'", "turn_while_an_index_is_built"),
    Guard(
        "planner.claim",
        "\n  AND (j.state = 'queued' OR (j.state = 'planning' AND "
        "(j.lease_until IS NULL OR j.planner = %(node)s)))",
        "one_plan_twice",
    ),
    Guard("planner.claim", " AND (j.lease_until IS NULL OR j.planner = %(node)s)", "one_plan_twice"),
    Guard(
        "planner.claim",
        "\n  AND NOT (%(count)s AND j.plan_attempts >= %(limit)s)",
        "plan_that_kills_its_planner",
    ),
    Guard("planner.claim", "fence = j.fence + 1, ", "own_plan_is_superseded"),
    Guard("planner.renew", FENCE, "late_plan_of_a_held_job"),
    Guard("planner.renew", "AND state = 'planning'", "renewal_of_a_finished_plan"),
    Guard("planner.release", FENCE, "late_end_of_a_plan"),
    Guard("planner.release", "AND state = 'planning'", "end_of_a_finished_plan"),
    Guard("planner.release", "fence = fence + 1, ", "plan_given_back"),
    Guard("planner.fail", FENCE, "late_end_of_a_plan"),
    Guard("planner.fail", "AND state = 'planning'", "end_of_a_finished_plan"),
    Guard("planner.fail", "fence = fence + 1, ", "plan_that_fails"),
    Guard("planner.planned", FENCE, "late_plan_of_a_held_job"),
    Guard("planner.planned", "AND state = 'planning' AND NOT planned", "plan_said_twice"),
    Guard("planner.add_documents", "ON CONFLICT (collection_id, uri) DO NOTHING", "documents_come_and_go"),
    Guard(
        "planner.make_gone",
        "AND NOT EXISTS (SELECT FROM listed l WHERE l.uri = d.uri)",
        "documents_come_and_go",
    ),
    # --- the scheduler takes back ---
    Guard("scheduler.end_expired_shards", "AND s.lease_until < now()", "live_lease_is_left_alone"),
    Guard(
        "scheduler.end_expired_shards",
        "AND a.backend_start = s.backend_start",
        "session_number_is_used_again",
    ),
    Guard("scheduler.reap_shards", "AND lease_until < now()", "live_lease_is_left_alone"),
    Guard("scheduler.reap_shards", "fence = fence + 1, ", "late_commit_of_a_free_shard"),
    Guard(
        "scheduler.reap_shards",
        " AND documents = 1 THEN 'failed'",
        "leases_of_many_documents_that_run_out",
        " THEN 'failed'",
        (("scheduler.reap_shards", " AND documents = 1"),),
    ),
    Guard("scheduler.end_expired_plans", "AND j.lease_until < now()", "plan_of_a_dead_planner"),
    Guard(
        "scheduler.end_expired_plans",
        "AND a.backend_start = j.backend_start",
        "own_plan_of_a_number_used_again",
    ),
    Guard("scheduler.reap_plans", "AND lease_until < now()", "plan_of_a_dead_planner"),
    Guard("scheduler.reap_plans", "fence = fence + 1, ", "late_plan_of_a_free_job"),
    Guard("scheduler.give_up_plans", "state = 'planning' AND ", "planning_that_succeeds_at_last"),
    Guard("scheduler.give_up_plans", "AND lease_until IS NULL ", "planning_that_breaks_off"),
    Guard("scheduler.give_up_plans", "AND plan_attempts >= %(limit)s", "turns_of_jobs"),
    Guard("scheduler.give_up_plans", "fence = fence + 1,", "planning_that_breaks_off"),
    # --- a model that changed ---
    Guard("scheduler.fail_job", OPEN_JOB, "foreign_ended_job"),
    Guard("scheduler.fail_job", "fence = fence + 1, ", "foreign_plan"),
    Guard("scheduler.fail_shards", OPEN_SHARD, "foreign_ended_job"),
    Guard("scheduler.fail_shards", "fence = fence + 1, ", "foreign_model"),
    # --- whose turn ---
    Guard("scheduler.start", "AND c.index_state <> 'building'", "turn_while_an_index_is_built"),
    Guard("scheduler.start", "q.state = 'queued' AND ", "turn_behind_an_ended_job"),
    Guard(
        "scheduler.start",
        "AND NOT EXISTS (SELECT FROM jobs a WHERE a.collection_id = q.collection_id "
        "AND a.state IN ('planning', 'running'))",
        "turns_of_jobs",
    ),
    Guard("scheduler.start", "AND NOT q.paused ", "pause_before_its_turn"),
    Guard("scheduler.start", " AND NOT j.paused", "pause_under_a_start"),
    Guard("scheduler.start", " fence = j.fence + 1,", "turns_of_jobs"),
    Guard("scheduler.settle_removed", "AND jd.outcome IS NULL\n", "retry_of_what_is_gone", "\n"),
    Guard(
        "scheduler.settle_removed",
        "AND NOT EXISTS (SELECT FROM documents d WHERE d.id = jd.document_id)",
        "retry_of_what_failed",
    ),
    Guard(
        "scheduler.reported",
        "AND fence = %(fence)s AND finished_at IS NOT NULL",
        "report_of_a_job_that_is_retried",
    ),
    Guard("scheduler.start", " AND j.state = 'queued'", "turn_of_a_job_being_cancelled"),
    Guard("scheduler.want_index", "c.index_state = 'none'\n  AND ", "index_under_a_job"),
    Guard(
        "scheduler.want_index",
        "AND NOT EXISTS (SELECT FROM jobs j WHERE j.collection_id = c.id "
        "AND j.state IN ('planning', 'running'))",
        "index_under_a_job",
    ),
    Guard("scheduler.forget_build", "AND index_state = 'building'", "index_that_another_built"),
    # --- handing out ---
    Guard("scheduler.window", "state IN ('idle', 'busy')\n", "window", "true\n"),
    Guard("scheduler.window", "AND last_seen > now() - make_interval(secs => %(live)s)", "window"),
    Guard(
        "scheduler.window",
        "- (SELECT count(*) FROM shards WHERE state IN ('queued', 'running'))",
        "window",
    ),
    Guard("scheduler.hand_out", "WHERE s.state = 'pending'", "window", "WHERE true"),
    Guard("scheduler.hand_out", "LIMIT %(window)s", "window"),
    Guard("scheduler.hand_out", "ORDER BY j.priority DESC, j.created_at, s.id", "priorities"),
    Guard("scheduler.hand_out", "AND j.state = 'running' ", "retry_behind_another_job"),
    Guard("scheduler.hand_out", "AND NOT j.paused", "pause_and_resume"),
    Guard("scheduler.hand_out", "FOR SHARE OF j SKIP LOCKED", "hand_out_under_a_pause"),
    Guard("scheduler.hand_out", "FOR UPDATE OF s SKIP LOCKED", "hand_out_behind_a_claim"),
    Guard("scheduler.resend", "WHERE state = 'queued' AND ", "messages_lost", "WHERE "),
    Guard("scheduler.resend", "LIMIT %(missing)s", "some_messages_lost"),
    Guard("scheduler.resend", "FOR UPDATE SKIP LOCKED", "resent_behind_a_claim"),
    # --- a slot ---
    Guard("shards.end_own", "AND s.state = 'running' ", "session_of_a_shard_given_back"),
    Guard("shards.end_own", "AND s.slot = %(slot)s ", "one_message_twice"),
    Guard("shards.end_own", "AND a.backend_start = s.backend_start", "own_lease_of_a_number_used_again"),
    Guard("shards.end_own", f"AND {_ENDS_CLAIM}", "statements_said_twice"),
    Guard("shards.claim", "AND c.model_revision = %(model_revision)s", "another_model"),
    Guard("shards.claim", "AND j.state = 'running' ", "claim_of_a_queued_job"),
    Guard("shards.claim", "AND NOT j.paused", "pause_and_resume"),
    Guard("shards.claim", "FOR SHARE OF j SKIP LOCKED", "claim_under_a_pause"),
    Guard(
        "shards.claim",
        "\n  AND (s.state IN ('pending', 'queued') OR (s.state = 'running' AND s.slot = %(slot)s))",
        "one_message_twice",
    ),
    Guard("shards.claim", " AND s.slot = %(slot)s", "one_message_twice"),
    Guard("shards.claim", "fence = s.fence + 1, ", "own_lease_is_superseded"),
    Guard("shards.renew", FENCE, "late_renewal"),
    Guard("shards.renew", "AND state = 'running'", "renewal_after_the_commit"),
    Guard("shards.delete_chunks", " AND f.outcome = 'embedded'", "documents_come_and_go"),
    Guard("shards.insert_chunks", " AND f.outcome = 'embedded'", "documents_come_and_go"),
    Guard("shards.done", FENCE, "late_commit_of_a_held_shard"),
    Guard("shards.done", "AND state = 'running'", "statements_said_twice"),
    Guard("shards.give_back", FENCE, "late_return"),
    Guard("shards.give_back", "AND state = 'running'", "statements_said_twice"),
    Guard("shards.give_back", ", fence = fence + 1", "given_back_and_taken_again"),
    Guard("shards.crashed", FENCE, "late_crash"),
    Guard("shards.crashed", "AND state = 'running'", "crash_behind_the_commit"),
    Guard("shards.crashed", "fence = fence + 1, ", "crashes_of_innocents"),
)

#: Conditions that say what another guard or a constraint says already, and why they stay.
SECOND_LINES: dict[tuple[str, str], str] = {
    ("jobs.resume", "AND paused"): "a job that is not paused is resumed without effect",
    ("scheduler.settle_removed", "AND s.state = 'pending'"): "every open shard of a queued job is pending",
    ("jobs.close", "AND j.planned"): "CHECK: a running job is planned",
    ("scheduler.end_expired_shards", "s.state = 'running' AND"): "CHECK: only a running shard has a lease",
    ("scheduler.reap_shards", "state = 'running' AND"): "CHECK: only a running shard has a lease",
    (
        "scheduler.set_all_apart",
        "AND jd.outcome IS NULL",
    ): "a shard that was held has no document with an outcome",
    ("scheduler.end_expired_plans", "j.state = 'planning' AND"): "CHECK: only planning has a lease",
    ("scheduler.reap_plans", "state = 'planning' AND"): "CHECK: only planning has a lease",
    ("scheduler.hand_out", "AND j.planned"): "CHECK: a running job is planned",
    (
        "scheduler.hand_out",
        "AND s.state = 'pending'",
    ): "the row was locked, and looked at again, when it was chosen",
    (
        "scheduler.start",
        "AND q.created_at < now() - interval '2 seconds'",
    ): "spares a second message, guards nothing",
    (
        "scheduler.resend",
        "AND queued_at < now() - make_interval(secs => %(grace)s)",
    ): "spares messages, guards nothing",
    (
        "scheduler.resend",
        "AND s.state = 'queued'",
    ): "the row was locked, and looked at again, when it was chosen",
    ("scheduler.sent_plan", "AND state = 'planning'"): "a time stamp that nobody reads of any other state",
    ("shards.claim", "AND j.planned"): "CHECK: a running job is planned",
    (
        "shards.update_job_documents",
        "AND jd.shard_id = %(shard)s",
    ): "a document goes to another shard under a higher fence alone, and shards.done asks for it",
    ("shards.set_apart", "AND jd.outcome IS NULL"): "a shard that crashed has no document with an outcome",
    (
        "shards.shrink",
        "AND s.state = 'pending'",
    ): "shards.crashed has just made it so, in the same transaction",
    ("shards.shrink", "AND outcome IS NULL"): "a shard that crashed has no document with an outcome",
    ("shards.fail", "AND state = 'pending'"): "shards.crashed has just made it so, in the same transaction",
    ("shards.fail_documents", "AND outcome IS NULL"): "no document of a shard that ends so has an outcome",
}

#: Statements that change rows and need no guard.
UNGUARDED = {
    "jobs.insert": "a new row",
    "planner.make_listed": "a temporary table",
    "planner.make_planned": "a temporary table",
    "planner.cut": "new rows, and planner.planned ends their transaction",
    "planner.refuse": "new rows, and planner.planned ends their transaction",
    "planner.remove_chunks": "of what planner.make_gone chose, and planner.planned ends their transaction",
    "planner.record_removed": "new rows, and planner.planned ends their transaction",
    "planner.remove_documents": "of what planner.make_gone chose, and planner.planned ends their transaction",
    "scheduler.end_frozen": "a scheduler's session that is silent; tests/integration/test_database_faults.py",
    "scheduler.forget_builds": "said by the scheduler, under its lock, while it builds nothing",
    "scheduler.tell_again": "has a result told once more; tests/integration/test_jobs.py",
    "scheduler.purge": "jobs that ended long ago and were reported; tests/integration/test_scheduler.py",
    "scheduler.purge_slots": "slots that were not seen for long",
    "shards.make_rows": "a temporary table",
    "shards.make_finished": "a temporary table",
    "shards.update_documents": "of a shard's own documents, and shards.done ends their transaction",
    "slots.beat": "a sign of life",
    "slots.heartbeat": "a sign of life",
}
