"""Which adapters act on which rows, while a `use` block lasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from overtone.adapters.adapter import Adapter
from overtone.adapters.kinds import PointAdapter, Tensors, stack_rows
from overtone.errors import AdapterError, did_you_mean
from overtone.nets.layers import TapContext, recomputing

Chain = tuple[str, ...]
"""Names in the order in which they act; empty is the base."""
Choice = str | Sequence[str | None] | None
Observer = Callable[[str, str, Tensor, Tensor], None]
"""Called as observe(point, adapter, y, delta) at every application."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that are computed together."""

    rows: tuple[int, ...]
    names: tuple[str, ...]
    """The adapter of each row: the same one, or several of one kind."""
    index: Tensor | None
    """[R] int64, the rows; None where they are the whole batch."""


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
        self.stages: dict[str, list[tuple[str | None, ...]]] = {}
        """By point: what each row takes first, second, …; a block's adapters do not change."""
        self.grouped: dict[object, list[Group]] = {}
        self.packed: dict[object, dict[str, Tensors] | None] = {}
        """By rows' adapters, dtype and device: by point, the parameters of sealed adapters that share their points."""
        self.narrowed: dict[tuple[int, ...], tuple[TapContext, TapContext]] = {}
        """By rows: the last whole context, and what of it these rows need; the same at all points of a forward."""

    def parse(self, choice: str | None) -> Chain:
        """`None` or `a+b` -> names, every one of them known."""
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

    def apply(self, point: str, x: Tensor, y: Tensor, context: TapContext) -> Tensor:
        """`y` [B, T, D] with every row's own chain applied at the point; rows without one are untouched."""
        self.check_rows(y.size(0))
        if point not in self.touched:
            return y
        if self.rows is None:
            for name in self.acting(self.chain, point):
                y = self.add(point, name, x, y, context)
            return y
        for names in self.stages_at(point):
            y = self.apply_stage(point, names, x, y, context)
        return y

    def check_rows(self, rows: int) -> None:
        """Raises AdapterError unless the choice is for a batch of so many rows."""
        if self.row_count is not None and self.row_count != rows:
            raise AdapterError(
                f"{self.row_count} adapter choices for a batch of {rows} rows: give one per row, or one name for all."
            )

    def stages_at(self, point: str) -> list[tuple[str | None, ...]]:
        """What each row takes at the point first, what second, and so on; None where it takes nothing more."""
        if point not in self.stages:
            chains = [self.acting(chain, point) for chain in self.rows or (self.chain,)]
            self.stages[point] = [
                tuple(chain[stage] if stage < len(chain) else None for chain in chains)
                for stage in range(max(map(len, chains)))
            ]
        return self.stages[point]

    def acts_at(self, point: str) -> bool:
        """Whether any row uses an adapter with a place at the point."""
        return point in self.touched

    @cached_property
    def touched(self) -> frozenset[str]:
        """The points where any row's adapter has a place."""
        names = {name for chain in (self.rows or (self.chain,)) for name in chain}
        return frozenset(point for name in names for point in self.adapters[name].by_point)

    def acting(self, chain: Chain, point: str) -> Chain:
        return tuple(name for name in chain if point in self.adapters[name])

    def apply_stage(
        self, point: str, names: tuple[str | None, ...], x: Tensor, y: Tensor, context: TapContext
    ) -> Tensor:
        """At most one adapter a row; adapters of one kind share their products in the stacked form."""
        outcome: list[Tensor] | None = None
        groups = self.groups(names, y.device)
        for group in groups:
            x_rows, y_rows, context_rows = x, y, context
            if group.index is not None:
                x_rows, y_rows = x.index_select(0, group.index), y.index_select(0, group.index)
                context_rows = self.narrow(context, group)
            if len(set(group.names)) == 1:
                result = self.add(point, group.names[0], x_rows, y_rows, context_rows)
            else:
                result = self.add_stacked(point, group.names, x_rows, y_rows, context_rows)
            if group.index is None:
                return result
            if len(groups) == 1:
                return y.index_copy(0, group.index, result)
            outcome = outcome or list(y.unbind(0))
            for row, value in zip(group.rows, result.unbind(0), strict=True):
                outcome[row] = value
        return y if outcome is None else torch.stack(outcome)

    def groups(self, names: tuple[str | None, ...], device: torch.device) -> list[Group]:
        """The rows of a stage, put together by what can be computed together."""
        shared = tuple(name is not None and self.stacks(name) for name in names)
        key = (names, shared, device)
        if key not in self.grouped:
            found: dict[object, list[int]] = {}
            for row, name in enumerate(names):
                if name is not None:
                    found.setdefault(self.adapters[name].kind if shared[row] else name, []).append(row)
            self.grouped[key] = [
                Group(
                    rows=tuple(rows),
                    names=tuple(name for name in (names[row] for row in rows) if name is not None),
                    index=None if len(rows) == len(names) else torch.tensor(rows, device=device),
                )
                for rows in found.values()
            ]
        return self.grouped[key]

    def narrow(self, context: TapContext, group: Group) -> TapContext:
        """The context of the group's rows."""
        assert group.index is not None
        known = self.narrowed.get(group.rows)
        if known is None or known[0] is not context:
            known = self.narrowed[group.rows] = (context, context.rows(group.index))
        return known[1]

    def stacks(self, name: str) -> bool:
        """Whether the adapter is computed together with others of its kind; those in training go one by one."""
        if self.adapters[name].training:
            return False
        return self.form == "stacked" or (self.form == "auto" and not torch.is_grad_enabled())

    def add(self, point: str, name: str, x: Tensor, y: Tensor, context: TapContext) -> Tensor:
        adapter = self.adapters[name]
        part = adapter.at(point)
        tensors = self.tensors_of(part, y.dtype)
        whole = working(y, tensors)
        delta = part.kind.delta(tensors, x, whole, context, part.training)
        if adapter.training:
            delta = adapter.strategy.thin(delta)
            penalty = adapter.strategy.penalty(delta) if torch.is_grad_enabled() else None
            if penalty is not None and not recomputing.get():
                self.penalties.append(penalty)
        if self.observe is not None and not recomputing.get():
            self.observe(point, name, y, delta)
        return joined(whole, delta).to(y.dtype) if whole.dtype is torch.float32 else joined(y, delta)

    def tensors_of(self, part: PointAdapter, dtype: torch.dtype) -> Tensors:
        """As they are where something may be learnt, else as they are quickest for a stream in `dtype`."""
        return part.tensors() if part.training or torch.is_grad_enabled() else part.ready(dtype)

    def add_stacked(self, point: str, names: tuple[str, ...], x: Tensor, y: Tensor, context: TapContext) -> Tensor:
        kind = self.adapters[names[0]].kind
        packed = None if torch.is_grad_enabled() else self.packed_rows(names, y)
        tensors = self.stacked_rows(point, names, y) if packed is None else packed[point]
        delta = kind.delta(tensors, x, working(y, tensors), context, False)
        if self.observe is not None:
            for row, name in enumerate(names):
                self.observe(point, name, y[row : row + 1], delta[row : row + 1])
        return joined(y, delta)

    def stacked_rows(self, point: str, names: Sequence[str], y: Tensor) -> Tensors:
        """The parameters of each row's adapter at one point, each [B, …]."""
        each = {name: self.tensors_of(self.adapters[name].at(point), y.dtype) for name in names}
        return stack_rows([each[name] for name in names])

    def packed_rows(self, names: tuple[str, ...], y: Tensor) -> dict[str, Tensors] | None:
        """The same for all points at once, for adapters that are sealed and have the same ones; else None."""
        key = (names, y.dtype, y.device)
        if key not in self.packed:
            points = self.adapters[names[0]].points
            packs = {name: self.adapters[name].pack(y.dtype, y.device) for name in names}
            alike = all(self.adapters[name].points == points for name in packs)
            whole = [pack for pack in (packs[name] for name in names) if pack is not None] if alike else []
            self.packed[key] = None
            if len(whole) == len(names):
                stacks = {each: torch.stack([pack[each] for pack in whole], dim=1) for each in whole[0]}  # [L, B, …]
                self.packed[key] = {
                    point: {each: stack[index] for each, stack in stacks.items()} for index, point in enumerate(points)
                }
        return self.packed[key]


def working(y: Tensor, tensors: Tensors) -> Tensor:
    """`y` in the dtype of the adapter's parameters."""
    return y.to(next(iter(tensors.values())).dtype)


def joined(y: Tensor, delta: Tensor) -> Tensor:
    """y + delta, added in float32 whatever the stream is kept in."""
    if y.dtype == delta.dtype:  # torch adds narrow numbers in float32 and rounds once
        return y + delta
    return (y.float() + delta.float()).to(y.dtype)
