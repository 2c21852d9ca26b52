"""Options of Lightning's Trainer: devices, strategy, precision, and the length of a run in batches."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch

from overtone.backends.fused.encoder import fast_dtype
from overtone.config import TrainerSettings
from overtone.data.batching import BatchPlan
from overtone.errors import ConfigError, did_you_mean
from overtone.training.plan import TrainingPlan

PRECISIONS = {
    "32": "32-true",
    "32-true": "32-true",
    "bf16": "bf16-mixed",
    "bf16-mixed": "bf16-mixed",
    "16": "16-mixed",
    "16-mixed": "16-mixed",
}
"""`trainer.precision` as it may be written -> Lightning's name."""

TRAINED_DTYPES = {"32-true": "float32", "bf16-mixed": "bfloat16 autocast", "16-mixed": "float16 autocast"}
"""Their names in the printed first lines; parameters and optimiser are float32 in any case."""

MOST_ROW_PROCESSES = 4
"""Most processes for `auto`: each has activations and kernels of its own in memory, and one thread."""


@dataclass(frozen=True, kw_only=True)
class RunLength:
    """Batches and steps of a run, for each process."""

    batches: int
    """Batches in all."""
    steps: int
    """Steps of the optimiser in all."""
    batches_per_epoch: int
    validate_every: int | None
    """Batches between two validations; None validates at the end alone."""


def plan_length(settings: TrainerSettings, plan: BatchPlan, *, processes: int, validates: bool) -> RunLength:
    """Take the shorter of max_steps and max_epochs. Raises ConfigError where an epoch has no batch."""
    accumulate = settings.accumulate_grad_batches
    epoch = plan.length(0, processes)
    if epoch == 0:
        raise ConfigError("trainer.limit_train_batches: no batch is left to train on; raise it.")
    limits = []
    if settings.max_steps > 0:
        limits.append(settings.max_steps * accumulate)
    if settings.max_epochs is not None and settings.max_epochs > 0:
        limits.append(sum(plan.length(number, processes) for number in range(settings.max_epochs)))
    batches = min(limits)
    return RunLength(
        batches=batches,
        steps=math.ceil(batches / accumulate),
        batches_per_epoch=epoch,
        validate_every=_validation_interval(settings, epoch) if validates else None,
    )


def _validation_interval(settings: TrainerSettings, epoch: int) -> int:
    """Return batches: a whole number is taken as such, a fraction is a share of the epoch."""
    interval = settings.val_check_interval
    if isinstance(interval, int):
        return interval
    return max(1, int(epoch * interval)) * (settings.check_val_every_n_epoch or 1)


def lightning_precision(settings: TrainerSettings) -> str:
    """Return Lightning's name of the precision. Raises ConfigError for any that would change what is trained."""
    given = str(settings.precision)
    if given not in PRECISIONS:
        raise ConfigError(
            f"trainer.precision: '{given}' is not supported.{did_you_mean(given, PRECISIONS)} "
            f"Known are {', '.join(PRECISIONS)}."
        )
    return PRECISIONS[given]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The devices of a run."""

    accelerator: str
    devices: int | list[int]
    num_nodes: int
    row_processes: int = 1
    """Processes that may share the rows of every batch."""

    @property
    def devices_each(self) -> int:
        """Devices of one machine."""
        return self.devices if isinstance(self.devices, int) else len(self.devices)

    @property
    def processes(self) -> int:
        return self.devices_each * self.num_nodes


def find_machine(settings: TrainerSettings, *, row_processes: int | str = 1) -> Machine:
    """Find the devices: −1 is every GPU, or the one processor. Raises ConfigError for GPUs that are not there.

    row_processes: as `count_row_processes` takes it; only a run of one process on a CPU has several.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wants_gpu = settings.accelerator in ("gpu", "cuda")
    if wants_gpu and not gpus:
        raise ConfigError(f"trainer.accelerator: there is no GPU for '{settings.accelerator}'; give cpu or auto.")
    on_gpu = wants_gpu or (settings.accelerator == "auto" and gpus > 0)
    given = settings.devices
    if isinstance(given, str) and given.lstrip("-").isdigit():
        given = int(given)
    if isinstance(given, tuple):
        devices: int | list[int] = list(given) if on_gpu else len(given)
    elif given in (-1, "auto"):
        devices = gpus if on_gpu else 1
    elif isinstance(given, int) and given > 0:
        devices = given
    else:
        raise ConfigError(f"trainer.devices: {given!r} is no number of devices; give −1 for all, or a list of GPUs.")
    wanted = max(devices, default=-1) + 1 if isinstance(devices, list) else devices
    if on_gpu and wanted > gpus:
        raise ConfigError(
            f"trainer.devices: {given!r} asks for more than the {gpus} GPUs here; give −1 for all of them."
        )
    accelerator = "gpu" if on_gpu else "cpu" if settings.accelerator == "auto" else settings.accelerator
    machine = Machine(accelerator=accelerator, devices=devices, num_nodes=settings.num_nodes)
    if machine.processes > 1 or accelerator != "cpu":
        return machine
    return replace(machine, row_processes=count_row_processes(row_processes))


def count_row_processes(wanted: int | str) -> int:
    """Return how many processes share the rows: as many as asked for, for `auto` one for each of PyTorch's threads.

    One where these are more than `MOST_ROW_PROCESSES`: a copy cannot have several threads, since OpenMP would wait for
    those of the process that was copied. One too where the system cannot copy a process that has threads.
    """
    if sys.platform != "linux":
        return 1
    if wanted != "auto":
        return int(wanted)
    threads = torch.get_num_threads()
    return threads if threads <= MOST_ROW_PROCESSES else 1


def base_dtype(plan: TrainingPlan, machine: Machine) -> str:
    """Return the dtype that a frozen base will compute in on its device."""
    if plan.compute_dtype != "auto":
        return plan.compute_dtype
    device = torch.device("cuda" if machine.accelerator == "gpu" else "cpu")
    return str(fast_dtype(device)).removeprefix("torch.")


def make_strategy(settings: TrainerSettings, machine: Machine) -> Any:
    """One process needs no strategy; several use DDP, with its options where the settings name them."""
    if machine.processes == 1:
        return "auto"
    given = settings.strategy
    if given is None or isinstance(given, str):
        return given if given and given != "auto" else "ddp"
    from lightning.pytorch.strategies import DDPStrategy

    return DDPStrategy(**{str(key): value for key, value in given.items() if key != "_target_"})


def trainer_options(plan: TrainingPlan, machine: Machine, length: RunLength) -> dict[str, Any]:
    """Return keyword arguments of lightning.pytorch.Trainer, for which a run is one long epoch."""
    trainer = plan.trainer
    validates = length.validate_every is not None
    return {
        "accelerator": machine.accelerator,
        "devices": machine.devices,
        "num_nodes": machine.num_nodes,
        "strategy": make_strategy(trainer, machine),
        "precision": lightning_precision(trainer),
        "max_epochs": 1,
        "max_steps": length.steps,
        "max_time": plan.experiment.max_time_per_run or trainer.max_time,
        "val_check_interval": length.validate_every if validates else 1.0,
        "check_val_every_n_epoch": None if validates else 1,
        "limit_val_batches": 1.0 if validates else 0,  # the loaders hold what trainer.limit_val_batches leaves
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradient_clip_val": trainer.gradient_clip_val or None,
        "gradient_clip_algorithm": trainer.gradient_clip_algorithm,
        "log_every_n_steps": trainer.log_every_n_steps,
        "deterministic": trainer.deterministic,
        "benchmark": trainer.benchmark,
        "detect_anomaly": trainer.detect_anomaly,
        "profiler": trainer.profiler,
        "sync_batchnorm": trainer.sync_batchnorm
        and machine.processes > 1
        and machine.accelerator == "gpu"  # torch has it for GPUs only
        and plan.adapter is None,
        "enable_model_summary": trainer.enable_model_summary,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "inference_mode": False,
    }
