"""NeMo's `model_config.yaml` as plain keyword arguments for our parts, and back.

Classes are looked up by their names in the tables below; nothing that a configuration names is imported.
Settings that cannot be honoured are refused by key, with the value and the values that are supported.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from overtone.checkpoints.nemo.conformer import CONFORMER
from overtone.checkpoints.nemo.jasper import JASPER
from overtone.checkpoints.nemo.keys import (
    CTC_DECODER,
    JOINT_NET,
    PREDICTION,
    PREPROCESSOR,
    RNNT_DECODER,
    RNNT_JOINT,
    SPEC_AUGMENT,
    STATELESS_DECODER,
    Section,
)
from overtone.checkpoints.nemo.multitask import TRANSF_DECODER, read_multitask, write_multitask
from overtone.checkpoints.nemo.tokenizer import (
    TokenizerSource,
    character_source,
    piece_source,
    tokenizer_section,
)
from overtone.checkpoints.nemo.transducer import read_prompts, read_transducer, write_transducer
from overtone.checkpoints.nemo.yaml import refuse_resolvers, resolved
from overtone.config.keys import Key, a_list, read_section, refuse, shown, write_section
from overtone.errors import CheckpointError
from overtone.models.parts import Settings, complete, parts_of
from overtone.tokenizers import CharTokenizer, Tokenizer

MODELS = "nemo.collections.asr.models"
Vocabulary = Literal["pieces", "characters"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of recognisers: the classes of its models, and the sections of their parts."""

    words: str
    """For messages."""
    character_models: tuple[str, ...]
    """Classes of models over characters; the first is written."""
    piece_models: tuple[str, ...]
    """The same over pieces."""
    sections: Mapping[str, tuple[Section, ...]]
    """For each part what its section may be, one table for each class of net. They are read in this order."""
    more: Callable[[Mapping[str, Any], dict[str, dict[str, Any]], str], None] | None = None
    """(configuration, settings of the parts, source): adds to the settings what other sections say."""


CTC = Family(
    words="CTC models: Conformer, FastConformer, Citrinet, QuartzNet, Jasper (EncDecCTCModel, EncDecCTCModelBPE)",
    character_models=(f"{MODELS}.EncDecCTCModel", f"{MODELS}.ctc_models.EncDecCTCModel"),
    piece_models=(f"{MODELS}.EncDecCTCModelBPE", f"{MODELS}.ctc_bpe_models.EncDecCTCModelBPE"),
    sections={"preprocessor": (PREPROCESSOR,), "encoder": (CONFORMER, JASPER), "decoder": (CTC_DECODER,)},
)
TRANSDUCER = Family(
    words="transducers, RNNT and TDT (EncDecRNNTModel, EncDecRNNTBPEModel)",
    character_models=(f"{MODELS}.EncDecRNNTModel", f"{MODELS}.rnnt_models.EncDecRNNTModel"),
    piece_models=(f"{MODELS}.EncDecRNNTBPEModel", f"{MODELS}.rnnt_bpe_models.EncDecRNNTBPEModel"),
    sections={
        "preprocessor": (PREPROCESSOR,),
        "encoder": (CONFORMER, JASPER),
        "decoder": (RNNT_DECODER, STATELESS_DECODER),
        "joint": (RNNT_JOINT,),
    },
    more=read_transducer,
)
HYBRID = Family(
    words="hybrids with a transducer and a CTC head (EncDecHybridRNNTCTCModel, EncDecHybridRNNTCTCBPEModel)",
    character_models=(
        f"{MODELS}.EncDecHybridRNNTCTCModel",
        f"{MODELS}.hybrid_rnnt_ctc_models.EncDecHybridRNNTCTCModel",
    ),
    piece_models=(
        f"{MODELS}.EncDecHybridRNNTCTCBPEModel",
        f"{MODELS}.hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel",
    ),
    sections={**TRANSDUCER.sections, "ctc_decoder": (CTC_DECODER,)},
    more=read_transducer,
)
PROMPTED = Family(
    words="transducers that are told the language (EncDecRNNTBPEModelWithPrompt)",
    character_models=(),
    piece_models=(
        f"{MODELS}.EncDecRNNTBPEModelWithPrompt",
        f"{MODELS}.rnnt_bpe_models_prompt.EncDecRNNTBPEModelWithPrompt",
    ),
    sections=TRANSDUCER.sections,
    more=read_prompts,
)
PROMPTED_HYBRID = Family(
    words="hybrids that are told the language (EncDecHybridRNNTCTCBPEModelWithPrompt)",
    character_models=(),
    piece_models=(
        f"{MODELS}.EncDecHybridRNNTCTCBPEModelWithPrompt",
        f"{MODELS}.hybrid_rnnt_ctc_bpe_models_prompt.EncDecHybridRNNTCTCBPEModelWithPrompt",
    ),
    sections=HYBRID.sections,
    more=read_prompts,
)
MULTITASK = Family(
    words="Canary, which transcribes and translates (EncDecMultiTaskModel)",
    character_models=(),
    piece_models=(
        f"{MODELS}.EncDecMultiTaskModel",
        f"{MODELS}.aed_multitask_models.EncDecMultiTaskModel",
    ),
    sections={"preprocessor": (PREPROCESSOR,), "encoder": (CONFORMER,), "transf_decoder": (TRANSF_DECODER,)},
    more=read_multitask,
)
FAMILIES = (CTC, TRANSDUCER, HYBRID, PROMPTED, PROMPTED_HYBRID, MULTITASK)
INNER_LOSSES = tuple(Key(name, name, a_list, ()) for name in ("apply_at_layers", "loss_weights"))
ENCODERS = {"conformer": CONFORMER, "jasper": JASPER}
"""The sections of encoders, by their kind in our settings."""
PLACES = {"ctc_decoder": "aux_ctc.decoder"}
"""Sections that lie elsewhere than under the name of their part."""
OTHER_TYPES = (
    ("hybrid", "hybrid transducer-CTC"),
    ("tdt", "TDT transducer"),
    ("rnnt", "transducer (RNN-T)"),
    ("hat", "transducer (HAT)"),
    ("multitask", "attention encoder-decoder (AED)"),
    ("transf", "attention encoder-decoder (AED)"),
    ("label", "classification"),
    ("classification", "classification"),
    ("k2", "k2"),
    ("ssl", "self-supervised"),
    ("denoisemasked", "self-supervised"),
)
"""Signs in the class names of other models -> their kind, for the message."""


@dataclass(frozen=True, kw_only=True)
class NemoAdapter:
    """One adapter as the configuration describes it."""

    name: str
    modules: str
    """As NeMo writes it: an empty string is the encoder."""
    config: Mapping[str, Any]
    """The adapter's own section, unchanged."""

    @property
    def enabled(self) -> bool:
        return bool(self.config.get("enabled", True))


@dataclass(frozen=True, kw_only=True)
class NemoDescription:
    """A configuration as keyword arguments for our parts."""

    settings: dict[str, dict[str, Any]]
    """For each part; `classes` of a decoder is None where only the tokenizer knows."""
    tokenizer: TokenizerSource
    adapters: tuple[NemoAdapter, ...]
    """The adapters in the order in which they were added."""


def translate(config: Mapping[str, Any], source: str = "model_config.yaml") -> NemoDescription:
    """Translate NeMo's configuration.

    Raises CheckpointError, beginning with `source`, for whatever is missing, malformed or not supported yet.
    """
    refuse_resolvers(config, source)
    family, vocabulary = find_family(config, source)
    settings: dict[str, dict[str, Any]] = {}
    for part, tables in family.sections.items():
        place = PLACES.get(part, part)
        table, section = find_section(config, place, tables, source)
        settings[part] = table.to_settings(section, f"{source}: {place}", settings)
    if family.more is not None:
        family.more(config, settings, source)
    if losses := read_inner_losses(config, settings["encoder"], source):
        settings["interctc"] = {"losses": losses}
    return NemoDescription(
        settings=settings,
        tokenizer=piece_source(config, source) if vocabulary == "pieces" else character_source(config, source),
        adapters=read_adapters(resolved(config, "adapters", source) if config.get("adapters") else {}, source),
    )


def find_family(config: Mapping[str, Any], source: str) -> tuple[Family, Vocabulary]:
    """The family of a model, and what it is over. Raises CheckpointError for other types, by name."""
    target = str(config.get("target") or config.get("_target_") or "")
    for family in FAMILIES:
        if target in family.piece_models:
            return family, "pieces"
        if target in family.character_models:
            return family, "characters"
    told = f"target is {target}"
    if not target:
        vocabulary: Vocabulary = "pieces" if config.get("tokenizer") else "characters"
        if config.get("transf_decoder") is not None:
            return MULTITASK, vocabulary
        if config.get("transf_encoder") is None:
            hybrid, transducer = config.get("aux_ctc") is not None, config.get("joint") is not None
            return (HYBRID if hybrid else TRANSDUCER if transducer else CTC), vocabulary
        target, told = "Transf", "it has a section 'transf_encoder'"
    name = target.rpartition(".")[2]
    words = next((words for sign, words in OTHER_TYPES if sign in name.lower()), name)
    raise CheckpointError(
        f"{source}: {told}; encoder-decoder type {words} is not supported yet. "
        f"Supported: {'; '.join(family.words for family in FAMILIES)}."
    )


def find_section(
    config: Mapping[str, Any], name: str, tables: tuple[Section, ...], source: str
) -> tuple[Section, dict[str, Any]]:
    """The table of a section by its class, and the section with its references followed.

    Raises CheckpointError where the section is missing, and for a class that no table has.
    """
    outer, _, inner = name.partition(".")
    held = config.get(outer)
    if not isinstance(held.get(inner) if inner and isinstance(held, dict) else held, dict):
        raise CheckpointError(f"{source} has no section '{name}'; it is no configuration of a speech recogniser.")
    section: dict[str, Any] = resolved(config, name, source)
    target = str(section.get("_target_"))
    table = next((table for table in tables if target in table.classes), None)
    if table is None:
        kind, known = target.rpartition(".")[2], {entry.rpartition(".")[2] for each in tables for entry in each.classes}
        raise CheckpointError(
            f"{source}: {name}._target_ is {target}; {name} type {kind} is not supported yet. "
            f"Supported: {', '.join(sorted(known))}."
        )
    return table, section


def read_inner_losses(config: Mapping[str, Any], encoder: Mapping[str, Any], source: str) -> dict[int, float]:
    """The losses on inner layers that a model was trained with: the share of each, by the layer's index.

    Raises CheckpointError for layers that the encoder does not have, and for shares that add up to everything.
    """
    if not config.get("interctc"):
        return {}
    where, layers = f"{source}: interctc", encoder["layers"] if "layers" in encoder else len(encoder["blocks"])
    values = read_section(resolved(config, "interctc", source), INNER_LOSSES, where)
    chosen, shares = values["apply_at_layers"], values["loss_weights"]
    if any(type(layer) is not int or not 0 <= layer < layers for layer in chosen) or len(set(chosen)) < len(chosen):
        refuse(where, "apply_at_layers", chosen, f"different layers, from 0 to {layers - 1}")
    numbers = all(type(share) in (int, float) and share >= 0 for share in shares)
    if len(shares) != len(chosen) or not numbers or not sum(shares) < 1:
        refuse(where, "loss_weights", shares, f"{len(chosen)} numbers from 0 on, whose sum is less than 1")
    return {layer: float(share) for layer, share in sorted(zip(chosen, shares, strict=True))}


def write_inner_losses(losses: Mapping[int, float]) -> dict[str, Any]:
    """The section `interctc` for such losses; no section for none."""
    lists = {"apply_at_layers": list(losses), "loss_weights": list(losses.values())}
    return {"interctc": lists} if losses else {}


def translate_spec_augment(config: Mapping[str, Any], source: str = "model_config.yaml") -> dict[str, Any] | None:
    """Keyword arguments for SpecAugment as the checkpoint was trained, None where it has none."""
    if not config.get("spec_augment"):
        return None
    table, section = find_section(config, "spec_augment", (SPEC_AUGMENT,), source)
    return table.to_settings(section, f"{source}: spec_augment", {})


def read_adapters(section: Any, source: str) -> tuple[NemoAdapter, ...]:
    """Read the adapters of an `adapters` section (or of the `__cfg__` of an adapters.pt), in order.

    Raises CheckpointError where it is malformed.
    """
    if not isinstance(section, dict):
        raise CheckpointError(f"{source}: adapters is {shown(section)}; a mapping of names is needed.")
    try:
        modules = section.get("global_cfg", {}).get("adapter_meta_cfg", {}).get("modules", {})
        return tuple(
            NemoAdapter(name=str(name), modules=str(modules.get(name, "")), config=dict(adapter))
            for name, adapter in section.items()
            if name != "global_cfg"
        )
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: its adapters section is malformed: {error}.") from error


def family_of(parts: Collection[str]) -> Family:
    """The family of a model that has these parts."""
    if "transf_decoder" in parts:
        return MULTITASK
    if "prompt_kernel" in parts:
        return PROMPTED_HYBRID if "ctc_decoder" in parts else PROMPTED
    return HYBRID if "ctc_decoder" in parts else TRANSDUCER if "joint" in parts else CTC


def describe(settings: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    """NeMo's configuration for a model of ours that never had one. Raises CheckpointError where NeMo has no place."""
    parts = {part: complete(part, settings[part]) for part in parts_of(settings)}
    family = family_of(parts)
    preprocessor = write_section(parts["preprocessor"], PREPROCESSOR.keys)
    encoder = ENCODERS[parts["encoder"].get("kind", "conformer")]
    config: dict[str, Any] = {
        "sample_rate": preprocessor["sample_rate"],
        "log_prediction": True,
        "ctc_reduction": "mean_batch",
        "skip_nan_grad": False,
    }
    # NeMo's own training scripts need these sections, and fill them.
    data = {"manifest_filepath": None, "sample_rate": preprocessor["sample_rate"], "batch_size": 16, "num_workers": 0}
    vocabulary = vocabulary_keys(tokenizer, family)
    target = vocabulary.pop("target")
    data |= {key: value for key, value in vocabulary.items() if key == "labels"}
    config |= vocabulary | {
        "train_ds": {**data, "shuffle": True},
        "validation_ds": {**data, "shuffle": False},
        "test_ds": {**data, "shuffle": False},
        "preprocessor": {"_target_": PREPROCESSOR.classes[0]} | preprocessor | {"frame_splicing": 1},
        "spec_augment": {"_target_": SPEC_AUGMENT.classes[0], "freq_masks": 0, "time_masks": 0},
        "encoder": encoder.to_section(parts["encoder"]),
        **describe_heads(parts, tokenizer),
        **(write_transducer(settings) if "joint" in parts else {}),
        **(write_multitask(parts, settings) if "transf_decoder" in parts else {}),
        **write_inner_losses(settings.get("interctc", {}).get("losses", {})),
        "optim": {"name": "adamw", "lr": 0.001, "betas": [0.9, 0.98], "weight_decay": 0.0},
        "target": target,
    }
    return config


def describe_heads(parts: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    """The sections of the heads. Raises CheckpointError for a CTC head with a temperature."""
    sections: dict[str, Any] = {}
    if "transf_decoder" in parts:
        return sections
    head = parts.get("ctc_decoder") or (None if "joint" in parts else parts["decoder"])
    if head is not None:
        if head["temperature"] != 1.0:
            raise CheckpointError(
                "NeMo's configuration has no place for the temperature of the CTC head; set it to 1.0."
            )
        section = {
            "_target_": CTC_DECODER.classes[0],
            "feat_in": head["width"],
            "num_classes": head["classes"],
            "vocabulary": tokenizer.vocabulary,
        }
        if "joint" not in parts:
            return {"decoder": section}
        sections["aux_ctc"] = {"ctc_loss_weight": 0.3, "ctc_reduction": "mean_batch", "decoder": section}
    prediction, joint = parts["decoder"], parts["joint"]
    stateless = prediction.get("kind") == "stateless"
    network = {"layers": 1, "dropout": 0.0, **prediction}
    sections["decoder"] = {
        "_target_": (STATELESS_DECODER if stateless else RNNT_DECODER).classes[0],
        "normalization_mode": "layer" if prediction.get("normalize") else None,
        "vocab_size": prediction["classes"],
        "prednet": write_section(network, PREDICTION),
        **(
            {"context_size": prediction["context"]}
            if stateless
            else {"random_state_sampling": False, "blank_as_pad": True}
        ),
    }
    sections["joint"] = {
        "_target_": RNNT_JOINT.classes[0],
        "log_softmax": None,
        "preserve_memory": False,
        "fuse_loss_wer": False,
        "jointnet": write_section(joint, JOINT_NET),
        "num_classes": joint["classes"],
        "num_extra_outputs": len(joint["durations"]),
        "vocabulary": tokenizer.vocabulary,
    }
    return sections


def vocabulary_keys(tokenizer: Tokenizer, family: Family = CTC) -> dict[str, Any]:
    """The keys of a configuration that name the class of the model and its vocabulary.

    Raises CheckpointError for a tokenizer that NeMo could not read.
    """
    if isinstance(tokenizer, CharTokenizer):
        return {"labels": tokenizer.vocabulary, "target": family.character_models[0]}
    section = tokenizer_section(tokenizer, prompts=family is MULTITASK)
    return {"tokenizer": section, "target": family.piece_models[0]}
