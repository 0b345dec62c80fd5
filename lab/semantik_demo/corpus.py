"""Real documents: HTML, PDF and text from Debian's own manuals, each text in one format only."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from semantik_demo.errors import DemoError

CACHE = Path("/var/cache/semantik-lab/corpus")
COMPLETE = ".complete"


@dataclass(frozen=True)
class Part:
    """Files of a package that go into one folder of the corpus."""

    folder: str
    package: str
    directory: str  # within the package, below usr/share
    pattern: str


#: Manuals come as HTML, PDF, EPUB and text: taking two formats of one would only show every hit twice.
PARTS = (
    Part("debian-policy", "debian-policy", "doc/debian-policy/policy.html", "ch-*.html"),
    Part("debian-policy", "debian-policy", "doc/debian-policy/policy.html", "ap-*.html"),
    Part("debian-policy", "debian-policy", "doc/debian-policy", "upgrading-checklist.txt.gz"),
    Part("debian-policy", "debian-policy", "doc/debian-policy", "*-policy.txt.gz"),
    Part("debian-policy", "debian-policy", "doc/debian-policy", "copyright-format-1.0.txt.gz"),
    Part("debian-policy", "debian-policy", "doc/debian-policy", "debconf_specification.txt.gz"),
    Part("debian-policy", "debian-policy", "doc/debian-policy", "autopkgtest.txt.gz"),
    Part("debian-policy", "debian-policy", "doc/debian-policy/fhs", "fhs-*.pdf.gz"),
    Part("developers-reference", "developers-reference", "developers-reference", "*.pdf"),
    Part("debian-reference", "debian-reference-en", "debian-reference", "*.en.html"),
    Part("debian-faq", "debian-faq", "doc/debian/FAQ", "*.html"),
    Part("securing-debian", "harden-doc", "doc/harden-doc/html/en-US", "*.html"),
)


def provide() -> tuple[Path, bool]:
    """Return the folder with the corpus, and whether it was there already.

    Packages are downloaded by apt from the mirrors of this machine and unpacked, not installed. A folder is
    named after the selection and marked once whole, so that an interrupted run is not mistaken for a corpus.
    """
    selection = hashlib.sha256(repr(PARTS).encode()).hexdigest()[:8]
    folder = CACHE / f"documents-{selection}"
    if (folder / COMPLETE).is_file():
        return folder, True
    packages = CACHE / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    for package in dict.fromkeys(part.package for part in PARTS):
        with tempfile.TemporaryDirectory(dir=CACHE) as tree:
            unpack(download(package, packages), Path(tree))
            for part in PARTS:
                if part.package == package:
                    take(part, Path(tree), folder)
    (folder / COMPLETE).touch()
    return folder, False


def download(package: str, directory: Path) -> Path:
    """Return the package's file, downloaded unless it is there."""
    held = sorted(directory.glob(f"{package}_*.deb"))
    if held:
        return held[-1]
    # The directory is root's alone: apt must not change to its own user, which could not write there.
    command = ["apt-get", "--option", "APT::Sandbox::User=root", "--quiet", "download", package]
    done = run(command, directory)
    if done.returncode != 0:
        run(["apt-get", "--quiet", "update"], directory)
        done = run(command, directory)
    held = sorted(directory.glob(f"{package}_*.deb"))
    if done.returncode != 0 or not held:
        said = " ".join(done.stderr.split())
        raise DemoError(f"apt-get cannot download {package} for the corpus: {said}; is a mirror reachable?")
    return held[-1]


def unpack(package: Path, tree: Path) -> None:
    """Unpack a package without installing it."""
    done = run(["dpkg-deb", "--extract", str(package), str(tree)], tree)
    if done.returncode != 0:
        package.unlink()
        raise DemoError(f"{package} was damaged and is removed: run make demo again to download it anew")


def take(part: Part, tree: Path, folder: Path) -> None:
    """Copy a part's files, without their compression, readable for everyone."""
    taken = 0
    for source in sorted((tree / "usr/share" / part.directory).glob(part.pattern)):
        if source.is_symlink() or not source.is_file():
            continue
        target = folder / part.folder / source.name.removesuffix(".gz")
        target.parent.mkdir(parents=True, exist_ok=True)
        content = source.read_bytes()
        target.write_bytes(gzip.decompress(content) if source.suffix == ".gz" else content)
        target.chmod(0o644)
        os.utime(target, ns=(source.stat().st_mtime_ns, source.stat().st_mtime_ns))
        taken += 1
    if not taken:
        raise DemoError(
            f"package {part.package} has no {part.directory}/{part.pattern}: it moved its documents"
        )


def copy(folder: Path, target: Path) -> int:
    """Make `target` hold the corpus and nothing else; return how many files were written.

    What is there with the same size and time stays untouched, so that the cluster finds it unchanged.
    """
    wanted = {
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != COMPLETE
    }
    for path in sorted(target.rglob("*")) if target.exists() else []:
        if path.is_file() and path.relative_to(target) not in wanted:
            path.unlink()
    written = 0
    for name in sorted(wanted):
        source, destination = folder / name, target / name
        if destination.is_file() and identity(destination) == identity(source):
            continue
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, destination)
        written += 1
    for directory in [target, *(path for path in target.rglob("*") if path.is_dir())]:
        directory.chmod(0o755)
    return written


def identity(path: Path) -> tuple[int, int]:
    """Return what tells a changed file from an unchanged one: its size and its modification time."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a directory and return what came of it."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
