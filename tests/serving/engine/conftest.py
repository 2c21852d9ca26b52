"""A model that needs no training."""

from __future__ import annotations

import pytest

from support.tone_model import ToneModel


@pytest.fixture
def tones() -> ToneModel:
    return ToneModel()
