"""Adapters as plain tensors, for an engine that computes them outside of PyTorch.

Legend: A adapters (1 for all rows, or one a row), R bottleneck, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from overtone.adapters.kinds.kinds import LinearAdapter
from overtone.adapters.selection import Selection
from overtone.backends.openvino.encoder import OTHERWISE, Bottleneck
from overtone.errors import AdapterError


def bottleneck_at(selection: Selection, point: str, rows: int, dtype: torch.dtype) -> Bottleneck:
    """What acts at the point, as y + up·swish(down·norm(y) + bias): down [A, R, D], bias [A, 1, R], up [A, D, R].

    Rows without an adapter have zeros, narrower adapters zeros beyond their own: both add zero. Raises AdapterError
    for what is no such sum.
    """
    selection.check_rows(rows)
    stages = selection.stages_at(point)
    if len(stages) > 1:
        raise AdapterError(f"Chains of adapters at one point ({point}) are not for OpenVINO: one a row is. {OTHERWISE}")
    if selection.observe is not None:
        raise AdapterError(f"OpenVINO tells nothing of what adapters add: they cannot be observed. {OTHERWISE}")
    parts = [None if name is None else tensors_of(selection, name, point, dtype) for name in stages[0].names]
    down, bias, up = next(part for part in parts if part is not None)
    width = up.size(0)
    if len(parts) == 1:
        return down.unsqueeze(0), bias.view(1, 1, -1), up.unsqueeze(0)
    inner = max(part[1].size(0) for part in parts if part is not None)
    downs, ups = torch.zeros(len(parts), inner, width, dtype=dtype), torch.zeros(len(parts), width, inner, dtype=dtype)
    biases = torch.zeros(len(parts), 1, inner, dtype=dtype)
    for row, part in enumerate(parts):
        if part is not None:
            size = part[1].size(0)
            downs[row, :size], biases[row, 0, :size], ups[row, :, :size] = part
    return downs, biases, ups


def tensors_of(selection: Selection, name: str, point: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """down [R, D], bias [R] and up [D, R] of one adapter."""
    adapter = selection.adapters[name]
    kind = adapter.kind
    if not isinstance(kind, LinearAdapter) or kind.norm_position != "pre" or kind.activation not in ("swish", "silu"):
        raise AdapterError(
            f"Adapter '{name}' cannot be computed by OpenVINO: it is {kind!r}. "
            f"Allowed are linear adapters with norm_position 'pre' and activation 'swish'. {OTHERWISE}"
        )
    if adapter.training:
        raise AdapterError(f"Adapter '{name}' is being trained, and OpenVINO computes no gradients. {OTHERWISE}")
    part = adapter.at(point)
    tensors = part.ready(dtype)
    if "down.bias" not in tensors:
        tensors = kind.ready(tensors, dtype)
    return tensors["down.weight"].detach(), tensors["down.bias"].detach(), tensors["up.weight"].detach()
