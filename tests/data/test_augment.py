"""Changes of training waveforms: each does what its settings say, and equal seeds give equal waveforms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from overtone.config import (
    AugmentorSettings,
    ColouredNoiseSettings,
    GainSettings,
    ImpulseSettings,
    NoiseSettings,
    ReverberationSettings,
    ShiftSettings,
    SpeedSettings,
    TelephoneSettings,
    WhiteNoiseSettings,
    load_settings,
)
from overtone.data.augment import Perturbations, Waveform
from overtone.errors import ConfigError, DataError

RATE = 16_000
TRAINING = ["model.pretrained_model=fundamental", "model.adapter.adapter_name=x", "model.train_ds.manifest_filepath=x"]


def tone(frequency: float = 1000.0, seconds: float = 1.0) -> Waveform:
    return (0.3 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def changed(settings: AugmentorSettings, waveform: Waveform, seed: int = 0) -> Waveform:
    result = Perturbations.from_settings(settings, sample_rate=RATE)(waveform, np.random.default_rng(seed))
    assert result.dtype == np.float32
    return result


def energy(waveform: Waveform) -> float:
    return float(np.square(waveform.astype(np.float64)).mean())


def frequency_of(waveform: Waveform) -> float:
    return float(np.abs(np.fft.rfft(waveform)).argmax() * RATE / waveform.size)


def write_recordings(folder: Path, *waveforms: Waveform) -> Path:
    lines = []
    for index, waveform in enumerate(waveforms):
        soundfile.write(folder / f"{index}.wav", waveform, RATE, subtype="FLOAT")
        lines.append(json.dumps({"audio_filepath": f"{index}.wav", "duration": waveform.size / RATE}))
    (folder / "recordings.json").write_text("\n".join(lines) + "\n")
    return folder / "recordings.json"


def test_speed_changes_tempo_and_pitch_together() -> None:
    settings = AugmentorSettings(speed=SpeedSettings(prob=1.0, min_speed_rate=1.25, max_speed_rate=1.25, num_rates=1))
    fast = changed(settings, tone())
    assert fast.size == pytest.approx(RATE / 1.25, abs=2)
    assert frequency_of(fast) == pytest.approx(1250, abs=3)


def test_speeds_of_a_grid() -> None:
    settings = AugmentorSettings(speed=SpeedSettings(prob=1.0, min_speed_rate=0.9, max_speed_rate=1.1, num_rates=3))
    sizes = {changed(settings, tone(), seed).size for seed in range(40)}
    assert sizes == {RATE, round(RATE / 0.9), round(RATE / 1.1)}


def test_shift_moves_and_fills_with_silence() -> None:
    later = AugmentorSettings(shift=ShiftSettings(prob=1.0, min_shift_ms=50, max_shift_ms=50))
    waveform = tone()
    moved = changed(later, waveform)
    assert not moved[:800].any()
    assert np.array_equal(moved[800:], waveform[:-800])


def test_gain_in_decibels() -> None:
    settings = AugmentorSettings(gain=GainSettings(prob=1.0, min_gain_dbfs=-6.0206, max_gain_dbfs=-6.0206))
    assert np.allclose(changed(settings, tone()), 0.5 * tone(), atol=1e-5)


def test_white_noise_has_its_own_level() -> None:
    settings = AugmentorSettings(white_noise=WhiteNoiseSettings(prob=1.0, min_level=-40, max_level=-40))
    for waveform in (tone(), np.zeros(RATE, np.float32)):
        assert 10 * np.log10(energy(changed(settings, waveform) - waveform)) == pytest.approx(-40, abs=0.3)


def test_noise_lies_below_the_speech_by_the_ratio(tmp_path: Path) -> None:
    manifest = write_recordings(tmp_path, tone(3000.0, 0.4), tone(5000.0, 3.0))
    recorded = NoiseSettings(prob=1.0, manifest_path=str(manifest), min_snr_db=12, max_snr_db=12)
    coloured = ColouredNoiseSettings(prob=1.0, min_snr_db=12, max_snr_db=12)
    for settings in (AugmentorSettings(noise=recorded), AugmentorSettings(coloured_noise=coloured)):
        for seed in range(4):
            noise = changed(settings, tone(), seed) - tone()
            assert 10 * np.log10(energy(tone()) / energy(noise)) == pytest.approx(12, abs=0.2)


def test_noise_comes_from_the_stretch_that_the_manifest_names(tmp_path: Path) -> None:
    manifest = write_recordings(tmp_path, np.concatenate([tone(3000.0), tone(5000.0)]))
    manifest.write_text(json.dumps({"audio_filepath": "0.wav", "offset": 1.2, "duration": 0.6}) + "\n")
    settings = AugmentorSettings(noise=NoiseSettings(prob=1.0, manifest_path=str(manifest), max_snr_db=10))
    for seed in range(3):
        noise = changed(settings, tone(seconds=0.5), seed) - tone(seconds=0.5)
        assert frequency_of(noise) == pytest.approx(5000, abs=5)


def test_brown_noise_is_low() -> None:
    brown = ColouredNoiseSettings(prob=1.0, min_exponent=2, max_exponent=2)
    noise = np.abs(np.fft.rfft(changed(AugmentorSettings(coloured_noise=brown), tone()) - tone()))
    assert np.square(noise[:500]).sum() > 20 * np.square(noise[2000:]).sum()


def test_telephone_band() -> None:
    settings = AugmentorSettings(telephone=TelephoneSettings(prob=1.0))
    assert energy(changed(settings, tone(100.0))) < 1e-6
    assert energy(changed(settings, tone(6000.0))) < 1e-6
    assert energy(changed(settings, tone(1000.0))) == pytest.approx(energy(tone()), rel=1e-3)


def test_reverberation_rings_behind_the_sound() -> None:
    settings = AugmentorSettings(
        reverberation=ReverberationSettings(prob=1.0, min_seconds=0.3, max_seconds=0.3, min_ratio_db=5, max_ratio_db=5)
    )
    click = np.zeros(RATE, np.float32)
    click[1000] = 1.0
    room = changed(settings, click)
    assert room[1000] == pytest.approx(1.0, abs=1e-4)
    assert np.abs(room[:1000]).max() < 1e-5
    assert 10 * np.log10(1.0 / np.square(room[1001:]).sum()) == pytest.approx(5, abs=0.5)
    early, late = np.square(room[1001:2000]).sum(), np.square(room[3000:4000]).sum()
    assert early > 10 * late > 0


def test_impulse_response_begins_at_its_peak(tmp_path: Path) -> None:
    response = np.zeros(500, np.float32)
    response[100], response[200] = 0.8, 0.6
    manifest = write_recordings(tmp_path, response)
    settings = AugmentorSettings(impulse=ImpulseSettings(prob=1.0, manifest_path=str(manifest)))
    click = np.zeros(RATE, np.float32)
    click[50] = 1.0
    room = changed(settings, click)
    assert room[50] == pytest.approx(0.8, abs=1e-4)
    assert room[150] == pytest.approx(0.6, abs=1e-4)


def test_probability_is_a_share_of_the_utterances() -> None:
    settings = AugmentorSettings(gain=GainSettings(prob=0.3, min_gain_dbfs=6, max_gain_dbfs=6))
    touched = sum(
        not np.array_equal(changed(settings, tone(seconds=0.1), seed), tone(seconds=0.1)) for seed in range(300)
    )
    assert 60 < touched < 120


def test_seed_decides_and_the_source_stays() -> None:
    settings = AugmentorSettings(
        speed=SpeedSettings(prob=1.0),
        shift=ShiftSettings(prob=1.0),
        reverberation=ReverberationSettings(prob=1.0),
        coloured_noise=ColouredNoiseSettings(prob=1.0),
        telephone=TelephoneSettings(prob=1.0),
        white_noise=WhiteNoiseSettings(prob=1.0),
        gain=GainSettings(prob=1.0),
    )
    source = tone()
    first, again, other = (changed(settings, source, seed) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)
    assert np.array_equal(source, tone())


@pytest.mark.parametrize("samples", [1, 30, 333])
def test_utterances_of_a_few_samples(samples: int) -> None:
    settings = AugmentorSettings(
        speed=SpeedSettings(prob=1.0, min_speed_rate=2, max_speed_rate=2),
        shift=ShiftSettings(prob=1.0),
        reverberation=ReverberationSettings(prob=1.0),
        coloured_noise=ColouredNoiseSettings(prob=1.0),
        telephone=TelephoneSettings(prob=1.0),
    )
    result = changed(settings, np.full(samples, 0.1, np.float32))
    assert result.size >= 1
    assert np.isfinite(result).all()


def test_silence_stays_finite(tmp_path: Path) -> None:
    manifest = write_recordings(tmp_path, tone())
    settings = AugmentorSettings(
        noise=NoiseSettings(prob=1.0, manifest_path=str(manifest)), coloured_noise=ColouredNoiseSettings(prob=1.0)
    )
    result = changed(settings, np.zeros(RATE, np.float32))
    assert np.isfinite(result).all()
    assert np.abs(result).max() < 1e-3


def test_a_manifest_of_noise_that_is_missing(tmp_path: Path) -> None:
    settings = AugmentorSettings(noise=NoiseSettings(manifest_path=str(tmp_path / "none.json")))
    with pytest.raises(DataError, match=r"none\.json"):
        Perturbations.from_settings(settings, sample_rate=RATE)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("{speed: {min_speed_rate: 1.2, max_speed_rate: 0.9}}", "speed.min_speed_rate: 1.2 is above"),
        ("{speed: {num_rates: 0}}", "speed.num_rates"),
        ("{gain: {prob: 1.5}}", "gain.prob: 1.5 is too large"),
        ("{nois: {prob: 0.5}}", "Did you mean 'noise'"),
        ("{noise: {prob: 0.5}}", "noise.manifest_path: has to be given"),
    ],
)
def test_settings_that_cannot_be(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        load_settings([*TRAINING, f"model.train_ds.augmentor={override}"])


def test_not_for_validation() -> None:
    with pytest.raises(ConfigError, match=r"model\.validation_ds\.augmentor"):
        load_settings([*TRAINING, "model.validation_ds={manifest_filepath: x, augmentor: {gain: {prob: 1.0}}}"])
