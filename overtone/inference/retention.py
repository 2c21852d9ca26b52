"""The strength of an adapter: as much as general speech can bear, its acoustic part scaled, its words weighted.

The scale is folded into the adapter's parameters, so that a weaker adapter is an adapter like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

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
WORSE_IN_A_ROW = 2
"""Scales after which the search ends, if each is worse on the domain than the best."""

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


def choose_strength(
    model: AsrModel,
    adapter: Adapter,
    part: WordPart | None,
    *,
    general: Hear,
    domain: Hear | None,
    kappa: float,
) -> Retention:
    """The strength with the fewest errors on the domain that costs general speech no more than kappa points.

    The adapter has its parameters and no words; afterwards it has the parameters of what was chosen. Without recordings
    of the domain the strongest is taken. Where nothing else will do, it is no change at all.
    """
    search = _Search(model, adapter, part, general, domain)
    base = search.count_base()
    allowed = base.errors + kappa / 100 * base.reference_length
    found: list[Strength] = []
    whole = search.measure(1.0, 1.0)
    if whole.general.errors <= allowed:
        found.append(whole)
    else:
        found += search.within(allowed)
    chosen = min(found, key=lambda own: own.domain.errors if own.domain is not None else 0, default=None)
    search.scale(1.0 if chosen is None else chosen.scale)
    return Retention(kappa=kappa, base=base, whole=whole, chosen=chosen)


class _Search:
    """The errors of an adapter at one strength after the other; emissions of one scale are computed once."""

    def __init__(
        self, model: AsrModel, adapter: Adapter, part: WordPart | None, general: Hear, domain: Hear | None
    ) -> None:
        self.model, self.adapter, self.part = model, adapter, part
        self.sets: Mapping[str, Hear | None] = {"general": general, "domain": domain}
        self.whole: dict[str, Tensor] = {name: own.clone() for name, own in adapter.tensors().items()}
        self.scales = SCALES if self.whole and adapter.scaled_tensors(1.0) is not None else (1.0,)
        self.heard: dict[str, list[Heard]] = {}
        self.at = 1.0

    @property
    def scope(self) -> Scope:
        return lambda: self.model.adapters.use(self.adapter.name)

    def scale(self, scale: float) -> None:
        """Have the adapter act with a share of its change."""
        if scale == self.at:
            return
        self.adapter.load_tensors(self.whole)
        scaled = self.adapter.scaled_tensors(scale)
        assert scaled is not None
        self.adapter.load_tensors(scaled if scale != 1.0 else self.whole)
        self.at, self.heard = scale, {}

    def count_base(self) -> ErrorCounts:
        """Errors of the base on general speech."""
        hear = self.sets["general"]
        assert hear is not None
        return count_errors(self.model, list(hear(None)), None, scope=lambda: self.model.adapters.use(None))

    def count(self, name: str, part: WordPart | None) -> ErrorCounts | None:
        """Errors on one of the sets with a word part; None where there is no such set."""
        hear = self.sets[name]
        if hear is None:
            return None
        if name not in self.heard:
            self.heard[name] = list(hear(self.adapter.name))
        return count_errors(self.model, self.heard[name], part, scope=self.scope)

    def measure(self, scale: float, share: float) -> Strength:
        """Errors on both sets at one strength."""
        self.scale(scale)
        part = weaken(self.part, share)
        general = self.count("general", part)
        assert general is not None
        return Strength(scale=scale, share=share, part=part, general=general, domain=self.count("domain", part))

    def within(self, allowed: float) -> Iterator[Strength]:
        """The strongest words of each scale, and none, as far as general speech has no more errors than allowed."""
        best, worse = float("inf"), 0
        for scale in (*self.scales, *([0.0] if len(self.scales) > 1 else [])):
            self.scale(scale)
            own: list[Strength] = []
            for share in (*(SHARES if self.part is not None else ()), 0.0):  # words may help general speech, too
                general = self.count("general", weaken(self.part, share))
                assert general is not None
                if general.errors <= allowed and (share == 0.0 or not own):
                    own.append(self.measure(scale, share))
            yield from own
            if not own:
                continue
            errors = min((each.domain.errors for each in own if each.domain is not None), default=0)
            worse = worse + 1 if errors > best else 0
            best = min(best, errors)
            if worse == WORSE_IN_A_ROW:
                return


def weaken(part: WordPart | None, share: float) -> WordPart | None:
    """A word part with a share of its weight, bonus and boosts; none at all for a share of 0."""
    if part is None or share == 0.0:
        return None
    if share == 1.0:
        return part
    return part.weakened(share)
