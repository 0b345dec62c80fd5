"""The arithmetic of the report, without any measuring."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np


def spread(values: Sequence[float]) -> float:
    """Return how far apart the values are: (largest - smallest) / median."""
    return (max(values) - min(values)) / median(values)


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median of the ratios of each round.

    Contenders take turns in a round, so that what slows the machine for a while slows both sides of a ratio.
    """
    return median(a / b for a, b in zip(numerators, denominators, strict=True))


def min_cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Return the least cosine between rows of (n, dim) and (n, dim); nan where a number is not finite."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    if a.shape != b.shape:
        raise ValueError(f"vectors of shape {a.shape} cannot be compared with {b.shape}")
    with np.errstate(divide="ignore", invalid="ignore"):
        cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(cosines.min())


def padding_waste(model_tokens: int | None, tokens: int) -> float | None:
    """Return the share of padding in what the model was given; None where nobody counted."""
    return None if not model_tokens else 1 - tokens / model_tokens


def best(candidates: dict[int, Sequence[float]]) -> int:
    """Return the batch size with the highest rate; several rates of one size count by their best."""
    return max(candidates, key=lambda size: max(candidates[size]))


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table, its columns aligned for a terminal."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines
