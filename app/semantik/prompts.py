"""What a model wants around the ids of a text: special tokens, and the prompt for documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from semantik.exceptions import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer


def document_prompt(network: Any) -> str:
    """Return what sentence-transformers' encode_document puts before a text."""
    prompts = network.prompts or {}
    for name in ("document", "passage", "corpus", network.default_prompt_name):
        if name in prompts:
            return prompts[name] or ""
    return ""


def bare_tokenizer(own: Any) -> Tokenizer:
    """Return a copy of the fast tokenizer that neither truncates nor pads, as the model's own does.

    Raises SettingsError where the model has no fast tokenizer.
    """
    from tokenizers import Tokenizer

    backend = getattr(own, "backend_tokenizer", None)
    if backend is None:
        raise SettingsError(f"{type(own).__name__} is no fast tokenizer: exact chunks need one")
    copy: Tokenizer = Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def wrapping(tokenizer: Tokenizer, prompt: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ids that the model wants before and after those of a document.

    Raises SettingsError where special tokens change the ids of the text between them.
    """
    probe = tokenizer.encode("word", add_special_tokens=False).ids
    plain = tokenizer.encode("word").ids
    starts = [at for at in range(len(plain)) if plain[at : at + len(probe)] == probe]
    if not starts:
        raise SettingsError(
            "the tokenizer changes a text's ids when it adds special tokens: chunks cannot be exact"
        )
    after = len(plain) - starts[0] - len(probe)
    whole = tokenizer.encode(f"{prompt}word").ids
    before = len(whole) - after - len(probe)
    return np.array(whole[:before], dtype=np.int64), np.array(whole[len(whole) - after :], dtype=np.int64)
