"""A tree of many small files, on a file system of its own that goes with one unmount."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from semantik_bench.errors import BenchError

#: Files in a directory, and directories in one above.
_FILES, _DIRECTORIES = 1_000, 100
#: An inode holds its small file's content, so that a file takes these bytes and its name.
_INODE_BYTES, _BYTES_EACH = 256, 450


@contextmanager
def mounted(folder: Path, files: int) -> Iterator[Path]:
    """Yield an empty ext4 with room for `files` small files, in an image inside `folder`.

    Raises BenchError where it cannot be made or mounted.
    """
    image, place = folder / "files.img", folder / "files"
    inodes = files + files // _FILES + 1_000
    with image.open("wb") as made:
        made.truncate((64 << 20) + inodes * (_INODE_BYTES + _BYTES_EACH))
    place.mkdir()
    try:
        _run(
            "mkfs.ext4", "-q", "-F", "-O", "inline_data,^has_journal", "-m", "0", "-I", str(_INODE_BYTES),
            "-N", str(inodes), str(image),
        )  # fmt: skip
        _run("mount", "-o", "loop,noatime", str(image), str(place))
        try:
            yield place
        finally:
            _run("umount", str(place))
    finally:
        image.unlink()


def fill(root: Path, begin: int, end: int) -> None:
    """Write files number `begin` up to `end` below `root`, of some 30 bytes each."""
    folder = root
    for number in range(begin, end):
        if number == begin or number % _FILES == 0:
            step = number // _FILES
            folder = root / f"{step // _DIRECTORIES:04}" / f"{step % _DIRECTORIES:02}"
            folder.mkdir(parents=True, exist_ok=True)
        with open(f"{folder}/document-{number:08}.txt", "wb", buffering=0) as file:  # noqa: PTH123 (half the time)
            file.write(b"Document %d of a large tree.\n" % number)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise BenchError(f"{command[0]} is missing: apt-get install e2fsprogs mount") from None
    except subprocess.CalledProcessError as error:
        raise BenchError(f"{' '.join(command[:1])} failed: {' '.join(error.stderr.split())}") from error
