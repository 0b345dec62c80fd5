"""The process beside each host: boots it, boots it again when it reboots, and ends with it.

It sits in the group `main` of the host's control group and the host in the group `machine`: with the unified
hierarchy a group that passes controllers on may hold no process itself.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from semantik_lab.service import enable_controllers, kill_cgroup, remove_cgroup

# systemd-nspawn's exit status when the host asked for a reboot.
_REBOOT = 133
# How long a host may take to shut down before its power is cut, in seconds.
_SHUTDOWN = 75


def _remove_link(command: Sequence[str]) -> None:
    """Delete the link of the host's earlier life, which the kernel does too, though at times late."""
    name = next(word for word in command if word.startswith("--machine=")).partition("=")[2]
    # A name too long for an interface is kept by nspawn as its alternative name.
    subprocess.run(["ip", "link", "delete", f"vb-{name}"], stderr=subprocess.DEVNULL, check=False)


def supervise(cgroup: Path, command: Sequence[str]) -> int:
    """Run systemd-nspawn until the host powers off; SIGTERM shuts it down. Returns nspawn's exit status."""
    main, machine = cgroup / "main", cgroup / "machine"
    main.mkdir(exist_ok=True)
    (main / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")
    enable_controllers(cgroup)
    stopping = False
    child: subprocess.Popen[bytes] | None = None

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            # nspawn turns it into the signal that makes the host's systemd power off.
            child.terminate()
        signal.alarm(_SHUTDOWN)

    def cut(_number: int, _frame: FrameType | None) -> None:
        print(f"not off after {_SHUTDOWN} s, cutting the power", flush=True)
        kill_cgroup(machine)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGALRM, cut)
    while True:
        remove_cgroup(machine)
        _remove_link(command)
        machine.mkdir()
        print(f"--- boot at {time.strftime('%Y-%m-%d %H:%M:%S')} ---", flush=True)
        child = subprocess.Popen(
            ["/bin/sh", "-c", f"echo $$ > '{machine}/cgroup.procs' && exec \"$@\"", "lab", *command],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )
        if stopping:
            child.terminate()
        status = child.wait()
        print(f"--- systemd-nspawn ended with status {status} ---", flush=True)
        # When nspawn was killed, the kernel ends the host; wait until nothing of it is left.
        kill_cgroup(machine)
        if status != _REBOOT or stopping:
            remove_cgroup(machine)
            return max(status, 0) if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(supervise(Path(sys.argv[1]), sys.argv[2:]))
