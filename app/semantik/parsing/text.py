"""Plain text: find the encoding, decode, keep the rest as it is."""

from __future__ import annotations

import codecs
import re
import unicodedata
from dataclasses import dataclass, field

#: Enough to judge by.
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
_ASIAN = re.compile("[\n\r -~\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7af\uff00-\uffef]")

# UTF-16's surrogates, each written as three bytes: CESU-8 where they come in pairs, WTF-8 where they do not.
_SURROGATES = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]|\xed[\xa0-\xbf][\x80-\xbf]")

# What documents call an encoding, and the larger one that they are in (WHATWG Encoding, 4.2); by Python's
# names.
_SUPERSETS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}
_NAMES = {"windows-874": "cp874", "iso-8859-8-i": "iso8859-8", "iso-8859-8-e": "iso8859-8"}
# Codecs of Python that no document is in; the first two take time that grows with the square of the length.
_NO_ENCODINGS = frozenset({"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"})


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
    if not sample or _marked(sample):
        return True
    # A few stray control characters or NULs are damage; more of them are another kind of file.
    stray = sample.count(0) <= len(sample) // 100
    if stray and len(sample) - len(sample.translate(None, _CONTROL)) <= len(sample) // 50:
        return True
    return _wide(sample) is not None


def decode(data: bytes, hint: str | None = None) -> str:
    """Decode by byte order mark, then `hint` (what the document says of itself), UTF-8, or a guess.

    Bytes that are broken in the chosen encoding become U+FFFD. Line ends become "\n".
    """
    text = _decode(data, hint)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def codec(label: str) -> str | None:
    """Return Python's name for the encoding that a document calls `label`, None when it is unknown."""
    label = label.strip().lower()
    label = _NAMES.get(label, label.removeprefix("x-"))
    try:
        name = codecs.lookup(label).name
        b"a".decode(name, "ignore")  # base64 and the like are codecs, but no encodings of text
    except (LookupError, ValueError):
        return None
    return None if name in _NO_ENCODINGS else _SUPERSETS.get(name, name)


def guess(data: bytes) -> str:
    """Name the encoding that `data`, which is no UTF-8, is most likely in."""
    import chardet  # imported late: most documents are UTF-8

    # The sample starts with the first word that is not ASCII, or it might hold little to judge by.
    first = re.search(rb"[\x80-\xff]", data)
    start = data.rfind(b" ", 0, first.start()) + 1 if first else 0
    found = chardet.detect(data[start : start + _SAMPLE_BYTES])["encoding"]
    return (codec(found) if found else None) or "cp1252"


def _decode(data: bytes, hint: str | None) -> str:
    if mark := _marked(data):
        length, encoding = mark
        return data[length:].decode(encoding, "replace")
    if hint and (said := _as_said(data, hint)) is not None:
        return said
    # Before UTF-8, which takes English in UTF-16 for ASCII with NULs.
    sample = data[:_SAMPLE_BYTES]
    if 0 in sample and (wide := _wide(sample)):
        return data.decode(wide, "replace")
    if b"\x1b$" in sample and (encoding := guess(data)).startswith("iso2022"):
        return data.decode(encoding, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        first = max(0, error.start - _SAMPLE_BYTES // 2)
    if _damaged_utf8(data[first : first + _SAMPLE_BYTES]):
        return _SURROGATES.sub(_whole, data).decode("utf-8", "replace")
    return data.decode(guess(data), "replace")


def _damaged_utf8(sample: bytes) -> bool:
    """Say whether bytes that are no UTF-8 are damaged UTF-8, or hold surrogates, and no other encoding."""
    whole = _SURROGATES.sub(_whole, sample)
    try:
        whole.decode("utf-8")
    except UnicodeDecodeError:
        return _sound(whole.decode("utf-8", "replace"), 3)
    return True


def _as_said(data: bytes, hint: str) -> str | None:
    """Decode as the document says; None when that is plainly not true."""
    encoding = codec(hint)
    if encoding is None:
        return None
    try:
        return data.decode(encoding)
    except ValueError:
        text = data.decode(encoding, "replace")
    return text if _sound(text, 20) else None


def _sound(text: str, share: int) -> bool:
    """Say whether one of `share` characters beyond ASCII, or fewer, is U+FFFD.

    Damaged UTF-8 has more whole sequences than broken ones; Latin-1 read as UTF-8 has nearly none.
    """
    beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
    return beyond_ascii >= share * text.count("\ufffd")


def _whole(surrogates: re.Match[bytes]) -> bytes:
    """Put a pair of surrogates together; a lone one becomes U+FFFD."""
    text = surrogates[0].decode("utf-8", "surrogatepass")
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()


def _marked(data: bytes) -> tuple[int, str] | None:
    return next(((len(mark), name) for mark, name in _MARKS if data.startswith(mark)), None)


def _wide(sample: bytes) -> str | None:
    """Name the UTF-16 or UTF-32 that text without a mark is in, None when it is none of them."""
    import chardet

    if len(sample) < 8:
        return None
    for encoding in ("utf-16-le", "utf-16-be"):  # Chinese and Japanese without a Latin letter
        text = sample.decode(encoding, "replace")
        if len(_ASIAN.findall(text)) >= 0.98 * len(text):
            return encoding
    found = chardet.detect(sample)["encoding"]
    encoding = (codec(found) if found else None) or ""
    if not encoding.startswith(("utf-16", "utf-32")):
        return None
    # Numbers of two or four bytes look like it, but for characters that are none.
    text = sample.decode(encoding, "replace").translate(dict.fromkeys(b"\t\n\r\x0b\x0c"))
    strange = sum(unicodedata.category(character)[0] == "C" for character in text)
    return encoding if strange * 200 <= len(text) else None
