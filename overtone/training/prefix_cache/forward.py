"""The frozen part of the base below an adapter: computed once for each utterance, each by itself, and kept.

Alone, an utterance gets the same bits whatever batch it stands in and whenever it is computed. So a run does not
depend on what is kept: not on the room there is, not on a run before it, not on where it was cut off and resumed.

Legend: B batch, S samples, F mel bins, T mel frames, T' encoder frames, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from overtone.audio.spec_augment import SpecAugment
from overtone.config import PrefixCacheSettings
from overtone.data.batching import Draw
from overtone.models.asr_model import AsrModel
from overtone.training.console import Reporter
from overtone.training.data import SpeechSet
from overtone.training.prefix_cache.loader import PrefixBatch, PrefixLoader, Row
from overtone.training.prefix_cache.plan import FEATURES, KEY, PrefixPlan
from overtone.training.prefix_cache.store import Kept, PrefixStore
from overtone.training.run_folder import writing


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The part below the cut, and what is kept of it."""

    model: AsrModel
    plan: PrefixPlan
    store: PrefixStore
    augment: SpecAugment | None
    """Masks on the features, anew in every epoch where the features are what is kept, else once for each draw."""
    note: str
    """What the user is told."""

    def loader(
        self, audio: SpeechSet, batches: Iterable[Sequence[int | Draw]], length: int, threads: int
    ) -> PrefixLoader:
        """So many batches of a set, read by so many threads."""
        return PrefixLoader(audio.dataset, batches, length=length, plan=self.plan, store=self.store, threads=threads)

    def recognise(self, batch: PrefixBatch) -> tuple[Tensor, Tensor]:
        """emissions [B, T', C], lengths [B]: the part above the cut, with the adapters that are in use."""
        x, lengths = self.activations(batch)  # [B, T', D], or features [B, T, F]
        if self.plan.cut > FEATURES:
            return self.model.recognise_above(x, lengths, self.plan.cut), lengths
        mel = x.transpose(1, 2)
        if self.augment is not None and self.model.training:
            mel = self.augment(mel, lengths)
        return self.model.recognise(mel, lengths)

    def activations(self, batch: PrefixBatch) -> tuple[Tensor, Tensor]:
        """[B, T', D], padded as without a cache, and lengths [B]; what is not there yet is computed, and kept."""
        # What was not there when the batch was read may have come with a batch before it.
        found = [row.kept or (self.store.get(row.key) if row.key else None) for row in batch.rows]
        with self.as_evaluated() if None in found else nullcontext():
            kept = [there or self.computed(row) for there, row in zip(found, batch.rows, strict=True)]
        frames, device = max(padded for _, padded in kept), self.model.device
        x = torch.stack([F.pad(x.to(device), (0, 0, 0, frames - len(x))) for x, _ in kept])
        return x, torch.tensor([len(x) for x, _ in kept], device=device)

    def computed(self, row: Row) -> Kept:
        assert row.waveform is not None
        x, padded = self.below(row.waveform, row.seed)
        kept = Kept(x.cpu(), padded)
        if row.key:
            self.store.put(row.key, kept)
        return kept

    def below(self, waveform: Tensor, seed: int | None) -> Kept:
        """Waveform [S] -> its activations at the cut [T', D], or its features [T, F]."""
        model = self.model
        with torch.autocast(model.device.type, enabled=False):
            mel, lengths = model.preprocessor(waveform.unsqueeze(0), torch.tensor([len(waveform)], device=model.device))
        if self.plan.cut == FEATURES:
            return Kept(mel[0, :, : int(lengths)].T.contiguous(), mel.size(2))
        if self.augment is not None and seed is not None:
            mel = self.augment(mel, lengths, torch.Generator().manual_seed(seed))
        x, lengths = model.encoder_in_use.below(mel, lengths, self.plan.cut)
        return Kept(x[0, : int(lengths)].clone(), x.size(1))

    @contextmanager
    def as_evaluated(self) -> Iterator[None]:
        """Without dropout, dither, adapters and gradients; nothing is taken from torch's generators."""
        training = self.model.training
        self.model.eval()
        try:
            with self.model.adapters.use(None), torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            self.model.train(training)


def make_prefix(
    model: AsrModel,
    plan: PrefixPlan,
    settings: PrefixCacheSettings,
    *,
    augment: SpecAugment | None,
    training: SpeechSet,
    validation: Sequence[SpeechSet],
    reporter: Reporter,
) -> Prefix:
    """The part below the cut, and room for the sets. Raises OvertoneError where the folder cannot be made."""
    folder = Path(settings.folder).expanduser() if settings.folder is not None else None
    if folder is not None:
        with writing(folder, key=f"{KEY}.folder"):
            folder.mkdir(parents=True, exist_ok=True)
    needed = plan.bytes_of(3600 * training.hours, drawn=True)
    needed += sum(plan.bytes_of(3600 * held.hours) for held in validation)
    room = max(settings.memory_gb, settings.disk_gb if folder is not None else 0.0) * 1e9
    if needed <= room:
        for audio in (training, *validation):
            audio.dataset.room = 0  # decoded audio is needed once for each draw, and not kept beside it
    where = f"in memory up to {settings.memory_gb:g} GB" + (f" and in {folder}" if folder is not None else "")
    short = "" if needed <= room else "; what does not fit is computed every time"
    store = PrefixStore(
        width=plan.width,
        memory=settings.memory_gb * 1e9,
        folder=folder,
        disk=settings.disk_gb * 1e9,
        owner=plan.owner,
        tell=reporter.say,
    )
    note = f"{plan.note}; about {needed / 1e6:.3g} MB, kept {where}{short}."
    return Prefix(model=model, plan=plan, store=store, augment=augment, note=note)
