"""Listings and opened documents, from disk and from a filesystem that fsspec makes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from semantik.exceptions import DocumentError, NotFound, SemantikError
from semantik.sources import Listed, list_source, normalize, open_source, visible


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/srv/documents/", "/srv/documents"),
        ("//srv/./documents/../documents", "/srv/documents"),
        ("file:///srv/a%20b", "/srv/a b"),
        ("s3://bucket/folder/", "s3://bucket/folder"),
        ("s3://bucket", "s3://bucket"),
        ("local:///srv/a/", "/srv/a"),
        ("file://localhost/srv/a", "/srv/a"),
        ("memory:///", "memory://"),
        ("memory:///bucket/", "memory:///bucket"),
        ("s3://bucket/a#b/", "s3://bucket/a#b"),
    ],
)
def test_a_source_has_one_name(given: str, kept: str) -> None:
    assert normalize(given) == kept


@pytest.mark.parametrize("given", ["documents", "./documents", "", "~/documents", "/srv/\0", "/srv/\udce9"])
def test_what_names_no_source_on_every_host_is_refused(given: str) -> None:
    with pytest.raises(NotFound):
        normalize(given)


@pytest.mark.parametrize("given", ["file://data/docs", "local://data/docs"])
def test_a_file_url_with_a_host_is_refused_and_not_read_as_its_path(given: str) -> None:
    with pytest.raises(NotFound, match="names the host 'data'"):
        normalize(given)


def listing(uri: object) -> dict[str, Listed]:
    return {found.uri: found for found in list_source(str(uri))}


def test_a_listing_has_every_regular_file(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.txt").write_text("abc")
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "link.txt").symlink_to(tmp_path / "deep" / "er" / "a.txt")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    found = listing(tmp_path)
    documents = {os.path.relpath(uri, tmp_path) for uri, item in found.items() if item.error is None}
    assert documents == {"deep/er/a.txt", ".hidden", "link.txt"}
    document = found[str(tmp_path / "deep" / "er" / "a.txt")]
    modified = (tmp_path / "deep" / "er" / "a.txt").stat().st_mtime_ns
    assert (document.size, document.version, document.error) == (3, str(modified), None)


def test_what_is_no_file_is_listed_with_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "below" / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        found = listing(tmp_path)
    assert {os.path.relpath(uri, tmp_path): item.error for uri, item in found.items()} == {
        "below/loop": "is a link to a directory",
        "below/fifo": "is a FIFO",
        "dangling": "is a link to no file",
        "socket": "is a socket",
    }
    for item in found.values():
        assert (item.size, item.version, item.no_document, item.incomplete) == (None, None, True, False)


def test_a_single_file_is_its_own_listing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    assert list(listing(tmp_path / "a.txt")) == [str(tmp_path / "a.txt")]


def test_a_name_that_is_not_utf8_is_listed_with_the_reason(tmp_path: Path) -> None:
    os.close(os.open(os.fsencode(tmp_path) + b"/caf\xe9", os.O_CREAT | os.O_WRONLY))
    ((uri, found),) = listing(tmp_path).items()
    assert uri.endswith("/caf\\xe9")
    assert found.error and "UTF-8" in found.error


def test_a_directory_that_vanishes_or_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "gone").mkdir()
    (tmp_path / "a.txt").write_text("abc")
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        if path.endswith("gone"):
            raise FileNotFoundError(2, "No such file or directory", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = listing(tmp_path)
    assert {Path(uri).name for uri in found} == {"a.txt", "locked"}
    locked = found[str(tmp_path / "locked")]
    assert locked.incomplete and locked.error == "cannot be read: Permission denied"


def test_a_root_that_is_not_there_or_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound, match="is the share mounted"):
        listing(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotFound, match="neither"):
        listing(tmp_path / "fifo")

    def refused(path: str) -> Any:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(SemantikError, match="semantik-svc"):
        listing(tmp_path)


def descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_a_listing_holds_no_more_than_its_depth(tmp_path: Path) -> None:
    for at in range(50):
        (tmp_path / f"d{at}").mkdir()
        (tmp_path / f"d{at}" / "a.txt").write_text("")
    before = descriptors()
    running = list_source(str(tmp_path))
    next(running)
    assert descriptors() - before <= 3
    running.close()  # type: ignore[attr-defined]
    assert descriptors() <= before


def test_opening_takes_regular_files_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abc")
    descriptor = open_source(str(tmp_path / "a.txt"))
    assert os.read(descriptor, 10) == b"abc"
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)
    os.mkfifo(tmp_path / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(DocumentError, match="no regular file"):
            open_source(str(tmp_path / name))
    for name in ("nowhere", "a.txt/below"):
        with pytest.raises(FileNotFoundError):
            open_source(str(tmp_path / name))
    with pytest.raises(DocumentError, match="SEMANTIK_DOCUMENT_MAX_MB"):
        open_source(str(tmp_path / "a.txt"), most_bytes=2)


def test_a_link_to_what_this_host_lacks_has_not_vanished(tmp_path: Path) -> None:
    (tmp_path / "link.txt").symlink_to(tmp_path / "other-share" / "a.txt")
    with pytest.raises(DocumentError, match="link to what this host does not have"):
        open_source(str(tmp_path / "link.txt"))


@pytest.mark.parametrize("target", ["/etc/passwd", "/proc/self/environ"])
def test_a_link_out_to_the_system_is_refused_and_leaves_nothing_open(tmp_path: Path, target: str) -> None:
    (tmp_path / "link.txt").symlink_to(target)
    (tmp_path / "a.txt").write_text("abc")
    (tmp_path / "within.txt").symlink_to(tmp_path / "a.txt")
    before = descriptors()
    with pytest.raises(DocumentError, match="holds no documents"):
        open_source(str(tmp_path / "link.txt"))
    assert descriptors() == before
    os.close(open_source(str(tmp_path / "within.txt")))


def test_an_unmounted_share_is_not_visible(tmp_path: Path) -> None:
    assert not visible(str(tmp_path)), "an empty directory: what remains of a mountpoint"
    assert not visible(str(tmp_path / "nowhere"))
    (tmp_path / "a.txt").write_text("")
    assert visible(str(tmp_path))
    assert visible(str(tmp_path / "a.txt"))


@pytest.fixture
def bucket() -> Iterator[str]:
    import fsspec

    filesystem = fsspec.filesystem("memory")
    filesystem.pipe({"/bucket/a.txt": b"abc", "/bucket/deep/b.txt": b"defg"})
    yield "memory://bucket"
    filesystem.rm("/bucket", recursive=True)


def test_a_store_is_listed_and_fetched(bucket: str) -> None:
    found = listing(bucket)
    assert {uri: document.size for uri, document in found.items()} == {
        "memory://bucket/a.txt": 3,
        "memory://bucket/deep/b.txt": 4,
    }
    assert all(document.version for document in found.values())
    descriptor = open_source("memory://bucket/deep/b.txt")
    assert os.read(descriptor, 10) == b"defg"
    os.close(descriptor)
    with pytest.raises(DocumentError, match="SEMANTIK_DOCUMENT_MAX_MB"):
        open_source("memory://bucket/deep/b.txt", most_bytes=3)
    with pytest.raises(FileNotFoundError):
        open_source("memory://bucket/c.txt")
    with pytest.raises(NotFound):
        listing("memory://elsewhere")


@pytest.mark.parametrize("root", ["memory://bucket", "memory://bucket/c::d", "memory:///bucket", "memory://"])
def test_a_key_with_two_colons_is_itself_and_no_chain(bucket: str, root: str) -> None:
    import fsspec

    fsspec.filesystem("memory").pipe({"/bucket/c::d/memory::e.txt": b"hij"})
    (uri,) = [uri for uri in listing(root) if uri.endswith("/c::d/memory::e.txt")]
    assert uri.startswith(f"{root.rstrip('/')}/")
    descriptor = open_source(uri)
    assert os.read(descriptor, 10) == b"hij"
    os.close(descriptor)


def test_a_scheme_that_nothing_reads_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nosuch"):
        listing("nosuch://bucket/folder")


@pytest.mark.parametrize("uri", ["/", "/etc", "/etc/ssl", "file:///proc/self", "/srv/../root"])
def test_the_hosts_own_files_are_no_source(uri: str) -> None:
    with pytest.raises(NotFound, match="holds no documents"):
        normalize(uri)


def test_a_link_to_the_hosts_own_files_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(NotFound, match="holds no documents"):
        normalize(str(tmp_path / "link"))


@pytest.mark.parametrize("uri", ["s3://", "s3:///prefix", "ftp://"])
def test_a_url_without_bucket_or_host_is_refused(uri: str) -> None:
    with pytest.raises(NotFound, match="names no bucket or host"):
        normalize(uri)


def test_a_listing_that_breaks_off_says_so_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_args: object, **_options: object) -> None:
        raise ValueError("Cannot crawl\nall of it")

    MemoryFileSystem().pipe("/broken/a.txt", b"a")
    monkeypatch.setattr(MemoryFileSystem, "walk", fetched)
    with pytest.raises(SemantikError, match="listing memory://broken broke off: Cannot crawl all of it"):
        list(list_source("memory://broken"))
