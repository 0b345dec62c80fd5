"""gzip of any format: the document inside counts, with its name, its kind and its sections."""

from __future__ import annotations

import struct
import zlib
from pathlib import PurePath

from semantik.exceptions import DocumentError
from semantik.parsing import limits

_BLOCK_BYTES = 1024 * 1024
_ENDINGS = {".gz": "", ".gzip": "", ".tgz": ".tar", ".svgz": ".svg", ".emz": ".emf"}
_FNAME_BYTES = 255
_EXTRA, _FNAME = 4, 8


def unwrap(data: bytes, name: str) -> tuple[bytes, str]:
    """Return the content of all members one behind the other, and the name of the document inside.

    The name is the file's without .gz, or else what the first member says of itself. Zeros behind the last
    member are padding. Raises DocumentError when the file is cut off or broken, or unpacks to more than
    `limits` allows.
    """
    blocks: list[bytes] = []
    rest = data
    while rest:
        rest = _member(rest, blocks).lstrip(b"\0")
        if rest and not rest.startswith(b"\x1f\x8b"):
            raise DocumentError("broken gzip: something else stands behind the compressed data")
    return b"".join(blocks), _inner_name(data, name)


def _member(data: bytes, blocks: list[bytes]) -> bytes:
    """Append the content of the first member to `blocks`, return what stands behind it."""
    member = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        while not member.eof:
            block = member.decompress(data, _BLOCK_BYTES)
            data = member.unconsumed_tail
            if not block and not data and not member.eof:
                raise DocumentError("broken gzip: it is cut off")
            limits.spend(len(block))
            blocks.append(block)
    except zlib.error as error:
        raise DocumentError(f"broken gzip: {error}") from error
    return member.unused_data


def _inner_name(data: bytes, name: str) -> str:
    path = PurePath(name)
    if (ending := _ENDINGS.get(path.suffix.lower())) is not None:
        return path.stem + ending
    flags, start = data[3], 10
    if flags & _EXTRA:
        start += 2 + struct.unpack_from("<H", data, start)[0]
    if flags & _FNAME:
        stored = data[start : start + _FNAME_BYTES].split(b"\0")[0].decode("latin-1")
        return PurePath(stored).name
    return name
