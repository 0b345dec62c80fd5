"""Mail: its text and what is attached, by sections; broken parts cost themselves alone."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import pytest

from semantik.exceptions import DocumentError
from semantik.parser import ParserClient
from semantik.parsing import kind_of, limits, parse
from semantik.parsing.text import Text
from semantik.settings import Settings


def message(subject: str = "The keys", text: str | None = "They are in the office.\n") -> EmailMessage:
    mail = EmailMessage()
    mail["Subject"] = subject
    mail["From"] = "Ann <ann@example.org>"
    mail["To"] = "bob@example.org"
    mail["Date"] = "Thu, 5 Mar 2026 10:00:00 +0100"
    if text is not None:
        mail.set_content(text)
    return mail


def read(data: bytes, name: str = "mail.eml") -> Text:
    kind, text = parse(data, name)
    assert kind == "email"
    return text


def sections(text: Text) -> list[tuple[str, str]]:
    """Return (label, the first word behind its offset) for each section."""
    return [(label, text.text[offset:].split(maxsplit=1)[0]) for offset, label in text.sections]


def test_headers_come_first_and_the_subject_is_the_section() -> None:
    text = read(message("Schlüssel für Łódź").as_bytes())
    assert text.text == (
        "Subject: Schlüssel für Łódź\nFrom: Ann <ann@example.org>\nTo: bob@example.org\n"
        "Date: Thu, 05 Mar 2026 10:00:00 +0100\n\nThey are in the office."
    )
    assert text.sections == [(0, "Schlüssel für Łódź")]
    assert text.note is None


@pytest.mark.parametrize(
    ("head", "name", "kind"),
    [
        (b"Received: by a\n\tfor b\nSubject: x\n\ntext", "noname", "email"),
        (b"From: a\r\nTo: b\r\n\r\ntext", "a.txt", "email"),
        (b"From a@b Thu Mar  5 10:00:00 2026\nSubject: x\nFrom: a\n\ntext", "inbox", "email"),
        (b"Just: words\nFrom: here to there\nand on", "a.txt", "text"),
        (b"Name: x\nDate: today\nSubject: y\n\n", "a.txt", "text"),
        (b"no header at all", "a.eml", "email"),
        (b"From here on all is text. Date: none\n", "a.txt", "text"),
    ],
)
def test_a_mail_is_known_by_its_headers_or_its_name(head: bytes, name: str, kind: str) -> None:
    assert kind_of(head, name) == kind


def test_the_plain_form_is_read_unless_it_is_empty() -> None:
    mail = message()
    mail.add_alternative("<h1>Other</h1><p>words", subtype="html")
    assert "Other" not in read(mail.as_bytes()).text
    mail = message(text=" \n")
    mail.add_alternative("<title>T</title><h1>Rich</h1><p>w&ouml;rds", subtype="html")
    text = read(mail.as_bytes())
    assert text.text.endswith("T\n\nRich\n\nwörds")
    assert sections(text) == [("The keys", "Subject:"), ("T", "T"), ("Rich", "Rich")]


def test_attachments_are_sections_of_their_own_kind(make_pdf: Callable[..., bytes]) -> None:
    mail = message()
    mail.add_attachment(
        make_pdf(["First", "Second"]), maintype="application", subtype="pdf", filename="Plan für uns.pdf"
    )
    mail.add_attachment(b"a,b\n1,2\n", maintype="text", subtype="csv", filename="t.csv")
    packed = gzip.compress(b"# Title\n\nwords\n")
    mail.add_attachment(packed, maintype="application", subtype="gzip", filename="n.md.gz")
    text = read(mail.as_bytes())
    assert sections(text) == [
        ("The keys", "Subject:"),
        ("Plan für uns.pdf", "First"),
        ("Plan für uns.pdf, page 1", "First"),
        ("Plan für uns.pdf, page 2", "Second"),
        ("t.csv", "a"),
        ("t.csv, rows 1 to 2: a, b", "a"),
        ("n.md.gz", "#"),
        ("n.md.gz, Title", "#"),
    ]
    assert text.note is None


def test_what_cannot_be_read_is_a_note() -> None:
    mail = message()
    mail.add_attachment(b"\x7fELF\x01", maintype="application", subtype="octet-stream", filename="run")
    mail.add_attachment(b"%PDF-1.4 junk", maintype="application", subtype="pdf", filename="bad.pdf")
    mail.add_attachment(b"fine", maintype="text", subtype="plain", filename="fine.txt")
    text = read(mail.as_bytes())
    assert sections(text)[1:] == [("fine.txt", "fine")]
    assert text.note is not None
    assert text.note.startswith("not read: run: unsupported type: ELF program; bad.pdf: broken PDF")


def test_pictures_in_the_text_are_no_attachments_and_signatures_are_not_read() -> None:
    mail = message()
    mail.add_related(b"\x89PNG\r\n", maintype="image", subtype="png", cid="<logo>")
    mail.add_attachment(b"-----BEGIN", maintype="application", subtype="pgp-signature", filename="s.asc")
    text = read(mail.as_bytes())
    assert text.note is None
    assert len(text.sections) == 1


def test_a_mail_in_a_mail() -> None:
    inner = message("Inner", "inside\n")
    inner.add_attachment(b"deep", maintype="text", subtype="plain", filename="deep.txt")
    mail = message()
    mail.add_attachment(inner)
    mail.add_attachment(b"last", maintype="text", subtype="plain", filename="last.txt")
    text = read(mail.as_bytes())
    assert sections(text) == [
        ("The keys", "Subject:"),
        ("attached message: Inner", "Subject:"),
        ("deep.txt", "deep"),
        ("last.txt", "last"),
    ]


def test_mails_in_mails_have_an_end() -> None:
    mail = message("0", "level 0\n")
    for level in range(1, limits.MAX_DEPTH + 3):
        outer = message(str(level), f"level {level}\n")
        outer.add_attachment(mail)
        mail = outer
    text = read(mail.as_bytes())
    top = limits.MAX_DEPTH + 2
    assert f"level {top - limits.MAX_DEPTH}" in text.text
    assert f"level {top - limits.MAX_DEPTH - 1}" not in text.text
    assert text.note is not None
    assert f"nested more than {limits.MAX_DEPTH}" in text.note


@pytest.mark.parametrize(
    ("data", "words"),
    [
        # An encoding that nobody knows, one that is not true, and none.
        (b"Content-Type: text/plain; charset=x-none\n\n" + "Grüße".encode(), "Grüße"),
        (b"Content-Type: text/plain; charset=us-ascii\n\n" + "Grüße".encode("cp1252"), "Grüße"),
        (b"Content-Type: text/plain; charset=koi8-r\n\n" + "Привет".encode("koi8-r"), "Привет"),
        (b"Content-Type: text/html; charset=koi8-r\n\n<p>" + "Привет".encode("koi8-r"), "Привет"),
        (b"Content-Type: text/plain;\n charset*1*=\n\nwords", "words"),
        (b"Content-Type: multipart/mixed\n\nno boundary, but words", "words"),
        (b"Content-Transfer-Encoding: base64\n\n####", ""),
        (b"Content-Type: text/plain; format=flowed\n\none \nline\n-- \nname", "one line\n-- \nname"),
    ],
)
def test_broken_headers_and_charsets_survive(data: bytes, words: str) -> None:
    text = read(b"From: a\nSubject: s\n" + data)
    assert text.text.startswith("Subject: s\nFrom: a")
    assert text.text.endswith(words)


def test_headers_in_bare_bytes_and_broken_encoded_words() -> None:
    subject = (
        b"Subject: =?utf-8?q?gr=C3=BCn?= =?no-such?b?eA==?= " + "größer".encode() + b" =?utf-8?b?====?=\n"
    )
    text = read(b"From: a\n" + subject + b"\nwords")
    assert text.sections[0][1].startswith("grün")
    assert "größer" in text.sections[0][1]


def test_a_sentence_starts_no_mail() -> None:
    """A line that starts with "From" and ends in a year is text, as is what follows it."""
    mark = b"From a@b.c Mon Jan  1 09:00:00 2024\n"
    box = mark + b"From: a@b.c\nSubject: one\n\nHello\nFrom here in 2023\nLost: no\n"
    text = parse(box, "a.mbox")[1].text
    assert text == "Subject: one\nFrom: a@b.c\n\nHello\nFrom here in 2023\nLost: no"


def test_an_mbox_is_all_its_mails() -> None:
    mark = b"From ann@example.org Thu Mar  5 10:00:00 2026\n"
    data = b"\n".join(mark + message(f"Mail {n}", f"words {n}\n").as_bytes() for n in range(3))
    text = read(data, "inbox")
    assert [label for _, label in text.sections] == ["Mail 0", "Mail 1", "Mail 2"]
    assert text.text.count("words") == 3


def deep_parts(depth: int) -> bytes:
    """A mail whose parts are nested `depth` deep."""
    head = b"From: a\nSubject: s\n"
    for level in range(depth):
        head += b'Content-Type: multipart/mixed; boundary="%d"\n\n--%d\n' % (level, level)
    return head + b"\nbottom\n"


def test_parts_nested_ten_thousand_deep_cost_their_document(
    engine_settings: Settings, tmp_path: Path, descriptor: Callable[[Path], int]
) -> None:
    deep, good = tmp_path / "deep.eml", tmp_path / "good.eml"
    deep.write_bytes(deep_parts(10_000))
    good.write_bytes(message().as_bytes())
    with ParserClient(engine_settings) as client:
        with pytest.raises(DocumentError, match="nested too deep"):
            client.parse(descriptor(deep), deep.name)
        pid = client.pid
        assert "office" in client.parse(descriptor(good), good.name).text
        assert client.pid == pid
