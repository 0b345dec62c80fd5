"""Who takes part, in the order of the table."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semantik_bench import peers
from semantik_bench.documents import ROOT
from semantik_bench.errors import BenchError

#: What is asked of all: nothing from a hub, no telemetry.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
}
_LAST_LINES = 3


@dataclass(frozen=True)
class Contender:
    """One row of the table."""

    name: str
    label: str
    module: str  # of semantik_bench.workers
    peer: str = ""  # its environment; empty for this repository's own
    batched: bool = False  # the best of several batch sizes is looked for
    reduced: bool = False  # computes in less than float32
    from_disk: bool = False  # takes the documents, not the chunks
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


DEFAULT, BEST, FORWARD, PARQUET, POSTGRES = (
    "encode_default", "encode_best", "forward", "parquet", "postgres",
)  # fmt: skip

CONTENDERS = (
    Contender(
        DEFAULT, "sentence-transformers encode, default", "sentence_transformers",
        options={"backend": "torch"},
    ),
    Contender(
        BEST, "sentence-transformers encode, best batch size", "sentence_transformers", batched=True,
        options={"backend": "torch"},
    ),
    Contender(
        "onnx", "sentence-transformers, ONNX backend", "sentence_transformers", "onnx", batched=True,
        options={"backend": "onnx"},
    ),
    Contender(
        "openvino", "sentence-transformers, OpenVINO backend, f32", "sentence_transformers", "openvino",
        batched=True, options={"backend": "openvino", "precision": "f32"},
    ),
    Contender(
        "openvino_default", "sentence-transformers, OpenVINO backend as it comes", "sentence_transformers",
        "openvino", batched=True, reduced=True, options={"backend": "openvino", "precision": "default"},
    ),
    Contender("fastembed", "fastembed", "fast_embed", "fastembed", batched=True),
    Contender("infinity", "infinity-emb, torch engine", "infinity", "infinity", batched=True),
    Contender(FORWARD, "this engine, forward path", "forward"),
    Contender(
        "forward_bf16", "this engine, forward path in bfloat16", "forward", reduced=True,
        environment={"SEMANTIK_PRECISION": "bfloat16"},
    ),
    Contender(PARQUET, "this engine, disk to Parquet", "parquet", from_disk=True),
    Contender(POSTGRES, "this engine, disk to PostgreSQL through Celery", "postgres", from_disk=True),
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """What all contenders share: the model, the chunks, the documents, the number of threads."""

    model: Path
    facts: dict[str, Any]  # of the model: name, revision, dim, max_tokens
    folder: Path  # of the bench's own files
    documents: Path
    threads: int

    def environment(self) -> dict[str, str]:
        """Return the engine's settings: its defaults, on the CPU, with the threads that all have."""
        return {
            # Neither is reached where they are not the services that the row for PostgreSQL starts.
            "CELERY_BROKER_URL": "redis://127.0.0.1:1",
            "SEMANTIK_DATABASE_URL": "postgresql://127.0.0.1:1/none",
            "CREDENTIALS_DIRECTORY": "/nonexistent",
            "SEMANTIK_DEVICE": "cpu",
            "SEMANTIK_THREADS": str(self.threads),
            "SEMANTIK_MODEL_DIR": str(self.model),
            "SEMANTIK_MODEL": str(self.facts["name"]),
            "SEMANTIK_MODEL_REVISION": str(self.facts["revision"]),
            "SEMANTIK_MODEL_DIM": str(self.facts["dim"]),
            "SEMANTIK_MODEL_MAX_TOKENS": str(self.facts["max_tokens"]),
        }


def prepare(contender: Contender, place: Place, say: Callable[[str], None]) -> dict[str, Any]:
    """Return what a Worker needs: command, environment, settings; and the versions of what runs.

    Installs the peer and exports the model where that was not done. Raises BenchError with the reason when
    it cannot be done on this machine.
    """
    peer = next((one for one in peers.PEERS if one.name == contender.peer), None)
    python = peers.provide(peer, say) if peer else Path(sys.executable)
    shown = peer.shown if peer else ("sentence-transformers", "transformers", "torch")
    settings: dict[str, Any] = {
        "folder": str(place.folder),
        "documents": str(place.documents),
        "model": str(place.model),
        "threads": place.threads,
        "dim": place.facts["dim"],
        "output": str(place.folder / "vectors.parquet"),
        **contender.options,
    }
    if contender.peer in ("onnx", "openvino"):
        settings["model"] = str(exported(contender.peer, place, say))
    elif contender.peer == "fastembed":
        settings["model"] = str(for_fastembed(place, say))
    elif not contender.peer:
        settings["environment"] = {**place.environment(), **contender.environment}
    if contender.name == POSTGRES:
        del settings["environment"]["CELERY_BROKER_URL"], settings["environment"]["SEMANTIK_DATABASE_URL"]
        settings["pausable"] = False  # a stopped cluster would lose its leases
    return {
        "command": [str(python), "-m", f"semantik_bench.workers.{contender.module}"],
        "environment": environment(),
        "settings": settings,
        "versions": peers.versions(python, shown),
    }


def environment() -> dict[str, str]:
    """Return the environment that every contender's process gets."""
    return {**os.environ, **OFFLINE, "PYTHONPATH": str(ROOT / "bench")}


def exported(backend: str, place: Place, say: Callable[[str], None]) -> Path:
    """Return the model in a backend's format, exported once by sentence-transformers in that environment."""
    peer = next(one for one in peers.PEERS if one.name == backend)
    python = peers.provide(peer, say)
    key = hashlib.sha256(repr((place.facts["revision"], peer.requirements)).encode()).hexdigest()[:8]
    folder = peers.cache() / "models" / f"{backend}-{key}"
    if folder.is_dir():
        return folder
    say(f"exporting the model for {backend}")
    draft = folder.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.parent.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-m", "semantik_bench.workers.export", backend, str(place.model), str(draft)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = " ".join(done.stderr.splitlines()[-_LAST_LINES:])
        raise BenchError(f"the model cannot be exported for {backend}: {' '.join(said.split())[:400]}")
    draft.rename(folder)
    return folder


def for_fastembed(place: Place, say: Callable[[str], None]) -> Path:
    """Return the ONNX model with the limit in tokens where fastembed looks for it.

    fastembed takes the smaller of two numbers in tokenizer_config.json and would cut this model's texts at
    128 tokens, where sentence-transformers takes 256: it would do half of the work.
    """
    source = exported("onnx", place, say)
    folder = source.with_name(source.name.replace("onnx", "fastembed", 1))
    if not folder.is_dir():
        draft = folder.with_suffix(".draft")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(source, draft)
        path = draft / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config.pop("max_length", None)
        config["model_max_length"] = place.facts["max_tokens"]
        path.write_text(json.dumps(config), encoding="utf-8")
        draft.rename(folder)
    return folder
