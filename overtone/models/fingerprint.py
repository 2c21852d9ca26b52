"""Fingerprint of a base: SHA-256 of its tensors and of the settings that change numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from overtone.models.parts import Settings, complete, parts_of

NUMBERLESS = ("dither", "pad_to", "position_max_len", "attention_contexts")
"""Settings, besides all dropouts, that change no number of an inference with the base as it is loaded."""
LATER = ("global_attention",)
"""Settings that came later than the first fingerprints: None is as good as absent."""


class Fingerprint:
    """The fingerprint of a base, computed anew only where its tensors have changed."""

    def __init__(self) -> None:
        self._last: tuple[object, str] = (None, "")
        """The state that was seen last and its fingerprint: one value, since several threads may ask."""

    def remember(self, fingerprint: str) -> None:
        """Take the fingerprint of a model whose weights are left out."""
        self._last = None, fingerprint

    def of(self, tensors: Mapping[str, Tensor], settings: Settings) -> str:
        """`sha256:…` over (key, shape, float32 values) of every tensor, of any shape, and the canonical settings.

        Equal for the same values in whatever file and storage precision, with and without adapters.
        """
        if any(tensor.is_meta for tensor in tensors.values()):
            return self._last[1]  # a model without its weights is told by those that it had
        counted = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
        seen = tuple((tensor.data_ptr(), sum_bits(tensor)) for tensor in counted.values())
        last = self._last
        if last[0] != seen:
            digest = hashlib.sha256()
            for name, tensor in sorted(counted.items()):
                digest.update(f"{name}{list(tensor.shape)}".encode())
                values = tensor.detach().float().cpu().contiguous().numpy().astype("<f4", copy=False)
                digest.update(memoryview(values.reshape(-1)))  # type: ignore[arg-type]
            digest.update(canonical_text(settings).encode())
            last = self._last = seen, f"sha256:{digest.hexdigest()}"
        return last[1]


def sum_bits(tensor: Tensor) -> int:
    """The sum of a tensor's memory (any shape) read as whole numbers of 64 bits: a quick sign of any write to it.

    Numbers of 32 bits would take twenty times as long: a sum of them is not vectorised.
    """
    content = tensor.detach().contiguous().flatten()
    if len(content) == 1:  # torch keeps any stride there
        content = content.clone(memory_format=torch.contiguous_format)
    content = content.view(torch.uint8)
    if content.storage_offset() % 8:
        content = content.clone()
    whole = len(content) - len(content) % 8
    return int(content[:whole].view(torch.int64).sum()) + int(content[whole:].sum())


def canonical_text(settings: Settings) -> str:
    """The settings that change numbers, complete with defaults, as one line of JSON."""
    meaningful = {part: canonical(complete(part, settings[part])) for part in parts_of(settings)}
    return json.dumps(meaningful, sort_keys=True, separators=(",", ":"))


def canonical(value: Any) -> Any:
    """Equal numbers and equal sequences in one form, whatever type they came in, without what changes no number."""
    if isinstance(value, Mapping):
        return {
            key: canonical(item)
            for key, item in value.items()
            if key not in NUMBERLESS and not key.startswith("dropout") and not (key in LATER and item is None)
        }
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
