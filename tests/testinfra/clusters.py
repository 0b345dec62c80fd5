"""The cluster under test: its hosts by what they do, a person who uses it, and its database."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from testinfra.backend.base import CommandResult
from testinfra.host import Host
from testinfra.utils.ansible_runner import AnsibleRunner

#: What a job can end as.
ENDED = ("completed", "completed_with_errors", "failed", "cancelled")


@dataclass(frozen=True)
class Cluster:
    """The provisioned hosts of one inventory."""

    runner: AnsibleRunner
    inventory: str

    def names(self, group: str) -> list[str]:
        """Return the hosts of an inventory group, sorted."""
        return sorted(self.runner.get_hosts(group))

    def host(self, name: str) -> Host:
        """Return the connection to one host."""
        connection = self.runner.get_host(name)
        assert connection is not None, f"{name} is not in {self.inventory}"
        return connection

    def group(self, group: str) -> list[Host]:
        """Return the connections to every host of a group."""
        return [self.host(name) for name in self.names(group)]

    def address(self, name: str) -> str:
        """Return the address Ansible reaches a host by."""
        return str(self.runner.get_variables(name)["ansible_host"])

    @property
    def control(self) -> Host:
        """The host with the planner, the scheduler, Flower and the `semantik` command."""
        return self.group("control")[0]

    @property
    def redis(self) -> Host:
        """The host with Redis."""
        return self.group("redis")[0]

    @property
    def postgresql(self) -> Host:
        """The host with PostgreSQL."""
        return self.group("postgresql")[0]


@dataclass(frozen=True)
class Operator:
    """A member of the group `semantik` who is not root, on the control host."""

    host: Host
    name: str

    def attempt(self, *arguments: str) -> CommandResult:
        """Run the `semantik` command as this person and return what came of it."""
        places = " ".join(["%s"] * len(arguments))
        return self.host.run(f"runuser -u {self.name} -- semantik {places}", *arguments)

    def run(self, *arguments: str) -> str:
        """Run the `semantik` command, which must succeed, and return its standard output."""
        result = self.attempt(*arguments)
        said = f"{result.stdout}{result.stderr}"
        assert result.rc == 0, f"semantik {' '.join(arguments)}: exit {result.rc}\n{said}"
        return str(result.stdout)

    def json(self, *arguments: str) -> Any:
        """Run a `semantik` command with --json and return what it printed, parsed."""
        return json.loads(self.run(*arguments, "--json"))

    def submit(self, uri: str, collection: str) -> str:
        """Hand in a folder and return the job's id."""
        return str(self.json("submit", uri, "--collection", collection)["job"]["id"])

    def wait(self, job: str, seconds: float = 180) -> dict[str, Any]:
        """Wait until a job has ended and return its record, with `failures` as `semantik show` lists them."""
        shown: dict[str, Any] = {}

        def ended() -> bool:
            said = self.json("show", job)
            shown.update(said["job"], failures=said["failures"])
            return shown["state"] in ENDED

        wait_for(ended, seconds, f"job {job} to end", lambda: json.dumps(shown, indent=1))
        return shown


def reach(host: Host, command: str) -> CommandResult | None:
    """Run a command on a host that may be on its way down or up; None while SSH does not answer."""
    try:
        return host.run(command)
    except RuntimeError:  # what testinfra makes of ssh's exit status 255
        return None


def wait_for(
    condition: Callable[[], bool], seconds: float, what: str, state: Callable[[], str] | None = None
) -> None:
    """Ask `condition` until it is true; after `seconds` fail, with what was awaited and how things stood."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {seconds:.0f} s in vain for {what}{': ' + state() if state else ''}")
        time.sleep(0.5)


def rows(cluster: Cluster, query: str) -> list[str]:
    """Ask the database as its superuser, so that no part under test is between; return the lines."""
    output = cluster.postgresql.check_output(
        "runuser -u postgres -- env PGOPTIONS=--search_path=semantik psql -XAtd semantik -c %s", query
    )
    return str(output).splitlines()
