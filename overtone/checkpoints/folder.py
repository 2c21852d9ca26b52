"""A model as a folder: `model_config.yaml`, `model.safetensors`, the tokenizer's files, `adapters/NAME/`.

Configuration and keys are those of a `.nemo`, so one table reads both; the weights are no pickle, and every adapter
is a folder of its own that can be copied in, out and away.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from overtone.adapters.adapter import Adapter
from overtone.adapters.storage import DESCRIPTION
from overtone.checkpoints.nemo.adapters import adapter_config, has_nemo_form, nemo_modules, read_kind
from overtone.checkpoints.nemo.archive import LIMITS, plain_name
from overtone.checkpoints.nemo.config import NemoAdapter, translate
from overtone.checkpoints.nemo.keys import nemo_key
from overtone.checkpoints.nemo.model import (
    CONFIG,
    assemble,
    keep_files,
    model_files,
    nemo_config,
    read_config,
    size_of,
)
from overtone.checkpoints.nemo.tokenizer import FILE_PREFIX, read_tokenizer
from overtone.checkpoints.nemo.yaml import write_yaml
from overtone.checkpoints.tensors import read_tensors, write_tensors
from overtone.errors import CheckpointError, OvertoneError
from overtone.files import read_regular, replace_folder, write_failure
from overtone.models.asr_model import AsrModel

WEIGHTS = "model.safetensors"
ADAPTERS = "adapters"
OWN = "overtone"
"""Our own section of the configuration: the model's name, and the adapters' order."""

Storage = Literal["float32", "float16", "bfloat16"]
STORAGES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def is_native(folder: Path) -> bool:
    """True if a folder holds a model in our own format."""
    return (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file()


def read_native(folder: Path | str, *, adapters: bool = True) -> AsrModel:
    """The model of a folder in float32 with its adapters, none in use.

    Raises CheckpointError, naming file and cause, for what is missing, damaged or not supported.
    """
    folder = Path(folder)
    config = read_config(read_file(folder / CONFIG, LIMITS.config_bytes), str(folder / CONFIG))
    own = config.pop(OWN, None) or {}
    if not isinstance(own, dict):
        raise CheckpointError(f"{folder / CONFIG}: {OWN} is {own!r}; a mapping of keys is needed.")
    description = translate(config, str(folder / CONFIG))
    files = {name: read_inside(folder, name) for name in file_names(folder, own, config)}
    tokenizer = read_tokenizer(description.tokenizer, files, str(folder))
    name = str(own.get("name") or folder.name)
    model = assemble(description, config, tokenizer, read_tensors(folder / WEIGHTS), source=str(folder), name=name)
    keep_files(model, files)
    if adapters:
        _read_adapters(model, folder / ADAPTERS, own, {entry.name: entry for entry in description.adapters})
    return model


def write_native(
    model: AsrModel,
    folder: Path | str,
    *,
    storage: Storage = "float32",
    overwrite: bool = False,
    enabled: Collection[str] | None = None,
) -> None:
    """Write the model and its adapters; the folder appears whole or not at all.

    `storage` float16 or bfloat16 halves the matrices; vectors, statistics and the filter bank stay float32.
    enabled: the adapters that `@file` means; None: as it is in the model.
    Raises CheckpointError where the folder exists (unless `overwrite`), cannot be written, or where half precision
    would change a base that adapters were made for.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise CheckpointError(f"{folder} exists already; choose another folder, or allow overwriting.")
    if folder.exists() and not is_native(folder):
        raise CheckpointError(f"{folder} is no folder of a model, so it is not overwritten; choose another one.")
    tensors = stored_tensors(model, storage)
    if len(model.adapters) and not has_same_values(model, tensors):
        raise CheckpointError(
            f"Storing {model.name or 'the model'} in {storage} would change its base, and its adapters would no longer "
            "belong to it; use storage float32, or store the base alone and train the adapters on that."
        )
    replace_model(folder, lambda fresh: _write_parts(model, fresh, tensors, enabled), needed=size_of(tensors))


def replace_model(folder: Path, fill: Callable[[Path], None], *, needed: int) -> None:
    """Put a folder that `fill` writes in the place of another or of none: it appears whole or not at all.

    needed: the bytes to write. Raises CheckpointError where that fails.
    """
    try:
        replace_folder(folder, fill)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(write_failure(folder, error, needed=needed)) from error


def stored_tensors(model: AsrModel, storage: Storage) -> dict[str, Tensor]:
    """The base by NeMo's keys, in the precision of storage; tensors that overflow in half precision stay float32.

    Raises CheckpointError for an unknown storage.
    """
    if storage not in STORAGES:
        raise CheckpointError(f"storage '{storage}' is unknown. Allowed: {', '.join(STORAGES)}.")
    tensors = {}
    for name, tensor in model.base_state_dict().items():
        value = tensor.detach().cpu().contiguous().clone()  # safetensors refuses shared memory
        is_matrix = value.is_floating_point() and value.dim() >= 2 and not name.startswith("preprocessor.")
        halved = value.to(STORAGES[storage]) if is_matrix else value
        tensors[nemo_key(name)] = halved if bool(halved.isfinite().all()) else value
    return tensors


def read_file(path: Path, at_most: int) -> bytes:
    """Read a small file. Raises CheckpointError where it has more than `at_most` bytes or cannot be read."""
    try:
        return read_regular(path, at_most=at_most)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


def own_names(own: Mapping[str, Any], key: str, folder: Path) -> list[Any]:
    """A list of names in our section of the configuration. Raises CheckpointError for anything else."""
    names = own.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise CheckpointError(f"{folder / CONFIG}: {OWN}.{key} is {names!r}; a list of names is needed.")
    return names


def read_inside(folder: Path, name: str) -> bytes:
    """Read a file of a model's folder, which is written back with the model.

    Raises CheckpointError as `read_file`, and for a link that leads out of the folder: it could be any file's content.
    In the cache of a hub, links lead to its `blobs`.
    """
    path = folder / name
    target, home = path.resolve(), folder.resolve()
    places = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    if not any(target.is_relative_to(place) for place in places):
        raise CheckpointError(f"{path} leads out of the folder, to {target}; put the file itself there.")
    return read_file(path, LIMITS.small_file_bytes)


def file_names(folder: Path, own: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """The files beside configuration and weights that belong to the model; a README or a licence does not."""
    listed = [plain_name(folder, str(name)) for name in own_names(own, "files", folder)]
    section = config.get("tokenizer") if not listed else None
    section = section if isinstance(section, dict) else {}
    languages = section.get("langs") if isinstance(section.get("langs"), dict) else {}
    sections = [section, *(part for part in (languages or {}).values() if isinstance(part, dict))]
    values = [value for part in sections for value in part.values()]
    named = {str(value).rpartition("/")[2].removeprefix(FILE_PREFIX) for value in values} | {"tokenizer.model"}
    return listed or sorted(path.name for path in folder.iterdir() if path.is_file() and path.name in named)


def folder_config(model: AsrModel, enabled: Collection[str] | None = None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The configuration of a model's folder, and the files beside it. enabled: as `write_native`."""
    config = nemo_config(model, [adapter.name for adapter in model.adapters if has_nemo_form(adapter)], enabled=enabled)
    files = {
        name: content
        for name, content in model_files(model, config).items()
        if Path(name).parts[0] not in (CONFIG, WEIGHTS, ADAPTERS)
    }
    choice = (
        model.adapters.file_choice if enabled is None else [name for name in model.adapters.names if name in enabled]
    )
    config[OWN] = {
        "name": model.name,
        "files": list(files),
        "adapters": model.adapters.names,
        "file_choice": list(choice),
    }
    return config, files


def _write_parts(model: AsrModel, folder: Path, tensors: Mapping[str, Tensor], enabled: Collection[str] | None) -> None:
    config, files = folder_config(model, enabled)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / CONFIG).write_text(write_yaml(config), encoding="utf-8")
    write_tensors(tensors, folder / WEIGHTS)
    for name in model.adapters.names:
        model.adapters.save(name, folder / ADAPTERS / name)


def _read_adapters(model: AsrModel, folder: Path, own: Mapping[str, Any], described: Mapping[str, NemoAdapter]) -> None:
    """The adapters in their order of addition; folders that were copied in come last."""
    present = [path.name for path in sorted(folder.glob("*")) if (path / DESCRIPTION).is_file()]
    listed = [str(name) for name in own_names(own, "adapters", folder.parent)]
    for name in [*(name for name in listed if name in present), *(name for name in present if name not in listed)]:
        try:
            adapter = model.adapters.load(folder / name, name=name)
        except OvertoneError as error:
            raise CheckpointError(f"{error} (Load the base alone with adapters=False.)") from error
        if name in described and name in listed and has_nemo_form(adapter):
            adapter.nemo = _nemo_form(adapter, described[name], str(folder.parent / CONFIG))
    chosen = [str(name) for name in own_names(own, "file_choice", folder.parent)]
    model.adapters.file_choice = tuple(name for name in chosen if name in model.adapters)


def _nemo_form(adapter: Adapter, entry: NemoAdapter, source: str) -> dict[str, Any]:
    """The configuration's entry of an adapter; of one that has taken another's place, only whether it is enabled."""
    own = NemoAdapter(name=adapter.name, modules=nemo_modules(adapter), config=adapter_config(adapter))
    same_place = (own.modules or "encoder") == (entry.modules or "encoder")
    told = entry if same_place and read_kind(own, source) == read_kind(entry, source) else own
    return {"modules": told.modules, "enabled": entry.enabled, "config": dict(told.config)}


def has_same_values(model: AsrModel, tensors: Mapping[str, Tensor]) -> bool:
    """True if tensors in the precision of storage, by NeMo's keys, are the base's very values."""
    base = {nemo_key(name): tensor for name, tensor in model.base_state_dict().items()}
    return all(torch.equal(base[key].cpu(), tensor.to(base[key].dtype)) for key, tensor in tensors.items())
