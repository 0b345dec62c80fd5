"""Running other programs and reporting on what takes time."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from semantik_lab.errors import LabError


def run(
    command: Sequence[str],
    *,
    what: str,
    env: Mapping[str, str] | None = None,
    keep: tuple[int, ...] = (),
    seconds: float | None = None,
) -> str:
    """Return the command's standard output; `what` names the attempt in the LabError of a failure.

    `keep` are file descriptors that the command inherits, `seconds` is the longest it may take.
    """
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **(env or {})},
            pass_fds=keep,
            timeout=seconds,
        )
    except FileNotFoundError:
        raise LabError(f"{what}: {command[0]} is not installed; `lab/lab doctor` names its package") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"{what}: {command[0]} did not end within {seconds:.0f} s") from None
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        # The apt family marks its errors and puts the cause first; others say it last.
        marked = [line for line in said if line.startswith("E: ")]
        gist = " | ".join(marked[:2] or said[-4:])
        raise LabError(f"{what}: {command[0]} failed with status {done.returncode}: {gist}")
    return done.stdout


def say(line: str) -> None:
    """Print progress; standard output is kept for what programs read."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def step(label: str) -> Iterator[None]:
    """Report a step with its time once it is over, so that parallel steps do not mix their lines."""
    began = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"  {label:<44} failed after {time.monotonic() - began:.1f} s")
        raise
    say(f"  {label:<44} {time.monotonic() - began:6.1f} s")


def wait_until(ready: Callable[[], bool], seconds: float, interval: float = 0.1) -> bool:
    """Ask until the answer is yes or the time is over; the last answer is returned."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a file by renaming, so that a killed run leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.rename(path)


def give_to_caller(path: Path) -> None:
    """Hand a file to the person behind sudo, so that ansible-playbook and git work without it."""
    if "SUDO_UID" in os.environ:
        os.chown(path, int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"]))


def remove_tree(path: Path) -> None:
    """Delete a directory, refusing while anything is mounted below it."""
    if not path.exists():
        return
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        target = line.split(" ")[1]
        if target == str(path) or target.startswith(f"{path}/"):
            raise LabError(f"{path} is not removed: {target} is still mounted; umount it and try again")
    shutil.rmtree(path)
