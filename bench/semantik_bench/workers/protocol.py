"""How a contender's process talks with the bench: a JSON line in, a JSON line out, one run at a time."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Answer = dict[str, Any]


def texts(folder: str, profile: str, limit: int | None = None) -> list[str]:
    """Return the first `limit` chunk texts of a profile."""
    with (Path(folder) / f"{profile}.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines][:limit]


def ids(folder: str, profile: str, limit: int | None = None) -> list[np.ndarray]:
    """Return the token ids of the first `limit` chunks of a profile: int64, special tokens included."""
    with np.load(Path(folder) / f"{profile}.npz") as stored:
        return np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])[:limit]


def in_order(settings: Answer, profile: str, keys: list[tuple[str, int]], vectors: np.ndarray) -> np.ndarray:
    """Return the vectors in the order of the profile's chunks; a key is (path of the document, ordinal).

    Raises ValueError unless exactly the chunks that all contenders were given have come out.
    """
    documents = settings["documents"].rstrip("/") + "/"
    found = {(uri.removeprefix(documents), ordinal): at for at, (uri, ordinal) in enumerate(keys)}
    with (Path(settings["folder"]) / f"{profile}.jsonl").open(encoding="utf-8") as lines:
        wanted = [(line["document"], line["ordinal"]) for line in map(json.loads, lines)]
    if set(found) != set(wanted) or len(keys) != len(wanted):
        odd = sorted(set(found) ^ set(wanted))[:3]
        raise ValueError(f"{len(keys)} chunks came out, {len(wanted)} were prepared; first to differ: {odd}")
    ordered: np.ndarray = vectors[[found[key] for key in wanted]]
    return ordered


def serve(load: Callable[[Answer], Callable[[Answer], tuple[Any, Answer]]]) -> None:
    """Load the contender that the first line describes, then run it once per line until there are none.

    `load(settings)` returns what runs it: from a request to (vectors or None, facts). Only the run itself is
    timed: reading the texts and writing the vectors is the bench's own. An error is an answer, too.
    """
    # What libraries print must not stand between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(facts: Answer) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    settings = json.loads(sys.stdin.readline())
    if settings.get("pausable", True):
        _die_with_parent()
    begin = time.monotonic()
    try:
        run = load(settings)
    except Exception as error:
        answer({"error": _sentence(error)})
        raise
    answer({"load_seconds": time.monotonic() - begin})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            vectors, facts = run(request)
            if vectors is not None and request.get("vectors"):
                np.save(request["vectors"], np.asarray(vectors, dtype=np.float32))
            answer(facts)
        except Exception as error:
            answer({"error": _sentence(error)})
            raise


def _die_with_parent() -> None:
    """Be killed when the bench is: a stopped process would never see that its input has ended."""
    pr_set_pdeathsig = 1  # sys/prctl.h
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def timed(work: Callable[[], Any]) -> tuple[Any, Answer]:
    """Return what `work` returns, and {"seconds": its wall time}."""
    begin = time.perf_counter()
    result = work()
    return result, {"seconds": time.perf_counter() - begin}


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]
