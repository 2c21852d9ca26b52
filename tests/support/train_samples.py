"""A few seconds of noise with transcripts, and a model to train on them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from lightning.pytorch.callbacks import timer

from overtone.checkpoints.load import save_model
from overtone.config import Settings, load_settings
from overtone.training.callback import TrainingCallback
from support.small_models import add_trained, small_model

TEXTS = ("one", "two words", "a third line", "four", "and five", "six")
SAMPLE_RATE = 16_000
SCRIPT = """
import os, signal, sys
from overtone.training.train import run_training
from overtone.checkpoints.load import load_model
from overtone.training.console import Reporter
from pathlib import Path
from support.train_samples import settings_for
folder, reporter = Path(sys.argv[1]), Reporter()
say, last = reporter.say, os.environ.get("LAST_LINE")
def say_or_die(text):
    say(text)
    if last is not None and text.startswith(last):
        os.killpg(0, signal.SIGKILL)
reporter.say = say_or_die
run_training(settings_for(folder, *sys.argv[2:]), model=load_model(folder / "base"), reporter=reporter)
"""


def write_corpus(folder: Path, *, count: int = 12, name: str = "train", **fields: Any) -> Path:
    """A manifest of `count` utterances of 0.8 to 1.6 seconds; `fields` are added to every line."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(count)
    lines = []
    for index in range(count):
        seconds = 0.8 + 0.8 * index / count
        path = folder / f"{name}{index}.wav"
        noise = 0.1 * generator.standard_normal(round(seconds * SAMPLE_RATE))
        soundfile.write(path, noise.astype(np.float32), SAMPLE_RATE)
        entry = {"audio_filepath": path.name, "duration": seconds, "text": TEXTS[index % len(TEXTS)]}
        lines.append(json.dumps({**entry, **fields}))
    manifest = folder / f"{name}.json"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def settings_for(folder: Path, *overrides: str, validation: bool = True) -> Settings:
    """A training of six steps on a corpus of twelve utterances in `folder`, whose run folder is `folder/run`."""
    train = folder / "train.json"
    if not train.exists():
        write_corpus(folder)
        write_corpus(folder, count=3, name="valid")
    return load_settings(
        [
            "model.nemo_model=given",
            "model.adapter.adapter_name=mine",
            "model.adapter.words=off",
            "model.optim.lr=0.001",
            f"model.train_ds.manifest_filepath={train}",
            *([f"model.validation_ds.manifest_filepath={folder / 'valid.json'}"] if validation else []),
            "model.train_ds.batch_size=4",
            "model.train_ds.num_workers=0",
            "model.validation_ds.num_workers=0",
            "model.adapter.linear.dim=4",
            "trainer.max_steps=6",
            "trainer.log_every_n_steps=1",
            f"exp_manager.explicit_log_dir={folder / 'run'}",
            "compute_dtype=float32",
            *overrides,
        ]
    )


def losses(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows, by name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, dict[int, float]] = {}
    for file in sorted(folder.glob("events*")):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, {}).update({event.step: event.value for event in events.Scalars(name)})
    return {name: sorted(values.items()) for name, values in found.items()}


def script(folder: Path, overrides: list[str]) -> list[str]:
    """The words that run a training in a process of its own, of the model in `folder/base`."""
    (folder / "train.py").write_text(SCRIPT)
    return [sys.executable, "-u", str(folder / "train.py"), str(folder), *overrides]


def environment() -> dict[str, str]:
    """For `script`: it finds the package and these samples."""
    here = Path(__file__).resolve().parents[1]
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "OMP_NUM_THREADS": "1"}


def kill_at_step(folder: Path, overrides: list[str], *, at_step: int) -> None:
    """Run a training in processes of its own, which are all killed once the step has been shown."""
    finished = subprocess.run(
        script(folder, overrides),
        env={**environment(), "LAST_LINE": f"step {at_step}/"},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )
    assert finished.returncode == -signal.SIGKILL


def same_adapters(first: Path, second: Path) -> bool:
    """Whether two adapter folders of the small model hold the same tensors."""
    a, b = (small_model().adapters.load(folder).tensors() for folder in (first, second))
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def search_words(folder: Path) -> list[str]:
    """Words of a search of three trainings, the second of which fails: its adapter is there already."""
    model = small_model()
    add_trained(model, "taken")
    save_model(model, folder / "base")
    return [
        f"model.nemo_model={folder / 'base'}",
        "model.adapter.adapter_name=one,taken,three",
        f"model.train_ds.manifest_filepath={write_corpus(folder)}",
        f"model.validation_ds.manifest_filepath={write_corpus(folder, count=3, name='valid')}",
        "model.train_ds.num_workers=0",
        "model.validation_ds.num_workers=0",
        "trainer.max_steps=1",
        "trainer.devices=1",
        f"exp_manager.explicit_log_dir={folder / 'runs'}",
    ]


def let_batches_take_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the clock of Lightning's limits of time go on with batches, by a second each, and with nothing else."""
    clock = 0.0
    begin = TrainingCallback.on_train_batch_start

    def tick(self: TrainingCallback, *arguments: Any) -> None:
        nonlocal clock
        clock += 1.0
        begin(self, *arguments)

    monkeypatch.setattr(TrainingCallback, "on_train_batch_start", tick)
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: clock))
