"""Imported by every worker under test (SEMANTIK_IMPORTS): a user's task, and faults on demand."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import shared_task

from semantik.exceptions import DeviceFull
from semantik.model import Model

SLOW = Path(os.environ["FAULTS"]) / "slow"
#: Where it is, the next batch of any worker finds no memory on its device; taken away by that one.
FULL = Path(os.environ["FAULTS"]) / "full"
#: A word that kills the process that embeds it, and one that makes it take all memory there is.
POISON, GLUTTONY = "strychnine", "marzipan"

_start = Model.start


def start(self: Model, batch: Any) -> Any:
    if SLOW.exists():
        time.sleep(0.25)
    with contextlib.suppress(FileNotFoundError):
        FULL.unlink()
        raise DeviceFull("cuda has no memory for one text")
    texts = [self.tokenizer.decode(list(ids)) for ids in batch]
    if any(POISON in text for text in texts):
        os.kill(os.getpid(), signal.SIGSEGV)
    if any(GLUTTONY in text for text in texts):
        hoard = [bytearray(os.urandom(1 << 20)) for _ in range(1 << 12)]  # 4 GiB, touched
        raise AssertionError(f"{len(hoard)} MiB, and nobody ended this process")
    return _start(self, batch)


Model.start = start  # type: ignore[method-assign]


@shared_task(name="faults.count_words")
def count_words(text: str) -> int:
    return len(text.split())
