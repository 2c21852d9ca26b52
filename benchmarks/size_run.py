"""One process with one checkpoint, for benchmarks.sizes: from its start to the first text, then more text, then steps.

python size_run.py overtone|nemo BEGUN MODEL WAV DTYPE SECONDS ...

Runs in the environment of either; prints one line of JSON. BEGUN is the time at which the process was started. Times
are by the clock, and (` processor`) of the processor, which other processes disturb less.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import wave
from collections.abc import Callable
from typing import Any

ROWS, SECONDS, TOKENS = 4, 8, 25
"""The batch of a training step: rows, and the seconds and tokens of each."""
Text = Callable[[Any, Any], list[str]]
"""Waveforms [B, S], lengths [B] -> a text for each row."""


def peak() -> float:
    """The largest memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def read_wave(path: str) -> Any:
    """A recording of 16 kHz and 16 bits as [S] float32."""
    import torch

    with wave.open(path) as file:
        content = bytearray(file.readframes(file.getnframes()))
    return torch.frombuffer(content, dtype=torch.int16).float() / 32768


def load_overtone(path: str, dtype: str) -> tuple[Text, Callable[[Any], Callable[[], float]]]:
    import torch

    import overtone

    model = overtone.load_model(path)
    if dtype != "float32":
        model.set_compute_dtype(dtype.split()[0], prepared=dtype == "float32 prepared")

    def make_step(waveforms: Any) -> Callable[[], float]:
        model.adapters.add("timed", overtone.LinearAdapter(dim=32))
        model.train_only("timed")
        parameters = list(model.adapters.parameters_of("timed"))
        optimiser = torch.optim.AdamW(parameters, lr=1e-3)
        targets = torch.randint(model.tokenizer.size, (ROWS, TOKENS))
        lengths, sizes = torch.full((ROWS,), waveforms.size(1)), torch.full((ROWS,), TOKENS)

        def step() -> float:
            with model.adapters.use("timed"):
                emissions, frames = model(waveforms, lengths)
                loss = model.head.loss(emissions, frames, targets, sizes)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            return float(loss.detach())

        return step

    return lambda waveforms, lengths: [found.text for found in model.transcribe(waveforms, lengths)], make_step


def load_nemo(path: str, _: str) -> tuple[Text, Callable[[Any], Callable[[], float]]]:
    import logging

    import nemo.utils  # type: ignore[import-not-found]
    import torch
    from nemo.collections.asr.models import ASRModel  # type: ignore[import-not-found]
    from nemo.collections.common.parts.adapter_modules import LinearAdapterConfig  # type: ignore[import-not-found]

    nemo.utils.logging.setLevel(logging.ERROR)
    model = ASRModel.restore_from(path, map_location="cpu").eval()
    model.preprocessor.featurizer.dither = 0.0

    def text(waveforms: Any, lengths: Any) -> list[str]:
        model.eval()
        with torch.inference_mode():
            first, frames, *_ = model(input_signal=waveforms, input_signal_length=lengths)
            if hasattr(model, "joint"):
                found = model.decoding.rnnt_decoder_predictions_tensor(first, frames, return_hypotheses=False)
            else:
                found = model.decoding.ctc_decoder_predictions_tensor(first, frames, return_hypotheses=False)
        return [getattr(each, "text", each) for each in found]

    def make_step(waveforms: Any) -> Callable[[], float]:
        settings = model.to_config_dict()
        width = settings.encoder.get("d_model") or settings.encoder.jasper[-1].filters
        model.replace_adapter_compatible_modules()
        model.add_adapter("timed", LinearAdapterConfig(in_features=width, dim=32))
        model.set_enabled_adapters("timed", enabled=True)
        model.freeze()
        model.train()
        model.unfreeze_enabled_adapters()
        optimiser = torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], lr=1e-3)
        lengths, sizes = torch.full((ROWS,), waveforms.size(1)), torch.full((ROWS,), TOKENS)
        durations = bool(settings.get("joint", {}).get("num_extra_outputs"))
        targets = torch.randint(model.tokenizer.vocab_size, (ROWS, TOKENS))

        def step() -> float:
            first, frames, *_ = model(input_signal=waveforms, input_signal_length=lengths)
            if durations:  # its TDT loss wants a GPU: the encoder alone, both ways
                loss = first.square().mean()
            elif hasattr(model, "joint"):
                predicted, target_sizes, _ = model.decoder(targets=targets, target_length=sizes)
                joint = model.joint(encoder_outputs=first, decoder_outputs=predicted)
                loss = model.loss(log_probs=joint, targets=targets, input_lengths=frames, target_lengths=target_sizes)
            else:
                loss = model.loss(log_probs=first, targets=targets, input_lengths=frames, target_lengths=sizes)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            return float(loss.detach())

        return step

    return text, make_step


def timed(name: str, work: Callable[[], Any], rounds: int, parts: int = 1) -> dict[str, float]:
    """The least seconds of a round, by the clock and of the processor, for each of so many parts of the work."""
    found = []
    for _ in range(rounds):
        begun = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    return {name: min(each[0] for each in found) / parts, f"{name} processor": min(each[1] for each in found) / parts}


def since(name: str, begun: float) -> dict[str, float]:
    """The seconds since the process was started, and the largest memory so far."""
    return {name: time.time() - begun, f"{name} processor": time.process_time(), f"{name} peak": peak()}


def main() -> None:
    peer, begun, model, recording, dtype, *lengths = sys.argv[1:]
    text, make_step = {"overtone": load_overtone, "nemo": load_nemo}[peer](model, dtype)
    import torch

    figures: dict[str, Any] = since("loaded", float(begun))
    speech = read_wave(recording)
    first = int(lengths[0]) * 16_000
    words = text(speech[None, :first], torch.tensor([first]))
    figures |= since("text", float(begun)) | {"characters": len(words[0])}
    for seconds in map(int, lengths):
        row, size = speech[None, : seconds * 16_000], torch.tensor([seconds * 16_000])
        figures |= timed(f"{seconds} s", lambda row=row, size=size: text(row, size), 2, seconds)  # type: ignore[misc]
    figures["inference peak"] = peak()
    rows = speech[: ROWS * SECONDS * 16_000].view(ROWS, -1)
    figures |= timed("step", make_step(rows), 3)
    figures["step peak"] = peak()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
