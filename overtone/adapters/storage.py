"""Adapters on disk: a folder with `adapter.yaml` (the description) and `adapter.safetensors` (the parameters).

An adapter with a word part has `words.safetensors` beside them, one with a vocabulary of its own a tokenizer's file.
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import math
import os
import shutil
from collections.abc import Callable, Container, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from overtone.adapters.adapter import Adapter, adapter_digest, check_finite, parameters_digest
from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.registry import KINDS
from overtone.adapters.points import Layers
from overtone.adapters.strategies import ResidualAdd
from overtone.adapters.tokenizer_files import StoredVocabulary, check_section, folder_contents, read_vocabulary
from overtone.adapters.words import WORDS_ALONE, WordPart, words_digest
from overtone.budgets import check_tensor_header
from overtone.errors import AdapterError, did_you_mean
from overtone.files import open_regular, read_regular, replace_file, replace_folder, write_failure
from overtone.safe_yaml import read_values

FORMAT = 1
DESCRIPTION = "adapter.yaml"
PARAMETERS = "adapter.safetensors"
WORDS = "words.safetensors"
LARGEST_WORDS = 1 << 30
LARGEST_DESCRIPTION = 1 << 20
"""Bytes of a description, its card included."""
LARGEST_PARAMETERS = 4 << 30
"""Bytes of the parameters of an adapter."""
UNTOUCHABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV)
"""Errors of a folder that cannot be replaced as a whole: nothing may be written beside it, or a disk begins there."""
LFS_POINTER = b"version https://git-lfs"
"""The beginning of a text that Git leaves in the place of a large file."""


@dataclass(frozen=True, kw_only=True)
class BaseIdentity:
    """Digests that tell one base model from another."""

    fingerprint: Callable[[], str]
    """SHA-256 of weights and settings, computed when first asked for."""
    tokenizer_digest: Callable[[], str]


@dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """An adapter outside of a model, such as the content of a folder, checked."""

    name: str
    kind: Kind
    modules: str
    layers: Layers
    strategy: ResidualAdd
    card: dict[str, Any]
    tensors: dict[str, Tensor]
    words: WordPart | None = None
    vocabulary: StoredVocabulary | None = None


def stored_copy(adapter: Adapter) -> StoredAdapter:
    """A copy of an adapter outside of its model."""
    own = adapter.vocabulary
    return StoredAdapter(
        name=adapter.name,
        kind=adapter.kind,
        modules=adapter.modules_text,
        layers=adapter.layers,
        strategy=adapter.strategy,
        card=copy.deepcopy(adapter.card),
        tensors={name: tensor.clone() for name, tensor in adapter.tensors().items()},
        words=adapter.words,
        vocabulary=None if own is None else StoredVocabulary(tokenizer=own.tokenizer, reused=own.reused),
    )


def stored_digest(stored: StoredAdapter) -> str:
    """The digest (`Adapter.digest`) of an adapter outside of a model."""
    words = None if stored.words is None else stored.words.digest()
    vocabulary = None if stored.vocabulary is None else stored.vocabulary.tokenizer.digest()
    return adapter_digest(stored.kind, stored.strategy, parameters_digest(stored.tensors), words, vocabulary)


def write_folder(adapter: Adapter, folder: Path, identity: BaseIdentity, *, overwrite: bool = False) -> Path:
    """Write an adapter's folder: all files appear together, or the files that were there before stay.

    Raises AdapterError where the folder holds an adapter already (unless `overwrite`), where it cannot be written, for
    parameters that are not finite, and for a card that holds more than plain values.
    """
    if (folder / DESCRIPTION).exists() and not overwrite:
        raise AdapterError(f"{folder} holds an adapter already. Choose another folder, or remove it first.")
    tensors = {name: tensor.cpu().contiguous() for name, tensor in adapter.tensors().items()}
    check_finite(tensors, f"Adapter '{adapter.name}' is not written: it")
    description = {
        "format": FORMAT,
        "name": adapter.name,
        "kind": adapter.kind.name,
        adapter.kind.name: plain(dataclasses.asdict(adapter.kind)),  # type: ignore[call-overload]
        "modules": adapter.modules_text,
        "layers": adapter.layers if isinstance(adapter.layers, str | int) else [int(layer) for layer in adapter.layers],
        "strategy": dataclasses.asdict(adapter.strategy),
        "points": adapter.points,
        "parameters": adapter.parameter_count(),
        "parameters_digest": parameters_digest(tensors),
        "base_fingerprint": identity.fingerprint(),
        "tokenizer_digest": identity.tokenizer_digest(),
        "card": checked_card(adapter),
    }
    if adapter.words is not None:
        description["word_part"] = adapter.words.describe()
    if adapter.vocabulary is not None:
        description["vocabulary"] = adapter.vocabulary.describe()
    text = yaml.safe_dump(description, sort_keys=False, allow_unicode=True)
    if len(text.encode()) > LARGEST_DESCRIPTION:
        raise AdapterError(f"The card of adapter '{adapter.name}' is larger than {LARGEST_DESCRIPTION} bytes.")
    try:
        words = None if adapter.words is None else adapter.words.to_bytes()
        tokenizer = folder_contents(None if adapter.vocabulary is None else adapter.vocabulary.tokenizer)
        replace_contents(folder, {**tokenizer, WORDS: words, PARAMETERS: save(tensors), DESCRIPTION: text.encode()})
    except OSError as error:
        raise AdapterError(write_failure(folder, error)) from error
    return folder


def checked_card(adapter: Adapter) -> Any:
    """The card as JSON can say it. Raises AdapterError where it holds more than plain values."""
    try:
        return plain(adapter.card)
    except (TypeError, RecursionError) as error:
        raise AdapterError(
            f"The card of adapter '{adapter.name}' holds more than plain values ({error}). "
            "Allowed: mappings, lists, texts, numbers, true, false and null."
        ) from error


def plain(value: Any) -> Any:
    """A copy of a value as JSON can say it; numbers that are not finite, which JSON does not have, become None.

    Raises TypeError for what is no mapping, list, text, number, bool or None.
    """
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or type(value) in (str, int, bool):
        return value
    raise TypeError(f"{value!r} is of type {type(value).__name__}")


def replace_contents(folder: Path, contents: Mapping[str, bytes | None]) -> None:
    """Put files into a folder, in one step; None is a file that is gone, and whatever else lies there stays.

    Where nothing can be written beside the folder, or where it is the working folder, its files change one by one.
    Raises OSError.
    """

    def fill(fresh: Path) -> None:
        for name, content in contents.items():
            if content is not None:
                (fresh / name).write_bytes(content)
        if folder.is_dir():
            keep_others(folder, fresh, without=contents.keys())

    try:
        if not Path.cwd().is_relative_to(folder.resolve()):
            return replace_folder(folder, fill)
    except OSError as error:
        if error.errno not in UNTOUCHABLE or not folder.is_dir():
            raise
    with ExitStack() as stack:
        for name, content in contents.items():
            if content is not None:
                file = stack.enter_context(replace_file(folder / name))
                file.write(content)
                file.flush()  # a full disk is found before anything is replaced
    for name, content in contents.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
    return None


def keep_others(folder: Path, fresh: Path, *, without: Container[str]) -> None:
    """Have everything of a folder in a fresh one too, but for some names."""
    for path in folder.iterdir():
        if path.name in without:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, fresh / path.name, symlinks=True, copy_function=link_or_copy)
        else:
            link_or_copy(path, fresh / path.name)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file, or a link, one more name; a copy of it where it can have one only."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def read_folder(folder: Path, identity: BaseIdentity, *, description: dict[str, Any] | None = None) -> StoredAdapter:
    """Read an adapter's folder. description: the result of `read_description`, where the file is still the same.

    Raises AdapterError where something is missing, damaged or made for another base.
    """
    description = read_description(folder) if description is None else description
    check_base(description, identity, what=f"The adapter in {folder}")
    try:
        # Read once: the bytes that are checked are those that are used.
        content = read_regular(folder / PARAMETERS, at_most=LARGEST_PARAMETERS)
        if content.startswith(LFS_POINTER):
            raise AdapterError(f"{folder / PARAMETERS} is a Git LFS pointer; fetch the file with `git lfs pull`.")
        check_tensor_header(content)
        tensors = load(content)
    except KeyError as error:
        raise AdapterError(f"{folder / PARAMETERS} holds numbers of type {error}, which no adapter has.") from error
    except OSError as error:
        raise AdapterError(f"{folder / PARAMETERS} cannot be read: {error.strerror or error}.") from error
    except (ValueError, SafetensorError) as error:
        raise AdapterError(f"{folder / PARAMETERS} cannot be read: {error}") from error
    floating = all(tensor.is_floating_point() for tensor in tensors.values())
    if not floating or parameters_digest(tensors) != description["parameters_digest"]:
        raise AdapterError(
            f"{folder / PARAMETERS} does not hold the parameters that {DESCRIPTION} describes: it is damaged, or of "
            "another adapter. Fetch or save the folder again."
        )
    check_finite(tensors, f"{folder / PARAMETERS}")
    return StoredAdapter(
        name=description["name"],
        kind=read_kind(folder, description),
        modules=description["modules"],
        layers=description["layers"],
        strategy=read_strategy(folder, description),
        card=description["card"],
        tensors=tensors,
        words=read_words(folder, description),
        vocabulary=read_vocabulary(folder, description.get("vocabulary")),
    )


def read_words(folder: Path, description: Mapping[str, Any]) -> WordPart | None:
    """The word part that the description names, None where it names none.

    Raises AdapterError where its file is missing, damaged, another's, or of another tokenizer.
    """
    if "word_part" not in description:
        return None
    path = folder / WORDS
    try:
        content = read_regular(path, at_most=LARGEST_WORDS)
    except OSError as error:
        cause = error.strerror or error
        raise AdapterError(f"{path} cannot be read: {cause}. It belongs to the adapter; fetch it too.") from error
    if content.startswith(LFS_POINTER):
        raise AdapterError(f"{path} is a Git LFS pointer; fetch the file with `git lfs pull`.")
    if words_digest(content) != description["word_part"]["digest"]:
        raise AdapterError(
            f"{path} is not the word part that {DESCRIPTION} describes: it is damaged, or of another adapter. Fetch or "
            "save the folder again."
        )
    tokenizer_digest = description.get("vocabulary", {}).get("digest", description["tokenizer_digest"])
    return WordPart.from_bytes(content, tokenizer_digest=tokenizer_digest, place=str(path))


def check_base(description: Mapping[str, Any], identity: BaseIdentity, *, what: str = "It") -> None:
    """Raises AdapterError where an adapter was made for another base or tokenizer; `what` begins the sentence."""
    for key, own, thing in (
        ("base_fingerprint", identity.fingerprint, "for another base"),
        ("tokenizer_digest", identity.tokenizer_digest, "with another tokenizer"),
    ):
        if description[key] != own():
            raise AdapterError(
                f"{what} was made {thing}: it needs {description[key]}, this model has {own()}. "
                "Use it with the model that it was trained on."
            )


def count_parameters(folder: Path) -> int:
    """Count the parameters by the file's header. Raises AdapterError for a file that is missing or cut short."""
    try:
        with open_regular(folder / PARAMETERS) as start:
            check_tensor_header(start.read(8))
        with safe_open(folder / PARAMETERS, framework="numpy") as file:
            return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118 (no mapping)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(f"{folder / PARAMETERS} is missing or damaged: {error}") from error


def read_description(folder: Path) -> dict[str, Any]:
    """Read `adapter.yaml`. Raises AdapterError where it is missing or damaged, or lacks a key."""
    path = folder / DESCRIPTION
    if folder.is_file():
        raise AdapterError(
            f"{folder} is a file; the folder of an adapter is needed. The adapters.pt of NeMo is loaded by "
            "overtone.checkpoints.nemo.adapters.load_adapters(model, path)."
        )
    try:
        description = read_values(read_regular(path, at_most=LARGEST_DESCRIPTION).decode("utf-8"))
    except FileNotFoundError as error:
        is_peft = (folder / "adapter_config.json").exists()
        loader = " PEFT's folders are loaded by overtone.checkpoints.huggingface.peft.load_peft(model, path)."
        raise AdapterError(
            f"{folder} holds no adapter: {DESCRIPTION} is missing.{loader if is_peft else ''}"
        ) from error
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise AdapterError(f"{path} cannot be read: {error}.") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise AdapterError(f"{path} is no adapter description of format {FORMAT}.")
    if "digest" in description:  # what the first folders call it
        description.setdefault("parameters_digest", description.pop("digest"))
    expected: dict[str, type | tuple[type, ...]] = {
        "name": str,
        "kind": str,
        "modules": str,
        "layers": (str, int, list),
        "strategy": dict,
        "parameters_digest": str,
        "base_fingerprint": str,
        "tokenizer_digest": str,
        "card": dict,
    }
    for key, kind in expected.items():
        if not isinstance(description.get(key), kind):
            raise AdapterError(f"{path}: '{key}' is missing or malformed.")
    description["card"] = plain(description["card"])
    part = description.get("word_part", {"digest": ""})
    if not isinstance(part, dict) or not isinstance(part.get("digest"), str):
        raise AdapterError(f"{path}: 'word_part' is malformed.")
    if "vocabulary" in description:
        check_section(description["vocabulary"], path)
    return description


def described_digest(folder: Path, description: dict[str, Any]) -> str:
    """The digest (`Adapter.digest`) of a folder's adapter, by its description alone."""
    kind, strategy = read_kind(folder, description), read_strategy(folder, description)
    words, vocabulary = (description.get(part, {}).get("digest") for part in ("word_part", "vocabulary"))
    return adapter_digest(kind, strategy, description["parameters_digest"], words, vocabulary)


def read_strategy(folder: Path, description: dict[str, Any]) -> ResidualAdd:
    """The strategy with its settings. Raises AdapterError for settings that it does not have."""
    strategy: ResidualAdd = read_fields(folder, ResidualAdd, description["strategy"])
    return strategy


def read_kind(folder: Path, description: dict[str, Any]) -> Kind:
    """The kind with its settings. Raises AdapterError for one that is not registered, and for settings it lacks."""
    name = description["kind"]
    if name == WORDS_ALONE.name:
        return WORDS_ALONE
    if name not in KINDS:
        raise AdapterError(
            f"{folder / DESCRIPTION}: kind '{name}' is unknown.{did_you_mean(name, KINDS)} Known: {', '.join(KINDS)}. "
            "Somebody's own kind has to be registered first: import its class and call overtone.register_kind(CLASS)."
        )
    kind: Kind = read_fields(folder, KINDS[name].kind, description.get(name, {}))
    return kind


def read_fields(folder: Path, settings: type, values: Any) -> Any:
    """Build a settings dataclass from plain values. Raises AdapterError for unknown fields and wrong values."""
    if not isinstance(values, dict):
        raise AdapterError(f"{folder / DESCRIPTION}: {values!r} stands where settings are expected.")
    known = [field.name for field in dataclasses.fields(settings)]
    for name in values:
        if name not in known:
            raise AdapterError(
                f"{folder / DESCRIPTION}: setting '{name}' is unknown.{did_you_mean(str(name), known)} "
                f"Known: {', '.join(known)}."
            )
    try:
        return settings(**{name: hashable(value) for name, value in values.items()})
    except TypeError as error:
        raise AdapterError(f"{folder / DESCRIPTION}: {error}") from error


def hashable(value: Any) -> Any:
    """A list as a tuple: settings are hashable, and YAML has no tuples."""
    return tuple(map(hashable, value)) if isinstance(value, list) else value
