"""What a worker's child holds, noted in the unit's runtime directory, for whoever finds it dead.

One small file per shard, rewritten for each batch and gone when the child is done with the shard in any way
but dying.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
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
    note = Note(shard, fence, os.getpid(), os.getppid(), tuple(documents), job)
    path = _path(settings, shard)
    draft = path.with_suffix(".new")
    draft.write_text(json.dumps(asdict(note)), encoding="ascii")
    draft.replace(path)  # whole or not at all, whenever the reader comes


def read(settings: Settings, shard: int) -> Note | None:
    """Return the note on `shard`, None when there is none."""
    try:
        values = json.loads(_path(settings, shard).read_text(encoding="ascii"))
    except FileNotFoundError:
        return None
    return Note(**{**values, "documents": tuple(values["documents"])})


def remove(settings: Settings, shard: int) -> None:
    """Forget the note on `shard`."""
    _path(settings, shard).unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Return whether the process `pid` is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
