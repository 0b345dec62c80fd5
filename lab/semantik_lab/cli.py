"""The `lab` command."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from semantik_lab import base, doctor, keys, lab, network, proxy, snapshots, state
from semantik_lab.errors import LabError
from semantik_lab.host import State
from semantik_lab.lab import DEFAULT_NAME, Lab
from semantik_lab.shell import remove_tree, say


def main() -> int:
    """Run one command; returns the exit status."""
    # An ended command undoes what it has begun, whether by Ctrl-C or by SIGTERM.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    os.environ["PATH"] = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    arguments = _parser().parse_args()
    action: Callable[[argparse.Namespace], int] = arguments.action
    try:
        if os.geteuid() != 0 and action is not _doctor:
            raise LabError(
                "the lab makes mounts, a bridge and control groups, so it runs as root: sudo lab/lab ..."
            )
        return action(arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab",
        description="Real systemd hosts on one machine: a head and GPU nodes to provision, test and break.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, action: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(action=action)
        return command

    def named(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command.add_argument("--name", default=DEFAULT_NAME, help="the lab (default: %(default)s)")
        return command

    up = named(add("up", _up, "Bring a lab up: make what is missing, boot what is off, write its inventory."))
    up.add_argument(
        "--subnet", metavar="CIDR", help="its network (default: the topology's, or the next free one)"
    )
    up.add_argument(
        "--hosts",
        metavar="A,B",
        default="",
        help="only these hosts (default: the ones the lab has, for a new lab all of the topology)",
    )
    up.add_argument("--topology", metavar="FILE", type=Path, help="another topology than lab/topology.toml")
    up.add_argument(
        "--inventory",
        metavar="PATH",
        type=Path,
        help="where the Ansible inventory goes (default for the lab "
        "semantik: inventories/lab/hosts.yml, for others: their state directory)",
    )
    up.add_argument("--from", dest="snapshot", metavar="SNAPSHOT", help="start new hosts from a snapshot")
    up.add_argument(
        "--keep-on-failure", action="store_true", help="leave what was made to look at when something fails"
    )
    up.add_argument(
        "--json", action="store_true", help="print the lab as JSON: hosts, addresses, identity file, groups"
    )

    for name, action, text in (
        ("start", _start, "Boot hosts that are off."),
        ("stop", _stop, "Shut hosts down and keep their trees."),
        (
            "power-off",
            _power_off,
            "Cut hosts' power: SIGKILL to everything in them. `start` boots them again.",
        ),
    ):
        named(add(name, action, text)).add_argument(
            "hosts", nargs="+" if name == "power-off" else "*", metavar="HOST"
        )

    destroy = named(add("destroy", _destroy, "Remove a lab with everything it holds."))
    destroy.add_argument("--purge", action="store_true", help="its cache of packages too")

    listing = add("list", _list, "List the labs of this machine.")
    listing.add_argument("--json", action="store_true", help="print them as `up --json` does")
    named(add("status", _status, "Show each host: state, address, whether SSH answers."))
    named(add("ssh-config", _ssh_config, "Print a section for ~/.ssh/config with the lab's hosts."))

    enter = named(add("enter", _enter, "Open a shell on a host, or run a command there."))
    enter.add_argument(
        "--console", action="store_true", help="enter its namespaces instead of asking its SSH server"
    )
    enter.add_argument("host", metavar="HOST")
    enter.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="COMMAND",
        help="one word is a line for the host's shell, as in 'df -h | head -3'; several are a program and "
        "its arguments, which arrive as they were given here",
    )

    logs = named(add("logs", _logs, "Show a host's journal, whether it is on or off."))
    logs.add_argument("--console", action="store_true", help="what it printed on its console")
    logs.add_argument("host", metavar="HOST")
    logs.add_argument("options", nargs=argparse.REMAINDER, metavar="JOURNALCTL_OPTION")

    snap = named(
        add(
            "snapshot",
            _snapshot,
            "Freeze the hosts under a name for `up --from`; without one, list snapshots.",
        )
    )
    snap.add_argument("snapshot", nargs="?", metavar="SNAPSHOT")
    snap.add_argument("--delete", action="store_true", help="delete the snapshot instead")

    add("doctor", _doctor, "Say what this machine lacks for the lab.")
    add("prune", _prune, "Remove base trees and package caches that no lab or snapshot uses.")
    return parser


def _up(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    with state.locked(arguments.name):
        made = lab.up(
            arguments.name,
            subnet=arguments.subnet,
            topology=arguments.topology,
            hosts=[name for name in arguments.hosts.split(",") if name],
            inventory_path=arguments.inventory,
            snapshot=arguments.snapshot,
            keep_on_failure=arguments.keep_on_failure,
        )
    say(
        f"lab {arguments.name} is up after {time.monotonic() - began:.1f} s; "
        f"inventory: {made.record.inventory}"
    )
    if arguments.json:
        print(json.dumps(made.describe(), indent=2))
    return 0


def _start(arguments: argparse.Namespace) -> int:
    doctor.require_good(doctor.examine())
    with state.locked(arguments.name):
        lab.start(Lab.open(arguments.name), arguments.hosts)
    return 0


def _stop(arguments: argparse.Namespace) -> int:
    with state.locked(arguments.name):
        lab.stop(Lab.open(arguments.name), arguments.hosts)
    return 0


def _power_off(arguments: argparse.Namespace) -> int:
    with state.locked(arguments.name):
        lab.power_off(Lab.open(arguments.name), arguments.hosts)
    return 0


def _destroy(arguments: argparse.Namespace) -> int:
    with state.locked(arguments.name):
        lab.destroy(arguments.name, arguments.purge)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    found, damaged = [], []
    for name in state.labs():
        try:
            found.append(Lab.open(name).describe())
        except LabError as error:
            damaged.append(f"{name}: {error}")
    if arguments.json:
        print(json.dumps(found, indent=2))
    elif not found and not damaged:
        print("no labs; `lab/lab up` makes one")
    for one in [] if arguments.json else found:
        hosts = " ".join(f"{host['name']}={host['address']}({host['state']})" for host in one["hosts"])
        print(f"{one['name']:<12} {one['subnet']:<16} {hosts}")
    for line in damaged:
        print(f"lab: {line}", file=sys.stderr)
    return 1 if damaged else 0


def _status(arguments: argparse.Namespace) -> int:
    opened = Lab.open(arguments.name)
    bridge = "up" if network.bridge_exists(opened.bridge) else "absent"
    squid = "up" if proxy.service(arguments.name).running() else "down"
    print(
        f"bridge {opened.bridge} {bridge}, proxy {opened.proxy_url} {squid}, "
        f"inventory {opened.record.inventory}"
    )
    good = True
    for node in opened.nodes():
        ssh, state_ = node.ssh_answers(), node.state()
        good = good and ssh and state_ is State.RUNNING
        print(
            f"{node.host.name:<10} {node.address:<15} {state_.value:<9} ssh {'answers' if ssh else 'silent'}"
        )
    return 0 if good else 1


def _ssh_config(arguments: argparse.Namespace) -> int:
    opened = Lab.open(arguments.name)
    print(keys.ssh_config(opened.paths, {node.host.name: node.address for node in opened.nodes()}), end="")
    return 0


def shell_line(words: list[str]) -> str:
    """Return what the host's shell gets: one word is a line of its own, several keep their borders.

    SSH joins its arguments with spaces, so a question in quotes would fall apart there.
    """
    return words[0] if len(words) == 1 else shlex.join(words)


def _enter(arguments: argparse.Namespace) -> int:
    opened = Lab.open(arguments.name)
    node = opened.nodes([arguments.host])[0]
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if node.state() is not State.RUNNING:
        raise LabError(
            f"host {arguments.host} is {node.state().value}; `lab/lab start {arguments.host}` boots it"
        )
    if arguments.console:
        line = [
            "nsenter",
            "--target",
            str(node.leader()),
            "--all",
            "--wdns=/root",
            *(["/bin/sh", "-c", shell_line(command)] if command else ["/bin/bash", "--login"]),
        ]
    else:
        terminal = ["-t"] if sys.stdin.isatty() and not command else []
        line = keys.ssh_command(opened.paths, node.address, *terminal)
        line += [shell_line(command)] if command else []
    return subprocess.run(line, check=False).returncode


def _logs(arguments: argparse.Namespace) -> int:
    node = Lab.open(arguments.name).nodes([arguments.host])[0]
    if arguments.console:
        line = ["tail", "-n", "200", str(node.service.log)]
    elif node.state() is State.RUNNING:
        line = ["nsenter", "--target", str(node.leader()), "--all", "journalctl", "--no-pager"]
    else:
        line = ["journalctl", "--no-pager", f"--directory={node.upper / 'var/log/journal'}"]
    return subprocess.run([*line, *arguments.options], check=False).returncode


def _snapshot(arguments: argparse.Namespace) -> int:
    if arguments.snapshot is None:
        print("\n".join(snapshots.names()) or "no snapshots")
    elif arguments.delete:
        snapshots.delete(arguments.snapshot)
    else:
        with state.locked(arguments.name):
            lab.snapshot(Lab.open(arguments.name), arguments.snapshot)
    return 0


def _doctor(_arguments: argparse.Namespace) -> int:
    findings = doctor.examine()
    for finding in findings:
        print(f"{'ok     ' if finding.good else 'MISSING'}  {finding.what}")
    doctor.require_good(findings)
    return 0


def _prune(_arguments: argparse.Namespace) -> int:
    used = snapshots.used_layers()
    for tree in sorted(base.BASES.glob("[a-z]*")):
        if str(tree) not in used:
            with state.lock(base.lock_path(tree), f"base tree {tree.name}"):
                remove_tree(tree)
            say(f"removed {tree}")
    for cache in sorted(proxy.CACHES.glob("*")):
        if cache.name not in state.labs():
            proxy.forget(cache.name)
            say(f"removed {cache}")
    return 0
