"""Detached processes, each in a control group of its own, with or without systemd as PID 1.

The control group is what makes stopping safe: `cgroup.kill` ends exactly the processes that belong to a host,
whoever started them and whatever became of their parents, never one that merely got a remembered process id.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semantik_lab.errors import LabError
from semantik_lab.shell import run, wait_until

_SLICE = "semantiklab.slice"
_CGROUP_MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
# Where the memory controller lives as long as it is bound to the old hierarchy.
_OLD_MEMORY = Path("/sys/fs/cgroup/memory")


def cgroup_mount() -> Path:
    """Return where the unified hierarchy is mounted; LabError where there is none."""
    for mount in _CGROUP_MOUNTS:
        if (mount / "cgroup.procs").exists() and (mount / "cgroup.controllers").exists():
            return mount
    raise LabError(
        "the unified control group hierarchy is not mounted; boot with it, or: "
        "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
    )


def systemd_is_manager() -> bool:
    """Whether PID 1 is systemd and takes orders."""
    return Path("/run/systemd/system").is_dir()


@dataclass(frozen=True)
class Service:
    """A detached process; `name` is unique on the machine, `log` takes what it prints."""

    name: str
    log: Path

    @property
    def unit(self) -> str:
        """The unit's name, also that of the control group where systemd is not the manager."""
        return f"semantiklab-{self.name}.service"

    @property
    def cgroup(self) -> Path:
        """The control group that holds every process of the service."""
        return cgroup_mount() / _SLICE / self.unit

    def start(self, command: Sequence[str], memory: int | None = None) -> None:
        """Start the command detached; `memory` is the limit in bytes for all its processes together."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if systemd_is_manager():
            self._start_unit(command, memory)
        else:
            self._start_directly(command, memory)

    def running(self) -> bool:
        """Whether any process of the service is alive."""
        try:
            events = (self.cgroup / "cgroup.events").read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        return "populated 1" in events

    def signal(self, number: signal.Signals) -> bool:
        """Send a signal to the service's first process, found by its control group; False if it is gone."""
        for directory in (self.cgroup / "main", self.cgroup):
            if not directory.exists():
                continue
            # A descriptor of the process pins its identity between reading the number and sending the signal.
            for pid in _processes(directory):
                try:
                    descriptor = os.pidfd_open(pid)
                except ProcessLookupError:
                    continue
                try:
                    if pid in _processes(directory):
                        signal.pidfd_send_signal(descriptor, number)
                        return True
                except ProcessLookupError:
                    continue
                finally:
                    os.close(descriptor)
        return False

    def kill(self) -> None:
        """End every process of the service at once, as a power cut would, and remove its control group."""
        if self.cgroup.exists():
            kill_cgroup(self.cgroup)
        self.remove()

    def remove(self) -> None:
        """Remove the control groups of a service that has ended."""
        if systemd_is_manager():
            # systemd removes what it made once it has noticed the end; only then is the name free again.
            if not wait_until(lambda: not self._unit_loaded(), 15):
                raise LabError(f"{self.unit} does not go away; `systemctl status {self.unit}` says why")
            return
        remove_cgroup(self.cgroup)
        # Old hierarchies have copies: the memory controller's is ours, the named one systemd-nspawn's.
        for copy in Path("/sys/fs/cgroup").glob(f"*/{_SLICE}/{self.unit}"):
            remove_cgroup(copy)

    def _unit_loaded(self) -> bool:
        state = run(["systemctl", "show", "-P", "LoadState", self.unit], what=f"asking for {self.unit}")
        return state.strip() == "loaded"

    def _start_unit(self, command: Sequence[str], memory: int | None) -> None:
        properties = ["Delegate=yes", "KillMode=mixed", "TimeoutStopSec=120", "TasksMax=infinity"]
        properties += [f"StandardOutput=append:{self.log}", f"StandardError=append:{self.log}"]
        properties += [f"MemoryMax={memory}"] if memory else []
        run(
            ["systemd-run", f"--unit={self.unit}", f"--slice={_SLICE}", "--collect", "--quiet"]
            + [f"--property={text}" for text in properties]
            + list(command),
            what=f"starting {self.unit}",
        )

    def _start_directly(self, command: Sequence[str], memory: int | None) -> None:
        homes = [self.cgroup]
        if memory and (_OLD_MEMORY / "memory.limit_in_bytes").exists():
            old = _OLD_MEMORY / _SLICE / self.unit
            old.mkdir(parents=True, exist_ok=True)
            (old / "memory.limit_in_bytes").write_text(str(memory), encoding="utf-8")
            homes.append(old)
        self.cgroup.mkdir(parents=True, exist_ok=True)
        enable_controllers(self.cgroup.parent.parent)
        enable_controllers(self.cgroup.parent)
        if memory and (self.cgroup / "memory.max").exists():
            (self.cgroup / "memory.max").write_text(str(memory), encoding="utf-8")
        # The shell enters the groups and becomes the command, so no process ever runs outside of them.
        enter = "".join(f"echo $$ > '{home}/cgroup.procs' && " for home in homes)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                ["/bin/sh", "-c", f'{enter}exec "$@"', "lab", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )
        # From here on the control group alone tells whether the service runs.
        wait_until(lambda: self.running() or process.poll() is not None, 10, 0.01)


def enable_controllers(directory: Path) -> None:
    """Pass a group's controllers on to the groups below; those that processes in it keep from us stay out."""
    available = set((directory / "cgroup.controllers").read_text(encoding="utf-8").split())
    enabled = set((directory / "cgroup.subtree_control").read_text(encoding="utf-8").split())
    for controller in sorted(available - enabled):
        try:
            (directory / "cgroup.subtree_control").write_text(f"+{controller}", encoding="utf-8")
        except OSError:
            # Busy with processes: the host then runs without this controller, as it does on old hierarchies.
            continue


def kill_cgroup(directory: Path) -> None:
    """End every process in a control group and wait until they are gone."""
    try:
        (directory / "cgroup.kill").write_text("1", encoding="utf-8")
    except FileNotFoundError:
        # The last process ended by itself and systemd has removed the group already.
        return

    def empty() -> bool:
        try:
            return "populated 0" in (directory / "cgroup.events").read_text(encoding="utf-8")
        except FileNotFoundError:
            return True

    if not wait_until(empty, 20):
        raise LabError(
            f"processes in {directory} did not end within 20 s after SIGKILL; the machine's log says why"
        )


def remove_cgroup(directory: Path) -> None:
    """Remove an empty control group with everything below it."""
    if not directory.exists():
        return
    for path, _, _ in os.walk(directory, topdown=False):
        Path(path).rmdir()


def _processes(directory: Path) -> list[int]:
    try:
        return [int(pid) for pid in (directory / "cgroup.procs").read_text(encoding="utf-8").split()]
    except FileNotFoundError:
        return []
