"""Mel filter banks, analysis windows, and the checks of the settings of features.

Legend: F mel bins, N points.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from overtone.errors import ConfigError, did_you_mean

WINDOWS = ("hann", "hamming", "blackman", "bartlett", "none")
NORMALIZATIONS = ("per_feature", "all_features", "NA")


def mel_filter_bank(
    *,
    sample_rate: int,
    n_fft: int,
    features: int,
    low_frequency: float = 0.0,
    high_frequency: float | None = None,
    norm: str | None = "slaney",
) -> Tensor:
    """Triangular filters [F, n_fft/2 + 1] float32, even on Slaney's mel scale (Auditory Toolbox, 1998).

    Raises ConfigError for frequencies that do not fit, and an unknown norm.
    """
    high = high_frequency or sample_rate / 2
    require_finite(low_frequency=low_frequency, high_frequency=high, at_least=0.0)
    if not low_frequency < high <= sample_rate / 2:
        raise ConfigError(
            f"low_frequency {low_frequency} and high_frequency {high} do not fit {sample_rate} Hz audio: "
            f"low_frequency < high_frequency <= {sample_rate / 2:g} is needed."
        )
    if norm not in ("slaney", None):
        raise ConfigError(f"mel_norm {norm!r} is not supported; use 'slaney' or null.")
    bins = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    edges = mel_to_hertz(np.linspace(hertz_to_mel(low_frequency), hertz_to_mel(high), features + 2))
    widths = np.diff(edges)
    slopes = edges[:, None] - bins[None, :]
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    bank = np.maximum(0.0, np.minimum(rising, falling))
    if norm == "slaney":
        bank *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(bank.astype(np.float32))


# Slaney's scale: linear below 1000 Hz (200/3 Hz a mel), then logarithmic (6.4-fold in 27 mels).
HERTZ_PER_MEL = 200.0 / 3.0
KNEE_HERTZ = 1000.0
KNEE_MEL = KNEE_HERTZ / HERTZ_PER_MEL
LOG_STEP = math.log(6.4) / 27.0


def hertz_to_mel(hertz: float) -> float:
    """Hz -> mel."""
    if hertz < KNEE_HERTZ:
        return hertz / HERTZ_PER_MEL
    return KNEE_MEL + math.log(hertz / KNEE_HERTZ) / LOG_STEP


def mel_to_hertz(mel: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """mel [N] -> Hz [N]."""
    return np.where(mel < KNEE_MEL, mel * HERTZ_PER_MEL, KNEE_HERTZ * np.exp(LOG_STEP * (mel - KNEE_MEL)))


def analysis_window(name: str, length: int) -> Tensor:
    """The symmetric analysis window [length]. Raises ConfigError for an unknown name."""
    require_one_of("window", name, WINDOWS)
    if name == "none":
        return torch.ones(length)
    functions = {
        "hann": torch.hann_window,
        "hamming": torch.hamming_window,
        "blackman": torch.blackman_window,
        "bartlett": torch.bartlett_window,
    }
    return functions[name](length, periodic=False, dtype=torch.float32)


def read_normalization(
    normalize: str | Mapping[str, Sequence[float]] | None, features: int
) -> tuple[str, Tensor | None, Tensor | None]:
    """The kind of normalisation and, for `fixed`, mean and deviation [F, 1]. Raises ConfigError."""
    if not normalize or normalize in ("none", "None", "null"):
        return "NA", None, None
    if not isinstance(normalize, Mapping):
        return require_one_of("normalize", normalize, NORMALIZATIONS), None, None
    if set(normalize) != {"fixed_mean", "fixed_std"}:
        raise ConfigError(
            f"normalize holds the keys {sorted(map(str, normalize))}; fixed_mean and fixed_std are needed."
        )
    tensors = []
    for key in ("fixed_mean", "fixed_std"):
        try:
            values = torch.tensor([float(value) for value in normalize[key]])
        except (TypeError, ValueError):
            raise ConfigError(f"normalize.{key} must be a list of {features} numbers.") from None
        if values.shape != (features,) or not bool(values.isfinite().all()):
            raise ConfigError(f"normalize.{key} has {values.numel()} values; {features} finite numbers are needed.")
        tensors.append(values.unsqueeze(1))
    if bool((tensors[1] == 0).any()):
        raise ConfigError("normalize.fixed_std holds a zero; features cannot be divided by it.")
    return "fixed", tensors[0], tensors[1]


def whole_samples(key: str, seconds: float, sample_rate: int) -> int:
    """Seconds cut to whole samples. Raises ConfigError where not one is left."""
    require_finite(**{key: seconds}, at_least=0.0)
    samples = int(seconds * sample_rate)
    if samples < 1:
        raise ConfigError(f"{key} is {seconds} s, less than one sample at {sample_rate} Hz.")
    return samples


def fft_length(n_fft: int | None, window_length: int) -> int:
    """Samples of the transform, the next power of two of the window unless given. Raises ConfigError."""
    if n_fft is None or n_fft == 0:
        return int(2 ** math.ceil(math.log2(window_length)))
    require_positive_integers(n_fft=n_fft)
    if n_fft < window_length:
        raise ConfigError(f"n_fft is {n_fft}, shorter than the window of {window_length} samples (window_size).")
    return n_fft


def read_log_zero_guard(value: float | str) -> float:
    """The number that `tiny` or `eps` stands for, or the number itself. Raises ConfigError."""
    named = {"tiny": torch.finfo(torch.float32).tiny, "eps": torch.finfo(torch.float32).eps}
    if isinstance(value, str):
        return named[require_one_of("log_zero_guard_value", value, named)]
    require_finite(log_zero_guard_value=value, at_least=0.0)
    return float(value)


def check_preemphasis(preemphasis: float | None) -> float | None:
    """Raises ConfigError for a value that is not finite."""
    if preemphasis is None:
        return None
    require_finite(preemphasis=preemphasis, at_least=None)
    return float(preemphasis)


def check_pad_to(pad_to: Any) -> int:
    """Raises ConfigError for anything but a number of frames, 0 or more."""
    if isinstance(pad_to, bool) or not isinstance(pad_to, int) or pad_to < 0:
        raise ConfigError(f"pad_to {pad_to!r} is not supported; give a number of frames, 0 for no padding.")
    return pad_to


def check_flag(key: str, value: Any) -> bool:
    """Raises ConfigError for anything but true and false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is {value!r}; use true or false.")
    return value


def require_equal(key: str, value: object, supported: object) -> None:
    """Raises ConfigError for any value but the one that is supported."""
    if value != supported:
        raise ConfigError(f"{key} {value!r} is not supported; only {supported!r} is.")


def require_one_of(key: str, value: object, allowed: Mapping[str, float] | Sequence[str]) -> str:
    """The value itself. Raises ConfigError for one that is not allowed, with the nearest that is."""
    if not isinstance(value, str) or value not in allowed:
        hint = did_you_mean(str(value), allowed)
        raise ConfigError(f"{key} {value!r} is not supported; use one of {', '.join(allowed)}.{hint}")
    return value


def require_positive_integers(**values: Any) -> None:
    """Raises ConfigError for a value that is not a whole number above 0, naming its key."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key} is {value!r}; a positive whole number is needed.")


def require_finite(*, at_least: float | None, **values: Any) -> None:
    """Raises ConfigError for a value that is no finite number, or below `at_least`, naming its key."""
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{key} is {value!r}; a finite number is needed.")
        if at_least is not None and value < at_least:
            raise ConfigError(f"{key} is {value!r}; {at_least:g} or more is needed.")
