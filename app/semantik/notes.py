"""What a worker's child holds, noted in the unit's runtime directory, for whoever finds it dead.

One small file per shard, rewritten for each batch and gone when the child is done with the shard in any way
but dying.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path

from semantik.settings import Settings


@dataclass(frozen=True)
class Note:
    """A child's hold on a shard and the documents it was at work on."""

    shard: int
    fence: int
    pid: int  # of the child
    parent: int  # of the worker's parent process
    documents: tuple[int, ...] = ()
    job: str | None = None  # for the log, where the database cannot be asked
    born: str = field(default="", compare=False)  # the child, as `born` says
    parent_born: str = field(default="", compare=False)


def directory(settings: Settings) -> Path:
    """Return the directory for notes: the unit's own, or one of this user's."""
    given = settings.runtime_dir.partition(":")[0]
    path = Path(given) if given else Path(tempfile.gettempdir()) / f"semantik-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _path(settings: Settings, shard: int) -> Path:
    return directory(settings) / f"shard-{shard}.json"


def write(
    settings: Settings, shard: int, fence: int, documents: Iterable[int] = (), *, job: str | None = None
) -> None:
    """Note that this process holds `shard` and works on `documents`."""
    child, parent = os.getpid(), os.getppid()
    note = Note(shard, fence, child, parent, tuple(documents), job, born(child), born(parent))
    path = _path(settings, shard)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(note)), encoding="ascii")
    draft.replace(path)  # whole or not at all, whenever the reader comes


def read(settings: Settings, shard: int) -> Note | None:
    """Return the note on `shard`, None when there is none that can be read.

    `pid` and `parent` are 0 where that process is gone, whatever has its number now.
    """
    try:
        values = json.loads(_path(settings, shard).read_text(encoding="ascii"))
        note = Note(**{**values, "documents": tuple(values["documents"])})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None  # one cut short, or of another release, says nothing
    return replace(
        note,
        pid=note.pid if note.born and born(note.pid) == note.born else 0,
        parent=note.parent if note.parent_born and born(note.parent) == note.parent_born else 0,
    )


def shards(settings: Settings) -> list[int]:
    """Return the shards that there are notes on."""
    names = (path.stem.partition("-")[2] for path in directory(settings).glob("shard-*.json"))
    return [int(name) for name in names if name.isdecimal()]


def remove(settings: Settings, shard: int) -> None:
    """Forget the note on `shard`."""
    _path(settings, shard).unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Return whether the process `pid` is there."""
    return pid > 0 and bool(born(pid))


def born(pid: int) -> str:
    """Return when the process `pid` was started, as the kernel counts, and in which boot; "" if it is gone.

    Process numbers are used again, and a directory for notes may outlive a boot.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # The name, in brackets, may hold anything; state is field 3 and the start field 22 (proc_pid_stat(5)).
    values = stat.rpartition(")")[2].split()
    return "" if values[0] in "ZX" else f"{_boot()}-{values[19]}"


@cache
def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
