"""One run of a training: its parts, the state in its checkpoint, and its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from overtone.adapters.words import WordPart
from overtone.config import to_plain
from overtone.data.dataset import SpeechDataset
from overtone.data.manifest import Utterance
from overtone.errors import CheckpointError
from overtone.models.asr_model import AsrModel
from overtone.models.attention import attention_facts
from overtone.training.base_errors import BaseErrors, base_facts
from overtone.training.console import Reporter
from overtone.training.data import SpeechSet, worker_count
from overtone.training.plan import TrainingPlan
from overtone.training.prefix_cache.plan import PrefixPlan
from overtone.training.run_folder import RunFolder, RunLock
from overtone.training.trainer import Machine, RunLength, base_dtype, lightning_precision

MACHINE = "machine"
"""The key of what may differ between the parts of a run, at the price of its last digits."""
REFIT_STEP = "refit_step"
"""The key of the best step that a refit makes again; None for other trainings."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training that is fully checked and about to begin."""

    plan: TrainingPlan
    model: AsrModel
    """The base, with the new adapter added."""
    adapter: str | None
    """Name of the adapter; None trains the whole base."""
    folder: RunFolder
    lock: RunLock
    """Keeps other trainings out of the folder."""
    checkpoint: Path | None
    """The checkpoint that the run resumes from."""
    state: Mapping[str, Any] | None = None
    """State of the run in the checkpoint."""
    training: SpeechSet
    validation: tuple[SpeechSet, ...]
    machine: Machine
    length: RunLength
    reporter: Reporter
    general: dict[str, list[Utterance]] = field(default_factory=dict)
    """Utterances of general speech by manifest."""
    retained: Sequence[Utterance] = ()
    """Utterances of general speech that the adapter's strength is chosen on."""
    start_from: Mapping[str, Any] | None = None
    """Name, digest and card of the adapter that the new one began with."""
    words: WordPart | None = None
    """The word part that the adapter gets at the end, if it makes fewer errors on the validation set."""
    refitted_words: WordPart | None = None
    """The same counted on training and validation data, which takes its place once the weights are chosen."""
    prefix: PrefixPlan | None = None
    """The part of the base that is computed once for each utterance; None computes everything in every step."""

    base_errors: BaseErrors = field(default_factory=BaseErrors)
    """Errors of the base that other trainings have measured."""

    @property
    def inner_losses(self) -> Mapping[int, float]:
        """Share of the loss on the output of an inner layer, by the layer's index."""
        return self.plan.inner_losses_of(self.model)

    def identity(self) -> dict[str, Any]:
        """Return what must not change between the parts of a resumed run."""
        batches = self.training.plan
        return {
            "adapter": self.adapter,
            **self.adapter_identity(),
            "optimiser": {key: value for key, value in to_plain(self.plan.optimiser).items() if key != "sched"},
            "data": self.training.digest,
            "recordings": self.training.recordings,
            "validation": [speech.digest for speech in self.validation],
            "validation_recordings": [speech.recordings for speech in self.validation],
            "validation_batches": str(self.plan.trainer.limit_val_batches),  # 1 is a batch, 1.0 all of them
            "gradient_clipping": {
                "value": self.plan.trainer.gradient_clip_val or None,
                "algorithm": self.plan.trainer.gradient_clip_algorithm,
            },
            "precision": lightning_precision(self.plan.trainer),
            "batches": {
                "batch_size": batches.batch_size,
                "batch_duration": batches.batch_duration,
                "buckets": batches.buckets,
                "shuffle": batches.shuffle,
                "drop_last": batches.drop_last,
                **batches.more_identity(),
                "limit": batches.limit,
                "processes": self.machine.processes,
                "accumulate": self.plan.trainer.accumulate_grad_batches,
            },
            "seed": self.plan.seed,
            "inner_losses": [list(share) for share in self.inner_losses.items()],
            "prefix_cache": None if self.prefix is None else self.prefix.identity(),
            REFIT_STEP: None if self.plan.refit_of is None else self.plan.refit_of.get("step"),
            MACHINE: {"threads": torch.get_num_threads(), "row_processes": self.machine.row_processes},
        }

    @property
    def shares_base(self) -> bool:
        """The base is a checkpoint's, and one process measures it: other trainings may use what it finds."""
        return self.adapter is not None and bool(self.validation) and self.machine.processes == 1

    def base_identity(self) -> dict[str, Any]:
        """Return what the errors of the base on the first validation set depend on."""
        chosen, first = self.plan.validation_data, self.validation[0]
        own = None if self.adapter is None else self.model.adapters[self.adapter].vocabulary
        return {
            **base_facts(self.model, device=self.machine.accelerator, dtype=base_dtype(self.plan, self.machine)),
            "prepared": self.plan.compute_dtype != "float32",
            "precision": lightning_precision(self.plan.trainer),
            "validation": [first.digest, first.recordings],
            "vocabulary": None if own is None else own.digest(),  # the references hold what its tokens can write
            "batches": [chosen.batch_size, chosen.batch_duration, str(self.plan.trainer.limit_val_batches)],
            "prefix_cache": None if self.prefix is None else self.prefix.identity(),
        }

    def adapter_identity(self) -> dict[str, Any]:
        """Return what the adapter is and its base; nothing where every weight is trained and in the checkpoint."""
        if self.adapter is None:
            return {"trained": list(self.plan.trained_parts)}
        adapter = self.model.adapters[self.adapter]
        return {
            "base": self.model.fingerprint(),
            "compute_dtype": base_dtype(self.plan, self.machine),
            **attention_facts(self.model),
            "kind": {"name": adapter.kind.name, **to_plain(adapter.kind)},
            "strategy": asdict(adapter.strategy),
            "modules": adapter.modules_text,
            "layers": to_plain(adapter.layers),
            "vocabulary": None if adapter.vocabulary is None else adapter.vocabulary.digest(),
            "start_from": None if self.start_from is None else self.start_from["digest"],
        }

    def first_utterances(self) -> Iterator[tuple[SpeechDataset, int]]:
        """Yield the utterances, by index, in the order in which a new training asks for them.

        None where it may never ask: with a prefix cache, or where other processes read or take their share.
        """
        if self.prefix is not None or self.machine.processes > 1:
            return
        if worker_count(self.plan.train_data) == 0:
            batches = self.training.plan.batches(0)[: self.length.batches]
            yield from ((self.training.dataset, index) for batch in batches for index in batch)
        if worker_count(self.plan.validation_data) == 0:
            for speech in self.validation:
                yield from ((speech.dataset, index) for index in range(len(speech.dataset)))


# Resuming


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the state of a run and its identity from a checkpoint. Raises CheckpointError."""
    try:
        state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)["overtone"]
    except Exception as error:  # torch raises whatever the damage leads to
        raise CheckpointError(f"{checkpoint} is no checkpoint of a training, or damaged: {error}") from error
    return state


def check_same_run(checkpoint: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises CheckpointError where the identities of two parts of a run differ in what both of them name."""
    settings = {key: value for key, value in now.items() if key != MACHINE}
    changed = "; ".join(find_differences(before, settings))
    if changed:
        raise CheckpointError(
            f"{checkpoint} belongs to another run: {changed}. Give the same settings, or begin a new run."
        )


def describe_machine(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in what the machines of two parts of a run differ; nothing where they do not."""
    changed = "; ".join(find_differences(before.get(MACHINE, {}), now[MACHINE]))
    return (
        changed
        and f"The machine is another one: {changed}. Sums are rounded in another order, which changes last digits."
    )


def find_differences(before: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Yield a few words for each value that has changed, under its dotted name."""
    for key in now:
        if key not in before or before[key] == now[key]:
            continue
        if isinstance(before[key], Mapping) and isinstance(now[key], Mapping):
            yield from find_differences(before[key], now[key], f"{above}{key}.")
        else:
            yield f"{above}{key} was {before[key]}, now {now[key]}"


# Result


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Files and word error rates of a finished training."""

    adapter: str | None
    """Name of the adapter; None where the whole base was trained."""
    folder: Path
    """The run folder."""
    best: Path
    """Adapter folder (or model folder) of the best step; of the last one where nothing was validated."""
    last: Path
    """Adapter folder (or model folder) of the last step."""
    nemo: Path | None
    """The adapted `.nemo` with the best weights, where one was written."""
    adapters_file: Path | None
    """The best adapter in NeMo's format, where it was written."""
    checkpoint: Path | None
    """File that a resumed run reads."""
    steps: int
    """Steps of the optimiser that were done."""
    best_step: int
    ended_early: str | None
    """The reason why the steps ended before the last one; None where they did not."""
    was_cut_off: bool
    """Something other than its validations ended it early: a time limit, a search, a callback."""
    is_new: bool
    """It did not go on from a checkpoint."""
    wer_before: float | None
    """WER of the base on the first validation set, 0..1; None without one."""
    wer_after: float | None
    """WER of the best step, 0..1."""
    wer_words: float | None
    """WER of the best step with its word part, on utterances of the first validation set; None without such a part."""
    wer_last: float | None
    """WER of the last step, 0..1."""
    hours: float
    """Training audio."""
    card: dict[str, Any]
    """Card of the best adapter, as written into its `adapter.yaml`."""
