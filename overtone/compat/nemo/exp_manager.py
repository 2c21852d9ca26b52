"""NeMo's experiment manager for a Trainer of one's own: the run folder, loggers, checkpoints, and the best `.nemo`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor

from overtone.compat.nemo.models import ASRModel
from overtone.compat.nemo.settings import read_settings
from overtone.config import ExperimentSettings
from overtone.errors import ConfigError
from overtone.training.run_folder import check_loggers, create_folder, make_loggers, plan_folder

LAST = "last.ckpt"


@dataclass
class CallbackParams:
    """The checkpoints that are kept: `monitor` judges, `mode` says which way is better."""

    monitor: str = "val_loss"
    mode: str = "min"
    save_top_k: int = 3
    save_best_model: bool = False
    """The `.nemo` at the end holds the best weights; otherwise the last."""
    always_save_nemo: bool = False
    save_nemo_on_train_end: bool = True
    dirpath: str | None = None


@dataclass
class EarlyStoppingParams:
    """When a training ends early."""

    monitor: str = "val_loss"
    mode: str = "min"
    min_delta: float = 0.001
    patience: int = 10


@dataclass
class ExpManagerConfig:
    """The run folder and what is written into it."""

    explicit_log_dir: str | None = None
    exp_dir: str | None = None
    name: str | None = None
    version: str | None = None
    use_datetime_version: bool = True
    resume_if_exists: bool = False
    resume_ignore_no_checkpoint: bool = False
    create_tensorboard_logger: bool = True
    create_checkpoint_callback: bool = True
    checkpoint_callback_params: CallbackParams = field(default_factory=CallbackParams)
    create_early_stopping_callback: bool = False
    early_stopping_callback_params: EarlyStoppingParams = field(default_factory=EarlyStoppingParams)


def exp_manager(trainer: Any, cfg: Any = None) -> Path:
    """Give a Trainer the folder, loggers and callbacks of an experiment; returns the folder.

    cfg: an ExpManagerConfig, or the section `exp_manager` of a configuration. Raises ConfigError for what is not
    supported, and where there is nothing to resume.
    """
    settings = read_settings(ExperimentSettings, ExpManagerConfig() if cfg is None else cfg, "exp_manager")
    check_loggers(settings)
    folder = plan_folder(settings, default_name="default")
    last = folder.checkpoints / LAST
    resuming = settings.resume_if_exists and last.is_file()
    if settings.resume_if_exists and not resuming and not settings.resume_ignore_no_checkpoint:
        raise ConfigError(f"exp_manager.resume_if_exists: there is no {last} to go on from.")
    create_folder(folder, {"exp_manager": str(folder.path)}, resuming=resuming)
    loggers = make_loggers(settings, folder)
    if loggers:
        trainer.loggers = loggers
    kept = settings.checkpoint_callback_params
    if settings.create_checkpoint_callback:
        trainer.callbacks.append(
            ModelCheckpoint(
                dirpath=folder.checkpoints,
                filename=f"{folder.name}--{{{kept.monitor}:.4f}}-{{epoch}}",
                monitor=kept.monitor,
                mode=kept.mode,
                save_top_k=kept.save_top_k,
                save_last=True,
            )
        )
        trainer.callbacks.append(
            BestModel(
                folder.checkpoints / f"{folder.name}.nemo",
                monitor=kept.monitor,
                mode=kept.mode,
                best=kept.save_best_model,
                writes=kept.save_nemo_on_train_end or kept.always_save_nemo,
            )
        )
    if settings.create_early_stopping_callback:
        early = settings.early_stopping_callback_params
        trainer.callbacks.append(
            EarlyStopping(early.monitor, mode=early.mode, min_delta=early.min_delta, patience=early.patience)
        )
    if resuming:
        trainer.ckpt_path = str(last)
    return folder.path


class BestModel(Callback):
    """Keeps the trained weights of the best validation, and writes a `.nemo` at the end of a training."""

    def __init__(self, path: Path, *, monitor: str, mode: str, best: bool, writes: bool) -> None:
        self.path = path
        self.monitor = monitor
        self.sign = 1.0 if mode == "min" else -1.0
        self.best = best
        """The best weights are written, and stay in the model; otherwise the last."""
        self.writes = writes
        self.score: float | None = None
        self.weights: dict[str, Tensor] = {}
        """Trained tensors of the best validation, by name."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Raises ConfigError for a metric that the validation does not have."""
        if trainer.sanity_checking or not self.best:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics))
            raise ConfigError(f"checkpoint_callback_params.monitor: there is no '{self.monitor}'; there are {known}.")
        score = self.sign * float(trainer.callback_metrics[self.monitor])
        if self.score is None or score < self.score:
            self.score = score
            self.weights = {
                name: parameter.detach().cpu().clone()
                for name, parameter in pl_module.named_parameters()
                if parameter.requires_grad
            }

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        with torch.no_grad():
            for name, parameter in pl_module.named_parameters():
                if name in self.weights:
                    parameter.copy_(self.weights[name])
        if self.writes and trainer.is_global_zero and isinstance(pl_module, ASRModel):
            pl_module.save_to(self.path)
