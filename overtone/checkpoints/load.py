"""Load a model by path or name, and save it."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Literal

from overtone.checkpoints.folder import Storage, is_native, read_native, write_native
from overtone.checkpoints.huggingface.model import is_huggingface, read_huggingface, write_huggingface
from overtone.checkpoints.huggingface.peft import is_peft
from overtone.checkpoints.nemo.model import CONFIG, WEIGHTS, read_nemo, write_nemo
from overtone.errors import CheckpointError, did_you_mean
from overtone.models.asr_model import AsrModel
from overtone.models.attention import choose_attention

EMBEDDED = ("fundamental",)
"""Models that come with the package."""
Layout = Literal["huggingface"]
HUGGINGFACE: Layout = "huggingface"
HUB_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$")
PLAIN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
NEMO_NAMES = re.compile(r"^(stt_[a-z]{2,3}_\w+|(parakeet|nemotron)[_-][\w.-]+)$")
"""Names that NeMo knows without an organisation: all are NVIDIA's."""
HUB_FILES = (["*.nemo"], ["*.yaml", "*.json", "*.safetensors", "*.model", "*.vocab", "*.txt"])
"""Patterns of the files that are fetched from a hub: a `.nemo`, or else those of a model folder."""


def load_model(
    source: str | Path,
    *,
    adapters: bool = True,
    att_context_size: Sequence[int] | None = None,
    attention: str | None = None,
) -> AsrModel:
    """Load a model in float32 with its adapters, none of them in use; `adapters=False` leaves them in the file.

    att_context_size: of a model that was trained with several attention contexts the one that acts, [left, right] in
    encoder frames; the first unless given. Raises UsageError for one that it was not trained with.
    attention: `rel_pos_local_attn` lets full attention become local, with att_context_size as its window, so that hours
    are recognised in one piece; `rel_pos` lets local attention become full.
    """
    model = find_model(source, adapters=adapters)
    choose_attention(model, att_context_size, attention)
    return model


def find_model(source: str | Path, *, adapters: bool = True) -> AsrModel:
    """Load a model as its file has it.

    `source`: the path of a `.nemo` or of a model folder, the name of an embedded model (`fundamental`; a folder of
    that name is `./fundamental`), of one in the cache, or a hub's (`nvidia/stt_en_conformer_ctc_small`).
    Raises CheckpointError where nothing is found, naming every place looked at, or where it cannot be read.
    """
    text, path = os.fspath(source), Path(source).expanduser()
    if text in EMBEDDED:
        return read_path(embedded_folder(text), adapters=adapters)
    if path.exists():
        return read_path(path, adapters=adapters)
    looked = [f"the file or folder {path}"]
    if isinstance(source, str) and not text.endswith(".nemo"):
        looked.append(f"the embedded models ({', '.join(EMBEDDED)})")
        if PLAIN_NAME.match(text):
            for candidate in (cache_folder() / text, cache_folder() / f"{text}.nemo"):
                if candidate.exists():
                    return read_path(candidate, adapters=adapters)
            looked.append(f"{cache_folder() / text} and {cache_folder() / text}.nemo")
        repository = f"nvidia/{text}" if NEMO_NAMES.match(text) else text
        if HUB_NAME.match(repository):
            return read_path(fetch(repository, looked), adapters=adapters)
    raise CheckpointError(
        f"No model '{text}'.{did_you_mean(text, EMBEDDED)} Looked for {'; '.join(looked)}. "
        "Give the path of a .nemo file or model folder, an embedded name, or a hub's name such as nvidia/NAME."
    )


def save_model(
    model: AsrModel,
    path: str | Path,
    *,
    overwrite: bool = False,
    storage: Storage = "float32",
    layout: Layout | None = None,
    enabled: Collection[str] | None = None,
) -> Path:
    """Write the model with all its adapters: a path ending in `.nemo` for NeMo, any other becomes a model folder.

    Whole or not at all; what exists is kept unless `overwrite`. `storage` (float16, bfloat16) is for folders.
    layout: "huggingface" makes a folder that transformers reads. Raises CheckpointError.
    enabled: the adapters that the file has enabled: NeMo lets all of them act, `use("@file")` means them. None: as the
    model's own file had it, and in a `.nemo` all that are new. Raises AdapterError for an unknown name.
    """
    enabled = None if enabled is None else [model.adapters[name].name for name in enabled]
    path = Path(path).expanduser()
    if path.suffix in (".pt", ".ckpt", ".safetensors", ".yaml"):
        raise CheckpointError(
            f"A whole model is not written as {path.suffix}: end the path in .nemo, or give a folder without a suffix."
        )
    if layout not in (None, HUGGINGFACE):
        raise CheckpointError(f"layout '{layout}' is unknown. Allowed: {HUGGINGFACE}, or None for NeMo's and our own.")
    if layout is not None:
        if path.suffix == ".nemo":
            raise CheckpointError(f"{path.name} would be a .nemo; the layout {layout} is a folder without that suffix.")
        if enabled is not None:
            raise CheckpointError(f"The layout {layout} has no adapters that are enabled; leave `enabled` out.")
        write_huggingface(model, path, storage=storage, overwrite=overwrite)
        return path
    if path.suffix != ".nemo":
        write_native(model, path, storage=storage, overwrite=overwrite, enabled=enabled)
        return path
    if storage != "float32":
        raise CheckpointError(f"A .nemo holds float32, not {storage}; save a folder for half precision.")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} exists already; choose another name, or allow overwriting.")
    write_nemo(model, path, enabled=enabled)
    return path


def read_path(path: Path, *, adapters: bool = True) -> AsrModel:
    """Load a `.nemo`, packed or unpacked, a folder around a single one, a model folder, or Hugging Face's layout.

    Raises CheckpointError for others.
    """
    if not path.is_dir():
        return read_nemo(path, adapters=adapters)
    if is_native(path):
        return read_native(path, adapters=adapters)
    if (path / CONFIG).is_file() and (path / WEIGHTS).is_file():
        return read_nemo(path, adapters=adapters)
    inside = sorted(path.glob("*.nemo"))
    if len(inside) == 1:
        return read_nemo(inside[0], adapters=adapters)
    if not inside and is_huggingface(path):
        return read_huggingface(path, adapters=adapters)
    if is_peft(path):
        raise CheckpointError(f"{path} holds an adapter of PEFT's and no model; load its base, and give it as adapter.")
    missing = f"{CONFIG} and model.safetensors are missing"
    if (path / CONFIG).is_file():
        missing = f"neither model.safetensors nor {WEIGHTS} is beside its {CONFIG}"
    cause = (
        f"{len(inside)} .nemo files lie in it; name one"
        if inside
        else f"{missing}, and config.json of the Hugging Face layout"
    )
    raise CheckpointError(f"{path} is no model folder: {cause}.")


def embedded_folder(name: str) -> Path:
    """The folder of a model that comes with the package."""
    return Path(str(files("overtone").joinpath(name)))


def cache_folder() -> Path:
    """`OVERTONE_CACHE`, or `~/.cache/overtone`: models that are found by name."""
    return Path(os.environ.get("OVERTONE_CACHE") or "~/.cache/overtone").expanduser()


def fetch(repository: str, looked: list[str]) -> Path:
    """Download a hub's repository, unless it is there already; its folder. Raises CheckpointError where that fails."""
    missing = f"No model '{repository}'. Looked for {'; '.join(looked)}; "
    try:
        import huggingface_hub
    except ImportError as error:
        raise CheckpointError(
            f"{missing}to fetch it from the hub, install the extra: pip install 'overtone[hub]'."
        ) from error
    try:
        folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=HUB_FILES[0]))
        if not any(folder.glob("*.nemo")):
            folder = Path(huggingface_hub.snapshot_download(repository, allow_patterns=HUB_FILES[1]))
        return folder
    except Exception as error:  # the hub's, its HTTP library's and the network's errors share no base
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise CheckpointError(
            f"{missing}the hub did not give it{offline}: {cause}. "
            "Check name and network, or download the .nemo elsewhere and give its path."
        ) from error
