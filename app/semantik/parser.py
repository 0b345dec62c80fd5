"""The parser, a process of its own: an open descriptor goes in, text comes out, and a crash costs one
document.

`python -m semantik.parser` is the service: it speaks on the stream socket that is its standard input, as
systemd's `Accept=yes` sockets hand it over, and parses document after document until the peer closes.
`ParserClient` is the other end: it connects to SEMANTIK_PARSER_SOCKET or, where that is empty, starts the
service as an exec'd child.

The conversation, one document at a time:

    service: HELLO, once
        ready; its absence means "no parser", not "bad document"
    client: a JSON line with the descriptor (SCM_RIGHTS)
    service: ACK
        from here on a death may be this document's fault: it is tried once more, by a fresh process
    service: length of a JSON header (4 bytes, big endian), the header, the text in UTF-8

Limits hold in the service, where the kernel enforces them whatever a library is doing: a timer and RLIMIT_AS
whose signals are fatal, and SIGIO, fatal as well, when the peer goes away. The client keeps a later deadline
of its own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semantik.exceptions import DocumentError, ParserUnavailable

if TYPE_CHECKING:
    from semantik.settings import Settings

log = logging.getLogger(__name__)

HELLO = b"semantik-parser 1\n"
ACK = b"+"
_LENGTH = struct.Struct(">I")
_REQUEST_BYTES = 64 * 1024
_HEADER_BYTES = 16 * 1024 * 1024
# Headings, pages and other places of one document that are kept: a worker holds them beside the text.
_MOST_SECTIONS = 50_000
_MOST_LABELS = 2_000_000  # characters of all their names
_READ_BYTES = 1024 * 1024
_SIZE_MAX = 2**63 - 1  # what the database can keep
_PAGE_BYTES = resource.getpagesize()

# A process that has grown by this share of a document's memory and kept it makes room for a fresh one.
_KEPT_SHARE = 0.25
# How much longer than the service's own timer the client waits: for a process that not even a signal ends.
_GRACE_SECONDS = 10.0
_HELLO_SECONDS = 30.0
_ATTEMPTS = 3


class _Died(DocumentError):
    """The parser ended while it had the document, and not by a limit of time."""


@dataclass(frozen=True)
class Parsed:
    """A parsed document. `text` is empty and `unchanged` true when its bytes hash to what the caller knew."""

    text: str
    sections: list[tuple[int, str]]  # (offset in characters, label), ascending
    sha256: bytes
    size: int  # bytes
    kind: str
    note: str | None = None
    unchanged: bool = False


# --- the service ---


def serve(sock: socket.socket) -> None:
    """Parse documents for the peer of `sock` until it closes, or until this process has grown too much."""
    baseline = _address_space()
    hard_limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    sock.sendall(HELLO)
    while (received := _receive(sock)) is not None:
        fd, request = received
        memory = int(request["memory_mb"]) * 2**20
        limit = (
            baseline + memory if hard_limit == resource.RLIM_INFINITY else min(baseline + memory, hard_limit)
        )
        sock.sendall(ACK)
        _leave_with_peer(sock, True)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard_limit))
        signal.setitimer(signal.ITIMER_REAL, float(request["seconds"]))
        try:
            header, body = _answer(fd, request)
        except MemoryError:
            header, body = {"error": _too_much_memory(request)}, b""
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            resource.setrlimit(resource.RLIMIT_AS, (hard_limit, hard_limit))
            _leave_with_peer(sock, False)
            os.close(fd)
        head = json.dumps(header, ensure_ascii=False).encode()
        sock.sendall(_LENGTH.pack(len(head)) + head)
        sock.sendall(body)
        del header, body, head
        if _address_space() - baseline > memory * _KEPT_SHARE:
            return


def _answer(fd: int, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    from semantik.parsing import parse

    try:
        document = _content(fd, int(request["document_max_mb"]))
    except DocumentError as error:
        return {"error": str(error)}, b""
    except OSError as error:
        return {"error": f"cannot be read: {error.strerror}"}, b""
    digest = hashlib.sha256(document).hexdigest()
    facts: dict[str, Any] = {"sha256": digest, "size": len(document)}
    if digest == request["known_hash"]:
        return {**facts, "unchanged": True, "text_bytes": 0}, b""
    try:
        kind, result = parse(document, str(request["name"]))
    except DocumentError as error:
        return {**facts, "error": str(error)}, b""
    except MemoryError:
        raise
    except Exception as error:  # a library may raise anything on a broken document: it fails that document
        return {**facts, "error": f"cannot be parsed: {type(error).__name__}: {error}"[:500]}, b""
    body = result.text.encode()
    # Not only its bytes: one wide character makes a string of four bytes each in the worker.
    if max(len(body), sys.getsizeof(result.text)) > _text_limit(int(request["memory_mb"])):
        return {**facts, "error": _too_much_text(int(request["memory_mb"]))}, b""
    sections, note = _kept(result.sections), result.note
    if len(sections) < len(result.sections):
        said = f"of {len(result.sections):,} headings and other places the first {len(sections):,} are kept"
        note = f"{note}; {said}" if note else said
    facts |= {"kind": kind, "sections": sections, "note": note, "text_bytes": len(body)}
    return facts, body


def _kept(sections: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return so many of the places as a header takes."""
    total = accumulate(len(label) for _, label in sections[:_MOST_SECTIONS])
    return sections[: sum(1 for length in total if length <= _MOST_LABELS)]


def _content(fd: int, limit_mb: int) -> bytes:
    data = bytearray()
    # pread, since the descriptor shares its offset with the worker's.
    while block := os.pread(fd, _READ_BYTES, len(data)):
        data += block
        if len(data) > limit_mb * 2**20:
            raise DocumentError(f"larger than {limit_mb} MB (SEMANTIK_DOCUMENT_MAX_MB)")
    return bytes(data)


def _receive(sock: socket.socket) -> tuple[int, dict[str, Any]] | None:
    """Return the next descriptor and request, or None when the peer has closed."""
    line, fds, _, _ = socket.recv_fds(sock, _REQUEST_BYTES, 1)
    while line and not line.endswith(b"\n"):
        more = sock.recv(_REQUEST_BYTES)
        if not more:
            return None
        line += more
    if not line or not fds:
        return None
    return fds[0], json.loads(line)


def _leave_with_peer(sock: socket.socket, on: bool) -> None:
    """While a document is parsed, let the kernel end this process when the peer closes (SIGIO, unhandled)."""
    flags = fcntl.fcntl(sock, fcntl.F_GETFL)
    fcntl.fcntl(sock, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sock, fcntl.F_SETFL, flags | os.O_ASYNC if on else flags & ~os.O_ASYNC)
    if on:
        poll = select.poll()
        poll.register(sock, select.POLLRDHUP)
        if poll.poll(0):  # it closed before the kernel was asked to tell
            sys.exit(0)


def _address_space() -> int:
    """Return the bytes that RLIMIT_AS counts of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * _PAGE_BYTES


def main() -> None:
    """Serve the socket that is standard input."""
    # Nothing that a library prints may reach the socket, which systemd also makes standard output.
    sock = socket.socket(fileno=os.dup(0))
    null = os.open(os.devnull, os.O_RDWR)
    same = [fd for fd in (1, 2) if os.path.sameopenfile(fd, 0)]
    for fd in (0, *same):
        os.dup2(null, fd)
    os.close(null)
    # A terminal's Ctrl-C is for the worker, which then closes the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        serve(sock)
    except (BrokenPipeError, ConnectionResetError):
        return  # the peer left while an answer was on its way


# --- the client ---


class ParserClient:
    """One conversation with a parser, opened at need and again after each death. Use from one thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._socket: socket.socket | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._aborted = False

    def parse(self, fd: int, name: str, known_hash: bytes | None = None) -> Parsed:
        """Return the text of the document open at `fd`; `name` helps where the content says nothing.

        When its bytes hash (SHA-256) to `known_hash` it is not parsed: `unchanged` is true, the text empty.
        Raises DocumentError with the reason when the document fails, crashes the parser twice or exceeds a
        limit, and ParserUnavailable when there is no parser to ask (nothing is wrong with the document then).
        """
        settings = self._settings
        request = {
            "name": Path(name).name[-255:],
            "known_hash": known_hash.hex() if known_hash else None,
            "seconds": settings.parse_seconds,
            "memory_mb": settings.parse_memory_mb,
            "document_max_mb": settings.document_max_mb,
        }
        line = json.dumps(request).encode() + b"\n"
        try:
            return self._converse(line, fd)
        except _Died as died:
            log.info("%s; it is tried once more: %s", died, request["name"])
            # Perhaps not of this document: an operator, or a kernel short of memory, may have killed it.
            return self._converse(line, fd)

    def _converse(self, line: bytes, fd: int) -> Parsed:
        sock = self._begin(line, fd)
        started = time.monotonic()
        deadline = started + self._settings.parse_seconds + _GRACE_SECONDS
        try:
            header = json.loads(_read(sock, _length(sock, deadline), deadline))
            return self._parsed(sock, header, deadline)
        except TimeoutError:
            self._drop(kill=True)
            raise DocumentError(self._too_slow()) from None
        except EOFError:
            raise self._death(time.monotonic() - started) from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            self._drop(kill=True)
            raise DocumentError(f"the parser's answer makes no sense: {error!r}"[:500]) from error

    def abort(self) -> None:
        """End the conversation from another thread: a `parse` that waits raises at once, as later ones do."""
        self._aborted = True
        if (sock := self._socket) is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # closed by its own thread in the meantime: what was asked for

    def close(self) -> None:
        """End the conversation and the child, where there is one."""
        self._drop()

    @property
    def pid(self) -> int | None:
        """Process id of the exec'd child, None when there is none."""
        return self._child.pid if self._child is not None else None

    def __enter__(self) -> ParserClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, line: bytes, fd: int) -> socket.socket:
        """Hand over a document and wait until a parser has taken it up."""
        for attempt in range(_ATTEMPTS):
            if self._aborted:
                raise ParserUnavailable("the parser's client was closed")
            sock = self._socket or self._connect()
            try:
                socket.send_fds(sock, [line], [fd])
                if _read(sock, len(ACK), time.monotonic() + _HELLO_SECONDS) == ACK:
                    return sock
            except (EOFError, OSError):
                # A kept conversation may have ended between documents: the parser was recycled or restarted.
                if attempt:
                    time.sleep(0.1 * attempt)
            self._drop(kill=True)
        raise ParserUnavailable(f"{self._where()} takes no documents: see the parser's journal")

    def _connect(self) -> socket.socket:
        path = self._settings.parser_socket
        sock = None
        try:
            if path:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.settimeout(_HELLO_SECONDS)
                sock.connect(path)
            else:
                sock = self._spawn()
            hello = _read(sock, len(HELLO), time.monotonic() + _HELLO_SECONDS)
        except (OSError, EOFError) as error:
            if sock is not None:
                sock.close()
            self._drop(kill=True)
            what = str(error) or "it ended before it was ready"
            raise ParserUnavailable(
                f"{self._where()} does not answer: {what}; is semantik-parser.socket active?"
                if path
                else f"{self._where()} does not start: {what}"
            ) from error
        if hello != HELLO:
            sock.close()
            self._drop(kill=True)
            raise ParserUnavailable(f"{self._where()} answers {hello!r}: it is of another release")
        self._socket = sock
        if self._aborted:  # between the check above and here: `abort` found no socket to shut down
            self._drop(kill=True)
            raise ParserUnavailable("the parser's client was closed")
        return sock

    def _spawn(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # No secret of the worker's environment, and no GPU, travels along.
        environment = {
            name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ
        }
        environment["CUDA_VISIBLE_DEVICES"] = ""
        root = Path(__file__).resolve().parent.parent
        if root.name != "site-packages":
            environment["PYTHONPATH"] = str(root)
        try:
            with theirs:
                # exec'd, never merely forked: a fork of a process that holds CUDA is poison.
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-m", "semantik.parser"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    env=environment,
                    cwd="/",
                )
        except OSError:
            ours.close()
            raise
        return ours

    def _parsed(self, sock: socket.socket, header: dict[str, Any], deadline: float) -> Parsed:
        if "error" in header:
            raise DocumentError(_line(str(header["error"])))
        text_bytes = int(header["text_bytes"])
        if not 0 <= text_bytes <= _text_limit(self._settings.parse_memory_mb):
            raise ValueError(f"{text_bytes} bytes of text")
        sha256, size = bytes.fromhex(header["sha256"]), int(header["size"])
        if len(sha256) != hashlib.sha256().digest_size or not 0 <= size <= _SIZE_MAX:
            raise ValueError(f"a document of {size} bytes with a hash of {len(sha256)}")
        text = _read(sock, text_bytes, deadline).decode()
        sections = [(int(offset), _line(str(label))) for offset, label in header.get("sections", ())]
        return Parsed(
            text=text.replace("\x00", " "),
            sections=sorted(section for section in sections if 0 <= section[0] <= len(text)),
            sha256=sha256,
            size=size,
            kind=_line(str(header.get("kind", ""))),
            note=None if header.get("note") is None else _line(str(header["note"])),
            unchanged=header.get("unchanged") is True,
        )

    def _death(self, seconds: float) -> DocumentError:
        """Return why the parser ended while it had a document for so many seconds."""
        status = self._drop()
        if self._aborted:
            return DocumentError("the parser was stopped")
        if status == -signal.SIGALRM or (status is None and seconds >= self._settings.parse_seconds - 0.1):
            return DocumentError(self._too_slow())
        how = f"by {signal.Signals(-status).name}" if status is not None and status < 0 else "unexpectedly"
        return _Died(
            f"the parser ended {how} on this document: a crash, or more than "
            f"{self._settings.parse_memory_mb} MB of memory (SEMANTIK_PARSE_MEMORY_MB)"
        )

    def _too_slow(self) -> str:
        return f"takes longer than {self._settings.parse_seconds:g} s to parse (SEMANTIK_PARSE_SECONDS)"

    def _drop(self, *, kill: bool = False) -> int | None:
        """End the conversation; return the exit status of the child, if there is one and it ends."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        child, self._child = self._child, None
        if child is None:
            return None
        if kill:
            child.kill()
        try:
            # An idle or parsing child ends when the socket closes.
            return child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            child.kill()
        try:
            return child.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return None  # in the kernel's hands (a dead file server, say); it is reaped when the worker ends

    def _where(self) -> str:
        return (
            f"the parser at {self._settings.parser_socket}" if self._settings.parser_socket else "the parser"
        )


def _length(sock: socket.socket, deadline: float) -> int:
    length: int = _LENGTH.unpack(_read(sock, _LENGTH.size, deadline))[0]
    if length > _HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    return length


def _read(sock: socket.socket, length: int, deadline: float) -> bytes:
    """Read exactly `length` bytes. Raises EOFError when the peer ends first, TimeoutError past `deadline`."""
    data = bytearray(length)
    view = memoryview(data)
    while view:
        if (left := deadline - time.monotonic()) <= 0:  # also for a peer that sends byte after byte
            raise TimeoutError
        sock.settimeout(left)
        try:
            count = sock.recv_into(view)
        except ConnectionError:
            count = 0
        if not count:
            raise EOFError
        view = view[count:]
    return bytes(data)


def _line(words: str) -> str:
    """Make one clean line of what a parser, which bad input may control, says."""
    return " ".join(words.replace("\x00", " ").encode("utf-8", "replace").decode().split())[:500]


def _text_limit(memory_mb: int) -> int:
    # The worker holds the text too; a quarter of the parser's memory also is about what the parser can build.
    return memory_mb * 2**20 // 4


def _too_much_text(memory_mb: int) -> str:
    return f"more than {memory_mb / 4:g} MB of text (a quarter of SEMANTIK_PARSE_MEMORY_MB)"


def _too_much_memory(request: dict[str, Any]) -> str:
    return f"needs more than {request['memory_mb']} MB of memory to parse (SEMANTIK_PARSE_MEMORY_MB)"


if __name__ == "__main__":
    main()
