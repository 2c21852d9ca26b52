"""The strength of an adapter: as much as general speech can bear, its acoustic part scaled, its words weighted.

An earlier step of its training may take its place, where that is gentler. The scale is folded into the adapter's
parameters, so that a weaker adapter is an adapter like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from overtone.adapters.adapter import Adapter
from overtone.adapters.words import WordPart
from overtone.inference.word_weights import Heard, Scope, count_errors
from overtone.models.asr_model import AsrModel
from overtone.wer import ErrorCounts

SCALES = (1.0, 0.85, 0.7, 0.55, 0.4, 0.25)
"""Shares of the acoustic part that are tried, the strongest first."""
SHARES = (1.0, 0.7, 0.5, 0.35, 0.2)
"""Shares of the words' weights that are tried, besides none."""
MIXES = (0.5, 0.9)
"""Shares of the general prior that are mixed into words which are too much for general speech."""
WORSE_IN_A_ROW = 2
"""Scales after which the search ends, if each is worse on the domain than the best."""
EARLY_SCALES = (1.0, 0.7)
"""Shares of an earlier step's acoustic part that are tried: the second only where the first is too strong."""

Hear = Callable[[str | None], Iterable[Heard]]
"""Emissions of a set of recordings with an adapter, or of the base."""


@dataclass(frozen=True, kw_only=True)
class Strength:
    """One strength of an adapter, and the errors that it makes."""

    scale: float
    """Share of the acoustic part."""
    share: float
    """Share of the words' weight, bonus and boosts."""
    part: WordPart | None
    general: ErrorCounts
    domain: ErrorCounts | None
    """None where there are no recordings of the domain to choose by."""
    step: int | None = None
    """The earlier step of the training whose parameters these are; None: the adapter as it was given."""
    mix: float | None = None
    """Share of the general prior in words that it was mixed into, with its own weights; None: words as they were."""


@dataclass(frozen=True, kw_only=True)
class EarlierStep:
    """An adapter as it was at an earlier step of its training."""

    step: int
    tensors: dict[str, Tensor]
    """Parameters by name, with the shapes that the adapter's have."""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The strength that was chosen, beside the whole adapter and the base."""

    kappa: float
    """Points of word error rate that general speech may lose."""
    base: ErrorCounts
    """Errors of the base on general speech."""
    whole: Strength
    chosen: Strength | None
    """None where no strength that this kind of adapter can have keeps to it."""
    domain_base: ErrorCounts | None = None
    """Errors of the base on the domain."""
    tried_steps: tuple[int, ...] = ()
    """Earlier steps that were heard, the latest first."""


def choose_strength(
    model: AsrModel,
    adapter: Adapter,
    part: WordPart | None,
    *,
    general: Hear,
    domain: Hear | None,
    kappa: float,
    earlier: Sequence[EarlierStep] = (),
    mixes: Sequence[float] = (),
) -> Retention:
    """The strength with the fewest errors on the domain that costs general speech no more than kappa points.

    The adapter has its parameters and no words; afterwards it has the parameters of what was chosen. Without
    recordings of the domain the strongest is taken (of words at one scale, those with the fewest errors on general
    speech), and no earlier step is tried. Where nothing else will do, it is no change at all. Each earlier step is
    heard at `EARLY_SCALES` at most.

    mixes: shares of the general prior that the words are mixed with where they are too much for general speech; only
    words that come with a prior are.
    """
    search = Search(model, adapter, part, general, domain, earlier, mixes)
    base, domain_base = search.count_base("general"), search.count_base("domain")
    assert base is not None, "there always is general speech"
    allowed = base.errors + kappa / 100 * base.reference_length
    found: list[Strength] = []
    whole = search.with_domain(search.measure(1.0, 1.0))
    if whole.general.errors <= allowed:
        found.append(whole)
    else:
        found += search.within(allowed)
        if domain is not None:
            found += search.within_earlier(allowed, min(map(domain_errors, found), default=None))
    chosen = min(found, key=domain_errors, default=None)
    search.act(1.0 if chosen is None else chosen.scale, None if chosen is None else chosen.step)
    tried = tuple(search.tried)
    return Retention(kappa=kappa, base=base, whole=whole, chosen=chosen, domain_base=domain_base, tried_steps=tried)


def domain_errors(strength: Strength) -> int:
    """Errors on the domain; 0 where there is nothing to count them on."""
    return 0 if strength.domain is None else strength.domain.errors


class Search:
    """The errors of an adapter at one strength after the other; emissions of one scale are computed once."""

    def __init__(
        self,
        model: AsrModel,
        adapter: Adapter,
        part: WordPart | None,
        general: Hear,
        domain: Hear | None,
        earlier: Sequence[EarlierStep],
        mixes: Sequence[float] = (),
    ) -> None:
        self.model, self.adapter, self.part = model, adapter, part
        self.mixes = mixes if part is not None and part.ngram is not None and part.prior is not None else ()
        self.sets: Mapping[str, Hear | None] = {"general": general, "domain": domain}
        self.whole: dict[str, Tensor] = {name: own.clone() for name, own in adapter.tensors().items()}
        self.has_scale = bool(self.whole) and adapter.scaled_tensors(1.0) is not None
        self.scales = SCALES if self.has_scale else (1.0,)
        self.earlier = {own.step: own.tensors for own in sorted(earlier, key=lambda own: -own.step)}
        self.tried: list[int] = []
        self.measured: dict[tuple[float, float, int | None, float | None], Strength] = {}
        self.heard: dict[str, list[Heard]] = {}
        self.at: tuple[float, int | None] = (1.0, None)

    @property
    def scope(self) -> Scope:
        return lambda: self.model.adapters.use(self.adapter.name)

    def act(self, scale: float, step: int | None = None) -> None:
        """Have the adapter act with a share of its change, as it was at an earlier step or as it was given."""
        if (scale, step) == self.at:
            return
        self.adapter.load_tensors(self.whole if step is None else self.earlier[step])
        if scale != 1.0:
            scaled = self.adapter.scaled_tensors(scale)
            assert scaled is not None
            self.adapter.load_tensors(scaled)
        self.at, self.heard = (scale, step), {}

    def count_base(self, name: str) -> ErrorCounts | None:
        """Errors of the base, without words, on one of the sets; None where there is no such set."""
        hear = self.sets[name]
        if hear is None:
            return None
        return count_errors(self.model, list(hear(None)), None, scope=lambda: self.model.adapters.use(None))

    def count(self, name: str, part: WordPart | None) -> ErrorCounts | None:
        """Errors on one of the sets with a word part; None where there is no such set."""
        hear = self.sets[name]
        if hear is None:
            return None
        if name not in self.heard:
            self.heard[name] = list(hear(self.adapter.name))
        return count_errors(self.model, self.heard[name], part, scope=self.scope)

    def words(self, share: float, mix: float | None) -> WordPart | None:
        """The words with a share of their weight, or mixed with the general prior, whose weights they have then."""
        if mix is None:
            return weaken(self.part, share)
        assert self.part is not None
        assert self.part.prior is not None
        return self.part.weighted(self.part.prior.weight, self.part.prior.token_bonus, prior_share=mix)

    def measure(self, scale: float, share: float, step: int | None = None, mix: float | None = None) -> Strength:
        """Errors on general speech at one strength, which are counted once."""
        key = (scale, share, step, mix)
        if key not in self.measured:
            self.act(scale, step)
            part = self.words(share, mix)
            general = self.count("general", part)
            assert general is not None
            self.measured[key] = Strength(
                scale=scale, share=share, part=part, general=general, domain=None, step=step, mix=mix
            )
        return self.measured[key]

    def with_domain(self, strength: Strength) -> Strength:
        """The strength with its errors on the domain, too."""
        self.act(strength.scale, strength.step)
        return replace(strength, domain=self.count("domain", strength.part))

    def within(self, allowed: float) -> Iterator[Strength]:
        """The strengths of each scale with which general speech has no more errors than allowed."""
        best, worse = float("inf"), 0
        for scale in (*self.scales, *([0.0] if len(self.scales) > 1 else [])):
            own = self.within_words(allowed, scale)
            yield from own
            if not own:
                continue
            errors = min(map(domain_errors, own))
            worse = worse + 1 if errors > best else 0
            best = min(best, errors)
            if worse == WORSE_IN_A_ROW:
                return

    def within_earlier(self, allowed: float, best: int | None) -> Iterator[Strength]:
        """The same of earlier steps, the latest first. best: the fewest errors on the domain so far.

        Once one that is gentle enough is worse than that, the search ends: those before it have learnt less.
        """
        for step in self.earlier:
            self.tried.append(step)
            for scale in EARLY_SCALES if self.has_scale else (1.0,):
                own = self.within_words(allowed, scale, step)
                yield from own
                if not own:
                    continue
                errors = min(map(domain_errors, own))
                if best is not None and errors > best and scale == 1.0:
                    return
                best = errors if best is None else min(best, errors)
                break

    def within_words(self, allowed: float, scale: float, step: int | None = None) -> list[Strength]:
        """The strongest words of a scale, and none, as far as general speech has no more errors than allowed.

        Where the whole words are too much, they are mixed with the general prior, too. Among the words, those with the
        fewest errors on general speech come first; none come last.
        """
        fits: list[Strength] = []
        for share in SHARES if self.part is not None else ():
            if (found := self.measure(scale, share, step)).general.errors <= allowed:
                fits.append(found)
                break
        if not any(each.share == 1.0 for each in fits):
            mixed = [self.measure(scale, 1.0, step, mix) for mix in self.mixes]
            fits = [*fits, *(each for each in mixed if each.general.errors <= allowed)]
        fits.sort(key=lambda each: each.general.errors)
        if (without := self.measure(scale, 0.0, step)).general.errors <= allowed:  # words may help general speech, too
            fits.append(without)
        return [self.with_domain(each) for each in fits]


def weaken(part: WordPart | None, share: float) -> WordPart | None:
    """A word part with a share of its weight, bonus and boosts; none at all for a share of 0."""
    if part is None or share == 0.0:
        return None
    if share == 1.0:
        return part
    return part.weakened(share)
