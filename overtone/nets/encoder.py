"""The contract of an encoder with the rest of the package.

Legend: B batch, T mel frames, T' encoder frames, F mel bins, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor, nn

from overtone.nets.taps import Window


class Encoder(Protocol):
    """mel [B, F, T], lengths [B] -> x [B, T', D], lengths [B]; a module, a stack of numbered layers."""

    subsampling_factor: int
    """Mel frames of one encoder frame."""
    width: int
    """Width of the last layer."""
    output_width: int
    """D of the output."""
    depth: int
    """Number of layers."""
    dropout_rate: float
    """The largest probability of any dropout."""
    gradient_checkpointing: bool
    """Compute every layer's activations again in the backward pass."""
    attention_context: tuple[int, int]
    """Frames to the left and to the right that a frame sees; -1 for all."""
    window: Window | None
    """The window of local attention; None for any other."""
    relative: bool
    """True if attention has relative positions, so that it may become local or cease to be."""

    @property
    def attention_contexts(self) -> Sequence[tuple[int, int]]:
        """The contexts that may act; none where there is no attention."""

    @property
    def rows_are_independent(self) -> bool:
        """True if a row's frames come out the same whatever its padding is, with the stored statistics of norms."""

    @property
    def uncut(self) -> str:
        """The reason why the encoder is not computed in two parts, as a clause; empty where it can be."""

    @property
    def inner_layers(self) -> Sequence[int]:
        """Layers before the last whose outputs have the frames and the width of the encoder's own."""

    def __call__(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]: ...

    def describe(self) -> tuple[str, str]:
        """The name of the architecture, and its sizes in words."""

    def within(self, mel: Tensor, lengths: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """mel [B, F, T], lengths [B] -> the outputs [B, T', D] of some of `inner_layers` in rising order, then the
        encoder's own; lengths [B].
        """

    def stem(self) -> str:
        """The part below the first layer in words; empty where there is none."""

    def size_at(self, cut: int) -> tuple[int, int]:
        """Width and mel frames of one frame of the input of the layer `cut`, as `below` gives it."""

    def below(self, mel: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """mel [B, F, T], lengths [B] -> the input [B, frames, width] of the layer `cut`, lengths [B]."""

    def above(self, x: Tensor, lengths: Tensor, cut: int) -> tuple[Tensor, Tensor]:
        """The rest of the encoder: above(*below(mel, lengths, cut), cut) is the output x [B, T', D] and lengths [B].

        x [B, frames, width], lengths [B]: of `below`. Adapters behind the layer before the cut act here: they must
        look at that layer's output alone.
        """

    def modules(self) -> Iterator[nn.Module]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def eval(self) -> nn.Module: ...
