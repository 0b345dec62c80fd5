#!/usr/bin/env python3
"""Pack what hosts install: the semantik wheel and every dependency, with hashes, one tar per set and Python.

Run by the role `wheelhouse` on the controller, or by hand:

    wheelhouse.py --source . --build build --cache ~/.cache/semantik worker:3.11:x86_64 control:3.13:x86_64

A target is SET:PYTHON:ARCHITECTURE. The release's name is the version and a digest of all that goes in, so
equal inputs name an equal release, and nothing is built that is there already. Result: JSON on standard
output; progress and errors on standard error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch_source import BuildError, Torch, check_build, file_hash, find_torch, found_build

#: Of every file in wheel and tar, so that equal content gives equal bytes. Zip knows no time before 1980.
SOURCE_DATE_EPOCH = 315_532_800
KEEP = 3
SETS = ("control", "worker")


@dataclass(frozen=True)
class Target:
    """What one kind of host installs: a set of packages for its Python (`3.11`) and its architecture."""

    set: str
    python: str
    architecture: str

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `worker:3.11:x86_64`. Raises BuildError when it is not of that form."""
        if not re.fullmatch(rf"({'|'.join(SETS)}):3\.\d+:\w+", text):
            raise BuildError(
                f"target {text!r} is not SET:PYTHON:ARCHITECTURE, for example worker:3.11:x86_64"
            )
        return cls(*text.split(":"))

    @property
    def tag(self) -> str:
        """Python as it stands in names: py311."""
        return "py" + self.python.replace(".", "")

    @property
    def name(self) -> str:
        """Name of the set's tar, and key of the result."""
        return f"{self.set}-{self.tag}-{self.architecture}"


def say(text: str) -> None:
    """Report progress on standard error."""
    print(f"wheelhouse: {text}", file=sys.stderr, flush=True)


def digest(parts: Iterable[tuple[str, bytes]]) -> str:
    """Return the SHA-256 over named contents, whatever their order."""
    total = hashlib.sha256()
    for name, content in sorted(parts):
        total.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def run(command: Sequence[str], **environment: str) -> str:
    """Run a command and return its output. Raises BuildError with the end of its output when it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise BuildError(f"{' '.join(command[:4])} ... failed:\n  " + "\n  ".join(lines[-12:]))
    return done.stdout


def pip(*arguments: str, **environment: str) -> str:
    """Run pip of this interpreter, with the sources that the controller has configured for it."""
    return run([sys.executable, "-m", "pip", *arguments], **environment)


def pip_config() -> dict[str, list[str]]:
    """Return pip's configured sources: uv reads none of them by itself."""
    values: dict[str, list[str]] = {}
    for line in pip("config", "list").splitlines():
        key, _, value = line.partition("=")
        name = key.rpartition(".")[2]
        if name in ("find-links", "index-url", "extra-index-url"):
            values.setdefault(name, []).extend(value.strip("'\"").replace("\\n", " ").split())
    return values


def uv_sources(config: dict[str, list[str]]) -> list[str]:
    """Translate pip's index into uv's options."""
    options = [f"--default-index={url}" for url in config.get("index-url", [])[-1:]]
    return options + [f"--index={url}" for url in dict.fromkeys(config.get("extra-index-url", []))]


def project(source: Path) -> dict[str, Any]:
    """Return what pyproject.toml says. Raises BuildError when the directory is no checkout of the project."""
    try:
        return tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BuildError(f"{source} holds no pyproject.toml: --source is the repository's root") from None


def app_digest(source: Path, pyproject: dict[str, Any]) -> str:
    """Return the digest of what runs on a host: the package's files and how it is built.

    README.md and the settings of linters are left out, so that editing them restarts no worker.
    """
    package = source / "app" / "semantik"
    parts = [
        (str(path.relative_to(package)), path.read_bytes())
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    built = {key: pyproject.get(key) for key in ("build-system", "project")}
    built["hatch"] = pyproject.get("tool", {}).get("hatch")
    return digest([*parts, ("pyproject", json.dumps(built, sort_keys=True).encode())])


def lock_file(source: Path, target: Target) -> Path:
    """Return the committed lock file of a target. Raises BuildError naming those there are."""
    path = source / "requirements" / f"{target.set}-{target.tag}.txt"
    if not path.is_file():
        have = ", ".join(sorted(file.stem for file in path.parent.glob("*-py*.txt")))
        raise BuildError(
            f"no lock file for Python {target.python} ({path.name}; there are {have}): "
            "add its version to requirements/lock.sh and run that"
        )
    return path


def build_app(source: Path, cache: Path, key: str) -> Path:
    """Build the semantik wheel once per digest and return it."""
    place = cache / "app" / key[:16]
    if not place.is_dir():
        say("building the semantik wheel")
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            pip(
                *("wheel", "--quiet", "--no-deps", "--wheel-dir", f"{scratch}/wheel", str(source)),
                SOURCE_DATE_EPOCH=str(SOURCE_DATE_EPOCH),
            )
            Path(scratch, "wheel").rename(place)
    return next(place.glob("semantik-*.whl"))


def compile_torch(
    target: Target, lock: Path, torch: Torch, version: str, config: dict[str, list[str]]
) -> str:
    """Return torch of this very version and all that it needs, with hashes.

    Raises BuildError if there is none.
    """
    # The lock files were made for this patch version: requirements/lock.sh.
    with tempfile.NamedTemporaryFile("w", suffix=".in") as wanted:
        wanted.write(f"torch=={version}\n")
        wanted.flush()
        sources = [option.replace("--extra-index-url=", "--index=") for option in torch.options]
        return run(
            [
                *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", wanted.name),
                *(
                    "--python-version",
                    target.python,
                    "--python-platform",
                    f"{target.architecture}-manylinux_2_28",
                ),
                *("--only-binary", ":all:", "--generate-hashes", "--no-header", "--no-annotate"),
                # The best version wherever it lies: an index of torch holds a few old ones of other packages.
                *("--index-strategy", "unsafe-best-match", "--constraint", str(lock)),
                *uv_sources(config),
                *sources,
            ]
        )


def lock_torch(target: Target, lock: Path, torch: Torch, version: str, config: dict[str, list[str]]) -> str:
    """Return locked requirements of torch and of what its build alone needs (CUDA's libraries)."""
    wanted = torch.versions or (version,)
    for each in wanted:
        try:
            text = compile_torch(target, lock, torch, each, config)
            break
        except BuildError as error:
            if each != wanted[-1]:
                continue
            hint = "\n  No source of pip's has this build: name an index of it in wheelhouse_torch_index."
            raise BuildError(f"{error}{hint if torch.versions else ''}") from None
    locked = set(re.findall(r"^([a-z0-9.-]+)==", lock.read_text(encoding="utf-8"), re.MULTILINE))
    blocks = re.split(r"(?m)^(?=[a-z0-9.-]+==)", text)
    return "".join(block for block in blocks if block and block.partition("==")[0] not in locked)


def platforms(architecture: str) -> list[str]:
    """Return the platform tags that Debian 12 (glibc 2.36) and later install, newest first."""
    tags = [f"manylinux_2_{minor}_{architecture}" for minor in range(36, 4, -1)]
    return [*tags, f"manylinux2014_{architecture}", f"linux_{architecture}"]


def download(target: Target, requirements: str, torch: Torch, cache: Path) -> Path:
    """Return a directory with every wheel that `requirements` names by hash, from the cache or the index."""
    key = digest([(target.name, requirements.encode())])[:16]
    place = cache / "wheels" / f"{target.name}-{key}"
    if place.is_dir():
        return place
    say(f"downloading the wheels of {target.name}")
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        wheels = Path(scratch, "wheels")
        listed = Path(scratch, "requirements.txt")
        listed.write_text(requirements, encoding="utf-8")
        version = target.python.replace(".", "")
        pip(
            *(
                "download",
                "--quiet",
                "--no-deps",
                "--require-hashes",
                "--only-binary=:all:",
                "--dest",
                str(wheels),
            ),
            *("--python-version", version, "--implementation", "cp"),
            *(f"--abi={abi}" for abi in (f"cp{version}", "abi3", "none")),
            *(f"--platform={tag}" for tag in platforms(target.architecture)),
            *(*torch.options, "--requirement", str(listed)),
        )
        wheels.rename(place)
    return place


def pack(tar: Path, wheels: Iterable[Path], requirements: str) -> None:
    """Write wheels and requirements.txt into a tar whose bytes depend on nothing else."""
    partial = tar.with_suffix(".part")
    with tempfile.TemporaryDirectory(dir=tar.parent) as scratch, tarfile.open(partial, "w") as archive:
        listed = Path(scratch, "requirements.txt")
        listed.write_text(requirements, encoding="utf-8")
        for path in sorted([*wheels, listed], key=lambda each: each.name):
            member = tarfile.TarInfo(path.name)
            member.size, member.mtime, member.mode = path.stat().st_size, SOURCE_DATE_EPOCH, 0o644
            with path.open("rb") as stream:
                archive.addfile(member, stream)
    partial.rename(tar)


def build(
    target: Target,
    place: Path,
    source: Path,
    cache: Path,
    torch: Torch,
    config: dict[str, list[str]],
    check: Callable[[str, str], None],
) -> None:
    """Write a target's tar and, last, its manifest. `check` raises for a torch that the hosts cannot use."""
    pyproject = project(source)
    app = build_app(source, cache, app_digest(source, pyproject))
    lock = lock_file(source, target)
    requirements = lock.read_text(encoding="utf-8")
    if target.set == "worker":
        requirements += lock_torch(target, lock, torch, torch_version(pyproject), config)
    version, kind = found_build(requirements)
    # Before gigabytes are fetched.
    check(version, kind)
    wheels = download(target, requirements, torch if target.set == "worker" else Torch((), ""), cache)
    requirements += f"semantik=={pyproject['project']['version']} --hash=sha256:{file_hash(app)}\n"
    say(f"packing {place.name}/{target.name}.tar")
    place.mkdir(parents=True, exist_ok=True)
    tar = place / f"{target.name}.tar"
    members = [*wheels.iterdir(), app]
    pack(tar, members, requirements)
    unpacked = sum(member.file_size for wheel in members for member in zipfile.ZipFile(wheel).infolist())
    manifest = {"tar": str(tar), "sha256": file_hash(tar), "bytes": tar.stat().st_size, "unpacked": unpacked}
    manifest |= {"torch": version, "torch_build": kind}
    manifest_of(place, target).write_text(json.dumps(manifest), encoding="utf-8")


def manifest_of(place: Path, target: Target) -> Path:
    """Return the path of the file that says that a target is complete."""
    return place / f"{target.name}.json"


def torch_version(pyproject: dict[str, Any]) -> str:
    """Return the version of torch that pyproject.toml pins. Raises BuildError when it pins none."""
    for requirement in pyproject["project"]["optional-dependencies"]["worker"]:
        if match := re.fullmatch(r"torch==([\w.]+)", requirement):
            return match[1]
    raise BuildError("pyproject.toml pins no torch==VERSION in the extra 'worker'")


def read_json(name: str) -> Any:
    """Read a JSON file, or standard input for '-': a list for every host is too long for an argument."""
    return json.loads(sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8"))


def prune(root: Path, current: str) -> None:
    """Remove all but the newest releases; `current` always stays."""
    releases = sorted(
        (path for path in root.iterdir() if path.is_dir()),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    for path in [path for path in releases if path.name != current][KEEP - 1 :]:
        say(f"removing {path.name}")
        shutil.rmtree(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is missing and print the result as JSON; with --check, say only what would be built."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="the repository's root")
    parser.add_argument("--build", type=Path, required=True, help="where wheelhouse/RELEASE/ is made")
    parser.add_argument("--cache", type=Path, required=True, help="where downloads are kept")
    parser.add_argument(
        "--torch", default="", help="a build (cu126), a wheel, a directory of wheels or an index's URL"
    )
    parser.add_argument("--torch-index", default="", help="index of builds by name, {build} stands for it")
    parser.add_argument("--any-build", action="store_true", help="take what pip finds if it lacks --torch")
    parser.add_argument(
        "--refused", type=read_json, default={}, help="JSON file (-: standard input): build -> why not"
    )
    parser.add_argument("--check", action="store_true", help="build nothing")
    parser.add_argument("targets", nargs="+", metavar="SET:PYTHON:ARCHITECTURE")
    options = parser.parse_args(arguments)
    try:
        targets = [Target.parse(text) for text in dict.fromkeys(options.targets)]
        pyproject = project(options.source)
        config = pip_config()
        torch = find_torch(
            options.torch, torch_version(pyproject), config, options.torch_index, not options.any_build
        )
        inputs = [("app", app_digest(options.source, pyproject).encode()), ("torch", torch.identity.encode())]
        # All lock files, not only those of these targets: a run limited to some hosts names the same release.
        inputs += [
            (file.name, file.read_bytes()) for file in (options.source / "requirements").glob("*-py*.txt")
        ]
        release = f"{pyproject['project']['version']}-{digest(inputs)[:8]}"
        place = options.build / "wheelhouse" / release
        for target in targets:
            lock_file(options.source, target)
        missing = [target for target in targets if not manifest_of(place, target).is_file()]
        check = partial(check_build, wanted=options.torch, refused=options.refused)
        if not options.check:
            for target in missing:
                build(target, place, options.source, options.cache, torch, config, check)
            if missing:
                prune(place.parent, release)
        sets = {
            target.name: json.loads(manifest_of(place, target).read_text(encoding="utf-8"))
            for target in targets
            if manifest_of(place, target).is_file()
        }
        for packed in sets.values():
            check(packed.get("torch", ""), packed.get("torch_build", ""))
    except (BuildError, OSError) as error:
        print(f"wheelhouse: {error}", file=sys.stderr)
        return 1
    names = [target.name for target in missing]
    print(json.dumps({"changed": bool(missing), "release": release, "built": names, "sets": sets}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
