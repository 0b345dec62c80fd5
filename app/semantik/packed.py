"""Linear layers with weights in the order in which this processor multiplies fastest, by oneDNN.

torch's own layer leaves the order to each multiplication. The operators are those that torch's compiler puts
in the place of a linear layer on a CPU; they need no compiler here.

Imports torch: only for processes that load a model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Rows of a typical batch, for which oneDNN chooses the order; others are multiplied in it as well.
_ROWS = 1_024
# Rows are multiplied in multiples of this, fewer in powers of two. oneDNN makes a program for each number of
# rows that it meets, of a megabyte or more, and keeps a thousand of them: a worker would grow by gigabytes.
_ROWS_STEP = 128
_LEAST_ROWS = 16


def round_rows(rows: int) -> int:
    """Return how many rows are multiplied where there are `rows`."""
    if rows > _ROWS_STEP // 2:
        return rows + -rows % _ROWS_STEP
    return max(_LEAST_ROWS, 1 << max(0, rows - 1).bit_length())


class PackedLinear(torch.nn.Module):
    """A linear layer for inference: (..., in) to (..., out), with exact GELU behind it where wanted."""

    def __init__(self, layer: torch.nn.Linear, *, gelu: bool) -> None:
        """Take over the weights of `layer`, float32 or bfloat16 on the CPU."""
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._gelu = gelu
        weight = layer.weight.detach().contiguous()
        # No parameter: its memory has an order of its own, which saving or moving it would lose.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
        self._bias = None if layer.bias is None else layer.bias.detach().contiguous()

    def forward(self, states: Tensor) -> Tensor:
        """Return the layer's output."""
        flat = states.reshape(-1, self.in_features)
        rows = len(flat)
        if more := round_rows(rows) - rows:
            flat = torch.nn.functional.pad(flat, (0, 0, 0, more))
        activation, algorithm = ("gelu", "none") if self._gelu else ("none", "")
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            flat, self._packed, self._bias, activation, [], algorithm
        )
        return result[:rows].view(*states.shape[:-1], self.out_features)


class Packing:
    """Replaces the linear layers of a network in place: one of each kind on trial, then the rest.

    So the weights are in memory once, but for those on trial; `undo` puts these back.
    """

    def __init__(self, transformer: Any) -> None:
        self._transformer = transformer
        self._replaced: list[tuple[Any, str, Any]] = []

    def try_some(self) -> str | None:
        """Replace one layer of each kind of place; return why it cannot be done, with some replaced."""
        tried = set()
        try:
            for module, name in self._places():
                if (type(module), name) not in tried:
                    tried.add((type(module), name))
                    self._replace(module, name)
        except (RuntimeError, AttributeError) as error:  # a processor without what oneDNN needs for bfloat16
            return " ".join(str(error).split())[:200]
        return None

    def finish(self) -> None:
        """Replace the others, each of which then gives its memory back."""
        self._replaced.clear()
        for module, name in self._places():
            self._replace(module, name)
            self._replaced.clear()

    def undo(self) -> None:
        """Put back what was replaced."""
        while self._replaced:
            module, name, own = self._replaced.pop()
            setattr(module, name, own)

    def _places(self) -> list[tuple[Any, str]]:
        """Return the layers to replace, as (parent, name): none without oneDNN."""
        return [
            (module, name)
            for module in self._transformer.modules()
            for name, layer in module.named_children()
            if torch._C._has_mkldnn
            and type(layer) is torch.nn.Linear
            and layer.weight.dtype in (torch.float32, torch.bfloat16)
        ]

    def _replace(self, module: Any, name: str) -> None:
        layer = getattr(module, name)
        gelu = name == "dense" and _exact_gelu(getattr(module, "intermediate_act_fn", None))
        new = PackedLinear(layer, gelu=gelu)
        if gelu:  # a BERT's intermediate layer
            self._replaced.append((module, "intermediate_act_fn", module.intermediate_act_fn))
            module.intermediate_act_fn = torch.nn.Identity()
        self._replaced.append((module, name, layer))
        setattr(module, name, new)


def _exact_gelu(activation: Any) -> bool:
    if isinstance(activation, torch.nn.GELU):
        return activation.approximate == "none"
    return type(activation).__name__ == "GELUActivation"
