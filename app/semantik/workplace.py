"""The directory beside an output where `semantik embed` keeps what it has finished; one process at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from semantik.exceptions import NotFound, Refused, SemantikError


class Workplace:
    """`.NAME.parts` beside the output NAME, locked while it is entered; gone once it is cleared and left."""

    def __init__(self, output: Path) -> None:
        """Take the output's path. Raises NotFound or Refused where no file can be made."""
        if output.is_dir():
            raise Refused(f"{output} is a directory: name a file, such as {output / 'vectors.parquet'}")
        if not output.parent.is_dir():
            raise NotFound(f"{output.parent} does not exist: make it, or name another output")
        self.output = output
        self.directory = output.with_name(f".{output.name}.parts")
        #: One JSON object a line: what there is to say about single documents. Absent when nothing is.
        self.report = output.with_name(f"{output.name}.report.jsonl")
        self._lock = -1
        self._real = Path(os.path.realpath(output.parent)) / self.directory.name
        self._folder = ("", Path())  # the last one that `holds` was asked about, and where it really is

    def __enter__(self) -> Workplace:
        """Make and lock the directory. Raises Refused when another process works on the same output."""
        while True:
            try:
                self.directory.mkdir(exist_ok=True)
                self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # another process left, and took the directory along
            except OSError as error:
                raise SemantikError(f"{self.directory} cannot be made: {error.strerror}") from error
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise Refused(f"another 'semantik embed' is at work on {self.output}") from None
            if self._current():
                return self
            os.close(self._lock)

    def __exit__(self, *_: object) -> None:
        """Unlock; remove the directory where nothing is kept in it."""
        try:
            if not any(self.directory.iterdir()):
                self.directory.rmdir()
        finally:
            os.close(self._lock)

    def _current(self) -> bool:
        """Return whether the locked directory is the one under the name: it may have been removed since."""
        try:
            return os.path.samestat(os.fstat(self._lock), self.directory.stat())
        except FileNotFoundError:
            return False

    def part(self, fingerprint: str) -> Path:
        """Return where the part of the group with this fingerprint is kept."""
        return self.directory / f"{fingerprint}.parquet"

    def draft(self, what: str) -> Path:
        """Return where a file is written before it gets its name."""
        return self.directory / f"{what}.draft"

    def holds(self, path: str) -> bool:
        """Return whether `path` is this program's own: the output, its report, or below the directory."""
        folder, _, name = path.rpartition("/")
        if folder != self._folder[0]:  # a listing names the documents of one directory one after the other
            self._folder = folder, Path(os.path.realpath(folder or "/"))
        real = self._folder[1]
        if real == self._real:
            return True
        return name in (self.output.name, self.report.name) and real == self._real.parent

    def clear(self) -> None:
        """Remove everything that is kept."""
        for path in self.directory.iterdir():
            path.unlink()
