"""The module that waits for units: it ends on success, on a hopeless unit, and when the time is up."""

from __future__ import annotations

from collections.abc import Iterator

import active_units
import pytest


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({"a": ("active", 0), "b": ("active", 7)}, True),
        ({"a": ("active", 0), "b": ("activating", 2)}, None),
        ({"a": ("active", 0), "b": ("activating", 3)}, False),
        ({"a": ("failed", 0), "b": ("activating", 0)}, False),
        ({"a": ("inactive", 0)}, None),
    ],
)
def test_a_unit_that_keeps_falling_is_not_waited_for(
    shown: dict[str, tuple[str, int]], expected: bool | None
) -> None:
    assert active_units.verdict(shown, restarts=3) is expected


def test_a_unit_about_to_restart_is_waited_for() -> None:
    shown = {"a": active_units.read("ActiveState=active\nNRestarts=0\nJob=411\n")}
    assert active_units.verdict(shown, restarts=3) is None
    assert active_units.read("ActiveState=active\nNRestarts=2\n") == ("active", 2)


def test_a_socket_counts_no_restarts() -> None:
    assert active_units.read("ActiveState=active\nJob=0\n") == ("active", 0)


def test_waiting_ends_with_the_last_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[dict[str, tuple[str, int]]] = iter([{"a": ("activating", 0)}, {"a": ("active", 0)}])
    monkeypatch.setattr(active_units.time, "sleep", lambda seconds: None)
    assert active_units.wait(lambda: next(answers), 60, 3) == (True, "", {"a": "active"})


def test_waiting_ends_when_the_time_is_up() -> None:
    active, reason, states = active_units.wait(lambda: {"a": ("activating", 0)}, -1, 3)
    assert (active, states) == (False, {"a": "activating"})
    assert reason.startswith("not active after")
