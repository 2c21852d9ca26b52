"""Decoded audio as one flat file, so that a training loop reads samples without decoding anything.

`NAME.npy` holds the 16 kHz samples of all utterances end to end (int16; open it with `numpy.load`, `mmap_mode="r"`).
`NAME.jsonl` says where each utterance starts (`offset`) and how long it is (`samples`), with its text and speaker.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy
import numpy.typing
import soundfile

from manifests import Utterance

SAMPLE_RATE = 16_000


def decode(path: str) -> numpy.typing.NDArray[numpy.int16]:
    """Audio file -> int16 samples [S]; anything but 16 kHz mono is refused."""
    samples, rate = soundfile.read(path, dtype="int16")
    if rate != SAMPLE_RATE or samples.ndim != 1:
        raise SystemExit(f"{path} is {rate} Hz with shape {samples.shape}: the cache takes {SAMPLE_RATE} Hz mono")
    return numpy.asarray(samples, dtype=numpy.int16)


def write_cache(folder: Path, name: str, utterances: Sequence[Utterance]) -> None:
    """Decode the utterances into `folder/name.npy` and `folder/name.jsonl`; the index appears last."""
    folder.mkdir(parents=True, exist_ok=True)
    decoded, index, offset = [], [], 0
    for utterance in utterances:
        samples = decode(utterance.audio_filepath)
        index.append({"offset": offset, "samples": len(samples), "text": utterance.text, "speaker": utterance.speaker})
        decoded.append(samples)
        offset += len(samples)
    partial_samples, partial_index = folder / f"{name}.partial.npy", folder / f"{name}.partial"
    numpy.save(partial_samples, numpy.concatenate(decoded))
    partial_index.write_text("".join(json.dumps(entry) + "\n" for entry in index), encoding="utf-8")
    partial_samples.replace(folder / f"{name}.npy")
    partial_index.replace(folder / f"{name}.jsonl")
