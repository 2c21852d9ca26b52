"""Mixtures of two n-grams beside sums of their probabilities, in batches and searches, and shares that texts show."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from overtone.decoding.ctc_beam import BeamDecoder
from overtone.decoding.ctc_search import CtcSearch
from overtone.decoding.decoder import BeamSettings
from overtone.decoding.fusion import NO_WORDS, Words
from overtone.decoding.mixture import Mixture, MixtureBatch, estimate_share
from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_counts import build_ngram
from overtone.errors import DataError
from overtone.tokenizers import CharTokenizer

LETTERS = CharTokenizer([" ", "a", "b", "c", "t"])
V = LETTERS.size
CPU = torch.device("cpu")


def ngram_of(*texts: str, order: int = 3) -> Ngram:
    return build_ngram([LETTERS.encode(text) for text in texts], vocabulary_size=V, order=order)


DOMAIN, OTHER, GENERAL = (
    ngram_of("a cat", "a bat"),
    ngram_of("tact", order=2),
    ngram_of("cab cab", "a tact cat", order=4),
)


def probabilities(ngram: Ngram, tokens: list[int]) -> Tensor:
    """The probabilities [V+1] of each token, and of the end, after these tokens."""
    state = torch.tensor([ngram.start])
    for token in tokens:
        state = ngram.advance(state, torch.tensor([token]))
    return torch.cat([ngram.score(state)[0], ngram.end(state)]).exp()


def test_each_row_has_the_shares_of_its_two_ngrams() -> None:
    rows = [Mixture(domain=DOMAIN, general=GENERAL, share=0.3), None, Mixture(domain=OTHER, general=GENERAL, share=0.8)]
    batch = MixtureBatch(rows, vocabulary_size=V, device=CPU)
    for text in ("", "a", "a ca", "tact b"):
        tokens = LETTERS.encode(text) if text else []
        for row, own in enumerate(rows):
            number, state = torch.tensor([row]), batch.start[row : row + 1]
            for token in tokens:
                _, state = batch.follow(number, state, torch.tensor([token]))
            every = [float(batch.follow(number, state, torch.tensor([token]))[0]) for token in range(V)]
            found = [*every, float(batch.end(number, state))]
            if own is None:
                assert found == [0.0] * (V + 1)
                continue
            expected = (1 - own.share) * probabilities(own.domain, tokens) + own.share * probabilities(GENERAL, tokens)
            assert [math.exp(each) for each in found] == pytest.approx(expected.tolist(), rel=1e-4)
            assert sum(math.exp(each) for each in found) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("width", [1, 8])
def test_rows_with_mixtures_are_searched_as_if_alone(width: int) -> None:
    mixed = Mixture(domain=DOMAIN, general=GENERAL, share=0.4)
    rows = [
        Words(mixtures=((mixed, 0.8),), token_bonus=0.5),
        NO_WORDS,
        Words(mixtures=((Mixture(domain=OTHER, general=GENERAL, share=0.6), 1.0),), ngrams=((DOMAIN, 0.3),)),
    ]
    generator = torch.Generator().manual_seed(width)
    log_probs = (3.0 * torch.randn(3, 30, V + 1, generator=generator)).log_softmax(-1)
    options = BeamSettings(width=width)
    search = CtcSearch(rows, V, options, CPU)
    search.push(log_probs, torch.full((3,), 30))
    for row, found in enumerate(search.best(4)):
        alone = BeamDecoder(LETTERS, seconds_per_frame=0.04, settings=options, words=rows[row])
        alone.push(log_probs[row].numpy())
        expected = alone.search.best(4)[0]
        assert [path.ids.tolist() for path, _ in found] == [path.ids.tolist() for path, _ in expected]
        assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-4)


def test_a_mixture_changes_what_is_found_as_its_probabilities_say() -> None:
    """Of all texts of two frames the one is found whose score and mixed probability are best."""
    mixture = Mixture(domain=DOMAIN, general=GENERAL, share=0.25)
    log_probs = torch.randn(2, V + 1, generator=torch.Generator().manual_seed(3)).log_softmax(-1)
    ranks: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(V + 1), repeat=2):
        ids = tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != V)
        both = [
            0.75 * probabilities(DOMAIN, list(ids[:at])) + 0.25 * probabilities(GENERAL, list(ids[:at]))
            for at in range(len(ids) + 1)
        ]
        words = sum(math.log(float(each[token])) for each, token in zip(both, [*ids, V], strict=True))
        score = float(log_probs[range(2), path].sum()) + 0.9 * words + 0.4 * len(ids)
        ranks[ids] = max(score, ranks.get(ids, -math.inf))
    settings = BeamSettings(width=100, token_floor=-1e9, score_floor=1e9)
    decoder = BeamDecoder(
        LETTERS, seconds_per_frame=0.04, settings=settings, words=Words(mixtures=((mixture, 0.9),), token_bonus=0.4)
    )
    decoder.push(log_probs.numpy())
    assert [each.ids for each in decoder.hypotheses(5)] == sorted(ranks, key=lambda ids: -ranks[ids])[:5]


def test_a_text_that_repeats_itself_wants_no_general_ngram() -> None:
    repeated = [LETTERS.encode(text) for text in ("cat", "tact") * 30]
    assert estimate_share(repeated, GENERAL, order=3) == 0.0


def test_a_text_of_the_general_kind_wants_much_of_it() -> None:
    general = build_ngram(
        [LETTERS.encode("a cab at a cat"), LETTERS.encode("tact at a cab")], vocabulary_size=V, order=4
    )
    few = [LETTERS.encode(text) for text in ("a cab", "tact at", "a cat", "at a cab")]
    assert estimate_share(few, general, order=4) > 0.6
    assert estimate_share(few[:1], general, order=4) == 0.95


def test_the_share_is_where_the_text_is_likeliest() -> None:
    texts = ("a cat", "a bat", "cab", "tact cat", "a tab", "bat cab", "cab at a tab", "a tact bat", "tab", "at bat")
    sentences = [LETTERS.encode(text) for text in texts]
    found = estimate_share(sentences, GENERAL, order=3)
    assert 0.0 < found < 0.95

    def likelihood(share: float) -> float:
        total = 0.0
        for fold in range(4):
            rest = [sentence for place, sentence in enumerate(sentences) if place % 4 != fold]
            domain = build_ngram(rest, vocabulary_size=V, order=3)
            for sentence in sentences[fold::4]:
                for at, token in enumerate([*sentence, V]):
                    own, other = (probabilities(each, sentence[:at])[token] for each in (domain, GENERAL))
                    total += math.log(float((1 - share) * own + share * other))
        return total

    assert likelihood(found) >= max(likelihood(found - 0.05), likelihood(found + 0.05))


def test_shares_out_of_range_and_other_vocabularies_are_refused() -> None:
    for share in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(DataError, match="above 0 and below 1"):
            Mixture(domain=DOMAIN, general=GENERAL, share=share)
    with pytest.raises(DataError, match="5 tokens, the general one 2"):
        Mixture(domain=DOMAIN, general=build_ngram([[1]], vocabulary_size=2), share=0.5)
