"""Adapters where they are kept: a model's file or folder, an adapter's own folder, a folder of such folders.

They are listed, removed, renamed, copied and enabled there; whatever else the place holds stays as it was.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from overtone.adapters.adapter import check_name
from overtone.adapters.card import reached_rates
from overtone.adapters.storage import DESCRIPTION, count_parameters, read_description
from overtone.checkpoints.adapters import enable_adapters
from overtone.checkpoints.folder import ADAPTERS, folder_config, is_native
from overtone.checkpoints.huggingface.model import is_huggingface
from overtone.checkpoints.load import find_model, save_model
from overtone.checkpoints.nemo.model import CONFIG
from overtone.checkpoints.nemo.yaml import write_yaml
from overtone.errors import AdapterError, UsageError, did_you_mean
from overtone.files import remove_folder, replace_file, replace_folder, write_failure
from overtone.models.asr_model import AsrModel


@dataclass(frozen=True, kw_only=True)
class AdapterEntry:
    """One adapter of a place."""

    name: str
    kind: str
    modules: str
    layers: str | int | list[int]
    parameters: int
    enabled: bool | None
    """The model's file has it enabled; None outside of models."""
    wer_before: float | None
    """WER of the base before the training, 0..1, from the card."""
    wer_after: float | None
    folder: str | None
    """The folder, for an adapter that has its own."""
    vocabulary: str | None = None
    """Size and kind of its own vocabulary; None where it writes the base's tokens."""


class AdapterPlace(Protocol):
    """A place of adapters. Every method raises AdapterError for a name that is unknown, taken or malformed."""

    def entries(self) -> list[AdapterEntry]:
        """The adapters, in order."""

    def remove(self, names: Collection[str]) -> None: ...

    def rename(self, name: str, new: str) -> None: ...

    def copy(self, name: str, new: str) -> None: ...

    def enable(self, names: Collection[str]) -> None:
        """Have exactly these enabled. Raises UsageError where nothing can be."""

    def give(self, name: str, folder: Path) -> None:
        """Write an adapter into a folder of its own."""

    def take(self, folder: Path, name: str) -> None:
        """Add the adapter of a folder under that name."""


def find_place(path: Path, *, output: Path | None = None) -> AdapterPlace:
    """The place at a path. output: where the changed model is written; None: over the old one.

    Raises UsageError where nothing there holds adapters, CheckpointError for a model that cannot be read.
    """
    if path.is_dir() and ((path / DESCRIPTION).is_file() or any(path.glob(f"*/{DESCRIPTION}"))):
        if output is not None:
            raise UsageError(f"--output is for models; {path} holds adapters alone. Use `copy … --to FOLDER`.")
        return AdapterFolders(path)
    if path.suffix == ".pt":
        raise UsageError(
            f"The adapters of {path} are changed beside their base: load them into the model, and save that. "
            f"`overtone inspect {path}` lists them."
        )
    if not path.exists():
        raise UsageError(f"{path} does not exist. Give a .nemo, a model folder, or a folder of adapters.")
    return ModelPlace(path, find_model(path), output or path)


def vocabulary_text(described: Mapping[str, Any] | None) -> str | None:
    """Size and kind of a vocabulary, such as `28 char`."""
    return None if described is None else f"{described.get('size', '')} {described.get('kind', '')}".strip()


class ModelPlace:
    """The adapters inside a model's `.nemo` or folder."""

    def __init__(self, path: Path, model: AsrModel, output: Path) -> None:
        self.path = path
        self.model = model
        self.output = output

    def entries(self) -> list[AdapterEntry]:
        return [
            AdapterEntry(
                name=adapter.name,
                kind=adapter.kind.name,
                modules=adapter.modules_text,
                layers=adapter.layers if isinstance(adapter.layers, str | int) else list(adapter.layers),
                parameters=adapter.parameter_count(),
                enabled=adapter.name in self.model.adapters.file_choice,
                wer_before=reached_rates(adapter.card).before,
                wer_after=reached_rates(adapter.card).after,
                folder=None,
                vocabulary=None if adapter.vocabulary is None else vocabulary_text(adapter.vocabulary.describe()),
            )
            for adapter in self.model.adapters
        ]

    def remove(self, names: Collection[str]) -> None:
        for name in names:
            self.model.adapters.remove(name)
        self.save()

    def rename(self, name: str, new: str) -> None:
        self.model.adapters.rename(name, new)
        self.save()

    def copy(self, name: str, new: str) -> None:
        self.model.adapters.copy(name, new)
        self.save()

    def enable(self, names: Collection[str]) -> None:
        enable_adapters(self.model, names)
        self.save()

    def give(self, name: str, folder: Path) -> None:
        self.model.adapters.save(name, folder)

    def take(self, folder: Path, name: str) -> None:
        self.model.adapters.load(folder, name=name)
        self.save()

    def save(self) -> None:
        """Write the model with the adapters that it has now, enabled as the file had them.

        Raises UsageError for a folder of the Hugging Face layout.
        """
        enable_adapters(self.model, self.model.adapters.file_choice)
        if self.output != self.path:
            save_model(self.model, self.output)
        elif is_native(self.path):
            update_folder(self.model, self.path)
        elif is_huggingface(self.path):
            raise UsageError(f"{self.path} is a folder of the Hugging Face layout; change its {ADAPTERS}/ itself.")
        else:
            save_model(self.model, self.path, overwrite=True)


def update_folder(model: AsrModel, folder: Path) -> None:
    """Write the adapters and the configuration of a model's folder anew; weights and other files stay.

    Raises AdapterError where that fails: an adapter that the folder held before is then still there.
    """
    inside = folder / ADAPTERS
    before = {path.parent.name for path in inside.glob(f"*/{DESCRIPTION}")}
    for name in model.adapters.names:
        if name not in before:
            model.adapters.save(name, inside / name)
    try:
        with replace_file(folder / CONFIG) as file:
            file.write(write_yaml(folder_config(model)[0]).encode())
        for name in before - set(model.adapters.names):
            remove_folder(inside / name)
    except OSError as error:
        raise AdapterError(write_failure(folder, error)) from error


class AdapterFolders:
    """The adapter of one folder, or those of the folders inside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_single = (path / DESCRIPTION).is_file()

    def folders(self) -> list[Path]:
        """The folders of all adapters here."""
        return [self.path] if self.is_single else sorted(found.parent for found in self.path.glob(f"*/{DESCRIPTION}"))

    def find(self, name: str) -> Path:
        """The folder of an adapter, by its name or its folder's. Raises AdapterError for none, and for several."""
        named = {folder: str(read_description(folder)["name"]) for folder in self.folders()}
        found = [folder for folder in named if not self.is_single and folder.name == name]
        found = found or [folder for folder, own in named.items() if own == name]
        if not found:
            near = did_you_mean(name, named.values())
            raise AdapterError(f"{self.path} holds no adapter '{name}'.{near} It holds {', '.join(named.values())}.")
        if len(found) > 1:
            names = ", ".join(folder.name for folder in found)
            raise AdapterError(f"{self.path} holds several adapters '{name}'. Name one by its folder: {names}.")
        return found[0]

    def entries(self) -> list[AdapterEntry]:
        return [folder_entry(folder, read_description(folder)) for folder in self.folders()]

    def remove(self, names: Collection[str]) -> None:
        """Remove whole folders. Raises AdapterError where one is unknown or stays."""
        for folder in [self.find(name) for name in names]:
            try:
                remove_folder(folder)
            except OSError as error:
                raise AdapterError(f"{folder} cannot be removed: {error.strerror or error}.") from error

    def rename(self, name: str, new: str) -> None:
        """Rename an adapter, and its folder if that has its name. Raises AdapterError for a name that cannot be."""
        folder = self.find(name)
        check_name(new)
        old = str(read_description(folder)["name"])
        moved = folder.with_name(new)
        moves = not self.is_single and folder.name in (name, old) and moved != folder
        if moves and moved.exists():
            raise AdapterError(f"{moved} exists already. Choose another name, or remove it first.")
        set_name(folder, new)
        if moves:
            folder.rename(moved)

    def copy(self, name: str, new: str) -> None:
        """Copy a folder beside itself. Raises UsageError in the folder of a single adapter."""
        folder = self.find(name)
        if self.is_single:
            raise UsageError(f"{self.path} is the folder of one adapter; say where the copy goes with --to.")
        copy_folder(folder, self.path / new, new)

    def enable(self, names: Collection[str]) -> None:
        """Raises UsageError: an adapter is enabled in a model."""
        raise UsageError(f"{self.path} holds adapters without a model; a .nemo or model folder has some enabled.")

    def give(self, name: str, folder: Path) -> None:
        copy_folder(self.find(name), folder, name)

    def take(self, folder: Path, name: str) -> None:
        """Copy a folder into this one. Raises UsageError in the folder of a single adapter."""
        if self.is_single:
            raise UsageError(f"{self.path} is the folder of one adapter; name another one.")
        copy_folder(folder, self.path / name, name)


def folder_entry(folder: Path, description: dict[str, Any]) -> AdapterEntry:
    """The adapter of a folder by its description. Raises AdapterError where its parameters are missing."""
    card = description["card"]
    return AdapterEntry(
        name=description["name"],
        kind=description["kind"],
        modules=description["modules"],
        layers=description["layers"],
        parameters=count_parameters(folder),
        enabled=None,
        wer_before=reached_rates(card).before,
        wer_after=reached_rates(card).after,
        folder=str(folder),
        vocabulary=vocabulary_text(description.get("vocabulary")),
    )


def copy_folder(source: Path, target: Path, name: str) -> None:
    """Copy an adapter's folder, with all that it holds, under a name. Raises AdapterError where the target exists."""
    check_name(name)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise AdapterError(f"{target} exists already. Choose another place, or remove it first.")

    def fill(fresh: Path) -> None:
        shutil.copytree(source, fresh, dirs_exist_ok=True)
        set_name(fresh, name)

    try:
        replace_folder(target, fill)
    except OSError as error:
        raise AdapterError(write_failure(target, error)) from error


def set_name(folder: Path, name: str) -> None:
    """Write another name into the description of an adapter. Raises AdapterError where that fails."""
    description = {**read_description(folder), "name": name}
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    try:
        with replace_file(folder / DESCRIPTION) as file:
            file.write(text.encode())
    except OSError as error:
        raise AdapterError(write_failure(folder, error)) from error


def copy_between(source: AdapterPlace, name: str, target: Path, new: str) -> None:
    """Copy an adapter to another place: a model for the same base, a folder of adapters, or a new folder.

    Raises AdapterError for a name that is unknown or taken, and for a model that the adapter was not made for.
    """
    if not target.exists() and target.suffix != ".nemo":
        source.give(name, target)
        set_name(target, check_name(new))
        return
    place = find_place(target)
    with tempfile.TemporaryDirectory() as folder:
        source.give(name, Path(folder) / name)
        place.take(Path(folder) / name, new)
