"""A training that is fully checked and about to begin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overtone.config import Settings
from overtone.jobs.experiment import RunFolder
from overtone.jobs.prefix_plan import PrefixPlan
from overtone.jobs.progress import Reporter
from overtone.jobs.train_data import SpeechSet
from overtone.jobs.trainer_options import Length, Machine
from overtone.model import AsrModel


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that `fit` needs."""

    settings: Settings
    model: AsrModel
    adapter: str | None
    """None trains the whole base."""
    folder: RunFolder
    resumption: Path | None
    """The checkpoint to go on from."""
    training: SpeechSet
    validation: tuple[SpeechSet, ...]
    machine: Machine
    length: Length
    reporter: Reporter
    prefix: PrefixPlan | None = None
    """What is computed once for each utterance; None: nothing."""

    def identity(self) -> dict[str, Any]:
        """What must not change between the parts of a resumed run."""
        settings = self.settings
        return {
            "adapter": self.adapter,
            "data": self.training.digest,
            "batches": {
                "batch_size": self.training.plan.batch_size,
                "batch_duration": self.training.plan.batch_duration,
                "buckets": self.training.plan.buckets,
                "shuffle": self.training.plan.shuffle,
                "processes": self.machine.processes,
                "accumulate": settings.trainer.accumulate_grad_batches,
            },
            "seed": settings.seed,
            "prefix_cache": None if self.prefix is None else self.prefix.identity(),
        }
