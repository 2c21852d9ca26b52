"""Random augmentation of training waveforms: speed, room, line, noise, level. Its settings have NeMo's names.

Legend: S samples. Waveforms are float32 [S], full scale 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from overtone.audio.load import Waveform, load_audio
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
)
from overtone.data.manifest import Utterance, read_manifest

Generator = np.random.Generator

SILENCE = 1e-5
"""Root mean square of silence: noise is never scaled to less."""

SHORTEST = 0.02
"""Seconds that a perturbation leaves of an utterance at least."""


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """Noises or room responses, read when they are drawn: any number of hours of them take no memory."""

    utterances: tuple[Utterance, ...]
    sample_rate: int

    def draw(self, generator: Generator, *, seconds: float = math.inf) -> Waveform:
        """A random stretch of a random recording, so long at most."""
        chosen = self.utterances[int(generator.integers(len(self.utterances)))]
        start = generator.uniform(0.0, max(0.0, chosen.duration - seconds))
        return load_audio(
            chosen.audio_path,
            offset=chosen.offset + start,
            duration=min(seconds, chosen.duration),
            sample_rate=self.sample_rate,
        )


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """One change, and its probability."""

    probability: float
    apply: Callable[[Waveform, Generator], Waveform]


@dataclass(frozen=True, kw_only=True)
class Perturbations:
    """All changes of an `augmentor` section, one after the other; equal seeds give equal waveforms."""

    chain: tuple[Perturbation, ...]

    @classmethod
    def from_settings(cls, settings: AugmentorSettings, *, sample_rate: int) -> Perturbations:
        """Raises DataError for a manifest of noises or room responses that cannot be used."""
        sections = [getattr(settings, item.name) for item in fields(settings)]
        return cls(
            chain=tuple(
                Perturbation(probability=section.prob, apply=_maker(section, sample_rate))
                for section in sections
                if section is not None
            )
        )

    def __call__(self, waveform: Waveform, generator: Generator) -> Waveform:
        """[S] -> [S'], a new array where anything happened to it."""
        for perturbation in self.chain:
            if generator.random() < perturbation.probability:
                waveform = perturbation.apply(waveform, generator)
        return waveform


def _maker(settings: Any, sample_rate: int) -> Callable[[Waveform, Generator], Waveform]:
    if isinstance(settings, ImpulseSettings | NoiseSettings):
        utterances = read_manifest(Path(settings.manifest_path).expanduser(), need_text=False)
        recordings = Recordings(utterances=tuple(utterances), sample_rate=sample_rate)
        if isinstance(settings, NoiseSettings):
            return partial(add_noise, settings=settings, recordings=recordings)
        return partial(convolve_impulse, recordings=recordings)
    return partial(APPLIED[type(settings)], settings=settings, sample_rate=sample_rate)


def change_speed(waveform: Waveform, generator: Generator, *, settings: SpeedSettings, sample_rate: int) -> Waveform:
    """Change speed and pitch, [S] -> [S']; an utterance that would become too short stays as it is."""
    import soxr

    low, high = settings.min_speed_rate, settings.max_speed_rate
    if settings.num_rates > 0:
        rate = float(generator.choice(np.linspace(low, high, settings.num_rates)))
    else:
        rate = generator.uniform(low, high)
    if rate == 1.0 or waveform.size / rate < SHORTEST * sample_rate:
        return waveform
    changed: Waveform = soxr.resample(waveform, rate * sample_rate, sample_rate, quality="MQ")
    return changed


def shift(waveform: Waveform, generator: Generator, *, settings: ShiftSettings, sample_rate: int) -> Waveform:
    """Shift the waveform [S] in time; zeros fill the gap."""
    milliseconds = generator.uniform(settings.min_shift_ms, settings.max_shift_ms)
    samples = min(round(abs(milliseconds) / 1000 * sample_rate), waveform.size - 1)
    shifted = np.zeros_like(waveform)
    if milliseconds < 0:
        shifted[: waveform.size - samples] = waveform[samples:]
    else:
        shifted[samples:] = waveform[: waveform.size - samples]
    return shifted


def convolve_impulse(waveform: Waveform, generator: Generator, *, recordings: Recordings) -> Waveform:
    """Convolve the waveform [S] with a recorded room response.

    The response begins at its loudest sample, so that transcripts and sound stay together.
    """
    response = recordings.draw(generator)
    response = response[int(np.abs(response).argmax()) :]
    energy = math.sqrt(float(np.square(response).sum())) or 1.0
    return _convolve(waveform, response / energy)


def reverberate(
    waveform: Waveform, generator: Generator, *, settings: ReverberationSettings, sample_rate: int
) -> Waveform:
    """Add the reverberation of a synthetic room, noise that decays exponentially, to the waveform [S]."""
    seconds = generator.uniform(settings.min_seconds, settings.max_seconds)
    ratio = generator.uniform(settings.min_ratio_db, settings.max_ratio_db)
    size = max(2, round(seconds * sample_rate))
    decay = 10.0 ** (-3.0 * np.arange(size) / size)
    response = (generator.standard_normal(size, dtype=np.float32) * decay).astype(np.float32)
    response *= 10.0 ** (-ratio / 20) / math.sqrt(float(np.square(response).sum()))
    response[0] = 1.0
    return _convolve(waveform, response)


def limit_band(waveform: Waveform, _: Generator, *, settings: TelephoneSettings, sample_rate: int) -> Waveform:
    """Limit the waveform [S] to the band of a telephone line."""
    size = fast_size(waveform.size)
    spectrum = np.fft.rfft(waveform, size)
    frequencies = np.fft.rfftfreq(size, 1.0 / sample_rate)
    spectrum[(frequencies < settings.low) | (frequencies > settings.high)] = 0.0
    limited: Waveform = np.fft.irfft(spectrum, size)[: waveform.size].astype(np.float32)
    return limited


def add_noise(waveform: Waveform, generator: Generator, *, settings: NoiseSettings, recordings: Recordings) -> Waveform:
    """Add recorded noise to the waveform [S]."""
    noise = recordings.draw(generator, seconds=waveform.size / recordings.sample_rate)
    ratio = generator.uniform(settings.min_snr_db, settings.max_snr_db)
    return _add_at_ratio(waveform, np.resize(noise, waveform.size), ratio)


def add_coloured_noise(
    waveform: Waveform, generator: Generator, *, settings: ColouredNoiseSettings, sample_rate: int
) -> Waveform:
    """Add noise whose power falls with the frequency to the waveform [S]."""
    exponent = generator.uniform(settings.min_exponent, settings.max_exponent)
    size = fast_size(waveform.size)
    spectrum = np.fft.rfft(generator.standard_normal(size, dtype=np.float32))
    frequencies = np.fft.rfftfreq(size, 1.0 / sample_rate).astype(np.float32)
    spectrum *= np.maximum(frequencies, 50.0) ** np.float32(-exponent / 2)
    noise = np.fft.irfft(spectrum, size)[: waveform.size].astype(np.float32)
    return _add_at_ratio(waveform, noise, generator.uniform(settings.min_snr_db, settings.max_snr_db))


def add_white_noise(
    waveform: Waveform, generator: Generator, *, settings: WhiteNoiseSettings, sample_rate: int
) -> Waveform:
    """Add white noise of a random level to the waveform [S]."""
    level = 10.0 ** (generator.uniform(settings.min_level, settings.max_level) / 20)
    noise = generator.standard_normal(waveform.size, dtype=np.float32)
    return waveform + np.float32(level) * noise


def change_gain(waveform: Waveform, generator: Generator, *, settings: GainSettings, sample_rate: int) -> Waveform:
    """Change the level of the waveform [S]."""
    decibels = generator.uniform(settings.min_gain_dbfs, settings.max_gain_dbfs)
    return waveform * np.float32(10.0 ** (decibels / 20))


APPLIED: dict[type, Callable[..., Waveform]] = {
    SpeedSettings: change_speed,
    ShiftSettings: shift,
    ReverberationSettings: reverberate,
    ColouredNoiseSettings: add_coloured_noise,
    TelephoneSettings: limit_band,
    WhiteNoiseSettings: add_white_noise,
    GainSettings: change_gain,
}
"""Class of settings -> the change that they describe, for those that need no recordings."""


def fast_size(samples: int) -> int:
    """The next size that Fourier transforms are fast for: 1, 3 or 5 times a power of two."""
    return min(factor << max(0, math.ceil(math.log2(samples / factor))) for factor in (1, 3, 5))


def _convolve(waveform: Waveform, response: Sequence[float] | Waveform) -> Waveform:
    """Convolve and cut off the ringing after the waveform's end: [S], [R] -> [S]."""
    size = fast_size(waveform.size + len(response) - 1)
    spectrum = np.fft.rfft(waveform, size) * np.fft.rfft(response, size)
    convolved: Waveform = np.fft.irfft(spectrum, size)[: waveform.size].astype(np.float32)
    return convolved


def _add_at_ratio(speech: Waveform, noise: Waveform, decibels: float) -> Waveform:
    """Add noise [S] to speech [S] at this ratio of their energies."""
    levels = [max(SILENCE, math.sqrt(float(np.square(x).mean()))) for x in (speech, noise)]
    return speech + noise * np.float32(levels[0] / levels[1] * 10.0 ** (-decibels / 20))
