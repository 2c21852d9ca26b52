"""Last stage: train the base on, on transcripts and on the frames of a teacher (see teacher.py) at once.

    torchrun --nproc-per-node 2 distil.py WORK --steps 20000 --decay 3000

One process or several; each makes its own steps, and every few steps weights and optimisers become the mean over them.
Given again it goes on from `WORK/NAME/state.pt`. The rate is constant but for its last steps, so that `--steps` may be
raised, or lowered to end early, at any time. What is judged and kept is a running mean of the weights.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from overtone import load_model, save_model
from overtone.audio.spec_augment import SpecAugment
from overtone.config.augmentor import AugmentorSettings
from overtone.config.fields import Findings, build
from overtone.data.augment import Perturbations
from overtone.data.batching import BatchPlan, Draws, StepSampler, step_seed
from overtone.data.dataset import Batch, SpeechDataset, collate, make_loader, unusable_transcripts
from overtone.data.manifest import Utterance, read_manifest
from overtone.errors import DataError
from overtone.models.asr_model import AsrModel
from overtone.training.validation import ValidationCounts

SETTINGS = Path(__file__).parent / "training" / "fundamental.yaml"
"""Masks, augmentation and duration limits are those of the stage before."""

REAL_TIMES = 3
"""Real speech comes so often in an epoch."""
CTC_LAYER, CTC_SHARE = 3, 0.3
"""The layer with CTC of its own, and its share."""
TAUGHT_LAYER = 4
"""The layer whose projection is the teacher's frames; the one above it is free for letters."""
WARMUP = 200
MEAN_EVERY = 8
"""Steps between two means over the processes."""
SAVE_EVERY = 96
KEPT = 0.998
"""What the running mean of the weights keeps in a step."""
LONGEST_GRADIENT = 2.0
CACHED_BYTES = 2 << 30
"""Decoded audio in memory, of each process."""
SEED = 17


def frames_of(manifest: Path) -> Path:
    return manifest.with_suffix(".teacher.npy")


def bounds_of(manifest: Path) -> Path:
    return manifest.with_suffix(".teacher.bounds.npy")


def read_settings() -> dict[str, Any]:
    """The section `model` of the settings of the stage before."""
    settings: dict[str, Any] = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))["model"]
    return settings


class Teacher:
    """Frames of the teacher by the id of an utterance, standardised."""

    def __init__(self, manifests: Sequence[Path]) -> None:
        self.frames = {str(path): np.load(frames_of(path), mmap_mode="r") for path in manifests}
        self.bounds = {str(path): np.load(bounds_of(path)) for path in manifests}
        sample = np.concatenate([frames[::16] for frames in self.frames.values()]).astype(np.float32)
        self.mean, self.deviation = (torch.from_numpy(x) for x in (sample.mean(axis=0), sample.std(axis=0)))
        self.width = len(self.mean)

    def targets(self, batch: Batch, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return targets [B, T', W] and where they are, [B, T'] bool, for encoder frames [B].

        An utterance that was played faster or slower has its frames stretched with it.
        """
        targets = torch.zeros(len(batch.ids), int(lengths.max()), self.width)
        places = torch.zeros(targets.shape[:2], dtype=torch.bool)
        for row, (name, length) in enumerate(zip(batch.ids, lengths.tolist(), strict=True)):
            manifest, _, line = name.rpartition(":")
            start, end = self.bounds[manifest][int(line) - 1 : int(line) + 1]
            found = torch.from_numpy(self.frames[manifest][start:end].astype(np.float32))
            found = ((found - self.mean) / self.deviation).T.unsqueeze(0)  # [1, W, frames]
            targets[row, :length] = F.interpolate(found, length, mode="linear")[0].T
            places[row, :length] = True
        return targets, places


@dataclass(kw_only=True)
class Student:
    """The model in training, the projection onto the teacher, their optimiser, and the running mean of the weights."""

    model: AsrModel
    teacher: Teacher
    augment: SpecAugment
    projection: nn.Linear
    optimiser: torch.optim.Optimizer
    mean: dict[str, Tensor]
    """The running mean of the base's tensors."""
    step: int = 0
    seconds: float = 0.0
    """Audio heard, by all processes."""

    @classmethod
    def begin(cls, model: AsrModel, teacher: Teacher, peak: float) -> Student:
        """Make a student of a trained model; its projection is fresh. peak: the learning rate."""
        projection = nn.Linear(model.encoder.width, teacher.width)
        trained = [*model.base_parameters(), *projection.parameters()]
        return cls(
            model=model.train_base(base_dropout=False),
            teacher=teacher,
            augment=SpecAugment(**read_settings()["spec_augment"]),
            projection=projection,
            optimiser=torch.optim.AdamW(trained, lr=peak, weight_decay=0.01, betas=(0.9, 0.98), fused=True),
            mean={name: tensor.clone() for name, tensor in model.base_state_dict().items()},
        )

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss of the transcripts and of the teacher's frames, scalars."""
        model, head = self.model, self.model.head
        mel, lengths = model.preprocessor(batch.waveforms, batch.lengths)
        mel = self.augment(mel, lengths)
        with torch.autocast("cpu", torch.bfloat16):
            (inner, taught, last), frames = model.encoder.within(mel, lengths, (CTC_LAYER, TAUGHT_LAYER))
            emissions = [head.emit(inner, frames), head.emit(last, frames)]
            guess = self.projection(taught)
        tokens = (frames, batch.targets, batch.target_lengths)
        first, second = (head.loss(each, *tokens, reduction="mean_volume") for each in emissions)
        targets, places = self.teacher.targets(batch, frames)
        error = (guess.float()[:, : targets.size(1)] - targets)[places].square().mean()
        return CTC_SHARE * first + (1 - CTC_SHARE) * second, error

    def learn(self, batch: Batch, *, rate: float, weight: float) -> tuple[float, float]:
        """Make one step and return its two losses. weight: of the teacher's beside that of the transcripts."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        torch.manual_seed(step_seed(SEED, self.step, rank()))
        ctc, taught = self.losses(batch)
        self.optimiser.zero_grad()
        (ctc + weight * taught).backward()
        nn.utils.clip_grad_norm_(
            [x for group in self.optimiser.param_groups for x in group["params"]], LONGEST_GRADIENT
        )
        self.optimiser.step()
        self.step += 1
        self.seconds += processes() * float(batch.lengths.sum()) / self.model.sample_rate
        return float(ctc.detach()), float(taught.detach())

    def share(self) -> None:
        """Set weights, statistics and the optimiser's moments to their mean over the processes."""
        own = [tensor for tensor in self.model.base_state_dict().values() if tensor.is_floating_point()]
        moments = [state[key] for state in self.optimiser.state.values() for key in ("exp_avg", "exp_avg_sq")]
        average([*own, *self.projection.parameters(), *moments])
        for name, tensor in self.model.base_state_dict().items():
            if tensor.is_floating_point():
                self.mean[name].lerp_(tensor, 1 - KEPT**MEAN_EVERY)

    def save(self, path: Path) -> None:
        """Write all that a training needs to go on, whole or not at all."""
        state = {
            "model": self.model.base_state_dict(),
            "mean": self.mean,
            "projection": self.projection.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, path: Path) -> None:
        """Go on from a state that `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"], strict=False)
        self.projection.load_state_dict(state["projection"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.mean, self.step, self.seconds = state["mean"], state["step"], state["seconds"]


# Data


def read_set(model: AsrModel, manifests: Sequence[Path], *, train: bool) -> tuple[SpeechDataset, BatchPlan]:
    """Read utterances and plan their batches; those that cannot be learnt from are left out of training."""
    data = read_settings()["train_ds"]
    utterances: list[Utterance] = [found for path in manifests for found in read_manifest(path)]
    if train:
        utterances = [u for u in utterances if data["min_duration"] <= u.duration <= data["max_duration"]]
    tokens = [model.tokenizer.encode(utterance.text or "") for utterance in utterances]
    problems = unusable_transcripts(
        utterances, tokens, seconds_per_frame=model.seconds_per_frame, frames_needed=model.head.frames_needed
    )
    chosen = [index for index in range(len(utterances)) if not (train and index in problems)]
    settings = build(AugmentorSettings, data["augmentor"], Findings())
    dataset = SpeechDataset(
        [utterances[index] for index in chosen],
        [tokens[index] for index in chosen],
        sample_rate=model.sample_rate,
        cache_bytes=CACHED_BYTES,
        perturb=Perturbations.from_settings(settings, sample_rate=model.sample_rate) if train else None,
    )
    durations = tuple(utterance.duration for utterance in dataset.utterances)
    if not train:
        return dataset, BatchPlan(durations=durations, batch_size=16, shuffle=False)
    plan = BatchPlan(
        durations=durations,
        batch_size=None,
        batch_duration=data["batch_duration"],
        buckets=data["num_buckets"],
        seed=SEED,
    )
    return dataset, plan


def training_batches(model: AsrModel, manifests: Sequence[Path], *, start: int, steps: int) -> Iterator[Batch]:
    """Yield this process's batches from step `start` on. Raises DataError for audio that cannot be read."""
    dataset, plan = read_set(model, manifests, train=True)
    sampler = StepSampler(plan, total=steps, start=start, rank=rank(), processes=processes())
    for batch in make_loader(dataset, Draws(sampler), workers=0, pin_memory=False):
        if isinstance(batch, DataError):
            raise batch
        yield batch


# Processes


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def average(tensors: Sequence[Tensor]) -> None:
    """Set the tensors to their mean over the processes."""
    if processes() == 1:
        return
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= processes()
    with torch.no_grad():
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


# Validation


def validate(judge: AsrModel, mean: dict[str, Tensor], dataset: SpeechDataset, plan: BatchPlan) -> dict[str, float]:
    """Return the error rates of the running mean of the weights; each process recognises its share."""
    judge.load_state_dict(mean, strict=False)
    counts = ValidationCounts()
    for indices in plan.batches(0)[rank() :: processes()]:
        batch = collate([dataset[index] for index in indices])
        if isinstance(batch, DataError):
            raise batch
        with torch.no_grad():
            emissions, lengths = judge(batch.waveforms, batch.lengths)
        counts.add(judge.head, batch, emissions, lengths)
    total = counts.tensor()
    if processes() > 1:
        dist.all_reduce(total)
    return ValidationCounts.from_tensor(total).metrics()


# Training


@dataclass(frozen=True, kw_only=True)
class Course:
    """The learning rate: a rise, a long constant stretch, a linear fall over the last steps."""

    peak: float
    steps: int
    decay: int

    def __call__(self, step: int) -> float:
        return self.peak * min(1.0, (step + 1) / WARMUP, (self.steps - step) / max(1, self.decay))


def train(arguments: argparse.Namespace) -> None:
    torch.manual_seed(SEED)
    folder: Path = arguments.work / arguments.name
    folder.mkdir(parents=True, exist_ok=True)
    data: Path = arguments.work / "manifests"
    real, state = data / "train_real.jsonl", folder / "state.pt"
    shards = [path for path in sorted((arguments.work / "synth").glob("shard_*.jsonl")) if bounds_of(path).exists()]
    model, judge = (load_model(arguments.model) for _ in range(2))
    student = Student.begin(model, Teacher([real, *shards]), arguments.rate)
    if state.exists():
        student.restore(state)
    course = Course(peak=arguments.rate, steps=arguments.steps, decay=arguments.decay)
    valid = read_set(judge, [data / "valid.jsonl"], train=False)
    losses: list[tuple[float, float]] = []
    batches = training_batches(model, [real] * REAL_TIMES + shards, start=student.step, steps=arguments.steps)
    for batch in batches:
        losses.append(student.learn(batch, rate=course(student.step), weight=arguments.weight))
        ends = student.step == arguments.steps
        if ends or student.step % MEAN_EVERY == 0:
            student.share()
        if rank() == 0 and (ends or student.step % SAVE_EVERY == 0):
            student.save(state)
        if ends or student.step % arguments.validate == 0:
            found = validate(judge, student.mean, *valid)
            if rank() == 0:
                ctc, taught = np.mean(losses, axis=0).tolist()
                progress = {"step": student.step, "hours": student.seconds / 3600, "rate": course(student.step - 1)}
                note(folder / "curve.csv", progress | {"ctc": ctc, "teacher": taught} | found)
                save_model(judge, folder / "mean", overwrite=True)
            losses.clear()


def note(path: Path, row: dict[str, float]) -> None:
    """Add a line to the curve."""
    fresh = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow({name: round(value, 6) for name, value in row.items()})
    print({name: round(value, 4) for name, value in row.items()}, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder with manifests/ and synth/, both with the teacher's frames")
    parser.add_argument("--name", default="distil", help="folder below it for state, curve and weights")
    parser.add_argument("--model", default="fundamental", help="where to begin: a name, folder or .nemo file")
    parser.add_argument("--steps", type=int, required=True, help="steps in all, of each process")
    parser.add_argument("--decay", type=int, default=3000, help="steps of the falling rate at the end")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--weight", type=float, default=15.0, help="of the teacher's loss beside CTC's")
    parser.add_argument("--validate", type=int, default=400, help="steps between two validations, a multiple of 8")
    arguments = parser.parse_args()
    if processes() > 1:
        dist.init_process_group("gloo")
    try:
        train(arguments)
    finally:
        if processes() > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
