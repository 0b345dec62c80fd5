"""The parser as a process: what it answers, and that a death, a hang or a bomb costs one document alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from killing import killing

from semantik import parser
from semantik.exceptions import DocumentError, ParserUnavailable
from semantik.parser import ParserClient
from semantik.settings import Settings

APP = Path(parser.__file__).parent.parent


class Listener:
    """What systemd does for a socket with Accept=yes: one service per connection, on its stdin and stdout."""

    def __init__(self, path: Path) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                fd = connection.fileno()
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-P", "-m", "semantik.parser"],
                        stdin=fd,
                        stdout=fd,
                        env={"PYTHONPATH": str(APP)},
                    )
                )

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()
        for process in self.processes:
            process.kill()
            process.wait(5)


@pytest.fixture(params=["child", "socket"])
def limits(request: pytest.FixtureRequest, engine_settings: Settings, tmp_path: Path) -> Iterator[Settings]:
    """Settings with tight limits, once for exec'd children and once for a listening socket."""
    settings = replace(engine_settings, parse_seconds=2.0, parse_memory_mb=128)
    if request.param == "child":
        yield settings
        return
    listener = Listener(tmp_path / "parser.socket")
    yield replace(settings, parser_socket=str(tmp_path / "parser.socket"))
    listener.close()


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.md"
    path.write_text("# Title\n\nA sentence.\n", encoding="utf-8")
    return path


@pytest.fixture
def slow(tmp_path: Path, make_pdf: Callable[..., bytes]) -> Path:
    """A small PDF that lists one page 200,000 times: minutes of work."""
    path = tmp_path / "slow.pdf"
    path.write_bytes(make_pdf(["word " * 2_000], repeat=200_000))
    return path


@pytest.fixture
def middling(tmp_path: Path, make_pdf: Callable[..., bytes]) -> Path:
    """The same with 1,000 pages: long enough to be met at work."""
    path = tmp_path / "middling.pdf"
    path.write_bytes(make_pdf(["word " * 2_000], repeat=1_000))
    return path


def assert_serves(client: ParserClient, path: Path, descriptor: Callable[[Path], int]) -> None:
    parsed = client.parse(descriptor(path), path.name)
    assert parsed.text == path.read_text(encoding="utf-8")
    assert parsed.sections == [(0, "Title")]


def test_many_documents_share_a_conversation(
    limits: Settings, good: Path, descriptor: Callable[[Path], int]
) -> None:
    with ParserClient(limits) as client:
        for _ in range(20):
            assert_serves(client, good, descriptor)
        parsed = client.parse(descriptor(good), "good.md")
    assert parsed.sha256 == hashlib.sha256(good.read_bytes()).digest()
    assert parsed.size == good.stat().st_size
    assert parsed.kind == "markdown"


def test_a_known_hash_is_not_parsed_again(
    limits: Settings, slow: Path, descriptor: Callable[[Path], int]
) -> None:
    known = hashlib.sha256(slow.read_bytes()).digest()
    with ParserClient(limits) as client:
        parsed = client.parse(descriptor(slow), slow.name, known)
    assert parsed.unchanged
    assert parsed.text == ""


def test_a_hang_costs_its_document(
    limits: Settings, good: Path, slow: Path, descriptor: Callable[[Path], int]
) -> None:
    with ParserClient(limits) as client:
        with pytest.raises(DocumentError, match="longer than 2 s"):
            client.parse(descriptor(slow), slow.name)
        assert_serves(client, good, descriptor)


def test_a_bomb_costs_its_document(
    limits: Settings,
    tmp_path: Path,
    good: Path,
    make_pdf: Callable[..., bytes],
    descriptor: Callable[[Path], int],
) -> None:
    bomb = tmp_path / "bomb.pdf"
    bomb.write_bytes(make_pdf(["x"], stream=(zlib.compress(b" " * 600_000_000), "/Filter /FlateDecode")))
    assert bomb.stat().st_size < 1_000_000
    big = tmp_path / "big.txt"
    big.write_bytes(b"word " * 40_000_000)
    with ParserClient(replace(limits, parse_seconds=30.0)) as client:
        with pytest.raises(DocumentError, match=r"no text found|128 MB"):
            client.parse(descriptor(bomb), bomb.name)
        assert_serves(client, good, descriptor)
        with pytest.raises(DocumentError, match="128 MB of memory"):
            client.parse(descriptor(big), big.name)
        assert_serves(client, good, descriptor)


def test_a_kill_costs_nothing_and_a_second_one_its_document(
    engine_settings: Settings, good: Path, middling: Path, descriptor: Callable[[Path], int]
) -> None:
    with ParserClient(engine_settings) as client:
        assert_serves(client, good, descriptor)
        pid = client.pid
        assert pid is not None
        with killing(lambda: [client.pid] if client.pid else [], times=1) as killed:
            assert client.parse(descriptor(middling), middling.name).text
        assert killed == [pid]
        assert client.pid != pid
        with (
            killing(lambda: [client.pid] if client.pid else [], times=2) as killed,
            pytest.raises(DocumentError, match="ended by SIGKILL"),
        ):
            client.parse(descriptor(middling), middling.name)
        assert len(set(killed)) == 2
        assert_serves(client, good, descriptor)


def test_a_kill_behind_the_socket_costs_nothing_and_a_second_one_its_document(
    engine_settings: Settings, tmp_path: Path, good: Path, middling: Path, descriptor: Callable[[Path], int]
) -> None:
    listener = Listener(tmp_path / "parser.socket")
    settings = replace(engine_settings, parser_socket=str(tmp_path / "parser.socket"))
    try:
        with ParserClient(settings) as client:
            assert_serves(client, good, descriptor)
            with killing(lambda: [listener.processes[-1].pid], times=1):
                assert client.parse(descriptor(middling), middling.name).text
            assert len(listener.processes) == 2
            with (
                killing(lambda: [listener.processes[-1].pid], times=2),
                pytest.raises(DocumentError, match="ended unexpectedly on this document"),
            ):
                client.parse(descriptor(middling), middling.name)
            assert_serves(client, good, descriptor)
            # Killed between documents: nobody's fault, so no document pays.
            listener.processes[-1].kill()
            listener.processes[-1].wait(5)
            assert_serves(client, good, descriptor)
        assert len(listener.processes) == 5
    finally:
        listener.close()


def test_the_parser_leaves_when_its_client_does(
    engine_settings: Settings, slow: Path, descriptor: Callable[[Path], int]
) -> None:
    client = ParserClient(replace(engine_settings, parse_seconds=60.0))
    refused: list[Exception] = []

    def parse() -> None:
        try:
            client.parse(descriptor(slow), slow.name)
        except DocumentError as error:
            refused.append(error)

    thread = threading.Thread(target=parse)
    thread.start()
    while client.pid is None or client._socket is None:
        time.sleep(0.05)
    child = client._child
    assert child is not None
    time.sleep(0.5)
    client.abort()
    thread.join(5)
    assert not thread.is_alive()
    # SIGIO: the kernel ended it in the middle of its document.
    assert child.wait(5) == -signal.SIGIO
    assert [str(error) for error in refused] == ["the parser was stopped"]
    with pytest.raises(ParserUnavailable):
        client.parse(descriptor(slow), slow.name)


def test_no_parser_is_no_document_error(
    engine_settings: Settings, tmp_path: Path, good: Path, descriptor: Callable[[Path], int]
) -> None:
    client = ParserClient(replace(engine_settings, parser_socket=str(tmp_path / "nobody")))
    with pytest.raises(ParserUnavailable, match=r"nobody does not answer: .*semantik-parser\.socket"):
        client.parse(descriptor(good), good.name)


def test_a_document_above_the_size_limit_is_refused(
    engine_settings: Settings, tmp_path: Path, descriptor: Callable[[Path], int]
) -> None:
    path = tmp_path / "sparse.txt"
    path.touch()
    os.truncate(path, 3 * 2**20)
    with (
        ParserClient(replace(engine_settings, document_max_mb=2)) as client,
        pytest.raises(DocumentError, match="larger than 2 MB"),
    ):
        client.parse(descriptor(path), path.name)


def test_a_descriptor_that_cannot_be_read_says_so(
    engine_settings: Settings, tmp_path: Path, good: Path, descriptor: Callable[[Path], int]
) -> None:
    with ParserClient(engine_settings) as client:
        with pytest.raises(DocumentError, match="cannot be read: Is a directory"):
            client.parse(descriptor(tmp_path), "folder")
        pid = client.pid
        assert_serves(client, good, descriptor)
        assert client.pid == pid


def test_a_large_text_arrives_whole(
    engine_settings: Settings, tmp_path: Path, good: Path, descriptor: Callable[[Path], int]
) -> None:
    path = tmp_path / "large.txt"
    text = "Größe zählt nicht. " * 400_000
    path.write_text(text, encoding="utf-8")
    with ParserClient(engine_settings) as client:
        for _ in range(3):
            assert client.parse(descriptor(path), path.name).text == text
            assert_serves(client, good, descriptor)


def test_a_name_that_is_not_utf8(
    engine_settings: Settings, tmp_path: Path, descriptor: Callable[[Path], int]
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9\n.md")
    path.write_text("# Title\n", encoding="utf-8")
    with ParserClient(engine_settings) as client:
        assert client.parse(descriptor(path), path.name).kind == "markdown"


def test_the_worker_trusts_no_answer(
    engine_settings: Settings, tmp_path: Path, good: Path, descriptor: Callable[[Path], int]
) -> None:
    """A parser that bad input took over may say anything; it costs the document, not the worker."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "liar"))
    listening.listen()
    deep = b"[" * 100_000
    answers = [
        len(deep).to_bytes(4, "big") + deep,
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x02[]",
        b'\x00\x00\x00\x13{"text_bytes": 1e99}',
        *[
            len(facts).to_bytes(4, "big") + facts
            for facts in (
                json.dumps({"text_bytes": 0, "sha256": "00" * length, "size": size}).encode()
                for length, size in ((32, 10**30), (32, -1), (1, 1))
            )
        ],
    ]

    def lie() -> None:
        for answer in answers:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(parser.HELLO)
                connection.recv(4096)
                connection.sendall(parser.ACK + answer)

    thread = threading.Thread(target=lie, daemon=True)
    thread.start()
    with ParserClient(replace(engine_settings, parser_socket=str(tmp_path / "liar"))) as client:
        for _ in answers:
            with pytest.raises(DocumentError, match="makes no sense"):
                client.parse(descriptor(good), good.name)
    thread.join(5)
    listening.close()


@pytest.mark.parametrize(
    ("heading", "times", "kept"),
    [(b"# " + b"w" * 30, 60_000, 50_000), (b"# " + "\N{PILE OF POO}".encode() * 198, 12_000, 10_101)],
)
def test_places_beyond_what_a_worker_holds_are_left_out(
    engine_settings: Settings,
    tmp_path: Path,
    descriptor: Callable[[Path], int],
    heading: bytes,
    times: int,
    kept: int,
) -> None:
    path = tmp_path / "headings.md"
    path.write_bytes((heading + b"\n") * times)
    with ParserClient(engine_settings) as client:
        parsed = client.parse(descriptor(path), path.name)
    assert len(parsed.sections) == kept
    assert parsed.note == f"of {times:,} headings and other places the first {kept:,} are kept"


def test_a_text_of_wide_characters_counts_as_what_it_takes_in_memory(
    engine_settings: Settings, tmp_path: Path, descriptor: Callable[[Path], int]
) -> None:
    path = tmp_path / "wide.txt"
    path.write_bytes(b"word " * 2_000_000 + "\N{PILE OF POO}".encode())
    limited = replace(engine_settings, parse_memory_mb=120)
    with (
        ParserClient(limited) as client,
        pytest.raises(DocumentError, match=r"more than 30 MB of text|more than 120 MB of memory"),
    ):
        client.parse(descriptor(path), path.name)


def test_the_parser_imports_nothing_heavy() -> None:
    script = (
        "import sys, semantik.parser; print([m for m in ('torch', 'celery', 'numpy') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={"PYTHONPATH": str(APP)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.strip() == "[]"


def test_the_child_sees_no_secret(engine_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    client = ParserClient(engine_settings)
    client._connect()
    try:
        environment = Path(f"/proc/{client.pid}/environ").read_bytes()
    finally:
        client.close()
    assert b"s3cret" not in environment
