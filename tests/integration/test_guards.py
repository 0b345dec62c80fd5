"""Each guard of the state machine's SQL is needed: without it, a rule of the machine is broken."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from services import Services
from states.actors import Violation
from states.guards import GUARDS, SECOND_LINES, UNGUARDED, Guard
from states.sequences import SEQUENCES
from states.world import World

from semantik import database

CHANGES = re.compile(r"\b(INSERT INTO|UPDATE \w|DELETE FROM|CREATE TEMPORARY|pg_terminate_backend)")


@pytest.fixture(scope="module")
def world(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    services.make_database("guards")
    made = World(services, "guards", tmp_path_factory.mktemp("guards") / "documents")
    with made.patched():
        yield made
    made.close()


def play(world: World, name: str, *, triggers: bool = True) -> None:
    world.reset(triggers=triggers)
    try:
        SEQUENCES[name](world)
    finally:
        world.end()


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_rules_hold_in(world: World, name: str) -> None:
    play(world, name)


@pytest.mark.parametrize("triggers", [True, False], ids=["triggers", "rules alone"])
@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_without_this_guard_a_rule_is_broken(
    world: World, guard: Guard, triggers: bool, record_property: Callable[[str, object], None]
) -> None:
    with guard.removed(), pytest.raises(Violation) as broken:
        play(world, guard.shown_by, triggers=triggers)
    record_property("broken", str(broken.value))  # for the table in docs/reliability.md: --junitxml


def test_without_the_index_of_active_jobs_two_are_active(world: World) -> None:
    row = world.monitor.execute(
        "SELECT indexdef FROM pg_indexes WHERE indexname = 'jobs_one_active_per_collection'"
    ).fetchone()
    assert row is not None
    world.reset()
    world.monitor.execute("DROP INDEX jobs_one_active_per_collection")
    try:
        with pytest.raises(Violation, match="two active jobs"):
            play(world, "turns_of_jobs")
    finally:
        world.reset()
        world.monitor.execute(row[0])


@pytest.mark.parametrize("statement", sorted({statement for statement, _ in SECOND_LINES}))
def test_the_second_lines_are_there(statement: str) -> None:
    file, _, name = statement.partition(".")
    for (of, text), why in SECOND_LINES.items():
        if of == statement:
            assert text in database._queries(file)[name], f"{statement} has no {text!r}"
            assert why


@pytest.mark.parametrize("file", ["jobs", "planner", "scheduler", "shards", "slots"])
def test_every_statement_that_changes_something_is_guarded_or_says_why_not(file: str) -> None:
    guarded = {guard.statement for guard in GUARDS} | {of for of, _ in SECOND_LINES}
    for name, text in database._queries(file).items():
        if CHANGES.search(text):
            assert (f"{file}.{name}" in guarded) != (f"{file}.{name}" in UNGUARDED), (
                f"{file}.{name} changes rows: name its guards in tests/integration/states/guards.py, "
                "or say there why it needs none"
            )
