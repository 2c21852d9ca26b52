"""The run folder, `exp_dir/name/version`: checkpoints, settings, log and TensorBoard; and finding it again."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Self

import yaml

from overtone.config import ExperimentSettings
from overtone.errors import ConfigError, OvertoneError
from overtone.files import is_at, lock, write_failure

CHECKPOINT_SUFFIX = "-last.ckpt"
"""A resumed run reads `NAME-last.ckpt`."""

LOG_FILE = "log.txt"
HPARAMS_FILE = "hparams.yaml"
COMMAND_FILE = "cmd-args.log"
RESULT_FILE = "result.json"
"""Is there once a run is complete."""
LOCK_FILE = ".lock"
"""Locked as long as a training writes into its folder, and gone afterwards."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """The folders of a run; nothing exists before `create_folder`."""

    path: Path
    """The folder of this run."""
    checkpoints: Path
    """Folder of the adapters, models, and of the checkpoint for resuming."""
    exp_dir: Path
    name: str
    version: str
    """Empty where the run has no folder of its own below the name."""

    @property
    def checkpoint(self) -> Path:
        """File of the checkpoint for resuming."""
        return self.checkpoints / f"{self.name}{CHECKPOINT_SUFFIX}"


def process_rank(devices: int = 1) -> int:
    """Return the number of this process among those of a run, with so many devices a machine.

    Process 0 leads: it alone writes and prints.
    """
    for name in ("RANK", "SLURM_PROCID"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    node, local = (os.environ.get(name, "0") for name in ("NODE_RANK", "LOCAL_RANK"))
    return int(node or 0) * devices + int(local or 0)


def plan_folder(settings: ExperimentSettings, *, default_name: str) -> RunFolder:
    """Name the folder that the settings describe. Nothing is written."""
    name = settings.name or default_name
    if settings.explicit_log_dir:
        path = Path(settings.explicit_log_dir).expanduser()
        exp_dir, version = path.parent, ""
    else:
        exp_dir = Path(settings.exp_dir or "nemo_experiments").expanduser()
        version = settings.version or ""
        if not version and not settings.resume_if_exists:
            version = _choose_version(exp_dir / name, by_date=settings.use_datetime_version)
        path = exp_dir / name / version
    checkpoints = settings.checkpoint_callback_params.dirpath
    return RunFolder(
        path=path,
        checkpoints=Path(checkpoints).expanduser() if checkpoints else path / "checkpoints",
        exp_dir=exp_dir,
        name=name,
        version=version,
    )


def _choose_version(folder: Path, *, by_date: bool) -> str:
    if by_date:
        version = stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
        number = 1
        while (folder / version).exists():
            number += 1
            version = f"{stamp}-{number}"
        return version
    numbers = [int(path.name.removeprefix("version_")) for path in folder.glob("version_*") if path.name[8:].isdigit()]
    return f"version_{max(numbers, default=-1) + 1}"


def find_checkpoint(settings: ExperimentSettings, folder: RunFolder) -> Path | None:
    """Return the checkpoint to resume from; None begins anew. Raises ConfigError where one is asked for and missing."""
    if settings.resume_from_checkpoint:
        path = Path(settings.resume_from_checkpoint).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"exp_manager.resume_from_checkpoint: {path} does not exist; name a '*{CHECKPOINT_SUFFIX}'."
            )
        return path
    if not settings.resume_if_exists:
        return None
    if folder.checkpoint.is_file():
        return folder.checkpoint
    if settings.resume_ignore_no_checkpoint:
        return None
    raise ConfigError(
        f"exp_manager.resume_if_exists: there is no {folder.checkpoint} to go on from. "
        "Give exp_manager.resume_ignore_no_checkpoint=true to begin anew where there is none."
    )


def check_folder_is_free(settings: ExperimentSettings, folder: RunFolder) -> None:
    """Raises ConfigError where the folder holds another run, which would be overwritten."""
    resumed = Path(settings.resume_from_checkpoint or "").expanduser()
    if (
        process_rank() > 0
        or settings.resume_if_exists
        or resumed.absolute() == folder.checkpoint.absolute()
        or not folder.checkpoints.is_dir()
        or all(path.name == LOCK_FILE for path in folder.checkpoints.iterdir())
    ):
        return
    raise ConfigError(
        f"{folder.checkpoints} holds a run already. Choose another folder or exp_manager.name, or go on with it: "
        "exp_manager.resume_if_exists=true."
    )


class RunLock:
    """The folders of a run, held for one training, so that no other one writes there.

    A lock ends with its process, however that ends. Where a file system has no locks, nothing is held.
    """

    def __init__(self, folder: RunFolder, *, leads: bool) -> None:
        """leads: this process writes; others hold nothing."""
        apart = not folder.checkpoints.is_relative_to(folder.path)
        self.places = ((folder.path, folder.checkpoints) if apart else (folder.path,)) if leads else ()
        self.held: dict[Path, IO[str]] = {}

    def __enter__(self) -> Self:
        """Hold those folders that exist already."""
        try:
            for place in self.places:
                if place.is_dir():
                    self.take(place)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for place, file in self.held.items():
            (place / LOCK_FILE).unlink(missing_ok=True)
            file.close()
        self.held.clear()

    def take_all(self) -> None:
        """Make the folders that do not exist yet, and hold them too. Raises as `take`."""
        for place in self.places:
            if place not in self.held:
                with explain_write_errors(place, key="exp_manager.exp_dir"):
                    place.mkdir(parents=True, exist_ok=True)
                self.take(place)

    def take(self, place: Path) -> None:
        """Hold a folder. Raises ConfigError where another training does, OvertoneError where nothing can be written."""
        with explain_write_errors(place, key="exp_manager.exp_dir"):
            while True:
                file = (place / LOCK_FILE).open("a+", encoding="utf-8")
                try:
                    lock(file.fileno(), wait=False)
                except BlockingIOError:
                    file.seek(0)
                    holder = file.read(200).strip()
                    file.close()
                    raise ConfigError(
                        f"{place} is in use by another training{f' ({holder})' if holder.isprintable() else ''}. Wait "
                        "until it has ended, or choose another folder or exp_manager.name."
                    ) from None
                if is_at(file.fileno(), place / LOCK_FILE):
                    break
                file.close()  # its holder has just ended, and removed it
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n")
            file.flush()
        self.held[place] = file


def check_loggers(settings: ExperimentSettings) -> None:
    """Raises ConfigError for a logger whose package is missing, before anything is written."""
    if not settings.create_wandb_logger:
        return
    if find_spec("wandb") is None:
        raise ConfigError(
            "exp_manager.create_wandb_logger: the package 'wandb' is not installed. Install it with "
            "'pip install overtone[wandb]', or set it to false."
        )
    options = settings.wandb_logger_kwargs or {}
    if not options.get("name") and not options.get("project"):
        raise ConfigError("exp_manager.wandb_logger_kwargs.project: W&B needs a project or a name.")


def create_folder(folder: RunFolder, settings: Mapping[str, Any], *, files: Sequence[str] = (), resuming: bool) -> None:
    """Make the folders and write the settings and the command into them. Raises OvertoneError where that fails.

    settings: plain data. files: are copied into the run folder.
    """
    with explain_write_errors(folder.path, key="exp_manager.exp_dir"):
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        (folder.path / RESULT_FILE).unlink(missing_ok=True)
        settings_file = folder.path / HPARAMS_FILE
        settings_file.write_text(yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True), "utf-8")
        with (folder.path / COMMAND_FILE).open("a" if resuming else "w", encoding="utf-8") as file:
            file.write(shlex.join(sys.argv) + "\n")
        for name in files:
            shutil.copy(name, folder.path)


def make_loggers(settings: ExperimentSettings, folder: RunFolder) -> list[Any]:
    """Make the loggers of a run: TensorBoard in the run folder, and W&B where asked for."""
    loggers: list[Any] = []
    if settings.create_tensorboard_logger:
        from lightning.pytorch.loggers import TensorBoardLogger

        options = dict(settings.summary_writer_kwargs or {})
        place = {"save_dir": folder.path.parent, "name": "", "version": folder.path.name}
        loggers.append(TensorBoardLogger(**{**options, **place}))
    if settings.create_wandb_logger:
        from lightning.pytorch.loggers import WandbLogger

        options = {key: value for key, value in (settings.wandb_logger_kwargs or {}).items() if value is not None}
        loggers.append(WandbLogger(**{"save_dir": str(folder.path), "version": folder.version or None, **options}))
    return loggers


@contextmanager
def explain_write_errors(place: Path, *, key: str = "") -> Iterator[None]:
    """Raises OvertoneError for an OSError inside the block: it names the place, and the setting that chooses it."""
    try:
        yield
    except OSError as error:
        other = f", or choose another folder with {key}" if key else ""
        raise OvertoneError(write_failure(error.filename or place, error, other=other)) from error
