"""All adapters of one model: the module that owns their parameters and plugs them into the taps."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from overtone.adapters.adapter import Adapter, check_name, choose_points, module_key
from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.registry import check_kind, find_kind
from overtone.adapters.points import Layers, Point, collect_points
from overtone.adapters.selection import BASE, Choice, Observer, Selection, stack_adapters
from overtone.adapters.storage import BaseIdentity, StoredAdapter, read_folder, write_folder
from overtone.adapters.strategies import ResidualAdd
from overtone.adapters.tokenizer_files import StoredVocabulary
from overtone.adapters.vocabulary import Vocabulary, VocabularyMaker, check_words, split_tensors
from overtone.adapters.words import WORDS_ALONE, WordPart, words_of_chain
from overtone.decoding.fusion import NO_WORDS, Words
from overtone.errors import AdapterError, did_you_mean
from overtone.nets.taps import NO_CHAINS, Chains, TapContext
from overtone.scope import Scope
from overtone.text_table import columns
from overtone.tokenizers import Tokenizer

FILE_CHOICE = "@file"
in_use: Scope[Selection] = Scope("overtone_adapters_in_use")
"""The selection of every adapter set that is in a `use` block."""
CHANGES = threading.Lock()
"""Held while a set changes. Its dictionaries never do: others may be going through them."""


def held_key(name: str) -> str:
    """The key of an adapter in `held`: no dots, and none of the words that nn.ModuleDict uses itself (`train`)."""
    return f"/{module_key(name)}"


class PointPlug:
    """The place of a model's adapters at one point, plugged into its tap."""

    def __init__(self, adapters: AdapterSet, point: str) -> None:
        self.adapters = adapters
        self.point = point

    def __call__(self, x: Tensor, y: Tensor, context: TapContext, *, in_place: bool = False) -> Tensor:
        """x [B, T, in_width], y [B, T, out_width] -> [B, T, out_width]."""
        selection = self.adapters.selection
        if selection is None or selection.is_base:
            return y
        return selection.apply(self.point, x, y, context, in_place=in_place)

    def acts(self) -> bool:
        """True if any row uses an adapter with a place here."""
        selection = self.adapters.selection
        return selection is not None and not selection.is_base and selection.acts_at(self.point)

    def chains(self, rows: int) -> Chains:
        """The adapters of every row. Raises AdapterError where the choice is for another number of rows."""
        selection = self.adapters.selection
        return NO_CHAINS if selection is None else selection.chains_at(self.point, rows)


class AdapterSet(nn.Module):
    """`adapters[name]`, in the order of addition; plugged into the taps of a model once.

    Nothing acts outside a `use` block, and no thread, task or caller of a generator sees the choice of another one's.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.points: dict[str, Point] = {}
        self.held = nn.ModuleDict()
        self.by_name: dict[str, Adapter] = {}
        """The same adapters by name, quick to look up where there are thousands."""
        self.file_choice: tuple[str, ...] = ()
        """The adapters that the model's file had enabled: `use("@file")` takes them."""
        self.nemo: dict[str, Any] | None = None
        """Settings for NeMo's files that concern all adapters together; None: those of the model's own file."""
        self.form: Literal["auto", "loop", "stacked"] = "auto"
        """`loop` computes adapter by adapter; `stacked` those of one kind together; `auto` stacks in inference."""
        self.register_buffer("anchor", torch.empty(0), persistent=False)
        self.anchor: Tensor
        """An empty tensor that moves with the model: new adapters are created on its device."""
        self.make_vocabulary: VocabularyMaker | None = None
        """Makes heads of the model for another tokenizer; the model sets it."""
        self.base_identity: BaseIdentity | None = None
        """The identity of the base, which folders of adapters are checked against; the model sets it."""
        for name, (point, tap) in collect_points(model).items():
            self.points[name] = point
            tap.plug = PointPlug(self, name)

    @property
    def names(self) -> list[str]:
        """Names in the order of addition."""
        return list(self.by_name)

    def __iter__(self) -> Iterator[Adapter]:
        yield from self.by_name.values()

    def __len__(self) -> int:
        return len(self.held)

    def __contains__(self, name: object) -> bool:
        return name in self.by_name

    def __getitem__(self, name: str) -> Adapter:
        if name not in self:
            present = ", ".join(self.names) or "none; add or load one first"
            raise AdapterError(
                f"Adapter '{name}' is unknown.{did_you_mean(name, self.names)} Adapters of this model: {present}."
            )
        return self.by_name[name]

    def add(
        self,
        name: str,
        kind: Kind | str,
        *,
        modules: str = "encoder",
        layers: Layers = "all",
        strategy: ResidualAdd | None = None,
        tokenizer: Tokenizer | None = None,
        reuse: bool = True,
    ) -> Adapter:
        """Add a new adapter, identity at birth.

        `modules`: encoder, decoder, joint, or several joined by `+`. `layers`: all, last:8, first:2 or numbers.
        `tokenizer`: of a vocabulary of its own, for which it gets new heads; with `reuse` tokens that the base has too
        begin with the base's values. Raises AdapterError where the name is taken or malformed, or a module has no point
        for the kind.
        """
        adapter = self.make(name, kind, modules=modules, layers=layers, strategy=strategy)
        if tokenizer is not None:
            adapter.own_vocabulary(self.heads_for(tokenizer, reuse=reuse))
        self.insert(adapter)
        return adapter

    def heads_for(self, tokenizer: Tokenizer, *, reuse: bool = False) -> Vocabulary:
        """Heads of the model over another tokenizer's tokens. Raises AdapterError where the set has no AsrModel."""
        if self.make_vocabulary is None:
            raise AdapterError("This adapter set belongs to no model with a head; use AsrModel.adapters.")
        return self.make_vocabulary(tokenizer, reuse=reuse)

    def make(
        self, name: str, kind: Kind | str, *, modules: str, layers: Layers, strategy: ResidualAdd | None = None
    ) -> Adapter:
        """Make a new adapter for this model; `insert` adds it. Raises as `add`."""
        kind = find_kind(kind)
        check_kind(kind)
        self.check_free(name)
        chosen = choose_points(list(self.points.values()), kind, modules=modules, layers=layers)
        adapter = Adapter(
            check_name(name), kind, chosen, modules=modules, layers=layers, strategy=strategy or ResidualAdd()
        )
        adapter.to(self.anchor.device)
        adapter.train(self.training)
        return adapter

    def add_words(self, name: str, words: WordPart) -> Adapter:
        """Add an adapter that has a word part alone. Raises AdapterError where the name is taken or malformed."""
        self.check_free(name)
        adapter = Adapter(check_name(name), WORDS_ALONE, [], modules="encoder", layers="all", strategy=ResidualAdd())
        adapter.words = words
        adapter.train(self.training)
        self.insert(adapter)
        return adapter

    def restore_heads(self, stored: StoredVocabulary) -> Vocabulary:
        """Heads for the vocabulary of a folder, whose values are loaded later."""
        found = self.heads_for(stored.tokenizer)
        found.reused = stored.reused
        return found

    def words_of(self, choice: str | None) -> tuple[WordPart, ...]:
        """The word parts of None, a name, a chain or "@file", in the order of the chain.

        Raises AdapterError for an unknown name.
        """
        chosen = self.resolve(choice)
        chain = [] if chosen is None else chosen.split("+")
        return words_of_chain({name: self[name].words for name in chain}, chain)

    def words_of_rows(self, rows: int, tokenizer: Tokenizer) -> list[Words]:
        """The words of each of so many rows, with the adapters in use; tokenizer: the base's.

        Raises AdapterError for other rows.
        """
        selection = self.selection
        if selection is None or selection.is_base:
            return [NO_WORDS] * rows
        return [
            sum((part.for_decoding(own or tokenizer) for part in parts), start=NO_WORDS)
            for own, parts in zip(selection.tokenizers(rows), selection.words(rows), strict=True)
        ]

    def make_frozen(self, name: str, stored: StoredAdapter) -> Adapter:
        """A frozen adapter that computes with the tensors of a folder themselves; `insert` adds it.

        Raises AdapterError where the tensors are not what the description says.
        """
        chosen = choose_points(list(self.points.values()), stored.kind, modules=stored.modules, layers=stored.layers)
        device, (at_points, own) = self.anchor.device, split_tensors(stored.tensors)
        adapter = Adapter(
            check_name(name),
            stored.kind,
            chosen,
            modules=stored.modules,
            layers=stored.layers,
            strategy=stored.strategy,
            values={key: tensor.to(device) for key, tensor in at_points.items()},
        )
        if stored.vocabulary is not None:
            adapter.own_vocabulary(self.restore_heads(stored.vocabulary), own)
        adapter.card, adapter.words = stored.card, stored.words
        return adapter

    def insert(self, adapter: Adapter) -> None:
        """Add an adapter that exists already. Raises AdapterError where its name is taken."""
        with CHANGES:
            self.check_free(adapter.name)
            self.replace_all({**self.by_name, adapter.name: adapter})

    def replace_all(self, adapters: Mapping[str, Adapter]) -> None:
        """Hold these adapters, by name, instead of those of before; new dictionaries take the old ones' places."""
        self.held._modules = {held_key(name): adapter for name, adapter in adapters.items()}
        self.by_name = dict(adapters)

    def check_free(self, name: str) -> None:
        """Raises AdapterError for a name that is taken."""
        if name in self:
            raise AdapterError(f"Adapter '{name}' exists already. Choose another name, or remove it first.")

    def remove(self, name: str) -> None:
        """Raises AdapterError for an unknown name."""
        with CHANGES:
            self[name]
            self.replace_all({own: adapter for own, adapter in self.by_name.items() if own != name})
        self.file_choice = tuple(kept for kept in self.file_choice if kept != name)

    def rename(self, name: str, new: str) -> None:
        """Give an adapter another name; its place in the order stays. Raises AdapterError for a name that cannot be."""
        with CHANGES:
            adapter = self[name]
            self.check_free(check_name(new))
            adapter.rename(new)
            self.replace_all({own.name: own for own in self.by_name.values()})
        self.file_choice = tuple(new if chosen == name else chosen for chosen in self.file_choice)

    def copy(self, name: str, new: str) -> Adapter:
        """Add a copy of an adapter under another name. Raises AdapterError for a name that cannot be."""
        own = self[name]
        if own.kind == WORDS_ALONE and own.words is not None:
            return self.add_words(new, own.words)
        layers, modules = own.layers, own.modules_text
        tokenizer = None if own.vocabulary is None else own.vocabulary.tokenizer
        made = self.add(
            new, own.kind, modules=modules, layers=layers, strategy=own.strategy, tokenizer=tokenizer, reuse=False
        )
        made.load_tensors(own.tensors())
        made.card, made.nemo, made.words = copy.deepcopy(own.card), copy.deepcopy(own.nemo), own.words
        return made

    def refresh(self) -> None:
        """Forget what was derived from parameters for inference: not every write to them can be noticed."""
        for adapter in self:
            adapter.stacks.clear()
            for point in adapter.points:
                adapter.at(point).derived = None
        stack_adapters.cache_clear()

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        """The parameters of one adapter, for an optimiser. Raises AdapterError for an unknown name."""
        return list(self[name].parameters())

    @property
    def selection(self) -> Selection | None:
        """The choice of the innermost `use` block around the caller, None outside of one."""
        return in_use.get(self, None)

    @contextmanager
    def use(self, choice: Choice, *, observe: Observer | None = None) -> Iterator[Selection]:
        """Let adapters act in every forward inside the block.

        `choice`: None (the base), a name, a chain such as "an4+noise" (applied from left to right), "@file"
        (the adapters that the model's file had enabled), or a list with one of these for each row of the batch.
        `observe` is called at every application. Raises AdapterError for an unknown name.
        """
        if isinstance(choice, str):
            choice = self.resolve(choice)
        elif choice is not None:
            choice = [self.resolve(row) for row in choice]
        if choice is None and observe is None:
            selection = BASE
        else:
            selection = Selection(dict(self.by_name), choice, form=self.form, observe=observe)
        with in_use.choose(self, selection):
            yield selection

    def resolve(self, choice: str | None) -> str | None:
        """The choice with `@file` spelt out."""
        return ("+".join(self.file_choice) or None) if choice == FILE_CHOICE else choice

    def save(self, name: str, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write `adapter.yaml`, `adapter.safetensors` and, for a word part, `words.safetensors` into a folder.

        Raises AdapterError where the folder holds an adapter already (unless `overwrite`) or cannot be written.
        """
        own = self[name]
        if own.vocabulary is not None and own.words is not None:
            check_words(own.words, own.vocabulary.digest(), name)
        return write_folder(own, Path(folder).expanduser(), self.identity(), overwrite=overwrite)

    def load(self, folder: str | Path, *, name: str | None = None) -> Adapter:
        """Add the adapter of a folder, under its own name unless another is given.

        Raises AdapterError for a damaged folder, or one made for another base (both fingerprints are named).
        """
        stored = read_folder(Path(folder).expanduser(), self.identity())
        if stored.kind == WORDS_ALONE:
            adapter = self.make_frozen(name or stored.name, stored)
            self.insert(adapter)
            return adapter
        adapter = self.make(
            name or stored.name,
            stored.kind,
            modules=stored.modules,
            layers=stored.layers,
            strategy=stored.strategy,
        )
        if stored.vocabulary is not None:
            adapter.own_vocabulary(self.restore_heads(stored.vocabulary))
        adapter.load_tensors(stored.tensors)
        adapter.card, adapter.words = stored.card, stored.words
        self.insert(adapter)  # whole: another thread may use it at once
        return adapter

    def __repr__(self) -> str:
        """A table of the adapters, one a line."""
        if not self.by_name:
            return "No adapters."
        rows = [("adapter", "kind", "modules", "layers", "parameters", "use")]
        rows += [
            (
                adapter.name,
                adapter.kind.name,
                adapter.modules_text,
                adapter.layers if isinstance(adapter.layers, str) else str(adapter.layers),
                f"{adapter.parameter_count():,}",
                "@file" if adapter.name in self.file_choice else "",
            )
            for adapter in self
        ]
        return "\n".join(columns(rows, right=(4,), indent=""))

    def identity(self) -> BaseIdentity:
        """The identity of the base. Raises AdapterError where the set belongs to no AsrModel."""
        if self.base_identity is None:
            raise AdapterError("This adapter set belongs to no model that could be identified; use AsrModel.adapters.")
        return self.base_identity
