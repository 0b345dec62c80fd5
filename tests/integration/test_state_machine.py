"""Nothing is lost and nothing is done twice, in whatever order processes act, stop, die and come back.

`SEMANTIK_EXAMPLES=2000 pytest tests/integration/test_state_machine.py` searches longer, each time elsewhere.
`SEMANTIK_WITHOUT="shards.done: AND fence = %(fence)s"` takes that guard away (the names are those of
states/guards.py), to see how long the search needs to come upon what it guards against.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from services import Services
from states.guards import GUARDS
from states.machine import Cluster
from states.world import World

#: Examples of the plain run: about a minute.
EXAMPLES = 30
MORE = int(os.environ.get("SEMANTIK_EXAMPLES", "0"))
WITHOUT = os.environ.get("SEMANTIK_WITHOUT", "")


@pytest.fixture(scope="module")
def world(services: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    services.make_database("machine")
    made = World(services, "machine", tmp_path_factory.mktemp("machine") / "documents")
    with made.patched():
        yield made
    made.close()


def test_whatever_happens_nothing_is_lost_and_nothing_done_twice(world: World) -> None:
    Cluster.world = world
    with contextlib.ExitStack() as stack:
        for guard in GUARDS:
            if guard.name == WITHOUT:
                stack.enter_context(guard.removed())
        search()


def search() -> None:
    run_state_machine_as_test(
        Cluster,
        settings=settings(
            max_examples=MORE or EXAMPLES,
            stateful_step_count=40,
            derandomize=not MORE,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink) if MORE else (Phase.generate,),
            suppress_health_check=list(HealthCheck),
        ),
    )
