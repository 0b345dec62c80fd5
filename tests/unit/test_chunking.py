"""Chunks are exact slices, of the text and of what the tokenizer makes of it, on real text and on noise."""

from __future__ import annotations

import pydoc_data.topics
import re
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semantik import chunking, reader
from semantik.chunking import Chunk, ChunkCounts, Chunker
from semantik.exceptions import SettingsError
from semantik.model import Model

#: Python's own language reference: 600 kB of prose and code that every interpreter carries.
REFERENCE = "\n\n\n".join(pydoc_data.topics.topics.values())
CLS, UNK, SEP = 101, 100, 102


@dataclass
class Cut:
    chunks: list[Chunk]
    counts: ChunkCounts


def cut(chunker: Chunker, text: str, sections: list[tuple[int, str]] | None = None) -> Cut:
    counts = ChunkCounts()
    return Cut(list(chunker.cut(text, sections or [], counts)), counts)


@pytest.fixture(scope="module")
def chunker(model: Model) -> Chunker:
    return Chunker(model, chunk_tokens=0, chunk_overlap=32)


def assert_covers(chunks: list[Chunk], text: str) -> None:
    """Chunks are slices of the text, in order, and leave out nothing but space."""
    covered, before = 0, -1
    for ordinal, chunk in enumerate(chunks):
        assert chunk.ordinal == ordinal
        assert before < chunk.offset
        assert text.startswith(chunk.text, chunk.offset)
        lost = text[covered : chunk.offset].strip()
        assert not lost, f"lost before chunk {ordinal}: {lost[:100]!r}"
        covered, before = chunk.offset + len(chunk.text), chunk.offset
    assert not text[covered:].strip(), "the end is lost"


def test_ids_equal_the_tokenizers_on_real_text(model: Model, chunker: Chunker) -> None:
    result = cut(chunker, REFERENCE)
    assert_covers(result.chunks, REFERENCE)
    different = [
        chunk.text for chunk in result.chunks if model.tokenizer.encode(chunk.text).ids != chunk.ids.tolist()
    ]
    assert len(result.chunks) > 500
    assert different == []
    assert max(len(chunk.ids) for chunk in result.chunks) <= model.max_tokens
    assert result.counts.tokens == sum(len(chunk.ids) for chunk in result.chunks)
    assert (result.counts.truncated_tokens, result.counts.split_words) == (0, 0)
    assert result.counts.chunks == len(result.chunks)


def test_chunks_overlap_and_end_where_text_ends_something(chunker: Chunker) -> None:
    chunks = cut(chunker, REFERENCE).chunks
    overlapping = sum(after.offset < chunk.offset + len(chunk.text) for chunk, after in pairwise(chunks))
    assert overlapping > 0.5 * len(chunks)
    ends = sum(
        bool(re.match(r"\s*\n\s*\n|$", REFERENCE[chunk.offset + len(chunk.text) :]))
        or bool(re.search(r"[.!?:][\"')\]]*$", chunk.text))
        for chunk in chunks
    )
    assert ends > 0.8 * len(chunks)
    # Never inside a word; a rule of dashes, which has no better place, may be parted.
    starts = [(REFERENCE[chunk.offset - 1], chunk.text[0]) for chunk in chunks[1:]]
    assert [pair for pair in starts if pair[0].isalnum() and pair[1].isalnum()] == []


def test_windows_do_not_show(model: Model, chunker: Chunker, monkeypatch: pytest.MonkeyPatch) -> None:
    text = REFERENCE[:100_000]
    one = [chunk.text for chunk in cut(chunker, text).chunks]
    monkeypatch.setattr(reader, "WINDOW_BYTES", 3_000)
    assert [chunk.text for chunk in cut(chunker, text).chunks] == one


def test_place_is_the_section_that_a_chunk_starts_in(chunker: Chunker) -> None:
    paragraph = "A sentence about the matter at hand, and then some more of it. " * 30
    pages = [paragraph] * 4
    text = "\n\n".join(pages)
    offsets = [at * (len(paragraph) + 2) for at in range(4)]
    chunks = cut(chunker, text, [(offset, f"page {n}") for n, offset in enumerate(offsets, start=1)]).chunks
    assert [chunk.place for chunk in chunks] == sorted(str(chunk.place) for chunk in chunks)
    assert {chunk.place for chunk in chunks} == {"page 1", "page 2", "page 3", "page 4"}
    assert cut(chunker, "Before any heading.", [(10, "later")]).chunks[0].place is None


def test_a_word_without_end_is_cut_and_counted(model: Model, chunker: Chunker) -> None:
    text = "Before. " + "x" * 1_000_000 + " After."
    result = cut(chunker, text)
    assert_covers(result.chunks, text)
    limit = model.max_tokens * chunking.CHARACTERS_PER_TOKEN
    assert max(len(chunk.text) for chunk in result.chunks) <= limit
    assert result.counts.split_words >= 1_000_000 // limit
    assert result.counts.truncated_tokens == 0
    assert result.counts.unknown_characters == 1_000_000
    assert "was cut inside words in" in str(result.counts.note())


def test_layout_of_spaces_keeps_to_the_limit_in_characters(model: Model, chunker: Chunker) -> None:
    text = ("cell" + " " * 500) * 400
    result = cut(chunker, text)
    assert_covers(result.chunks, text)
    assert max(len(chunk.text) for chunk in result.chunks) <= model.max_tokens * chunking.CHARACTERS_PER_TOKEN


def test_a_long_word_is_read_in_parts(model: Model, chunker: Chunker) -> None:
    checksum = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" * 2
    assert model.tokenizer.encode(checksum).ids == [CLS, UNK, SEP]
    result = cut(chunker, f"Its checksum is {checksum}, as published.")
    assert [chunk.text for chunk in result.chunks] == [f"Its checksum is {checksum}, as published."]
    assert UNK not in result.chunks[0].ids
    assert (result.counts.parted_words, result.counts.parted_chunks, result.counts.unknown_tokens) == (
        1,
        1,
        0,
    )
    assert result.counts.note() is None


def test_what_the_model_does_not_know_is_counted_and_said(chunker: Chunker) -> None:
    result = cut(chunker, "word " * 20 + "😀👍 " * 10)
    assert (result.counts.unknown_tokens, result.counts.unknown_characters) == (10, 20)
    assert result.counts.note() == (
        "20 of 130 characters are in 10 words that the model does not know: searches hardly find them"
    )
    few = cut(chunker, "word " * 200 + "😀")
    assert (few.counts.unknown_tokens, few.counts.note()) == (1, None)


@pytest.mark.parametrize("text", ["", "   \n\n \t", "\x01\x02"])
def test_nothing_to_say_gives_no_chunk(chunker: Chunker, text: str) -> None:
    assert cut(chunker, text).chunks == []


def test_no_cut_without_space_leaves_the_tokenizers_words(model: Model, chunker: Chunker) -> None:
    text = "中文文本没有空格" * 400
    result = cut(chunker, text)
    assert_covers(result.chunks, text)
    assert all(model.tokenizer.encode(chunk.text).ids == chunk.ids.tolist() for chunk in result.chunks)
    assert result.counts.split_words == 0


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab .,\n\té中\u0301\u200d\ufffd-'\"!?"), max_size=3_000), st.integers(16, 64))
def test_any_text_is_covered(model: Model, text: str, limit: int) -> None:
    small = Chunker(model, chunk_tokens=limit, chunk_overlap=4)
    result = cut(small, text)
    assert all(3 <= len(chunk.ids) <= limit for chunk in result.chunks)
    assert all(chunk.ids[0] == CLS and chunk.ids[-1] == SEP for chunk in result.chunks)
    joined = "".join(chunk.text for chunk in result.chunks)
    wanted = set(re.findall(r"[ab中é.,!?]", text))
    assert wanted <= set(joined)
    assert all(model.tokenizer.encode(chunk.text).ids == chunk.ids.tolist() for chunk in result.chunks)


def test_limits_that_cannot_work_are_refused(model: Model) -> None:
    with pytest.raises(SettingsError, match=r"CHUNK_TOKENS=512 .*--chunk-tokens.* at most 256"):
        Chunker(model, chunk_tokens=512)
    with pytest.raises(SettingsError, match="CHUNK_TOKENS=8 leaves"):
        Chunker(model, chunk_tokens=8)
    with pytest.raises(SettingsError, match="CHUNK_OVERLAP=200"):
        Chunker(model, chunk_tokens=0, chunk_overlap=200)
