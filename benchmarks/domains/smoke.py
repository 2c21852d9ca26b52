"""Noise and a tiny model in place of speech and a base: only to see that everything runs."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from benchmarks.domains.corpora import DOMAINS, GENERAL
from overtone.checkpoints.load import save_model
from overtone.models.asr_model import build_model
from overtone.tokenizers import CharTokenizer

SAMPLE_RATE = 16_000
TEXTS = ("one", "two", "a b", "four", "on", "six")


def write_base(folder: Path) -> Path:
    """A model folder with random weights."""
    labels = [" ", *string.ascii_lowercase, "'"]
    encoder: dict[str, Any] = {
        "width": 32,
        "layers": 2,
        "heads": 4,
        "kernel_size": 5,
        "subsampling": "dw_striding",
        "subsampling_factor": 4,
        "subsampling_channels": 32,
        "scale_input": False,
    }
    torch.manual_seed(0)
    settings: dict[str, dict[str, Any]] = {
        "preprocessor": {},
        "encoder": encoder,
        "decoder": {"width": 32, "classes": len(labels)},
    }
    model = build_model(settings=settings, tokenizer=CharTokenizer(labels), name="noise")
    return save_model(model, folder / "base", overwrite=True)


def write_speech(folder: Path) -> Path:
    """All corpora of the table: the digits by several speakers, the wake words by nobody known."""
    for name, domain in DOMAINS.items():
        speakers = {"prompts": ("anna",), "digits": ("anna", "ben", "carl"), "wakewords": (None,)}[name]
        write_corpus(folder / domain.folder / "train.jsonl", 12, speakers)
        write_corpus(folder / domain.folder / "test.jsonl", 4, ("dora",) if name == "digits" else speakers)
    for chosen in GENERAL.values():
        write_corpus(folder / chosen.manifest, 3, ("emil",))
    return folder


def write_corpus(manifest: Path, count: int, speakers: tuple[str | None, ...]) -> None:
    manifest.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(count)
    lines = []
    for index in range(count):
        path = manifest.parent / f"{manifest.stem}{index}.wav"
        seconds = 0.6 + 0.4 * index / count
        noise = 0.1 * generator.standard_normal(round(seconds * SAMPLE_RATE))
        soundfile.write(path, noise.astype(np.float32), SAMPLE_RATE)
        entry = {"audio_filepath": path.name, "duration": seconds, "text": TEXTS[index % len(TEXTS)]}
        speaker = speakers[index % len(speakers)]
        lines.append(json.dumps(entry if speaker is None else {**entry, "speaker": speaker}))
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
