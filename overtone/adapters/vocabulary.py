"""The vocabulary of an adapter: a tokenizer of its own, and heads of the model over that tokenizer's tokens.

A head shares with the base's everything that does not depend on the tokens. Its own are the projection of a CTC head;
the embedding of a prediction network and the last layer of the joint of a transducer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from overtone.adapters.tokenizer_files import tokenizer_file
from overtone.adapters.words import WordPart
from overtone.decoding.decoder import Head
from overtone.errors import AdapterError
from overtone.tokenizers import Tokenizer

VOCABULARY = "vocabulary."
"""The beginning of the names of its tensors."""
BASE_TOKENS = ("decoder", "joint", "ctc_decoder")
"""Modules whose adapters are made for the tokens of the head that they stand in."""

OwnModules = Mapping[str, Mapping[str, nn.Module]]
"""Modules that depend on the tokens, by name and by part of the model."""


class Vocabulary(nn.Module):
    """A tokenizer, and heads over its tokens."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        heads: Mapping[str, Head],
        nets: Mapping[str, nn.Module],
        own: OwnModules,
        *,
        reused: int = 0,
    ) -> None:
        """heads: by name, as the model's. nets: of the heads, by part. own: what they do not share with the base's.
        reused: tokens that begin with values of the base's.
        """
        super().__init__()
        self.nets = dict(nets)
        """Nets of the heads, which share modules with the base: their parameters are not the adapter's."""
        self.tokenizer = tokenizer
        self.heads = dict(heads)
        self.reused = reused
        self.parts = nn.ModuleDict({part: nn.ModuleDict(modules) for part, modules in own.items()})

    def digest(self) -> str:
        """Digest of the tokenizer."""
        return self.tokenizer.digest()

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter by `vocabulary.part.module.parameter`."""
        return {f"{VOCABULARY}{name}": tensor.detach() for name, tensor in self.parts.named_parameters()}

    def describe(self) -> dict[str, str | int]:
        """The vocabulary in plain values, for descriptions and cards."""
        return {
            "file": tokenizer_file(self.tokenizer)[0],
            "digest": self.digest(),
            "kind": kind_of_tokenizer(self.tokenizer),
            "size": self.tokenizer.size,
            "reused": self.reused,
            "parameters": sum(parameter.numel() for parameter in self.parameters()),
        }


class VocabularyMaker(Protocol):
    """The model's way to make heads for a tokenizer."""

    def __call__(self, tokenizer: Tokenizer, *, reuse: bool) -> Vocabulary:
        """Make heads for a tokenizer; with `reuse` tokens that the base has too begin with its values."""


class VocabularyOwner(Protocol):
    """An adapter, as far as vocabularies matter."""

    name: str
    vocabulary: Vocabulary | None
    words: WordPart | None

    @property
    def points(self) -> list[str]: ...


def split_tensors(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of an adapter at its points, and those of its vocabulary."""
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(VOCABULARY)}
    return {name: tensor for name, tensor in tensors.items() if name not in own}, own


def kind_of_tokenizer(tokenizer: Tokenizer) -> str:
    """The class of a tokenizer in a word, such as `sentencepiece`."""
    return type(tokenizer).__name__.removesuffix("Tokenizer").lower()


def vocabulary_of_chain(adapters: Mapping[str, VocabularyOwner], chain: Sequence[str]) -> Vocabulary | None:
    """The one vocabulary that an adapter of the chain owns; None where they all have the base's.

    Raises AdapterError where two own one, and where another adapter of the chain was made for the base's tokens.
    """
    owners = [name for name in chain if adapters[name].vocabulary is not None]
    if not owners:
        return None
    owner, found = owners[0], adapters[owners[0]].vocabulary
    assert found is not None
    if len(owners) > 1:
        raise AdapterError(
            f"'{'+'.join(chain)}': adapters {' and '.join(owners)} have a vocabulary of their own each, and a row is "
            "written in one. Use one of them at a time."
        )
    for name in chain:
        problem = needs_base_tokens(adapters[name], found.digest()) if name != owner else None
        if problem is not None:
            raise AdapterError(
                f"'{'+'.join(chain)}': adapter '{owner}' has a vocabulary of its own, and '{name}' {problem}. Use one "
                f"without the other, or train '{name}' anew on top of '{owner}'."
            )
    return found


def needs_base_tokens(adapter: VocabularyOwner, digest: str) -> str | None:
    """Why an adapter does not go with another one's vocabulary, as the end of a sentence; None where it does.

    digest: of that vocabulary.
    """
    modules = sorted({point.partition(".")[0] for point in adapter.points} & set(BASE_TOKENS))
    if modules:
        return f"acts in the {' and the '.join(modules)} of the base, which writes the base's tokens"
    if adapter.words is not None and adapter.words.tokenizer_digest != digest:
        return "has a word part over the base's tokens"
    return None


def check_words(words: WordPart, digest: str, name: str) -> None:
    """Raises AdapterError for words that an adapter with a vocabulary of that digest could not write."""
    if words.tokenizer_digest != digest:
        raise AdapterError(
            f"Adapter '{name}' has a vocabulary of its own ({digest}), and its word part is over other tokens "
            f"({words.tokenizer_digest}). Make words for it with `overtone words … --adapter`."
        )


def begin_with_base(
    own: nn.Module, base: nn.Module, tokens: Sequence[tuple[int, int]], *, classes: int, base_classes: int
) -> None:
    """Let rows of a module's parameters begin with those of the base's module, the blank's always among them.

    Rows are tokens, then the blank, then what follows (the durations of a TDT model), which begins with the base's too.
    tokens: new and old numbers of the same tokens. classes, base_classes: numbers of tokens.
    """
    with torch.no_grad():
        for new, old in zip(own.parameters(), base.parameters(), strict=True):
            rest = range(new.size(0) - classes)  # the blank, and the durations
            pairs = [*tokens, *((classes + number, base_classes + number) for number in rest)]
            rows, sources = (list(numbers) for numbers in zip(*pairs, strict=True))
            new[rows] = old[sources].to(new)


def match_tokens(tokenizer: Tokenizer, base: Tokenizer) -> list[tuple[int, int]]:
    """Numbers of the tokens that both write alike: exactly so, else but for capital letters."""
    exact: dict[str, int] = {}
    folded: dict[str, int] = {}
    for number, text in enumerate(base.spelled):
        exact.setdefault(text, number)
        folded.setdefault(text.casefold(), number)
    found = []
    for number, text in enumerate(tokenizer.spelled):
        old = exact.get(text, folded.get(text.casefold()))
        if old is not None and text:
            found.append((number, old))
    return found
