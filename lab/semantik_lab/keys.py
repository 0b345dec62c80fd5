"""SSH keys of a lab, and the options that every connection to its hosts uses."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from semantik_lab.shell import give_to_caller, run, write
from semantik_lab.state import Paths


def make_key(path: Path, comment: str) -> str:
    """Make an ed25519 key unless it is there; returns its public line."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)],
            what=f"making key {path}",
        )
    return path.with_name(path.name + ".pub").read_text(encoding="utf-8").strip()


def make_identity(paths: Paths) -> str:
    """Make the lab's own key and the directory of shared connections; returns the public line."""
    public = make_key(paths.identity, f"semantik-lab-{paths.lab}")
    paths.control.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in (paths.identity.parent, paths.identity, paths.control):
        give_to_caller(path)
    return public


def pin(paths: Paths, hosts: Mapping[str, tuple[str, str]]) -> None:
    """Write known_hosts from each host's (address, public key), so that no connection trusts on first use."""
    lines = [
        f"{name},{address} {' '.join(key.split()[:2])}" for name, (address, key) in sorted(hosts.items())
    ]
    write(paths.known_hosts, "\n".join(lines) + "\n")


def ssh_options(paths: Paths) -> list[str]:
    """Options for a connection to any host of the lab, without the identity file."""
    return [
        f"UserKnownHostsFile={paths.known_hosts}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        # A host whose power is cut says nothing more; without this a connection would hang for minutes.
        "ServerAliveInterval=5",
        "ServerAliveCountMax=6",
        "ConnectTimeout=10",
    ]


def ssh_command(paths: Paths, address: str, *flags: str) -> list[str]:
    """Return the ssh command line for root on a host, sharing no connection."""
    options = [part for option in ssh_options(paths) for part in ("-o", option)]
    return ["ssh", "-F", "none", "-i", str(paths.identity), *options, *flags, f"root@{address}"]


def ssh_config(paths: Paths, hosts: Mapping[str, str]) -> str:
    """Return a section for ssh's configuration file; `hosts` maps names to addresses."""
    blocks = []
    for name, address in hosts.items():
        lines = [f"Host {name}", f"HostName {address}", "User root", f"IdentityFile {paths.identity}"]
        lines += [option.replace("=", " ", 1) for option in ssh_options(paths)]
        blocks.append("\n    ".join(lines) + "\n")
    return "\n".join(blocks)


def control_path(paths: Paths) -> str:
    """Return the option that puts shared connections where `close_connection` finds them."""
    return f"ControlPath={paths.control}/%C"


def close_connection(paths: Paths, address: str) -> None:
    """End a shared connection to a host that goes away; whoever used it next would wait on it for ever."""
    command = ["ssh", "-F", "none", "-o", control_path(paths), "-O", "exit", f"root@{address}"]
    # Its status says only whether there was a connection.
    subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
