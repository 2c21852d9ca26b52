"""NeMo's `model_config.yaml` as plain keyword arguments for our parts, and back.

Classes are looked up by their names in the tables below; nothing that a configuration names is imported.
What cannot be honoured is refused by its key, with the value and what is supported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from overtone.checkpoints.nemo.keys import (
    ENCODER,
    ENCODER_FIXED,
    ENCODER_IDLE,
    PREPROCESSOR,
    PREPROCESSOR_FIXED,
    PREPROCESSOR_IDLE,
    SPEC_AUGMENT,
    SPEC_AUGMENT_FIXED,
    SPEC_AUGMENT_IDLE,
)
from overtone.checkpoints.nemo.tokenizer import FILE_PREFIX, tokenizer_files
from overtone.checkpoints.nemo.yaml import refuse_resolvers, resolved
from overtone.config.keys import read_section, refuse, shown, write_section
from overtone.errors import CheckpointError
from overtone.models.parts import Settings, complete
from overtone.tokenizers import CharTokenizer, Tokenizer

MODULES = "nemo.collections.asr.modules"
MODELS = "nemo.collections.asr.models"
PREPROCESSORS = {
    f"{MODULES}.AudioToMelSpectrogramPreprocessor",
    f"{MODULES}.audio_preprocessing.AudioToMelSpectrogramPreprocessor",
}
ADAPTABLE_ENCODER = f"{MODULES}.conformer_encoder.ConformerEncoderAdapter"
ENCODERS = {
    f"{MODULES}.ConformerEncoder",
    f"{MODULES}.ConformerEncoderAdapter",
    f"{MODULES}.conformer_encoder.ConformerEncoder",
    ADAPTABLE_ENCODER,
}
DECODERS = {f"{MODULES}.ConvASRDecoder", f"{MODULES}.conv_asr.ConvASRDecoder"}
AUGMENTATIONS = {
    f"{MODULES}.SpectrogramAugmentation",
    f"{MODULES}.audio_preprocessing.SpectrogramAugmentation",
}
CHARACTER_MODELS = {f"{MODELS}.EncDecCTCModel", f"{MODELS}.ctc_models.EncDecCTCModel"}
PIECE_MODELS = {f"{MODELS}.EncDecCTCModelBPE", f"{MODELS}.ctc_bpe_models.EncDecCTCModelBPE"}
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
"""How the class names of other models are told apart, for the message."""
SUPPORTED_MODELS = "Conformer-CTC and FastConformer-CTC (EncDecCTCModel, EncDecCTCModelBPE)"


@dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """Where the symbols come from."""

    kind: Literal["sentencepiece", "characters"]
    member: str | None = None
    """The name of the sentencepiece model inside the archive."""
    labels: tuple[str, ...] = ()
    """The characters, in the order of their ids."""


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
    """What a configuration says, as keyword arguments for our parts."""

    preprocessor: dict[str, Any]
    """For LogMel."""
    encoder: dict[str, Any]
    """For ConformerEncoder."""
    decoder: dict[str, Any]
    """For CtcHead; `classes` is None where only the tokenizer knows."""
    tokenizer: TokenizerSource
    adapters: tuple[NemoAdapter, ...]
    """In the order in which they were added."""

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        return {"preprocessor": self.preprocessor, "encoder": self.encoder, "decoder": self.decoder}


def translate(config: Mapping[str, Any], source: str = "model_config.yaml") -> NemoDescription:
    """Raises CheckpointError, beginning with `source`, for whatever is missing, malformed or not supported yet."""
    refuse_resolvers(config, source)
    kind = model_kind(config, source)
    _refuse_intermediate_losses(config, source)
    preprocessor = _preprocessor(_section(config, "preprocessor", PREPROCESSORS, source), f"{source}: preprocessor")
    encoder = _encoder(_section(config, "encoder", ENCODERS, source), f"{source}: encoder")
    if encoder["features"] != preprocessor["features"]:
        raise CheckpointError(
            f"{source}: encoder.feat_in is {encoder['features']}, preprocessor.features is {preprocessor['features']}; "
            "they must be equal."
        )
    decoder_section = _section(config, "decoder", DECODERS, source)
    return NemoDescription(
        preprocessor=preprocessor,
        encoder=encoder,
        decoder=_decoder(decoder_section, encoder["output_width"] or encoder["width"], f"{source}: decoder"),
        tokenizer=(
            _piece_source(config, source)
            if kind == "sentencepiece"
            else _character_source(config, decoder_section, source)
        ),
        adapters=read_adapters(resolved(config, "adapters", source) if config.get("adapters") else {}, source),
    )


def model_kind(config: Mapping[str, Any], source: str) -> Literal["sentencepiece", "characters"]:
    """Whether it is a model over pieces or characters; other types are refused by name."""
    target = str(config.get("target") or config.get("_target_") or "")
    if target in PIECE_MODELS:
        return "sentencepiece"
    if target in CHARACTER_MODELS:
        return "characters"
    told = f"target is {target}"
    if not target:
        contents = {"aux_ctc": "Hybrid", "joint": "RNNT", "transf_decoder": "Transf", "transf_encoder": "Transf"}
        found = next((key for key in contents if config.get(key) is not None), None)
        if found is None:
            return "sentencepiece" if config.get("tokenizer") else "characters"
        target, told = contents[found], f"it has a section '{found}'"
    name = target.rpartition(".")[2]
    words = next((words for sign, words in OTHER_TYPES if sign in name.lower()), name)
    raise CheckpointError(
        f"{source}: {told}; encoder-decoder type {words} is not supported yet. Supported: {SUPPORTED_MODELS}."
    )


def translate_spec_augment(config: Mapping[str, Any], source: str = "model_config.yaml") -> dict[str, Any] | None:
    """Keyword arguments for SpecAugment as the checkpoint was trained, None where it has none."""
    if not config.get("spec_augment"):
        return None
    section = _section(config, "spec_augment", AUGMENTATIONS, source)
    where = f"{source}: spec_augment"
    return read_section(section, SPEC_AUGMENT, where, fixed=SPEC_AUGMENT_FIXED, idle=SPEC_AUGMENT_IDLE)


def read_adapters(section: Any, source: str) -> tuple[NemoAdapter, ...]:
    """The adapters of an `adapters` section (or of the `__cfg__` of an adapters.pt), in order."""
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


def describe(settings: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    """The configuration that NeMo needs for a model of ours that never had one."""
    parts = {part: complete(part, values) for part, values in settings.items()}
    if parts["decoder"]["temperature"] != 1.0:
        raise CheckpointError("NeMo's configuration has no place for the temperature of the CTC head; set it to 1.0.")
    preprocessor = write_section(parts["preprocessor"], PREPROCESSOR)
    target = next(iter(sorted(CHARACTER_MODELS if isinstance(tokenizer, CharTokenizer) else PIECE_MODELS, key=len)))
    config: dict[str, Any] = {
        "sample_rate": preprocessor["sample_rate"],
        "log_prediction": True,
        "ctc_reduction": "mean_batch",
        "skip_nan_grad": False,
        "train_ds": None,
        "validation_ds": None,
        "test_ds": None,
    }
    if isinstance(tokenizer, CharTokenizer):
        config["labels"] = tokenizer.vocabulary
    else:
        files = tokenizer_files(tokenizer)
        config["tokenizer"] = {"dir": "tokenizer", "type": "bpe"} | {
            key: f"{FILE_PREFIX}{name}" for key, (name, _) in files.items()
        }
    config |= {
        "preprocessor": {"_target_": f"{MODULES}.AudioToMelSpectrogramPreprocessor"}
        | preprocessor
        | {"frame_splicing": 1},
        "spec_augment": {"_target_": f"{MODULES}.SpectrogramAugmentation", "freq_masks": 0, "time_masks": 0},
        "encoder": {"_target_": f"{MODULES}.ConformerEncoder"} | write_section(parts["encoder"], ENCODER),
        "decoder": {
            "_target_": f"{MODULES}.ConvASRDecoder",
            "feat_in": parts["decoder"]["width"],
            "num_classes": parts["decoder"]["classes"],
            "vocabulary": tokenizer.vocabulary,
        },
        "optim": {"name": "adamw", "lr": 0.001},
        "target": target,
    }
    return config


def _section(config: Mapping[str, Any], name: str, known: set[str], source: str) -> dict[str, Any]:
    """A section with its references followed, if its class is one we know."""
    if not isinstance(config.get(name), dict):
        raise CheckpointError(f"{source} has no section '{name}'; it is no configuration of a speech recogniser.")
    section: dict[str, Any] = resolved(config, name, source)
    target = str(section.get("_target_"))
    if target not in known:
        kind = target.rpartition(".")[2]
        raise CheckpointError(
            f"{source}: {name}._target_ is {target}; {name} type {kind} is not supported yet. "
            f"Supported: {', '.join(sorted({entry.rpartition('.')[2] for entry in known}))}."
        )
    return section


def _refuse_intermediate_losses(config: Mapping[str, Any], source: str) -> None:
    section = config.get("interctc")
    for key, value in section.items() if isinstance(section, dict) else ():
        if value:
            refuse(f"{source}: interctc", key, value, "an empty list (no losses at intermediate layers)")


def _preprocessor(section: dict[str, Any], where: str) -> dict[str, Any]:
    lengths = {key: section.pop(key, None) for key in ("n_window_size", "n_window_stride")}
    settings = read_section(section, PREPROCESSOR, where, fixed=PREPROCESSOR_FIXED, idle=PREPROCESSOR_IDLE)
    for key, in_seconds in (("n_window_size", "window_size"), ("n_window_stride", "window_stride")):
        samples = lengths[key]
        if bool(samples) == bool(settings[in_seconds]):
            given = f"both {in_seconds} and {key}" if samples else f"neither {in_seconds} nor {key}"
            raise CheckpointError(f"{where} has {given}; exactly one is needed.")
        if samples:
            # Half a sample more, as whole samples are cut from the seconds.
            settings[in_seconds] = (int(samples) + 0.5) / settings["sample_rate"]
    return settings


def _encoder(section: dict[str, Any], where: str) -> dict[str, Any]:
    reduction = section.pop("reduction", None)
    if reduction and section.get("reduction_factor", 1) != 1:
        refuse(where, "reduction", reduction, "null, or reduction_factor 1")
    settings = read_section(section, ENCODER, where, fixed=ENCODER_FIXED, idle=ENCODER_IDLE)
    width, heads, kernel = settings["width"], settings["heads"], settings["kernel_size"]
    if width % heads:
        refuse(where, "n_heads", heads, f"a divisor of d_model {width}")
    if kernel % 2 == 0:
        refuse(where, "conv_kernel_size", kernel, "an odd number")
    factor = settings["subsampling_factor"]
    if factor & (factor - 1) and "striding" in settings["subsampling"]:
        refuse(where, "subsampling_factor", factor, "a power of 2")
    if settings["conv_context"] == "causal":
        settings["conv_context"] = [kernel - 1, 0]
    if settings["conv_context"] is not None and sum(settings["conv_context"]) + 1 != kernel:
        refuse(where, "conv_context_size", settings["conv_context"], f"two numbers that add up to {kernel - 1}")
    left, right = settings["attention_context"]
    if settings["attention_context_style"] == "chunked_limited" and (right < 0 or (left > 0 and left % (right + 1))):
        refuse(where, "att_context_size", [left, right], "a left context that is a multiple of the right one + 1")
    return settings


def _decoder(section: dict[str, Any], width: int, where: str) -> dict[str, Any]:
    for name, value in section.items():
        if name not in ("_target_", "feat_in", "num_classes", "vocabulary", "init_mode", "add_blank") and value:
            raise CheckpointError(
                f"{where}.{name} is {shown(value)}; this key is unknown and could change the numbers."
            )
    if section.get("add_blank", True) is not True:
        refuse(where, "add_blank", section["add_blank"], "true")
    if section.get("feat_in") not in (None, 0, width):
        refuse(where, "feat_in", section["feat_in"], f"{width}, the width of the encoder's output")
    classes = section.get("num_classes") or -1
    if not isinstance(classes, int) or classes > 10_000_000:
        refuse(where, "num_classes", classes, "a whole number")
    vocabulary = section.get("vocabulary") or []
    if not isinstance(vocabulary, list):
        refuse(where, "vocabulary", vocabulary, "a list of symbols")
    if classes < 1:
        classes = len(vocabulary) or None
    return {"width": width, "classes": classes}


def _piece_source(config: Mapping[str, Any], source: str) -> TokenizerSource:
    if not isinstance(config.get("tokenizer"), dict):
        raise CheckpointError(f"{source} has no section 'tokenizer', which a model over pieces needs.")
    section = resolved(config, "tokenizer", source)
    kind = section.get("type")
    if kind == "agg" or section.get("langs"):
        refuse(f"{source}: tokenizer", "type", "agg (several tokenizers together)", "bpe (one sentencepiece model)")
    if str(kind).lower() != "bpe":
        refuse(f"{source}: tokenizer", "type", kind, "bpe (a sentencepiece model), or a model over characters")
    for key in ("custom_tokenizer", "special_tokens"):
        if section.get(key):
            refuse(f"{source}: tokenizer", key, section[key], "null")
    path = str(section.get("model_path") or f"{section.get('dir', '')}/tokenizer.model")
    # Older files name the place where the model lay in training; inside, only the last part counts.
    member = path.removeprefix(FILE_PREFIX) if path.startswith(FILE_PREFIX) else path.rpartition("/")[2]
    return TokenizerSource(kind="sentencepiece", member=member)


def _character_source(config: Mapping[str, Any], decoder: Mapping[str, Any], source: str) -> TokenizerSource:
    labels = decoder.get("vocabulary") or (resolved(config, "labels", source) if config.get("labels") else None)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{source}: decoder.vocabulary is {shown(labels)}; a list of characters is needed.")
    return TokenizerSource(kind="characters", labels=tuple(labels))
