"""What a training left behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a training left behind."""

    adapter: str | None
    """Name of the adapter; None where the whole base was trained."""
    folder: Path
    """The run folder."""
    best: Path
    """Adapter folder (or model folder) of the best step; of the last one where nothing was validated."""
    last: Path
    """The same of the last step."""
    nemo: Path | None
    """The adapted `.nemo` with the best weights, where one was written."""
    adapters_file: Path | None
    """The best adapter in NeMo's format, where it was written."""
    checkpoint: Path | None
    """What a resumed run reads."""
    steps: int
    """Steps of the optimiser that were done."""
    best_step: int
    wer_before: float | None
    """Of the base on the first validation set, a fraction; None without one."""
    wer_after: float | None
    """Of the best step."""
    wer_last: float | None
    """Of the last step."""
    hours: float
    """Training audio."""
    card: dict[str, Any]
    """What is written into the best adapter's `adapter.yaml`."""
