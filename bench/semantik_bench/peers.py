"""What people would use instead: from PyPI, each in a virtual environment of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from semantik_bench.errors import BenchError

_STAMP = ".installed"
_LAST_LINES = 3


@dataclass(frozen=True)
class Peer:
    """A virtual environment: what is installed into it, and whose versions the report names."""

    name: str
    requirements: tuple[str, ...]
    shown: tuple[str, ...]
    # Packages that only come along, and break where torch is a build of its own (CPU) and they are not.
    unwanted: tuple[str, ...] = ()


# torch as in this repository's own environment, so that the CPU build comes from the same place.
_TORCH = "torch==2.13.0"

PEERS = (
    # The ONNX backend has no release for transformers 5, so sentence-transformers 6 cannot have it.
    Peer(
        "onnx",
        (_TORCH, "sentence-transformers[onnx]==5.7.0", "optimum-onnx==0.1.0", "onnxruntime==1.32.0"),
        ("sentence-transformers", "optimum-onnx", "onnxruntime", "transformers", "torch"),
    ),
    Peer(
        "openvino",
        (_TORCH, "sentence-transformers[openvino]==6.2.0", "optimum-intel==2.2.0", "openvino==2026.4.1"),
        ("sentence-transformers", "optimum-intel", "openvino", "transformers", "torch"),
        unwanted=("torchvision",),
    ),
    Peer(
        "fastembed", ("fastembed==0.9.1", "onnxruntime==1.32.0"), ("fastembed", "onnxruntime", "tokenizers")
    ),
    Peer(
        "infinity",
        (_TORCH, "infinity-emb[torch,optimum]==0.0.78"),
        ("infinity-emb", "sentence-transformers", "transformers", "torch"),
    ),
)


def cache() -> Path:
    """Return where environments and exported models are kept, outside of the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "semantik" / "bench"


def provide(peer: Peer, say: Callable[[str], None]) -> Path:
    """Return the peer's Python, installing it once.

    Raises BenchError with pip's own words when it cannot be installed on this machine.
    """
    wanted = hashlib.sha256(
        repr((peer.requirements, peer.unwanted, sys.version_info[:2])).encode()
    ).hexdigest()
    folder = cache() / f"{peer.name}-{wanted[:8]}"
    python = folder / "bin" / "python"
    if (folder / _STAMP).is_file():
        return python
    say(f"installing {', '.join(peer.requirements)} into {folder}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(folder)], f"no virtual environment for {peer.name}")
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "install", *peer.requirements], f"pip cannot install {peer.name}")
    if peer.unwanted:
        _run([*pip, "uninstall", "--yes", *peer.unwanted], f"pip cannot remove from {peer.name}")
    (folder / _STAMP).touch()
    return python


def versions(python: Path, packages: tuple[str, ...]) -> dict[str, str]:
    """Return the installed version of each package."""
    script = (
        "import importlib.metadata as m, json, sys; "
        "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    )
    said: dict[str, str] = json.loads(_run([str(python), "-c", script, *packages], "no versions"))
    return said


def _run(command: list[str], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        raise BenchError(f"{what}: {' '.join(' '.join(said[-_LAST_LINES:]).split())[:400]}")
    return done.stdout
