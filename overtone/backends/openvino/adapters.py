"""Adapters of a batch as inputs of OpenVINO's graph.

Legend: B batch, A adapters (1 for all rows, or B), R bottleneck, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from overtone.errors import AdapterError
from overtone.nets.taps import Bottleneck, PluggedAdapter, Tap

BottleneckInputs = tuple[Tensor, Tensor, Tensor]
"""y + up·swish(down·norm(y) + bias): down [A, R, D], bias [A, 1, R], up [A, D, R]."""
ACTIVATIONS = ("swish", "silu")
"""Names of the activation in the graph."""
OTHERWISE = "Let PyTorch compute: compute_dtype (on the command line, --dtype) auto, float32 or bfloat16."


def bottlenecks_at(tap: Tap, point: str, rows: int, dtype: torch.dtype) -> BottleneckInputs:
    """The adapters that act at a tap on a batch of so many rows, in `dtype`.

    Rows without an adapter have zeros, narrower adapters zeros beyond their own: both add zero. `point` names the tap
    in messages. Raises AdapterError for what is no such sum.
    """
    chains = tap.chains(rows)
    if any(len(chain) > 1 for chain in chains.by_row):
        raise AdapterError(f"Chains of adapters at one point ({point}) are not for OpenVINO: one a row is. {OTHERWISE}")
    if chains.observed:
        raise AdapterError(f"OpenVINO tells nothing of what adapters add: they cannot be observed. {OTHERWISE}")
    forms = [form_of(chain[0], dtype) if chain else None for chain in chains.by_row]
    first = next(form for form in forms if form is not None)
    width = first.up.size(0)
    if len(forms) == 1:
        return first.down.unsqueeze(0), first.bias.view(1, 1, -1), first.up.unsqueeze(0)
    inner = max(form.bias.size(0) for form in forms if form is not None)
    downs, ups = torch.zeros(len(forms), inner, width, dtype=dtype), torch.zeros(len(forms), width, inner, dtype=dtype)
    biases = torch.zeros(len(forms), 1, inner, dtype=dtype)
    for row, form in enumerate(forms):
        if form is not None:
            size = form.bias.size(0)
            downs[row, :size], biases[row, 0, :size], ups[row, :, :size] = form.down, form.bias, form.up
    return downs, biases, ups


def form_of(adapter: PluggedAdapter, dtype: torch.dtype) -> Bottleneck:
    """The adapter as the graph computes it. Raises AdapterError for another form, and for one in training."""
    form = adapter.bottleneck(dtype)
    if form is None or form.activation not in ACTIVATIONS:
        raise AdapterError(
            f"Adapter '{adapter.name}' cannot be computed by OpenVINO: it is {adapter.kind!r}. "
            f"Allowed are linear adapters with norm_position 'pre' and activation 'swish'. {OTHERWISE}"
        )
    if adapter.training:
        raise AdapterError(
            f"Adapter '{adapter.name}' is being trained, and OpenVINO computes no gradients. {OTHERWISE}"
        )
    return form
