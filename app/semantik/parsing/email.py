"""Email (EML, mbox): headers that people read, the text, then what is attached, each a section.

Read by the standard library under its older policy (compat32): the newer one parses addresses and parameters
into trees, and raises or recurses without end on headers that spam and old programs write.
"""

from __future__ import annotations

import email
import email.errors
import re
from collections.abc import Iterable, Iterator
from email.header import decode_header
from email.message import Message

from semantik.exceptions import DocumentError
from semantik.parsing import html, limits
from semantik.parsing.text import Text, decode

_HEADERS = ("Subject", "From", "To", "Cc", "Date")
_LABEL_CHARACTERS = 200
_HEADER_CHARACTERS = 2000
_NOTES = 5

# A line of an mbox that starts a message: sender and time, the year last. A sentence may end in a year, too.
_MBOX = re.compile(rb"^From [^\n]*\b\d{1,2}:\d\d(?::\d\d)?\b[^\n]{0,40}\b\d{4}\r?\n", re.MULTILINE)
_HEADER = re.compile(rb"([!-9;-~]{1,80}):[^\n]*\n(?:[ \t][^\n]*\n)*")
# Headers that mail has and other text with "Name: value" lines has not; two of them make a mail.
_TELLING = frozenset(
    b"from received return-path message-id subject mime-version date to delivered-to dkim-signature".split()
)
_SENT = frozenset(b"from received return-path message-id".split())

# Signatures, and what mail programs put beside the text.
_UNREAD = frozenset(
    [
        "application/pgp-signature",
        "application/pkcs7-signature",
        "application/x-pkcs7-signature",
        "application/ms-tnef",
        "application/pgp-encrypted",
    ]
)
_MEDIA = frozenset(("image", "audio", "video", "font"))

# What libraries raise on a broken document; the parser takes the same ones for the document's fault.
_BROKEN = (DocumentError, ValueError, RecursionError, LookupError, OSError, ArithmeticError, RuntimeError)


def looks_like_email(head: bytes) -> bool:
    """Say whether a document that starts with `head` is a mail or an mbox."""
    start = first.end() if (first := _MBOX.match(head)) else 0
    names = set()
    while header := _HEADER.match(head, start):
        names.add(header[1].lower())
        start = header.end()
    # The headers end in an empty line, or reach to the end of what is seen.
    ended = head[start : start + 2].startswith((b"\n", b"\r\n")) or b"\n" not in head[start:]
    return ended and len(names & _TELLING) >= (1 if first else 2) and bool(names & _SENT)


def parse(data: bytes) -> Text:
    """Return headers, text and attachments of a mail, or of all mails of an mbox.

    Of a text in several forms the plain one is read. A section starts at each mail (in another it is called
    "attached message: SUBJECT") and at each attachment, by its name; the note names attachments that cannot
    be read. Raises DocumentError when the parts are nested too deep to read.
    """
    reader = _Reader()
    for message in _messages(data):
        reader.mail(message, "")
    text = "\n\n".join(reader.parts)
    return Text(text, reader.sections, reader.note if text else reader.note or "no text")


def _messages(data: bytes) -> Iterator[Message]:
    starts = list(_MBOX.finditer(data)) if data.startswith(b"From ") else []
    if not starts:
        yield _message(data)
    for index, start in enumerate(starts):
        end = starts[index + 1].start() if index + 1 < len(starts) else len(data)
        yield _message(data[start.end() : end])


def _message(data: bytes) -> Message:
    try:
        return email.message_from_bytes(data.removeprefix(b"\xef\xbb\xbf"))
    except RecursionError as error:
        raise DocumentError("broken email: its parts are nested too deep") from error


class _Reader:
    def __init__(self) -> None:
        self.parts: list[str] = []
        self.sections: list[tuple[int, str]] = []
        self._length = 0
        self._unread: list[str] = []
        self._attachments = 0

    @property
    def note(self) -> str | None:
        """Which attachments were not read, and why."""
        if not self._unread:
            return None
        rest = f" and {len(self._unread) - _NOTES} more" if len(self._unread) > _NOTES else ""
        return "not read: " + "; ".join(self._unread[:_NOTES]) + rest

    def mail(self, message: Message, label: str) -> None:
        """Read a mail; `label` says what to put in front of its subject."""
        found = {name: _header(message, name) for name in _HEADERS}
        subject = found["Subject"] or "(no subject)"
        lines = [f"{name}: {value}" for name, value in found.items() if value]
        self._add("\n".join(lines), f"{label}{subject}")
        self._part(message, body=True)

    def _add(self, text: str, label: str = "", sections: Iterable[tuple[int, str]] = ()) -> None:
        if not text or text.isspace():
            return
        start = self._length + (2 if self.parts else 0)
        if label:
            self.sections.append((start, label[:_LABEL_CHARACTERS]))
        for offset, inner in sections:
            place = f"{label}, {inner}" if label else inner
            self.sections.append((start + offset, place[:_LABEL_CHARACTERS]))
        text = text.rstrip()
        self.parts.append(text)
        self._length = start + len(text)

    def _part(self, part: Message, *, body: bool) -> None:
        """Read a part; `body` is false for other forms of a text that is read already."""
        kind = part.get_content_type()
        held = part.get_payload()
        parts = [inner for inner in held if isinstance(inner, Message)] if isinstance(held, list) else None
        if kind == "multipart/alternative" and parts is not None:
            best = _best(parts)
            for other in parts:
                self._part(other, body=body and other is best)
        elif kind == "multipart/encrypted":
            self._unread.append("encrypted message")
        elif kind == "message/rfc822" and parts is not None:
            self._attached_mails(parts)
        elif kind.startswith("message/") and parts is not None:  # the report of a mail that came back
            for block in parts:
                self._add("\n".join(f"{name}: {_words(value)}" for name, value in block.raw_items()))
        elif parts is not None:
            for other in parts:
                self._part(other, body=body)
        elif kind in ("text/plain", "text/html") and part.get_content_disposition() != "attachment":
            if body:
                self._text(part, kind)
        else:
            self._attachment(part)

    def _attached_mails(self, mails: list[Message]) -> None:
        for mail in mails:
            subject = _header(mail, "Subject") or "(no subject)"
            try:
                with limits.inner(subject):
                    self.mail(mail, "attached message: ")
            except DocumentError as error:
                self._unread.append(str(error))

    def _text(self, part: Message, kind: str) -> None:
        text = decode(_content(part), part.get_content_charset())
        if kind == "text/plain":
            if str(part.get_param("format")).lower() == "flowed":
                text = re.sub(r"(?<!\n--) \n(?![>\n])", " ", text)  # RFC 3676
            self._add(text)
            return
        # Decoded by what the mail says; the mark tells the reader of HTML so.
        page = html.parse(b"\xef\xbb\xbf" + text.encode("utf-8", "replace"))
        self._add(page.text, "", page.sections)

    def _attachment(self, part: Message) -> None:
        kind = part.get_content_type()
        if kind in _UNREAD or (
            part.get_content_maintype() in _MEDIA and part.get_content_disposition() != "attachment"
        ):
            return
        self._attachments += 1
        name = _words(part.get_filename() or "") or f"attachment {self._attachments}"
        content = _content(part)
        if part.get_content_maintype() == "text" and part.get_content_charset():
            text = decode(content, part.get_content_charset())
            content = b"\xef\xbb\xbf" + text.encode("utf-8", "replace")
        from semantik.parsing import parse_inner

        try:
            found = parse_inner(content, name)[1]
        except _BROKEN as error:
            self._unread.append(f"{name}: {error}")
            return
        self._add(found.text, name, found.sections)
        if found.note:
            self._unread.append(f"{name}: {found.note}")


def _best(forms: list[Message]) -> Message | None:
    """Return the form of a text to read: the plain one if it has words, else the last, the richest."""
    for form in forms:
        if form.get_content_type() == "text/plain" and _content(form).strip():
            return form
    texts = [form for form in forms if form.is_multipart() or form.get_content_maintype() == "text"]
    html_first = sorted(texts, key=lambda form: form.is_multipart() or form.get_content_subtype() == "html")
    return html_first[-1] if html_first else None


def _content(part: Message) -> bytes:
    content = part.get_payload(decode=True)
    return content if isinstance(content, bytes) else b""


def _header(message: Message, name: str) -> str:
    return next((_words(value) for key, value in message.raw_items() if key.lower() == name.lower()), "")


def _words(value: str) -> str:
    """Return a header's value as a line of text: encoded words (RFC 2047) and bare bytes decoded."""
    # Bare bytes came as surrogates.
    value = decode(value[:_HEADER_CHARACTERS].encode("utf-8", "surrogateescape"))
    try:
        pieces = decode_header(value)
    except (ValueError, email.errors.MessageError):
        pieces = [(value, None)]
    return " ".join("".join(_piece(piece, charset) for piece, charset in pieces).split())


def _piece(piece: str | bytes, charset: str | None) -> str:
    if isinstance(piece, str):
        return piece
    # What stands between encoded words comes back in the encoding of Python's literals.
    return decode(piece, charset) if charset else piece.decode("raw-unicode-escape", "replace")
