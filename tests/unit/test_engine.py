"""The engine from open descriptors to rows: exact, complete, and never hanging whatever a stage does."""

from __future__ import annotations

import hashlib
import os
import pydoc_data.topics
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import killing

from semantik.channel import Channel, Closed, Empty, Ordered
from semantik.chunking import Chunk
from semantik.engine import Engine, Finished, Mark, Row, Source, Stopped, _batches, _flat_batches
from semantik.exceptions import DocumentError, ParserUnavailable
from semantik.model import Model, Pending
from semantik.settings import Settings

Opener = Callable[[str], int]


def open_file(uri: str) -> int:
    return os.open(uri, os.O_RDONLY | os.O_CLOEXEC)


def never() -> bool:
    return False


@pytest.fixture
def corpus(tmp_path: Path, make_pdf: Callable[..., bytes]) -> list[Path]:
    """Real text of many lengths in four formats."""
    topics = sorted(pydoc_data.topics.topics.items())[:12]
    paths = []
    for at, (name, text) in enumerate(topics):
        text = text[:3_000]
        suffix = (".txt", ".md", ".html", ".pdf")[at % 4]
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".pdf":
            lines = [
                line.translate(str.maketrans("", "", "()\\")) for line in text.splitlines() if line.strip()
            ]
            path.write_bytes(make_pdf(lines[:20]))
        else:
            body = f"<html><body><pre>{text}</pre></body></html>" if suffix == ".html" else text
            path.write_text(body, encoding="utf-8")
        paths.append(path)
    return paths


def sources(paths: Iterable[Path], known: dict[int, bytes] | None = None) -> list[Source]:
    return [Source(key, str(path), (known or {}).get(key), None) for key, path in enumerate(paths)]


def engine(model: Model, settings: Settings, opener: Opener = open_file) -> Engine:
    return Engine(model, settings, chunk_tokens=0, chunk_overlap=16, opener=opener)


def collect(results: Iterator[Row | Finished | Mark]) -> tuple[dict[int, list[Row]], dict[int, Finished]]:
    """Gather results by document, checking that each ends once, after its rows."""
    rows: dict[int, list[Row]] = defaultdict(list)
    ends: dict[int, Finished] = {}
    for result in results:
        assert not isinstance(result, Mark)
        assert result.key not in ends, "something came after a document's end"
        if isinstance(result, Row):
            rows[result.key].append(result)
        else:
            ends[result.key] = result
    return rows, ends


def engine_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("parse-", "chunk"))]


def children() -> list[str]:
    tasks = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [pid for task in tasks for pid in task.read_text(encoding="ascii").split()]


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Whatever a test does to a run, its threads and parsers are gone afterwards."""
    before = set(children())
    yield
    assert engine_threads() == []
    assert set(children()) <= before


def test_every_document_and_chunk_once_with_exact_vectors(
    model: Model, engine_settings: Settings, corpus: list[Path]
) -> None:
    run = engine(model, engine_settings)
    rows, ends = collect(run.run(sources(corpus), never))
    assert sorted(ends) == list(range(len(corpus)))
    for key, end in ends.items():
        assert end.outcome == "embedded", end
        assert sorted(row.ordinal for row in rows[key]) == list(range(end.chunks))
        assert end.tokens == sum(row.token_count for row in rows[key])
        assert end.truncated_tokens == 0
        assert end.content_hash == hashlib.sha256(corpus[key].read_bytes()).digest()
        assert end.size == corpus[key].stat().st_size
    flat = [row for key in rows for row in rows[key]]
    assert {row.vector.dtype for row in flat} == {np.dtype(np.float16)}
    assert {row.place for row in rows[3]} <= {f"page {number}" for number in range(1, 21)}
    sample = random.Random(4).sample(flat, 25)
    theirs = model._network.encode([row.text for row in sample])
    ours = np.stack([row.vector for row in sample]).astype(np.float32)
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosine.min() >= 0.9999
    stats = run.stats
    assert (stats.documents, stats.chunks) == (len(corpus), len(flat))
    assert stats.tokens == sum(row.token_count for row in flat)
    assert stats.inflight() == []
    assert set(stats.waits) == {"parse_out", "chunk_in", "chunk_out", "forward_in", "write"}
    assert 0 < stats.forward_seconds < stats.seconds


def test_batches_keep_to_the_budget_and_name_their_documents(
    model: Model, engine_settings: Settings, corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = engine(model, engine_settings)
    seen: Counter[int] = Counter()

    def note() -> bool:
        seen.update(run.stats.inflight())
        return False

    sizes: list[int] = []
    begin = model.start

    def measured(batch: list[np.ndarray]) -> Pending:  # type: ignore[type-arg]
        sizes.append(sum(len(ids) for ids in batch))
        return begin(batch)

    monkeypatch.setattr(model, "start", measured)
    ends = collect(run.run(sources(corpus), note))[1]
    assert len(sizes) == run.stats.batches > 1
    assert max(sizes) <= model.token_budget
    assert set(seen) == set(ends), "every document was in flight before a batch of its chunks ran"


def test_marks_come_out_between_what_was_before_them_and_what_is_behind(
    model: Model, engine_settings: Settings, corpus: list[Path]
) -> None:
    marked: list[Source | Mark] = list(sources(corpus))
    for number, at in ((1, 4), (2, 4), (3, 10)):
        marked.insert(at + number - 1, Mark(number))
    marked.append(Mark(4))
    run = Engine(model, engine_settings, chunk_tokens=64, chunk_overlap=8, opener=open_file, ordered=True)
    ended: set[int] = set()
    at_marks: list[tuple[int, set[int]]] = []
    for item in run.run(marked, never):
        if isinstance(item, Mark):
            at_marks.append((item.number, set(ended)))
        elif isinstance(item, Finished):
            ended.add(item.key)
        else:
            passed = at_marks[-1][0] if at_marks else 0
            assert item.key >= {0: 0, 1: 4, 2: 4, 3: 10}[passed], "a row from behind the next mark"
    assert at_marks == [
        (1, set(range(4))), (2, set(range(4))), (3, set(range(10))), (4, set(range(len(corpus))))
    ]  # fmt: skip


def test_an_ordered_run_packs_the_same_batches_however_parsing_goes(
    model: Model, engine_settings: Settings, corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs, one with parsers that are late at random and one resumed behind a mark: the same bits."""
    noise = random.Random(3)

    def late(uri: str) -> int:
        time.sleep(noise.random() / 20)
        return open_file(uri)

    marked: list[Source | Mark] = list(sources(corpus))
    marked.insert(6, Mark(1))
    monkeypatch.setattr(model, "token_budget", 512)

    def vectors(opener: Opener, items: list[Source | Mark]) -> dict[tuple[int, int], bytes]:
        run = Engine(model, engine_settings, chunk_tokens=64, chunk_overlap=8, opener=opener, ordered=True)
        rows = [item for item in run.run(items, never) if isinstance(item, Row)]
        assert run.stats.batches > 4
        return {(row.key, row.ordinal): row.vector.tobytes() for row in rows}

    whole = vectors(open_file, marked)
    assert vectors(late, marked) == whole
    resumed = vectors(late, marked[7:])
    assert resumed == {key: value for key, value in whole.items() if key[0] >= 6}


def test_packing_by_length_leaves_little_padding() -> None:
    lengths = random.Random(7).choices(range(8, 257), k=400)
    pool = [(key, Chunk(0, 0, "", None, np.zeros(length, np.int64))) for key, length in enumerate(lengths)]
    pool.sort(key=lambda entry: len(entry[1].ids))
    kept = list(pool)
    full = list(_batches(kept, 2_048, keep_rest=True))
    rest = list(_batches(kept, 2_048, keep_rest=False))
    assert kept == []
    keys = [key for batch in full + rest for key, _ in batch]
    assert sorted(keys) == list(range(400))
    paid = [len(batch) * max(len(chunk.ids) for _, chunk in batch) for batch in full + rest]
    assert max(paid) <= 2_048
    assert sum(paid) < 1.06 * sum(lengths)
    # A chunk longer than the budget runs alone.
    assert [len(batch) for batch in _batches([(0, pool[-1][1])], 100, keep_rest=True)] == [1]


def test_batches_without_padding_are_as_large_as_the_budget_allows() -> None:
    lengths = random.Random(7).choices(range(8, 257), k=400)
    pool = [(key, Chunk(0, 0, "", None, np.zeros(length, np.int64))) for key, length in enumerate(lengths)]
    pool.sort(key=lambda entry: len(entry[1].ids))
    kept = list(pool)
    full = list(_flat_batches(kept, 2_048, keep_rest=True))
    left = sum(len(chunk.ids) for _, chunk in kept)
    assert 0 < left <= 2_048, "what does not fill a batch waits"
    sizes = [sum(len(chunk.ids) for _, chunk in batch) for batch in full]
    assert max(sizes) <= 2_048
    assert min(sizes) > 2_048 - 32, "a text of another length fills the room"
    rest = list(_flat_batches(kept, 2_048, keep_rest=False))
    assert [len(batch) for batch in rest] == [len(pool) - sum(len(batch) for batch in full)]
    assert sorted(key for batch in full + rest for key, _ in batch) == list(range(400))
    # A chunk longer than the budget runs alone, also at the end.
    assert [len(batch) for batch in _flat_batches([(0, pool[-1][1])] * 2, 100, keep_rest=True)] == [1, 1]
    # A pool of exactly the budget is a full batch: waiting for more, the engine would turn in circles.
    assert [len(batch) for batch in _flat_batches([pool[0]] * 4, 4 * 8, keep_rest=True)] == [4]


def test_a_vector_that_is_not_finite_fails_its_document(
    model: Model, engine_settings: Settings, tmp_path: Path
) -> None:
    words = {"good": "bread and boats. " * 200, "bad": "bread and boats. " * 200 + " zyzzyva"}
    paths = [tmp_path / f"{name}.txt" for name in words]
    for path, text in zip(paths, words.values(), strict=True):
        path.write_text(text)
    ids = model.tokenizer.encode("zyzzyva", add_special_tokens=False).ids
    table = model._network[0].auto_model.get_input_embeddings().weight
    with torch.no_grad():
        kept = table[ids[-1]].clone()
        table[ids[-1]] = float("inf")
    try:
        rows, ends = collect(engine(model, engine_settings).run(sources(paths), never))
    finally:
        with torch.no_grad():
            table[ids[-1]] = kept
    assert (ends[0].outcome, len(rows[0])) == ("embedded", ends[0].chunks)
    assert (ends[1].outcome, ends[1].chunks) == ("failed", 0)
    assert ends[1].error is not None
    assert f"gives chunk {ends[0].chunks - 1} no finite vector in float32" in ends[1].error
    assert all(np.isfinite(row.vector).all() for some in rows.values() for row in some)


def test_unchanged_documents_are_skipped(model: Model, engine_settings: Settings, corpus: list[Path]) -> None:
    known = {key: hashlib.sha256(corpus[key].read_bytes()).digest() for key in range(0, len(corpus), 2)}
    rows, ends = collect(engine(model, engine_settings).run(sources(corpus, known), never))
    assert {key for key, end in ends.items() if end.outcome == "skipped"} == set(known)
    assert not set(rows) & set(known)
    assert all(ends[key].content_hash == known[key] for key in known)


def test_bad_documents_fail_alone_with_reasons(
    model: Model, engine_settings: Settings, tmp_path: Path, make_pdf: Callable[..., bytes]
) -> None:
    contents = {
        "good.txt": b"Words that can be found again.",
        "empty.txt": b"",
        "random.pdf": bytes(range(256)),
        "program": b"\x7fELF\x02\x01\x01",
        "slow.pdf": make_pdf(["word " * 2_000], repeat=200_000),
        "long.txt": b"x" * 300_000,
        "also good.md": b"# Title\n\nMore words.",
    }
    paths = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        paths.append(tmp_path / name)
    paths.append(tmp_path / "vanished")

    def opener(uri: str) -> int:
        if uri.endswith("also good.md"):
            raise PermissionError(13, "Permission denied", uri)
        return open_file(uri)

    settings = replace(engine_settings, parse_seconds=2.0)
    rows, ends = collect(engine(model, settings, opener).run(sources(paths), never))
    outcomes = {paths[key].name: (end.outcome, end.error) for key, end in ends.items()}
    assert outcomes["good.txt"] == ("embedded", None)
    assert outcomes["empty.txt"] == ("embedded", None)
    assert outcomes["vanished"] == ("removed", None)
    assert outcomes["also good.md"] == ("failed", "cannot be opened: Permission denied")
    assert outcomes["random.pdf"][0] == outcomes["program"][0] == outcomes["slow.pdf"][0] == "failed"
    assert "not a PDF" in str(outcomes["random.pdf"][1])
    assert "ELF" in str(outcomes["program"][1])
    assert "longer than 2 s" in str(outcomes["slow.pdf"][1])
    assert outcomes["long.txt"][0] == "embedded"
    assert "cut inside words in" in str(outcomes["long.txt"][1])
    assert ends[1].chunks == 0
    assert [row.text for row in rows[0]] == ["Words that can be found again."]


def test_a_parser_killed_twice_over_a_document_costs_it_alone(
    model: Model,
    engine_settings: Settings,
    corpus: list[Path],
    tmp_path: Path,
    make_pdf: Callable[..., bytes],
) -> None:
    slow = tmp_path / "slow.pdf"
    slow.write_bytes(make_pdf(["word " * 2_000], repeat=200_000))
    before = set(children())
    settings = replace(engine_settings, parser_count=1)

    with killing(lambda: {int(pid) for pid in set(children()) - before}, times=2) as killed:
        ends = collect(engine(model, settings).run(sources([slow, *corpus[:4]]), never))[1]
    assert len(killed) == 2
    assert ends[0].outcome == "failed"
    assert "SIGKILL" in str(ends[0].error)
    assert [ends[key].outcome for key in range(1, 5)] == ["embedded"] * 4


def test_stop_is_heard_between_batches_and_while_waiting(
    model: Model,
    engine_settings: Settings,
    corpus: list[Path],
    tmp_path: Path,
    make_pdf: Callable[..., bytes],
) -> None:
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 2

    with pytest.raises(Stopped):
        collect(engine(model, engine_settings).run(sources(corpus), stop))
    slow = tmp_path / "slow.pdf"
    slow.write_bytes(make_pdf(["word " * 2_000], repeat=200_000))
    started = time.monotonic()
    with pytest.raises(Stopped):
        collect(engine(model, engine_settings).run(sources([slow]), lambda: time.monotonic() > started + 1))


def test_closing_the_generator_ends_everything(
    model: Model, engine_settings: Settings, corpus: list[Path]
) -> None:
    results = engine(model, engine_settings).run(sources(corpus * 10), never)
    first = next(results)
    assert isinstance(first, Row | Finished)
    assert engine_threads()
    results.close()  # type: ignore[attr-defined]
    assert not engine_threads()


def test_errors_of_every_stage_reach_the_caller(
    model: Model, engine_settings: Settings, corpus: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def listing() -> Iterator[Source]:
        yield from sources(corpus[:3])
        raise ConnectionError("the listing broke off")

    with pytest.raises(ConnectionError, match="broke off"):
        collect(engine(model, engine_settings).run(listing(), never))

    def opener(uri: str) -> int:
        raise RuntimeError("a fault of the program")

    with pytest.raises(RuntimeError, match="fault of the program"):
        collect(engine(model, engine_settings, opener).run(sources(corpus), never))
    absent = replace(engine_settings, parser_socket="/nonexistent/parser.socket")
    with pytest.raises(ParserUnavailable, match=r"/nonexistent/parser\.socket"):
        collect(engine(model, absent).run(sources(corpus), never))
    broken = engine(model, engine_settings)

    def cut(*_: object) -> Iterator[None]:
        raise MemoryError

    monkeypatch.setattr(broken._chunker, "cut", cut)
    with pytest.raises(MemoryError):
        collect(broken.run(sources(corpus), never))


def test_memory_stays_flat_from_run_to_run(
    model: Model, engine_settings: Settings, corpus: list[Path]
) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

    run = engine(model, engine_settings)
    for _ in range(2):
        collect(run.run(sources(corpus[:6]), never))
    settled = resident()
    for _ in range(4):
        collect(run.run(sources(corpus[:6]), never))
    assert resident() < settled + 24 * 2**20


def test_a_reason_from_the_opener_is_kept(model: Model, engine_settings: Settings) -> None:
    def opener(uri: str) -> int:
        raise DocumentError(f"{uri} is no regular file")

    ends = collect(engine(model, engine_settings, opener).run(sources([Path("/dev/null")]), never))[1]
    assert (ends[0].outcome, ends[0].error) == ("failed", "/dev/null is no regular file")


def test_a_channel_holds_back_by_weight_and_lets_a_heavy_item_pass() -> None:
    channel: Channel[str] = Channel(10, producers=1)
    channel.put("heavy", 99)
    taken: list[str] = []

    def put() -> None:
        channel.put("light", 1)
        channel.done()

    producer = threading.Thread(target=put)
    producer.start()
    producer.join(0.2)
    assert producer.is_alive(), "there is no room beside the heavy item"
    while (item := channel.get()) is not None:
        assert item is not Empty.EMPTY
        taken.append(item)
    producer.join(5)
    assert taken == ["heavy", "light"]
    assert channel.put_seconds > 0.1


def test_an_ordered_channel_lets_the_one_in_turn_pass_when_it_is_full() -> None:
    channel: Channel[str] = Ordered(10, producers=2)
    channel.put("second", 10, place=1)
    assert channel.get(0.0) is Empty.EMPTY, "the first is not there yet"
    waiting = threading.Thread(target=lambda: channel.put("third", 1, place=2))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive(), "there is no room beside the second"
    channel.put("first", 50, place=0)
    assert [channel.get(), channel.get(), channel.get()] == ["first", "second", "third"]
    waiting.join(5)
    channel.done()
    channel.done()
    assert channel.get() is None


def test_a_channel_that_closes_frees_both_sides() -> None:
    channel: Channel[int] = Channel(1, producers=1)
    assert channel.get(0.0) is Empty.EMPTY
    channel.put(1)
    ended: list[type[BaseException]] = []

    def put() -> None:
        try:
            channel.put(2)
        except Closed:
            ended.append(Closed)

    producer = threading.Thread(target=put)
    producer.start()
    channel.close()
    producer.join(5)
    assert ended == [Closed]
    with pytest.raises(Closed):
        channel.get()
