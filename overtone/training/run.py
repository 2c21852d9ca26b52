"""A training that is fully checked and about to begin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from overtone.config import Settings
from overtone.models.asr_model import AsrModel
from overtone.training.console import Reporter
from overtone.training.data import SpeechSet
from overtone.training.prefix_cache.plan import PrefixPlan
from overtone.training.run_folder import RunFolder, plain
from overtone.training.trainer import Length, Machine


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
    state: Mapping[str, Any] | None = None
    """Where the run stood, as the checkpoint says."""

    def identity(self) -> dict[str, Any]:
        """What must not change between the parts of a resumed run."""
        settings = self.settings
        return {
            "adapter": self.adapter,
            **self.trained_over(),
            "optimiser": {key: value for key, value in plain(settings.model.optim).items() if key != "sched"},
            "data": self.training.digest,
            "batches": {
                "batch_size": self.training.plan.batch_size,
                "batch_duration": self.training.plan.batch_duration,
                "buckets": self.training.plan.buckets,
                "shuffle": self.training.plan.shuffle,
                "drop_last": self.training.plan.drop_last,
                "limit": self.training.plan.limit,
                "processes": self.machine.processes,
                "accumulate": settings.trainer.accumulate_grad_batches,
            },
            "seed": settings.seed,
            "prefix_cache": None if self.prefix is None else self.prefix.identity(),
        }

    def trained_over(self) -> dict[str, Any]:
        """What the adapter is and what lies below it; nothing where every weight is in the checkpoint."""
        if self.adapter is None:
            return {}
        adapter = self.model.adapters[self.adapter]
        return {
            "base": self.model.fingerprint(),
            "kind": {"name": adapter.kind.name, **plain(adapter.kind)},
            "strategy": asdict(adapter.strategy),
            "modules": adapter.modules_text,
            "layers": plain(adapter.layers),
        }
