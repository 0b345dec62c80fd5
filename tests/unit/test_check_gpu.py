"""Answers of slots: the right one must speak, on a GPU of its own."""

from __future__ import annotations

from typing import Any

from semantik import check_gpu
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


def test_the_inventory_says_which_slots_to_ask() -> None:
    assert check_gpu.known_slots(SETTINGS, ("gpu2:0", "gpu1:0")) == ["gpu1:0", "gpu2:0"]
