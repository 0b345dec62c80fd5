"""A listing in groups: complete, bounded, and cut where a change elsewhere does not matter."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

import pytest

from semantik.exceptions import Refused
from semantik.groups import MOST_DOCUMENTS, Listing, cut, list_documents
from semantik.sources import Listed
from semantik.workplace import Workplace


def listed(count: int, *, seed: int = 1) -> list[Listed]:
    draw = random.Random(seed)
    return [Listed(f"/srv/{at:05}", draw.randint(0, 4_000), str(at)) for at in range(count)]


def test_groups_hold_every_document_in_order_and_keep_to_the_limits() -> None:
    documents = listed(3_000)
    documents[40] = Listed("/srv/00040", 10**9, "big")
    documents[50] = Listed("/srv/00050", None, None)
    groups = list(cut(documents, 100_000))
    assert [item for group in groups for item in group.documents] == documents
    assert [group.first for group in groups] == [
        sum(len(before.documents) for before in groups[:at]) for at in range(len(groups))
    ]
    for group in groups:
        weight = sum(item.size or 0 for item in group.documents)
        assert weight <= 100_000 or len(group.documents) == 1
    tiny = [Listed(f"/{at}", 0, "") for at in range(5 * MOST_DOCUMENTS)]
    assert max(len(group.documents) for group in cut(tiny, 10**9)) <= MOST_DOCUMENTS
    assert list(cut([], 10)) == []


@pytest.mark.parametrize("what", ["added", "changed", "removed"])
def test_one_change_costs_few_groups(what: str) -> None:
    documents = listed(3_000)
    before = {group.fingerprint("key") for group in cut(documents, 100_000)}
    if what == "added":
        documents.insert(7, Listed("/srv/00006a", 3_000, "new"))
    elif what == "changed":
        documents[7] = Listed(documents[7].uri, 9_000, "other")
    else:
        del documents[7]
    after = {group.fingerprint("key") for group in cut(documents, 100_000)}
    assert 1 <= len(after - before) <= 3 < len(before)


def test_fingerprints_tell_what_matters() -> None:
    base = [Listed("/a", 1, "v"), Listed("/b", 2, "w")]
    others = [
        [Listed("/a", 1, "v2"), base[1]],
        [Listed("/a", 2, "v"), base[1]],
        [Listed("/c", 1, "v"), base[1]],
        base[:1],
    ]
    prints = {next(cut(documents, 10**6)).fingerprint("key") for documents in [base, *others]}
    prints.add(next(cut(base, 10**6)).fingerprint("other key"))
    assert len(prints) == 6
    refused = Listed("/x", None, None, "its name is not UTF-8: rename it")
    listings = [
        Listing(base, [], []),
        Listing(base, [refused], []),
        Listing(base, [], [Listed("/x", None, None, "is a FIFO", no_document=True)]),
        Listing(base[:1], [], []),
    ]
    assert len({listing.fingerprint("key") for listing in listings}) == 4


def test_every_entry_of_a_directory_is_accounted_for(tmp_path: Path) -> None:
    root = tmp_path / "documents"
    (root / "below").mkdir(parents=True)
    (root / "b.txt").write_text("b")
    (root / "below" / "a\nb.txt").write_text("a")
    os.mkfifo(root / "fifo")
    (root / "loop").symlink_to(".")
    (root / "nowhere").symlink_to("missing")
    (root / "itself").symlink_to("itself")
    (root / "linked.txt").symlink_to("b.txt")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.txt")).write_text("x")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "below" / "socket"))
        found = list_documents(str(root), lambda path: False)
    assert [Path(item.uri).relative_to(root).as_posix() for item in found.documents] == [
        "b.txt",
        "below/a\nb.txt",
        "linked.txt",
    ]
    assert {Path(item.uri).name: item.error for item in found.refused} == {
        "\\xff.txt": "its name is not UTF-8: rename it",
        "itself": "cannot be read: Too many levels of symbolic links",
    }
    assert {Path(item.uri).name: item.error for item in found.passed_over} == {
        "fifo": "is a FIFO",
        "socket": "is a socket",
        "loop": "is a link to a directory",
        "nowhere": "is a link to no file",
    }


def test_own_files_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "name").symlink_to("real")
    place = Workplace(tmp_path / "name" / "v.parquet")
    with place:
        place.draft("part").write_text("x")
        for name in ("v.parquet", "v.parquet.report.jsonl", "w.parquet"):
            (tmp_path / "real" / name).write_text("x")
        (tmp_path / "real" / "below").mkdir()
        (tmp_path / "real" / "below" / "v.parquet").write_text("x")
        for root in ("real", "name"):
            found = list_documents(str(tmp_path / root), place.holds).documents
            names = [Path(item.uri).relative_to(tmp_path / root).as_posix() for item in found]
            assert names == ["below/v.parquet", "w.parquet"]
        place.clear()
    assert not place.directory.exists()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "v.parquet"
    with Workplace(output) as first:
        with (
            pytest.raises(Refused, match=r"another 'semantik embed' is at work on .*v\.parquet"),
            Workplace(output),
        ):
            pass
        assert first.directory.is_dir()
        first.draft("part").write_text("kept")
    assert first.directory.is_dir()
    with Workplace(output) as later:
        assert later.draft("part").read_text() == "kept"


def test_a_directory_that_was_removed_under_the_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process before removes the directory between our opening and our locking it."""
    import fcntl

    place, real = Workplace(tmp_path / "v.parquet"), fcntl.flock
    removed = []

    def flock(fd: int, how: int) -> None:
        if not removed:
            removed.append(place.directory.rmdir())
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with place:
        assert place.directory.is_dir()
        with pytest.raises(Refused, match="another"), Workplace(tmp_path / "v.parquet"):
            pass


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"is a directory: name a file, such as .*/vectors\.parquet"):
        Workplace(tmp_path)
    with pytest.raises(Exception, match=r"none does not exist: make it"):
        Workplace(tmp_path / "none" / "v.parquet")
