"""Heads over other tokens than the base's: made for an adapter, chosen by the adapters in use, mixed in one batch.

Legend: B batch, T encoder frames, D width, C channels of an emission, U target tokens, N scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, NoReturn, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from overtone.adapters.adapter_set import AdapterSet
from overtone.adapters.vocabulary import Vocabulary, begin_with_base, match_tokens
from overtone.decoding.decoder import (
    GREEDY,
    Alignment,
    BeamSettings,
    Decoder,
    DecodingOptions,
    Emissions,
    Head,
    Reading,
)
from overtone.decoding.decoder import Scope as DecoderScope
from overtone.decoding.fusion import Words
from overtone.decoding.hypothesis import Hypothesis
from overtone.decoding.task import TaskPrompts
from overtone.errors import AdapterError, UsageError
from overtone.nets.layers import Reduction, Replaced
from overtone.scope import Scope
from overtone.tokenizers import Tokenizer

A = TypeVar("A")
WITH_TOKENS = ("decoder", "joint", "ctc_decoder")
"""Parts of a model that know its tokens."""
MakeHeads = Callable[[Mapping[str, nn.Module], Tokenizer], Mapping[str, Head]]


tokenizers_in_use: Scope[Tokenizer] = Scope("overtone_tokenizers")
"""The tokenizer of every model in a `writing_with` block."""


class Writer(Protocol):
    """A model, as far as its tokens matter."""

    @property
    def head(self) -> Head: ...


def tokenizer_of(model: Writer) -> Tokenizer:
    """The tokenizer of transcripts: of a `writing_with` block, else of the head that recognises."""
    return tokenizers_in_use.get(model, None) or model.head.tokenizer


def writing_with(model: Writer, tokenizer: Tokenizer | None) -> AbstractContextManager[object]:
    """A block in which `tokenizer_of` a model is another; None changes nothing."""
    return nullcontext() if tokenizer is None else tokenizers_in_use.choose(model, tokenizer)


class TokenNet(Protocol):
    """A net that knows its tokens."""

    def with_classes(self, classes: int) -> tuple[nn.Module, Replaced]:
        """The same net over so many other tokens, and its own modules by name, each with this net's in its place."""


def make_vocabulary(
    parts: Mapping[str, nn.Module], base: Tokenizer, make_heads: MakeHeads, tokenizer: Tokenizer, *, reuse: bool
) -> Vocabulary:
    """Make heads over another tokenizer's tokens, all that a model has.

    parts: of the model. base: its tokenizer. reuse: tokens that the base has too begin with its values; the blank and
    the durations of a TDT model always do. Raises AdapterError for a model that is told a task in its tokens.
    """
    if not any(part in parts for part in WITH_TOKENS):
        raise AdapterError(
            "This model is told its task in tokens of its own vocabulary, so no adapter of it can have another one. "
            "Adapt a CTC model or a transducer, or leave the vocabulary out."
        )
    nets, own = dict(parts), dict[str, dict[str, nn.Module]]()
    tokens = match_tokens(tokenizer, base) if reuse else []
    for part in WITH_TOKENS:
        if part in parts:
            nets[part], replaced = cast(TokenNet, parts[part]).with_classes(tokenizer.size)
            own[part] = {name: module for name, (module, _) in replaced.items()}
            for module, before in replaced.values():
                module.to(next(before.parameters()).device)
                begin_with_base(module, before, tokens, classes=tokenizer.size, base_classes=base.size)
    heads = make_heads(nets, tokenizer)
    return Vocabulary(tokenizer, heads, {part: nets[part] for part in own}, own, reused=len(tokens))


def heads_of_rows(heads: Mapping[str, Head], name: str, adapters: AdapterSet, rows: int) -> list[Head]:
    """The head of each row of a batch, with the adapters in use: the base's, or that of the row's adapter."""
    selection = adapters.selection
    if selection is None or not selection.vocabularies:
        return [heads[name]] * rows
    chains = selection.rows or [selection.chain] * rows
    return [vocabulary_head(heads, name, selection.vocabularies.get(chain)) for chain in chains]


def head_in_use(heads: Mapping[str, Head], name: str, adapters: AdapterSet) -> Head:
    """The head of all rows of a batch, with the adapters in use."""
    selection = adapters.selection
    if selection is None or not selection.vocabularies:
        return heads[name]
    if selection.rows is None:
        return vocabulary_head(heads, name, selection.vocabularies.get(selection.chain))
    own = heads_of_rows(heads, name, adapters, len(selection.rows))
    return own[0] if len(set(map(id, own))) == 1 else RowHeads(own, heads[name], adapters)


def vocabulary_head(heads: Mapping[str, Head], name: str, vocabulary: Vocabulary | None) -> Head:
    """The head of that name over a vocabulary; None is the base's."""
    return heads[name] if vocabulary is None else vocabulary.heads[name]


class Group(NamedTuple):
    """Rows with one head."""

    head: Head
    rows: list[int]

    def part(self, x: Tensor) -> Tensor:
        """x [B, …] -> [rows, …]"""
        return x[torch.tensor(self.rows, device=x.device)]


class RowHeads:
    """The heads of a batch whose rows have different vocabularies.

    Emissions have the channels of the widest head, those that a row's own head does not have are -inf.
    """

    def __init__(self, heads: Sequence[Head], base: Head, adapters: AdapterSet) -> None:
        """heads: of each row. base: the base's. adapters: theirs act in decoders, each on its own rows."""
        self.base = base
        self.adapters = adapters
        self.rows = list(heads)
        found: dict[int, Group] = {}
        for row, head in enumerate(heads):
            found.setdefault(id(head), Group(head, [])).rows.append(row)
        self.groups = list(found.values())
        self.channels = max(head.channels for head in heads)
        self.gives_log_probs = base.gives_log_probs
        self.decodes_with_adapters = base.decodes_with_adapters
        self.reduction: Reduction = base.reduction

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises UsageError: there are several."""
        self.refuse()

    @property
    def prompts(self) -> TaskPrompts | None:
        """None: a model that is told a task has one vocabulary."""
        return None

    @property
    def inner(self) -> Head | None:
        """The heads on inner layers, one for each row."""
        inner = [head.inner for head in self.rows]
        if self.base.inner is None:
            return None
        return RowHeads([head for head in inner if head is not None], self.base.inner, self.adapters)

    def refuse(self) -> NoReturn:
        """Raises UsageError: a row has to be named."""
        raise UsageError(
            "The rows of this batch have different vocabularies; ask for one row's head, AsrModel.heads_of_rows."
        )

    def within(self, group: Group) -> AbstractContextManager[object]:
        """The adapters of the group's rows alone."""
        selection = self.adapters.selection
        if selection is None or selection.rows is None:
            return nullcontext()
        chains = ["+".join(selection.rows[row]) or None for row in group.rows]
        return self.adapters.use(chains, observe=selection.observe)

    def emit(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x [B, T, D], lengths [B] -> emissions [B, T, C] float32.

        The base's rows are computed with all others beside them, and so are what they are without any adapter.
        """
        found: list[Tensor] = [x] * len(self.rows)
        for group in self.groups:
            if group.head is self.base:
                rows = group.part(group.head.emit(x, lengths))
            else:
                with self.within(group):
                    rows = group.head.emit(group.part(x), group.part(lengths))
            for row, own in zip(group.rows, self.widen(rows), strict=True):
                found[row] = own
        return torch.stack(found)

    def widen(self, x: Tensor) -> Tensor:
        """x [B, T, any] -> [B, T, C], with -inf behind."""
        return nn.functional.pad(x, (0, self.channels - x.size(-1)), value=-torch.inf)

    def each(self, emissions: Tensor, lengths: Tensor, ask: Callable[[Group, Tensor, Tensor], Sequence[A]]) -> list[A]:
        """The answers of all rows, asked by group: emissions [B, T, C], lengths [B]."""
        answers: dict[int, A] = {}
        for group in self.groups:
            own = group.part(emissions)[..., : group.head.channels]
            with self.within(group):
                answers |= zip(group.rows, ask(group, own, group.part(lengths)), strict=True)
        return [answers[row] for row in range(len(self.rows))]

    def align(self, emissions: Tensor, lengths: Tensor) -> list[Alignment]:
        """Decode greedily: emissions [B, T, C], lengths [B]."""
        return self.each(emissions, lengths, lambda group, own, frames: group.head.align(own, frames))

    def adapters_act(self) -> bool:
        """True: rows are decoded in the batch that they came in."""
        return True

    def search(
        self, emissions: Tensor, lengths: Tensor, words: Sequence[Words], settings: BeamSettings, count: int
    ) -> list[list[Reading]]:
        """The best readings of each row: emissions [B, T, C], lengths [B]."""

        def ask(group: Group, own: Tensor, frames: Tensor) -> list[list[Reading]]:
            return group.head.search(own, frames, [words[row] for row in group.rows], settings, count)

        return self.each(emissions, lengths, ask)

    def scores(self, emissions: Tensor, lengths: Tensor) -> Tensor:
        """Scores [B, T, N] of the widest head, -inf behind a row's own: emissions [B, T, C], lengths [B].

        The base's rows are computed with all others beside them, as in `emit`.
        """

        has_base = any(group.head is self.base for group in self.groups)
        base = self.base.scores(emissions[..., : self.base.channels], lengths) if has_base else emissions

        def ask(group: Group, own: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
            found = group.part(base) if group.head is self.base else group.head.scores(own, frames)
            return found.unbind()

        rows = self.each(emissions, lengths, ask)
        most = max(row.size(-1) for row in rows)
        return torch.stack([nn.functional.pad(row, (0, most - row.size(-1)), value=-torch.inf) for row in rows])

    def loss(
        self,
        emissions: Tensor,
        lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        *,
        reduction: Reduction | None = None,
    ) -> Tensor:
        """Raises UsageError, as adapters are trained one at a time: emissions [B, T, C], lengths [B], targets [B, U],
        target_lengths [B].
        """
        self.refuse()

    def frames_needed(self, tokens: Sequence[int]) -> int:
        """The most that any row's head needs."""
        return max(group.head.frames_needed(tokens) for group in self.groups)

    def align_row(self, emissions: Emissions) -> Alignment:
        """Raises UsageError: a row has to be named."""
        self.refuse()

    def read(self, alignment: Alignment) -> Hypothesis:
        """Raises UsageError: a row has to be named."""
        self.refuse()

    def decoder(
        self, options: DecodingOptions = GREEDY, *, first_frame: int = 0, scope: DecoderScope = nullcontext
    ) -> Decoder:
        """Raises UsageError: a row has to be named."""
        self.refuse()
