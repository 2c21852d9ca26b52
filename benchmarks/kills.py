"""Kills at random moments of every kind of write: what is there afterwards is whole, the old or the new.

    python -m benchmarks.kills --kills 200

A process writes one kind again and again, two contents in turn, and is killed with SIGKILL at a random moment of its
second write or later. Then the place is read: it has to hold one of the two contents, to the last byte. One more write
has to remove what the killed ones left. The exit code is 1 where one of this does not hold.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from overtone.adapters.adapter import parameters_digest
from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.checkpoints.huggingface.peft import read_peft, write_peft
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.adapters import load_adapters, save_adapters
from overtone.files import clean_leftovers, replace_folder, replace_path
from overtone.models.asr_model import AsrModel, build_model
from overtone.serving.adapter_store.upload import place
from overtone.tokenizers import CharTokenizer

LABELS = [" ", *"abcdefghijklmnopqrstuvwxyz"]
ENCODER = {
    "width": 32,
    "layers": 2,
    "heads": 4,
    "kernel_size": 5,
    "subsampling": "dw_striding",
    "subsampling_factor": 4,
    "subsampling_channels": 32,
    "scale_input": False,
}


def small_model(kind: Kind | None = None, *, seed: int = 0) -> AsrModel:
    """A base of a few thousand weights, always the same, with an adapter of other weights for each seed."""
    torch.manual_seed(0)
    settings = {"preprocessor": {}, "encoder": ENCODER, "decoder": {"width": 32, "classes": len(LABELS)}}
    model = build_model(settings=settings, tokenizer=CharTokenizer(LABELS), name="small")
    if kind is not None:
        torch.manual_seed(seed)
        for parameter in model.adapters.add("mine", kind).parameters():
            parameter.data.normal_()
    return model


def write_checkpoint(model: AsrModel, path: Path) -> None:
    """Write a checkpoint as a training does."""
    with replace_path(path) as fresh:
        torch.save(model.adapters["mine"].tensors(), fresh)


def upload(model: AsrModel, path: Path) -> None:
    """Upload an adapter into the store around the path."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.add(model.adapters.save("mine", Path(folder) / "mine"), "mine")
    place(path.parent, path.name, buffer.getvalue(), model.adapters.identity(), nullcontext())


def first_adapter(model: AsrModel) -> str:
    """The digest of a model's only adapter."""
    (adapter,) = model.adapters
    return parameters_digest(adapter.tensors())


def load_folder(path: Path) -> str:
    model = small_model()
    model.adapters.load(path)
    return first_adapter(model)


def load_pt(path: Path) -> str:
    model = small_model()
    load_adapters(model, path)
    return first_adapter(model)


@dataclass(frozen=True, kw_only=True)
class Write:
    """One kind of write."""

    path: str
    """Name of the file or folder."""
    kind: Kind
    write: Callable[[AsrModel, Path], object]
    read: Callable[[Path], str]
    """Gives a digest of the content."""


LORA, LINEAR = LoraAdapter(rank=4), LinearAdapter(dim=4)
WRITES = {
    "adapter folder": Write(
        path="mine",
        kind=LORA,
        write=lambda model, path: model.adapters.save("mine", path, overwrite=True),
        read=load_folder,
    ),
    "upload to a store": Write(path="mine", kind=LORA, write=upload, read=load_folder),
    "model folder": Write(
        path="model",
        kind=LORA,
        write=lambda model, path: save_model(model, path, overwrite=True),
        read=lambda path: first_adapter(load_model(path)),
    ),
    ".nemo": Write(
        path="model.nemo",
        kind=LINEAR,
        write=lambda model, path: save_model(model, path, overwrite=True),
        read=lambda path: first_adapter(load_model(path)),
    ),
    "adapters.pt": Write(path="adapters.pt", kind=LINEAR, write=save_adapters, read=load_pt),
    "PEFT's folder": Write(
        path="lora",
        kind=LORA,
        write=lambda model, path: replace_folder(path, lambda fresh: write_peft(model.adapters["mine"], fresh)),
        read=lambda path: parameters_digest(read_peft(small_model(), path).tensors),
    ),
    "checkpoint of a training": Write(
        path="mine-last.ckpt",
        kind=LORA,
        write=write_checkpoint,
        read=lambda path: parameters_digest(torch.load(path, weights_only=True)),
    ),
}


def kill_once(write: Write, models: Sequence[AsrModel], path: Path, drawn: random.Random, seconds: float) -> None:
    """Kill a writer at a random moment of `seconds` after its first write."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            write.write(models[0], path)
            os.write(sending, b"x")
            while True:
                for model in models[::-1]:
                    write.write(model, path)
        finally:
            os._exit(1)
    os.close(sending)
    with open(receiving, "rb") as file:  # noqa: PTH123 (a descriptor is no path)
        assert file.read(1) == b"x", "the writer failed by itself"
    time.sleep(drawn.random() * seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def run(name: str, kills: int, folder: Path) -> tuple[int, int, list[str]]:
    """Kill the writers of one kind: how many kills left traces, how many found the first content, and failures."""
    write, drawn = WRITES[name], random.Random(name)
    models = [small_model(write.kind, seed=seed) for seed in (1, 2)]
    path, allowed, began = folder / write.path, [], time.monotonic()
    for model in models:
        write.write(model, path)
        allowed.append(write.read(path))
    seconds = 2 * (time.monotonic() - began)
    traces, firsts, failures = 0, 0, []
    for number in range(kills):
        kill_once(write, models, path, drawn, seconds)
        traces += len(list(folder.iterdir())) > 1
        try:
            found = write.read(path)
            firsts += found == allowed[0]
            if found not in allowed:
                failures.append(f"{name}, kill {number}: neither the old nor the new content")
        except Exception as error:
            failures.append(f"{name}, kill {number}: {type(error).__name__} {error}")
    write.write(models[0], path)
    clean_leftovers(folder)
    if left := sorted(each.name for each in folder.iterdir() if each != path):
        failures.append(f"{name}: {', '.join(left)} stayed")
    return traces, firsts, failures


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill writers of every kind, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kills of all kinds together")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    failures: list[str] = []
    for number, name in enumerate(WRITES):
        kills = (chosen.kills + len(WRITES) - 1 - number) // len(WRITES)
        with tempfile.TemporaryDirectory() as folder:
            traces, firsts, found = run(name, kills, Path(folder))
        failures += found
        print(
            f"{name}: {kills} kills, {traces} within a write, {firsts} found the first content, {len(found)} failures"
        )
    for failure in failures:
        print(failure)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
