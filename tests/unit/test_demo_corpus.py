"""The demo's documents: copied once, left alone afterwards, and its figures in words."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from semantik_demo import corpus, summary
from semantik_demo.errors import DemoError


def package(tree: Path) -> None:
    directory = tree / "usr/share/doc/thing"
    directory.mkdir(parents=True)
    (directory / "a.html").write_text("<p>a</p>")
    (directory / "b.txt.gz").write_bytes(gzip.compress(b"text"))
    (directory / "link.html").symlink_to("a.html")


def test_parts_are_unpacked_once_each(tmp_path: Path) -> None:
    package(tmp_path / "tree")
    for pattern in ("*.html", "*.txt.gz"):
        corpus.take(corpus.Part("thing", "thing", "doc/thing", pattern), tmp_path / "tree", tmp_path / "out")
    found = {path.name: path.read_text() for path in (tmp_path / "out/thing").iterdir()}
    assert found == {"a.html": "<p>a</p>", "b.txt": "text"}


def test_a_package_that_moved_its_documents_is_an_error(tmp_path: Path) -> None:
    package(tmp_path / "tree")
    with pytest.raises(DemoError, match=r"package thing has no doc/thing/\*\.pdf"):
        corpus.take(corpus.Part("thing", "thing", "doc/thing", "*.pdf"), tmp_path / "tree", tmp_path / "out")


def test_copying_again_touches_nothing_and_removes_what_is_foreign(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "one").mkdir(parents=True)
    for name in ("one/a.txt", "b.txt"):
        (source / name).write_text(name)
    (source / corpus.COMPLETE).touch()
    assert corpus.copy(source, target) == 2
    before = {path: path.stat().st_ctime_ns for path in target.rglob("*.txt")}
    (target / "foreign.txt").write_text("left by someone")
    assert corpus.copy(source, target) == 0
    assert {path: path.stat().st_ctime_ns for path in target.rglob("*.txt")} == before
    (source / "b.txt").write_text("longer than before")
    assert corpus.copy(source, target) == 1


def test_figures_say_whether_they_are_of_this_run() -> None:
    figures = {
        "documents": 151,
        "failed": 0,
        "chunks": 2800,
        "tokens": 600_000,
        "truncated_tokens": 0,
        "seconds": 150.0,
        "tokens_per_second": 4000,
        "workers": {"gpu1:0": 1000},
        "figures_of": "job",
    }
    assert summary.lines(figures)[0].startswith("This run embedded 151 documents (0 failed): 2,800 chunks")
    told = summary.lines({**figures, "figures_of": "collection"})
    assert told[0].startswith("Nothing had changed. The collection holds 151 documents")
    assert "by an earlier run" in told[1]
    assert told[2].split() == ["gpu1:0", "1,000", "tokens/s", "while", "it", "worked"]
