"""Any sentence-transformers directory gives what that library's own encode gives: shapes made on the spot."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from tiny import bert_config, tiny_model
from transformers import Qwen3Config

from semantik.model import Model, load_model
from semantik.settings import Settings

TEXTS = [
    "a short one",
    "the tide comes in twice a day, and the harbour master writes down how high it stood.",
    "x",
    "error: connection to 10.0.4.17:5432 refused, attempt 3 of 5",
]
PROMPTS = {"query": "find: ", "document": "text: "}


def qwen3() -> Qwen3Config:
    return Qwen3Config(
        vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128,
    )  # fmt: skip


SHAPES: dict[str, dict[str, Any]] = {
    "mean": {},
    "cls": {"pooling": "cls"},
    "max": {"pooling": "max"},
    "two poolings": {"pooling": ("cls", "mean")},
    "normalised": {"more": [Normalize()]},
    "dense": {"more": [Dense(32, 12), Normalize()]},
    "matryoshka": {"more": [Normalize()], "truncate_dim": 8},
    "prompts": {"prompts": PROMPTS, "more": [Normalize()]},
    "prompt not pooled": {"prompts": PROMPTS, "include_prompt": False},
    "passages": {"prompts": {"query": "find: ", "passage": "text: "}},
    "qwen3": {
        "config": "qwen3",
        "pooling": "lasttoken",
        "more": [Normalize()],
        "prompts": {"query": "find: "},
    },
    "qwen3 mean, prompt not pooled": {"config": "qwen3", "include_prompt": False, "prompts": PROMPTS},
}


def ids_of(model: Model, text: str) -> Any:
    inner = model.tokenizer.encode(text, add_special_tokens=False).ids
    return np.concatenate((model.prefix, np.array(inner, dtype=np.int64), model.suffix))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("padded", [False, True], ids=["as it runs", "padded"])
def test_vectors_equal_those_of_sentence_transformers(
    name: str, padded: bool, tmp_path: Path, engine_settings: Settings
) -> None:
    made = dict(SHAPES[name])
    if made.get("config") == "qwen3":
        made["config"] = qwen3()
    directory = tiny_model(tmp_path / "model", **made)
    theirs = SentenceTransformer(str(directory), device="cpu")
    ours = load_model(replace(engine_settings, model_dir=str(directory)))
    if padded:
        ours._forward = None
    expected = theirs.encode_document(TEXTS)
    got = ours.embed_ids([ids_of(ours, text) for text in TEXTS])
    assert got.shape == (len(TEXTS), ours.dim) == expected.shape
    np.testing.assert_allclose(got, expected, atol=2e-5, rtol=1e-4)
    # One by one, no text has padding.
    one = np.concatenate([ours.embed_ids([ids_of(ours, text)]) for text in TEXTS])
    np.testing.assert_allclose(one, expected, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(
        ours.embed_question(TEXTS[1]), theirs.encode_query(TEXTS[1]), atol=2e-5, rtol=1e-4
    )


def test_the_shapes_differ(tmp_path: Path, engine_settings: Settings) -> None:
    """Were all texts alike to these models, the comparison above could not fail."""
    for name, config in (("bert", bert_config()), ("qwen3", qwen3())):
        directory = tiny_model(tmp_path / name, config=config, more=[Normalize()], prompts=PROMPTS)
        model = load_model(replace(engine_settings, model_dir=str(directory)))
        vectors = model.embed_ids([ids_of(model, text) for text in TEXTS])
        assert (vectors @ vectors.T - np.eye(len(TEXTS))).max() < 0.999
        question = model.embed_question(TEXTS[0])
        assert float(question @ vectors[0]) < 0.999  # the prompts differ
