"""The models and batches that are timed, with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness import Shape
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.config import OptimSettings
from overtone.inference.rows import RowThreads
from overtone.models.asr_model import AsrModel, build_model
from overtone.nets.ctc import ctc_loss
from overtone.tokenizers import CharTokenizer, Tokenizer
from overtone.training.forward import TrainingForward
from overtone.training.optim import make_optimiser
from overtone.training.row_processes import RowProcesses

ADAPTER = "timed"
PREPARED_FLOAT32 = "float32 prepared"
DTYPES = ("float32", PREPARED_FLOAT32, "bfloat16")


def make_base(shape: Shape, tokenizer: Tokenizer | None = None) -> AsrModel:
    """The model with random weights; it writes letters nobody uses, unless a tokenizer is given."""
    torch.manual_seed(0)
    encoder = {
        "width": shape.width,
        "layers": shape.layers,
        "heads": shape.heads,
        "kernel_size": shape.kernel_size,
        "subsampling": shape.subsampling,
        "subsampling_factor": shape.subsampling_factor,
        "subsampling_channels": shape.subsampling_channels,
        "scale_input": shape.scale_input,
        "dropout": 0.1,
        "dropout_pre_encoder": 0.1,
        "dropout_att": 0.1,
    }
    return build_model(
        settings={
            "preprocessor": {"pad_to": 0},
            "encoder": encoder,
            "decoder": {"width": shape.width, "classes": shape.classes},
        },
        tokenizer=tokenizer or CharTokenizer([chr(0x100 + index) for index in range(shape.classes)]),
    )


def make_model(shape: Shape, compute_dtype: str = "float32") -> AsrModel:
    """The model with a linear adapter in every layer."""
    model = make_base(shape)
    model.adapters.add(ADAPTER, LinearAdapter(dim=shape.adapter_dim))
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model.set_compute_dtype(compute_dtype.split()[0], prepared=compute_dtype == PREPARED_FLOAT32)


def make_batch(shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """waveforms [B, S], lengths [B], targets [B, U], target lengths [B]."""
    generator = torch.Generator().manual_seed(1)
    counts = [shape.tokens // shape.batch + (row < shape.tokens % shape.batch) for row in range(shape.batch)]
    waveforms = 0.1 * torch.randn(shape.batch, shape.samples, generator=generator)
    targets = torch.randint(shape.classes, (shape.batch, max(counts)), generator=generator)
    return waveforms, torch.full((shape.batch,), shape.samples), targets, torch.tensor(counts)


def training_step(shape: Shape, *, compute_dtype: str, dropout: bool) -> Callable[[], float]:
    """One step of the adapter: features, forward, loss, backward, AdamW. Returns its seconds."""
    model = make_model(shape, compute_dtype).train_only(ADAPTER, base_dropout=dropout)
    optimiser = torch.optim.AdamW(model.adapters.parameters_of(ADAPTER), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    waveforms, lengths, targets, target_lengths = make_batch(shape)

    def step() -> float:
        start = time.perf_counter()
        with model.adapters.use(ADAPTER):
            log_probs, frames = model(waveforms, lengths)
        ctc_loss(log_probs, frames, targets, target_lengths).backward()
        optimiser.step()
        optimiser.zero_grad()
        return time.perf_counter() - start

    return step


def shared_training_step(shape: Shape, *, compute_dtype: str, dropout: bool, count: int) -> Callable[[], float]:
    """The same as `overtone train` computes it: by so many processes of one thread, which share the rows."""
    model = make_model(shape, compute_dtype).train_only(ADAPTER, base_dropout=dropout)
    optimiser = make_optimiser(
        OptimSettings(lr=1e-3, betas=(0.9, 0.98)), list(model.adapters.parameters_of(ADAPTER)), fused=True
    )
    waveforms, lengths, targets, target_lengths = make_batch(shape)
    processes = RowProcesses(TrainingForward(model=model, adapter=ADAPTER, augment=None, inner=()), count)

    def step() -> float:
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads - count + 1))
        start = time.perf_counter()
        (log_probs,), frames = processes(waveforms, lengths)
        ctc_loss(log_probs, frames, targets, target_lengths).backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds = time.perf_counter() - start
        torch.set_num_threads(threads)
        return seconds

    return step


def inference(shape: Shape, *, batch: int, compute_dtype: str, choice: str = "one") -> Callable[[], float]:
    """A batch from waveforms to token ids: with the adapter (`one`), without (`base`), in every other row (`mixed`).

    Its rows are shared by threads, as in `overtone transcribe` and `overtone serve`.
    """
    model = make_model(shape, compute_dtype).eval()
    waveforms = 0.1 * torch.randn(batch, shape.samples, generator=torch.Generator().manual_seed(1))
    choices = {
        "one": [ADAPTER] * batch,
        "base": [None] * batch,
        "mixed": [ADAPTER if row % 2 else None for row in range(batch)],
    }[choice]
    threads = RowThreads(model)

    def heard(rows: list[int]) -> list[list[int]]:
        with torch.inference_mode(), model.adapters.use([choices[row] for row in rows]):
            log_probs, _ = model(waveforms[rows], torch.full((len(rows),), shape.samples))
            ids: list[list[int]] = log_probs.argmax(-1).tolist()
        return ids

    def run() -> float:
        start = time.perf_counter()
        threads(heard, range(batch), [shape.samples] * batch)
        return time.perf_counter() - start

    return run
