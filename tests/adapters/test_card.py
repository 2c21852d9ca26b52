"""Cards as they are read: rates and step of the adapter in the folder, not of the one that it was made from."""

from __future__ import annotations

from typing import Any

import pytest

from overtone.adapters.card import reached_rates, reached_scale, reached_step

TRAINED = {"steps": 60, "wer_before": 0.5, "wer_after": 0.25}
CHOSEN = {"step": 20, "scale": 0.7, "domain_wer": {"base": 0.625, "whole": 0.125, "chosen": 0.375}}
OLDER = {"scale": 0.4, "domain_wer": {"whole": 0.125, "chosen": 0.375}}


@pytest.mark.parametrize(
    ("retention", "rates", "step", "scale"),
    [
        (None, (0.5, 0.25), 60, 1.0),
        (CHOSEN, (0.625, 0.375), 20, 0.7),
        (OLDER, (0.5, 0.375), 60, 0.4),
        ({"scale": 1.0, "domain_wer": {}}, (0.5, 0.25), 60, 1.0),
        ({"domain_wer": {"chosen": "a third"}, "step": "the last"}, (0.5, 0.25), None, 1.0),
        (["damaged"], (0.5, 0.25), 60, 1.0),
    ],
)
def test_what_was_chosen_for_general_speech(
    retention: Any, rates: tuple[float, float], step: int | None, scale: float
) -> None:
    card = TRAINED if retention is None else {**TRAINED, "retention": retention}
    assert reached_rates(card) == rates
    assert (reached_step(card), reached_scale(card)) == (step, scale)


@pytest.mark.parametrize("value", [None, float("nan"), True, "0.5"])
def test_anything_but_a_number_is_not_told(value: Any) -> None:
    assert reached_rates({"wer_before": value, "wer_after": 0.25}) == (None, 0.25)
    assert reached_rates({}) == (None, None)
