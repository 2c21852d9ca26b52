"""Train the base from nothing, on transcripts and on the layers of a teacher (see teacher.py) at once.

    torchrun --nproc-per-node 2 distil.py WORK --steps 24000 --decay 3500

Every layer of the student but the last is to make of an utterance what the teacher's layer of the same number does. At
first a layer is given the teacher's output of the layer below (it is forced): all layers learn at the same time, each
a small task. Then each gets the student's own. Only then do the transcripts reach the taught layers: before, their
gradient undoes what these have learnt.

One process or several; each makes its own steps, and every few steps weights and optimisers become the mean over them.
Given again it goes on from `WORK/NAME/state.pt`. The rate is constant but for its last steps, so that `--steps` may be
raised, or lowered to end early, at any time. What is judged and kept is a running mean of the weights.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from batches import SEED, WORDLESS, Settings, Teacher, processes, rank, read_set, read_settings, training_batches
from manifests import bounds_of
from overtone import save_model
from overtone.audio.spec_augment import SpecAugment
from overtone.checkpoints.nemo.fresh import build_fresh
from overtone.data.batching import BatchPlan, step_seed
from overtone.data.dataset import Batch, SpeechDataset, collate
from overtone.errors import DataError
from overtone.models.asr_model import AsrModel
from overtone.nets.attention import SelfAttention
from overtone.nets.conformer import ConformerEncoder
from overtone.training.model import read_tokenizer
from overtone.training.validation import ValidationCounts

TRAINING = Path(__file__).parent / "training"
REAL_TIMES = 3
"""Real speech comes so often in an epoch."""
FORCED = (700, 1000)
"""The steps at which forcing begins to fall and ends."""
JOINED = 1500
"""The step from which the transcripts reach the taught layers."""
HIDDEN_FRAMES, SPAN = 0.25, 5
"""Once transcripts reach all layers, the last one does not hear this share of the frames, so many hidden together."""
HIDDEN_CHANNELS, BAND = 0.15, 32
"""The same of channels."""
DROPOUT = 0.2
"""In the last layer, from then on: what transcripts teach is soon learnt by heart, what the teacher does is not."""
WARMUP = 200
MEAN_EVERY = 8
"""Steps between two means over the processes."""
SAVE_EVERY = 96
KEPT, YOUNG = 0.998, 50
"""What the running mean of the weights keeps in a step, and after how many steps it begins to keep so much."""
LONGEST_GRADIENT = 2.0


@dataclass(kw_only=True)
class Student:
    """The model in training, its optimiser, and the running mean of its weights."""

    model: AsrModel
    teacher: Teacher
    augment: SpecAugment
    optimiser: torch.optim.Optimizer
    mean: dict[str, Tensor]
    """The running mean of the base's tensors."""
    step: int = 0
    seconds: float = 0.0
    """Audio heard, by all processes."""

    @classmethod
    def begin(cls, model: AsrModel, teacher: Teacher, settings: Settings, peak: float) -> Student:
        """Make a student of a model with a Conformer of more layers than the teacher. peak: the learning rate."""
        return cls(
            model=model.train_base(base_dropout=False),
            teacher=teacher,
            augment=SpecAugment(**settings["spec_augment"]),
            optimiser=torch.optim.AdamW(
                model.base_parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.98), fused=True
            ),
            mean={name: tensor.clone() for name, tensor in model.base_state_dict().items()},
        )

    def losses(self, batch: Batch, forced: float) -> tuple[Tensor, Tensor]:
        """Return the loss of the transcripts, a scalar, and the errors of the taught layers, [layers].

        forced: the share of rows whose layers are given what the teacher's layer below made.
        """
        encoder, head = self.model.encoder, self.model.head
        assert isinstance(encoder, ConformerEncoder)
        mel, lengths = self.model.preprocessor(batch.waveforms, batch.lengths)
        with torch.autocast("cpu", torch.bfloat16):
            x, lengths, context = encoder.embed(self.augment(mel, lengths), lengths)
            targets = self.teacher.targets(batch, lengths, x.size(1))
            rows = (torch.rand(len(x)) < forced)[:, None, None]
            errors = []
            for number, layer in enumerate(encoder.layers):
                x = layer(x, context)
                if number < self.teacher.layers:
                    target = targets[:, :, number]
                    errors.append((x.float() - target)[context.valid].square().mean())
                    x = torch.where(rows, target.to(x.dtype), x)
                if number == self.teacher.layers - 1:
                    x = hide(x) if self.step >= JOINED else x.detach()
            emissions = head.emit(x, lengths)
        written = batch.target_lengths > 0  # other speech has no transcript
        parts = (each[written] for each in (emissions, lengths, batch.targets, batch.target_lengths))
        ctc = head.loss(*parts, reduction="mean_volume") if written.any() else emissions.sum() * 0.0
        return ctc, torch.stack(errors)

    def use_dropout(self) -> None:
        """Let the last layer drop units, as no other does."""
        encoder = self.model.encoder
        assert isinstance(encoder, ConformerEncoder)
        last = encoder.layers[-1].train()
        for module in last.modules():
            if isinstance(module, nn.Dropout):
                module.p = DROPOUT
            elif isinstance(module, SelfAttention):
                module.dropout = DROPOUT

    def learn(self, batch: Batch, *, rate: float, weight: float) -> list[float]:
        """Make one step and return its losses: of the transcripts, and of each taught layer.

        weight: of the transcripts' loss beside that of a layer.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        if self.step >= JOINED:
            self.use_dropout()
        torch.manual_seed(step_seed(SEED, self.step, rank()))
        begins, ends = FORCED
        ctc, errors = self.losses(batch, min(1.0, max(0.0, (ends - self.step) / (ends - begins))))
        self.optimiser.zero_grad()
        (weight * ctc + errors.sum()).backward()
        nn.utils.clip_grad_norm_(self.model.base_parameters(), LONGEST_GRADIENT)
        self.optimiser.step()
        self.step += 1
        self.seconds += processes() * float(batch.lengths.sum()) / self.model.sample_rate
        return [float(ctc.detach()), *errors.tolist()]

    def share(self) -> None:
        """Set weights, statistics and the optimiser's moments to their mean over the processes."""
        own = [tensor for tensor in self.model.base_state_dict().values() if tensor.is_floating_point()]
        moments = [state[key] for state in self.optimiser.state.values() for key in ("exp_avg", "exp_avg_sq")]
        average([*own, *moments])
        kept = min(KEPT, (1 + self.step) / (YOUNG + self.step)) ** MEAN_EVERY
        for name, tensor in self.model.base_state_dict().items():
            if tensor.is_floating_point() and not torch.equal(tensor, self.mean[name]):  # a mean of -0 is 0
                self.mean[name].lerp_(tensor, 1 - kept)

    def save(self, path: Path) -> None:
        """Write all that a training needs to go on, whole or not at all."""
        state = {
            "model": self.model.base_state_dict(),
            "mean": self.mean,
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
        self.optimiser.load_state_dict(state["optimiser"])
        self.mean, self.step, self.seconds = state["mean"], state["step"], state["seconds"]


def hide(x: Tensor) -> Tensor:
    """Set spans of frames and bands of channels to zero, in every row others. x: [B, T, D]."""
    rows, frames, channels = x.shape
    hidden = [
        F.max_pool1d((torch.rand(rows, 1, size) < share / span).float(), span + 1 - span % 2, 1, span // 2)[..., :size]
        for size, share, span in ((frames, HIDDEN_FRAMES, SPAN), (channels, HIDDEN_CHANNELS, BAND))
    ]
    return x.masked_fill((hidden[0].transpose(1, 2) > 0) | (hidden[1] > 0), 0.0)


# Processes


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
    torch.set_num_threads(1)
    work: Path = arguments.work
    folder = work / arguments.name
    folder.mkdir(parents=True, exist_ok=True)
    real, wordless = (work / "manifests" / f"{name}.jsonl" for name in ("train_real", WORDLESS))
    shards = [path for path in sorted((work / "synth").glob("shard_*.jsonl")) if bounds_of(path).exists()]
    manifests = [real, *([wordless] if bounds_of(wordless).exists() else []), *shards]
    tokenizer = read_tokenizer(work / "tokenizer" / "tokenizer.model")
    model, judge = (build_fresh(TRAINING / "model.yaml", tokenizer, seed=SEED) for _ in range(2))
    settings = read_settings(arguments.data)
    student = Student.begin(model, Teacher(manifests, model.encoder.width), settings, arguments.rate)
    state = folder / "state.pt"
    if state.exists():
        student.restore(state)
    course = Course(peak=arguments.rate, steps=arguments.steps, decay=arguments.decay)
    valid = read_set(judge, [work / "manifests" / "valid.jsonl"], settings, train=False)
    losses: list[list[float]] = []
    heard = [real] * (REAL_TIMES - 1) + manifests
    for batch in training_batches(model, heard, settings, start=student.step, steps=arguments.steps):
        losses.append(student.learn(batch, rate=course(student.step), weight=arguments.weight))
        ends = student.step == arguments.steps
        if ends or student.step % MEAN_EVERY == 0:
            student.share()
        if rank() == 0 and (ends or student.step % SAVE_EVERY == 0):
            student.save(state)
        if ends or student.step % arguments.validate == 0:
            found = validate(judge, student.mean, *valid)
            if rank() == 0:
                ctc, *errors = np.mean(losses, axis=0).tolist()
                progress = {"step": student.step, "hours": student.seconds / 3600, "rate": course(student.step - 1)}
                layers = {f"layer_{number}": error for number, error in enumerate(errors, start=1)}
                note(folder / "curve.csv", progress | {"ctc": ctc} | layers | found)
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
    parser.add_argument("--steps", type=int, required=True, help="steps in all, of each process")
    parser.add_argument("--decay", type=int, default=3500, help="steps of the falling rate at the end")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--data", type=Path, default=TRAINING / "data.yaml", help="masks, augmentation, batches")
    parser.add_argument("--weight", type=float, default=0.4, help="of the transcripts' loss beside that of a layer")
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
