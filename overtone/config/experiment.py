"""Settings of the trainer (Lightning's keys) and of the run folder (NeMo's exp_manager)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from overtone.config.fields import bounded, only, section


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Settings of Lightning's Trainer."""

    devices: int | str | tuple[int, ...] = -1
    """Number of GPUs, or their indices; −1: all. On a CPU −1 is one process."""
    num_nodes: int = bounded(1, at_least=1)
    """Machines."""
    accelerator: str = "auto"
    """`auto`, `cpu`, `gpu`, …"""
    strategy: str | Mapping[str, Any] | None = field(
        default_factory=lambda: {
            "_target_": "lightning.pytorch.strategies.DDPStrategy",
            "gradient_as_bucket_view": True,
        }
    )
    """`auto`, `ddp`, or DDPStrategy with its fields; one process needs none and ignores it."""
    max_epochs: int | None = bounded(None, at_least=-1)
    """Passes over the data; null or −1: max_steps alone decides."""
    max_steps: int = bounded(1000, at_least=-1)
    """Steps of the optimiser; −1: max_epochs alone decides."""
    max_time: str | Mapping[str, int] | None = None
    """Longest duration, `DD:HH:MM:SS`."""
    val_check_interval: int | float = bounded(1.0, above=0)
    """Distance of two validations: a share of an epoch (a fraction), or batches (a whole number)."""
    check_val_every_n_epoch: int | None = bounded(1, at_least=1)
    """Validate after every so many epochs."""
    accumulate_grad_batches: int = bounded(1, at_least=1)
    """Batches a step."""
    gradient_clip_val: float | None = bounded(None, at_least=0)
    """Largest gradient; null or 0: no limit."""
    gradient_clip_algorithm: Literal["norm", "value"] | None = None
    """Limits the norm of all gradients (also null), or each value."""
    precision: int | str = 32
    """Precision of the trained parameters: 32, `bf16-mixed`, `16-mixed` (also bf16, 16)."""
    log_every_n_steps: int = bounded(10, at_least=1)
    """Steps between two lines of the log."""
    limit_train_batches: int | float = bounded(1.0, at_least=0)
    """Use only a share (a fraction) or a number of the batches of an epoch."""
    limit_val_batches: int | float = bounded(1.0, at_least=0)
    """The same for the validation sets."""
    limit_test_batches: int | float = bounded(1.0, at_least=0)
    """The same for the test sets."""
    enable_progress_bar: bool = True
    """Show the live line."""
    num_sanity_val_steps: int = 0
    """Without effect: the base is always scored before the first step."""
    sync_batchnorm: bool = True
    """Without effect on frozen statistics; several processes that train everything share them."""
    deterministic: bool | str | None = None
    """Only deterministic algorithms."""
    benchmark: bool = False
    """cuDNN's search for algorithms; slow where lengths vary."""
    detect_anomaly: bool = False
    """Name the operation that made a gradient that is not a number."""
    enable_checkpointing: bool = only(False, instead="exp_manager writes the checkpoints")
    logger: bool | None = only(False, None, instead="exp_manager creates the loggers")
    enable_model_summary: bool = False
    """Print Lightning's table of modules."""
    use_distributed_sampler: bool = False
    """Without effect: batches are dealt out to processes by their number."""
    fast_dev_run: bool = only(False, instead="give trainer.max_steps=1")
    callbacks: None = only(None, instead="leave it out")
    resume_from_checkpoint: None = only(None, instead="give exp_manager.resume_from_checkpoint")
    """NeMo's file of a search has it, as null."""
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    """Print at the end what took how much time."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """Choice of the steps whose weights are kept, and their files."""

    monitor: str = "val_wer"
    """Metric of the best step: `val_wer`, `val_loss` or `val_cer`, of the first validation set."""
    mode: Literal["min", "max"] = "min"
    """Smaller values are better (`min`), or larger ones (`max`)."""
    save_top_k: int = bounded(5, at_least=-1)
    """Number of the best steps that are kept; −1: all."""
    always_save_nemo: bool = True
    """Keep them as adapted `.nemo` files; otherwise as adapter folders."""
    save_nemo_on_train_end: bool = True
    """Write the best model as `NAME.nemo` at the end."""
    save_best_model: bool = True
    """Without effect: `NAME.nemo` is always the best."""
    save_last: bool = True
    """Without effect: what a resumed run needs is always kept."""
    every_n_train_steps: int | None = bounded(None, at_least=1)
    """Steps between two checkpoints for resuming, beside those after each validation."""
    dirpath: str | None = None
    """Folder; unset: `checkpoints` in the run folder."""
    filename: str | None = only(None, instead="files are named after the experiment, score and step")
    prefix: str | None = None
    """Name of the model files; unset: the experiment's."""
    postfix: str = only(".nemo", instead="leave it out")
    verbose: bool = True
    every_n_epochs: int | None = 1
    """Without effect: checkpoints follow the validations."""
    save_weights_only: bool = only(False, instead="read the adapter folders for the weights alone")
    save_on_train_epoch_end: bool = only(False, instead="leave it out")


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingSettings:
    """Ends a training that becomes no better."""

    monitor: str = "val_loss"
    """Metric that has to become better."""
    mode: Literal["min", "max"] = "min"
    """Smaller values are better (`min`), or larger ones (`max`)."""
    min_delta: float = 0.001
    """Smallest change that counts."""
    patience: int = bounded(10, at_least=0)
    """Validations without such a change before training ends."""
    verbose: bool = True
    strict: bool = True
    check_finite: bool = True
    """End where the value is not a number."""
    stopping_threshold: float | None = None
    """End once the value is this good."""
    divergence_threshold: float | None = None
    """End once the value is this bad."""
    check_on_train_epoch_end: bool | None = only(None, False, instead="leave it out")
    log_rank_zero_only: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelAverageSettings:
    """NeMo's average of the weights over the steps; not supported."""

    enable: bool = only(False, instead="leave it out")
    decay: float = 0.999
    cpu_offload: bool = False
    validate_original_weights: bool = False
    every_n_steps: int = 1


@dataclass(frozen=True, kw_only=True)
class ExperimentSettings:
    """The run folder, its files, and resuming."""

    exp_dir: str | None = None
    """Folder of all runs; unset: `nemo_experiments` here."""
    explicit_log_dir: str | None = None
    """The run folder itself, instead of exp_dir/name/version."""
    name: str | None = None
    """Name of the experiment; unset: the configuration's name."""
    version: str | None = None
    """Version of the run; unset: date and time, or `version_N`."""
    use_datetime_version: bool = True
    """An unset version is date and time."""
    resume_if_exists: bool = False
    """Go on where a run of the same name was cut off; the run folder then has no version."""
    resume_ignore_no_checkpoint: bool = False
    """Begin anew where there is nothing to resume."""
    resume_past_end: bool = False
    """Without effect: a complete run that is resumed always goes on where max_steps has become larger."""
    resume_from_checkpoint: str | None = None
    """Path of the checkpoint to go on from."""
    create_tensorboard_logger: bool = True
    summary_writer_kwargs: Mapping[str, Any] | None = None
    create_wandb_logger: bool = False
    """Needs the package `wandb`."""
    wandb_logger_kwargs: Mapping[str, Any] | None = None
    create_mlflow_logger: bool = only(False, instead="use TensorBoard or W&B")
    mlflow_logger_kwargs: Mapping[str, Any] | None = None
    create_dllogger_logger: bool = only(False, instead="use TensorBoard or W&B")
    dllogger_logger_kwargs: Mapping[str, Any] | None = None
    create_clearml_logger: bool = only(False, instead="use TensorBoard or W&B")
    clearml_logger_kwargs: Mapping[str, Any] | None = None
    create_neptune_logger: bool = only(False, instead="use TensorBoard or W&B")
    neptune_logger_kwargs: Mapping[str, Any] | None = None
    create_checkpoint_callback: bool = True
    """Keep the best steps and what resuming needs; the best and the last adapter are written in any case."""
    checkpoint_callback_params: CheckpointSettings = section(CheckpointSettings)
    create_early_stopping_callback: bool = False
    early_stopping_callback_params: EarlyStoppingSettings = section(EarlyStoppingSettings)
    create_ipl_epoch_stopper_callback: bool = only(False, instead="leave it out")
    create_preemption_callback: bool = True
    """Without effect: a run that is cut off resumes from its last checkpoint."""
    max_time_per_run: str | None = None
    """Longest duration of this run, `DD:HH:MM:SS`."""
    files_to_copy: tuple[str, ...] | None = None
    """Files to keep in the run folder."""
    log_step_timing: bool = True
    log_delta_step_timing: bool = False
    log_local_rank_0_only: bool = False
    log_global_rank_0_only: bool = False
    log_tflops_per_sec_per_gpu: bool = True
    disable_validation_on_resume: bool = True
    seconds_to_sleep: float = 5
    ema: ModelAverageSettings = section(ModelAverageSettings)
