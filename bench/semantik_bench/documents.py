"""The documents that are embedded: a fixed selection of the demo's corpus, Debian's own manuals."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from semantik_bench.errors import BenchError

ROOT = Path(__file__).resolve().parents[2]

#: About 200,000 tokens of HTML, text and PDF: half a minute of work, as a cluster's shards are. The quick
#: selection has 20,000 of HTML and text.
FULL = (
    "debian-faq/*.html",
    "debian-policy/*.html",
    "debian-policy/fhs-3.0.pdf",
    "debian-policy/autopkgtest.txt",
    "debian-policy/debconf_specification.txt",
    "debian-policy/menu-policy.txt",
    "debian-policy/perl-policy.txt",
)
QUICK = (
    "debian-faq/basic-defs.en.html",
    "debian-faq/choosing.en.html",
    "debian-faq/compatibility.en.html",
    "debian-faq/customizing.en.html",
    "debian-faq/ftparchives.en.html",
    "debian-policy/menu-policy.txt",
)
# Ranks by size, largest first, of the documents that the quick memory test takes.
_QUICK_RANKS = (60, 100)


def corpus() -> Path:
    """Return the demo's corpus, downloaded by apt once. Raises BenchError where it cannot be."""
    lab = str(ROOT / "lab")
    if lab not in sys.path:
        sys.path.append(lab)
    from semantik_demo import corpus as demo
    from semantik_demo.errors import DemoError

    try:
        return demo.provide()[0]
    except (DemoError, OSError) as error:
        raise BenchError(f"no documents: {error}") from error


def select(corpus: Path, folder: Path, *, quick: bool) -> Path:
    """Make `folder` hold the selection and nothing else; return it."""
    names = [path for pattern in (QUICK if quick else FULL) for path in sorted(corpus.glob(pattern))]
    if len(names) < len(QUICK if quick else FULL):
        raise BenchError(f"{corpus} lacks some of the selected documents: its packages have changed")
    return _fill(folder, corpus, names)


def one_and_ten(corpus: Path, folder: Path, *, quick: bool) -> tuple[Path, Path]:
    """Make folders of N and of 10 N different documents; return both.

    N is every tenth of them by size, the largest among them: no document of the larger folder is larger than
    all of the smaller one, so that a difference in memory is owed to the number.
    """
    ranked = sorted(
        (path for path in corpus.rglob("*") if path.is_file() and not path.name.startswith(".")),
        key=lambda path: (-path.stat().st_size, path),
    )
    if quick:
        ranked = ranked[slice(*_QUICK_RANKS)]
    ranked = ranked[: len(ranked) - len(ranked) % 10]
    return _fill(folder / "one", corpus, ranked[::10]), _fill(folder / "ten", corpus, ranked)


def _fill(folder: Path, corpus: Path, names: list[Path]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    for name in names:
        target = folder / name.relative_to(corpus)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, target)
    return folder
