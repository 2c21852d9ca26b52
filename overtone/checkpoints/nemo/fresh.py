"""A model with fresh weights from a NeMo configuration, drawn as NeMo draws them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from overtone.checkpoints.nemo.config import (
    MULTITASK,
    PROMPTED,
    PROMPTED_HYBRID,
    describe,
    find_family,
    translate,
    vocabulary_keys,
)
from overtone.checkpoints.nemo.model import read_config
from overtone.checkpoints.nemo.multitask import check_widths, rows_of
from overtone.checkpoints.nemo.yaml import resolved
from overtone.config.keys import Key, one_of, optional, read_key, refuse
from overtone.errors import ConfigError, UsageError
from overtone.languages import SPECIALS
from overtone.models.asr_model import AsrModel, build_model
from overtone.nets.ctc import CtcProjection
from overtone.nets.transducer import RecurrentPrediction
from overtone.nets.transformer import TransformerDecoder, TransformerEncoder
from overtone.tokenizers import AggregateTokenizer, CharTokenizer, SentencePieceTokenizer, Tokenizer

READ = (
    *("preprocessor", "encoder", "decoder", "joint", "aux_ctc", "interctc"),
    *("transf_encoder", "transf_decoder", "head", "label_smoothing"),
    *("prompt_format", "prompt_defaults", "use_loss_mask_for_prompt"),
    *("model_defaults", "loss", "decoding", "rnnt_reduction", "ctc_reduction", "target", "_target_"),
)
"""The sections that make a model. Its vocabulary is the tokenizer's, its data are those of the training."""
WHOLE = ("aux_ctc", "ctc_reduction")
"""Sections that stay as they are, but for the vocabulary."""


def build_fresh(path: Path, tokenizer: Tokenizer, *, seed: int) -> AsrModel:
    """Build a model of any family with fresh weights from a NeMo configuration and a vocabulary.

    Raises ConfigError where the file cannot be read or the family has no models over such a vocabulary,
    CheckpointError for what is missing or not supported in it.
    """
    try:
        config = read_config(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"model.init: {path} cannot be read ({error.strerror}).") from error
    parts = with_vocabulary(config, tokenizer, str(path))
    settings = translate(parts, str(path)).settings
    if "transf_decoder" in settings:
        check_widths(parts, settings, str(path))
        settings["transf_decoder"]["classes"] = rows_of(tokenizer.size)
    described = {**describe(settings, tokenizer), "ctc_reduction": config.get("ctc_reduction", "mean_batch")}
    described.update({key: parts[key] for key in WHOLE if key in parts})
    torch.manual_seed(seed)
    try:
        model = build_model(settings=settings, tokenizer=tokenizer, config=described, name=path.stem)
    except UsageError as error:  # no special tokens for the prompts
        raise ConfigError(f"{path}: {error}") from error
    draw_weights(model, parts, str(path))
    return model


def with_vocabulary(config: Mapping[str, Any], tokenizer: Tokenizer, source: str) -> dict[str, Any]:
    """The sections of a configuration that make a model, with the tokenizer's vocabulary in the place of their own.

    Raises ConfigError for a family that has no models over such a vocabulary.
    """
    parts: dict[str, Any] = {key: copy.deepcopy(resolved(config, key, source)) for key in READ if key in config}
    defaults = parts.get("model_defaults")
    family, _ = find_family(parts, source)
    if isinstance(defaults, dict) and defaults.get("initialize_prompt_feature"):
        family = PROMPTED_HYBRID if parts.get("aux_ctc") else PROMPTED
    if family is MULTITASK:
        check_prompted(tokenizer, source)
    elif isinstance(tokenizer, CharTokenizer) and not family.character_models:
        raise ConfigError(f"{source}: {family.words} have no models over characters; give a sentencepiece model.")
    parts.update(vocabulary_keys(tokenizer, family))
    classes = {"num_classes": tokenizer.size, "vocabulary": tokenizer.vocabulary}
    transducer = "joint" in family.sections
    for key, values in (
        ("decoder", {"vocab_size": tokenizer.size} if transducer else classes),
        ("joint", classes),
    ):
        if isinstance(parts.get(key), dict):
            parts[key].update(values)
    auxiliary = parts.get("aux_ctc")
    if isinstance(auxiliary, dict) and isinstance(auxiliary.get("decoder"), dict):
        auxiliary["decoder"].update(classes)
    return parts


def check_prompted(tokenizer: Tokenizer, source: str) -> None:
    """Raises ConfigError for a vocabulary that NeMo's multitask models cannot have."""
    if isinstance(tokenizer, AggregateTokenizer) and SPECIALS in tokenizer.parts:
        return
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise ConfigError(
            f"{source}: {MULTITASK.words}, needs a vocabulary of pieces; give model.tokenizer a sentencepiece model "
            f"that holds the special tokens of its prompts, or a folder with one in each of {SPECIALS}/, en/ and so on."
        )


# Weights


def draw_weights(model: AsrModel, config: Mapping[str, Any], source: str) -> None:
    """Draw anew what NeMo draws in another way than torch: convolutions, CTC heads, LSTM layers, transformers.

    Raises CheckpointError for an unknown `init_mode`.
    """
    if model.settings["encoder"].get("kind") == "jasper":
        draw_convolutions(model.encoder, config["encoder"], f"{source}: encoder")  # type: ignore[arg-type]
    draw_heads(model, config, source)


def draw_heads(model: AsrModel, config: Mapping[str, Any], source: str) -> None:
    """Draw the weights of the heads that NeMo draws otherwise than torch. Raises CheckpointError for unknown modes."""
    heads: dict[str, Any] = {
        "decoder": config.get("decoder"),
        "ctc_decoder": (config.get("aux_ctc") or {}).get("decoder"),
    }
    for part, section in heads.items():
        net = getattr(model, part) if part in model.parts else None
        if isinstance(net, CtcProjection):
            draw_convolutions(net, section, f"{source}: {part}")
        elif isinstance(net, RecurrentPrediction):
            draw_lstm(net.lstm, section["prednet"], f"{source}: {part}.prednet")
    for part in ("transf_encoder", "transf_decoder"):
        net = getattr(model, part) if part in model.parts else None
        if isinstance(net, TransformerEncoder):
            draw_transformer(net.layers, width=1)
        elif isinstance(net, TransformerDecoder):
            draw_transformer(net, width=net.width)


def draw_transformer(net: nn.Module, *, width: int) -> None:
    """Draw embeddings with a deviation of 1/√width, then projections as Xavier, without biases.

    A head that is one with the embedding comes last, and decides: so in NeMo.
    """
    for module in net.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=width**-0.5)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)


def draw_convolutions(net: nn.Module, section: Mapping[str, Any], where: str) -> None:
    """Draw the weights of all convolutions and projections of a net as its `init_mode` says; biases stay torch's.

    Raises CheckpointError for an unknown mode.
    """
    mode = read_key(section, Key("init_mode", "mode", optional(one_of(*DRAWS)), XAVIER), where)
    for module in net.modules():
        if mode is not None and isinstance(module, nn.Conv1d | nn.Linear):
            DRAWS[mode](module.weight)


def draw_lstm(lstm: nn.LSTM, section: Mapping[str, Any], where: str) -> None:
    """Set the biases of LSTM gates: forget gates begin at one, or with memories as long as `t_max` says.

    Long memories are the chrono initialisation (Tallec and Ollivier 2018, arXiv:1804.11188).
    Raises CheckpointError for a `t_max` that is none.
    """
    longest = section.get("t_max")
    if longest is not None and (type(longest) is not int or longest < 3):
        refuse(where, "t_max", longest, "null, or a whole number of tokens from 3 on")
    width = lstm.hidden_size
    inputs, forgets = slice(0, width), slice(width, 2 * width)
    with torch.no_grad():
        for name, bias in lstm.named_parameters():
            if not name.startswith("bias"):
                continue
            if longest is not None:
                bias.zero_()
                bias[forgets] = torch.empty(width).uniform_(1, longest - 1).log()
                bias[inputs] = -bias[forgets]
            else:
                bias[forgets] = 1.0 if name.startswith("bias_ih") else 0.0


def draw_time_depth(weight: Tensor, draw: Callable[[Tensor, float], Tensor]) -> Tensor:
    """Draw a weight [N, D, …] in the scale of time-depth separable convolutions (Hannun et al. 2019): 2/√fan-in."""
    with torch.no_grad():
        return draw(weight, 2.0 / math.sqrt(weight[0].numel()))


XAVIER = "xavier_uniform"
DRAWS: Mapping[str, Callable[[Tensor], Tensor]] = {
    XAVIER: nn.init.xavier_uniform_,
    "xavier_normal": nn.init.xavier_normal_,
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "tds_uniform": lambda weight: draw_time_depth(weight, lambda x, scale: x.uniform_(-scale, scale)),
    "tds_normal": lambda weight: draw_time_depth(weight, lambda x, scale: x.normal_(0.0, scale)),
}
"""The ways to draw weights, by NeMo's `init_mode`."""
