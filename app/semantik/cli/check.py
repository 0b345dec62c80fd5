"""check: every part of the cluster, one line each."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from semantik.cli.output import emit, json_option, printable, wants_json
from semantik.exceptions import SemantikError

if TYPE_CHECKING:
    from semantik.check import Part
    from semantik.check_gpu import SlotAnswer
    from semantik.settings import Settings


@click.command(short_help="Check every part of the cluster.")
@click.option("--gpu", is_flag=True, help="Also run test_task on each slot and print which GPU answered.")
@click.option(
    "--timeout",
    type=click.FloatRange(1, 86_400),
    default=180,
    show_default=True,
    metavar="SECONDS",
    help="How long --gpu waits for busy slots.",
)
@json_option
def check(gpu: bool, timeout: float) -> int:
    """Check every part of the cluster: one line each, within seconds. Exit status 1 if any is bad.

    With --gpu each slot runs test_task when its turn comes: between two shards where a job keeps it busy.
    """
    from semantik import check as checking
    from semantik.settings import load

    settings = load()
    parts = checking.check(settings)
    if not wants_json():
        for part in parts:
            _line(part.ok, part.name, part.detail)
    answers = _ask(settings, parts, timeout) if gpu else []
    ok = all(part.ok for part in parts) and all(answer.ok for answer in answers)
    if wants_json():
        emit({"ok": ok, "parts": parts, **({"gpus": [asdict(answer) for answer in answers]} if gpu else {})})
    return 0 if ok else 1


def _line(ok: bool, name: str, detail: str) -> None:
    click.echo(f"{'ok ' if ok else 'BAD'}  {printable(name):<14}  {printable(detail)}")


def _ask(settings: Settings, parts: Sequence[Part], timeout: float) -> list[SlotAnswer]:
    """Ask each slot's GPU and print the answers as they come; say on a terminal who is waited for."""
    from semantik import check_gpu
    from semantik.check import expected_slots

    try:
        slots = check_gpu.known_slots(settings, expected_slots(settings))
    except SemantikError as error:
        click.echo(f"semantik: the slots are not known: {printable(error)}", err=True)
        return [check_gpu.SlotAnswer("?", False, "unknown without PostgreSQL", 0.0)]
    broken = {
        part.name.removeprefix("slot "): part
        for part in parts
        if part.name.startswith("slot ") and not part.ok and not part.trouble
    }
    answers = []
    waiting = [slot for slot in slots if slot not in broken]
    for slot in slots:
        if slot in broken:
            answers.append(check_gpu.SlotAnswer(slot, False, "not asked: it is not in service", 0.0))
    try:
        _waiting(waiting)
        for answer in check_gpu.ask(waiting, timeout):
            waiting.remove(answer.slot)
            answers.append(answer)
            if not wants_json():
                _clear()
                _line(answer.ok, f"gpu {answer.slot}", f"{answer.detail}, {answer.seconds:.1f} s")
                _waiting(waiting)
    except SemantikError as error:
        click.echo(f"semantik: {printable(error)}", err=True)
        answers += [
            check_gpu.SlotAnswer(slot, False, "not asked: Redis cannot be reached", 0.0) for slot in waiting
        ]
    finally:
        _clear()
    if not wants_json():
        for answer in answers:
            if answer.detail.startswith("not asked"):
                _line(answer.ok, f"gpu {answer.slot}", answer.detail)
    return sorted(answers, key=lambda answer: answer.slot)


def _waiting(slots: Sequence[str]) -> None:
    if slots and sys.stderr.isatty():
        click.echo(f"waiting for {', '.join(slots)} …", err=True, nl=False)


def _clear() -> None:
    if sys.stderr.isatty():
        click.echo("\r\033[K", err=True, nl=False)
