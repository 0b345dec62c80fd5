"""Peak memory at N and at 10 N documents: the real command, once each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from semantik_bench.contenders import Place, environment
from semantik_bench.errors import BenchError


def measure(documents: Path, place: Place, output: Path) -> dict[str, Any]:
    """Run `semantik embed` over a folder; return its peak in bytes, wall seconds, documents and tokens."""
    output.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "semantik.cli", "--json", "embed", str(documents), "--output", str(output),
        "--model", str(place.model), "--device", "cpu", "--threads", str(place.threads), "--force",
        "--restart",
    ]  # fmt: skip
    begin = time.monotonic()
    said = output.with_suffix(".json")
    with said.open("wb") as out, said.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, env=environment(), stdout=out, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)  # its own peak; its parsers are smaller
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        last = said.with_suffix(".log").read_text(errors="replace").strip().splitlines()[-1:]
        raise BenchError(f"semantik embed ended with status {process.returncode}: {' '.join(last)}")
    summary = json.loads(said.read_text(encoding="utf-8"))
    return {
        "peak_bytes": usage.ru_maxrss * 1024,
        "seconds": time.monotonic() - begin,
        "documents": summary["counts"]["documents"],
        "failed": summary["counts"]["failed"],
        "tokens": summary["counts"]["tokens"],
    }


def compare(one: Path, ten: Path, place: Place) -> dict[str, Any]:
    """Return both measurements and the ratio of their peaks."""
    small = measure(one, place, place.folder / "one.parquet")
    large = measure(ten, place, place.folder / "ten.parquet")
    return {"one": small, "ten": large, "ratio": large["peak_bytes"] / small["peak_bytes"]}
