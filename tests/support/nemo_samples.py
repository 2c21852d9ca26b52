"""Small models for the tests of files: fresh ones, and ways to take a `.nemo` apart and put it together."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from overtone.checkpoints.nemo.archive import open_archive, write_archive
from overtone.checkpoints.nemo.yaml import read_yaml, write_yaml
from overtone.models.asr_model import AsrModel, build_model
from overtone.tokenizers import CharTokenizer, SentencePieceTokenizer, Tokenizer

LETTERS = list(" abcdefghijklmnopqrstuvwxyz'")
WORDS = "the small model hears seven short words and writes them down again while others wait"


def piece_tokenizer(size: int = 40) -> SentencePieceTokenizer:
    """A sentencepiece model trained on one line, the same every time."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter([WORDS] * 5),
        model_writer=buffer,
        vocab_size=size,
        model_type="bpe",
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return SentencePieceTokenizer(buffer.getvalue())


def small_model(tokenizer: Tokenizer | None = None, *, name: str = "small", **encoder: Any) -> AsrModel:
    """A fresh two-layer model whose every tensor is random, statistics included."""
    tokenizer = tokenizer or CharTokenizer(LETTERS)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = build_model(
            settings={
                "preprocessor": {"features": 40, "pad_to": 0},
                "encoder": {"features": 40, "width": 16, "layers": 2, "heads": 2, "kernel_size": 5, **encoder},
                "decoder": {"width": encoder.get("output_width") or 16, "classes": tokenizer.size},
            },
            tokenizer=tokenizer,
            name=name,
        )
        with torch.no_grad():
            for key, tensor in model.base_state_dict().items():
                if key.endswith("num_batches_tracked"):
                    tensor.fill_(77)
                elif not key.startswith("preprocessor."):
                    tensor.add_(0.1 * torch.rand_like(tensor))
    return model


def shake(model: AsrModel, name: str) -> None:
    """Give an adapter values that act."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(len(name))
        for parameter in model.adapters.parameters_of(name):
            parameter.add_(0.3 * torch.randn_like(parameter))


def heard(model: AsrModel, choice: str | None = None) -> Tensor:
    """log_probs of two noises of different length."""
    generator = torch.Generator().manual_seed(0)
    waveforms = 0.1 * torch.randn(2, 16_000, generator=generator)
    with torch.no_grad(), model.adapters.use(choice):
        log_probs, _ = model(waveforms, torch.tensor([16_000, 11_111]))
    return log_probs


Edit = Callable[[dict[str, Any]], Any]


def edit_nemo(
    source: Path, target: Path, *, config: Edit | None = None, weights: Edit | None = None, files: Edit | None = None
) -> Path:
    """A copy of a `.nemo` with its configuration, tensors or files changed in place."""
    with open_archive(source) as archive:
        members: dict[str, Any] = {name: archive.read(name) for name in archive.names}
    if config is not None:
        content = read_yaml(members["model_config.yaml"], str(source))
        config(content)
        members["model_config.yaml"] = write_yaml(content).encode()
    if weights is not None:
        tensors = torch.load(io.BytesIO(members["model_weights.ckpt"]), weights_only=True)
        weights(tensors)
        buffer = io.BytesIO()
        torch.save(tensors, buffer)
        members["model_weights.ckpt"] = buffer.getvalue()
    if files is not None:
        files(members)
    write_archive(target, list(members.items()))
    return target


def parts_of(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, bytes]]:
    """Configuration, tensors (as PyTorch itself reads them) and other files of a `.nemo`."""
    with open_archive(path) as archive:
        files = {name: archive.read(name) for name in archive.names}
    config = read_yaml(files.pop("model_config.yaml"), str(path))
    return config, torch.load(io.BytesIO(files.pop("model_weights.ckpt")), weights_only=True), files
