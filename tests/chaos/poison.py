"""Imported by the workers under test (SEMANTIK_IMPORTS): a word in a document ends the process with SIGSEGV.

It stands alone on the hosts, so it imports nothing of this package.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from celery import signals

POISON = "strychnine"


# In the child alone: the parent must not import torch.
@signals.worker_process_init.connect(weak=False)
def install(**_: Any) -> None:
    """Look at each batch before the model does."""
    from semantik.model import Model

    start = Model.start

    def watched(self: Model, batch: Any) -> Any:
        if any(POISON in self.tokenizer.decode(list(ids)).lower() for ids in batch):
            os.kill(os.getpid(), signal.SIGSEGV)
        return start(self, batch)

    Model.start = watched  # type: ignore[method-assign]
