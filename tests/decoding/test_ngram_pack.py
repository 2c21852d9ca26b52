"""Packs of n-grams: every batch beside each n-gram alone, while the pack grows, begins anew and is let go."""

from __future__ import annotations

import gc
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from overtone.decoding import ngram_pack
from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_counts import build_ngram
from overtone.decoding.ngram_pack import PACKS, NgramBatch, find_pack

V = 7
CPU = torch.device("cpu")


def make(seed: int, order: int = 3) -> Ngram:
    generator = random.Random(seed)
    return build_ngram([generator.choices(range(V), k=9) for _ in range(4)], vocabulary_size=V, order=order)


def read(batch: NgramBatch, row: int, tokens: list[int]) -> list[float]:
    """The scores of a row's tokens one after the other, and of the end."""
    number, state, found = torch.tensor([row]), batch.start[row : row + 1], []
    for token in tokens:
        score, state = batch.follow(number, state, torch.tensor([token]))
        found.append(float(score))
    return [*found, float(batch.end(number, state))]


def alone(ngram: Ngram | None, tokens: list[int]) -> list[float]:
    return [0.0] * (len(tokens) + 1) if ngram is None else read(NgramBatch([ngram], vocabulary_size=V), 0, tokens)


@pytest.fixture(autouse=True, params=["copied", "kept"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of having several n-grams side by side."""
    if request.param == "kept":
        monkeypatch.setattr(ngram_pack, "COPIED", 0)
    return str(request.param)


@pytest.fixture
def ngrams() -> list[Ngram]:
    return [make(seed, order=1 + seed % 4) for seed in range(12)]


def test_batches_of_any_rows_score_as_each_alone(ngrams: list[Ngram]) -> None:
    generator = random.Random(1)
    earlier = []
    for _ in range(30):
        rows = generator.choices([None, *ngrams], k=5)
        batch, tokens = NgramBatch(rows, vocabulary_size=V), generator.choices(range(V), k=6)
        earlier.append((rows, batch, tokens))
    for rows, batch, tokens in earlier:  # of batches that were made before the pack grew too
        for row, ngram in enumerate(rows):
            assert read(batch, row, tokens) == alone(ngram, tokens), "bit for bit"


def test_what_stays_in_a_pack_is_not_copied_again(
    way: str, ngrams: list[Ngram], monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "copied":
        pytest.skip("small ones are copied for each batch")
    NgramBatch(ngrams, vocabulary_size=V)
    places = {each.arcs.tokens.data_ptr() for each in (NgramBatch(ngrams[:3], vocabulary_size=V) for _ in range(3))}
    assert len(places) == 1
    monkeypatch.setattr(ngram_pack.NgramPack, "add", lambda self, ngram: pytest.fail("copied"))
    NgramBatch([ngrams[4], None, ngrams[2]], vocabulary_size=V)


def test_a_pack_begins_anew_where_it_would_become_too_large(
    way: str, ngrams: list[Ngram], monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = sum(map(len, ngrams[:4])) + 2 * V
    monkeypatch.setattr(ngram_pack, "LARGEST_PACK", largest)
    first = NgramBatch(ngrams[:3], vocabulary_size=V)
    for at in range(0, 12, 2):
        batch = NgramBatch(ngrams[at : at + 2], vocabulary_size=V)
        assert way == "copied" or len(batch.arcs.tokens) <= largest
        assert read(batch, 1, [1, 2, 3]) == alone(ngrams[at + 1], [1, 2, 3])
    assert read(first, 2, [4, 0, 5]) == alone(ngrams[2], [4, 0, 5]), "what was given out stays"
    every = NgramBatch(ngrams, vocabulary_size=V)
    assert read(every, 11, [6, 6, 1]) == alone(ngrams[11], [6, 6, 1]), "one batch may have more"


def test_a_pack_goes_with_its_ngrams(way: str) -> None:
    size = 91
    own = [build_ngram([[seed, 3]], vocabulary_size=size) for seed in range(2)]
    NgramBatch(own, vocabulary_size=size)
    assert own[0].pack is (None if way == "copied" else find_pack(size, CPU))
    del own
    gc.collect()
    assert (size, CPU) not in PACKS


def test_threads_place_at_once(ngrams: list[Ngram]) -> None:
    def work(seed: int) -> bool:
        generator = random.Random(seed)
        fresh = [make(1000 + seed), *ngrams]
        for _ in range(20):
            rows, tokens = generator.choices(fresh, k=4), generator.choices(range(V), k=4)
            batch = NgramBatch(rows, vocabulary_size=V)
            if [read(batch, row, tokens) for row in range(4)] != [alone(ngram, tokens) for ngram in rows]:
                return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(8)))
