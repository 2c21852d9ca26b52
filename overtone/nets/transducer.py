"""Transducers: prediction networks and joint (Graves 2012, arXiv:1211.3711), with durations as TDT (arXiv:2304.06795).

The prediction network reads the tokens so far, the joint meets its output with every encoder frame. Scores of a
vector: V tokens, the blank, then one for each duration where there are some.

Legend: B batch, T encoder frames, U target tokens, D encoder width, H prediction width, J joint width, V vocabulary,
N scores (V+1 and the durations).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from overtone.errors import ConfigError
from overtone.nets.layers import Replaced, share_modules
from overtone.nets.products import apply_linear, linear
from overtone.nets.taps import Tap, TapContext

State = tuple[Tensor, ...]
"""Memory of a prediction network; the second axis of every tensor, or the only one, is the batch."""

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class PredictionNet(Protocol):
    """A network over the tokens so far."""

    def __call__(self, targets: Tensor) -> Tensor:
        """targets [B, U] int64 -> [B, U+1, H]: the output before the first token, and after each."""

    def begin(self, rows: int) -> tuple[Tensor, State]:
        """The output before the first token, [rows, H], and the memory."""

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """The newest token of each row, [B] int64 -> the output after it, [B, H], and the memory."""

    def acts(self) -> bool:
        """True if adapters act in it now."""

    def with_classes(self, classes: int) -> tuple[PredictionNet, Replaced]:
        """The same net over so many other tokens, and its own modules by name, each with this net's in its place."""


class RecurrentPrediction(nn.Module):
    """An embedding and LSTM layers; adapters may act on the output.

    The blank's embedding stands before the first token. It is zero, and is not trained; a checkpoint may have another.
    """

    def __init__(self, *, classes: int, width: int, layers: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.width, self.blank = width, classes
        self.embed = nn.Embedding(classes + 1, width, padding_idx=classes)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.output = Tap("after_block", width)

    def forward(self, targets: Tensor) -> Tensor:
        """targets [B, U] int64 -> [B, U+1, H]"""
        x = self.embed(nn.functional.pad(targets, (1, 0), value=self.blank))  # [B, U+1, H]
        y, _ = self.lstm(x)
        return self.adapted(self.dropout(y))

    def begin(self, rows: int) -> tuple[Tensor, State]:
        """The output before the first token, [rows, H], and the memory."""
        y, state = self.lstm(self.embed(torch.full((rows, 1), self.blank, device=self.embed.weight.device)))
        return self.adapted(y)[:, 0], state

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens [B] int64 -> [B, H], and the memory."""
        y, state = self.advance(self.embed(tokens), state)
        return self.adapted(y.unsqueeze(1))[:, 0], state

    def advance(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x [B, H], the newest token of each row, through the LSTM layers -> [B, H], and the memory.

        oneDNN's LSTM lays its weights out anew in every call: for a single token that takes most of the time.
        """
        if x.device.type != "cpu" or self.lstm.training:
            y, state = self.lstm(x.unsqueeze(1), state)
            return y[:, 0], state
        outputs, cells = [], []
        for layer, (output, cell) in enumerate(zip(*state, strict=True)):
            of_input, of_output, input_bias, output_bias = self.lstm.all_weights[layer]
            gates = linear(x, of_input, input_bias) + linear(output, of_output, output_bias)  # [B, 4H]
            enters, stays, new, leaves = gates.chunk(4, dim=1)
            cell = stays.sigmoid() * cell + enters.sigmoid() * new.tanh()
            x = leaves.sigmoid() * cell.tanh()
            outputs.append(x)
            cells.append(cell)
        return x, (torch.stack(outputs), torch.stack(cells))

    def acts(self) -> bool:
        """True if adapters act in it now."""
        return self.output.acts()

    def with_classes(self, classes: int) -> tuple[RecurrentPrediction, Replaced]:
        """The same net over so many other tokens, and its own modules by name, each with this net's in its place."""
        own = nn.Embedding(classes + 1, self.width, padding_idx=classes)
        twin = share_modules(self, {"embed": own})
        twin.blank = classes
        return twin, {"embed": (own, self.embed)}

    def adapted(self, y: Tensor) -> Tensor:
        """y [B, U, H] -> [B, U, H] with the adapters in use."""
        if not self.output.acts():
            return y
        adapted: Tensor = self.output(y, y, TapContext(valid=y.new_ones(y.shape[:2], dtype=torch.bool)))
        return adapted


class StatelessPrediction(nn.Module):
    """Embeddings of the last few tokens side by side (Ghodsi et al. 2020); adapters may act on the output."""

    def __init__(self, *, classes: int, width: int, context: int = 1, normalize: bool = False) -> None:
        """context: tokens that count. normalize: a layer norm without weights behind the embeddings."""
        super().__init__()
        self.width, self.context, self.blank, self.normalize = width, context, classes, normalize
        other = width // 2 // context
        sizes = [width - other * (context - 1), *[other] * (context - 1)]
        self.embeds = nn.ModuleList(nn.Embedding(classes + 1, size, padding_idx=classes) for size in sizes)
        self.register_buffer("anchor", torch.empty(0), persistent=False)
        self.anchor: Tensor
        """Empty; it moves with the module and so tells its device."""
        self.output = Tap("after_block", width)

    def forward(self, targets: Tensor) -> Tensor:
        """targets [B, U] int64 -> [B, U+1, H]"""
        before = targets.new_full((targets.size(0), self.context), self.blank)
        history = torch.cat((before, targets), dim=1).unfold(1, self.context, 1)  # [B, U+1, context], newest last
        return self.embedded(history)

    def begin(self, rows: int) -> tuple[Tensor, State]:
        """The output before the first token, [rows, H], and the memory."""
        history = torch.full((rows, self.context), self.blank, device=self.anchor.device)
        return self.embedded(history.unsqueeze(1))[:, 0], (history.T,)

    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens [B] int64 -> [B, H], and the memory."""
        history = torch.cat((state[0][1:], tokens.unsqueeze(0)))  # [context, B]
        return self.embedded(history.T.unsqueeze(1))[:, 0], (history,)

    def acts(self) -> bool:
        """True if adapters act in it now."""
        return self.output.acts()

    def with_classes(self, classes: int) -> tuple[StatelessPrediction, Replaced]:
        """The same net over so many other tokens, and its own modules by name, each with this net's in its place."""
        sizes = [cast(nn.Embedding, embed).embedding_dim for embed in self.embeds]
        own = nn.ModuleList(nn.Embedding(classes + 1, size, padding_idx=classes) for size in sizes)
        twin = share_modules(self, {"embeds": own})
        twin.blank = classes
        return twin, {"embeds": (own, self.embeds)}

    def embedded(self, history: Tensor) -> Tensor:
        """history [B, U, context] int64, the newest token last -> [B, U, H]"""
        parts = [embed(history[..., -1 - age]) for age, embed in enumerate(self.embeds)]
        y = torch.cat(parts, dim=-1)
        if self.normalize:
            y = nn.functional.layer_norm(y, (self.width,))
        if not self.output.acts():
            return y
        adapted: Tensor = self.output(y, y, TapContext(valid=y.new_ones(y.shape[:2], dtype=torch.bool)))
        return adapted


class Joint(nn.Module):
    """The meeting of an encoder frame and a prediction: projections, their sum, an activation, scores [N].

    Adapters may act on the sum.
    """

    def __init__(
        self,
        *,
        encoder_width: int,
        prediction_width: int,
        width: int,
        classes: int,
        durations: Sequence[int] = (),
        activation: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        """classes: V. durations: in frames, of a TDT model. Raises ConfigError for an unknown activation."""
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"activation '{activation}' is unknown. Allowed: {', '.join(ACTIVATIONS)}.")
        self.width, self.blank, self.durations = width, classes, tuple(durations)
        self.enc = nn.Linear(encoder_width, width)
        self.pred = nn.Linear(prediction_width, width)
        self.sum = Tap("after_block", width)
        parts: list[nn.Module] = [ACTIVATIONS[activation]()]
        if dropout:
            parts.append(nn.Dropout(dropout))
        self.joint_net = nn.Sequential(*parts, nn.Linear(width, classes + 1 + len(self.durations)))

    def forward(self, frames: Tensor, predictions: Tensor) -> Tensor:
        """Projected frames [B, T, J] and predictions [B, U, J] -> scores [B, T, U, N], not normalised."""
        x = frames.unsqueeze(2) + predictions.unsqueeze(1)  # [B, T, U, J]
        if self.sum.acts():
            flat = x.flatten(1, 2)
            context = TapContext(valid=flat.new_ones(flat.shape[:2], dtype=torch.bool))
            x = self.sum(flat, flat, context).view_as(x)
        *inner, output = self.joint_net
        for part in inner:
            x = part(x)
        return apply_linear(cast(nn.Linear, output), x)

    def with_classes(self, classes: int) -> tuple[Joint, Replaced]:
        """The same net over so many other tokens, and its own modules by name, each with this net's in its place."""
        *shared, output = self.joint_net
        own = nn.Linear(self.width, classes + 1 + len(self.durations))
        twin = share_modules(self, {"joint_net": nn.Sequential(*shared, own)})
        twin.blank = classes
        return twin, {"output": (own, output)}
