"""Attention encoder-decoder models of several tasks: the head, its loss, and greedy decoding.

The tokens of a recording are said one after the other, each with a look at the whole recording: nothing can be read
before its end. Where a token lies is where the decoder listened when it said it.

Legend: B batch, T encoder frames, H width of the states, U tokens, P tokens of the longest prompt, V rows of the
vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Self, cast

import numpy as np
import numpy.typing as npt
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
from overtone.decoding.multitask_beam import MultitaskBeamSearch
from overtone.decoding.task import TaskPrompts
from overtone.decoding.transducer_path import TransducerPath, read_path
from overtone.errors import DataError
from overtone.nets.layers import Reduction, reduce_losses
from overtone.nets.transformer import TransformerDecoder, TransformerEncoder
from overtone.tokenizers import Tokenizer

MAX_DELTA = 50
"""Tokens beyond the number of frames that a transcript with its prompt may have, where a checkpoint does not say."""


class MultitaskSearch:
    """The greedy search of one model."""

    def __init__(self, net: TransformerDecoder, prompts: TaskPrompts, *, max_delta: int = MAX_DELTA) -> None:
        """max_delta: as MAX_DELTA; below 0: only the decoder's own limit counts."""
        self.net = net
        self.prompts = prompts
        self.max_delta = max_delta
        self.size = prompts.tokenizer.size

    def limits(self, frames: Sequence[int], prompts: Sequence[Sequence[int]]) -> list[int]:
        """The most tokens of each row; those of a context take none of a short recording's."""
        most, usual = self.net.max_length, len(self.prompts.tokens(None))
        return [
            (min(most, length + self.max_delta + max(0, len(prompt) - usual)) if self.max_delta >= 0 else most)
            - len(prompt)
            for length, prompt in zip(frames, prompts, strict=True)
        ]

    def possible(self, log_probs: Tensor) -> Tensor:
        """Log-probabilities [B, V] -> the same without the rows that fill the vocabulary up."""
        return log_probs[:, : self.size]

    def paths(self, states: Tensor, lengths: Tensor, tasks: Sequence[str | None]) -> list[TransducerPath]:
        """states [B, T, H], lengths [B] -> the tokens of each row."""
        prompts = [self.prompts.tokens(task) for task in tasks]
        limits = torch.tensor(self.limits(lengths.tolist(), prompts), device=states.device)
        tokens, valid = pad_tokens(prompts, self.prompts.pad, states.device)
        said: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            memory = self.net.listen(states, lengths.to(states.device))
            log_probs, memory, heard = self.net.read(tokens, valid, memory)
            last = valid.sum(1) - 1  # [B]
            rows = torch.arange(len(prompts), device=states.device)
            log_probs, heard = log_probs[rows, last], heard[rows, last]
            goes_on = limits > 0
            while bool(goes_on.any()):
                best, token = self.possible(log_probs).max(dim=-1)
                token = torch.where(goes_on, token, self.prompts.pad)
                said.append((token, torch.where(goes_on, best, 0.0), heard))
                goes_on = goes_on & (token != self.prompts.end) & (len(said) < limits)
                if bool(goes_on.any()):
                    found, memory, where = self.net.read(token.unsqueeze(1), goes_on.unsqueeze(1), memory)
                    log_probs, heard = found[:, 0], where[:, 0]
        return self.collect(said, lengths.tolist(), limits.tolist(), tasks)

    def collect(
        self,
        said: Sequence[tuple[Tensor, Tensor, Tensor]],
        lengths: Sequence[int],
        limits: Sequence[int],
        tasks: Sequence[str | None],
    ) -> list[TransducerPath]:
        """The tokens of each row. said: token [B], log-probability [B] and weights of frames [B, T] of every round."""
        if not said:
            return [replace(EMPTY, frames=length) for length in lengths]
        tokens, values, heard = (torch.stack(column, dim=1).cpu() for column in zip(*said, strict=True))
        paths = []
        for row, length in enumerate(lengths):
            ids = tokens[row].tolist()
            ends = ids.index(self.prompts.end) + 1 if self.prompts.end in ids else min(len(ids), max(limits[row], 0))
            weights = heard[row, :ends, :length].numpy().astype(np.float64)
            paths.append(self.path(ids[:ends], values[row, :ends].numpy(), weights, tasks[row]))
        return paths

    def path(
        self, ids: Sequence[int], values: npt.NDArray[np.float32], weights: npt.NDArray[np.float64], task: str | None
    ) -> TransducerPath:
        """The tokens of a row as a path; weights [U, T]. The end of the text and padding behind it are left out."""
        count = len(ids)
        while count and ids[count - 1] in (self.prompts.end, self.prompts.pad):
            count -= 1
        path = TransducerPath(
            ids=np.asarray(ids[:count], dtype=np.int64),
            places=place_tokens(weights[:count]),
            durations=np.zeros(count, dtype=np.int64),
            log_probs=np.asarray(values[:count], dtype=np.float32),
            frames=weights.shape[1],
            score=float(np.sum(values, dtype=np.float64)),
        )
        return read_times(path, self.prompts.times) if self.prompts.asks_times(task) else path


def read_times(path: TransducerPath, times: Mapping[int, int]) -> TransducerPath:
    """The path with its tokens where its own tokens of times say; these last some frames then, as all others do.

    times: tokens that say a time, with the frame that each means.
    """
    places, durations, begin, first = path.places.copy(), path.durations.copy(), 0, 0
    for index, token in enumerate(path.ids.tolist()):
        if token in times:
            frame = min(max(times[token], begin), max(path.frames - 1, 0))
            places[first:index], durations[first:index] = begin, max(1, frame - begin)
            places[index], durations[index] = frame, 1
            begin, first = frame, index + 1
    places[first:] = np.maximum(places[first:], begin)
    return replace(path, places=places, durations=durations)


def place_tokens(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """weights [U, T] of frames -> the frame of each token, [U], never before that of the token before.

    The frames are those that the decoder listened to most, all tokens together.
    """
    tokens, frames = weights.shape
    if not tokens or not frames:
        return np.zeros(tokens, dtype=np.int64)
    gains = np.log(weights + 1e-9)
    sums = np.zeros((tokens, frames))
    sums[0] = gains[0]
    for token in range(1, tokens):
        sums[token] = gains[token] + np.maximum.accumulate(sums[token - 1])
    places = np.zeros(tokens, dtype=np.int64)
    stop = frames
    for token in range(tokens - 1, -1, -1):
        places[token] = int(sums[token, :stop].argmax())
        stop = int(places[token]) + 1
    return places


def pad_tokens(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of tokens -> one tensor [B, P] filled up with `pad`, and [B, P] bool, true on tokens."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=device)
    valid = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows], device=device)
    return tokens, valid


class MultitaskDecoder:
    """Decoding of one recording: what is pushed at once is decoded at once, by itself."""

    def __init__(
        self,
        head: MultitaskHead,
        options: DecodingOptions,
        *,
        first_frame: int = 0,
        scope: Scope = nullcontext,
    ) -> None:
        """first_frame: the number of the first frame pushed. scope: the adapters of the recording."""
        self.head = head
        self.options = options
        self.first_frame = first_frame
        self.scope = scope
        self.frames = 0
        self.parts: tuple[list[Reading], ...] = ()
        """Readings of each stretch that was pushed."""

    @property
    def settled(self) -> int:
        """All frames so far."""
        return self.frames

    def push(self, emissions: Emissions) -> None:
        """Decode the next T frames, emissions [T, H]."""
        if len(emissions):
            self.parts = (*self.parts, self._read(emissions, self.options))
            self.frames += len(emissions)

    def silent(self, emissions: Emissions) -> Flags:
        """[T] bool: the frames without a token, if emissions [T, H] were pushed next."""
        return self._read(emissions, GREEDY)[0].alignment.silent if len(emissions) else np.zeros(0, dtype=np.bool_)

    def fork(self) -> Self:
        return copy.copy(self)

    def hypotheses(self, count: int = 1) -> list[Hypothesis]:
        """One to `count` different texts, best first; further ones differ in the last stretch."""
        before = [own[0].alignment for own in self.parts[:-1]]
        found: dict[str, Hypothesis] = {}
        for reading in self.parts[-1] if self.parts else [Reading(cast(Alignment, EMPTY), 0.0)]:
            whole = [*before, reading.alignment]
            hypothesis = self.head.read(whole[0].join(whole[1:]))
            found.setdefault(hypothesis.text, shift(hypothesis, self.first_frame, self.head.seconds_per_frame))
        return list(found.values())[:count]

    def _read(self, emissions: Emissions, options: DecodingOptions) -> list[Reading]:
        states = torch.from_numpy(np.ascontiguousarray(emissions)).unsqueeze(0).to(self.head.device)
        lengths = torch.tensor([len(emissions)])
        with torch.no_grad(), self.scope(), self.head.prompts.speaking(self.options.language):
            if options.is_greedy:
                return [Reading(self.head.align(states, lengths)[0], 0.0)]
            count = options.settings.width if options.alternatives > 1 else 1
            return self.head.search(states, lengths, [options.all_words], options.settings, count)[0]


EMPTY = TransducerPath(
    ids=np.zeros(0, dtype=np.int64),
    places=np.zeros(0, dtype=np.int64),
    durations=np.zeros(0, dtype=np.int64),
    log_probs=np.zeros(0, dtype=np.float32),
    frames=0,
)


class MultitaskHead:
    """A transformer decoder with prompts; emissions are the encoder's states as it attends to them, [B, T, H]."""

    gives_log_probs = False
    decodes_with_adapters = True
    inner = None
    reduction: Reduction = "mean_volume"

    def __init__(
        self,
        net: TransformerDecoder,
        tokenizer: Tokenizer,
        prompts: TaskPrompts,
        *,
        encoder: TransformerEncoder | None = None,
        seconds_per_frame: float,
        label_smoothing: float = 0.0,
        masks_prompt: bool = False,
        max_delta: int = MAX_DELTA,
        length_penalty: float = 0.0,
    ) -> None:
        """encoder: between the model's encoder and the decoder. masks_prompt: the loss counts no token of prompts."""
        self.net = net
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.channels = net.width
        self.seconds_per_frame = seconds_per_frame
        self.label_smoothing, self.masks_prompt = label_smoothing, masks_prompt
        self.length_penalty = length_penalty
        self.greedy = MultitaskSearch(net, prompts, max_delta=max_delta)

    @property
    def device(self) -> torch.device:
        return self.net.head.weight.device

    def emit(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, D], lengths [B] -> states [B, T, H] float32."""
        states: Tensor = x.float() if self.encoder is None else self.encoder(x.float(), lengths)
        return states

    def loss(
        self,
        emissions: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        *,
        reduction: Reduction | None = None,
    ) -> Tensor:
        """Cross entropy of prompt, text and its end: emissions [B, T, H], lengths [B], targets [B, U],
        target_lengths [B] -> a scalar. Raises DataError for a text longer than the decoder's positions.

        Adapters of the decoder act in it: it belongs inside their `use` block, and inside `speaking`.
        """
        texts = [row[:size] for row, size in zip(targets.tolist(), target_lengths.tolist(), strict=True)]
        prompts = [self.prompts.tokens(task) for task in self.prompts.rows(len(texts))]
        whole = [[*prompt, *text, self.prompts.end] for prompt, text in zip(prompts, texts, strict=True)]
        longest = max(map(len, whole)) - 1
        if longest > self.net.max_length:
            raise DataError(
                f"A transcript has {longest} tokens with its prompt; the decoder reads {self.net.max_length} at most. "
                "Leave it out, or cut the recording in two."
            )
        tokens, valid = pad_tokens(whole, self.prompts.pad, emissions.device)
        labels, counted = tokens[:, 1:], valid[:, 1:]
        log_probs = self.net(tokens[:, :-1], valid[:, 1:].sum(1), emissions.float(), lengths.to(emissions.device))
        if self.masks_prompt:
            begins = torch.tensor([len(prompt) - 1 for prompt in prompts], device=emissions.device)
            counted = counted & (torch.arange(labels.size(1), device=emissions.device) >= begins.unsqueeze(1))
        smoothing = self.label_smoothing * log_probs.size(-1) / (log_probs.size(-1) - 1)
        own = log_probs.gather(2, labels.unsqueeze(2)).squeeze(2)
        each = (1.0 - smoothing) * own + smoothing * log_probs.mean(-1) if smoothing else own
        return reduce_losses(-(each * counted).sum(1), counted.sum(1), reduction or self.reduction)

    def frames_needed(self, tokens: Sequence[int]) -> int:
        """One frame: any number of tokens may be said with a look at it."""
        return 1

    def align(self, emissions: Tensor, lengths: Tensor) -> list[Alignment]:
        """Decode greedily: emissions [B, T, H], lengths [B]."""
        tasks = self.prompts.rows(emissions.size(0))
        return cast(list[Alignment], self.greedy.paths(emissions.float(), lengths, tasks))

    def adapters_act(self) -> bool:
        """True: each row has a task of its own, in the order of the batch."""
        return True

    def search(
        self, emissions: Tensor, lengths: Tensor, words: Sequence[Words], settings: BeamSettings, count: int
    ) -> list[list[Reading]]:
        """The best prefixes of each row: emissions [B, T, H], lengths [B]."""
        greedy, states = self.greedy, emissions.float()
        tasks = self.prompts.rows(len(words))
        prompts = [self.prompts.tokens(task) for task in tasks]
        penalty = self.length_penalty if settings.length_penalty is None else settings.length_penalty
        ends = {"end": self.prompts.end, "pad": self.prompts.pad}
        with torch.no_grad():
            search = MultitaskBeamSearch(
                self.net, words, width=settings.width, size=greedy.size, length_penalty=penalty, **ends
            )
            tokens, valid = pad_tokens(prompts, self.prompts.pad, states.device)
            memory = self.net.listen(states, lengths.to(states.device))
            found = search.search(tokens, valid, memory, greedy.limits(lengths.tolist(), prompts))
        readings = []
        for own, length, task in zip(found, lengths.tolist(), tasks, strict=True):
            paths = [greedy.path(each.tokens, each.values, each.weights[:, :length], task) for each in own[:count]]
            readings.append([Reading(cast(Alignment, path), each.rank) for path, each in zip(paths, own, strict=False)])
        return readings

    def align_row(self, emissions: Emissions) -> Alignment:
        """Decode one row greedily: emissions [T, H]."""
        states = torch.from_numpy(np.ascontiguousarray(emissions)).unsqueeze(0).to(self.device)
        with torch.no_grad():
            return self.align(states, torch.tensor([len(emissions)]))[0]

    def read(self, alignment: Alignment) -> Hypothesis:
        """The text, without the tokens of times that the task has asked for."""
        path = cast(TransducerPath, alignment)
        is_time = np.isin(path.ids, list(self.prompts.times)) & (path.durations > 0)
        parts = {name: getattr(path, name)[~is_time] for name in ("ids", "places", "durations", "log_probs")}
        found = read_path(replace(path, **parts), self.tokenizer, seconds_per_frame=self.seconds_per_frame)
        if not is_time.any():
            return found
        spans = zip(path.places.tolist(), (path.places + np.maximum(path.durations, 1)).tolist(), strict=True)
        return replace(found, ids=tuple(path.ids.tolist()), spans=tuple(spans))

    def scores(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities of the first token of the text, the same at every frame, [B, T, V].

        emissions [B, T, H], lengths [B].
        """
        prompts = [self.prompts.tokens(task) for task in self.prompts.rows(emissions.size(0))]
        tokens, valid = pad_tokens(prompts, self.prompts.pad, emissions.device)
        log_probs: Tensor = self.net(tokens, valid.sum(1), emissions.float(), lengths.to(emissions.device))
        first = log_probs[torch.arange(len(prompts), device=emissions.device), valid.sum(1) - 1]
        return first.unsqueeze(1).expand(-1, emissions.size(1), -1)

    def decoder(
        self, options: DecodingOptions = GREEDY, *, first_frame: int = 0, scope: Scope = nullcontext
    ) -> Decoder:
        """A decoder of one recording."""
        return MultitaskDecoder(self, options, first_frame=first_frame, scope=scope)
