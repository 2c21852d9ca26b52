"""Features of a stream: in any portions those of the whole, normalised by what was heard so far."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from overtone.audio.stream_features import RawFeatures, StreamFeatures
from overtone.models.asr_model import AsrModel
from support.serving_models import noise, tiny_model


def raw_features(model: AsrModel) -> RawFeatures:
    return RawFeatures(model.preprocessor, per_encoder_frame=model.encoder.subsampling_factor)


def normalised(features: StreamFeatures, first: int, last: int) -> np.ndarray:
    """[F, last - first], by the statistics of everything before."""
    return features.between(first, last, features.statistics(last))


@pytest.mark.parametrize("normalize", ["per_feature", "all_features", "NA"])
def test_features_in_portions_are_those_of_the_whole(normalize: str) -> None:
    model = tiny_model(normalize=normalize)
    waveform = noise(5.0, seed=2)
    raw = raw_features(model)
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
            np.testing.assert_allclose(normalised(features, sure - 20, sure), whole[:, sure - 20 : sure], atol=1e-4)
    assert features.frames == whole.shape[1]
    mel, _ = model.preprocessor(torch.from_numpy(waveform)[None], torch.tensor([waveform.size]))
    # The last frames are the offline ones too, and nothing fades within a minute.
    np.testing.assert_allclose(normalised(features, 0, features.frames), mel[0, :, : features.frames], atol=2e-4)


def test_statistics_do_not_depend_on_how_often_they_are_asked_for() -> None:
    raw = raw_features(tiny_model())
    waveform = noise(20.0, seed=3)
    often, once = StreamFeatures(raw), StreamFeatures(raw)
    for features in (often, once):
        features.push(waveform)
    for last in range(100, 1900, 7):
        normalised(often, last - 50, last)
    np.testing.assert_allclose(normalised(often, 1500, 2000), normalised(once, 1500, 2000), atol=1e-5)


@pytest.mark.parametrize("normalize", ["per_feature", "all_features"])
def test_less_than_a_frame_has_statistics_too(normalize: str) -> None:
    features = StreamFeatures(raw_features(tiny_model(normalize=normalize)))
    with np.errstate(all="raise"):
        features.push(noise(0.005))
        assert all(np.isfinite(each).all() for each in features.statistics(features.frames))


def test_what_is_long_ago_fades() -> None:
    """Loud noise, then minutes of soft noise: the statistics become those of the soft part."""
    raw = raw_features(tiny_model())
    soft = noise(240.0, seed=4) * 0.01
    features, alone = StreamFeatures(raw), StreamFeatures(raw)
    for first in range(0, 60 * 16_000, 16_000):
        features.push(noise(60.0, seed=5)[first : first + 16_000])
        normalised(features, features.frames - 1, features.frames)
    begin = features.frames
    for each in (features, alone):
        for first in range(0, soft.size, 16_000):
            each.push(soft[first : first + 16_000])
            normalised(each, each.frames - 1, each.frames)
            each.forget(each.frames - 300)
    mel = normalised(features, begin + alone.frames - 200, begin + alone.frames)
    np.testing.assert_allclose(
        mel.mean(axis=1), normalised(alone, alone.frames - 200, alone.frames).mean(axis=1), atol=0.1
    )


def test_fixed_statistics_are_kept() -> None:
    fixed = {"fixed_mean": [1.0] * 16, "fixed_std": [2.0] * 16}
    model = tiny_model(normalize=fixed)
    waveform = noise(1.0)
    features = StreamFeatures(raw_features(model))
    features.push(waveform)
    mel, _ = model.preprocessor(torch.from_numpy(waveform)[None], torch.tensor([waveform.size]))
    np.testing.assert_allclose(normalised(features, 0, 100), mel[0, :, :100].numpy(), atol=1e-5)


@pytest.mark.parametrize("normalize", ["per_feature", "NA", {"fixed_mean": [1.0] * 16, "fixed_std": [2.0] * 16}])
def test_what_is_forgotten_takes_no_memory(normalize: Any) -> None:
    features = StreamFeatures(raw_features(tiny_model(normalize=normalize)))
    for seed in range(10):
        features.push(noise(1.0, seed=seed))
        features.statistics(features.frames)
        features.forget(features.frames - 50)
    assert features._mel.shape[1] < 200
