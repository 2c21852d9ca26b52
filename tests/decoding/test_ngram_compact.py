"""Compact n-grams: every state and arc is found again, logarithms to a thirty-second, damage is told."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_compact import compact, expand
from overtone.decoding.ngram_counts import build_ngram
from overtone.errors import DataError

V = 5
TEXTS = st.lists(st.lists(st.integers(0, V - 1), max_size=9), min_size=1, max_size=20).filter(any)


def sample() -> dict[str, Tensor]:
    texts = [[0, 1, 2, 3], [0, 1, 2, 4], [2, 3, 0, 1], [4, 4, 1]]
    return build_ngram(texts, vocabulary_size=V, order=4).to_tensors()


@given(texts=TEXTS, order=st.integers(1, 6), largest=st.sampled_from([5, 20, 1000]))
@settings(max_examples=150, deadline=None)
def test_states_are_found_again(texts: list[list[int]], order: int, largest: int) -> None:
    tensors = build_ngram(texts, vocabulary_size=V, order=order, largest=largest).to_tensors()
    again = expand(compact(tensors))
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int32:
            assert torch.equal(again[name], tensor), name
        else:
            sound = tensor > (-7.9 if name == "backoff_log_probs" else -15.0)
            limit = 1 / 32 * (order + 1) + 1e-4 if name == "end_log_probs" else 1 / 32 + 1e-6
            assert bool(((again[name] - tensor).abs() <= limit)[sound].all()), name


def test_what_was_compact_is_written_so() -> None:
    form = compact(sample())
    ngram = Ngram.from_tensors(expand(form))
    again = compact(ngram.to_tensors())
    assert all(torch.equal(again[name], tensor) for name, tensor in form.items())
    plain = Ngram.from_tensors(sample())
    assert ngram.sentence_log_prob([0, 1, 2, 3]) == pytest.approx(plain.sentence_log_prob([0, 1, 2, 3]), abs=0.2)


def test_large_vocabularies_have_no_compact_form() -> None:
    with pytest.raises(DataError, match="over 300 tokens has no compact form"):
        compact(build_ngram([[299]], vocabulary_size=300).to_tensors())


@pytest.mark.parametrize("name", ["tokens", "sizes", "log_probs", "backoffs", "ends"])
def test_damage_is_told(name: str) -> None:
    form = compact(sample())
    for damaged in (
        {**form, f"compact_{name}": form[f"compact_{name}"][:-5]},
        {**form, f"compact_{name}": torch.zeros(9, dtype=torch.uint8)},
        {key: tensor for key, tensor in form.items() if key != f"compact_{name}"},
    ):
        with pytest.raises(DataError, match=r"damaged: .*Fetch it or build it again"):
            expand(damaged)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("value", [-1, 0, 3, 10**9])
def test_wrong_numbers_are_told(place: int, value: int) -> None:
    form = compact(sample())
    if int(form["head"][place]) == value:
        return
    form["head"][place] = value
    with pytest.raises(DataError, match="damaged"):
        Ngram.from_tensors(expand(form))


def test_files_of_adapters_have_no_compact_form() -> None:
    with pytest.raises(DataError, match=r"missing or left over: .*compact_tokens"):
        Ngram.from_tensors(compact(sample()))
