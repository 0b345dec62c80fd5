"""Builds the hostile set: what folders hold by accident, and what someone would put there on purpose.

Each entry says what is to become of it. `expected` is an outcome of the report, or "embedded" for a plain
one; `reason` a pattern that the reason must hold.
"""

from __future__ import annotations

import gzip
import io
import os
import random
import socket
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

WORDS = "The quick brown fox jumps over the lazy dog. "


@dataclass(frozen=True)
class Entry:
    """A directory entry and what is to become of it."""

    name: str  # as the report writes it, relative to the set's directory
    expected: frozenset[str]  # of "embedded", "failed", "no document"
    reason: str = ""  # a regular expression; "" for none needed
    note: bool = False  # embedded, and the reason must be there as a remark


def pdf(words: str, *, trailer: str = "") -> bytes:
    """Return a PDF of one page."""
    content = f"BT /F1 12 Tf 72 720 Td ({words}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count 1 /Kids [4 0 R] >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 5 0 R "
        b"/Resources << /Font << /F1 3 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n" % len(content) + content + b"\nendstream",
    ]
    data = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += b"%d 0 obj\n" % number + body + b"\nendobj\n"
    table = len(data)
    data += b"xref\n0 6\n0000000000 65535 f \n"
    data += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    data += f"trailer << /Size 6 /Root 1 0 R {trailer} >>\nstartxref\n{table}\n%%EOF\n".encode()
    return bytes(data)


def docx(before: bytes, blocks: int = 0, after: bytes = b"") -> bytes:
    """Return a DOCX whose document part is `before`, so many MB of one letter, and `after`."""
    main = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    kinds = "http://schemas.openxmlformats.org/package/2006/content-types"
    relations = "http://schemas.openxmlformats.org/package/2006/relationships"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(
            "[Content_Types].xml",
            f'<Types xmlns="{kinds}"><Override PartName="/word/document.xml" ContentType="{main}"/></Types>',
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{relations}">'
            f'<Relationship Id="rId1" Type="{office}" Target="word/document.xml"/></Relationships>',
        )
        with archive.open("word/document.xml", "w") as part:
            part.write(before)
            for _ in range(blocks):
                part.write(b"A" * 2**20)
            part.write(after)
    return made.getvalue()


OPENING = (
    b'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
    b"<w:body><w:p><w:r><w:t>"
)
CLOSING = b"</w:t></w:r></w:p></w:body></w:document>"


def paragraph(text: bytes) -> bytes:
    """Return WordprocessingML with one paragraph."""
    return OPENING + text + CLOSING


def gzip_bomb(megabytes: int) -> bytes:
    """Return gzip of so many megabytes of text, a thousandth of it on the disk."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    block = (WORDS * (2**20 // len(WORDS) + 1)).encode()[: 2**20]
    return b"".join(packer.compress(block) for _ in range(megabytes)) + packer.flush()


def email(depth: int) -> bytes:
    """Return an email that holds an email that holds an email, `depth` levels down."""
    inner = f"From: a@example.org\r\nSubject: innermost\r\n\r\n{WORDS}\r\n".encode()
    for level in range(depth):
        border = f"border{level}".encode()
        inner = (
            f"From: a@example.org\r\nSubject: level {level}\r\nMIME-Version: 1.0\r\n".encode()
            + b'Content-Type: multipart/mixed; boundary="' + border + b'"\r\n\r\n--' + border
            + b"\r\nContent-Type: text/plain\r\n\r\n" + WORDS.encode()
            + b"\r\n--" + border + b"\r\nContent-Type: message/rfc822\r\n\r\n"
            + inner + b"\r\n--" + border + b"--\r\n"
        )  # fmt: skip
    return inner


def one_line(path: Path, megabytes: int) -> None:
    """Write one line of words, without a newline anywhere."""
    block = (WORDS * (2**20 // len(WORDS) + 1)).encode()[: 2**20]
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(block)


EITHER = frozenset({"embedded", "failed"})
EMBEDDED = frozenset({"embedded"})
FAILED = frozenset({"failed"})
NONE = frozenset({"no document"})


def build(root: Path, *, line_megabytes: int) -> tuple[list[Entry], ExitStack]:
    """Fill `root` (a new directory) and return its entries, and what to close when the run is over."""
    root.mkdir()
    noise = random.Random(1).randbytes(20_000)
    encrypted = (
        f"/Encrypt << /Filter /Standard /V 1 /R 2 /O ({'x' * 32}) /U ({'y' * 32}) /P -1 >> "
        f"/ID [({'a' * 16}) ({'a' * 16})]"
    )
    files: list[tuple[str, bytes, frozenset[str], str]] = [
        ("plain.txt", WORDS.encode(), EMBEDDED, ""),
        ("empty.txt", b"", EMBEDDED, "holds no text"),
        ("empty.pdf", b"", EITHER, "."),
        ("empty.docx", b"", EITHER, "."),
        ("random.pdf", noise, FAILED, "not a PDF"),
        ("random.docx", noise, FAILED, "not a DOCX"),
        ("random-with-magic.pdf", b"%PDF-1.7\n" + noise, FAILED, "broken PDF"),
        ("random-with-magic.docx", b"PK\x03\x04" + noise, FAILED, "."),
        ("truncated.pdf", pdf(WORDS)[:300], FAILED, "broken PDF"),
        ("truncated.docx", docx(paragraph(WORDS.encode()))[:-200], FAILED, "."),
        ("encrypted.pdf", pdf(WORDS, trailer=encrypted), FAILED, "encrypted PDF"),
        ("bomb.docx", docx(OPENING, 600, CLOSING), FAILED, "."),
        ("bomb.gz", gzip_bomb(600), FAILED, "."),
        ("deep.html", b"<div>" * 10_000 + WORDS.encode() + b"</div>" * 10_000, EITHER, ""),
        ("deep.docx", docx(paragraph(b"<w:p>" * 10_000 + b"</w:p>" * 10_000)), EITHER, ""),
        ("broken-utf8.txt", WORDS.encode() * 3 + b"\xc3\x28\xa0\xa1 \xf0\x28\x8c\x28\n", EITHER, ""),
        ("lone-surrogates.txt", b"before \xed\xa0\x80 after, and more words \xed\xbf\xbf", EITHER, ""),
        ("utf16-surrogate.txt", b"\xff\xfeb\0e\0f\0o\0r\0e\0 \0\x00\xd8a\0f\0t\0e\0r\0",
         EITHER, ""),
        ("nul.txt", b"words\x00with\x00NUL bytes between them, and more words", EITHER, ""),
        ("only-nul.bin", b"\x00" * 100_000, FAILED, "."),
        ("email-in-email.eml", email(1), EMBEDDED, ""),
        ("email-very-deep.eml", email(200), EITHER, ""),
        ("no-spaces.txt", b"x" * 300_000, EMBEDDED, "without spaces"),
        ("name\nwith a newline.txt", WORDS.encode(), EMBEDDED, ""),
        ("na\u202eme-\x1b[31m.txt", WORDS.encode(), EMBEDDED, ""),
        ("x.gz", gzip.compress(WORDS.encode(), mtime=0), EMBEDDED, ""),
    ]  # fmt: skip
    entries = []
    for name, content, expected, reason in files:
        (root / name).write_bytes(content)
        entries.append(Entry(name, expected, reason, note=bool(reason) and expected == EMBEDDED))
    one_line(root / "one-line.txt", line_megabytes)
    entries.append(Entry("one-line.txt", FAILED, r"more than \S+ MB of"))
    Path(os.fsdecode(os.fsencode(root) + b"/not-utf8-\xff\xfe.txt")).write_bytes(WORDS.encode())
    entries.append(Entry("not-utf8-\\xff\\xfe.txt", FAILED, "not UTF-8: rename it"))
    held = ExitStack()
    entries += _special(root, held)
    return entries, held


def _special(root: Path, held: ExitStack) -> Iterator[Entry]:
    (root / "loop").symlink_to(".")
    (root / "to-itself").symlink_to("to-itself")
    (root / "to-nowhere").symlink_to("missing")
    (root / "to-passwd").symlink_to("/etc/passwd")
    (root / "to-plain").symlink_to("plain.txt")
    os.mkfifo(root / "fifo")
    listening = held.enter_context(socket.socket(socket.AF_UNIX))
    # A path below a long directory does not fit into the address: bind it from there.
    fd = os.open(root, os.O_RDONLY)
    listening.bind(f"/proc/self/fd/{fd}/socket")
    os.close(fd)
    (root / "unreadable.txt").write_text(WORDS)
    (root / "unreadable.txt").chmod(0)
    (root / "unlistable").mkdir()
    (root / "unlistable" / "hidden.txt").write_text(WORDS)
    (root / "unlistable").chmod(0)
    held.callback((root / "unlistable").chmod, 0o700)
    yield Entry("loop", NONE, "link to a directory")
    yield Entry("to-itself", FAILED, "symbolic links")
    yield Entry("to-nowhere", NONE, "link to no file")
    yield Entry("to-passwd", FAILED, "leads to /etc, which holds no documents")
    yield Entry("to-plain", EMBEDDED)
    yield Entry("fifo", NONE, "FIFO")
    yield Entry("socket", NONE, "socket")
    yield Entry("unreadable.txt", FAILED, "Permission denied")
    yield Entry("unlistable", FAILED, "Permission denied")


def changing(root: Path, begun: Path) -> tuple[list[Entry], Callable[[int], None]]:
    """Make files that change while they are read; return them, and the change, to be made again and again.

    `begun` appears just before the command lists the set; reading begins seconds later, with the model.
    """
    # Much to read and little to embed: what is in the comment is no text.
    page = b"<html><body><!-- " + WORDS.encode() * 200_000 + b" --><p>" + WORDS.encode() + b"</p>"
    for name in ("grows.html", "shrinks.html", "is-replaced.html", "goes.html"):
        (root / name).write_bytes(page)

    def change(turn: int) -> None:
        with (root / "grows.html").open("ab") as file:
            file.write(WORDS.encode() if turn < 1_000 else b"")
        os.truncate(root / "shrinks.html", len(page) // 2 if turn % 2 else len(page))
        if turn % 50 == 0:
            draft = root.with_name("draft")
            draft.write_bytes(page + WORDS.encode() * (turn % 3))
            draft.replace(root / "is-replaced.html")
        with suppress(FileNotFoundError):
            if time.time() - begun.stat().st_mtime > 0.5:
                (root / "goes.html").unlink()

    entries = [Entry(name, EITHER) for name in ("grows.html", "shrinks.html", "is-replaced.html")]
    return [*entries, Entry("goes.html", FAILED, "was gone")], change
