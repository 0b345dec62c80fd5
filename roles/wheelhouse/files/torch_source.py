"""Where torch comes from, and which build of it was found. Used by wheelhouse.py beside it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

#: A build by name, as it stands in a wheel's version: 2.13.0+cu126.
BUILD = re.compile(r"cpu|cu\d{3}")


class BuildError(Exception):
    """The wheelhouse cannot be built; the message says why and what to do."""


@dataclass(frozen=True)
class Torch:
    """Where torch comes from: options for uv and pip, and what it adds to the release's digest.

    `versions` are those to ask for, the first that is found; none for the version that pyproject.toml pins.
    """

    options: tuple[str, ...]
    identity: str
    versions: tuple[str, ...] = ()


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def find_torch(
    spec: str, version: str, config: Mapping[str, Sequence[str]], index: str = "", only: bool = True
) -> Torch:
    """Say which build of torch `spec` means.

    '' is what pip on this controller finds, its find-links first; otherwise a build by name (`cu126`), a
    wheel, a directory of wheels or the URL of an index. A build by name is taken from pip's find-links, else
    from `index` (`{build}` in it stands for the name), else from pip's own index; without `only`, what that
    has takes the place of a build that it lacks. Raises BuildError when a path holds no torch of that
    version.
    """
    if BUILD.fullmatch(spec):
        return named(spec, version, config, index, only)
    if re.match(r"https?://|file://", spec):
        return Torch((f"--extra-index-url={spec}",), spec)
    if spec:
        place = Path(spec).expanduser().resolve()
        directories = [place.parent if place.suffix == ".whl" else place]
        pattern = place.name if place.suffix == ".whl" else f"torch-{version}[-+]*.whl"
    else:
        directories = links(config)
        pattern = f"torch-{version}[-+]*.whl"
    wheels = sorted(wheel for directory in directories for wheel in directory.glob(pattern))
    if spec and not wheels:
        raise BuildError(f"wheelhouse_torch: no torch-{version}*.whl in {directories[0]}")
    return of_wheels(wheels) if wheels else Torch((), "index")


def named(build: str, version: str, config: Mapping[str, Sequence[str]], index: str, only: bool) -> Torch:
    """Return the source of a build by name; see `find_torch`."""
    exact = f"{version}+{build}"
    wheels = sorted(wheel for directory in links(config) for wheel in directory.glob(f"torch-{exact}-*.whl"))
    if wheels:
        return replace(of_wheels(wheels), versions=(exact,))
    if index:
        address = index.replace("{build}", build)
        return Torch((f"--extra-index-url={address}",), f"{address} {build}", (exact,))
    source = Torch((), "index") if only else find_torch("", version, config)
    # Equal sources give another build where another is asked for.
    return replace(
        source, identity=f"{source.identity} {build}", versions=(exact,) if only else (exact, version)
    )


def links(config: Mapping[str, Sequence[str]]) -> list[Path]:
    """Return the directories that pip looks into before its index."""
    return [Path(path) for path in dict.fromkeys(config.get("find-links", []))]


def of_wheels(wheels: Sequence[Path]) -> Torch:
    """Return the source that these wheels are."""
    options = dict.fromkeys(f"--find-links={wheel.parent}" for wheel in wheels)
    return Torch(tuple(options), "\n".join(f"{wheel.name} {file_hash(wheel)}" for wheel in wheels))


def found_build(requirements: str) -> tuple[str, str]:
    """Return version and build of torch in locked requirements; the build is empty when nothing shows it.

    The index that everybody uses has builds without a name in their version: there, CUDA's runtime beside it
    tells which.
    """
    match = re.search(r"^torch==([^\s;\\]+)", requirements, re.MULTILINE)
    if not match:
        return "", ""
    local = match[1].partition("+")[2]
    if BUILD.fullmatch(local):
        return match[1], local
    runtime = re.search(
        r"^(?:nvidia-cuda-runtime(?:-cu\d+)?|cuda-toolkit(?:\[[^\]]*\])?)==(\d+)\.(\d+)",
        requirements,
        re.MULTILINE,
    )
    build = f"cu{runtime[1]}{runtime[2]}" if runtime and not local else ""
    return match[1], build if BUILD.fullmatch(build) else ""


def check_build(version: str, build: str, wanted: str, refused: Mapping[str, Sequence[str]]) -> None:
    """Raise BuildError when the build that was found is one that the workers cannot use.

    `refused` is build -> a line for each worker, `wanted` the build that was looked for (empty: any).
    """
    if not (lines := refused.get(build, ())):
        return
    if BUILD.fullmatch(wanted) and wanted != build and wanted not in refused:
        lines = [
            *lines,
            f"torch+{wanted} fits, and pip finds none: name an index of it in wheelhouse_torch_index",
        ]
    raise BuildError("\n  ".join([f"torch {version} ({build}) was found, which does not fit:", *lines]))
