# Passages in many scripts, a line each.
# ruff: noqa: E501, RUF001
"""Small tokenizers of each family that embedding models have, trained on real text of many scripts."""

from __future__ import annotations

import pydoc_data.topics
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from semantik.prompts import wrapping

#: The first article of the Universal Declaration of Human Rights, and what people write besides prose.
PASSAGES = (
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "เราทุกคนเกิดมาอย่างอิสระเราทุกคนมีความคิดและความเข้าใจเป็นของเราเองเราทุกคนควรได้รับการปฏิบัติในทางเดียวกัน",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا.",
    "Tie\u0302\u0301ng Vie\u0323\u0302t: moi ngu\u031bo\u031b\u0300i sinh ra \u0111e\u0302\u0300u tu\u031b\u0323 do 👍🏽 👨‍👩‍👧 🇩🇪!",
    "def f(x):\n    return {'a': [x ** 2 for x in range(10)]}  # x's squares\n\n\n\tif (x):\r\n\t\tpass\n",
    "| a   | b    |\n|-----|------|\n| 1.5 | 2,000 |\n\nSee https://example.org/a/b?c=d&e=%20f#top (it's 3.14).\n",
)
CORPUS = "\n\n".join((*pydoc_data.topics.topics.values(), *(PASSAGES * 3)))
#: A text in which every script comes up again and again, between English prose and code.
MIXED = "\n\n".join(
    f"{topic[:900]}\n\n{PASSAGES[at % len(PASSAGES)]} {PASSAGES[(at + 5) % len(PASSAGES)] * 3}"
    for at, topic in enumerate(list(pydoc_data.topics.topics.values())[:52])
)


@dataclass
class Cased:
    """What the chunker needs of a model: a tokenizer and what goes around a text."""

    name: str
    tokenizer: Tokenizer
    prefix: NDArray[np.int64]
    suffix: NDArray[np.int64]
    max_tokens: int = 128


def _train(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator([CORPUS[at : at + 2_000] for at in range(0, len(CORPUS), 2_000)], trainer)
    return tokenizer


def _wordpiece() -> Tokenizer:
    """Of BERT, cased: accents stay."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    _train(
        tokenizer, trainers.WordPieceTrainer(vocab_size=4_000, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _bytes(prefix_space: bool) -> Tokenizer:
    """Of GPT-2 and RoBERTa: the space before a word is in its first token, and offsets are trimmed."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(
        tokenizer,
        trainers.BpeTrainer(
            vocab_size=4_000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=prefix_space
    )
    return tokenizer


def _qwen() -> Tokenizer:
    """Of Qwen and Llama 3: NFC, words by a pattern that joins marks and line ends, an end sign behind."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(
        tokenizer,
        trainers.BpeTrainer(
            vocab_size=4_000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]),
        ]
    )
    return tokenizer


def _unigram(split: bool) -> Tokenizer:
    """Of XLM-R (words split at space first) or T5: NFKC, a sign for each word's beginning, best split wins."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace]) if split else metaspace
    )
    tokenizer.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    _train(
        tokenizer,
        trainers.UnigramTrainer(
            vocab_size=4_000, special_tokens=special, unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _gemma(prepend: bool) -> Tokenizer:
    """Of Gemma, or Mistral: pairs of characters over the whole text at once, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    # Trained on words, as SentencePiece does: no token goes over the space before a word.
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex("\u2581+[^\u2581\\n]*|\\n+|[^\u2581\\n]+"), "isolated"
    )
    special = ["<s>", "<pad>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    _train(tokenizer, trainers.BpeTrainer(vocab_size=4_000, special_tokens=special, show_progress=False))
    if prepend:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), tokenizer.normalizer])
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.pre_tokenizer = None
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


FAMILIES = {
    "wordpiece": _wordpiece,
    "gpt2": lambda: _bytes(False),
    "roberta": lambda: _bytes(True),
    "qwen": _qwen,
    "xlm-r": lambda: _unigram(True),
    "t5": lambda: _unigram(False),
    "gemma": lambda: _gemma(False),
    "mistral": lambda: _gemma(True),
}


def train(family: str) -> Cased:
    """Return a model-like object with a small tokenizer of the family."""
    tokenizer = FAMILIES[family]()
    prefix, suffix = wrapping(tokenizer, "")
    return Cased(family, tokenizer, prefix, suffix)
