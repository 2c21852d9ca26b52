"""A model, and a folder of adapters for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from overtone.models.asr_model import AsrModel
from support.serving_models import three_voices, tiny_model


@pytest.fixture
def model() -> AsrModel:
    return tiny_model()


@pytest.fixture
def folder(tmp_path: Path, model: AsrModel) -> Path:
    return three_voices(model, tmp_path / "store")
