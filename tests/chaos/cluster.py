"""The hosts of a lab, entered from the machine through their namespaces: no fault is in the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import redis

from chaos.kinds import ChaosError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "lab"))

from semantik_lab.errors import LabError
from semantik_lab.host import DOCUMENTS, Node, State
from semantik_lab.lab import Lab, power_off, start
from semantik_lab.shell import wait_until as wait

SETTINGS = "/etc/semantik/semantik.env"
PREFIX = "semantik:"
#: Seconds for a part to work again by itself; afterwards the run goes on, and the verdict counts the time.
PATIENCE = 150.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Row = tuple[Any, ...]


@dataclass
class Cluster:
    """A provisioned lab. `secrets` is the directory that site.yml filled."""

    lab: Lab
    secrets: Path
    settings: dict[str, str] = field(default_factory=dict)  # semantik.env of the control host

    @classmethod
    def open(cls, name: str, secrets: Path) -> Cluster:
        """Look at a lab that is up. Raises ChaosError when it is none of ours."""
        try:
            cluster = cls(Lab.open(name), secrets)
        except LabError as error:
            raise ChaosError(str(error)) from None
        if not (secrets / "redis_password_admin").exists():
            raise ChaosError(f"{secrets} holds no secrets of lab {name}: name their directory with --secrets")
        cluster.read_settings()
        return cluster

    def read_settings(self) -> None:
        """Read semantik.env again."""
        lines = self.shell(self.head, f"cat {SETTINGS}").splitlines()
        self.settings = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))

    def seconds(self, name: str, default: float) -> float:
        """Return a duration of semantik.env."""
        return float(self.settings.get(name, default))

    # --- hosts ---

    def node(self, host: str) -> Node:
        """Return a host of the lab."""
        return self.lab.nodes([host])[0]

    def group(self, group: str) -> list[str]:
        """Return the names of an inventory group's hosts."""
        return [node.host.name for node in self.lab.nodes() if group in node.host.groups]

    @property
    def head(self) -> str:
        """The host with PostgreSQL, Redis and the control services."""
        return self.group("postgresql")[0]

    @property
    def workers(self) -> list[str]:
        """The hosts that embed."""
        return self.group("workers")

    @property
    def slots(self) -> list[str]:
        """All slots, host:n."""
        hosts = [node for node in self.lab.nodes() if "workers" in node.host.groups]
        return [f"{node.host.name}:{n}" for node in hosts for n in range(max(1, len(node.host.gpus)))]

    def slots_of(self, target: str) -> list[str]:
        """Return the slots of a host, or the slot itself."""
        return [slot for slot in self.slots if slot == target or slot.startswith(f"{target}:")]

    def up(self, host: str) -> bool:
        """Whether a host is on."""
        return self.node(host).state() is State.RUNNING

    def enter(self, host: str, *command: str, only: Sequence[str] = ("--all",)) -> list[str]:
        """Return the command line that runs `command` in the namespaces of a host."""
        return ["nsenter", "--target", str(self.node(host).leader()), *only, "--wdns=/", *command]

    def shell(self, host: str, line: str, *, check: bool = True, seconds: float = 150) -> str:
        """Run a line in a host's shell as root and return what it printed. Raises ChaosError on failure."""
        try:
            done = subprocess.run(
                self.enter(host, "/bin/sh", "-c", line),
                stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=seconds,
                env={"PATH": _PATH, "LANG": "C.UTF-8"},
            )  # fmt: skip
        except (LabError, subprocess.TimeoutExpired) as error:
            if check:
                raise ChaosError(f"{host}: {line[:60]}: {error}") from None
            return ""
        if check and done.returncode != 0:
            raise ChaosError(f"{host}: {line[:60]}: {' '.join((done.stderr or done.stdout).split())[:300]}")
        return done.stdout

    def cut_power(self, host: str) -> None:
        """End everything on a host at once."""
        power_off(self.lab, [host])

    def boot(self, hosts: Sequence[str]) -> None:
        """Boot hosts that are off, and wait until their boot is over."""
        start(self.lab, list(hosts))

    # --- processes ---

    def control_group(self, host: str, unit: str) -> Path | None:
        """Return the control group of a unit that runs, None for one that does not."""
        payload = self.node(host).service.cgroup / "machine" / "payload" / "system.slice"
        for found in (payload / unit, *payload.glob(f"*/{unit}")):
            if found.is_dir():
                return found
        return None

    def processes(self, host: str, unit: str) -> list[int]:
        """Return the ids, as the machine sees them, of a unit's processes; its main process first."""
        group = self.control_group(host, unit)
        try:
            pids = [int(word) for word in (group / "cgroup.procs").read_text().split()] if group else []
        except OSError:
            return []
        return sorted(pids, key=lambda pid: (parent_of(pid) in pids, pid))

    def children(self, slot: str) -> list[int]:
        """Return the ids of a worker's pool processes, those with the model."""
        host, _, number = slot.partition(":")
        pids = self.processes(host, worker(number))
        return [pid for pid in pids[1:] if parent_of(pid) == pids[0]]

    def await_active(self, host: str, unit: str, gone: Sequence[int] = ()) -> bool:
        """Wait until a unit is active and none of `gone` is its process; False when it takes too long."""

        def active() -> bool:
            said = self.shell(host, f"systemctl is-active '{unit}'", check=False).strip()
            return said == "active" and not set(gone) & set(self.processes(host, unit))

        return wait(active, PATIENCE, 0.25)

    # --- services ---

    def redis(self, user: str = "admin") -> redis.Redis:
        """Return a client with all rights, from the machine's address in the lab."""
        return redis.Redis(
            host=self.node(self.head).address, port=6379, username=f"semantik_{user}",
            password=self._secret(f"redis_password_{user}"), ssl=True, ssl_cert_reqs="required",
            ssl_ca_certs=str(self.secrets / "ca" / "ca.crt"), ssl_check_hostname=False,
            socket_timeout=5, socket_connect_timeout=3, decode_responses=True,
        )  # fmt: skip

    def redis_answers(self) -> bool:
        """Whether Redis is there and has loaded what it keeps."""
        try:
            with self.redis() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def database(self) -> psycopg.Connection[Row]:
        """Return a connection as the operator, who may read everything. Raises psycopg.OperationalError."""
        return psycopg.connect(
            host=self.node(self.head).address, dbname="semantik", user="semantik_operator",
            password=self._secret("database_password_operator"), sslmode="verify-ca",
            sslrootcert=str(self.secrets / "ca" / "ca.crt"), connect_timeout=3, autocommit=True,
            options="-c search_path=semantik,public -c timezone=UTC", application_name="chaos",
        )  # fmt: skip

    def ask(self, statement: str, values: Sequence[Any] = (), *, seconds: float = PATIENCE) -> list[Row]:
        """Return the rows of a statement, through outages of `seconds`. Raises ChaosError after them."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                with self.database() as connection:
                    return connection.execute(statement, values).fetchall()  # type: ignore[arg-type]
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise ChaosError(
                        f"the database does not answer: {' '.join(str(error).split())}"
                    ) from None
            time.sleep(0.5)

    def database_answers(self) -> bool:
        """Whether PostgreSQL takes connections."""
        with suppress(ChaosError):
            return bool(self.ask("SELECT 1", seconds=0))
        return False

    def semantik(self, *arguments: str) -> Any:
        """Run the `semantik` command on the control host and return what its --json printed."""
        words = " ".join(f"'{word}'" for word in (*arguments, "--json"))
        said = self.shell(self.group("control")[0], f"semantik {words}", seconds=60)
        return json.loads(said)

    def _secret(self, name: str) -> str:
        return (self.secrets / name).read_text(encoding="utf-8").strip()


def worker(number: str | int) -> str:
    """Return the unit of a slot's number."""
    return f"semantik-worker@{number}.service"


def parent_of(pid: int) -> int:
    """Return the parent of a process, 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def send(pid: int, number: int) -> bool:
    """Send a signal; False when there is no such process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def kill(pids: Sequence[int]) -> list[int]:
    """SIGKILL processes and return those that were there."""
    return [pid for pid in pids if send(pid, signal.SIGKILL)]


__all__ = ["DOCUMENTS", "PATIENCE", "PREFIX", "Cluster", "LabError", "kill", "send", "wait", "worker"]
