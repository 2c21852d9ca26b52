"""The forward above a prefix cache: the frozen part below the adapter is computed once for each utterance.

Each utterance is computed by itself: it gets the same bits whatever batch it is in and whenever it is computed. So a
run does not depend on what is cached: not on the room there is, not on a run before it, not on where it was resumed.

Legend: B batch, S samples, F mel bins, T mel frames, T' encoder frames, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
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
from overtone.training.prefix_cache.loader import CachedUtterance, PrefixBatch, PrefixLoader
from overtone.training.prefix_cache.plan import FEATURES, KEY, PrefixPlan
from overtone.training.prefix_cache.store import Activations, PrefixStore
from overtone.training.run_folder import explain_write_errors


@dataclass(frozen=True, kw_only=True)
class PrefixForward:
    """The part above the cut, and the cache of the part below it."""

    model: AsrModel
    adapter: str | None
    plan: PrefixPlan
    store: PrefixStore
    augment: SpecAugment | None
    """Masks on the features, anew in every epoch where the features are cached, else once for each draw."""
    note: str
    """Description for the user."""

    @classmethod
    def for_sets(
        cls,
        model: AsrModel,
        adapter: str | None,
        plan: PrefixPlan,
        settings: PrefixCacheSettings,
        *,
        augment: SpecAugment | None,
        training: SpeechSet,
        validation: Sequence[SpeechSet],
        reporter: Reporter,
    ) -> PrefixForward:
        """Make the forward, and room for the sets. Raises OvertoneError where the folder cannot be made."""
        folder = Path(settings.folder).expanduser() if settings.folder is not None else None
        if folder is not None:
            with explain_write_errors(folder, key=f"{KEY}.folder"):
                folder.mkdir(parents=True, exist_ok=True)
        needed = plan.bytes_of(3600 * training.hours, drawn=True)
        needed += sum(plan.bytes_of(3600 * speech.hours) for speech in validation)
        room = max(settings.memory_gb, settings.disk_gb if folder is not None else 0.0) * 1e9
        if needed <= room:
            for speech in (training, *validation):
                speech.dataset.stop_caching()  # decoded audio is needed once for each draw, and not cached beside it
        where = f"in memory up to {settings.memory_gb:g} GB" + (f" and in {folder}" if folder is not None else "")
        short = "" if needed <= room else "; what does not fit is computed every time"
        store = PrefixStore(
            width=plan.width,
            memory=settings.memory_gb * 1e9,
            folder=folder,
            disk=settings.disk_gb * 1e9,
            owner=plan.owner,
            report=reporter.say,
        )
        note = f"{plan.note}; about {needed / 1e6:.3g} MB, kept {where}{short}."
        return cls(model=model, adapter=adapter, plan=plan, store=store, augment=augment, note=note)

    def make_loader(
        self, audio: SpeechSet, batches: Iterable[Sequence[int | Draw]], length: int, threads: int
    ) -> PrefixLoader:
        """Make a loader of so many batches of a set, read by so many threads."""
        return PrefixLoader(audio.dataset, batches, length=length, plan=self.plan, store=self.store, threads=threads)

    def forward_batch(self, batch: PrefixBatch, *, base_alone: bool) -> tuple[list[Tensor], Tensor, Tensor]:
        with self.model.adapters.use(None if base_alone else self.adapter) as selection:
            emissions, lengths = self.recognise(batch)
        return [emissions], lengths, selection.auxiliary_loss()

    def recognise(self, batch: PrefixBatch) -> tuple[Tensor, Tensor]:
        """Compute the part above the cut with the adapters that are in use: emissions [B, T', C], lengths [B]."""
        x, lengths = self.activations(batch)  # [B, T', D], or features [B, T, F]
        if self.plan.cut > FEATURES:
            return self.model.recognise_above(x, lengths, self.plan.cut)
        mel = x.transpose(1, 2)
        if self.augment is not None and self.model.training:
            mel = self.augment(mel, lengths)
        return self.model.recognise(mel, lengths)

    def activations(self, batch: PrefixBatch) -> tuple[Tensor, Tensor]:
        """Return x [B, T', D], padded as without a cache, and lengths [B]; what is missing is computed and cached."""
        # Activations that were missing when the batch was read may have come with a batch before it.
        found = [one.activations or (self.store.get(one.key) if one.key else None) for one in batch.utterances]
        if None in found:
            with self.evaluation_mode():
                for wait in (False, True):  # what another process is computing comes last
                    for row, one in enumerate(batch.utterances):
                        found[row] = found[row] or self.compute(one, wait=wait)
        rows = [there for there in found if there is not None]
        frames, device = max(padded for _, padded in rows), self.model.device
        x = torch.stack([F.pad(x.to(device), (0, 0, 0, frames - len(x))) for x, _ in rows])
        return x, torch.tensor([len(x) for x, _ in rows], device=device)

    def compute(self, utterance: CachedUtterance, *, wait: bool = True) -> Activations | None:
        """Compute the activations of an utterance and cache them; None while another process does, unless to wait."""
        assert utterance.waveform is not None
        with self.store.claim(utterance.key, wait=wait) as held:
            if not held:
                return None
            if utterance.key and (found := self.store.get(utterance.key)) is not None:
                return found  # of a process that held it before
            x, padded = self.below(utterance.waveform, utterance.seed)
            activations = Activations(x.cpu(), padded)
            if utterance.key:
                self.store.put(utterance.key, activations)
            return activations

    def below(self, waveform: Tensor, seed: int | None) -> Activations:
        """Waveform [S] -> its activations at the cut [T', D], or its features [T, F]."""
        model = self.model
        with torch.autocast(model.device.type, enabled=False):
            mel, lengths = model.preprocessor(waveform.unsqueeze(0), torch.tensor([len(waveform)], device=model.device))
        if self.plan.cut == FEATURES:
            return Activations(mel[0, :, : int(lengths)].T.contiguous(), mel.size(2))
        if self.augment is not None and seed is not None:
            mel = self.augment(mel, lengths, torch.Generator().manual_seed(seed))
        x, lengths = model.encoder_in_use.below(mel, lengths, self.plan.cut)
        return Activations(x[0, : int(lengths)].clone(), x.size(1))

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """Compute without dropout, dither, adapters and gradients; nothing is taken from torch's generators."""
        training = self.model.training
        self.model.eval()
        try:
            with self.model.adapters.use(None), torch.inference_mode(False), torch.no_grad():
                yield
        finally:
            self.model.train(training)
