"""Places of the reference data that tests read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import soundfile
import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parents[1]
"""The folder of the tests."""
SHARED = HERE.parents[1] / "shared"
CTC_MODELS = ("conformer_ctc_bpe", "conformer_ctc_char", "fastconformer_ctc_bpe")
"""The reference models of which there are adapters of every kind, and trainings."""


def fixture_folders() -> list[Path]:
    """Where reference data is looked for: $OVERTONE_FIXTURES, the project's own, the folder beside the project."""
    named = os.environ.get("OVERTONE_FIXTURES")
    own = [HERE / "fixtures" / "nemo", HERE / "fixtures"]
    return [Path(named), *own] if named else [*own, SHARED / "fixtures"]


def fixtures_root() -> Path:
    """The first folder of NeMo's reference outputs."""
    return fixture_folders()[0]


def fixture_file(name: str) -> Path:
    """A file of reference data, by its path below the root; the test is skipped where it is not at hand."""
    for folder in fixture_folders():
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"{name} is not here; OVERTONE_FIXTURES names the folder of reference data")


def fixture_models(pattern: str = "*/model.nemo") -> list[str]:
    """The names of the reference models at hand, for parametrising."""
    found = {path.parent.name for folder in fixture_folders() for path in folder.glob(pattern)}
    return sorted(name for name in found if not name.startswith("_"))


def speech_root() -> Path:
    """The folder of real speech: $OVERTONE_SPEECH or the one beside the project; else the test is skipped."""
    root = Path(os.environ.get("OVERTONE_SPEECH") or SHARED / "speech")
    if not root.is_dir():
        pytest.skip(f"{root} is not here; OVERTONE_SPEECH names the folder of speech corpora")
    return root


def recordings(index: int | None = None) -> tuple[Tensor, Tensor]:
    """The samples of one recording, or of the three padded to the longest, [B, S], and their lengths, [B]."""
    numbers = range(3) if index is None else [index]
    signals = [torch.from_numpy(soundfile.read(fixture_file(f"wavs/w{n}.wav"), dtype="float32")[0]) for n in numbers]
    return nn.utils.rnn.pad_sequence(signals, batch_first=True), torch.tensor([len(signal) for signal in signals])
