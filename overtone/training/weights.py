"""The weights that a training writes: the best and the last adapter, the best few models, and files for NeMo."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from overtone.checkpoints.folder import WEIGHTS
from overtone.checkpoints.load import save_model
from overtone.checkpoints.nemo.adapters import check_nemo_can_hold, save_adapters
from overtone.checkpoints.nemo.model import load_base
from overtone.checkpoints.nemo.vocabulary import check_others, find_owner, refuse_vocabulary
from overtone.checkpoints.tensors import read_tensors
from overtone.config import CheckpointSettings
from overtone.errors import CheckpointError, OvertoneError
from overtone.files import replace_folder
from overtone.models.asr_model import AsrModel
from overtone.training.run_folder import CHECKPOINT_SUFFIX, RunFolder, explain_write_errors

Card = Mapping[str, Any]
WHOLE = "-whole"
"""The end of the name of the folder with the best adapter as it was trained, where it was made weaker."""
EARLY = "-early"
"""The end of the name of the folder with the adapter of early steps, for a choice among them."""


@dataclass(kw_only=True)
class SavedStep:
    """A step whose weights were written."""

    step: int
    score: float
    """Value of the metric that is monitored."""
    metrics: dict[str, float]
    path: str | None = None
    """Model file or adapter folder; None where only the best and last are written."""


@dataclass(kw_only=True)
class WeightsStore:
    """Writes adapters (or whole bases, where `adapter` is None) as a training goes on."""

    model: AsrModel
    adapter: str | None
    folder: RunFolder
    settings: CheckpointSettings
    make_card: Callable[[int, Mapping[str, float]], Card]
    """Makes the card of the weights of a step with these metrics."""
    keep_top: bool = True
    """The best few models are kept, and the best one is written at the end."""
    adapters_file: str | None = None
    """Name of the file in NeMo's format, for the best adapter."""
    keeps_early: bool = False
    """The adapter of early validations is kept: of the first, second, fourth, eighth and so on."""
    best: SavedStep | None = None
    top: list[SavedStep] = field(default_factory=list)
    early: list[SavedStep] = field(default_factory=list)
    validations: int = 0
    """Validated steps so far."""
    adapters_obstacle: str | None = field(init=False, default=None)
    """Reason why an `adapters.pt` cannot hold the adapter; None where it can, or need not."""
    nemo_obstacle: str | None = field(init=False)
    """Reason why NeMo's formats cannot hold what is trained; None where they can, or need not."""

    def __post_init__(self) -> None:
        if self.adapters_file is not None and self.adapter is not None:
            try:
                refuse_vocabulary(self.model.adapters[self.adapter])
            except CheckpointError as error:
                self.adapters_obstacle, self.adapters_file = str(error), None
        self.nemo_obstacle = find_nemo_obstacle(self.model) if self.wants_nemo else None

    @property
    def wants_nemo(self) -> bool:
        """Files for NeMo are asked for."""
        return self.settings.always_save_nemo or self.settings.save_nemo_on_train_end or self.adapters_file is not None

    @property
    def notes(self) -> list[str]:
        """Lines for the user about files that cannot be written although they are asked for."""
        if self.nemo_obstacle is None and self.adapters_obstacle is not None:
            return [f"No adapters.pt: {self.adapters_obstacle}"]
        if self.nemo_obstacle is not None and (self.settings.always_save_nemo or self.adapters_file):
            return [f"No files for NeMo: {self.nemo_obstacle}"]
        return []

    # Paths

    @property
    def label(self) -> str:
        return self.adapter or self.folder.name

    @property
    def best_path(self) -> Path:
        return self.folder.checkpoints / f"{self.label}-best"

    @property
    def last_path(self) -> Path:
        return self.folder.checkpoints / f"{self.label}-last"

    @property
    def whole_path(self) -> Path:
        """The best adapter as it was trained, where it was made weaker afterwards."""
        return self.folder.checkpoints / f"{self.label}{WHOLE}"

    @property
    def early_path(self) -> Path:
        """The adapters of early steps, a folder each."""
        return self.folder.checkpoints / f"{self.label}{EARLY}"

    @property
    def nemo_path(self) -> Path:
        return self.folder.checkpoints / f"{self.settings.prefix or self.folder.name}.nemo"

    @property
    def adapters_path(self) -> Path | None:
        return self.folder.checkpoints / self.adapters_file if self.adapters_file else None

    def top_path(self, step: int, epoch: int, score: float) -> Path:
        name = f"{self.folder.name}--{self.settings.monitor}={score:.4f}-epoch={epoch}-step={step}"
        return self.folder.checkpoints / (f"{name}.nemo" if self.saves_nemo else name)

    @property
    def saves_nemo(self) -> bool:
        return self.settings.always_save_nemo and self.nemo_obstacle is None

    # Writing

    def consider(self, *, step: int, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Take a validated step: write it as last, as best if it is, and among the best few. True if it is best."""
        score = metrics[self.settings.monitor]
        self.write(self.last_path, step, metrics)
        if any(math.isnan(value) for value in metrics.values()):
            return False
        is_best = self.best is None or self.rank(metrics) < self.rank(self.best.metrics)
        if is_best:
            remove(self.whole_path)
            self.write(self.best_path, step, metrics)
            self.best = SavedStep(step=step, score=score, metrics=dict(metrics))
        if self.keep_top and self.settings.save_top_k != 0:
            self.keep_among_top(step, epoch, score, metrics)
        self.validations += 1
        if self.keeps_early and self.validations.bit_count() == 1:  # a power of two
            path = self.early_path / f"step={step}"
            self.write(path, step, metrics)
            self.early.append(SavedStep(step=step, score=score, metrics=dict(metrics), path=str(path)))
        return is_best

    def rank(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """Smaller is better; of equal scores the one with the smaller loss."""
        sign = 1 if self.settings.mode == "min" else -1
        loss = metrics.get("val_loss", math.nan)
        return sign * metrics[self.settings.monitor], math.inf if math.isnan(loss) else loss

    def keep_among_top(self, step: int, epoch: int, score: float, metrics: Mapping[str, float]) -> None:
        """Write the step among the best few and remove what no longer belongs to them."""
        if any(saved.step == step for saved in self.top):
            return
        limit = self.settings.save_top_k
        if 0 < limit <= len(self.top) and self.rank(metrics) >= self.rank(self.worst().metrics):
            return
        path = self.top_path(step, epoch, score)
        if self.saves_nemo:
            self.write_nemo(path, step, metrics)
        else:
            self.write(path, step, metrics)
        self.top.append(SavedStep(step=step, score=score, metrics=dict(metrics), path=str(path)))
        while 0 < limit < len(self.top):
            dropped = self.worst()
            self.top.remove(dropped)
            remove(Path(str(dropped.path)))

    def worst(self) -> SavedStep:
        """Return the worst of the best few, the later one of equals."""
        return max(self.top, key=lambda saved: (self.rank(saved.metrics), saved.step))

    def write(self, path: Path, step: int, metrics: Mapping[str, float]) -> None:
        """Write the adapter as a folder, or the whole base as one."""
        with explain_write_errors(path):
            if self.adapter is None:
                save_model(self.model, path, overwrite=True)
            else:
                self.model.adapters[self.adapter].card = dict(self.make_card(step, metrics))
                self.model.adapters.save(self.adapter, path, overwrite=True)

    def write_nemo(self, path: Path, step: int, metrics: Mapping[str, float]) -> None:
        """Write the whole model with the adapter as a `.nemo` file."""
        with explain_write_errors(path):
            if self.adapter is not None:
                self.model.adapters[self.adapter].card = dict(self.make_card(step, metrics))
            save_model(self.model, path, overwrite=True)

    def keep_last(self, step: int) -> None:
        """Write the last weights as the best too, where nothing was validated."""
        self.write(self.last_path, step, {})
        remove(self.whole_path)
        self.write(self.best_path, step, {})

    def finish(self) -> None:
        """Put the best weights into the model and write the files that carry no step in their name."""
        if self.best is not None and self.adapter is not None:
            if self.whole_path.is_dir():  # a resumed run: its best adapter had been made weaker
                restore_adapter(self.model, self.adapter, self.whole_path)
                self.model.adapters.save(self.adapter, self.best_path, overwrite=True)
                remove(self.whole_path)
            restore_adapter(self.model, self.adapter, self.best_path)
        elif self.best is not None:
            load_base(self.model, read_tensors(self.best_path / WEIGHTS), str(self.best_path))
        if self.nemo_obstacle is not None:
            return
        with explain_write_errors(self.folder.checkpoints):
            if self.adapters_path is not None:
                save_adapters(self.model, self.adapters_path)
            if self.settings.save_nemo_on_train_end and self.keep_top:
                save_model(self.model, self.nemo_path, overwrite=True)

    # State, for a run that is resumed

    def state(self) -> dict[str, Any]:
        return {
            "best": vars(self.best) if self.best is not None else None,
            "top": [vars(saved) for saved in self.top],
            "early": [vars(saved) for saved in self.early],
            "validations": self.validations,
        }

    def restore(self, state: Mapping[str, Any], checkpoint: Path, *, leads: bool) -> None:
        """Go back to the state of a checkpoint, which may be that of a run in another folder.

        The weights beside it are copied, and left to the other run.
        """
        if leads:
            self.copy_weights(checkpoint)
        self.best = SavedStep(**state["best"]) if state["best"] is not None and self.best_path.is_dir() else None
        self.top = find_again(state["top"], self.folder.checkpoints)
        self.early = find_again(state.get("early", ()), self.early_path)
        self.validations = int(state.get("validations", 0))

    def copy_weights(self, checkpoint: Path) -> None:
        """Copy best, last and early weights of the run that a checkpoint belongs to, unless it is this one.

        The whole adapter comes before the best one, which a reader would take for it where it was made weaker.
        """
        label = self.adapter or checkpoint.name.removesuffix(CHECKPOINT_SUFFIX)
        whole = [] if self.best_path.exists() else [(WHOLE, self.whole_path)]
        others = [("-best", self.best_path), ("-last", self.last_path), (EARLY, self.early_path)]
        for end, path in whole + others:
            source = checkpoint.parent / f"{label}{end}"
            if source.is_dir() and not path.exists():
                with explain_write_errors(path):
                    copy_folder(source, path)


def copy_folder(source: Path, path: Path) -> None:
    """Copy a folder to a place, whole or not at all. Raises OSError."""

    def fill(fresh: Path) -> None:
        shutil.copytree(source, fresh, dirs_exist_ok=True)

    replace_folder(path, fill)


def find_again(saved: Iterable[Mapping[str, Any]], folder: Path) -> list[SavedStep]:
    """Return the steps of a run's state whose weights are in the folder."""
    steps = [SavedStep(**{**own, "path": str(folder / Path(own["path"]).name)}) for own in saved]
    return [own for own in steps if Path(str(own.path)).exists()]


def find_nemo_obstacle(model: AsrModel) -> str | None:
    """Return why NeMo's formats cannot hold the model's adapters; None where they can."""
    try:
        owner = find_owner(model, None)
        if owner is not None:
            check_others(model, owner)
        for adapter in model.adapters:
            check_nemo_can_hold(adapter, vocabulary=False)
    except CheckpointError as error:
        return str(error)
    return None


def check_finite(model: AsrModel, step: int) -> None:
    """Raises OvertoneError where a trained parameter is no finite number after a step."""
    if not all(bool(torch.isfinite(x).all()) for x in model.parameters() if x.requires_grad):
        raise OvertoneError(
            f"The trained parameters are no finite numbers after step {step}. Lower model.optim.lr, or set "
            "trainer.gradient_clip_val=1.0."
        )


def restore_adapter(model: AsrModel, name: str, folder: Path) -> None:
    """Load the parameters and card of a folder into the adapter of that name, in place."""
    from overtone.adapters.storage import read_folder

    stored = read_folder(folder, model.adapters.identity())
    adapter = model.adapters[name]
    adapter.load_tensors(stored.tensors)
    adapter.card = stored.card


def remove(path: Path) -> None:
    """Remove a file or folder that this run wrote."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
