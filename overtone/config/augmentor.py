"""Settings of `augmentor`: changes of the training waveforms, each by chance, named as NeMo names them."""

from __future__ import annotations

from dataclasses import dataclass

from overtone.config.fields import bounded


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """Resampling: tempo and pitch change together."""

    prob: float = bounded(0.5, at_least=0, at_most=1)
    """Share of the utterances."""
    min_speed_rate: float = bounded(0.9, above=0)
    """Slowest speed."""
    max_speed_rate: float = bounded(1.1, above=0)
    """Fastest speed."""
    num_rates: int = 5
    """Speeds at equal distances between the two; negative: any speed between them."""
    sr: int | None = None
    """Without effect: the model's sample rate holds."""
    resample_type: str = "kaiser_fast"
    """Without effect: libsoxr resamples."""


@dataclass(frozen=True, kw_only=True)
class ShiftSettings:
    """Sound earlier or later; silence follows or precedes it."""

    prob: float = bounded(0.5, at_least=0, at_most=1)
    """Share of the utterances."""
    min_shift_ms: float = -5.0
    """Negative: earlier, which cuts off the beginning."""
    max_shift_ms: float = 5.0


@dataclass(frozen=True, kw_only=True)
class ImpulseSettings:
    """Convolution with a recorded room's response to an impulse."""

    prob: float = bounded(0.5, at_least=0, at_most=1)
    """Share of the utterances."""
    manifest_path: str = ""
    """Manifest of the responses; no text is needed."""


@dataclass(frozen=True, kw_only=True)
class ReverberationSettings:
    """Ours: a room made of decaying noise behind the direct sound."""

    prob: float = bounded(0.3, at_least=0, at_most=1)
    """Share of the utterances."""
    min_seconds: float = bounded(0.1, above=0)
    """Shortest time in which the sound decays by 60 dB."""
    max_seconds: float = bounded(0.6, above=0)
    """Longest such time."""
    min_ratio_db: float = 5.0
    """Least energy of the direct sound against the reverberation."""
    max_ratio_db: float = 20.0
    """Most such energy."""


@dataclass(frozen=True, kw_only=True)
class TelephoneSettings:
    """Ours: nothing outside the band of a telephone line."""

    prob: float = bounded(0.1, at_least=0, at_most=1)
    """Share of the utterances."""
    low: float = bounded(300.0, at_least=0)
    """Hz."""
    high: float = bounded(3400.0, above=0)
    """Hz."""


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """Recorded noise, a random stretch of a random recording."""

    prob: float = bounded(0.5, at_least=0, at_most=1)
    """Share of the utterances."""
    manifest_path: str = ""
    """Manifest of the recordings; no text is needed."""
    min_snr_db: float = 10.0
    """Least energy of the speech against the noise."""
    max_snr_db: float = 50.0
    """Most such energy."""


@dataclass(frozen=True, kw_only=True)
class ColouredNoiseSettings:
    """Ours: noise whose power falls with frequency, from white (exponent 0) to brown (2)."""

    prob: float = bounded(0.3, at_least=0, at_most=1)
    """Share of the utterances."""
    min_snr_db: float = 8.0
    """Least energy of the speech against the noise."""
    max_snr_db: float = 40.0
    """Most such energy."""
    min_exponent: float = bounded(0.0, at_least=0)
    max_exponent: float = bounded(2.0, at_least=0)


@dataclass(frozen=True, kw_only=True)
class WhiteNoiseSettings:
    """White noise of a level of its own, whatever the speech's."""

    prob: float = bounded(0.5, at_least=0, at_most=1)
    """Share of the utterances."""
    min_level: float = -90.0
    """dB of full scale."""
    max_level: float = -46.0
    """dB of full scale."""


@dataclass(frozen=True, kw_only=True)
class GainSettings:
    """Louder or softer."""

    prob: float = bounded(0.5, at_least=0, at_most=1)
    """Share of the utterances."""
    min_gain_dbfs: float = -10.0
    """dB."""
    max_gain_dbfs: float = 10.0
    """dB."""


@dataclass(frozen=True, kw_only=True)
class AugmentorSettings:
    """Changes of the training waveforms, in the order in which they are listed here: source, room, line, noise."""

    speed: SpeedSettings | None = None
    shift: ShiftSettings | None = None
    impulse: ImpulseSettings | None = None
    reverberation: ReverberationSettings | None = None
    noise: NoiseSettings | None = None
    coloured_noise: ColouredNoiseSettings | None = None
    telephone: TelephoneSettings | None = None
    white_noise: WhiteNoiseSettings | None = None
    gain: GainSettings | None = None


PAIRS = (
    ("speed", "min_speed_rate", "max_speed_rate"),
    ("shift", "min_shift_ms", "max_shift_ms"),
    ("reverberation", "min_seconds", "max_seconds"),
    ("reverberation", "min_ratio_db", "max_ratio_db"),
    ("telephone", "low", "high"),
    ("noise", "min_snr_db", "max_snr_db"),
    ("coloured_noise", "min_snr_db", "max_snr_db"),
    ("coloured_noise", "min_exponent", "max_exponent"),
    ("white_noise", "min_level", "max_level"),
    ("gain", "min_gain_dbfs", "max_gain_dbfs"),
)
"""Sections with two keys of which the first value must not be above the second."""


def contradictions(settings: AugmentorSettings) -> dict[str, str]:
    """Return what is wrong in the settings, by key."""
    faults = {}
    for name, low, high in PAIRS:
        section = getattr(settings, name)
        if section is not None and getattr(section, low) > getattr(section, high):
            faults[f"{name}.{low}"] = f"{getattr(section, low)} is above {high}, {getattr(section, high)}."
    for name in ("impulse", "noise"):
        section = getattr(settings, name)
        if section is not None and not section.manifest_path:
            faults[f"{name}.manifest_path"] = "has to be given: a manifest of recordings."
    if settings.speed is not None and settings.speed.num_rates == 0:
        faults["speed.num_rates"] = "is at least 1, or negative for any speed between the two."
    return faults
