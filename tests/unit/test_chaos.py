"""The chaos harness itself: its plan, what it reads out of journals, and its verdict."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos import command, documents, faults, journal, log, report, run, schedule
from chaos.accounts import Findings, Job, account
from chaos.journal import Execution, Line, executions, parse
from chaos.kinds import KINDS, ChaosError
from chaos.recovery import rank, recoveries
from chaos.reference import Reference
from chaos.repeats import Happened, repeats, unsaid
from chaos.schedule import Fault
from chaos.verdict import judge, left_in_redis

SLOTS = ("gpu1:0", "gpu1:1", "gpu2:0", "gpu2:1")
JOB = "11111111-2222-4333-8444-555555555555"


# --- the plan ---


def test_same_seed_makes_the_same_plan_and_another_seed_another() -> None:
    first = schedule.plan(7, 60, SLOTS, lease=12)
    assert schedule.plan(7, 60, SLOTS, lease=12) == first
    assert schedule.plan(8, 60, SLOTS, lease=12) != first
    assert json.loads(json.dumps(first.record()))["faults"][0]["number"] == 1


def test_a_longer_plan_begins_as_the_shorter_one() -> None:
    assert schedule.plan(7, 40, SLOTS, lease=12).faults[:20] == schedule.plan(7, 20, SLOTS, lease=12).faults


def test_a_long_plan_holds_every_kind_with_its_target() -> None:
    planned = schedule.plan(1, 100, SLOTS, lease=12).faults
    assert {fault.kind for fault in planned} == set(KINDS)
    for fault in planned:
        assert fault.target in {"slot": SLOTS, "host": ("gpu1", "gpu2")}.get(fault.what.target, ("",))
        if fault.kind == "freeze":
            assert fault.hold > 12 + 2, "a process that is woken before its lease ran out shows nothing"


def test_faults_that_strike_together_hit_different_parts() -> None:
    planned = [fault for seed in range(20) for fault in schedule.plan(seed, 60, SLOTS, lease=12).faults]
    pairs = [(one, two) for one, two in pairwise(planned) if two.together]
    assert len(pairs) > 20
    for one, two in pairs:
        assert not one.together
        assert one.what.target != two.what.target or one.target != two.target
        if one.what.of_workers and two.what.of_workers:
            assert one.target.partition(":")[0] != two.target.partition(":")[0]


def test_jobs_are_cancelled_and_paused_before_faults_that_begin_a_round() -> None:
    planned = schedule.plan(3, 50, SLOTS, lease=12)
    assert {"cancel", "pause"} == set(planned.jobs.values())
    assert all(not planned.faults[number - 1].together for number in planned.jobs)
    assert [fault.number for one in run.rounds(planned.faults) for fault in one] == list(range(1, 51))


def test_kinds_are_chosen_by_name() -> None:
    chosen = schedule.choose("freeze, host_power")
    assert {fault.kind for fault in schedule.plan(1, 9, SLOTS, lease=12, kinds=chosen).faults} == set(chosen)
    with pytest.raises(ChaosError, match="no kind of fault is called frost"):
        schedule.choose("freeze,frost")


def test_every_kind_has_its_fault() -> None:
    assert faults.known() == set(KINDS)


def test_the_command_prints_a_plan_without_a_lab(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--plan", "--seed", "4", "--faults", "5"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5


# --- log and documents ---


def test_the_log_is_read_up_to_where_it_was_cut_off(tmp_path: Path) -> None:
    written = log.EventLog(tmp_path / "log")
    written.write("inject", fault=1)
    written.write("over", fault=1)
    written.close()
    with (tmp_path / "log").open("a") as file:
        file.write('{"at": 3, "ev')
    assert [event["event"] for event in log.read(tmp_path / "log")] == ["inject", "over"]


def test_documents_are_the_same_each_time_and_no_two_alike(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    words = "<p>" + "Debian is a free operating system. " * 40 + "</p>\n\n"
    (corpus / "page.html").write_text("<html><script>no()</script>" + words * 800)
    made = documents.provide(corpus, tmp_path / "one", scale=0.05)
    again = documents.provide(corpus, tmp_path / "two", scale=0.05)
    assert made.digest == again.digest
    contents = [path.read_text() for path in (tmp_path / "one" / "long").iterdir()]
    assert len(contents) == len(set(contents)) == 15
    assert all("no()" not in text and "<p>" not in text for text in contents)
    poison = (tmp_path / "one" / "poison" / made.folders["poison"][-1]).read_text()
    assert documents.POISON in poison.lower()
    assert documents.POISON in (Path(documents.__file__).parent / "poison.py").read_text()


# --- journals ---


def test_a_line_of_a_journal_is_taken_apart() -> None:
    line = parse(
        f'WARNING semantik.shards: crashed job={JOB} shard=7 reason="signal 9 (SIGKILL)" verdict=x',
        at=5.0, host="gpu1", unit="semantik-worker-0",
    )  # fmt: skip
    assert line is not None
    assert (line.what, line.shard, line.slot) == ("crashed", 7, "gpu1:0")
    assert line.values["reason"] == "signal 9 (SIGKILL)"
    assert parse("Started something.", at=1, host="gpu1", unit="semantik-worker-0") is None


def say(at: float, who: str, what: str, shard: int = 1, **values: Any) -> Line:
    host, _, number = who.partition(":")
    unit = f"semantik-worker-{number}" if number else "semantik-scheduler"
    told = {"shard": str(shard), "job": JOB, **{key: str(value) for key, value in values.items()}}
    return Line(at, host, unit, what, told)


def test_executions_end_by_what_made_their_shard_free() -> None:
    found = executions([
        say(1, "gpu1:0", "claimed", attempt=1),
        say(4, "gpu1:0", "crashed"),
        say(5, "gpu2:0", "claimed", attempt=2),
        say(19, "head", "lease ran out", slot="gpu2:0"),
        say(20, "gpu1:1", "claimed", attempt=3),
        say(21, "gpu2:0", "commit refused"),
        say(25, "gpu1:1", "claimed", attempt=4),
        say(30, "gpu1:1", "committed", tokens=900),
    ])  # fmt: skip
    assert [one.end for one in found[1]] == ["crash", "expiry", "again", "committed"]
    assert [one.freed for one in found[1]] == [4, 19, 25, 0]
    assert found[1][-1].tokens == 900
    assert journal.twice(found.values()) == []


def test_a_second_commit_is_found() -> None:
    lines = [
        say(1, "gpu1:0", "claimed"), say(2, "gpu2:0", "claimed"),
        say(3, "gpu1:0", "committed"), say(4, "gpu2:0", "committed"),
    ]  # fmt: skip
    assert journal.twice(executions(lines).values()) == [1]


# --- repeats ---


def happened(
    kind: str, slots: Sequence[str], injected: float, back: float, *, number: int = 1, **more: Any
) -> Happened:
    planned = Fault(number, kind, "", 0, 0, 0, False)
    return Happened(planned, tuple(slots), injected, back, **more)


def crash(at: float, slot: str = "gpu1:0") -> dict[int, list[Execution]]:
    return {
        1: [
            Execution(1, JOB, slot, 1, at - 3, "crash", at, freed=at),
            Execution(1, JOB, "gpu2:1", 2, at + 1, "committed", at + 9),
        ]
    }


@pytest.mark.parametrize(
    ("fault", "explained"),
    [
        (happened("child_kill", ["gpu1:0"], 95, 101), True),
        (happened("child_kill", ["gpu1:1"], 95, 101), False),  # another slot
        (happened("child_kill", ["gpu1:0"], 150, 155), False),  # too late
        (happened("child_kill", ["gpu1:0"], 10, 20), False),  # long over
        (happened("redis_flush", SLOTS, 95, 101), False),  # explains no repeat at all
        (happened("host_power", ["gpu1:0"], 95, 101), False),  # leases run out then, nobody counts a crash
        (happened("poison", SLOTS, 50, 50, note={"job": JOB}), True),
        (happened("poison", SLOTS, 50, 50, note={"job": "another"}), False),
    ],
)
def test_a_repeat_is_explained_by_place_time_and_kind_of_a_fault(fault: Happened, explained: bool) -> None:
    (found,) = repeats(crash(100.0), [fault], reaping=14)
    assert bool(found.faults) is explained


def test_an_execution_after_a_commit_is_never_explained() -> None:
    held = [
        Execution(1, JOB, "gpu1:0", 1, 90, "committed", 99),
        Execution(1, JOB, "gpu2:0", 2, 100, "committed", 109),
    ]
    (found,) = repeats({1: held}, [happened("child_kill", SLOTS, 95, 101)], reaping=14)
    assert found.faults == ()


def test_a_claim_that_no_journal_has_needs_a_fault_that_kills() -> None:
    held = crash(100.0)
    assert unsaid(held, [(1, JOB, 2)], []) == []
    assert len(unsaid(held, [(1, JOB, 3)], [])) == 1
    assert len(unsaid(held, [(1, JOB, 3)], [happened("redis_flush", SLOTS, 95, 101)])) == 1
    assert unsaid(held, [(1, JOB, 3)], [happened("host_power", SLOTS, 95, 101)]) == []


# --- recovery ---


def test_recovery_of_a_killed_child_counts_from_the_fault_and_from_its_model() -> None:
    held = crash(100.0)
    held[2] = [Execution(2, JOB, "gpu1:0", 1, 109.0, "committed", 115)]
    lines = [Line(107.0, "gpu1", "semantik-worker-0", "model loaded")]
    (found,) = recoveries([happened("child_kill", ["gpu1:0"], 98, 102)], held, lines, limit=50)
    assert (found.freed, found.again, found.idle) == (2.0, 3.0, 2.0)
    assert found.seconds == 2.0


def test_recovery_of_redis_is_the_longest_time_that_a_slot_then_stood_idle() -> None:
    held = {
        1: [Execution(1, JOB, "gpu1:0", 1, 95, "committed", 105)],
        2: [Execution(2, JOB, "gpu2:0", 1, 90, "committed", 98)],
        3: [Execution(3, JOB, "gpu1:0", 1, 106, "committed", 120)],
        4: [Execution(4, JOB, "gpu2:0", 1, 109, "committed", 121)],
    }
    (found,) = recoveries([happened("redis_kill", ["gpu1:0", "gpu2:0"], 96, 102)], held, [], limit=50)
    assert found.idle == 7.0  # gpu1:0 worked until 105 and had the next one a second later


def test_what_the_run_waited_for_in_vain_counts_as_long_as_it_waited() -> None:
    fault = happened("redis_kill", ["gpu1:0"], 96, 102, recovered=False)
    (found,) = recoveries([fault], {}, [], limit=50)
    assert found.seconds == 50


def test_rank_is_the_nearest() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (rank(values, 0.5), rank(values, 0.99), rank(values, 1.0), rank([], 0.5)) == (50, 99, 100, None)
    assert rank([3.0], 0.99) == 3.0


# --- documents and rows ---


def vector(*values: float) -> Any:
    return np.array(values, dtype=np.float32)


REFERENCE = Reference({"abc": {0: ("t0", vector(1, 0)), 1: ("t1", vector(0, 1))}}, 1000.0)
URI = "/srv/documents/chaos/long/0000.txt"


def verdict_on(
    rows: Any, *, outcome: str | None = "embedded", state: str = "completed", **more: Any
) -> Findings:
    found = Findings()
    outcomes = {URI: (outcome, more.pop("error", None))}
    account(Job(JOB, "long-1", state, outcomes, rows, **more), [URI], REFERENCE, found)
    return found


def chunks(**changed: Any) -> dict[int, Any]:
    rows: dict[int, Any] = {0: ("t0", vector(1, 0)), 1: ("t1", vector(0, 1))}
    return rows | {int(key[1:]): value for key, value in changed.items()}


def test_rows_as_without_faults_are_in_order() -> None:
    found = verdict_on({URI: ("abc", chunks(_0=("t0", vector(2, 0.001))))}, stored=2)
    assert (found.lost, found.duplicates, found.changed, found.rows) == ([], [], [], 2)


@pytest.mark.parametrize(
    ("rows", "field"),
    [
        ({URI: ("abc", {0: ("t0", vector(1, 0))})}, "lost"),  # a row is missing
        ({}, "changed"),  # the document itself: its bytes are known by its row alone
        ({URI: ("abc", chunks(_2=("t2", vector(1, 1))))}, "duplicates"),
        ({URI: ("abc", chunks(_1=("other", vector(0, 1))))}, "changed"),
        ({URI: ("abc", chunks(_1=("t1", vector(0.1, 1))))}, "changed"),
        ({URI: ("abc", chunks()), "/other": ("abc", chunks())}, "duplicates"),
    ],
)
def test_each_difference_to_the_run_without_faults_is_found(rows: Any, field: str) -> None:
    found = verdict_on(rows)
    assert len(getattr(found, field)) == 1, found


def test_rows_of_no_document_are_found() -> None:
    assert len(verdict_on({URI: ("abc", chunks())}, stored=3).duplicates) == 1


def test_a_document_without_outcome_is_lost_but_in_a_cancelled_job() -> None:
    assert len(verdict_on({}, outcome=None).lost) == 1
    assert verdict_on({}, outcome=None, state="cancelled").lost == []
    left = verdict_on({URI: ("abc", chunks())}, outcome=None, state="cancelled")
    assert len(left.duplicates) == 1, "rows of a document that the cancelled job did not commit"


def test_a_job_that_did_not_end_and_one_without_its_documents_are_lost() -> None:
    assert verdict_on({URI: ("abc", chunks())}, state="running").lost
    found = Findings()
    account(Job(JOB, "long-1", "completed", {}, {}), [URI], REFERENCE, found)
    assert len(found.lost) == 1


def test_attempts_at_poison_are_counted() -> None:
    found = Findings()
    error = "quarantined: its worker crashed 3 times (signal 11)"
    job = Job(JOB, "poison-4", "completed_with_errors", {URI: ("failed", error)}, {})
    account(job, [URI], REFERENCE, found)
    assert (found.poison, found.failed) == ([3], [])


# --- the verdict ---


def judged(findings: Findings | None = None, **more: Any) -> Any:
    values: dict[str, Any] = {
        "keys": (["semantik:a"], ["semantik:a"]), "lease": 12, "tick": 2, "most": 17.5,
        "window": (90.0, 110.0), "tokens_per_second": 100.0,
    }  # fmt: skip
    fault = more.pop("happened", [happened("child_kill", ["gpu1:0"], 98, 102)])
    held = more.pop("executions", crash(100.0))
    held[1][-1].tokens = 1000
    keys = more.pop("keys", values.pop("keys"))
    return judge(fault, findings or Findings(), [], held, [], keys, **(values | more))


def test_a_good_run_passes_and_its_json_has_what_is_promised() -> None:
    verdict = judged()
    assert verdict.failures() == []
    data = report.record(verdict, seed=5)
    assert data["passed"] is True
    assert data["throughput_ratio"] == 0.5  # 1000 tokens in 20 s, where 100 a second are usual
    assert data["by_kind"]["child_kill"]["faults"] == 1
    assert data["by_kind"]["child_kill"]["repeats"] == 1
    for key in (
        "faults", "by_kind", "lost", "duplicates", "unexplained_repeats", "recovery_p50_s",
        "recovery_p99_s", "throughput_ratio",
    ):  # fmt: skip
        assert key in data
    json.dumps(data)
    assert any("worker's child: SIGKILL" in line for line in report.table(data))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"findings": Findings(lost=["x"])}, "lost"),
        ({"findings": Findings(duplicates=["x"])}, "duplicate"),
        ({"findings": Findings(changed=["x"])}, "changed"),
        ({"findings": Findings(failed=[("u", "no such file")])}, "lost"),
        ({"findings": Findings(poison=[4])}, "poison"),
        ({"happened": [happened("redis_flush", SLOTS, 96, 102)]}, "unexplained"),
        ({"happened": [happened("child_kill", ["gpu1:0"], 96, 102, failed="x")]}, "not done"),
        ({"keys": ([], ["semantik:unacked"])}, "still in Redis"),
        ({"most": 1.0}, "recovery"),
    ],
)
def test_each_defect_makes_the_run_a_failed_one(change: dict[str, Any], word: str) -> None:
    failures = judged(**change).failures()
    assert any(line.startswith(word) for line in failures), failures
    data = report.record(judged(**change), seed=5)
    assert data["passed"] is False
    assert any("FAILED" in line for line in report.table(data))


def test_a_document_that_failed_by_a_fault_is_told_and_not_lost() -> None:
    failed = [
        (URI, "quarantined: its worker crashed 3 times (signal 9)"),
        (URI, "the parser ended unexpectedly on this document: a crash"),
    ]
    verdict = judged(Findings(failed=failed), happened=[
        happened("parser_kill", SLOTS, 96, 102), happened("child_kill", ["gpu1:0"], 96, 102, number=2),
    ])  # fmt: skip
    assert len(verdict.failed_by_fault) == 1
    # A killed parser is asked once more, so it costs no document.
    assert len(verdict.findings.lost) == 1


def test_keys_are_compared_by_what_they_are_called_but_for_ids() -> None:
    one, two = JOB, JOB.replace("1", "9")
    before = [f"semantik:{one}.reply.celery.pidbox", "semantik:embed"]
    assert left_in_redis(before, [f"semantik:{two}.reply.celery.pidbox"]) == []
    assert len(left_in_redis(before, [f"semantik:{key}.reply.celery.pidbox" for key in (one, two)])) == 1
    assert left_in_redis(before, [f"semantik:celery-task-meta-{two}"]) == []
    assert len(left_in_redis(before, ["semantik:unacked"])) == 1
    binding = "semantik:_kombu.binding"
    assert left_in_redis([], [f"{binding}.embed", f"{binding}_permanent.slot.gpu1.0"]) == []
    assert len(left_in_redis([], [f"{binding}.reply.celery.pidbox", f"{binding}.other"])) == 2
