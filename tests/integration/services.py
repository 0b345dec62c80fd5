"""A real PostgreSQL 17 with pgvector and a real Redis 8 on loopback, from a Debian tree of their own.

Bookworm packages no pgvector, so the tree is trixie's, made once by mmdebstrap and kept in
/var/cache/semantik-lab. Needs root, as the lab does.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import pytest
import redis

from semantik import migrate

CACHE = Path("/var/cache/semantik-lab")
SUITE = "trixie"
PACKAGES = ("postgresql-17", "postgresql-17-pgvector", "redis-server")
BIN = "/usr/lib/postgresql/17/bin"
#: By this what tests wait at most is longer: it ends a wait for what never comes, and asks for no speed.
PATIENCE = 4
ROLES = ("planner", "scheduler", "worker", "operator")
T = TypeVar("T")


def tree() -> Path:
    """Return the Debian tree with both services, making it when there is none (half a minute)."""
    if os.geteuid() != 0:
        raise PermissionError(
            "the integration tests start PostgreSQL and Redis in a tree of their own: run as root"
        )
    if shutil.which("mmdebstrap") is None:
        raise FileNotFoundError("mmdebstrap is missing: apt-get install mmdebstrap")
    name = hashlib.sha256(" ".join((SUITE, *PACKAGES)).encode()).hexdigest()[:12]
    path = CACHE / f"services-{name}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"services-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            draft = CACHE / f"services-{name}.new"
            shutil.rmtree(draft, ignore_errors=True)
            command = ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}"]
            subprocess.run([*command, SUITE, str(draft)], check=True)
            draft.rename(path)
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], T], *, seconds: float = 30.0, what: str = "") -> T:
    """Return the first true answer of `condition`. Raises AssertionError after PATIENCE times `seconds`."""
    deadline = time.monotonic() + PATIENCE * seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {PATIENCE * seconds:.0f} s for {what or condition}"
        time.sleep(0.1)


@dataclass
class Services:
    """Both services and how to stop and start them."""

    root: Path
    directory: Path  # inside the tree
    postgres_port: int = field(default_factory=free_port)
    redis_port: int = field(default_factory=free_port)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis_port}/0"

    def database_url(self, role: str, database: str = "semantik") -> str:
        return f"postgresql://semantik_{role}@127.0.0.1:{self.postgres_port}/{database}"

    def _chroot(self, user: str, *command: str) -> list[str]:
        return ["/usr/sbin/chroot", f"--userspec={user}:{user}", str(self.root), *command]

    def _inside(self, name: str) -> str:
        return f"/{self.directory.relative_to(self.root)}/{name}"

    def _spawn(self, name: str, command: list[str]) -> None:
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={"LANG": "C.UTF-8"}
            )

    def prepare(self) -> None:
        for name, user in (("postgres", "postgres"), ("redis", "redis")):
            (self.directory / name).mkdir(exist_ok=True)  # a test may have mounted something there
            shutil.chown(self.directory / name, *_ids(self.root, user))
        self.directory.chmod(0o755)
        data = self._inside("postgres")
        command = ["initdb", "-D", data, "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        subprocess.run(
            self._chroot("postgres", f"{BIN}/{command[0]}", *command[1:]),
            check=True, stdout=subprocess.DEVNULL, env={"LANG": "C.UTF-8"},
        )  # fmt: skip

    def start_postgres(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1", "port": self.postgres_port, "unix_socket_directories": "",
            "fsync": "off", "dynamic_shared_memory_type": "mmap", "max_connections": "60", "jit": "off",
        }  # fmt: skip
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._spawn(
            "postgres", self._chroot("postgres", f"{BIN}/postgres", "-D", self._inside("postgres"), *options)
        )

        def answers() -> bool:
            try:
                with self.superuser("postgres"):
                    return True
            except psycopg.OperationalError:
                return False

        wait_for(answers, what="PostgreSQL")

    def start_redis(self) -> None:
        options = ["--port", str(self.redis_port), "--bind", "127.0.0.1", "--dir", self._inside("redis")]
        options += ["--appendonly", "yes", "--save", "", "--maxmemory-policy", "noeviction"]
        self._spawn("redis", self._chroot("redis", "/usr/bin/redis-server", *options))

        def answers() -> bool:
            try:
                return bool(self.redis().ping())
            except redis.ConnectionError:
                return False

        wait_for(answers, what="Redis")

    def stop(self, name: str, sig: int = signal.SIGTERM) -> None:
        process = self._processes.pop(name)
        process.send_signal(sig)
        process.wait(30 * PATIENCE)

    def signal(self, name: str, sig: int) -> None:
        """Send a signal that does not end the service."""
        self._processes[name].send_signal(sig)

    def superuser(self, database: str = "semantik") -> psycopg.Connection[tuple[Any, ...]]:
        return psycopg.connect(
            host="127.0.0.1", port=self.postgres_port, user="postgres", dbname=database, autocommit=True,
            options="-c search_path=semantik,public",
        )  # fmt: skip

    def redis(self) -> redis.Redis:
        return redis.Redis(port=self.redis_port, socket_timeout=5)

    def make_roles(self) -> None:
        """Make the roles as role postgresql does."""
        with self.superuser("postgres") as connection:
            connection.execute("CREATE ROLE semantik_owner")
            connection.execute("CREATE ROLE semantik_migrate LOGIN IN ROLE semantik_owner")
            for role in ROLES:
                connection.execute(f"CREATE ROLE semantik_{role} LOGIN")
            connection.execute("GRANT pg_signal_backend, pg_read_all_stats TO semantik_scheduler")

    def make_database(self, name: str = "semantik") -> None:
        """Make a database as role postgresql does, and apply the migrations."""
        with self.superuser("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}")
        with self.superuser(name) as connection:
            connection.execute("CREATE EXTENSION vector")
            connection.execute(f"GRANT CREATE ON DATABASE {name} TO semantik_owner")
            connection.execute(f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")
            connection.execute(f"GRANT TEMPORARY ON DATABASE {name} TO semantik_planner, semantik_worker")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CELERY_BROKER_URL", self.redis_url)
            patch.setenv("SEMANTIK_DATABASE_URL", self.database_url("migrate", name))
            patch.setenv("CREDENTIALS_DIRECTORY", "/nonexistent")
            assert migrate.main(["--check"]) == migrate.EXIT_PENDING
            assert migrate.main([]) == 0
            assert migrate.main(["--check"]) == 0

    def close(self) -> None:
        for name in list(self._processes):
            with contextlib.suppress(ProcessLookupError):
                self.stop(name, signal.SIGINT if name == "postgres" else signal.SIGTERM)
        shutil.rmtree(self.directory)


def _ids(root: Path, user: str) -> tuple[int, int]:
    for line in (root / "etc/passwd").read_text().splitlines():
        name, _, uid, gid, *_ = line.split(":")
        if name == user:
            return int(uid), int(gid)
    raise LookupError(f"{root} has no user {user}")


def clear_left_over(root: Path) -> None:
    """Remove the data of runs that were killed."""
    for path in (root / "srv").glob("test-*"):
        pid = int(path.name.partition("-")[2])
        if not Path(f"/proc/{pid}").exists():
            shutil.rmtree(path, ignore_errors=True)
