"""Sentence-transformers directories with random weights, made on the spot: any shape, no download."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, BertConfig, PretrainedConfig, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def bert_config(vocabulary: int = 500, width: int = 32, positions: int = 128) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=positions,
    )  # fmt: skip


def tokenizer(*, pad_left: bool = False, limit: int = 128) -> PreTrainedTokenizerFast:
    """Return a tokenizer of letters and digits: special tokens around as BERT has, or at the end as Qwen3."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:"
    words = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    inner = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    single = "$A [SEP]" if pad_left else "[CLS] $A [SEP]"
    inner.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        padding_side="left" if pad_left else "right",
        model_max_length=limit,
    )


def tiny_model(
    directory: Path,
    *,
    config: PretrainedConfig | None = None,
    pooling: str = "mean",
    include_prompt: bool = True,
    more: Sequence[Any] = (),
    prompts: dict[str, str] | None = None,
    truncate_dim: int | None = None,
    dtype: str = "float32",
    vocabulary: int = 500,
    width: int = 32,
    change: Callable[[Any], None] | None = None,
) -> Path:
    """Write a model and return `directory`. `more`: modules behind the pooling. `change` gets the network."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(7)
    config = config or bert_config(vocabulary, width)
    base = directory.parent / f"{directory.name}-base"
    inner = AutoModel.from_config(config)
    with torch.no_grad():
        for parameter in inner.parameters():  # the usual 0.02 makes all vectors alike
            if parameter.dim() > 1:
                parameter.mul_(5)
    inner.save_pretrained(base)
    pad_left = config.model_type != "bert"
    tokenizer(pad_left=pad_left).save_pretrained(base)
    transformer = Transformer(str(base))
    width = transformer.get_embedding_dimension()
    pool = Pooling(width, pooling_mode=pooling, include_prompt=include_prompt)
    network = SentenceTransformer(
        modules=[transformer, pool, *more], prompts=prompts, truncate_dim=truncate_dim, device="cpu"
    )
    with torch.no_grad():
        if change is not None:
            change(network)
    network.to(getattr(torch, dtype))
    network.save(str(directory))
    return directory
