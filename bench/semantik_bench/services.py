"""PostgreSQL, Redis and the cluster's processes of the integration tests, set as a cluster sets them.

The settings are a cluster's defaults instead of the tests' short ones, fsync is on, and PostgreSQL has the
memory that its role gives it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from semantik_bench.documents import ROOT

#: Defaults of role postgresql.
_POSTGRESQL = {"fsync": "on", "shared_buffers": "512MB", "work_mem": "16MB", "max_wal_size": "4GB"}
#: Of the tests' settings, those that are no cluster's own.
_KEPT = {"SEMANTIK_DEVICE", "SEMANTIK_HOST"}


def start(ends: contextlib.ExitStack, environment: dict[str, str]) -> Any:
    """Start PostgreSQL and Redis; return the Cluster whose processes may be started. `ends` stops them all.

    `environment` has the model's settings, and what else differs from a cluster's defaults.
    """
    place = str(ROOT / "tests" / "integration")
    if place not in sys.path:
        sys.path.append(place)
    from cluster import FAST, Cluster
    from services import Services, clear_left_over, tree

    class Durable(Services):
        def _spawn(self, name: str, command: list[str]) -> None:
            if name == "postgres":  # of a setting given twice, the last counts
                command = command + [
                    word for one, value in _POSTGRESQL.items() for word in ("-c", f"{one}={value}")
                ]
            super()._spawn(name, command)

    class Ordinary(Cluster):
        def environment(self, role: str, **more: str) -> dict[str, str]:
            fast = set(FAST) - _KEPT - set(environment)
            ours = {name: value for name, value in super().environment(role).items() if name not in fast}
            return {**ours, **environment, **more}

    directory = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="semantik-bench-")))
    root = tree()
    clear_left_over(root)
    inside = root / "srv" / f"test-{os.getpid()}"
    inside.mkdir()
    services = Durable(root, inside)
    ends.callback(services.close)
    services.prepare()
    services.start_postgres()
    services.start_redis()
    services.make_roles()
    services.make_database()
    os.environ |= {
        "CELERY_BROKER_URL": services.redis_url,
        "SEMANTIK_DATABASE_URL": services.database_url("operator"),
        "CREDENTIALS_DIRECTORY": "/nonexistent",
    }
    cluster = Ordinary(services, directory, environment)
    ends.callback(cluster.close)
    return cluster


def sql_waits(cluster: Any, job: str) -> dict[str, float]:
    """Return what a job's shards waited for the database, in seconds, as their workers logged it.

    write_seconds: while rows were converted and copied, between batches; commit_seconds: from the last
    vectors to the end of the commit. Their share of the shards' seconds is what reliability costs, at most.
    """
    totals = dict.fromkeys(("seconds", "write_seconds", "commit_seconds"), 0.0)
    for log in cluster.directory.glob("worker*.log"):
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if "committed " in line and f"job={job} " in line:
                values = dict(word.split("=", 1) for word in line.split() if "=" in word)
                totals = {name: total + float(values[name]) for name, total in totals.items()}
    seconds = totals.pop("seconds")
    return {**totals, "sql_wait_share": sum(totals.values()) / max(seconds, 1e-3)}
