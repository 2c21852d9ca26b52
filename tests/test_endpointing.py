"""Where utterances end, and the features of a stream beside the offline ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from overtone.errors import UsageError
from overtone.serving.endpointing import Endpointer, Endpointing, Mark
from overtone.serving.stream_features import RawFeatures, StreamFeatures
from serving_models import noise, tiny_model


def marks(flags: str, **options: Any) -> list[Mark]:
    """`x` speech, `.` blank; 40 ms a frame."""
    return Endpointer(Endpointing(**options), 0.04).push(flag == "." for flag in flags)


def test_rivas_defaults() -> None:
    assert marks("." * 100) == []
    assert marks("x" + "." * 19) == []
    assert marks("x" + "." * 20) == [Mark(21, "end")]
    assert marks("x" + "." * 10 + "x" + "." * 20) == [Mark(32, "end")]
    assert marks(("x" + "." * 30) * 2) == [Mark(21, "end"), Mark(52, "end")]


def test_thresholds_and_histories() -> None:
    assert marks("x" + "." * 10, stop_history=400) == [Mark(11, "end")]
    assert marks("x.x" + "." * 9, stop_history=400, stop_threshold=0.9) == [Mark(11, "end")]
    assert marks("x" + "." * 100, stop_history=0) == []
    assert marks("x" + "." * 30, start_threshold=0.5) == []
    assert marks("xxxx" + "." * 30, start_threshold=0.5) == [Mark(24, "end")]


def test_the_first_pass_is_told_once_and_earlier() -> None:
    early = {"stop_history_eou": 240}
    assert marks("x" + "." * 20, **early) == [Mark(7, "early"), Mark(21, "end")]
    assert marks("x" + "." * 10 + "x" + "." * 20, **early) == [Mark(7, "early"), Mark(18, "early"), Mark(32, "end")]


@pytest.mark.parametrize(
    "wrong", [{"stop_history": -1}, {"stop_threshold": 1.5}, {"stop_history_eou": 900}, {"start_history": 10**9}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Endpointing(**wrong)


# Features


@pytest.mark.parametrize("normalize", ["per_feature", "all_features", "NA"])
def test_features_in_portions_are_those_of_the_whole(normalize: str) -> None:
    model = tiny_model(normalize=normalize)
    waveform = noise(5.0, seed=2)
    raw = RawFeatures(model)
    whole = raw.frames(waveform)
    generator = np.random.default_rng(0)
    features = StreamFeatures(raw)
    position = 0
    while position < waveform.size:
        step = int(generator.integers(1, 9000))
        features.push(waveform[position : position + step])
        position += step
        sure = (features.received - 256) // 160 + 1
        if normalize == "NA" and sure > 20:
            np.testing.assert_allclose(features.between(sure - 20, sure), whole[:, sure - 20 : sure], atol=1e-4)
    assert features.frames == whole.shape[1]
    mel, _ = model.preprocessor(torch.from_numpy(waveform)[None], torch.tensor([waveform.size]))
    # The running statistics fade a little over five seconds; nothing else differs from offline.
    np.testing.assert_allclose(features.between(0, features.frames), mel[0, :, : features.frames], atol=2e-3)


def test_fixed_statistics_are_kept() -> None:
    fixed = {"fixed_mean": [1.0] * 16, "fixed_std": [2.0] * 16}
    model = tiny_model(normalize=fixed)
    waveform = noise(1.0)
    features = StreamFeatures(RawFeatures(model))
    features.push(waveform)
    mel, _ = model.preprocessor(torch.from_numpy(waveform)[None], torch.tensor([waveform.size]))
    np.testing.assert_allclose(features.between(0, 100), mel[0, :, :100].numpy(), atol=1e-5)
