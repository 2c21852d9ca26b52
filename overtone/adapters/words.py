"""The word part of an adapter: an n-gram over the model's tokens and boosted phrases, with the weights they act with.

The n-gram may be mixed with the general prior of the embedded base; the part's file names that and does not hold it.

An adapter has an acoustic part (parameters at points of the net), a word part, or both. Where several adapters are
chained, their word parts act together: the weighted logarithms and the bonuses add up, the phrases are all boosted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from overtone.adapters.kinds.base import Tensors
from overtone.adapters.points import Point
from overtone.adapters.prior import Prior, find_prior
from overtone.budgets import check_tensor_header
from overtone.decoding.fusion import Words
from overtone.decoding.mixture import Mixture
from overtone.decoding.ngram import Ngram
from overtone.decoding.phrase_boost import LARGEST_BOOST, Boost, BoostTree
from overtone.errors import AdapterError, DataError
from overtone.nets.taps import TapContext
from overtone.tokenizers import Tokenizer

NGRAM = "ngram."
"""The beginning of the names of an n-gram's tensors."""
LARGEST_WEIGHT = 10.0
LARGEST_BONUS = 20.0
WIDEST_BEAM = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class WordPart:
    """The words that an adapter expects; it adds to the scores of tokens, and never takes part in a forward."""

    tokenizer_digest: str
    """The tokenizer whose ids the n-gram's are."""
    ngram: Ngram | None = None
    weight: float = 0.0
    """Weight of the n-gram's logarithms beside those of the model."""
    token_bonus: float = 0.0
    """Natural logarithm that every token gains, against the n-gram's leaning to short texts."""
    prior: Prior | None = None
    """The general prior that the n-gram is mixed with."""
    prior_share: float = 0.0
    """Share of the prior in the mixture, 0 without one."""
    boosts: tuple[Boost, ...] = ()
    """Phrases that are likelier, or less likely, than the model thinks."""
    beam: int = 0
    """Prefixes of the search where nothing else is asked for; 0 leaves that to the decoder."""
    trees: list[BoostTree] = field(default_factory=list, init=False, repr=False)
    """The phrases as decoders take them, once they have been asked for."""

    def __post_init__(self) -> None:
        """Raises AdapterError for weights and boosts that are out of range, and for a part without content."""
        if not 0.0 <= self.weight <= LARGEST_WEIGHT or not abs(self.token_bonus) <= LARGEST_BONUS:
            raise AdapterError(
                f"The word part's weight {self.weight} must lie between 0 and {LARGEST_WEIGHT:g}, its token bonus "
                f"{self.token_bonus} between -{LARGEST_BONUS:g} and {LARGEST_BONUS:g}."
            )
        if any(not abs(boost.boost) <= LARGEST_BOOST for boost in self.boosts):
            raise AdapterError(f"A phrase's boost must lie between -{LARGEST_BOOST:g} and {LARGEST_BOOST:g}.")
        if not 0.0 <= self.prior_share < 1.0 or (self.prior_share and (self.prior is None or self.ngram is None)):
            raise AdapterError(
                f"The general prior's share is {self.prior_share}; from 0 to below 1 is allowed, and more than 0 needs "
                "both a prior and an n-gram."
            )
        if not 0 <= self.beam <= WIDEST_BEAM:
            raise AdapterError(f"The word part's beam of {self.beam} must lie between 0 and {WIDEST_BEAM}.")
        if self.ngram is None and not any(boost.phrases for boost in self.boosts):
            raise AdapterError("A word part needs an n-gram or a phrase; it has neither.")

    @property
    def phrases(self) -> int:
        """The number of boosted phrases."""
        return sum(len(boost.phrases) for boost in self.boosts)

    def for_decoding(self, tokenizer: Tokenizer) -> Words:
        """The part as decoders take it; the tokenizer is its own."""
        if self.phrases and not self.trees:
            self.trees.append(BoostTree(self.boosts, tokenizer))
        words = Words(boosts=tuple(self.trees[:1]), token_bonus=self.token_bonus, width=self.beam)
        if self.ngram is None:
            return words
        if self.prior is None or not self.prior_share:
            return words + Words(ngrams=((self.ngram, self.weight),))
        mixture = Mixture(domain=self.ngram, general=self.prior.ngram, share=self.prior_share)
        return words + Words(mixtures=((mixture, self.weight),))

    def weighted(self, weight: float, token_bonus: float = 0.0, *, prior_share: float | None = None) -> Self:
        """The same with other weights; the share is kept unless given. Raises AdapterError for what is out of range."""
        share = self.prior_share if prior_share is None else prior_share
        return replace(self, weight=weight, token_bonus=token_bonus, prior_share=share)

    def weighted_like(self, other: WordPart) -> Self:
        """The same with another part's weight, token bonus and share of the general prior."""
        return self.weighted(other.weight, other.token_bonus, prior_share=other.prior_share)

    def weakened(self, share: float) -> Self:
        """The same with a share of its weight, token bonus and boosts, 0..1."""
        boosts = tuple(replace(boost, boost=boost.boost * share) for boost in self.boosts)
        return replace(self, weight=self.weight * share, token_bonus=self.token_bonus * share, boosts=boosts)

    def to_bytes(self) -> bytes:
        """The part as a safetensors file, the same for equal parts."""
        tensors: dict[str, Tensor] = {"settings": torch.tensor([self.weight, self.token_bonus], dtype=torch.float64)}
        if self.ngram is not None:
            tensors |= {f"{NGRAM}{name}": tensor for name, tensor in self.ngram.to_tensors().items()}
        phrases = [(phrase, boost.boost) for boost in self.boosts for phrase in boost.phrases]
        text = json.dumps([phrase for phrase, _ in phrases], ensure_ascii=False).encode()
        tensors["phrases"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        tensors["boosts"] = torch.tensor([boost for _, boost in phrases], dtype=torch.float64)
        if self.prior is not None and self.prior_share:
            tensors["prior_share"] = torch.tensor([self.prior_share], dtype=torch.float64)
            tensors["prior_digest"] = torch.frombuffer(bytearray(self.prior.digest.encode()), dtype=torch.uint8)
        if self.beam:
            tensors["beam"] = torch.tensor([self.beam], dtype=torch.int32)
        return save(tensors, metadata={"tokenizer_digest": self.tokenizer_digest})

    @classmethod
    def from_bytes(cls, content: bytes, *, tokenizer_digest: str, place: str) -> Self:
        """The part of a file. Raises AdapterError for a damaged file, naming its place, or another tokenizer's."""
        try:
            check_tensor_header(content)
            tensors = dict(load(content))
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            own_digest = header["__metadata__"]["tokenizer_digest"]
            settings, text, boosts = (tensors.pop(name) for name in ("settings", "phrases", "boosts"))
            weight, token_bonus = settings.tolist()
            phrases = json.loads(text.numpy().tobytes().decode())
            if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
                raise ValueError("its phrases are no list of texts")
            boosted = list(zip(phrases, boosts.tolist(), strict=True))
            beam = read_beam(tensors.pop("beam")) if "beam" in tensors else 0
            share = float(tensors.pop("prior_share")) if "prior_share" in tensors else 0.0
            wanted = tensors.pop("prior_digest").numpy().tobytes().decode() if share else None
            named = {name.removeprefix(NGRAM): tensor for name, tensor in tensors.items()}
            ngram = Ngram.from_tensors(named) if tensors else None
        except KeyError as error:
            raise AdapterError(f"{place} is damaged: {error} is missing or of a type that no word part has.") from error
        except (SafetensorError, ValueError, TypeError, RuntimeError, RecursionError, DataError) as error:
            raise AdapterError(f"{place} is damaged: {error}") from error
        if own_digest != tokenizer_digest:
            raise AdapterError(
                f"{place} was made with another tokenizer: it needs {own_digest}, this model has {tokenizer_digest}."
            )
        prior = find_prior(tokenizer_digest) if wanted is not None else None
        if wanted is not None and (prior is None or prior.digest != wanted):
            own = "has none for this tokenizer" if prior is None else f"has {prior.digest}"
            raise AdapterError(
                f"{place} is mixed with the general prior {wanted}; this version of Overtone {own}. Make the word part "
                "again from its text, or use the version that made it."
            )
        try:
            return cls(
                tokenizer_digest=tokenizer_digest,
                ngram=ngram,
                weight=weight,
                token_bonus=token_bonus,
                prior=prior if share else None,
                prior_share=share,
                boosts=group_boosts(boosted),
                beam=beam,
            )
        except AdapterError as error:
            raise AdapterError(f"{place} is damaged: {error}") from error

    def digest(self) -> str:
        """SHA-256 of the whole part, its weights included."""
        return words_digest(self.to_bytes())

    def describe(self) -> dict[str, str | int | float]:
        """The part in plain values, for the adapter's description."""
        return {
            "digest": self.digest(),
            "order": 0 if self.ngram is None else self.ngram.order,
            "ngrams": 0 if self.ngram is None else len(self.ngram),
            "weight": self.weight,
            "token_bonus": self.token_bonus,
            **({"prior_share": self.prior_share} if self.prior_share else {}),
            **({"beam": self.beam} if self.beam else {}),
            "phrases": self.phrases,
        }


def read_beam(tensor: Tensor) -> int:
    """The width of a search from the one number of a tensor [N]. Raises ValueError for anything else."""
    if tensor.dtype is not torch.int32 or tensor.shape != (1,):
        raise ValueError(f"its beam is {list(tensor.shape)} {tensor.dtype}, not one int32")
    return int(tensor)


def words_text(description: Mapping[str, Any]) -> str:
    """`order 6, 7,223 n-grams, weight 0.5, token bonus 1, general prior 60%, 3 phrases, ` of a part's description."""
    facts = {
        "ngrams": "order {order}, {ngrams:,} n-grams, weight {weight:g}, token bonus {token_bonus:g}, ",
        "prior_share": "general prior {prior_share:.0%}, ",
        "phrases": "{phrases} phrases, ",
        "beam": "beam {beam}, ",
    }
    return "".join(form.format_map(description) for key, form in facts.items() if description.get(key))


def words_digest(content: bytes) -> str:
    """SHA-256 of a word part's file."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def group_boosts(phrases: Sequence[tuple[str, float]]) -> tuple[Boost, ...]:
    """Phrases with a boost each, those of one boost together, in their order."""
    found: dict[float, list[str]] = {}
    for phrase, boost in phrases:
        found.setdefault(boost, []).append(phrase)
    return tuple(Boost(phrases=tuple(own), boost=boost) for boost, own in found.items())


@dataclass(frozen=True, kw_only=True)
class WordsAlone:
    """The kind of an adapter that has no acoustic part: it acts nowhere in the net."""

    name: ClassVar[str] = "words"

    def acts_at(self, point: Point) -> bool:
        """Nowhere."""
        return False

    def parts(self, point: Point) -> dict[str, nn.Module | nn.Parameter]:
        """No parameters."""
        return {}

    def delta(self, tensors: Tensors, x: Tensor, y: Tensor, context: TapContext, training: bool) -> Tensor:
        """No change: zeros like y [B, T, out_width]; x [B, T, in_width]."""
        return torch.zeros_like(y)

    def prepare(self, tensors: Tensors, dtype: torch.dtype) -> Tensors:
        """The parameters as they are."""
        return tensors


WORDS_ALONE = WordsAlone()


def words_of_chain(parts: Mapping[str, WordPart | None], chain: Sequence[str]) -> tuple[WordPart, ...]:
    """The word parts of a chain of adapters, in its order; parts: of each adapter, by name."""
    return tuple(part for part in (parts[name] for name in chain) if part is not None)
