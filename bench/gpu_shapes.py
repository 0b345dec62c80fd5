"""Models of well-known shapes with random weights, and the arithmetic that a forward pass of them takes.

Speed depends on shapes alone, so nothing is downloaded: configurations are written here, and the tokenizer
has words of its own, one token each, so that a text has exactly the length that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDS = 900
#: Before them: [PAD] [UNK] [CLS] [SEP].
FIRST_WORD = 4


@dataclass(frozen=True)
class Shape:
    """A transformer's sizes. `stored`: the precision of its weights on disk."""

    name: str
    kind: str  # bert or qwen3
    layers: int
    hidden: int
    heads: int
    inner: int
    vocabulary: int
    pooling: str
    stored: str
    groups: int = 0  # heads of keys and values, where they are fewer
    head: int = 0  # dimensions of a head, where it is not hidden / heads

    @property
    def attention(self) -> int:
        """Width of all heads together."""
        return (self.head or self.hidden // self.heads) * self.heads

    def flops(self, length: int) -> float:
        """Return the floating-point operations per token in texts of `length` tokens, forward only.

        Two per weight of each matrix product (embedding tables are looked up, not multiplied), and in
        attention 2·length·width for the scores and as many for the weighted sum: half of both where a token
        sees only those before it. The count of the PaLM paper (Chowdhery et al. 2022, appendix B) without
        its backward pass.
        """
        keys = self.attention * (self.groups or self.heads) // self.heads
        matrices = self.hidden * (2 * self.attention + 2 * keys)
        matrices += (3 if self.kind == "qwen3" else 2) * self.hidden * self.inner
        scores = 4 * length * self.attention * (0.5 if self.kind == "qwen3" else 1.0)
        return self.layers * (2 * matrices + scores)


SHAPES = (
    Shape("MiniLM-L6", "bert", 6, 384, 12, 1536, 30_522, "mean", "float32"),
    Shape("bge-base", "bert", 12, 768, 12, 3072, 30_522, "cls", "float32"),
    Shape("Qwen3-Embedding-0.6B", "qwen3", 28, 1024, 16, 3072, 151_669, "lasttoken", "bfloat16", 8, 128),
)
TINY = (
    Shape("tiny-bert", "bert", 2, 64, 2, 128, 1_000, "mean", "float32"),
    Shape("tiny-qwen3", "qwen3", 2, 64, 2, 128, 1_000, "lasttoken", "bfloat16", groups=1, head=32),
)

#: Dense float16/bfloat16 tensor-core rate with float32 accumulation, FLOP/s: NVIDIA's datasheets (H100 and
#: H200 2024, A100 2021, L40S 2023) and, for the 4090, the Ada architecture whitepaper (2023). Sparsity, which
#: doubles the figures in the headlines, is left out. Longer names come first.
PEAKS = (
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("RTX 4090", 165e12),
)


def peak(card: str) -> float | None:
    """Return the card's dense half-precision peak in FLOP/s, None where it is not in the table."""
    return next((rate for name, rate in PEAKS if name in card), None)


def ids(shape: Shape, length: int, count: int, seed: int) -> list[NDArray[np.int64]]:
    """Return `count` texts of `length` tokens as ids, with the shape's special tokens around random words."""
    random = np.random.default_rng(seed)
    texts = random.integers(FIRST_WORD, FIRST_WORD + WORDS, (count, length))
    texts[:, -1] = 3
    if shape.kind == "bert":
        texts[:, 0] = 2
    return list(texts)


def as_text(shape: Shape, text: NDArray[np.int64]) -> str:
    """Return the words whose ids sentence-transformers will find again."""
    inner = text[1:-1] if shape.kind == "bert" else text[:-1]
    return " ".join(f"w{word}" for word in inner)


def write(shape: Shape, directory: Path, limit: int) -> Path:
    """Write a sentence-transformers model of this shape that takes `limit` tokens, and return `directory`."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoModel

    torch.manual_seed(11)
    base = directory / "base"
    AutoModel.from_config(_config(shape, limit)).to(getattr(torch, shape.stored)).save_pretrained(base)
    _tokenizer(shape, limit).save_pretrained(base)
    transformer = Transformer(str(base), model_kwargs={"dtype": "auto"})
    pooling = Pooling(shape.hidden, pooling_mode=shape.pooling)
    network = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")
    target = directory / shape.name
    network.save(str(target))
    return target


def _config(shape: Shape, limit: int) -> Any:
    from transformers import BertConfig, Qwen3Config

    common = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.inner,
        "max_position_embeddings": limit,
        "pad_token_id": 0,
    }
    if shape.kind == "bert":
        return BertConfig(**common)
    return Qwen3Config(**common, num_key_value_heads=shape.groups, head_dim=shape.head)


def _tokenizer(shape: Shape, limit: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{at}" for at in range(FIRST_WORD, FIRST_WORD + WORDS))]
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "[CLS] $A [SEP]" if shape.kind == "bert" else "$A [SEP]"
    inner.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    side = "right" if shape.kind == "bert" else "left"
    return PreTrainedTokenizerFast(tokenizer_object=inner, padding_side=side, model_max_length=limit, **names)
