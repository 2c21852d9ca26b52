"""A recogniser of tones, and recordings that it understands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from support.tone_model import SAMPLE_RATE, ToneModel, spoken


@pytest.fixture
def model() -> ToneModel:
    return ToneModel()


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """Writes a text as audio."""

    def write(name: str, text: str, *, rate: int = SAMPLE_RATE, channels: int = 1) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = spoken(text)
        if rate != SAMPLE_RATE:
            import soxr

            samples = soxr.resample(samples, SAMPLE_RATE, rate)
        soundfile.write(path, np.stack([samples] * channels, axis=1), rate)
        return path

    return write
