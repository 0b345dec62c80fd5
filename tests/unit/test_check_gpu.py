"""Answers of slots: the right one must speak, on a GPU of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from semantik import check_gpu
from semantik.check import Part
from semantik.cli.check import _ask
from semantik.settings import Settings

SETTINGS = Settings(broker_url="", result_backend="", database_url="")


def said(slot: str, uuid: str, **more: Any) -> dict[str, Any]:
    return {"slot": slot, "device": "cuda", "gpu_uuid": uuid, "gpu_name": "NVIDIA L4", **more}


def test_an_answer_names_the_gpu() -> None:
    answer = check_gpu._answer("gpu1:0", said("gpu1:0", "GPU-a"), 1.5, {})
    assert (answer.ok, answer.detail, answer.seconds) == (True, "GPU-a, NVIDIA L4, cuda", 1.5)


def test_another_slot_than_the_one_asked_is_bad() -> None:
    answer = check_gpu._answer("gpu1:0", said("gpu1:1", "GPU-a"), 1.5, {})
    assert not answer.ok
    assert "answered by slot gpu1:1" in answer.detail


def test_a_gpu_that_serves_two_slots_is_bad() -> None:
    uuids: dict[str, str] = {}
    assert check_gpu._answer("gpu1:0", said("gpu1:0", "GPU-a"), 1.0, uuids).ok
    answer = check_gpu._answer("gpu1:1", said("gpu1:1", "GPU-a"), 1.0, uuids)
    assert not answer.ok
    assert "GPU-a serves gpu1:0 too" in answer.detail


def test_slots_without_a_gpu_do_not_share_one() -> None:
    uuids: dict[str, str] = {}
    assert check_gpu._answer("gpu1:0", said("gpu1:0", "", gpu_name="", device="cpu"), 1.0, uuids).ok
    answer = check_gpu._answer("gpu1:1", said("gpu1:1", "", gpu_name="", device="cpu"), 1.0, uuids)
    assert (answer.ok, answer.detail) == (True, "cpu")


def test_an_answer_has_clock_and_errors_where_the_driver_tells_them() -> None:
    answer = check_gpu._answer("gpu1:0", said("gpu1:0", "GPU-a", sm_mhz=2040, ecc_errors=0), 1.0, {})
    assert (answer.ok, answer.sm_mhz, answer.ecc_errors, answer.trouble) == (True, 2040, 0, "")
    assert answer.detail == "GPU-a, NVIDIA L4, cuda, 2040 MHz, 0 uncorrectable ECC errors"


def test_a_gpu_that_computes_and_is_in_trouble_is_bad() -> None:
    answer = check_gpu._answer("gpu1:0", said("gpu1:0", "GPU-a", trouble="power brake"), 1.0, {})
    assert (answer.ok, answer.trouble) == (False, "power brake")
    assert answer.detail == "GPU-a, NVIDIA L4, cuda: it computes, but is in trouble: power brake"


def test_a_slot_in_trouble_is_asked_and_one_out_of_service_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ask(slots: list[str], _seconds: float) -> list[check_gpu.SlotAnswer]:
        asked.extend(slots)
        return []

    monkeypatch.setattr(check_gpu, "ask", ask)
    monkeypatch.setitem(_ask.__globals__, "wants_json", lambda: True)
    parts = [Part("slot gpu1:0", False, "", "power brake"), Part("slot gpu1:1", False, "stopped")]
    answers = _ask(replace(SETTINGS, expected_slots="gpu1:0,gpu1:1"), parts, 1.0)
    assert asked == ["gpu1:0"]
    assert [answer.slot for answer in answers] == ["gpu1:1"]


def test_the_inventory_says_which_slots_to_ask() -> None:
    assert check_gpu.known_slots(SETTINGS, ("gpu2:0", "gpu1:0")) == ["gpu1:0", "gpu2:0"]
