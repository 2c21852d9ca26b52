"""Models with another vocabulary than their checkpoint's: the step that NeMo calls `change_vocabulary`.

No adapter of NeMo's has a vocabulary of its own, a whole model has one. An adapter that owns one is written as a model
with that vocabulary, over which its acoustic part is an adapter as any other.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping
from typing import Any

import torch

from overtone.adapters.adapter import Adapter
from overtone.adapters.vocabulary import needs_base_tokens, split_tensors
from overtone.checkpoints.nemo.config import describe_heads, family_of, vocabulary_keys
from overtone.checkpoints.nemo.tokenizer import FILE_PREFIX
from overtone.errors import CheckpointError
from overtone.models.asr_model import AsrModel, build_model
from overtone.models.parts import Settings, UnsetWeights, complete, parts_of
from overtone.models.vocabulary import WITH_TOKENS
from overtone.tokenizers import Tokenizer

DATA = ("train_ds", "validation_ds", "test_ds")
VOCABULARY_KEYS = ("num_classes", "vocabulary", "vocab_size")
"""Keys of a head's section that tell its tokens."""


def with_fresh_heads(model: AsrModel, tokenizer: Tokenizer) -> AsrModel:
    """A model with the preprocessor and encoder of another, and fresh heads over other tokens; adapters stay behind.

    Raises CheckpointError for a model that is told a task in its tokens.
    """
    settings = changed_settings(model, tokenizer)
    changed = build_model(
        settings=settings, tokenizer=tokenizer, config=changed_config(model, settings, tokenizer), name=model.name
    )
    changed.checkpoint_files = other_files(model)
    copy_base(model, changed)
    return changed


def with_vocabulary_of(model: AsrModel, name: str) -> AsrModel:
    """A model over the tokens of an adapter, with the adapter's heads, and its acoustic part as an adapter.

    Adapters that do not care about tokens come along. Raises CheckpointError where another one does.
    """
    adapter = model.adapters[name]
    own = adapter.vocabulary
    assert own is not None, "the caller has looked"
    check_others(model, name)
    with UnsetWeights():
        changed = with_fresh_heads(model, own.tokenizer)
    for part, net in own.nets.items():
        getattr(changed, part).load_state_dict(net.state_dict())
    for other in model.adapters:
        layers, modules = other.layers, other.modules_text
        made = changed.adapters.add(other.name, other.kind, modules=modules, layers=layers, strategy=other.strategy)
        made.load_tensors(split_tensors(other.tensors())[0])
        made.card, made.nemo, made.words = copy.deepcopy(other.card), copy.deepcopy(other.nemo), other.words
    changed.adapters.file_choice, changed.adapters.nemo = model.adapters.file_choice, model.adapters.nemo
    return changed.to(model.device)


def find_owner(model: AsrModel, enabled: Container[str] | None) -> str | None:
    """The adapter whose vocabulary a `.nemo` of the model has; None where it has the base's.

    enabled: the adapters that are to act; None: the model's own choice. Raises CheckpointError for an adapter with a
    vocabulary of its own that is not to act, or where there are several.
    """
    owners = [adapter.name for adapter in model.adapters if adapter.vocabulary is not None]
    acting = [name for name in owners if name in (model.adapters.file_choice if enabled is None else enabled)]
    if owners and owners != acting[:1]:
        others = [name for name in owners if name not in acting[:1]]
        raise CheckpointError(
            f"A .nemo has one vocabulary, and {', '.join(others)} would bring another. "
            f"save_model(model, path, enabled=['{others[0]}']) writes the model with that of '{others[0]}'; remove the "
            "other adapters with a vocabulary of their own before, or save the model as a folder."
        )
    return acting[0] if acting else None


def check_others(model: AsrModel, name: str) -> None:
    """Raises CheckpointError for an adapter that needs the base's tokens, beside one that has others."""
    own = model.adapters[name].vocabulary
    for other in model.adapters:
        problem = None if other.name == name or own is None else needs_base_tokens(other, own.digest())
        if problem is not None:
            raise CheckpointError(
                f"A .nemo with the vocabulary of '{name}' cannot hold adapter '{other.name}', which {problem}. Remove "
                "it before, or save the model as a folder."
            )


def refuse_vocabulary(adapter: Adapter) -> None:
    """Raises CheckpointError for an adapter with a vocabulary of its own, which no adapter of NeMo's has."""
    if adapter.vocabulary is not None:
        raise CheckpointError(
            f"Adapter '{adapter.name}' has a vocabulary of its own, which NeMo's adapters do not have. Save it as an "
            f"adapter folder (adapters.save), or the model as a .nemo with save_model(…, enabled=['{adapter.name}'])."
        )


def changed_settings(model: AsrModel, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """The settings of the same model over other tokens. Raises CheckpointError for a model told a task in them."""
    if not any(part in model.parts for part in WITH_TOKENS):
        raise CheckpointError(
            f"{model.name or 'This model'} is told its task in tokens of its own vocabulary; it has no other one. "
            "Change the vocabulary of a CTC model or a transducer."
        )
    settings = {part: dict(values) for part, values in model.settings.items()}
    for part in WITH_TOKENS:
        if part in settings:
            settings[part]["classes"] = tokenizer.size
    return settings


def copy_base(model: AsrModel, changed: AsrModel) -> None:
    """Copy the values of all parts that do not know the tokens."""
    own = changed.base_state_dict()
    with torch.no_grad():
        for name, tensor in model.base_state_dict().items():
            if name.partition(".")[0] not in WITH_TOKENS:
                own[name].copy_(tensor)


def changed_config(model: AsrModel, settings: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    """The configuration of the model's file over other tokens; empty where it had none.

    Raises CheckpointError for a tokenizer that NeMo could not read.
    """
    config = copy.deepcopy(dict(model.config))
    if not config:
        return config
    parts = {part: complete(part, settings[part]) for part in parts_of(settings)}
    keys = vocabulary_keys(tokenizer, family_of(parts))
    target = keys.pop("target")
    if ("labels" in keys) != ("tokenizer" not in config):
        config["target"] = target
    for name in ("labels", "tokenizer"):
        config.pop(name, None)
    config |= keys
    for name in DATA:
        if isinstance(config.get(name), dict):
            config[name].pop("labels", None)
            config[name] |= {key: value for key, value in keys.items() if key == "labels"}
    merge_tokens(config, describe_heads(parts, tokenizer))
    return config


def merge_tokens(config: dict[str, Any], described: Mapping[str, Any]) -> None:
    """Take the keys about tokens from the sections of heads, and everything else as it stands."""
    for name, section in described.items():
        if not isinstance(config.get(name), dict):
            config[name] = copy.deepcopy(section)
            continue
        for key, value in section.items():
            if isinstance(value, Mapping) and key == "decoder":
                merge_tokens(config[name], {key: value})
            elif key in VOCABULARY_KEYS:
                config[name][key] = value


def other_files(model: AsrModel) -> dict[str, bytes]:
    """The files of the model's checkpoint without those of its tokenizer."""
    named: set[str] = set()

    def note(section: Any) -> None:
        if isinstance(section, Mapping):
            for value in section.values():
                note(value)
        elif isinstance(section, str):
            named.add(section.removeprefix(FILE_PREFIX).rpartition("/")[2])

    note(model.config.get("tokenizer"))
    return {name: content for name, content in model.checkpoint_files.items() if name.rpartition("/")[2] not in named}
