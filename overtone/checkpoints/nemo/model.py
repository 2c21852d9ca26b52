"""Whole models as `.nemo` files, both ways."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overtone.checkpoints.nemo.adapters import (
    adapter_hosts,
    adapters_section,
    add_nemo_adapter,
    split_adapters,
)
from overtone.checkpoints.nemo.archive import LIMITS, Archive, Unpacked, open_archive, open_unpacked, write_archive
from overtone.checkpoints.nemo.config import ENCODERS, NemoDescription, describe, translate
from overtone.checkpoints.nemo.keys import nemo_key
from overtone.checkpoints.nemo.multitask import adaptable_sections, check_tied, rows_of
from overtone.checkpoints.nemo.pickles import read_state_dict
from overtone.checkpoints.nemo.tokenizer import FILE_PREFIX, read_tokenizer, tokenizer_files, tokenizers_of
from overtone.checkpoints.nemo.vocabulary import find_owner, with_vocabulary_of
from overtone.checkpoints.nemo.words import give_words, make_members, take_members
from overtone.checkpoints.nemo.yaml import read_yaml, resolved, write_yaml
from overtone.errors import CheckpointError, ConfigError, UsageError
from overtone.files import write_failure
from overtone.models.asr_model import AsrModel, build_model
from overtone.models.parts import UnsetWeights, build_part, parts_of
from overtone.tokenizers import CharTokenizer, Tokenizer

CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"
ALIGNER = "timestamps_asr_model_"
"""Beginning of the files of a second model, which some of NeMo's multitask models hold for the times of words."""


def read_nemo(path: Path | str, *, adapters: bool = True) -> AsrModel:
    """Load the model of a `.nemo`, or of a folder that it was unpacked into, in float32 with its adapters, none in use.

    Raises CheckpointError, naming file and cause, for what is damaged, unsafe or not supported.
    """
    path = Path(path)
    with open_unpacked(path) if path.is_dir() else open_archive(path) as archive:
        config = read_config(archive.read(CONFIG, at_most=LIMITS.config_bytes), f"{path}: {CONFIG}")
        description = translate(config, f"{path}: {CONFIG}")
        others = [name for name in archive.names if name not in (CONFIG, WEIGHTS) and not name.startswith(ALIGNER)]
        files = {name: archive.read(name) for name in others}
        tokenizer = read_tokenizer(description.tokenizer, files, str(path))
        with archive.open(WEIGHTS) if WEIGHTS in archive else _no_weights(archive) as weights:
            base, held = split_adapters(read_state_dict(weights, f"{path}: {WEIGHTS}"))
    model = assemble(description, config, tokenizer, base, source=str(path), name=path.stem)
    words = take_members(files)
    keep_files(model, files)
    described = {adapter.name for adapter in description.adapters}
    if described != set(held):
        raise CheckpointError(
            f"{path}: its configuration has the adapters {', '.join(sorted(described)) or 'none'}, "
            f"its weights those of {', '.join(sorted(held)) or 'none'}."
        )
    if adapters:
        for adapter in description.adapters:
            add_nemo_adapter(model, adapter, held[adapter.name], str(path))
        give_words(model, words, path)
        model.adapters.file_choice = tuple(entry.name for entry in description.adapters if entry.enabled)
    return model


def write_nemo(model: AsrModel, path: Path | str, *, enabled: Container[str] | None = None) -> None:
    """Write the model and its adapters; NeMo restores the file, and what was not changed stands as it stood.

    enabled: the adapters that NeMo lets act; None: as the model's own file had it, and all that are new. With an
    adapter among them that has a vocabulary of its own, the file is a model with that vocabulary.
    Word parts lie beside NeMo's files in it. The file appears whole or not at all. Raises CheckpointError where NeMo
    lacks the kind or name of an adapter.
    """
    path = Path(path)
    owner = find_owner(model, enabled)
    model = model if owner is None else with_vocabulary_of(model, owner)
    config = nemo_config(model, enabled=enabled)
    tensors = {nemo_key(name): tensor.detach().cpu() for name, tensor in model.base_state_dict().items()}
    for adapter in model.adapters:
        for host, parameters in adapter_hosts(model, adapter).items():
            for parameter, tensor in parameters.items():
                tensors[f"{host}.adapter_layer.{adapter.name}.{parameter}"] = tensor
    needed = 2 * size_of(tensors)  # beside the archive, until it is complete
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent) as weights:
            torch.save(tensors, weights)
            members: list[tuple[str, Any]] = sorted(
                {**model_files(model, config), **make_members(model.adapters)}.items()
            )
            parts = [*members, (CONFIG, write_yaml(config).encode()), (WEIGHTS, weights)]
            write_archive(path, parts, needed=needed)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(write_failure(path, error, needed=needed)) from error


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())


def read_config(content: bytes, source: str) -> dict[str, Any]:
    """The configuration as it stands; a training configuration around it is taken off."""
    config = read_yaml(content, source)
    if isinstance(config.get("model"), dict) and "preprocessor" not in config:
        unwrapped: dict[str, Any] = resolved(config, "model", source)
        return unwrapped
    return config


def assemble(
    description: NemoDescription,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    tensors: dict[str, Tensor],
    *,
    source: str,
    name: str,
) -> AsrModel:
    """Build a model from its parts; `tensors` are the base's by NeMo's keys, all of them and no other, and are used up.

    Raises CheckpointError where they contradict each other.
    """
    settings = description.settings
    if "transf_decoder" in settings:
        settings["transf_decoder"]["classes"] = rows_of(tokenizer.size)
    for part in ("decoder", "joint", "ctc_decoder"):
        if part not in settings:
            continue
        settings[part]["classes"] = settings[part]["classes"] or tokenizer.size
        if settings[part]["classes"] != tokenizer.size:
            raise CheckpointError(
                f"{source}: the head has {settings[part]['classes']} classes, the tokenizer {tokenizer.size} symbols; "
                "they must be equal."
            )
    try:
        check_sizes(settings, tensors, source)
        with UnsetWeights():
            model = build_model(settings=settings, tokenizer=tokenizer, config=config, name=name)
    except (ConfigError, UsageError) as error:
        raise CheckpointError(f"{source}: {error}") from error
    load_base(model, tensors, source, keep=True)
    return model


def load_base(model: AsrModel, tensors: dict[str, Tensor], source: str, *, keep: bool = False) -> None:
    """Move the values into the base; `tensors` is emptied on the way, so that none but the smallest are copied.

    keep: as they are, float32 tensors become the base's own, for a model that nothing else has seen yet.
    Raises CheckpointError unless exactly the base's keys, shapes and types are there.
    """
    own = {nemo_key(name): tensor for name, tensor in model.base_state_dict().items()}
    check_keys(own.keys(), tensors.keys(), source)
    check_tied(tensors, source)
    shared = model.settings["encoder"].get("untie_biases") is False
    places = base_tensors(model) if keep and not shared else {}
    kept: set[int] = set()
    with torch.no_grad():
        for key in list(tensors):
            tensor = tensors[key] if shared else tensors.pop(key)
            check_shape(key, tensor, own[key].shape, source)
            if tensor.is_floating_point() != own[key].is_floating_point():
                raise CheckpointError(f"{source}: {key} holds {tensor.dtype}, expected {own[key].dtype}.")
            if key in places and is_own_memory(tensor, own[key], kept):
                kept.add(tensor.data_ptr())
                places[key].data = tensor
            else:
                own[key].copy_(tensor)
        for key in tensors:
            if not torch.equal(own[key], tensors[key].to(own[key].dtype)):
                raise CheckpointError(f"{source}: {key} differs between layers, although untie_biases is false.")
        tensors.clear()


def base_tensors(model: AsrModel) -> dict[str, Tensor]:
    """The parameters and buffers of the base themselves, by NeMo's keys."""
    found = [*model.named_parameters(), *model.named_buffers()]
    return {nemo_key(name): tensor for name, tensor in found}


def is_own_memory(tensor: Tensor, place: Tensor, kept: Container[int]) -> bool:
    """True if a tensor, of any shape, can stand in the place of another: it has all of its memory for itself."""
    return (
        (tensor.dtype, tensor.device) == (place.dtype, place.device)
        and tensor.is_contiguous()
        and tensor.untyped_storage().nbytes() == tensor.nbytes
        and tensor.data_ptr() not in kept
    )


def check_sizes(settings: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor], source: str) -> None:
    """Check the sizes of a configuration against the tensors before anything of that size is made.

    Raises CheckpointError where it asks for others, ConfigError where it contradicts itself.
    """
    encoder, preprocessor = settings["encoder"], settings["preprocessor"]
    layers = encoder["layers"] if "layers" in encoder else sum(block["repeat"] for block in encoder["blocks"])
    if layers > len(tensors):
        raise CheckpointError(
            f"{source}: its {len(tensors)} tensors cannot be the {layers} layers of its configuration."
        )
    window = int(preprocessor["window_size"] * preprocessor["sample_rate"])
    bins = (preprocessor["n_fft"] or 2 ** max(window - 1, 0).bit_length()) // 2 + 1
    expected = {
        "preprocessor.featurizer.window": torch.Size((window,)),
        "preprocessor.featurizer.fb": torch.Size((1, preprocessor["features"], bins)),
        **net_shapes(settings, source),
    }
    check_keys(expected.keys(), tensors.keys(), source)
    for key, shape in expected.items():
        check_shape(key, tensors[key], shape, source)


def net_shapes(settings: Mapping[str, Mapping[str, Any]], source: str) -> dict[str, torch.Size]:
    """The shapes of encoder and head by NeMo's keys, without values; from one layer where all are alike.

    Raises CheckpointError for sizes that cannot be.
    """
    try:
        with torch.device("meta"), UnsetWeights():  # drawing on it would import the compiler of torch
            alike = {"layers": 1} if "layers" in settings["encoder"] else {}
            encoder = build_part("encoder", {**settings["encoder"], **alike})
            heads = {
                part: build_part(part, settings[part])
                for part in parts_of(settings)
                if part not in ("preprocessor", "encoder")
            }
    except RuntimeError as error:
        raise CheckpointError(f"{source}: its configuration asks for more than there can be: {error}.") from error
    shapes = {f"encoder.{name}": tensor.shape for name, tensor in encoder.state_dict().items()}
    for part, net in heads.items():
        shapes |= {nemo_key(f"{part}.{name}"): tensor.shape for name, tensor in net.state_dict().items()}
    first = "encoder.layers.0."
    for name in [name for name in shapes if name.startswith(first)]:
        for layer in range(1, settings["encoder"].get("layers", 1)):
            shapes[f"encoder.layers.{layer}.{name.removeprefix(first)}"] = shapes[name]
    return shapes


def check_keys(own: Collection[str], found: Collection[str], source: str) -> None:
    """Raises CheckpointError unless exactly our own keys were found."""
    missing, left = set(own) - set(found), set(found) - set(own)
    if missing or left:
        raise CheckpointError(
            f"{source}: its weights are not those of its configuration. "
            f"Missing: {listed(missing)}. Left over: {listed(left)}."
        )


def check_shape(key: str, tensor: Tensor, shape: torch.Size, source: str) -> None:
    """Check a tensor, of any shape, against the expected one. Raises CheckpointError."""
    if tensor.shape != shape:
        raise CheckpointError(
            f"{source}: {key} has shape {list(tensor.shape)}, its configuration asks for {list(shape)}."
        )


def nemo_config(
    model: AsrModel, adapters: Iterable[str] | None = None, *, enabled: Container[str] | None = None
) -> dict[str, Any]:
    """The model's configuration for NeMo: the file's own, with the adapters as they are now (all unless named).

    enabled: as `write_nemo`.
    """
    names = model.adapters.names if adapters is None else list(adapters)
    config = copy.deepcopy(dict(model.config)) or describe(model.settings, model.tokenizer)
    config.pop("adapters", None)
    if config.get("validation_ds") is None:  # NeMo's transcribe reads a key of it
        config["validation_ds"] = {"manifest_filepath": None}
    if names:
        config["adapters"] = adapters_section(model, names, enabled)
        adaptable = ENCODERS[model.settings["encoder"].get("kind", "conformer")].adaptable
        config["encoder"] = {**config["encoder"], "_target_": adaptable}
        if "transf_decoder" in model.parts:
            config |= adaptable_sections(config, model.settings["transf_decoder"]["classes"])
    return config


def keep_files(model: AsrModel, files: Mapping[str, bytes]) -> None:
    """Remember the other files of a checkpoint, so that they are written back as they were."""
    model.checkpoint_files = dict(files)


def model_files(model: AsrModel, config: Mapping[str, Any]) -> dict[str, bytes]:
    """The files beside configuration and weights: the checkpoint's own, or the tokenizer's made anew."""
    files = dict(model.checkpoint_files)
    section = config.get("tokenizer")
    if isinstance(section, dict) and not isinstance(model.tokenizer, CharTokenizer):
        own = bool(files)
        for tokenizer, part in tokenizers_of(model.tokenizer, section):
            for key, (name, content) in tokenizer_files(tokenizer).items():
                path = str(part.get(key) or "")
                if path.startswith(FILE_PREFIX) or not own:
                    files.setdefault(path.removeprefix(FILE_PREFIX) or name, content)
    return files


def listed(keys: Iterable[str]) -> str:
    """The first of the keys for a message, and the number of the others."""
    names = sorted(keys)
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return (", ".join(names[:8]) or "none") + more


def _no_weights(archive: Archive | Unpacked) -> Any:
    folders = [name for name in archive.names if name.endswith(("/metadata.json", ".distcp", "common.pt"))]
    if folders:
        raise CheckpointError(
            f"{archive.path} holds a distributed checkpoint ({folders[0]}), which is not supported yet; "
            "save the model from NeMo as a .nemo with a single model_weights.ckpt."
        )
    return archive.open(WEIGHTS)
