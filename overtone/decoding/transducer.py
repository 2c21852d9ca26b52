"""Transducers: the head, and greedy decoding with and without durations: frames and predictions -> tokens.

All rows of a batch go at once, each at a frame of its own (label looping, arXiv:2406.06220): a row moves on over blanks
until it says a token, and only then its prediction network is asked again. The rules are those of NeMo's
`greedy_batch`: at most `max_symbols` tokens in a frame, then the next frame; a TDT model's durations say how far to go.

Legend: B batch, T encoder frames, J joint width, H prediction width, N scores.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor

from overtone.decoding.decoder import (
    GREEDY,
    Alignment,
    BeamSettings,
    Decoder,
    DecodingOptions,
    Emissions,
    Flags,
    Reading,
    Scope,
)
from overtone.decoding.fusion import Words
from overtone.decoding.hypothesis import Hypothesis, shift
from overtone.decoding.transducer_beam import TransducerBeamSearch
from overtone.decoding.transducer_path import TransducerPath, read_path
from overtone.nets.layers import Reduction, reduce_losses
from overtone.nets.transducer import Joint, PredictionNet, State
from overtone.nets.transducer_loss import transducer_losses
from overtone.tokenizers import Tokenizer

MAX_SYMBOLS = 10
"""Tokens in one frame, where a checkpoint does not say."""
LOOKAHEAD = 4
"""Frames whose scores are computed at once with the same prediction, where blanks go one frame on."""


@dataclass
class Cursor:
    """The state of the decoding of every row."""

    prediction: Tensor
    """[B, J] projected output of the prediction network."""
    state: State
    """Memory of the prediction network."""
    time: Tensor
    """[B] int64: the frame that comes next."""
    symbols: Tensor
    """[B] int64: tokens said in that frame so far."""
    score: Tensor
    """[B] float64."""
    said: list[tuple[Tensor, ...]] = field(default_factory=list)
    """Rows, tokens, frames, durations and log-probabilities of every round."""

    def fork(self) -> Cursor:
        """An independent copy; tensors are replaced, never written to."""
        return replace(self, said=list(self.said))


class TransducerSearch:
    """The greedy search of one model."""

    def __init__(self, joint: Joint, prediction: PredictionNet, *, max_symbols: int = MAX_SYMBOLS) -> None:
        self.joint = joint
        self.prediction = prediction
        self.max_symbols = max_symbols
        self.lookahead = 1 if joint.durations else LOOKAHEAD

    def begin(self, rows: int) -> Cursor:
        """Before the first frame of so many rows."""
        output, state = self.prediction.begin(rows)
        none = torch.zeros(rows, dtype=torch.int64, device=output.device)
        return Cursor(self.joint.pred(output), state, none, none, none.double())

    def run(self, frames: Tensor, lengths: Tensor, cursor: Cursor) -> None:
        """Move the cursor to the end of the projected frames [B, T, J]; lengths [B]."""
        rows = torch.arange(frames.size(0), device=frames.device)
        ahead = torch.arange(self.lookahead, device=frames.device)
        while bool((cursor.time < lengths).any()):
            place = cursor.time[:, None] + ahead  # [B, K]
            inside = place < lengths[:, None]
            part = frames[rows[:, None], place.clamp(max=frames.size(1) - 1)]  # [B, K, J]
            scores = self.joint(part, cursor.prediction.unsqueeze(1))[:, :, 0].float()  # [B, K, N]
            tokens = scores[..., : self.joint.blank + 1]
            best, symbol = tokens.max(dim=-1)
            log_probs = best - tokens.logsumexp(dim=-1)  # [B, K]
            speaks = inside & (symbol != self.joint.blank)
            found = speaks.any(dim=1)
            first = torch.where(found, speaks.int().argmax(dim=1), 0)  # [B]
            until = torch.where(found, first, self.lookahead)
            cursor.score = cursor.score + (log_probs.double() * (inside & (ahead <= until[:, None]))).sum(dim=1)
            passed, lasts = self.steps(scores[:, 0], inside, found, first)
            time = cursor.time + passed
            symbols = torch.where(passed > 0, 0, cursor.symbols) + found
            if bool(found.any()):
                chosen = torch.where(found, symbol[rows, first], self.joint.blank)
                said = (rows, chosen, time, lasts, log_probs[rows, first])
                cursor.said.append(tuple(each[found] for each in said))
                output, state = self.prediction.step(chosen, cursor.state)
                cursor.prediction = torch.where(found[:, None], self.joint.pred(output), cursor.prediction)
                cursor.state = tuple(choose(found, new, old) for new, old in zip(state, cursor.state, strict=True))
            full = (lasts == 0) & (symbols >= self.max_symbols)
            cursor.time = time + lasts + full
            cursor.symbols = torch.where((lasts > 0) | full, 0, symbols)

    def steps(self, scores: Tensor, inside: Tensor, found: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        """Frames passed over without a token, [B], and frames that the token lasts, [B].

        scores [B, N] of the frame at hand, inside [B, K]: frames before the end, found [B]: whether a token was found,
        first [B]: the frame of it among those ahead.
        """
        if not self.joint.durations:
            return torch.where(found, first, inside.sum(dim=1)), torch.zeros_like(first)
        durations = torch.tensor(self.joint.durations, device=scores.device)
        lasting = durations[scores[:, self.joint.blank + 1 :].argmax(dim=-1)]
        passed = torch.where(found | ~inside[:, 0], 0, lasting.clamp(min=1))
        return passed, torch.where(found, lasting, 0)

    def paths(self, frames: Tensor, lengths: Tensor) -> list[TransducerPath]:
        """Projected frames [B, T, J], lengths [B] -> the tokens of each row."""
        with torch.no_grad():
            cursor = self.begin(frames.size(0))
            self.run(frames, lengths.to(frames.device), cursor)
        return collect(cursor, lengths.tolist())


def choose(found: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The memory `new` [·, B, …] of rows that have a new token, found [B]; the memory `old` of the others."""
    return torch.where(found.view(1, -1, *[1] * (new.dim() - 2)), new, old)


def collect(cursor: Cursor, lengths: Sequence[int]) -> list[TransducerPath]:
    """The tokens of each row so far."""
    names = ("ids", "places", "durations", "log_probs")
    if cursor.said:
        rows, *columns = (torch.cat(column).cpu().numpy() for column in zip(*cursor.said, strict=True))
    else:
        rows, columns = np.zeros(0, dtype=np.int64), [np.zeros(0, dtype=np.int64)] * 3 + [np.zeros(0, dtype=np.float32)]
    scores = cursor.score.tolist()
    paths = []
    for row, length in enumerate(lengths):
        own = rows == row
        values = {name: column[own] for name, column in zip(names, columns, strict=True)}
        paths.append(TransducerPath(**values, frames=length, score=scores[row]))
    return paths


class TransducerDecoder:
    """Greedy decoding of one recording as its frames come: the same as of all frames together."""

    def __init__(
        self,
        search: TransducerSearch,
        tokenizer: Tokenizer,
        *,
        seconds_per_frame: float,
        first_frame: int = 0,
        scope: Scope = nullcontext,
    ) -> None:
        """first_frame: the number of the first frame pushed; spans and word times count from frame 0.

        scope: the adapters of the recording.
        """
        self.search = search
        self.tokenizer = tokenizer
        self.seconds_per_frame = seconds_per_frame
        self.first_frame = first_frame
        self.scope = scope
        self.frames = 0
        with torch.no_grad(), scope():
            self.cursor = search.begin(1)

    @property
    def settled(self) -> int:
        """All frames so far."""
        return self.frames

    def push(self, emissions: Emissions) -> None:
        """Decode the next T projected frames, emissions [T, J]."""
        self._run(emissions, self.cursor)
        self.frames += len(emissions)

    def silent(self, emissions: Emissions) -> Flags:
        """[T] bool: the frames without a token, if emissions [T, J] were pushed next."""
        ahead = self.cursor.fork()
        self._run(emissions, ahead)
        whole = self.frames + len(emissions)
        return collect(ahead, [whole])[0].silent[self.frames :]

    def fork(self) -> Self:
        twin = copy.copy(self)
        twin.cursor = self.cursor.fork()
        return twin

    def hypotheses(self, count: int = 1) -> list[Hypothesis]:
        """The one reading there is."""
        path = collect(self.cursor, [self.frames])[0]
        found = read_path(path, self.tokenizer, seconds_per_frame=self.seconds_per_frame)
        return [shift(found, self.first_frame, self.seconds_per_frame)]

    def _run(self, emissions: Emissions, cursor: Cursor) -> None:
        """Frames are numbered from the beginning of the decoding; those before these are never looked at again."""
        part = torch.from_numpy(np.ascontiguousarray(emissions)).unsqueeze(0)
        cursor.time = cursor.time - self.frames
        said = len(cursor.said)
        with torch.no_grad(), self.scope():
            self.search.run(part, torch.tensor([len(emissions)]), cursor)
        cursor.time = cursor.time + self.frames
        cursor.said[said:] = [(*each[:2], each[2] + self.frames, *each[3:]) for each in cursor.said[said:]]


class TransducerBeamDecoder:
    """Beam search of one recording as its frames come; silence is that of greedy decoding."""

    def __init__(self, greedy: TransducerDecoder, *, words: Words, settings: BeamSettings) -> None:
        """greedy: a fresh decoder of the same recording, which finds its silence."""
        self.greedy = greedy
        self.frames = 0
        search = greedy.search
        with torch.no_grad(), greedy.scope():
            self.search = TransducerBeamSearch(
                search.joint, search.prediction, [words], settings, max_symbols=search.max_symbols
            )

    @property
    def settled(self) -> int:
        """The number of frames whose reading changes no more."""
        return self.search.settled()

    def push(self, emissions: Emissions) -> None:
        """Search the next T projected frames, emissions [T, J]."""
        if not len(emissions):
            return
        part = torch.from_numpy(np.ascontiguousarray(emissions)).unsqueeze(0).to(self.search.device)
        with torch.no_grad(), self.greedy.scope():
            self.search.push(part, torch.tensor([len(emissions)], device=part.device))
        self.greedy.push(emissions)
        self.frames += len(emissions)

    def silent(self, emissions: Emissions) -> Flags:
        """[T] bool: the frames without a token, if emissions [T, J] were pushed next."""
        return self.greedy.silent(emissions)

    def fork(self) -> Self:
        """An independent copy, for a look ahead."""
        twin = copy.copy(self)
        twin.greedy, twin.search = self.greedy.fork(), self.search.fork()
        return twin

    def hypotheses(self, count: int = 1) -> list[Hypothesis]:
        """One to `count` different texts, best first, as if the audio ended here."""
        greedy, found = self.greedy, dict[str, Hypothesis]()
        (paths,) = self.search.best(count if count == 1 else self.search.settings.width, [self.frames])
        for path, _ in paths:
            hypothesis = read_path(path, greedy.tokenizer, seconds_per_frame=greedy.seconds_per_frame)
            found.setdefault(hypothesis.text, hypothesis)
            if len(found) == count:
                break
        return [shift(each, greedy.first_frame, greedy.seconds_per_frame) for each in found.values()]


class TransducerHead:
    """A prediction network and a joint: emissions are the encoder's output as the joint projects it, [B, T, J]."""

    gives_log_probs = False
    decodes_with_adapters = True
    prompts = None
    inner = None

    def __init__(
        self,
        joint: Joint,
        prediction: PredictionNet,
        tokenizer: Tokenizer,
        *,
        seconds_per_frame: float,
        reduction: Reduction = "mean_batch",
        max_symbols: int = MAX_SYMBOLS,
        sigma: float = 0.0,
        omega: float = 0.0,
        fastemit: float = 0.0,
    ) -> None:
        """seconds_per_frame: from one encoder frame to the next. max_symbols: the most tokens in one frame.
        reduction, sigma, omega, fastemit: of the checkpoint's own training, as `transducer_losses`.
        """
        self.joint = joint
        self.prediction = prediction
        self.tokenizer = tokenizer
        self.channels = joint.width
        self.seconds_per_frame = seconds_per_frame
        self.reduction: Reduction = reduction
        self.sigma, self.omega, self.fastemit = sigma, omega, fastemit
        self.greedy = TransducerSearch(joint, prediction, max_symbols=max_symbols)

    def emit(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, D], lengths [B] -> projected frames [B, T, J] float32."""
        frames: Tensor = self.joint.enc(x.float())
        return frames

    def loss(
        self,
        emissions: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        *,
        reduction: Reduction | None = None,
    ) -> Tensor:
        """As `transducer_losses`: emissions [B, T, J], lengths [B], targets [B, U], target_lengths [B] -> a scalar.

        Adapters of the prediction network and of the joint act in it: it belongs inside their `use` block.
        """
        used = int(target_lengths.max()) if target_lengths.numel() else 0
        targets = targets[:, :used]
        losses = transducer_losses(
            self.joint,
            emissions.float(),
            self.joint.pred(self.prediction(targets)),
            lengths,
            targets,
            target_lengths,
            sigma=self.sigma,
            omega=self.omega,
            fastemit=self.fastemit,
        )
        return reduce_losses(losses, target_lengths, reduction or self.reduction)

    def frames_needed(self, tokens: Sequence[int]) -> int:
        """One frame: a transducer may say many tokens in it."""
        return 1

    def align(self, emissions: Tensor, lengths: Tensor) -> list[Alignment]:
        """Decode greedily: emissions [B, T, J], lengths [B]."""
        return cast(list[Alignment], self.greedy.paths(emissions.float(), lengths))

    def adapters_act(self) -> bool:
        """True if adapters act in the prediction network or the joint now."""
        return self.joint.sum.acts() or self.prediction.acts()

    def search(
        self, emissions: Tensor, lengths: Tensor, words: Sequence[Words], settings: BeamSettings, count: int
    ) -> list[list[Reading]]:
        """Beam search: emissions [B, T, J], lengths [B]."""
        with torch.no_grad():
            search = TransducerBeamSearch(
                self.joint, self.prediction, words, settings, max_symbols=self.greedy.max_symbols
            )
            search.push(emissions.float(), lengths.to(emissions.device))
        return [
            [Reading(cast(Alignment, path), rank) for path, rank in own] for own in search.best(count, lengths.tolist())
        ]

    def align_row(self, emissions: Emissions) -> Alignment:
        """Decode one row greedily: emissions [T, J]."""
        frames = torch.from_numpy(emissions).unsqueeze(0).to(self.joint.enc.weight.device)
        return self.greedy.paths(frames, torch.tensor([len(emissions)]))[0]

    def read(self, alignment: Alignment) -> Hypothesis:
        path = cast(TransducerPath, alignment)
        return read_path(path, self.tokenizer, seconds_per_frame=self.seconds_per_frame)

    def scores(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """The joint's scores of every frame before the first token, [B, T, N]: emissions [B, T, J], lengths [B]."""
        output, _ = self.prediction.begin(emissions.size(0))
        scores: Tensor = self.joint(emissions, self.joint.pred(output).unsqueeze(1))
        return scores[:, :, 0].float()

    def decoder(
        self, options: DecodingOptions = GREEDY, *, first_frame: int = 0, scope: Scope = nullcontext
    ) -> Decoder:
        """Greedy, or a beam search where the options ask for it."""
        greedy = TransducerDecoder(
            self.greedy,
            self.tokenizer,
            seconds_per_frame=self.seconds_per_frame,
            first_frame=first_frame,
            scope=scope,
        )
        if options.is_greedy:
            return greedy
        return TransducerBeamDecoder(greedy, words=options.all_words, settings=options.settings)
