"""Plain text: find the encoding, decode, keep the rest as it is."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field

#: Enough to guess an encoding from; charset-normalizer tries dozens of them on all that it is given.
_SAMPLE_BYTES = 64 * 1024

# The longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

# Control characters that text does not hold: all but tab, line ends, form feed, backspace and escape; NUL is
# apart.
_CONTROL = bytes(set(range(1, 32)) - set(b"\t\n\r\x0b\x0c\x08\x1b"))
_NOT_ASCII = re.compile("[\x80-\U0010ffff]")


@dataclass(frozen=True)
class Text:
    """Text of a document with its sections: (offset in characters, label), offsets ascending."""

    text: str
    sections: list[tuple[int, str]] = field(default_factory=list)
    note: str | None = None  # what the reader of the job's report should know


def parse(data: bytes) -> Text:
    """Decode `data`; sections are none."""
    return Text(decode(data))


def looks_like_text(data: bytes) -> bool:
    """Say whether `data` reads as text in some encoding, judged by its first 64 KiB."""
    sample = data[:_SAMPLE_BYTES]
    if not sample or _marked(sample) or _utf16_without_mark(sample):
        return True
    # A few stray control characters or NULs are damage; more of them are another kind of file.
    if sample.count(0) > len(sample) // 100:
        return False
    return len(sample) - len(sample.translate(None, _CONTROL)) <= len(sample) // 50


def decode(data: bytes, hint: str | None = None) -> str:
    """Decode by byte order mark, then `hint` (what the document says of itself), UTF-8, or a guess.

    Bytes that are broken in the chosen encoding become U+FFFD. Line ends become "\n".
    """
    text = _decode(data, hint)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _decode(data: bytes, hint: str | None) -> str:
    if mark := _marked(data):
        length, encoding = mark
        return data[length:].decode(encoding, "replace")
    if hint:
        try:
            return data.decode(hint)
        except (LookupError, ValueError):
            pass  # an unknown or a false declaration: the content decides
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    if wide := _utf16_without_mark(data[:_SAMPLE_BYTES]):
        return data.decode(wide, "replace")
    text = data.decode("utf-8", "replace")
    broken = text.count("\ufffd")
    # Damaged UTF-8 has more whole sequences than broken ones; Latin-1 read as UTF-8 has nearly none.
    if sum(1 for _ in _NOT_ASCII.finditer(text)) >= 2 * broken:
        return text
    return data.decode(_guess(data), "replace")


def _marked(data: bytes) -> tuple[int, str] | None:
    return next(((len(mark), name) for mark, name in _MARKS if data.startswith(mark)), None)


def _utf16_without_mark(sample: bytes) -> str | None:
    """Name the UTF-16 that mostly western text without a mark is in: every second byte is NUL."""
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    half = len(sample) // 2
    if half < 4:
        return None
    if odd > 0.7 * half and even < 0.1 * half:
        return "utf-16-le"
    if even > 0.7 * half and odd < 0.1 * half:
        return "utf-16-be"
    return None


def _guess(data: bytes) -> str:
    from charset_normalizer import from_bytes  # imported late: most documents are UTF-8

    # The sample starts at the first byte that is not ASCII, or it might hold nothing to judge by.
    first = next((match.start() for match in re.finditer(rb"[\x80-\xff]", data)), 0)
    start = max(0, first - _SAMPLE_BYTES // 2)
    best = from_bytes(data[start : start + _SAMPLE_BYTES]).best()
    return best.encoding if best is not None else "cp1252"
