"""Which adapters act on which rows, while a `use` block lasts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from overtone.adapters.adapter import Adapter
from overtone.adapters.kinds import PointAdapter, stack_rows
from overtone.errors import AdapterError, did_you_mean
from overtone.nets.layers import TapContext, recomputing

Chain = tuple[str, ...]
"""Names in the order in which they act; empty is the base."""
Choice = str | Sequence[str | None] | None
Observer = Callable[[str, str, Tensor, Tensor], None]
"""Called as observe(point, adapter, y, delta) at every application."""


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
        if self.row_count is not None and self.row_count != y.size(0):
            raise AdapterError(
                f"{self.row_count} adapter choices for a batch of {y.size(0)} rows: "
                "give one per row, or one name for all."
            )
        if self.rows is None:
            for name in self.acting(self.chain, point):
                y = self.add(point, name, x, y, context)
            return y
        chains = [self.acting(chain, point) for chain in self.rows]
        for stage in range(max(map(len, chains))):
            names = [chain[stage] if stage < len(chain) else None for chain in chains]
            y = self.apply_stage(point, names, x, y, context)
        return y

    def acts_at(self, point: str) -> bool:
        """Whether any row uses an adapter with a place at the point."""
        return any(self.acting(chain, point) for chain in (self.rows or (self.chain,)))

    def acting(self, chain: Chain, point: str) -> Chain:
        return tuple(name for name in chain if point in self.adapters[name])

    def apply_stage(self, point: str, names: Sequence[str | None], x: Tensor, y: Tensor, context: TapContext) -> Tensor:
        """At most one adapter a row; adapters of one kind share their products in the stacked form."""
        groups: dict[object, list[int]] = {}
        for row, name in enumerate(names):
            if name is not None:
                groups.setdefault(self.adapters[name].kind if self.stacks(name) else name, []).append(row)
        for rows in groups.values():
            index = torch.tensor(rows, device=y.device)
            whole = len(rows) == len(names)
            x_rows, y_rows = (x, y) if whole else (x[index], y[index])
            context_rows = context if whole else context.rows(index)
            chosen = [name for name in (names[row] for row in rows) if name is not None]
            if len(set(chosen)) == 1:
                result = self.add(point, chosen[0], x_rows, y_rows, context_rows)
            else:
                result = self.add_stacked(point, chosen, x_rows, y_rows, context_rows)
            y = result if whole else y.index_copy(0, index, result)
        return y

    def stacks(self, name: str) -> bool:
        """Whether the adapter is computed together with others of its kind; those in training go one by one."""
        if self.adapters[name].training:
            return False
        return self.form == "stacked" or (self.form == "auto" and not torch.is_grad_enabled())

    def add(self, point: str, name: str, x: Tensor, y: Tensor, context: TapContext) -> Tensor:
        adapter = self.adapters[name]
        part = adapter.at(point)
        delta = part(x, working(y, part), context)
        if adapter.training:
            delta = adapter.strategy.thin(delta)
            penalty = adapter.strategy.penalty(delta) if torch.is_grad_enabled() else None
            if penalty is not None and not recomputing.get():
                self.penalties.append(penalty)
        if self.observe is not None and not recomputing.get():
            self.observe(point, name, y, delta)
        return joined(y, delta)

    def add_stacked(self, point: str, names: Sequence[str], x: Tensor, y: Tensor, context: TapContext) -> Tensor:
        distinct = list(dict.fromkeys(names))
        parts = [self.adapters[name].at(point) for name in distinct]
        index = torch.tensor([distinct.index(name) for name in names], device=y.device)
        tensors = stack_rows(parts, index)
        delta = parts[0].kind.delta(tensors, x, working(y, parts[0]), context, False)
        if self.observe is not None:
            for row, name in enumerate(names):
                self.observe(point, name, y[row : row + 1], delta[row : row + 1])
        return joined(y, delta)


def working(y: Tensor, part: PointAdapter) -> Tensor:
    """`y` in the dtype of the adapter's parameters."""
    return y.to(next(part.parameters()).dtype)


def joined(y: Tensor, delta: Tensor) -> Tensor:
    """y + delta, added in float32 whatever the stream is kept in."""
    return (y.float() + delta.float()).to(y.dtype)
