"""A private copy of a frozen encoder in another dtype, and the choice of the copy that computes an encoder.

Legend: B batch, T mel frames, T' encoder frames, F mel bins, D width.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from overtone.backends.fused.encoder import FusedEncoder
from overtone.nets.conformer import ConformerEncoder
from overtone.nets.encoder import Encoder
from overtone.nets.taps import Tap

CAST = (nn.Conv1d, nn.Linear)
"""Modules whose weights are cast; norms stay in float32."""


class CastEncoder:
    """mel [B, F, T] float32, lengths [B] -> x [B, T', D] float32, lengths [B], with products in `dtype`.

    The encoder's own modules, in a copy that shares its taps and dropouts with it: adapters act and learn there, no
    weight does, and batch norms always use their stored statistics. The copy is made anew where the base has changed.
    """

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        self.encoder = encoder
        self.dtype = dtype
        self.lock = threading.Lock()
        """Held while the copy changes: several threads may compute with it."""
        self.holders: list[Mapping[str, Tensor | None]] = []
        """The dictionaries of tensors of the encoder's modules."""
        self.made: tuple[list[tuple[int, int | None]], Encoder] | None = None
        """The copy, behind the state of the base that it was made from."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(copy.deepcopy(self.encoder, memo), self.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.encoder, self.dtype)  # a pickle has no copy: it is derived anew

    def __call__(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(mel.device.type, enabled=False):
            x, lengths = self.current()(mel.to(self.dtype), lengths)
        return x.float(), lengths

    def within(self, mel: Tensor, lengths: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """The same as `Encoder.within`: mel [B, F, T], lengths [B] -> outputs [B, T', D] float32, lengths [B]."""
        with torch.autocast(mel.device.type, enabled=False):
            outputs, lengths = self.current().within(mel.to(self.dtype), lengths, layers)
        return [x.float() for x in outputs], lengths

    def below(self, mel: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """The same as `Encoder.below`: mel [B, F, T], lengths [B] -> x [B, frames, width] in `dtype`, lengths [B]."""
        with torch.autocast(mel.device.type, enabled=False):
            return self.current().below(mel.to(self.dtype), lengths, cut)

    def above(self, x: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """The same as `Encoder.above`: x [B, frames, width], lengths [B] -> x [B, T', D] float32, lengths [B]."""
        with torch.autocast(x.device.type, enabled=False):
            x, lengths = self.current().above(x, lengths, cut)
        return x.float(), lengths

    def forget(self) -> None:
        """Make the copy anew at the next forward, also where no write to the base has been noticed."""
        self.made = None

    def current(self) -> Encoder:
        """The copy for the base as it is now. Of several threads one makes it."""
        made = self.made
        if made is None or made[0] != self.base_state():
            with self.lock:
                made = self.made
                if made is None or made[0] != self.base_state():
                    made = self.made = self.make()
        made[1].gradient_checkpointing = self.encoder.gradient_checkpointing
        return made[1]

    def make(self) -> tuple[list[tuple[int, int | None]], Encoder]:
        """A new copy, and the state of the base."""
        modules = list(self.encoder.modules())
        self.holders = [held for module in modules for held in (module._parameters, module._buffers) if held]
        state = self.base_state()
        with torch.inference_mode(False), torch.no_grad():
            made = copy.deepcopy(self.encoder, {id(own): own for own in modules if isinstance(own, Tap | nn.Dropout)})
            for module in made.modules():
                if isinstance(module, CAST):
                    module.to(self.dtype)
                if isinstance(module, nn.BatchNorm2d):
                    module.training = False
            for parameter in made.parameters():
                parameter.requires_grad_(False)
        return state, made

    def base_state(self) -> list[tuple[int, int | None]]:
        """For each tensor of the base its address, and how often it has been written to."""
        return [
            (tensor.data_ptr(), None if tensor.is_inference() else tensor._version)
            for held in self.holders
            for tensor in held.values()
            if tensor is not None
        ]


def cast_conformer(encoder: ConformerEncoder, dtype: torch.dtype) -> ConformerEncoder:
    """A frozen copy of an encoder in `dtype` as it is now, norms included, that shares its taps and dropouts.

    Steps of cache-aware streaming are computed with it. The statistics of batch norms stay in float32. In float32 it is
    the encoder itself.
    """
    if dtype is torch.float32:
        return encoder
    shared = {id(own): own for own in encoder.modules() if isinstance(own, Tap | nn.Dropout)}
    with torch.inference_mode(False), torch.no_grad():
        made = copy.deepcopy(encoder, shared).requires_grad_(False)
        for module in made.modules():
            if not isinstance(module, Tap | nn.BatchNorm2d):
                module._apply(lambda tensor: tensor.to(dtype), recurse=False)
    return made


def copy_encoder(encoder: Encoder, dtype: torch.dtype) -> FusedEncoder | CastEncoder | None:
    """The copy that computes an encoder in a dtype; None where a copy in float32 would be no faster than it."""
    if isinstance(encoder, ConformerEncoder):
        return FusedEncoder(encoder, dtype)
    return None if dtype is torch.float32 else CastEncoder(encoder, dtype)
