"""One host: its tree over a base, its boot, its end."""

import json
import os
import secrets
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from semantik_lab import gpus, keys
from semantik_lab.errors import LabError
from semantik_lab.service import Service
from semantik_lab.shell import remove_tree, run, wait_until, write
from semantik_lab.state import Paths
from semantik_lab.topology import Host

DOCUMENTS = "/srv/documents"
_HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
# Longest that a host may take to shut down: what the supervisor allows and a little more, in seconds.
_STOP = 90
_BOOT = 90


class State(Enum):
    """What a host is doing."""

    RUNNING = "running"  # booted, or on its way
    ORPHANED = "orphaned"  # booted, but its supervisor is dead: it would not come back from a reboot
    STOPPED = "stopped"  # off, its tree kept
    ABSENT = "absent"  # never made


@dataclass(frozen=True)
class Node:
    """A host of a certain lab, on this machine."""

    paths: Paths
    host: Host
    address: str
    bridge: str

    @property
    def directory(self) -> Path:
        """Everything of the host."""
        return self.paths.host(self.host.name)

    @property
    def root(self) -> Path:
        """Where its tree is mounted."""
        return self.directory / "root"

    @property
    def upper(self) -> Path:
        """What the host changed over its base; readable while it is off."""
        return self.directory / "upper"

    @property
    def service(self) -> Service:
        """The supervisor and all processes of the host."""
        return Service(f"{self.paths.lab}-{self.host.name}", self.directory / "console.log")

    def state(self) -> State:
        """Look at what is there, trusting no remembered process id."""
        if not (self.directory / "layers.json").exists():
            return State.ABSENT
        if not self.service.running():
            return State.STOPPED
        supervisor = self.service.cgroup / "main" / "cgroup.procs"
        if supervisor.exists() and supervisor.read_text(encoding="utf-8").strip():
            return State.RUNNING
        # The supervisor enters its group within milliseconds; until then it is in the service's own.
        if (self.service.cgroup / "cgroup.procs").read_text(encoding="utf-8").strip():
            return State.RUNNING
        return State.ORPHANED

    def create(self, layers: Sequence[Path], public_key: str, names: dict[str, str], prefix: int) -> None:
        """Make the host's tree over `layers`, topmost first.

        `names` maps all hosts of the lab to addresses, `prefix` is the length of the subnet's.
        """
        for name in ("upper", "work", "root"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self._mount(layers)
        self._fill(public_key, names, prefix)
        # Written last: a tree without it is half made and is thrown away.
        write(self.directory / "layers.json", json.dumps([str(layer) for layer in layers]) + "\n")

    def layers(self) -> list[Path]:
        """Return the trees below the host's own changes, topmost first."""
        return [
            Path(text) for text in json.loads((self.directory / "layers.json").read_text(encoding="utf-8"))
        ]

    def start(self) -> None:
        """Boot the host; returns before it has come up."""
        self.service.remove()
        self._mount(self.layers())
        supervisor = Path(__file__).resolve().parent / "supervisor.py"
        command = [sys.executable, str(supervisor), str(self.service.cgroup), *self._nspawn()]
        self.service.start(
            ["/usr/bin/env", f"PYTHONPATH={supervisor.parent.parent}", *command], self.host.memory
        )

    def wait_up(self) -> str:
        """Wait until SSH answers and the boot is over; returns the state and the failed units."""

        def answers() -> bool:
            if not self.service.running():
                raise LabError(f"host {self.host.name} ended while it booted; {self._console()}")
            return self.ssh_answers()

        if not wait_until(answers, _BOOT):
            where = f"{self.address}:22 within {_BOOT} s"
            raise LabError(f"host {self.host.name} did not answer on {where}; {self._console()}")
        script = (
            "state=$(systemctl is-system-running --wait); echo $state; "
            "test $state = running || systemctl list-units --failed --no-legend --plain"
        )
        command = [*keys.ssh_command(self.paths, self.address), script]
        said = run(command, what=f"waiting for {self.host.name}'s boot", seconds=_BOOT).splitlines()
        return " ".join([said[0], *(line.split(" ")[0] for line in said[1:])])

    def ssh_answers(self) -> bool:
        """Whether an SSH server greets on the host's address."""
        try:
            with socket.create_connection((self.address, 22), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def stop(self) -> None:
        """Shut the host down as its power button would; after 90 s the power is cut."""
        keys.close_connection(self.paths, self.address)
        state = self.state()
        if state is State.RUNNING:
            self.service.signal(signal.SIGTERM)
        elif state is State.ORPHANED:
            command = ["nsenter", "--target", str(self.leader()), "--all", "systemctl", "poweroff"]
            run(command, what=f"shutting {self.host.name} down", seconds=_STOP)
        wait_until(lambda: not self.service.running(), _STOP)
        self.power_off()

    def power_off(self) -> None:
        """Cut the host's power: every process ends at once; what it had written to files stays."""
        keys.close_connection(self.paths, self.address)
        self.service.kill()
        self._unmount()

    def destroy(self) -> None:
        """Remove the host with everything it holds."""
        self.power_off()
        remove_tree(self.directory)

    def leader(self) -> int:
        """Return the process id of the host's PID 1, for nsenter."""
        procs = self.service.cgroup / "machine" / "payload" / "init.scope" / "cgroup.procs"
        if procs.exists() and (pids := procs.read_text(encoding="utf-8").split()):
            return int(pids[0])
        raise LabError(
            f"host {self.host.name} is not running; `lab/lab start --name {self.paths.lab} {self.host.name}`"
        )

    def host_key(self) -> str:
        """Return the host's public SSH key, whether it is on or off."""
        return self._file(f"{_HOST_KEY}.pub").read_text(encoding="utf-8").strip()

    def _file(self, relative: str) -> Path:
        return (self.root if os.path.ismount(self.root) else self.upper) / relative

    def _mount(self, layers: Sequence[Path]) -> None:
        if os.path.ismount(self.root):
            return
        missing = [str(layer) for layer in layers if not layer.is_dir()]
        if missing:
            raise LabError(
                f"host {self.host.name} stands on {', '.join(missing)}, which is gone; "
                f"`lab/lab destroy --name {self.paths.lab}` and `up` make it anew"
            )
        stack = ":".join(str(layer) for layer in layers)
        options = f"lowerdir={stack},upperdir={self.upper},workdir={self.directory / 'work'}"
        run(
            ["mount", "-t", "overlay", "-o", options, "overlay", str(self.root)], what=f"mounting {self.root}"
        )

    def _unmount(self) -> None:
        if os.path.ismount(self.root):
            run(["umount", str(self.root)], what=f"unmounting {self.root}")

    def _fill(self, public_key: str, names: dict[str, str], prefix: int) -> None:
        root = self.root
        write(root / "etc/hostname", f"{self.host.name}\n")
        write(root / "etc/machine-id", f"{secrets.token_hex(16)}\n", 0o444)
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback"]
        lines += [f"{address} {name}" for name, address in names.items()]
        write(root / "etc/hosts", "\n".join(lines) + "\n")
        write(
            root / "etc/resolv.conf", "# The lab has no name server: hosts know each other by /etc/hosts.\n"
        )
        write(
            root / "etc/systemd/network/10-lab.network",
            f"[Match]\nName=host0\n\n[Network]\nAddress={self.address}/{prefix}\n"
            "# No gateway: the bridge is all there is.\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n",
        )
        write(root / "root/.ssh/authorized_keys", f"{public_key}\n", 0o600)
        (root / "root/.ssh").chmod(0o700)
        for stale in (root / "etc/ssh").glob("ssh_host_*"):
            stale.unlink()
        keys.make_key(root / _HOST_KEY, self.host.name)
        (root / DOCUMENTS.lstrip("/")).mkdir(parents=True, exist_ok=True)
        if self.host.gpus:
            gpus.install(root, self.paths.lab, self.host)

    def _nspawn(self) -> list[str]:
        return [
            "systemd-nspawn",
            "--boot",
            f"--directory={self.root}",
            f"--machine={self.paths.lab}-{self.host.name}",
            f"--hostname={self.host.name}",
            f"--network-bridge={self.bridge}",
            f"--bind={self.paths.documents}:{DOCUMENTS}",
            # machined is not there on every machine, and the supervisor's control group is the host's scope.
            "--register=no",
            "--keep-unit",
            "--private-users=no",
            "--settings=no",
            "--link-journal=no",
            "--resolv-conf=off",
            "--timezone=off",
            # The host's systemd enforces DeviceAllow= and IPAddressAllow= by BPF programs, or not at all.
            "--system-call-filter=bpf",
            # The signal that makes systemd power off in good order.
            "--kill-signal=SIGRTMIN+3",
            "--console=pipe",
        ]

    def _console(self) -> str:
        log = self.service.log
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-4:] if log.exists() else []
        return f"the end of {log}: {' | '.join(line.strip() for line in lines)}"
