"""LoRA in PEFT's folders, both ways: `adapter_config.json` and `adapter_model.safetensors`.

Legend: A the product's first matrix [R, in], B its second [out, R], R rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overtone.adapters.adapter import Adapter, check_finite
from overtone.adapters.kinds.base import LARGEST
from overtone.adapters.kinds.lora import LORA_TAPS, LoraAdapter
from overtone.adapters.points import Layers, Point
from overtone.adapters.strategies import ResidualAdd
from overtone.budgets import check_json
from overtone.checkpoints.folder import read_file, replace_model
from overtone.checkpoints.nemo.archive import LIMITS
from overtone.checkpoints.nemo.model import listed, size_of
from overtone.checkpoints.tensors import read_tensors, write_tensors
from overtone.config.keys import Key, flag, integer, number, read_section, refuse, shown
from overtone.errors import CheckpointError
from overtone.models.asr_model import AsrModel

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
MODULES = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "out": "o_proj",
    "expand": "linear1",
    "contract": "linear2",
}
"""The last part of a tap's name -> the module there that LoRA stands beside."""
KEY = re.compile(r"(?P<module>encoder\.layers\.(?P<layer>\d+)\.\w+\.\w+)\.lora_(?P<matrix>[AB])\.weight")
PATTERN = re.compile(r"\^?[\w.]+")
"""A module's name or its end: regular expressions of a file are not run."""
LARGEST_GROWTH = 64
"""The largest ratio of the numbers that an adapter holds here to those in its file."""

KEYS = (
    Key("r", "rank", integer(at_most=LARGEST), 8),
    Key("lora_alpha", "alpha", number(), 8.0),
    Key("lora_dropout", "dropout", number(0.0, 0.999_999), 0.0),
    Key("use_rslora", "root", flag, False),
)
NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
FIXED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": NOTHING,
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
    **dict.fromkeys(
        (
            "alora_invocation_tokens",
            "arrow_config",
            "kasa_config",
            "layer_replication",
            "lora_bias",
            "modules_to_save",
            "monteclora_config",
            "target_parameters",
            "trainable_token_indices",
            "use_bdlora",
            "use_dora",
            "use_qalora",
            "velora_config",
        ),
        NOTHING,
    ),
}
"""Keys with the only values that our LoRA can express."""
IDLE = (
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
)
"""Keys that change no number, or that the tensors themselves tell."""


@dataclass(frozen=True, kw_only=True)
class StoredLora:
    """A LoRA of a folder, with its parameters by the names of `Adapter.tensors()`."""

    kind: LoraAdapter
    layers: Layers
    tensors: dict[str, Tensor]
    strategy: ResidualAdd = ResidualAdd()


def is_peft(folder: Path) -> bool:
    """True if a folder holds an adapter of PEFT's."""
    return (folder / ADAPTER_CONFIG).is_file()


def load_peft(model: AsrModel, folder: Path | str, *, name: str | None = None) -> Adapter:
    """Add the LoRA of a folder to a model, under the folder's name unless another is given.

    PEFT's folders do not know their base: that shapes agree is all that can be checked. Raises AdapterError for a name
    that is taken or malformed and for numbers that are not finite, CheckpointError for what is missing, damaged or
    beyond our LoRA.
    """
    folder = Path(folder)
    stored = read_peft(model, folder)
    check_finite(stored.tensors, str(folder / ADAPTER_WEIGHTS))
    adapter = model.adapters.add(name or folder.resolve().name, stored.kind, layers=stored.layers)
    adapter.load_tensors(stored.tensors)
    return adapter


def read_peft(model: AsrModel, folder: Path) -> StoredLora:
    """Read the LoRA of a folder for a model. Raises CheckpointError for what our LoRA cannot express, by its key."""
    path = folder / ADAPTER_CONFIG
    config = read_adapter_config(path)
    values = read_section(config, KEYS, str(path), fixed=FIXED, idle=IDLE)
    found = sort_matrices(read_tensors(folder / ADAPTER_WEIGHTS), folder / ADAPTER_WEIGHTS)
    taps = {module_of(name): name for name in model.adapters.points if name.rpartition(".")[2] in MODULES}
    strange = sorted(set(found) - set(taps))
    if strange:
        raise CheckpointError(
            f"{folder}: {listed(strange)}: no LoRA of this model stands there. It may stand beside {listed(taps)}."
        )
    ranks = {matrices["A"].size(0) for matrices in found.values()}
    rank = max(ranks)
    alike = ranks == {values["rank"]} and not config.get("alpha_pattern")
    alpha = values["alpha"] * (math.sqrt(rank) if values["root"] else 1.0) if alike else float(rank)
    ends = {taps[module].rpartition(".")[2] for module in found}
    targets = tuple(target for target, names in LORA_TAPS.items() if ends & set(names))
    kind = LoraAdapter(rank=rank, alpha=alpha, dropout=values["dropout"], targets=targets)
    layers = sorted({int(taps[module].split(".")[2]) for module in found})
    points = {module: model.adapters.points[name] for module, name in taps.items()}
    places = {module: point for module, point in points.items() if kind.acts_at(point) and point.layer in layers}
    held = sum(tensor.numel() for matrices in found.values() for tensor in matrices.values())
    if rank * sum(point.in_width + point.out_width for point in places.values()) > LARGEST_GROWTH * held:
        refuse(str(path), "rank_pattern", sorted(ranks), "ranks of one size, since all are filled up to the largest")
    tensors: dict[str, Tensor] = {}
    for module, point in places.items():
        scale = 1.0 if alike else scale_of(module, values, config, found)
        down, up = filled_up(found.get(module), point, rank, scale, f"{folder}: {module}")
        tensors |= {f"{point.name}.down.weight": down, f"{point.name}.up.weight": up}
    everywhere = len(layers) == model.setting("encoder", "layers")
    return StoredLora(kind=kind, layers="all" if everywhere else layers, tensors=tensors)


def filled_up(
    pair: Mapping[str, Tensor] | None, point: Point, rank: int, scale: float, source: str
) -> tuple[Tensor, Tensor]:
    """The matrices A [R, in] and scale times B [out, R] of a module in the rank of all, both zero where it has none.

    Raises CheckpointError for shapes of another model.
    """
    down, up = torch.zeros(rank, point.in_width), torch.zeros(point.out_width, rank)
    if pair is not None:
        first, second = pair["A"], pair["B"]
        own = first.size(0)
        if first.shape != (own, point.in_width) or second.shape != (point.out_width, own):
            raise CheckpointError(
                f"{source} has A {list(first.shape)} and B {list(second.shape)}, this model needs "
                f"[R, {point.in_width}] and [{point.out_width}, R]; it was made for another model."
            )
        down[:own], up[:, :own] = first, second * scale
    return down, up


def read_adapter_config(path: Path) -> dict[str, Any]:
    """Read `adapter_config.json`; keys that say nothing are left out. Raises CheckpointError where it is damaged."""
    try:
        content = read_file(path, LIMITS.config_bytes)
        check_json(content)
        config = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or no JSON: {error}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds {shown(config)}; a mapping of keys is needed.")
    known = {*(key.theirs for key in KEYS), *FIXED, *IDLE}
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        numbers = isinstance(pattern, dict) and all(type(each) in (int, float) for each in pattern.values())
        plain = numbers and (
            key == "rank_pattern" or all(map(PATTERN.fullmatch, pattern))
        )  # the tensors tell the ranks
        if not plain or not all(map(math.isfinite, pattern.values())):
            refuse(str(path), key, pattern, "a mapping of modules' names, or their ends, to numbers")
    return {key: value for key, value in config.items() if key in known or value not in NOTHING}


def sort_matrices(tensors: Mapping[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """The matrices A and B of every module. Raises CheckpointError for tensors that are none, and without the other."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        match = KEY.fullmatch(name)
        if match is None or tensor.dim() != 2 or not tensor.is_floating_point():
            raise CheckpointError(
                f"{path}: {key} of shape {list(tensor.shape)} is no matrix of a LoRA beside a Linear of an encoder's "
                f"layer ({PREFIX}encoder.layers.N.PART.MODULE.lora_A.weight), and has no place in our LoRA."
            )
        found.setdefault(match["module"], {})[match["matrix"]] = tensor
    single = sorted(module for module, matrices in found.items() if len(matrices) < 2)
    if single or not found:
        raise CheckpointError(
            f"{path} holds no pair of matrices A and B for {listed(single) if single else 'anything'}."
        )
    return found


def scale_of(
    module: str, values: Mapping[str, Any], config: Mapping[str, Any], found: Mapping[str, Mapping[str, Tensor]]
) -> float:
    """The factor of a module's product: alpha / R, or alpha / √R; its alpha may stand in the pattern."""
    if module not in found:
        return 0.0
    rank, patterns = found[module]["A"].size(0), config.get("alpha_pattern") or {}
    own = (
        alpha
        for pattern, alpha in patterns.items()
        if pattern.removeprefix("^") == module or module.endswith(f".{pattern}")
    )
    return float(next(own, values["alpha"])) / (math.sqrt(rank) if values["root"] else rank)


def module_of(tap: str) -> str:
    """`encoder.layers.0.self_attn.q` stands behind `encoder.layers.0.self_attn.q_proj`."""
    place, _, name = tap.rpartition(".")
    return f"{place}.{MODULES[name]}"


# The other way


def lora_of(adapter: Adapter) -> Adapter:
    """The adapter itself. Raises CheckpointError for one of another kind than LoRA, and with words or own tokens."""
    if not isinstance(adapter.kind, LoraAdapter):
        raise CheckpointError(
            f"Adapter '{adapter.name}' is of kind {adapter.kind.name}; PEFT's folders hold LoRA alone. Save it as an "
            "adapter folder (adapters.save), or remove it before writing the Hugging Face layout."
        )
    if adapter.vocabulary is not None:
        raise CheckpointError(
            f"Adapter '{adapter.name}' has a vocabulary of its own, which PEFT's folders cannot hold. Save it as an "
            "adapter folder (adapters.save)."
        )
    if adapter.words is not None:
        raise CheckpointError(
            f"Adapter '{adapter.name}' has a word part, which PEFT's folders cannot hold. Save it as an adapter folder "
            "(adapters.save), or set its `words` to None."
        )
    return adapter


def save_peft(adapter: Adapter, folder: Path | str) -> Path:
    """Write a LoRA as a new folder that PEFT reads. Raises CheckpointError for other kinds, and where that fails."""
    folder = Path(folder).expanduser()
    if folder.exists():
        raise CheckpointError(f"{folder} exists already; choose another folder.")
    lora = lora_of(adapter)
    check_finite(lora.tensors(), f"Adapter '{adapter.name}' is not written: it")
    replace_model(folder, lambda fresh: write_peft(lora, fresh), needed=size_of(lora.tensors()))
    return folder


def write_peft(adapter: Adapter, folder: Path) -> None:
    """Write a LoRA's two files into a folder."""
    kind = adapter.kind
    assert isinstance(kind, LoraAdapter)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for point in adapter.points:
        for ours, matrix in (("down", "A"), ("up", "B")):
            value = adapter.at(point).tensors()[f"{ours}.weight"].detach().float().cpu().contiguous().clone()
            tensors[f"{PREFIX}{module_of(point)}.lora_{matrix}.weight"] = value
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": kind.rank,
        "lora_alpha": kind.alpha,
        "lora_dropout": kind.dropout,
        "bias": "none",
        "target_modules": sorted({module_of(point) for point in adapter.points}),
    }
    write_tensors(tensors, folder / ADAPTER_WEIGHTS)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
