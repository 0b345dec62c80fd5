"""The `semantik` command as a process, by an operator of the test's cluster."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from cluster import Cluster

COMMAND = [sys.executable, "-m", "semantik.cli"]


def run(cluster: Cluster, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, with no one there to answer questions."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=cluster.environment("operator", **env),
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
        check=False,
    )


def ask(cluster: Cluster, *arguments: str, **env: str) -> Any:
    """Run a command that must succeed with --json and return what it printed."""
    result = run(cluster, *arguments, "--json", **env)
    assert result.returncode == 0, result.stderr or result.stdout
    return json.loads(result.stdout)


def start(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    """Start the command as a shell does for a person: Ctrl-C reaches it."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=cluster.environment("operator"),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
