"""The choice of adapters for the rows of a batch, as long as a `use` block lasts.

Legend: B batch, T time, D width, L points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from overtone.adapters.adapter import Adapter, PointAdapter, stack_rows, unstack
from overtone.adapters.kinds.base import Kind, Tensors
from overtone.adapters.kinds.registry import known
from overtone.adapters.vocabulary import Vocabulary, vocabulary_of_chain
from overtone.adapters.words import WordPart, words_of_chain
from overtone.errors import AdapterError, did_you_mean
from overtone.nets.layers import recomputing
from overtone.nets.taps import Chains, TapContext
from overtone.tokenizers import Tokenizer

BATCHES_KEPT = 4
"""Stacks of parameters that are kept, each of a batch or of a part of one, for the next batch of the same adapters."""
Chain = tuple[str, ...]
"""Names in the order in which they act; empty is the base."""
Choice = str | Sequence[str | None] | None
Observer = Callable[[str, str, Tensor, Tensor], None]
"""Called as observe(point, adapter, y, delta) at every application."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage:
    """The first adapter of every row at a point, or the second of every row, …"""

    names: tuple[str | None, ...]
    """One for each row; None where the row has no further adapter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Rows that are computed together."""

    rows: tuple[int, ...]
    names: tuple[str, ...]
    """The adapter of each row: the same one for all, or several of one kind."""
    index: Tensor | None
    """[rows] int64; None where they are the whole batch."""
    alike: bool
    """True if it is the same adapter for all."""


class Selection:
    """The choice of one `use` block: one chain for all rows, or one chain a row."""

    def __init__(
        self,
        adapters: Mapping[str, Adapter],
        choice: Choice,
        *,
        form: str = "auto",
        observe: Observer | None = None,
    ) -> None:
        self.adapters = adapters
        self.form = form
        self.observe = observe
        self.rows: list[Chain] | None = None
        self.chain: Chain = ()
        self.row_count: int | None = None
        if choice is None or isinstance(choice, str):
            self.chain = self.parse(choice)
        else:
            chains = [self.parse(name) for name in choice]
            self.row_count = len(chains)
            if len(set(chains)) == 1:
                self.chain = chains[0]
            else:
                self.rows = chains
        self.penalties: list[Tensor] = []
        self.vocabularies: dict[Chain, Vocabulary] = {}
        """Vocabularies of the chains in use that have one of their own."""
        self.used = frozenset(name for chain in (self.rows or (self.chain,)) for name in chain)
        if any(self.adapters[name].vocabulary is not None for name in self.used):
            found = {chain: vocabulary_of_chain(self.adapters, chain) for chain in set(self.rows or (self.chain,))}
            self.vocabularies = {chain: own for chain, own in found.items() if own is not None}
        self.is_base = not self.used and self.row_count is None
        """True if no adapter acts, on a batch of any size."""
        self.trainable = [name for name in self.used if not self.adapters[name].frozen]
        """The adapters in use that may be in training."""
        self.stages: dict[frozenset[str], list[Stage]] = {}
        """Stages by the names of the adapters that act at a point, which are the same at most points."""
        self.grouped: dict[object, list[Group]] = {}
        """Groups by stage, by the adapters that are computed alone, and by device."""
        self.stacked: dict[object, Mapping[str, Tensors] | None] = {}
        """By group, dtype and device: by point, the parameters of frozen adapters that share their points."""
        self.narrowed: dict[tuple[int, ...], tuple[TapContext, TapContext]] = {}
        """By rows: the last context of the batch, and that of these rows; the same at all points of a forward."""

    def parse(self, choice: str | None) -> Chain:
        """`None` or `a+b` -> names. Raises AdapterError for an unknown name, and for one that is given twice."""
        if not isinstance(choice, str | None):
            raise AdapterError(f"{choice!r} is no choice of adapters; give None, a name, or a chain such as 'a+b'.")
        chain = () if choice is None else tuple(choice.split("+"))
        for name in chain:
            if name not in self.adapters:
                present = ", ".join(self.adapters) or "none; add or load one first"
                raise AdapterError(
                    f"Adapter '{name}' is unknown.{did_you_mean(name, self.adapters)} "
                    f"Adapters of this model: {present}."
                )
        if len(set(chain)) != len(chain):
            raise AdapterError(f"'{choice}' names an adapter twice; name each once.")
        return chain

    def auxiliary_loss(self) -> Tensor:
        """The penalties of all forwards since the last call, a scalar; zero where no strategy asks for one."""
        penalties, self.penalties = self.penalties, []
        return torch.stack(penalties).sum() if penalties else torch.zeros(())

    def words(self, rows: int) -> list[tuple[WordPart, ...]]:
        """The word parts of every row's chain, in its order. Raises AdapterError where the choice is for other rows."""
        self.check_rows(rows)
        parts = {name: self.adapters[name].words for name in self.used}
        chains = self.rows or [self.chain] * rows
        return [words_of_chain(parts, chain) for chain in chains]

    def tokenizers(self, rows: int) -> list[Tokenizer | None]:
        """The tokenizer of each of so many rows; None is the base's."""
        found = [self.vocabularies.get(chain) for chain in self.rows or [self.chain] * rows]
        return [None if own is None else own.tokenizer for own in found]

    def apply(self, point: str, x: Tensor, y: Tensor, context: TapContext, *, in_place: bool = False) -> Tensor:
        """x [B, T, in_width], y [B, T, out_width] -> `y` with every row's own chain applied at the point.

        Rows without a chain are untouched. in_place: nobody else holds `y`, and where nothing is learnt the sum may
        take its place. Raises AdapterError where the choice is for another number of rows.
        """
        in_place = in_place and not torch.is_grad_enabled()
        self.check_rows(y.size(0))
        if point not in self.names_by_point:
            return y
        if self.rows is None:
            for name in self.chain_at(self.chain, point):
                y = self.add(point, name, x, y, context, in_place=in_place)
            return y
        for stage in self.stages_at(point):
            y = self.apply_stage(point, stage, x, y, context, in_place=in_place)
        return y

    def check_rows(self, rows: int) -> None:
        """Raises AdapterError unless the choice is for a batch of so many rows."""
        if self.row_count is not None and self.row_count != rows:
            raise AdapterError(
                f"{self.row_count} adapter choices for a batch of {rows} rows: give one per row, or one name for all."
            )

    def stages_at(self, point: str) -> list[Stage]:
        """The first adapter of every row at the point, then the second of every row, and so on."""
        present = self.names_by_point.get(point, frozenset())
        if present not in self.stages:
            chains = [self.chain_at(chain, point) for chain in self.rows or (self.chain,)]
            self.stages[present] = [
                Stage(names=tuple(chain[number] if number < len(chain) else None for chain in chains))
                for number in range(max(map(len, chains)))
            ]
        return self.stages[present]

    def chains_at(self, point: str, rows: int) -> Chains:
        """The adapters of every row at the point. Raises AdapterError where the choice is for other rows."""
        self.check_rows(rows)
        stages = self.stages_at(point)
        by_row = zip(*(stage.names for stage in stages), strict=True)
        return Chains(
            by_row=tuple(
                tuple(self.adapters[name].at(point) for name in chain if name is not None) for chain in by_row
            ),
            observed=self.observe is not None,
        )

    def acts_at(self, point: str) -> bool:
        """True if any row uses an adapter with a place at the point."""
        return point in self.names_by_point

    @cached_property
    def names_by_point(self) -> dict[str, frozenset[str]]:
        """The adapters in use that have a place at a point, by point; those that nobody uses are left out."""
        alike: dict[tuple[str, ...], list[str]] = {}
        for name in self.used:
            alike.setdefault(tuple(self.adapters[name].by_point), []).append(name)
        found: dict[str, frozenset[str]] = {}
        for points, names in alike.items():
            own = frozenset(names)
            found |= {point: found[point] | own if point in found else own for point in points}
        return found

    def chain_at(self, chain: Chain, point: str) -> Chain:
        """The adapters of a chain that have a place at the point."""
        return tuple(name for name in chain if point in self.adapters[name])

    def apply_stage(
        self, point: str, stage: Stage, x: Tensor, y: Tensor, context: TapContext, *, in_place: bool
    ) -> Tensor:
        """x [B, T, in_width], y [B, T, out_width] -> `y` with one adapter for each row, or none.

        Adapters of one kind share their products in the stacked form.
        """
        outcome: list[Tensor] | None = None
        groups = self.groups(stage, y.device)
        for group in groups:
            x_rows, y_rows, context_rows = x, y, context
            if group.index is not None:
                x_rows, y_rows = x.index_select(0, group.index), y.index_select(0, group.index)
                context_rows = self.narrow(context, group)
            if group.alike:
                result = self.add(point, group.names[0], x_rows, y_rows, context_rows, in_place=in_place)
            else:
                result = self.add_stacked(point, group, x_rows, y_rows, context_rows, in_place=in_place)
            if group.index is None:
                return result
            if len(groups) == 1:
                return y.index_copy_(0, group.index, result) if in_place else y.index_copy(0, group.index, result)
            outcome = outcome or list(y.unbind(0))
            for row, value in zip(group.rows, result.unbind(0), strict=True):
                outcome[row] = value
        return y if outcome is None else torch.stack(outcome)

    def groups(self, stage: Stage, device: torch.device) -> list[Group]:
        """The rows of a stage in groups that can be computed together."""
        single = self.single()
        key = (stage, single, device)
        if key not in self.grouped:
            found: dict[object, list[int]] = {}
            for row, name in enumerate(stage.names):
                if name is not None:
                    found.setdefault(name if name in single else self.adapters[name].kind, []).append(row)
            self.grouped[key] = [make_group(rows, stage.names, device) for rows in found.values()]
        return self.grouped[key]

    def narrow(self, context: TapContext, group: Group) -> TapContext:
        """The context of the group's rows."""
        assert group.index is not None
        last = self.narrowed.get(group.rows)
        if last is None or last[0] is not context:
            last = self.narrowed[group.rows] = (context, context.rows(group.index))
        return last[1]

    def single(self) -> frozenset[str]:
        """The adapters that are not computed together with others of their kind: all, or those in training."""
        if self.form == "stacked" or (self.form == "auto" and not torch.is_grad_enabled()):
            return frozenset(name for name in self.trainable if self.adapters[name].training)
        return self.used

    def add(self, point: str, name: str, x: Tensor, y: Tensor, context: TapContext, *, in_place: bool) -> Tensor:
        """x [B, T, in_width], y [B, T, out_width] -> `y` with one adapter for all rows."""
        adapter = self.adapters[name]
        part = adapter.at(point)
        tensors = self.tensors_of(part, y.dtype)
        if self.observe is None and not (adapter.training or part.training):
            return add_delta(part.kind, tensors, x, y, context, in_place=in_place)
        whole = match_dtype(y, tensors)
        delta = part.kind.delta(tensors, x, whole, context, part.training)
        if adapter.training:
            delta = adapter.strategy.thin(delta)
            penalty = adapter.strategy.penalty(delta) if torch.is_grad_enabled() else None
            if penalty is not None and not recomputing.get():
                self.penalties.append(penalty)
        if self.observe is not None and not recomputing.get():
            self.observe(point, name, y, delta)
        return add_in_float32(whole, delta).to(y.dtype) if whole.dtype is torch.float32 else add_in_float32(y, delta)

    def tensors_of(self, part: PointAdapter, dtype: torch.dtype) -> Tensors:
        """The parameters themselves where something may be learnt, else those derived for a stream in `dtype`."""
        return part.tensors() if part.training or torch.is_grad_enabled() else part.inference_tensors(dtype)

    def add_stacked(
        self, point: str, group: Group, x: Tensor, y: Tensor, context: TapContext, *, in_place: bool
    ) -> Tensor:
        """x [B, T, in_width], y [B, T, out_width] -> `y` with another adapter of one kind for each row."""
        kind = self.adapters[group.names[0]].kind
        at_once = None if torch.is_grad_enabled() else self.stacked_points(group, y)
        tensors = self.stacked_rows(point, group.names, y) if at_once is None else at_once[point]
        if self.observe is None:
            return add_delta(kind, tensors, x, y, context, in_place=in_place)
        delta = kind.delta(tensors, x, match_dtype(y, tensors), context, False)
        for row, name in enumerate(group.names):
            self.observe(point, name, y[row : row + 1], delta[row : row + 1])
        return add_in_float32(y, delta)

    def stacked_rows(self, point: str, names: Sequence[str], y: Tensor) -> Tensors:
        """The parameters of each row's adapter at one point, each [B, …], for a stream like `y` [B, T, D]."""
        each = {name: self.tensors_of(self.adapters[name].at(point), y.dtype) for name in names}
        return stack_rows([each[name] for name in names])

    def stacked_points(self, group: Group, y: Tensor) -> Mapping[str, Tensors] | None:
        """`stacked_rows` of all points at once, y [B, T, D]; None unless the adapters are frozen at the same points."""
        key = (group, y.dtype, y.device)
        if key not in self.stacked:
            adapters = tuple(self.adapters[name] for name in group.names)
            points = adapters[0].by_point.keys()
            alike = all(
                adapter.by_point.keys() == points and adapter.inference_stack(y.dtype, y.device) is not None
                for adapter in set(adapters)
            )
            self.stacked[key] = stack_adapters(adapters, y.dtype, y.device) if alike else None
        return self.stacked[key]


BASE = Selection({}, None)
"""The choice of no adapter, on any number of rows."""


def make_group(rows: Sequence[int], names: Sequence[str | None], device: torch.device) -> Group:
    """The group of these rows; names: the adapter of every row of the batch."""
    own = tuple(name for name in (names[row] for row in rows) if name is not None)
    index = None if len(rows) == len(names) else torch.tensor(rows, device=device)
    return Group(rows=tuple(rows), names=own, index=index, alike=len(set(own)) == 1)


@lru_cache(maxsize=BATCHES_KEPT)
def stack_adapters(
    adapters: tuple[Adapter, ...], dtype: torch.dtype, device: torch.device
) -> dict[str, dict[str, Tensor]]:
    """By point, the parameters of each row's adapter, each [B, …]; for frozen adapters.

    An adapter that has been removed since is held for so many stacks more.
    """
    each = [stack for stack in (adapter.inference_stack(dtype, device) for adapter in adapters) if stack is not None]
    stacks = {name: torch.stack([stack[name] for stack in each], dim=1) for name in each[0]}  # [L, B, …]
    return dict(zip(adapters[0].points, unstack(stacks), strict=True))


def add_delta(kind: Kind, tensors: Tensors, x: Tensor, y: Tensor, context: TapContext, *, in_place: bool) -> Tensor:
    """x [B, T, in_width], y [B, T, out_width] -> y + delta, where nothing is learnt and nobody observes the delta."""
    form = known(kind)
    together = None if form is None or form.added is None else form.added(kind, tensors, y, in_place)
    if together is not None:
        return together
    return add_in_float32(y, kind.delta(tensors, x, match_dtype(y, tensors), context, False))


def match_dtype(y: Tensor, tensors: Tensors) -> Tensor:
    """y [B, T, D] in the dtype of the adapter's parameters."""
    return y.to(next(iter(tensors.values())).dtype)


def add_in_float32(y: Tensor, delta: Tensor) -> Tensor:
    """y + delta, both [B, T, D], added in float32 whatever the dtype of the stream."""
    if y.dtype == delta.dtype:  # torch adds narrow numbers in float32 and rounds once
        return y + delta
    return (y.float() + delta.float()).to(y.dtype)
