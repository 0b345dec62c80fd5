"""Does each slot's own GPU answer? `test_task` is sent to every slot's own queue and waits its turn there."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from semantik.exceptions import BrokerUnavailable
from semantik.settings import Settings

#: A slot takes the test between two shards, so a busy cluster needs about the time of one or two shards.
WAIT_SECONDS = 180.0
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class SlotAnswer:
    """What one slot said, or why it said nothing. `seconds` counts from sending."""

    slot: str
    ok: bool
    detail: str
    seconds: float
    device: str = ""
    gpu_uuid: str = ""
    gpu_name: str = ""
    trouble: str = ""  # what the slot's GPU has, where it is in trouble
    ecc_errors: int | None = None  # uncorrectable, since the driver's start; None where NVML does not say
    sm_mhz: int | None = None


def known_slots(settings: Settings, expected: Sequence[str]) -> list[str]:
    """Return the slots to ask: the inventory's, or without those the ones that have registered."""
    if expected:
        return sorted(expected)
    from semantik.database import connect, query

    with connect(settings, autocommit=True, application_name="semantik check") as connection:
        return [row[0] for row in connection.execute(query("check.slots"))]


def ask(slots: Sequence[str], seconds: float) -> Iterator[SlotAnswer]:
    """Send `test_task` to each slot and yield answers as they come; after `seconds`, the silent ones.

    A message that nobody took in time expires, so a slot that comes back later does not answer old questions.
    Raises BrokerUnavailable.
    """
    from celery.exceptions import TaskRevokedError
    from kombu.exceptions import OperationalError
    from redis.exceptions import RedisError

    from semantik.broker import reach, slot_queue
    from semantik.celery_app import app

    started = time.monotonic()
    uuids: dict[str, str] = {}
    try:
        reach(app)
        waiting = {
            slot: app.send_task(
                "semantik.tasks.test_task", queue=slot_queue(slot), expires=seconds, retry=False
            )
            for slot in slots
        }
        while waiting and time.monotonic() - started < seconds:
            for slot, result in list(waiting.items()):
                if not result.ready():
                    continue
                del waiting[slot]
                passed = time.monotonic() - started
                failed = result.failed() or isinstance(result.result, TaskRevokedError)
                answer = (
                    _failed(slot, result.result, passed)
                    if failed
                    else _answer(slot, result.result, passed, uuids)
                )
                result.forget()
                yield answer
            time.sleep(POLL_SECONDS)
    except (BrokerUnavailable, OperationalError, RedisError) as error:
        reason = " ".join(str(error).split())
        raise BrokerUnavailable(f"no slot can be asked: {reason}; see 'semantik check'") from error
    for slot in waiting:
        host, _, number = slot.partition(":")
        yield SlotAnswer(
            slot,
            False,
            f"no answer within {seconds:.0f} s: busy with a long shard (--timeout), or on {host}: "
            f"systemctl status semantik-worker@{number}",
            seconds,
        )


def _failed(slot: str, error: object, seconds: float) -> SlotAnswer:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return SlotAnswer(slot, False, f"the test failed: {reason}", seconds)


def _answer(slot: str, said: dict[str, Any], seconds: float, uuids: dict[str, str]) -> SlotAnswer:
    """Judge an answer: the right slot must speak, and no GPU may serve two. Fills `uuids` (GPU -> slot)."""
    device, uuid, name = (str(said.get(key) or "") for key in ("device", "gpu_uuid", "gpu_name"))
    trouble, ecc, clock_mhz = str(said.get("trouble") or ""), said.get("ecc_errors"), said.get("sm_mhz")
    other = uuids.setdefault(uuid, slot) if uuid else slot
    clock = "" if clock_mhz is None else f"{clock_mhz} MHz"
    counted = "" if ecc is None else f"{ecc} uncorrectable ECC errors"
    shown = ", ".join(part for part in (uuid, name, device, clock, counted) if part) or "no GPU"
    if said.get("slot") != slot:
        problem = f"answered by slot {said.get('slot')}: two units read one queue; run site.yml"
    elif other != slot:
        problem = f"GPU {uuid} serves {other} too: /etc/semantik/gpu-N.env names it twice; run site.yml"
    elif trouble:
        problem = f"{shown}: it computes, but is in trouble: {trouble}"
    else:
        problem = ""
    return SlotAnswer(
        slot, not problem, problem or shown, seconds, device, uuid, name, trouble, ecc, clock_mhz
    )
