"""A dozen faults by a fixed seed: nothing lost, nothing twice, and every repeat has its cause."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SEED, FAULTS, SCALE = 11, 12, 0.5


def test_a_dozen_faults_cost_no_document_and_no_row() -> None:
    command = [sys.executable, "-m", "chaos", "--seed", str(SEED), "--faults", str(FAULTS)]
    command += ["--scale", str(SCALE), "--keep"]
    environment = {**os.environ, "PYTHONPATH": "app:tests:lab"}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    result = json.loads((ROOT / "build" / f"chaos-{SEED}.json").read_text())
    assert result["failures"] == []
    assert done.returncode == 0
    assert (result["faults"], result["lost"], result["duplicates"]) == (FAULTS, 0, 0)
    assert result["unexplained_repeats"] == 0
