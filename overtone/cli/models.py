"""Models and adapters, by the names that a user types."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from overtone.errors import AdapterError, UsageError, did_you_mean

if TYPE_CHECKING:
    from overtone.models.asr_model import AsrModel

BASE = ("null", "none", "base", "")
"""Words for no adapter at all."""

NEMO_SUFFIX = ".pt"
DESCRIPTION = "adapter.yaml"


def load(source: str, device: str = "auto") -> AsrModel:
    """The model of that path or name on the device. Raises CheckpointError, or UsageError for an absent device."""
    from overtone.checkpoints.load import load_model

    quiet_libraries()
    chosen = find_device(device)
    model = load_model(source)
    return model if chosen == "cpu" else model.to(chosen)


def find_device(device: str) -> str:
    import torch

    present = ["cpu"]
    if torch.cuda.is_available():
        present.append("cuda")
    if torch.backends.mps.is_available():
        present.append("mps")
    if device == "auto":
        return "cuda" if "cuda" in present else "cpu"
    if device not in present:
        raise UsageError(f"This PyTorch finds no device '{device}'. It finds {', '.join(present)}.")
    return device


def choose(model: AsrModel, text: str | None) -> str | None:
    """What `--adapter` names, loaded where it is a path: a chain of names, `@file`, or None for the base.

    Raises AdapterError for what is neither an adapter of the model nor on disk.
    """
    if text is None or text.lower() in BASE:
        return None
    if text == "@file" or text in model.adapters:
        return text
    if _is_stored(text):
        return "+".join(_load_stored(model, text))
    return "+".join(name for part in text.split("+") for name in _names(model, part))


def _names(model: AsrModel, part: str) -> list[str]:
    if part in model.adapters:
        return [part]
    if _is_stored(part):
        return _load_stored(model, part)
    present = ", ".join(model.adapters.names) or "none"
    near = did_you_mean(part, model.adapters.names)
    if Path(part).exists():
        raise AdapterError(f"{part} is no adapter: a folder with {DESCRIPTION}, or a {NEMO_SUFFIX} file of NeMo, is.")
    raise AdapterError(
        f"Adapter '{part}' is neither in the model nor a folder.{near} Adapters of this model: {present}. "
        "A path to the folder of a saved adapter does as well."
    )


def _is_stored(text: str) -> bool:
    path = Path(text)
    return (path / DESCRIPTION).is_file() or (path.suffix == NEMO_SUFFIX and path.is_file())


def _load_stored(model: AsrModel, text: str) -> list[str]:
    path = Path(text)
    return [_load_folder(model, path)] if path.is_dir() else _load_file(model, path)


def _load_folder(model: AsrModel, folder: Path) -> str:
    """Load under the folder's own name for it, or under a free one where another adapter has that name."""
    from overtone.adapters.storage import described_digest, read_description

    description = read_description(folder)
    name = _place_for(model, str(description["name"]), described_digest(folder, description))
    return name if name in model.adapters else model.adapters.load(folder, name=name).name


def _load_file(model: AsrModel, path: Path) -> list[str]:
    """Load the adapters that a file of NeMo has enabled, or its only one, named as those of folders are."""
    from overtone.adapters.adapter import digest_of, parameters_digest
    from overtone.checkpoints.nemo.adapters import add_nemo_adapter, hosts_in, own_tensors, read_adapters_pt, read_kind

    stored = read_adapters_pt(path)
    chosen = [adapter for adapter in stored if adapter.described.enabled or len(stored) == 1]
    if not chosen:
        held = ", ".join(adapter.name for adapter in stored) or "none"
        raise AdapterError(
            f"{path} has none of its adapters enabled; it holds {held}. Load the one that you mean into a model with "
            "overtone.checkpoints.nemo.adapters.load_adapters(model, path, [name]), and save that."
        )
    names = []
    for adapter in chosen:
        kind, strategy = read_kind(adapter.described, str(path))
        hosts = hosts_in(model, adapter, str(path))
        tensors = own_tensors(model, kind, adapter.described, hosts, str(path))
        name = _place_for(model, adapter.name, digest_of(kind, strategy, parameters_digest(tensors)))
        if name not in model.adapters:
            add_nemo_adapter(model, adapter.described, hosts, str(path), name=name)
        names.append(name)
    return names


def _place_for(model: AsrModel, name: str, digest: str) -> str:
    """The name of the model's own adapter of that digest, or a free name where another adapter has this one."""
    place, number = name, 2
    while place in model.adapters and model.adapters[place].digest() != digest:
        place, number = f"{name}-{number}", number + 1
    return place


def computing_line(model: AsrModel, arguments: argparse.Namespace, choice: str | None) -> str:
    """What is about to compute, in which numbers, and where."""
    with model.computing_in(arguments.dtype):
        dtype = model.compute_dtype
    adapter = f"adapter {choice}" if choice else "no adapter"
    return f"{model.name or 'model'} · {adapter} · base in {dtype}, adapters in float32, on {model.device}"


def quiet_libraries() -> None:
    """Keep other people's warnings off the screen; ours are errors or part of the output."""
    warnings.filterwarnings("ignore")
