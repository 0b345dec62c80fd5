"""The demo's lab and the commands that run in it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semantik_demo.errors import DemoError

ROOT = Path(__file__).resolve().parents[2]
LAB = ROOT / "lab" / "lab"
INVENTORY = ROOT / "inventories" / "lab"
#: What `lab/lab` calls the lab when no name is given.
NAME = "semantik"
#: An account without privileges, as users of a real cluster have.
ACCOUNT = "demo"


@dataclass(frozen=True)
class Lab:
    """What `lab/lab up --json` says."""

    description: dict[str, Any]

    @property
    def documents(self) -> Path:
        """The shared directory as this machine sees it."""
        return Path(self.description["documents"]["controller"])

    @property
    def uri(self) -> str:
        """The shared directory as the hosts see it."""
        return str(self.description["documents"]["hosts"])

    def host(self, group: str) -> dict[str, Any]:
        """Return the first host of an inventory group."""
        found: dict[str, Any] = next(host for host in self.description["hosts"] if group in host["groups"])
        return found

    def ssh(self, group: str, command: str, *, terminal: bool = False) -> list[str]:
        """Return the command line that runs `command` as root on a group's first host."""
        host = self.host(group)
        return [
            "ssh",
            *("-t",) * terminal,
            "-o",
            "LogLevel=ERROR",
            "-i",
            host["identity_file"],
            *shlex.split(self.description["ssh_common_args"]),
            f"{host['user']}@{host['address']}",
            command,
        ]

    def ask(self, group: str, command: str, what: str) -> str:
        """Run a command on a group's first host and return what it printed."""
        done = subprocess.run(self.ssh(group, command), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DemoError(f"{what}: exit {done.returncode}: {' '.join(done.stderr.split()) or done.stdout}")
        return done.stdout

    def semantik(self, *arguments: str) -> Any:
        """Run the `semantik` command as the demo's person, with --json, and return what it printed."""
        command = as_person(*arguments, "--json")
        return json.loads(self.ask("control", command, f"semantik {arguments[0]}"))

    def show(self, *arguments: str) -> int:
        """Run the `semantik` command before the user's eyes and return its exit status."""
        terminal = sys.stdout.isatty() and sys.stdin.isatty()
        return subprocess.run(
            self.ssh("control", as_person(*arguments), terminal=terminal), check=False
        ).returncode

    def query(self, statement: str) -> Any:
        """Return the one JSON value that a statement selects, asked as the database's superuser."""
        command = shlex.join(["psql", "-XAtd", "semantik", "-c", statement])
        environment = "env PGOPTIONS=--search_path=semantik"
        output = self.ask("postgresql", f"cd / && runuser -u postgres -- {environment} {command}", "psql")
        return json.loads(output) if output.strip() else None


def as_person(*arguments: str) -> str:
    """Return the shell command that runs `semantik` as the demo's person."""
    return f"runuser -u {ACCOUNT} -- {shlex.join(['semantik', *arguments])}"


def up() -> Lab:
    """Bring the default lab up, or find it up, and return it; its progress goes to the terminal."""
    done = subprocess.run([LAB, "up", "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise DemoError("the lab did not come up (see above)")
    return Lab(json.loads(done.stdout))


def labs() -> list[Lab]:
    """Return the default lab as it is, or nothing."""
    done = subprocess.run([LAB, "list", "--json"], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise DemoError("the lab cannot be looked at (see above)")
    return [Lab(lab) for lab in json.loads(done.stdout) if lab["name"] == NAME]


def exists() -> bool:
    """Tell whether there is a default lab, whole or in part."""
    return bool(labs())


def find() -> Lab:
    """Return the default lab."""
    found = labs()
    if not found:
        raise DemoError("there is no demo: run make demo")
    return found[0]


def provision() -> None:
    """Run site.yml on the lab, before the user's eyes."""
    done = subprocess.run(["ansible-playbook", "-i", INVENTORY, ROOT / "site.yml"], cwd=ROOT, check=False)
    if done.returncode != 0:
        raise DemoError(
            f"site.yml failed with status {done.returncode} (see above); once mended, run make demo again"
        )


def make_account(lab: Lab) -> None:
    """Give the demo a person on the control host, in the group that may use the `semantik` command."""
    command = (
        f"id {ACCOUNT} >/dev/null 2>&1 || useradd --create-home --shell /bin/bash --groups semantik {ACCOUNT}"
    )
    lab.ask("control", command, f"making the account {ACCOUNT}")
