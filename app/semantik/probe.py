"""Texts of any length for what a process tries when it loads its model: precision, memory and speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from semantik.model import Model

#: Prose, a list, code, figures, other alphabets: what documents are made of.
SENTENCES = (
    "The tide comes in twice a day, and the harbour master writes down how high it stood.",
    "Each worker renews its lease every ten seconds; a lease that is not renewed runs out after a minute.",
    "Zutaten: 500 g Mehl, 20 g Hefe, 1 Prise Salz, lauwarmes Wasser, etwas Olivenöl.",
    "def area(radius: float) -> float:\n    return 3.14159 * radius ** 2",
    "Invoice 2024-0817: 3 x 1,299.00 EUR, net 30 days, VAT 19 %, total 4,637.43 EUR.",
    "La bibliothèque ferme à dix-huit heures, sauf le jeudi où elle reste ouverte jusqu'à vingt heures.",
    "Квантовые компьютеры пока не заменяют обычные, но некоторые задачи решают быстрее.",
    "今天的会议改到下午三点。请把报告提前发给大家。",
    "Patients with a history of heart disease were excluded from the second part of the study.",
    "error: connection to 10.0.4.17:5432 refused (attempt 3 of 5), see /var/log/app/server.log",
)


def texts(model: Model, lengths: Sequence[int]) -> list[NDArray[np.int64]]:
    """Return one text per length (tokens, special ones included; at most what the model takes), as ids.

    No two begin with the same sentence until all sentences are used up.
    """
    sentences = [
        np.array(model.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        for text in SENTENCES
    ]
    wrapped: list[NDArray[np.int64]] = []
    for at, length in enumerate(lengths):
        inner = max(1, min(length, model.max_tokens) - len(model.prefix) - len(model.suffix))
        turned = np.concatenate([*sentences[at % len(sentences) :], *sentences[: at % len(sentences)]])
        body: NDArray[Any] = np.resize(turned, inner)  # repeats it as often as it takes
        wrapped.append(np.concatenate((model.prefix, body, model.suffix)))
    return wrapped
