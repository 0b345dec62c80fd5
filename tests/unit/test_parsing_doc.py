"""Word before 2007, on documents written here byte by byte after [MS-DOC] and [MS-CFB]."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest

from semantik.exceptions import DocumentError
from semantik.parsing import kind_of, limits, parse
from semantik.parsing.text import Text

SECTOR = 512
FREE, END, FAT = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD
TEXT_START = 1024
IN_TABLE, ROW_END = b"\x16\x24\x01", b"\x17\x24\x01"
INNER_CELL, INNER_ROW = b"\x4b\x24\x01", b"\x4c\x24\x01"
VANISH, DELETED, BOLD = b"\x3c\x08\x01", b"\x00\x08\x01", b"\x35\x08\x01"


def compound(streams: dict[str, bytes]) -> bytes:
    """Return a compound file with these streams in its root, each padded to a size that needs no MiniFAT."""
    fat, body, entries = [FAT, END], b"", []
    for name, content in streams.items():
        content = content.ljust(4096, b"\0")
        start, sectors = len(fat), -(-len(content) // SECTOR)
        fat += [*range(start + 1, start + sectors), END]
        body += content.ljust(sectors * SECTOR, b"\0")
        entries.append((name, 2, start, len(content)))
    assert len(fat) <= SECTOR // 4
    assert len(entries) <= 3
    directory = b""
    for index, (name, kind, start, size) in enumerate([("Root Entry", 5, END, 0), *entries]):
        title = name.encode("utf-16-le") + b"\0\0"
        right = index + 1 if 0 < index < len(entries) else FREE
        child = 1 if kind == 5 and entries else FREE
        directory += title.ljust(64, b"\0") + struct.pack("<HBB3I", len(title), kind, 1, FREE, right, child)
        directory += b"\0" * 36 + struct.pack("<IQ", start, size)
    header = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 16 + struct.pack("<5H", 0x3E, 3, 0xFFFE, 9, 6)
    header += b"\0" * 6 + struct.pack("<9I", 0, 1, 1, 0, 4096, END, 0, END, 0) + struct.pack("<I", 0)
    table = struct.pack(f"<{len(fat)}I", *fat).ljust(SECTOR, b"\xff")
    return header.ljust(SECTOR, b"\xff") + table + directory.ljust(SECTOR, b"\0") + body


def fkp(runs: list[tuple[int, bytes]], start: int, entry: int) -> bytes:
    """Return a page of formatting: for each run its end and what stands for it, b"" for nothing."""
    places, tail, offset = b"", b"", SECTOR - 2
    for _, content in runs:
        offset = offset - len(content) & ~1 if content else offset
        places += bytes([offset // 2 if content else 0]) + b"\0" * (entry - 1)
        tail = content.ljust(SECTOR - 1 - offset - len(tail), b"\0") + tail if content else tail
    head = struct.pack(f"<{len(runs) + 1}I", start, *(end for end, _ in runs)) + places
    return head + b"\0" * (SECTOR - 1 - len(head) - len(tail)) + tail + bytes([len(runs)])


def papx(style: int, modifiers: bytes = b"") -> bytes:
    content = struct.pack("<H", style) + modifiers
    return bytes([0, len(content) // 2 + len(content) % 2]) + content.ljust(-(-len(content) // 2) * 2, b"\0")


def word(
    pieces: Iterable[tuple[str, str]],
    *,
    lengths: tuple[int, ...] = (),
    paragraphs: dict[int, bytes] | None = None,
    characters: list[tuple[str, bytes]] = [],  # noqa: B006 - only read
    flags: int = 0,
) -> bytes:
    """Return a Word 97 document of pieces (text, "cp1252" or "utf-16-le").

    `lengths` are those of its parts, by default one; `paragraphs` are the PAPX of paragraphs by their number,
    `characters` the modifiers of words that stand in one piece.
    """
    pieces = list(pieces)
    text = b""
    clx, positions, ends, marks = b"", [0], [], []
    for words, codec in pieces:
        start = TEXT_START + len(text)
        raw = words.encode(codec)
        width = 1 if codec == "cp1252" else 2
        for index, character in enumerate(words):
            if character in "\r\x07\x0c":
                ends.append(start + len(words[: index + 1].encode(codec)))
        for marked, modifiers in characters:
            if marked in words:
                first = start + len(words[: words.index(marked)].encode(codec))
                marks.append((first, first + len(marked) * width, modifiers))
        clx += struct.pack("<HIH", 0, start * 2 | 0x40000000 if width == 1 else start, 0)
        positions.append(positions[-1] + len(raw) // width)
        text += raw
    table = b"\x01\x02\x00\xff\xff" + b"\x02" + struct.pack("<I", 4 * len(positions) + len(clx))
    table += struct.pack(f"<{len(positions)}I", *positions) + clx
    pages = -(-(TEXT_START + len(text)) // SECTOR)
    runs = [(end, (paragraphs or {}).get(index, b"")) for index, end in enumerate(ends)]
    stream = bytearray(TEXT_START) + text
    stream = stream.ljust(pages * SECTOR, b"\0") + fkp(runs, TEXT_START, 13)
    hidden, last = [], TEXT_START
    for first, end, modifiers in sorted(marks):
        hidden += [(first, b""), (end, bytes([len(modifiers)]) + modifiers)]
        last = end
    stream += fkp([*hidden, (max(last, TEXT_START) + 1, b"")], TEXT_START, 1)
    struct.pack_into("<HH", stream, 0, 0xA5EC, 0xC1)
    struct.pack_into("<H", stream, 0x0A, 0x1200 | flags)
    struct.pack_into("<7i", stream, 0x4C, *(lengths or (positions[-1],)), *[0] * (7 - (len(lengths) or 1)))
    struct.pack_into("<2I", stream, 0x1A2, 0, len(table))
    for field, page in ((0x102, pages), (0xFA, pages + 1)):
        struct.pack_into("<2I", stream, field, len(table), 12)
        table += struct.pack("<3I", TEXT_START, TEXT_START + len(text), page)
    return compound({"WordDocument": bytes(stream), "1Table": table})


def read(data: bytes) -> Text:
    kind, text = parse(data, "a.doc")
    assert kind == "doc"
    return text


def test_pieces_of_both_widths_in_the_order_of_the_table() -> None:
    text = read(
        word([("Grüße \u2013 ", "cp1252"), ("Привет 漢字 😀\r", "utf-16-le"), ("end\x0bline\r", "cp1252")])
    )
    assert text == Text("Grüße \u2013 Привет 漢字 😀\n\nend\nline", [], None)


def test_headings_are_sections() -> None:
    words = "Top\rtext\rSub  \x1fpart\rmore\rout\rnone\r"
    outline = papx(20, b"\x40\x26\x01")
    body = papx(1, b"\x40\x26\x09")
    text = read(word([(words, "cp1252")], paragraphs={0: papx(1), 2: papx(2), 4: outline, 5: body}))
    assert text.text == "Top\n\ntext\n\nSub  part\n\nmore\n\nout\n\nnone"
    assert [(text.text[offset : offset + 3], label) for offset, label in text.sections] == [
        ("Top", "Top"),
        ("Sub", "Sub part"),
        ("out", "out"),
    ]


def test_headings_in_characters_of_two_units() -> None:
    text = read(word([("😀😀\rHead\rtext\r", "utf-16-le")], paragraphs={1: papx(1)}))
    assert text.sections == [(4, "Head")]


def test_tables() -> None:
    words = "a\x07\x07c1\rc2\x07\x07d\x07e\x07f\x07\x07x\ry\r\rz\x07\x07after\r"
    cell, row = papx(0, IN_TABLE), papx(0, IN_TABLE + ROW_END)
    kinds = [cell, cell, cell, cell, row, cell, cell, cell, row]
    kinds += [papx(0, IN_TABLE + INNER_CELL)] * 2 + [papx(0, IN_TABLE + INNER_ROW), cell, row, papx(0)]
    text = read(word([(words, "cp1252")], paragraphs=dict(enumerate(kinds))))
    assert text.text == "a\t\tc1\nc2\nd\te\tf\nx\ty\nz\n\nafter"


def test_fields_show_their_results() -> None:
    words = "see \x13 HYPERLINK \x13 REF x \x14no\x15 \x14the \x13 PAGE \x147\x15 page\x15.\x13 XE y \x15\r"
    assert read(word([(words[:9], "cp1252"), (words[9:], "utf-16-le")])).text == "see the 7 page."
    # Without an end it must not hide what follows.
    assert "all of the rest" in read(word([("a\x13 REF all of the rest\r", "cp1252")])).text


@pytest.mark.parametrize("codec", ["cp1252", "utf-16-le"])
def test_hidden_and_deleted_text_is_left_out(codec: str) -> None:
    marked = [("bold", BOLD), (" hidden\r", VANISH), ("gone ", DELETED)]
    text = read(word([("a bold hidden\rgone word\r", codec)], characters=marked))
    assert text.text == "a bold\n\nword"


def test_marks_and_pictures_are_no_text() -> None:
    assert read(word([("a\x01\x08b\x02 non\x1ebreaking op\x1ftional\x0cnew\r", "cp1252")])).text == (
        "ab non\u2011breaking optional\n\nnew"
    )


def test_parts_behind_the_text_are_sections() -> None:
    parts = [
        "body\x02\r",
        "\x02 a note\r",
        "page header\r",
        "",
        "\x05remark\r",
        "\x02 at the end\r",
        "boxed\r",
    ]
    lengths = tuple(len(part) for part in parts)
    text = read(word([("".join(parts), "cp1252")], lengths=lengths))
    assert text.text == "body\n\n a note\n\nremark\n\n at the end\n\nboxed"
    assert [label for _, label in text.sections] == ["footnotes", "comments", "endnotes", "text boxes"]


def test_a_document_without_words_says_so() -> None:
    assert read(word([("\x01\r", "cp1252")])) == Text("", [], "no text")


def test_an_encrypted_document_is_refused() -> None:
    with pytest.raises(DocumentError, match="encrypted Word document: a password"):
        parse(word([("secret\r", "cp1252")], flags=0x0100), "a.doc")


def word_6(text: bytes, *, language: int = 0x409, environment: int = 0, flags: int = 0) -> bytes:
    stream = bytearray(768) + text
    struct.pack_into("<4HH", stream, 0, 0xA5DC, 0x65, 0, language, 0)
    struct.pack_into("<H", stream, 0x0A, flags)
    stream[0x12] = environment
    struct.pack_into("<2I", stream, 0x18, 768, len(stream))
    struct.pack_into("<i", stream, 0x34, len(text))
    return compound({"WordDocument": bytes(stream)})


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (word_6("Größe\ra\x07b\x07\x07end\r".encode("cp1252")), "Größe\n\na\tb\nend"),
        (word_6("Żółty liść\r".encode("cp1250"), language=0x415), "Żółty liść"),
        (word_6("déjà vu\r".encode("mac_roman"), language=0x40C, environment=1), "déjà vu"),
        # The language of the program is English, that of the text is not.
        (word_6("Ключи от архива лежат в кабинете на втором этаже.\r".encode("cp1251")), None),
    ],
)
def test_word_6_and_95(data: bytes, text: str | None) -> None:
    assert read(data).text == (text or "Ключи от архива лежат в кабинете на втором этаже.")


def test_a_document_that_is_cut_off_says_so_or_is_refused() -> None:
    data = word([("word " * 200 + "\r", "cp1252")])
    stream = data.index(b"word word")
    refused = 0
    for length in range(8, len(data), 97):
        try:
            text = parse(data[:length], "a.doc")[1]
        except DocumentError as error:
            assert "broken" in str(error) or "unsupported" in str(error)
            refused += 1
        else:
            assert text.note is not None or length > stream + 1000
    assert refused > 10


def test_every_damaged_byte_costs_no_more_than_the_document() -> None:
    data = word(
        [("Head\rgone \x13 REF \x14x\x15 a\x07\x07\r", "cp1252"), ("漢字\r", "utf-16-le")],
        paragraphs={0: papx(1), 1: papx(0, IN_TABLE + ROW_END)},
        characters=[("gone", DELETED)],
    )
    read_well = 0
    for position in range(0, len(data), 3):
        for byte in (0x00, 0xFF):
            damaged = data[:position] + bytes([byte]) + data[position + 1 :]
            if damaged[:8] != data[:8]:
                continue
            try:
                read_well += "Head" in parse(damaged, "a.doc")[1].text
            except DocumentError:
                continue
    assert read_well > len(data) // 3


def test_pieces_that_tell_of_the_same_text_are_a_bomb() -> None:
    count = 2_000
    words = "word " * 4000
    stream = bytearray(TEXT_START) + words.encode()
    struct.pack_into("<HH", stream, 0, 0xA5EC, 0xC1)
    struct.pack_into("<H", stream, 0x0A, 0x1200)
    size = len(words)
    struct.pack_into("<i", stream, 0x4C, size * count)
    positions = struct.pack(f"<{count + 1}I", *(size * index for index in range(count + 1)))
    table = positions + struct.pack("<HIH", 0, TEXT_START * 2 | 0x40000000, 0) * count
    table = b"\x02" + struct.pack("<I", len(table)) + table
    struct.pack_into("<2I", stream, 0x1A2, 0, len(table))
    data = compound({"WordDocument": bytes(stream), "1Table": table})
    assert size * count > max(limits.UNPACKED_FREE, limits.MAX_RATIO * len(data))
    with pytest.raises(DocumentError, match="bomb"):
        parse(data, "a.doc")


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        ("PowerPoint Document", "old PowerPoint presentation; save it as .pptx"),
        ("EncryptedPackage", "encrypted Office document"),
        ("__properties_version1.0", "Outlook message; save it as .eml"),
        ("Anything", "unsupported type: OLE compound file"),
    ],
)
def test_other_compound_files_are_named(stream: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason):
        parse(compound({stream: b"x"}), "a.doc")


def test_an_old_workbook_is_a_workbook() -> None:
    assert kind_of(compound({"Workbook": b"x"}), "a.bin") == "xlsx"


def test_what_is_named_doc_is_known_by_its_content() -> None:
    assert kind_of(rb"{\rtf1 x}", "a.doc") == "rtf"
    assert kind_of(b"<html><body>x", "a.doc") == "html"
    assert kind_of(b"plain words", "a.doc") == "text"
    with pytest.raises(DocumentError, match="Word 2"):
        kind_of(b"\xdb\xa5-\x00" + b"\0" * 100, "a.doc")
