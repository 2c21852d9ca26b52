"""The model of a command on its device, and what is said of it."""

from __future__ import annotations

import argparse
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overtone.errors import AdapterError, UsageError

if TYPE_CHECKING:
    from overtone.models.asr_model import AsrModel


DEMO_FOLDERS = "overtone_demo*"
DEMO_ADAPTERS = "run/checkpoints/*/adapter.yaml"
BEST = "-best"


def load(
    source: str,
    device: str = "auto",
    *,
    decoder: str | None = None,
    att_context_size: Sequence[int] | None = None,
    attention: str | None = None,
) -> AsrModel:
    """The model of that path or name on the device, recognising with the head that `decoder` names.

    att_context_size, attention: as `load_model`. Raises CheckpointError, or UsageError for an absent device, head or
    context.
    """
    from overtone.checkpoints.load import load_model

    quiet_libraries()
    chosen = find_device(device)
    model = load_model(source, att_context_size=att_context_size, attention=attention)
    if decoder is not None:
        model.check_head(decoder)
        model.head_name = decoder
    return model if chosen == "cpu" else model.to(chosen)


def find_device(device: str) -> str:
    """The device of that name; `auto` is the GPU where there is one. Raises UsageError for an absent device."""
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


def computing_line(model: AsrModel, arguments: argparse.Namespace, choice: str | None) -> str:
    """A line for the user: the model, its adapter, both dtypes, the device, and the choice among several contexts."""
    from overtone.models.attention import attention_text

    with model.computing_in(arguments.dtype):
        dtype = model.compute_dtype
    adapter = f"adapter {choice}" if choice else "no adapter"
    parts = [model.name or "model", adapter, f"base in {dtype}, adapters in float32, on {model.device}"]
    return " · ".join([*parts, *filter(None, [attention_text(model)])])


def quiet_libraries() -> None:
    """Keep other people's warnings off the screen; ours are errors or part of the output."""
    warnings.filterwarnings("ignore")


def demo_adapter(folder: str) -> Path:
    """Folder of the best adapter of a run of `overtone demo`. Raises UsageError."""
    candidates = [Path(folder)] if folder else sorted(Path().glob(DEMO_FOLDERS), key=age)
    for candidate in candidates:
        found = sorted(path.parent for path in candidate.glob(DEMO_ADAPTERS))
        best = [path for path in found if path.name.endswith(BEST)] or found
        if best:
            return best[0]
    where = f"{folder} holds no adapter of a demo" if folder else f"There is no {DEMO_FOLDERS}/ here with an adapter"
    raise UsageError(f"{where}. Train one first: `overtone demo` (a few minutes), then `overtone serve --demo`.")


def learning_copy(folder: Path) -> Path:
    """A folder of adapters with a copy of the demo's, which may learn; one that is there stays as it is."""
    from overtone.adapters.storage import read_description

    adapters = folder.parent / "learning"
    own = adapters / str(read_description(folder)["name"])
    if not own.exists():
        shutil.copytree(folder, own)
    return adapters


def age(path: Path) -> float:
    """Sort key: the newest first."""
    return -path.stat().st_mtime


def load_demo(model: AsrModel, folder: Path) -> None:
    """Add the adapter of the demo to the model. Raises UsageError where it does not fit."""
    try:
        model.adapters.load(folder)
    except AdapterError as error:
        raise UsageError(f"The demo's adapter does not fit this model: {error}") from error
