"""Features of a live stream: each mel frame is computed once, and normalised when a buffer is sent off.

Offline, a recording is normalised by the statistics of its whole length. A buffer of a few seconds has others: where
it holds little but silence, its noise is blown up to the strength of speech. The statistics here are those of the
stream so far, older audio counting less and less, and come near the recording's own.
Legend: S samples, F mel bins, T mel frames.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from overtone.audio.features import STD_FLOOR, LogMel

Mel = npt.NDArray[np.float32]
Samples = npt.NDArray[np.float32]

MEMORY_SECONDS = 60.0
"""Seconds of audio that count evenly, as in a recording; audio as much older counts 1/e of that."""
MARGIN = 4
"""Frames computed before the first that is wanted, so that it does not feel the cut."""


class RawFeatures:
    """The model's mel frames before normalisation, and how they are normalised. One for all streams of a model."""

    def __init__(self, preprocessor: LogMel, *, per_encoder_frame: int) -> None:
        """preprocessor: the model's. per_encoder_frame: mel frames of one frame of its encoder."""
        self.mel = copy.deepcopy(preprocessor).cpu().requires_grad_(False).eval()
        self.mel.normalize, self.mel.fixed_mean, self.mel.fixed_std = "NA", None, None
        self.mel.pad_to = 0
        self.hop = self.mel.hop_length
        self.frames_per_second = self.mel.sample_rate / self.hop
        self.per_encoder_frame = per_encoder_frame
        self.kind = preprocessor.normalize
        """The numbers they are normalised with: per_feature, all_features, fixed or NA (none)."""
        mean, deviation = preprocessor.fixed_mean, preprocessor.fixed_std
        self.fixed = (
            (mean.cpu().numpy(), deviation.cpu().numpy()) if mean is not None and deviation is not None else None
        )
        """Mean and deviation [F, 1] that the model was trained with, where it has such."""

    def frames(self, samples: Samples) -> Mel:
        """[S] -> [F, T]"""
        waveform = torch.from_numpy(samples).unsqueeze(0)
        mel, lengths = self.mel(waveform, torch.tensor([samples.size]))
        values: Mel = mel[0, :, : int(lengths[0])].numpy()
        return values


class Statistics(NamedTuple):
    """Mean and deviation that features are normalised with."""

    mean: npt.NDArray[Any]
    """[F, 1]"""
    deviation: npt.NDArray[Any]
    """[F, 1]"""


class StreamFeatures:
    """The features of one stream; frames are numbered from its beginning."""

    def __init__(self, raw: RawFeatures) -> None:
        self.raw = raw
        self.received = 0
        """Samples so far."""
        self._samples: Samples = np.zeros(0, dtype=np.float32)
        self._samples_from = 0
        self._mel: Mel = np.zeros((raw.mel.features, 0), dtype=np.float32)
        self._mel_from = 0
        self._whole = 0
        """Frames whose window lies within the samples so far."""
        self._counted = 0
        """Frames in the statistics."""
        self._sums = np.zeros((2, raw.mel.features))
        """Sums of the values and of their squares."""
        self._weight = 0.0

    def push(self, samples: Samples) -> None:
        """The next samples [S]."""
        raw = self.raw
        self._samples = np.concatenate((self._samples, samples)) if self._samples.size else samples.copy()
        self.received += samples.size
        first = max(0, self._whole - MARGIN)
        cut = first * raw.hop - self._samples_from
        if cut > 0:
            self._samples, self._samples_from = self._samples[cut:], first * raw.hop
        mel = raw.frames(self._samples)[:, self._whole - first :]
        self._mel = np.concatenate((self._mel[:, : self._whole - self._mel_from], mel), axis=1)
        self._whole = max(self._whole, (self.received - raw.mel.n_fft // 2) // raw.hop + 1, 0)
        self._whole = min(self._whole, self.frames)

    @property
    def frames(self) -> int:
        """Frames so far; the last ones may still change."""
        return self._mel_from + int(self._mel.shape[1])

    @property
    def settled(self) -> int:
        """Frames so far that no later sample changes."""
        return self._whole

    def statistics(self, last: int) -> Statistics:
        """The statistics of everything before frame `last`; calls must not go back."""
        raw = self.raw
        if raw.kind == "NA":
            return Statistics(np.zeros(1, dtype=np.float32), np.ones(1, dtype=np.float32))
        if raw.fixed is not None:
            return Statistics(*raw.fixed)
        self._count(last)
        weight, sums = max(self._weight, 1.0), self._sums  # there may be no frame yet
        if raw.kind == "all_features":
            weight, sums = weight * sums.shape[1], np.broadcast_to(sums.sum(axis=1, keepdims=True), sums.shape)
        mean = sums[0] / weight
        variance = np.maximum(sums[1] / weight - mean**2, 0.0) * weight / max(weight - 1.0, 1.0)
        return Statistics(mean[:, None], (np.sqrt(variance) + STD_FLOOR)[:, None])

    def between(self, first: int, last: int, statistics: Statistics) -> Mel:
        """[F, last - first], normalised."""
        mel = self._mel[:, first - self._mel_from : last - self._mel_from]
        return np.asarray((mel - statistics.mean) / statistics.deviation, dtype=np.float32)

    def forget(self, first: int) -> None:
        """Drop the frames before `first`, which the statistics hold; they must not be asked for any more."""
        gone = min(first, self._whole) - self._mel_from
        if gone > 0:
            self._mel, self._mel_from = self._mel[:, gone:].copy(), self._mel_from + gone

    def _count(self, last: int) -> None:
        if last <= self._counted:
            return
        new = self._mel[:, self._counted - self._mel_from : last - self._mel_from].astype(np.float64)
        self._weight += new.shape[1]
        self._sums += np.stack((new.sum(axis=1), (new**2).sum(axis=1)))
        fade = min(1.0, MEMORY_SECONDS * self.raw.frames_per_second / self._weight)
        self._weight *= fade
        self._sums *= fade
        self._counted = last
