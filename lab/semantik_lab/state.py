"""Where a lab keeps its things, and what it remembers between commands."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

from semantik_lab.errors import LabError
from semantik_lab.shell import say, write
from semantik_lab.topology import check_name

STATE = Path("/var/lib/semantik-lab")
CACHE = Path("/var/cache/semantik-lab")
RUN = Path("/run/semantik-lab")
SNAPSHOTS = STATE / ".snapshots"


@dataclass(frozen=True)
class Paths:
    """The places of one lab."""

    lab: str

    @property
    def root(self) -> Path:
        """Everything that `destroy` deletes."""
        return STATE / self.lab

    @property
    def record(self) -> Path:
        """What the lab remembers."""
        return self.root / "lab.json"

    @property
    def identity(self) -> Path:
        """Private SSH key that every host accepts for root."""
        return self.root / "ssh" / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The hosts' public keys, pinned."""
        return self.root / "ssh" / "known_hosts"

    @property
    def control(self) -> Path:
        """Directory of SSH's shared connections; short, since a socket's path ends at 107 bytes."""
        return RUN / self.lab

    @property
    def documents(self) -> Path:
        """The directory that hosts see as /srv/documents."""
        return self.root / "documents"

    def host(self, name: str) -> Path:
        """Everything of one host."""
        return self.root / "hosts" / name


@dataclass(frozen=True)
class Record:
    """A lab as it was brought up; no hosts means all that the topology has."""

    subnet: IPv4Network
    topology: Path
    hosts: tuple[str, ...]
    inventory: Path

    def save(self, paths: Paths) -> None:
        """Write it down; done before anything is made, so that a killed run can be cleaned up."""
        data = {
            "subnet": str(self.subnet),
            "topology": str(self.topology),
            "hosts": list(self.hosts),
            "inventory": str(self.inventory),
        }
        write(paths.record, json.dumps(data, indent=2) + "\n")


def load(lab: str) -> Record | None:
    """Return what the lab remembers, or None where there is no such lab."""
    path = Paths(lab).record
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Record(
            subnet=IPv4Network(data["subnet"]),
            topology=Path(data["topology"]),
            hosts=tuple(data["hosts"]),
            inventory=Path(data["inventory"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise LabError(
            f"{path} is damaged ({error}); `lab/lab destroy --name {lab}` clears the lab away"
        ) from None


def require(lab: str) -> Record:
    """Return what the lab remembers; a LabError where there is no such lab."""
    record = load(lab)
    if record is None:
        raise LabError(
            f"there is no lab {lab}; `lab/lab list` shows the labs, `lab/lab up --name {lab}` makes it"
        )
    return record


def labs() -> list[str]:
    """Names of the labs on this machine."""
    return sorted(path.parent.name for path in STATE.glob("[a-z]*/lab.json"))


@contextmanager
def locked(lab: str) -> Iterator[None]:
    """Let one command at a time change a lab; the others wait and say for whom."""
    check_name(lab)
    STATE.mkdir(parents=True, exist_ok=True)
    with lock(STATE / f".{lab}.lock", f"lab {lab}"):
        yield


@contextmanager
def lock(path: Path, what: str) -> Iterator[int]:
    """Hold a file lock and yield its descriptor; the kernel releases it when the last holder of that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            say(f"waiting for process {file.read().strip() or '?'}, which works on {what}")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()
