"""PostgreSQL's data on a small file system of its own, so that its disk can be full and no other is."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

from chaos.cluster import Cluster
from chaos.kinds import ChaosError

DATA = "/var/lib/postgresql"
BALLAST = f"{DATA}/chaos-ballast"
_BYTES = 3 << 30
_DEVICE = "/dev/chaos-postgresql"


def provide(cluster: Cluster, unit: str) -> None:
    """Move the data into an image that is mounted in the host; nothing happens where it is already."""
    head = cluster.head
    if cluster.shell(head, f"mountpoint -q {DATA} && echo yes", check=False).strip() == "yes":
        return
    image = cluster.node(head).directory / "postgresql.img"
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        os.truncate(file.fileno(), _BYTES)
    # No blocks kept for root: the database shall not be able to have more than anyone else.
    _run("mkfs.ext4", "-q", "-m", "0", str(image))
    device = _run("losetup", "--find", "--show", str(image)).strip()
    try:
        number = Path(device).stat().st_rdev
        node = f"rm -f {_DEVICE}; mknod -m 600 {_DEVICE} b {os.major(number)} {os.minor(number)}"
        line = (
            f"{node} && systemctl stop {unit} && mkdir -p /run/chaos && mount -t ext4 {_DEVICE} /run/chaos"
            f" && cp -a {DATA}/. /run/chaos/ && chown --reference={DATA} /run/chaos"
            f" && chmod --reference={DATA} /run/chaos && umount /run/chaos"
            f" && mount -t ext4 {_DEVICE} {DATA} && systemctl start {unit}"
        )
        # Not in the host's control group, which may open no block device; in its namespaces all the same.
        cluster.shell(head, line)
    finally:
        # It goes by itself once nothing has it mounted, whoever unmounts it.
        with suppress(ChaosError):
            _run("losetup", "--detach", device)


def fill(cluster: Cluster) -> int:
    """Take all that is free; return the bytes that are left. Raises ChaosError when the disk is shared."""
    head = cluster.head
    if cluster.shell(head, f"mountpoint -q {DATA} && echo yes", check=False).strip() != "yes":
        raise ChaosError(f"{DATA} is no file system of its own, so it is not filled")
    free = f"$(df -B1 --output=avail {DATA} | tail -1)"
    # Twice: the first leaves a little that the file system needed for it meanwhile.
    cluster.shell(head, f"fallocate -l {free} {BALLAST} || true; dd if=/dev/zero bs=4k of={BALLAST} "
                        "oflag=append conv=notrunc 2>/dev/null || true", check=False)  # fmt: skip
    return int(cluster.shell(head, f"df -B1 --output=avail {DATA} | tail -1"))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ChaosError(f"{' '.join(command)}: {' '.join(done.stderr.split())}")
    return done.stdout
