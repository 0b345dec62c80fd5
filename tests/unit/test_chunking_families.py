"""Chunks are exact for every family of tokenizers: the ids are what each gives for the text alone."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_families import FAMILIES, MIXED, PASSAGES, Cased, train

from semantik import reader
from semantik.chunking import Chunk, ChunkCounts, Chunker

#: Words of many scripts, marks, signs and spaces, as a document mixes them; and special tokens, written out.
PIECES = (
    *re.findall(r"\S+|\s+", "\n".join(PASSAGES)),
    *(
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "\r\n",
        ".",
        ". ",
        "。",
        "'s",
        "-",
        "\u0301",
        "\u200d",
        "\ufeff",
        "x" * 60,
    ),
    *("[SEP]", "</s>", "<s>", "<|endoftext|>", "[UNK]", "<unk>"),
)

model_of = cache(train)


def cut(model: Cased, text: str, limit: int, overlap: int) -> tuple[list[Chunk], ChunkCounts]:
    counts = ChunkCounts()
    return list(Chunker(model, chunk_tokens=limit, chunk_overlap=overlap).cut(text, (), counts)), counts  # type: ignore[arg-type]


def different(model: Cased, chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks if model.tokenizer.encode(chunk.text).ids != chunk.ids.tolist()]


def covered(chunks: list[Chunk], text: str) -> str:
    """Return what stands in no chunk, and check that chunks are slices of the text, in order."""
    lost, end = "", 0
    for ordinal, chunk in enumerate(chunks):
        assert chunk.ordinal == ordinal
        assert text[chunk.offset : chunk.offset + len(chunk.text)] == chunk.text
        lost += text[end : chunk.offset]
        end = max(end, chunk.offset + len(chunk.text))
    assert all(one.offset < next_.offset for one, next_ in pairwise(chunks))
    return lost + text[end:]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("limit", "overlap", "window"), [(128, 16, 65_536), (32, 0, 65_536), (48, 8, 4_000)])
def test_real_text_in_many_scripts(
    family: str, limit: int, overlap: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(family)
    monkeypatch.setattr(reader, "WINDOW_BYTES", window)
    chunks, counts = cut(model, MIXED, limit, overlap)
    wrong = different(model, chunks)
    # Thai that BERT's tokenizer takes for one long word is read in parts: other than it would, and counted.
    assert len(wrong) <= counts.parted_chunks
    assert (counts.parted_words > 0) == (family == "wordpiece")
    assert len(chunks) > 100
    assert covered(chunks, MIXED).strip() == ""
    assert max(len(chunk.ids) for chunk in chunks) <= limit
    assert counts.tokens == sum(len(chunk.ids) for chunk in chunks)
    assert (counts.chunks, counts.truncated_tokens) == (len(chunks), 0)
    # No chunk begins or ends with space, as sentence-transformers would strip it.
    assert [chunk.text for chunk in chunks if chunk.text != chunk.text.strip()] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_windows_do_not_show(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(family)
    monkeypatch.setattr(reader, "WINDOW_BYTES", 10**7)
    whole = [(chunk.offset, chunk.ids.tolist()) for chunk in cut(model, MIXED, 64, 8)[0]]
    monkeypatch.setattr(reader, "WINDOW_BYTES", 6_000)
    assert [(chunk.offset, chunk.ids.tolist()) for chunk in cut(model, MIXED, 64, 8)[0]] == whole


@pytest.mark.parametrize("family", FAMILIES)
def test_any_text(family: str) -> None:
    model = model_of(family)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(st.lists(st.sampled_from(PIECES), max_size=120), st.integers(16, 64), st.integers(0, 6))
    @example(
        ["αξιοπρέπεια", "Alle", " "], 16, 0
    )  # no place to cut but behind a space that is not in the text
    def check(pieces: list[str], limit: int, overlap: int) -> None:
        text = "".join(pieces)
        chunks, counts = cut(model, text, limit, min(overlap, (limit - 2) // 2))
        assert len(different(model, chunks)) <= counts.parted_chunks
        assert all(len(chunk.ids) <= limit for chunk in chunks)
        # Letters and signs are all there; what a tokenizer drops (marks, joiners) needs no chunk.
        assert not re.search(r"[^\W_]|[.,;:!?]", covered(chunks, text))
        assert counts.tokens == sum(len(chunk.ids) for chunk in chunks)
        assert counts.unknown_characters <= counts.characters == len(text)
        assert counts.truncated_tokens == 0

    check()


@pytest.mark.parametrize("family", FAMILIES)
def test_space_before_a_text_is_no_chunk(family: str) -> None:
    model = model_of(family)
    text = "  \n " + "wordAlleGewissen中" * 3
    chunks, _ = cut(model, text, 16, 0)
    assert different(model, chunks) == []
    assert covered(chunks, text) == "  \n "
    assert all(chunk.text for chunk in chunks)


# SentencePiece's vocabulary itself has "</s>" as a piece: no switch keeps a text from it, here or elsewhere.
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("xlm-r", "t5")])
def test_special_tokens_in_a_text_are_text(family: str) -> None:
    model = model_of(family)
    special = {*model.prefix.tolist(), *model.suffix.tolist()}
    text = "Before [SEP] </s> <s> <|endoftext|> [CLS] behind."
    (chunk,), _ = cut(model, text, 128, 0)
    inner = chunk.ids[len(model.prefix) : len(chunk.ids) - len(model.suffix)].tolist()
    assert special.isdisjoint(inner)
    assert chunk.text == text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("run", ["a", "中文", "e\u0301", "👍🏽", "0f3a", "=-"])
def test_text_without_spaces_is_cut(family: str, run: str) -> None:
    model = model_of(family)
    text = f"Before. {run * 20_000} After."
    chunks, counts = cut(model, text, 64, 8)
    assert covered(chunks, text).strip() == ""
    assert max(len(chunk.ids) for chunk in chunks) <= 64
    assert max(len(chunk.text) for chunk in chunks) <= 64 * 16
    assert counts.truncated_tokens == 0
    assert chunks[-1].text.endswith("After.")
