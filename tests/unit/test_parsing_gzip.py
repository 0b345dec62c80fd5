"""gzip: what is inside counts, and a bomb, a cut or junk costs the document."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from semantik.exceptions import DocumentError
from semantik.parser import ParserClient
from semantik.parsing import limits, parse
from semantik.parsing.gzip import unwrap
from semantik.settings import Settings

PAGE = b"# Title\n\nSome words.\n"


def test_the_document_inside_gives_kind_and_sections(make_pdf: Callable[..., bytes]) -> None:
    kind, text = parse(gzip.compress(PAGE), "notes.md.gz")
    assert (kind, text.text, text.sections) == ("markdown", PAGE.decode(), [(0, "Title")])
    kind, text = parse(gzip.compress(make_pdf(["One"])), "anything")
    assert (kind, text.sections) == ("pdf", [(0, "page 1")])


@pytest.mark.parametrize(
    ("name", "stored", "inner"),
    [
        ("a.csv.gz", "b.md", "a.csv"),
        ("A.TXT.GZ", None, "A.TXT"),
        ("backup.tgz", None, "backup.tar"),
        ("blob", "table.csv", "table.csv"),
        ("blob", "/home/ann/table.csv", "table.csv"),
        ("blob", None, "blob"),
    ],
)
def test_the_inner_name(name: str, stored: str | None, inner: str, tmp_path: Path) -> None:
    data = gzip.compress(PAGE)
    if stored:  # flag FNAME, RFC 1952
        data = data[:3] + b"\x08" + data[4:10] + stored.encode() + b"\0" + data[10:]
    assert unwrap(data, name) == (PAGE, inner)


def test_members_follow_each_other_and_zeros_pad() -> None:
    data = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two") + b"\0" * 700
    assert parse(data, "a.gz")[1].text == "one two"


def test_one_gzip_in_another() -> None:
    assert parse(gzip.compress(gzip.compress(PAGE)), "a.md.gz.gz")[0] == "markdown"
    data = PAGE
    for _ in range(limits.MAX_DEPTH + 1):
        data = gzip.compress(data)
    with pytest.raises(DocumentError, match="nested more than"):
        parse(data, "a.gz")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(PAGE * 99, mtime=0)[:-20], "broken gzip: it is cut off"),
        (b"\x1f\x8b", "broken gzip: it is cut off"),
        (b"\x1f\x8b\x08\x00" + b"\xff" * 40, "broken gzip: Error"),
        (gzip.compress(PAGE, mtime=0) + b"tail", "something else stands behind"),
        (gzip.compress(PAGE, mtime=0)[:-6] + b"wrong!", "broken gzip: .*incorrect"),
        (gzip.compress(b"\x7fELF", mtime=0), "unsupported type: ELF program"),
    ],
)
def test_what_cannot_be_read(data: bytes, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        parse(data, "a.gz")


def bomb(megabytes: int) -> bytes:
    """`megabytes` of spaces in gzip, a thousand times smaller."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join([packer.compress(b" " * 2**20) for _ in range(megabytes)]) + packer.flush()


def test_a_bomb_is_refused_before_it_takes_memory(
    engine_settings: Settings, tmp_path: Path, descriptor: Callable[[Path], int]
) -> None:
    path, good = tmp_path / "bomb.txt.gz", tmp_path / "good.md.gz"
    path.write_bytes(bomb(300))
    good.write_bytes(gzip.compress(PAGE))
    with ParserClient(replace(engine_settings, parse_memory_mb=256)) as client:
        with pytest.raises(DocumentError, match="bomb"):
            client.parse(descriptor(path), path.name)
        pid = client.pid
        assert client.parse(descriptor(good), good.name).kind == "markdown"
        assert client.pid == pid
