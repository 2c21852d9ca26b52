"""Adapters by the words that a user types: names of a model's own, folders, and files of NeMo's on disk."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from overtone.adapters.adapter import adapter_digest, parameters_digest
from overtone.adapters.prior import PRIOR, find_prior
from overtone.adapters.storage import (
    DESCRIPTION,
    StoredAdapter,
    described_digest,
    read_description,
    read_folder,
    stored_copy,
)
from overtone.adapters.word_text import prior_words
from overtone.checkpoints.huggingface.peft import ADAPTER_CONFIG, is_peft, load_peft, read_peft
from overtone.checkpoints.nemo.adapters import (
    StoredNemoAdapter,
    adapter_config,
    add_nemo_adapter,
    has_nemo_form,
    hosts_in,
    nemo_modules,
    own_tensors,
    read_adapters_pt,
    read_kind,
)
from overtone.checkpoints.nemo.words import read_part
from overtone.errors import AdapterError, did_you_mean
from overtone.models.asr_model import AsrModel

BASE = ("null", "none", "base", "")
"""Words for no adapter at all."""
NEMO_SUFFIX = ".pt"


def find_adapter(model: AsrModel, text: str | None) -> str | None:
    """The choice for `AdapterSet.use` that a user means: a name, `@file`, or None for the base.

    text: one of these, the folder of an adapter, an `adapters.pt`, or several with `+` between. Adapters on disk are
    loaded into the model. Raises AdapterError for what is neither an adapter of the model nor on disk.
    """
    if text is None or text.lower() in BASE:
        return None
    if text == "@file" or text in model.adapters:
        return text
    if is_stored(text):
        return "+".join(load_stored(model, text))
    return "+".join(name for part in text.split("+") for name in find_names(model, part))


def load_chain(model: AsrModel, text: str) -> str:
    """A chain of names and paths as names, what lies on disk loaded; unknown names stay, for `use` to refuse.

    Raises AdapterError for a path that leads to no adapter.
    """
    if is_stored(text):
        return "+".join(load_stored(model, text))
    parts = text.split("+")
    return "+".join(
        name for part in parts for name in (find_names(model, part) if Path(part).exists() or part == PRIOR else [part])
    )


def stored_name(text: str) -> str | None:
    """The name that an adapter's folder has for it; None where the path leads to none of ours."""
    folder = Path(text)
    return str(read_description(folder)["name"]) if (folder / DESCRIPTION).is_file() else None


def find_names(model: AsrModel, part: str) -> list[str]:
    """The adapters that one part of a chain means. Raises AdapterError where there are none."""
    if part in model.adapters:
        return [part]
    if is_stored(part):
        return load_stored(model, part)
    if part == PRIOR and not Path(part).exists() and load_prior(model):
        return [PRIOR]
    present = ", ".join(model.adapters.names) or "none"
    near = did_you_mean(part, model.adapters.names)
    path = Path(part)
    if path.exists():
        expected = f"a folder with {DESCRIPTION} or PEFT's {ADAPTER_CONFIG}, or a {NEMO_SUFFIX} file of NeMo"
        raise AdapterError(f"{part} is not an adapter; expected {expected}.{below(path)}")
    raise AdapterError(
        f"Adapter '{part}' is neither in the model nor a folder.{near} Adapters of this model: {present}. "
        "A path to the folder of a saved adapter does as well."
    )


def load_prior(model: AsrModel) -> bool:
    """Add the general prior of the model's tokenizer as an adapter of words alone; False where there is none."""
    prior = find_prior(model.tokenizer.digest())
    if prior is not None:
        model.adapters.add_words(PRIOR, prior_words(prior))
    return prior is not None


def below(folder: Path) -> str:
    """The adapters that lie in a folder, such as a run's, as a sentence; empty where there are none."""
    found = sorted(str(path.parent) for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{DESCRIPTION}"))
    return f" Below it are {', '.join(found[:5])}{' …' if len(found) > 5 else ''}." if found else ""


def is_stored(text: str) -> bool:
    """True if a path leads to an adapter's folder, ours or PEFT's, or to a file of NeMo's."""
    path = Path(text)
    return (path / DESCRIPTION).is_file() or is_peft(path) or (path.suffix == NEMO_SUFFIX and path.is_file())


def load_stored(model: AsrModel, text: str) -> list[str]:
    """Load what a path leads to; the names that the adapters have in the model."""
    path = Path(text)
    if not path.is_dir():
        return load_file(model, path)
    return [load_folder(model, path) if (path / DESCRIPTION).is_file() else load_peft_folder(model, path)]


def read_stored(model: AsrModel, text: str) -> StoredAdapter:
    """Read the one adapter that a name of the model's own or a path means, without adding it to the model.

    Raises AdapterError where there is none, several, or one for another base; CheckpointError for a damaged file.
    """
    path = Path(text).expanduser()
    if text in model.adapters or not is_stored(str(path)):
        names = find_names(model, text)
        return stored_copy(model.adapters[names[0]])
    if not path.is_dir():
        return read_file(model, path)
    if (path / DESCRIPTION).is_file():
        return read_folder(path, model.adapters.identity())
    lora = read_peft(model, path)
    return StoredAdapter(
        name=path.resolve().name,
        kind=lora.kind,
        modules="encoder",
        layers=lora.layers,
        strategy=lora.strategy,
        card={},
        tensors=lora.tensors,
    )


def read_file(model: AsrModel, path: Path) -> StoredAdapter:
    """Read the adapter that a file of NeMo has enabled, or its only one.

    Raises AdapterError where several are enabled or none, CheckpointError where the file does not fit the model.
    """
    chosen = enabled_in(path)
    if len(chosen) > 1:
        names = ", ".join(adapter.name for adapter in chosen)
        raise AdapterError(f"{path} has several adapters enabled, {names}; one is needed.")
    described = chosen[0].described
    kind, strategy = read_kind(described, str(path))
    return StoredAdapter(
        name=described.name,
        kind=kind,
        modules=described.modules or "encoder",
        layers="all",
        strategy=strategy,
        card={},
        tensors=own_tensors(model, kind, described, hosts_in(model, chosen[0], str(path)), str(path)),
    )


def enable_adapters(model: AsrModel, names: Collection[str]) -> None:
    """Have exactly these adapters enabled in files that are written from now on, in the model's order.

    NeMo lets all that a file has enabled act, and `@file` means them. Raises AdapterError for an unknown name.
    """
    wanted = {model.adapters[name].name for name in names}
    model.adapters.file_choice = tuple(name for name in model.adapters.names if name in wanted)
    for adapter in model.adapters:
        if has_nemo_form(adapter):
            form = adapter.nemo or {"modules": nemo_modules(adapter), "config": adapter_config(adapter)}
            adapter.nemo = {**form, "enabled": adapter.name in wanted}


def load_folder(model: AsrModel, folder: Path) -> str:
    """Load under the folder's own name for it, or under a free one where another adapter has that name."""
    description = read_description(folder)
    name = place_for(model, str(description["name"]), described_digest(folder, description))
    return name if name in model.adapters else model.adapters.load(folder, name=name).name


def load_peft_folder(model: AsrModel, folder: Path) -> str:
    """Load a LoRA of PEFT's, named after its folder as those of our own folders are."""
    stored = read_peft(model, folder)
    digest = adapter_digest(stored.kind, stored.strategy, parameters_digest(stored.tensors))
    name = place_for(model, folder.resolve().name, digest)
    return name if name in model.adapters else load_peft(model, folder, name=name).name


def load_file(model: AsrModel, path: Path) -> list[str]:
    """Load the adapters that a file of NeMo has enabled, or its only one, named as those of folders are.

    Raises AdapterError where none is enabled, CheckpointError where the file is damaged or does not fit the model.
    """
    names = []
    for adapter in enabled_in(path):
        kind, strategy = read_kind(adapter.described, str(path))
        hosts = hosts_in(model, adapter, str(path))
        tensors = own_tensors(model, kind, adapter.described, hosts, str(path))
        words = read_part(model, adapter.words, path)
        own_words = None if words is None else words.digest()
        name = place_for(model, adapter.name, adapter_digest(kind, strategy, parameters_digest(tensors), own_words))
        if name not in model.adapters:
            add_nemo_adapter(model, adapter.described, hosts, str(path), name=name).words = words
        names.append(name)
    return names


def enabled_in(path: Path) -> list[StoredNemoAdapter]:
    """The adapters that a file of NeMo has enabled, or its only one. Raises AdapterError where there are none."""
    stored = read_adapters_pt(path)
    chosen = [adapter for adapter in stored if adapter.described.enabled or len(stored) == 1]
    if not chosen:
        held = ", ".join(adapter.name for adapter in stored) or "none"
        raise AdapterError(
            f"{path} has none of its adapters enabled; it holds {held}. Load the one that you mean into a model with "
            "overtone.checkpoints.nemo.adapters.load_adapters(model, path, [name]), and save that."
        )
    return chosen


def place_for(model: AsrModel, name: str, digest: str) -> str:
    """The name of the model's own adapter of that digest, or a free name where another adapter has this one."""
    place, number = name, 2
    while place in model.adapters and model.adapters[place].digest() != digest:
        place, number = f"{name}-{number}", number + 1
    return place
