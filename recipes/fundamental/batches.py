"""What the training of the base hears: batches of speech, and what the teacher's layers make of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from manifests import bounds_of, frames_of
from overtone.config.augmentor import AugmentorSettings
from overtone.config.fields import Findings, build
from overtone.data.augment import Perturbations
from overtone.data.batching import BatchPlan, Draws, StepSampler
from overtone.data.dataset import Batch, SpeechDataset, make_loader, unusable_transcripts
from overtone.data.manifest import read_manifest
from overtone.errors import DataError
from overtone.models.asr_model import AsrModel

WORDLESS = "train_wordless"
"""The manifest of speech without transcripts: it has the teacher alone."""
SAMPLED = 2000
"""Frames of a manifest that the teacher's means and deviations are taken of."""
CACHED_BYTES = 2 << 30
"""Decoded audio in memory, of each process."""
SEED = 17


Settings = dict[str, Any]
"""Masks, augmentation, duration limits and the seconds of a batch: a file of training/."""


def read_settings(path: Path) -> Settings:
    settings: Settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    return settings


class Teacher:
    """Frames of the teacher's layers by the id of an utterance, as the student's layers are to make them."""

    def __init__(self, manifests: Sequence[Path], width: int) -> None:
        """width: of a layer, the student's and the teacher's."""
        self.frames = {str(path): np.load(frames_of(path), mmap_mode="r") for path in manifests}
        self.bounds = {str(path): np.load(bounds_of(path)) for path in manifests}
        sample = np.concatenate([frames[:: 1 + len(frames) // SAMPLED] for frames in self.frames.values()])
        sample = sample.astype(np.float32)
        self.mean = torch.from_numpy(sample.mean(axis=0))
        self.deviation = torch.from_numpy(sample.std(axis=0).clip(1e-4))
        self.width, self.layers = width, sample.shape[1] // width

    def targets(self, batch: Batch, lengths: Tensor, frames: int) -> Tensor:
        """Return targets [B, T', layers, D] of a batch with `frames` encoder frames, of which a row has `lengths` [B].

        Dimensions are standardised, frames then normalised: the last thing in a layer of the student is such a
        norm. An utterance that was played faster or slower has its frames stretched with it.
        """
        targets = torch.zeros(len(batch.ids), frames, self.layers * self.width)
        for row, (name, length) in enumerate(zip(batch.ids, lengths.tolist(), strict=True)):
            manifest, _, line = name.rpartition(":")
            start, end = self.bounds[manifest][int(line) - 1 : int(line) + 1]
            found = torch.from_numpy(self.frames[manifest][start:end].astype(np.float32))
            if len(found) != length:
                found = F.interpolate(found.T.unsqueeze(0), length, mode="linear")[0].T
            targets[row, :length] = (found - self.mean) / self.deviation
        return F.layer_norm(targets.unflatten(2, (self.layers, self.width)), (self.width,))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def read_set(
    model: AsrModel, manifests: Sequence[Path], settings: Settings, *, train: bool
) -> tuple[SpeechDataset, BatchPlan]:
    """Read utterances and plan their batches; transcripts that cannot be learnt are left out of training."""
    data = settings["train_ds"]
    utterances = [found for path in manifests for found in read_manifest(path, need_text=path.stem != WORDLESS)]
    if train:
        utterances = [u for u in utterances if data["min_duration"] <= u.duration <= data["max_duration"]]
    tokens = [model.tokenizer.encode(utterance.text or "") for utterance in utterances]
    problems = unusable_transcripts(
        utterances, tokens, seconds_per_frame=model.seconds_per_frame, frames_needed=model.head.frames_needed
    )
    wordless = {index for index, utterance in enumerate(utterances) if not utterance.text}
    chosen = [index for index in range(len(utterances)) if not train or index in wordless or index not in problems]
    augmentor = build(AugmentorSettings, data["augmentor"], Findings())
    dataset = SpeechDataset(
        [utterances[index] for index in chosen],
        [tokens[index] for index in chosen],
        sample_rate=model.sample_rate,
        cache_bytes=CACHED_BYTES,
        perturb=Perturbations.from_settings(augmentor, sample_rate=model.sample_rate) if train else None,
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


def training_batches(
    model: AsrModel, manifests: Sequence[Path], settings: Settings, *, start: int, steps: int
) -> Iterator[Batch]:
    """Yield this process's batches from step `start` on. Raises DataError for audio that cannot be read."""
    dataset, plan = read_set(model, manifests, settings, train=True)
    sampler = StepSampler(plan, total=steps, start=start, rank=rank(), processes=processes())
    for batch in make_loader(dataset, Draws(sampler), workers=0, pin_memory=False):
        if isinstance(batch, DataError):
            raise batch
        yield batch
