"""The cluster's processes as its units start them, on one host, with short leases."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from services import PATIENCE, Services, wait_for

from semantik import jobs, settings
from semantik.database import connect
from semantik.jobs import Job

APP = Path(settings.__file__).parents[1]
ENDED = ("completed", "completed_with_errors", "failed", "cancelled")

FAST = {
    "SEMANTIK_LEASE_SECONDS": "5",
    "SEMANTIK_RENEW_SECONDS": "1",
    "SEMANTIK_TICK_SECONDS": "1",
    "SEMANTIK_LIVE_SECONDS": "6",
    "SEMANTIK_DRAIN_SECONDS": "1",
    "SEMANTIK_SHARD_SECONDS": "4",
    "SEMANTIK_SHARD_DOCUMENTS": "20",
    "SEMANTIK_DEVICE": "cpu",
    "SEMANTIK_THREADS": "1",
    "SEMANTIK_TOKEN_BUDGET": "400",
    "SEMANTIK_PARSER_COUNT": "1",
    "SEMANTIK_HOST": "here",
    "SEMANTIK_EXACT_SEARCH_CHUNKS": "100",
    "SEMANTIK_IMPORTS": "faults",
}


def _listen(told: socket.socket, states: list[str]) -> None:
    while message := told.recv(4096):
        states += message.decode().splitlines()


@dataclass
class Cluster:
    """Runs the parts and looks at what they did."""

    services: Services
    directory: Path
    model: dict[str, str]
    database: str = "semantik"
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _sockets: list[socket.socket] = field(default_factory=list)
    _told: dict[str, list[str]] = field(default_factory=dict)

    @functools.cached_property
    def app(self) -> Any:
        """The Celery application as the `semantik` command has it."""
        from semantik.celery_app import make_app

        return make_app(self.settings())

    # --- parts ---

    @contextlib.contextmanager
    def slowed(self) -> Iterator[None]:
        """Let every batch of every worker take a while."""
        flag = self.directory / "slow"
        flag.touch()
        try:
            yield
        finally:
            flag.unlink()

    def environment(self, role: str, **more: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.directory),
            "PYTHONPATH": os.pathsep.join((str(APP), str(Path(__file__).parent))),
            "PYTHONUNBUFFERED": "1",
            "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
            "CREDENTIALS_DIRECTORY": "/nonexistent",
            "CELERY_BROKER_URL": self.services.redis_url,
            "CELERY_RESULT_BACKEND": self.services.redis_url,
            "SEMANTIK_DATABASE_URL": self.services.database_url(role, self.database),
            **self.model,
            **FAST,
            "FAULTS": str(self.directory),
            **more,
        }

    def settings(self, role: str = "operator", **more: str) -> settings.Settings:
        return settings.load(self.environment(role, **more))

    def start(self, name: str, command: list[str], env: dict[str, str]) -> None:
        """Start a part; what it tells systemd comes to `told`."""
        told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = self.directory / f"notify-{name}-{len(self._sockets)}"
        told.bind(str(address))
        self._sockets.append(told)
        states = self._told[name] = []
        # Read as systemd does: a full socket would stop the sender.
        threading.Thread(target=_listen, args=(told, states), daemon=True).start()
        env = {**env, "NOTIFY_SOCKET": str(address)}
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def told(self, name: str) -> list[str]:
        """Return what a part has told systemd since its start, a state each."""
        return self._told[name]

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def start_scheduler(self, name: str = "scheduler") -> None:
        self.start(name, [sys.executable, "-m", "semantik.scheduler"], self.environment("scheduler"))

    def start_planner(self) -> None:
        env = self.environment("planner", SEMANTIK_ROLE="planner", RUNTIME_DIRECTORY=self.runtime("planner"))
        self.start("planner", self._celery("ingest", "planner@here"), env)

    def start_worker(self, number: int, **more: str) -> None:
        env = self.environment(
            "worker", SEMANTIK_ROLE="worker", SEMANTIK_SLOT=f"here:{number}",
            RUNTIME_DIRECTORY=self.runtime(f"worker{number}"), **more,
        )  # fmt: skip
        self.start(f"worker{number}", self._celery(f"embed,slot.here.{number}", f"worker{number}@here"), env)

    def start_query(self) -> None:
        env = self.environment("worker", SEMANTIK_ROLE="query", RUNTIME_DIRECTORY=self.runtime("query"))
        self.start("query", self._celery("query", "query@here"), env)

    def runtime(self, name: str) -> str:
        path = self.directory / f"run-{name}"
        path.mkdir(exist_ok=True)
        return str(path)

    def _celery(self, queues: str, node: str) -> list[str]:
        return [
            sys.executable, "-m", "celery", "--app", "semantik.celery_app", "worker", "--pool", "prefork",
            "--concurrency", "1", "--queues", queues, "--hostname", node, "--without-gossip",
            "--without-mingle", "--loglevel", "INFO",
        ]  # fmt: skip

    def wait_live(self, *, least: int, seconds: float = 90.0) -> None:
        live = "SELECT slot FROM slots WHERE state IN ('idle', 'busy') AND last_seen > now() - interval '5 s'"
        wait_for(
            lambda: len(self.rows(live)) >= least,
            seconds=seconds,
            what=f"{least} live slots; logs in {self.directory}",
        )

    def stop(self, name: str, sig: int = signal.SIGTERM, seconds: float = 30.0) -> int:
        """Stop a part, its whole group when it is killed, and return its exit status."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            if sig == signal.SIGKILL:
                os.killpg(process.pid, sig)
            else:
                process.send_signal(sig)
        return process.wait(seconds * PATIENCE)

    def child(self, name: str) -> int:
        """Return the process id of a worker's pool child."""
        parent = self.processes[name].pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return int(children[0])

    def close(self) -> None:
        for name in list(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.processes[name].pid, signal.SIGKILL)
            self.processes[name].wait(30)
        for told in self._sockets:
            told.shutdown(socket.SHUT_RD)
            told.close()

    # --- jobs ---

    def superuser(self) -> psycopg.Connection[tuple[Any, ...]]:
        return self.services.superuser(self.database)

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with self.superuser() as connection:
            return connection.execute(statement, values).fetchall()

    def connection(self, role: str = "operator") -> psycopg.Connection[tuple[Any, ...]]:
        return connect(self.settings(role), application_name="test")

    def submit(self, uri: Path | str, collection: str, *, send: bool = True, **options: Any) -> Job:
        with self.connection() as connection:
            job = jobs.submit(
                connection, self.settings(), str(uri), collection, submitted_by="test", **options
            )
        if send:
            jobs.send(self.app, job.id)
        return job

    def get(self, job: Job) -> Job:
        with self.connection() as connection:
            return jobs.get(connection, job.id)

    def finish(self, job: Job, seconds: float = 60.0) -> Job:
        """Wait for the job's end and check what must hold of every job that ended."""
        deadline = time.monotonic() + PATIENCE * seconds
        while (now := self.get(job)).state not in ENDED:
            assert time.monotonic() < deadline, (
                f"job {job.id} is {now} after {PATIENCE * seconds:.0f} s; logs in {self.directory}"
            )
            time.sleep(0.2)
        self.check_collection(now.collection)
        return now

    def check_collection(self, name: str) -> None:
        """Chunk rows and documents must agree: nothing lost, nothing twice, nothing orphaned."""
        ((key,),) = self.rows("SELECT id FROM collections WHERE name = %s", name)
        wrong = self.rows(
            f"""
            SELECT coalesce(d.uri, c.document_id::text), d.state, d.chunks, c.rows, c.last
            FROM (SELECT * FROM documents WHERE collection_id = %s) d
            FULL JOIN (SELECT document_id, count(*) AS rows, max(ordinal) AS last FROM chunks_{key}
                       GROUP BY document_id) c ON c.document_id = d.id
            WHERE coalesce(d.chunks, -1) <> coalesce(c.rows, 0) OR c.last <> c.rows - 1
            """,
            key,
        )
        assert wrong == []

    def wait_running(self, job: Job, *, slot: str | None = None) -> tuple[int, str]:
        """Wait until a shard of the job has shown progress, and return its id and slot."""
        found = wait_for(
            lambda: self.rows(
                "SELECT id, slot FROM shards WHERE job_id = %s AND state = 'running' AND chunks > 0 "
                "AND (%s::text IS NULL OR slot = %s) ORDER BY id",
                str(job.id), slot, slot,
            ),
            what=f"a shard of {job.id} at work; logs in {self.directory}",
        )  # fmt: skip
        return found[0][0], found[0][1]

    def outcomes(self, job: Job) -> dict[str, int]:
        return dict(
            self.rows(
                "SELECT outcome, count(*) FROM job_documents WHERE job_id = %s GROUP BY outcome", str(job.id)
            )
        )
