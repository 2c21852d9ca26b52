"""Models in the Hugging Face layout: `config.json`, `model.safetensors`, the processor's files; Parakeet, both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overtone.checkpoints.folder import (
    STORAGES,
    Storage,
    has_same_values,
    is_native,
    read_file,
    replace_model,
    stored_tensors,
)
from overtone.checkpoints.huggingface.config import (
    CONFIG,
    PREPROCESSOR,
    PROCESSOR,
    describe,
    read_features,
    read_json,
    translate,
)
from overtone.checkpoints.huggingface.peft import ADAPTER_CONFIG, load_peft, lora_of, write_peft
from overtone.checkpoints.huggingface.tokenizer import read_pieces, write_pieces
from overtone.checkpoints.nemo.archive import LIMITS, plain_name
from overtone.checkpoints.nemo.keys import nemo_key
from overtone.checkpoints.nemo.model import check_keys, check_shape, load_base, net_shapes, size_of
from overtone.checkpoints.tensors import read_tensors, write_tensors
from overtone.config.keys import refuse
from overtone.errors import AdapterError, CheckpointError, ConfigError
from overtone.models.asr_model import AsrModel, build_model
from overtone.models.parts import UnsetWeights
from overtone.tokenizers import SentencePieceTokenizer

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.json"
PIECES = "tokenizer.model"
ADAPTERS = "adapters"
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
BLANKS = {"parakeet_ctc": "<pad>", "parakeet_rnnt": "<blank>", "parakeet_tdt": "<blank>"}
"""The blank's token by `model_type`."""
FEATURES = "preprocessor.featurizer."
"""The beginning of NeMo's keys that the layout has no tensors for: they follow from the settings."""

KEYS = (
    ("encoder.pre_encode.conv.", "encoder.subsampling.layers."),
    ("encoder.pre_encode.out.", "encoder.subsampling.linear."),
    (".conv.batch_norm.", ".conv.norm."),
    (".linear_q.", ".q_proj."),
    (".linear_k.", ".k_proj."),
    (".linear_v.", ".v_proj."),
    (".linear_out.", ".o_proj."),
    (".linear_pos.", ".relative_k_proj."),
    (".pos_bias_u", ".bias_u"),
    (".pos_bias_v", ".bias_v"),
    ("decoder.decoder_layers.0.", "ctc_head."),
    ("decoder.prediction.embed.", "decoder.embedding."),
    ("decoder.prediction.dec_rnn.lstm.", "decoder.lstm."),
    ("joint.enc.", "encoder_projector."),
    ("joint.pred.", "decoder.decoder_projector."),
    ("joint.joint_net.1.", "joint.head."),
    ("joint.joint_net.2.", "joint.head."),
)
"""Parts of NeMo's keys -> those of the layout's, where they differ."""


def is_huggingface(folder: Path) -> bool:
    """True if a folder has a configuration in this layout, and is no model folder of our own."""
    return (folder / CONFIG).is_file() and not is_native(folder)


def read_huggingface(folder: Path | str, *, adapters: bool = True) -> AsrModel:
    """The model of a folder in float32 with the LoRA in its `adapters/`, none in use.

    Raises CheckpointError, naming file and cause, for what is missing, damaged or not supported.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    settings = translate(config, read_features(folder), str(folder))
    tokenizer = read_tokenizer(folder, settings["decoder"]["classes"])
    tensors = read_weights(folder)
    try:
        check_layout(settings, tensors, str(folder))
        with UnsetWeights():
            model = build_model(settings=settings, tokenizer=tokenizer, name=folder.name)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    base = {nemo_key(name): tensor for name, tensor in model.base_state_dict().items()}
    own = {key: base[key] if key.startswith(FEATURES) else tensors.pop(layout_key(key)) for key in base}
    load_base(model, own, str(folder), keep=True)
    for place in sorted((folder / ADAPTERS).glob(f"*/{ADAPTER_CONFIG}")) if adapters else ():
        try:
            load_peft(model, place.parent)
        except AdapterError as error:
            raise CheckpointError(f"{error} (Load the base alone with adapters=False.)") from error
    return model


def read_tokenizer(folder: Path, size: int) -> SentencePieceTokenizer:
    """The tokenizer of `size` tokens: a sentencepiece model where one lies there, else `tokenizer.json`.

    Raises CheckpointError where both are missing, damaged or of another size.
    """
    if (folder / PIECES).is_file():
        tokenizer = SentencePieceTokenizer(read_file(folder / PIECES, LIMITS.small_file_bytes))
        if tokenizer.size != size:
            raise CheckpointError(
                f"{folder / PIECES} has {tokenizer.size} pieces, the model {size} tokens and the blank; "
                "they must be equal."
            )
        return tokenizer
    return read_pieces(read_json(folder / TOKENIZER), size, str(folder / TOKENIZER))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`, or of the files that its index names. Raises CheckpointError."""
    if (folder / WEIGHTS).is_file():
        return read_tensors(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        found = [name for name in PICKLES if (folder / name).is_file()]
        advice = f"; it has {found[0]}, a pickle that is not read: save it with transformers again" if found else ""
        raise CheckpointError(f"{folder} has no {WEIGHTS} and no {INDEX}{advice}.")
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        refuse(str(folder / INDEX), "weight_map", places, "a mapping of tensors to files")
    tensors: dict[str, Tensor] = {}
    for name in sorted({str(place) for place in places.values()}):
        if Path(plain_name(folder / INDEX, name)).suffix != ".safetensors":
            refuse(str(folder / INDEX), "weight_map", name, "files of safetensors beside it")
        tensors |= read_tensors(folder / name)
    check_keys(places.keys(), tensors.keys(), str(folder / INDEX))
    return tensors


def check_layout(settings: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor], source: str) -> None:
    """Check the tensors' names and shapes against the settings before anything of that size is made.

    Raises CheckpointError where they are others, ConfigError where the settings contradict themselves.
    """
    if settings["encoder"]["layers"] > len(tensors):
        raise CheckpointError(
            f"{source}: its {len(tensors)} tensors cannot be the {settings['encoder']['layers']} layers of {CONFIG}."
        )
    expected = {layout_key(key): shape for key, shape in net_shapes(settings, source).items()}
    check_keys(expected.keys(), tensors.keys(), source)
    for key, shape in expected.items():
        check_shape(key, tensors[key], shape, source)


def layout_key(key: str) -> str:
    """NeMo's key of a tensor -> the layout's."""
    for nemo, layout in KEYS:
        key = key.replace(nemo, layout, 1)
    return key


# The other way


def write_huggingface(
    model: AsrModel, folder: Path | str, *, storage: Storage = "float32", overwrite: bool = False
) -> None:
    """Write the model, and its LoRA adapters as PEFT's folders in `adapters/`; all appears whole or not at all.

    Raises CheckpointError where the folder exists (unless `overwrite`) or cannot be written, for settings, tokenizers
    and adapters that the layout has no place for, and where half precision would change a base that has adapters.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise CheckpointError(f"{folder} exists already; choose another folder, or allow overwriting.")
    if folder.exists() and not is_huggingface(folder):
        raise CheckpointError(
            f"{folder} is no folder of a model in the Hugging Face layout, so it is not overwritten; choose another."
        )
    tensors = stored_tensors(model, storage)
    if len(model.adapters) and not has_same_values(model, tensors):
        raise CheckpointError(
            f"Storing {model.name or 'the model'} in {storage} would change its base, and its adapters would no longer "
            "belong to it; use storage float32, or store the base alone."
        )
    config, features = describe(model.settings, str(STORAGES[storage]).removeprefix("torch."))
    check_features(model)
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise CheckpointError(
            f"A tokenizer of type {type(tokenizer).__name__} has no form in the Hugging Face layout; "
            "save a .nemo or a native folder."
        )
    texts = text_files(tokenizer, config, features)
    kept = {layout_key(key): tensor for key, tensor in tensors.items() if not key.startswith(FEATURES)}
    loras = {adapter.name: lora_of(adapter) for adapter in model.adapters}

    def fill(place: Path) -> None:
        write_tensors(kept, place / WEIGHTS)
        (place / PIECES).write_bytes(tokenizer.model_bytes)
        for name, content in texts.items():
            text = json.dumps(content, indent=2, ensure_ascii=False)
            (place / name).write_text(text + "\n", encoding="utf-8")
        for name, lora in loras.items():
            write_peft(lora, place / ADAPTERS / name)

    replace_model(folder, fill, needed=size_of(kept))


def check_features(model: AsrModel) -> None:
    """Raises CheckpointError where a model's window or filter bank are not those that its settings stand for."""
    made = type(model.preprocessor)(**model.settings["preprocessor"])
    for name, tensor in made.state_dict().items():
        if not torch.allclose(tensor, model.preprocessor.get_buffer(name).cpu(), rtol=1e-4, atol=1e-6):
            raise CheckpointError(
                f"preprocessor.{name} of {model.name or 'the model'} is not what its settings stand for, and the "
                "Hugging Face layout has no place for it. Save a .nemo or a native folder."
            )


def text_files(
    tokenizer: SentencePieceTokenizer, config: Mapping[str, Any], features: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of every JSON file by its name. Raises CheckpointError for a tokenizer without a form there."""
    kind = config["model_type"]
    blank = BLANKS[kind]
    if blank in tokenizer.vocabulary:
        raise CheckpointError(f"The tokenizer has a piece '{blank}', which is the blank in the Hugging Face layout.")
    pieces = write_pieces(tokenizer, blank)
    unknown = pieces["model"].get("unk_token", tokenizer.vocabulary[pieces["model"].get("unk_id") or 0])
    processor = {"processor_class": "ParakeetProcessor"}
    start = {} if kind == "parakeet_ctc" else {"decoder_start_token_id": config["pad_token_id"]}
    return {
        CONFIG: config,
        "generation_config.json": {"pad_token_id": config["pad_token_id"], **start},
        TOKENIZER: pieces,
        "tokenizer_config.json": {
            **processor,
            "tokenizer_class": "ParakeetTokenizer",
            "pad_token": blank,
            "unk_token": unknown,
        },
        PREPROCESSOR: {**features, **processor},
        PROCESSOR: {
            **processor,
            "feature_extractor": dict(features),
            "blank_token": "<blank>",
            "decoder_type": kind.removeprefix("parakeet_"),
        },
    }
