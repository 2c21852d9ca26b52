"""What is trained: a model restored or made, and the adapter that is added to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from overtone.adapters.adapter import Adapter
from overtone.adapters.kinds.registry import SECTIONS, kind_of
from overtone.adapters.strategies import ResidualAdd
from overtone.checkpoints.load import load_model
from overtone.checkpoints.nemo.adapters import adapter_config, has_nemo_form, nemo_modules
from overtone.checkpoints.nemo.config import describe, translate
from overtone.checkpoints.nemo.model import read_config
from overtone.config import (
    AdapterSettings,
    KindSettings,
    ModelSettings,
    Settings,
)
from overtone.errors import CheckpointError, ConfigError
from overtone.models.asr_model import AsrModel, build_model
from overtone.tokenizers import CharTokenizer, SentencePieceTokenizer, Tokenizer

# Models


def restore(settings: ModelSettings, *, seed: int) -> AsrModel:
    """The model of a file or name, one with another vocabulary, or one with fresh weights."""
    tokenizer = read_tokenizer(Path(settings.tokenizer).expanduser()) if settings.tokenizer else None
    if settings.init is not None:
        assert tokenizer is not None, "the configuration is checked"
        return fresh_model(Path(settings.init).expanduser(), tokenizer, seed=seed)
    model = load_model(settings.nemo_model or settings.pretrained_model or "")
    return model if tokenizer is None else with_vocabulary(model, tokenizer, seed=seed)


def read_tokenizer(path: Path) -> Tokenizer:
    """A sentencepiece model (`.model`), or a text file with one label a line. Raises ConfigError."""
    try:
        content = path.read_bytes()
        if path.suffix == ".model":
            return SentencePieceTokenizer(content)
        return CharTokenizer([line for line in content.decode("utf-8").split("\n") if line])
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"model.tokenizer: {path} cannot be read ({error}).") from error
    except CheckpointError as error:
        raise ConfigError(f"model.tokenizer: {path}: {error}") from error


def fresh_model(path: Path, tokenizer: Tokenizer, *, seed: int) -> AsrModel:
    """A model with fresh weights from a NeMo configuration; its own vocabulary and data sections are not looked at."""
    try:
        config = read_config(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"model.init: {path} cannot be read ({error.strerror}).") from error
    parts: dict[str, Any] = {
        key: config[key] for key in ("target", "preprocessor", "encoder", "decoder") if key in config
    }
    if isinstance(parts.get("decoder"), dict):
        parts["decoder"] = {**parts["decoder"], "num_classes": tokenizer.size, "vocabulary": tokenizer.vocabulary}
    parts.update(_tokenizer_section(tokenizer))
    settings = translate(parts, str(path)).settings
    settings["decoder"]["classes"] = tokenizer.size
    torch.manual_seed(seed)
    described = {**describe(settings, tokenizer), "ctc_reduction": config.get("ctc_reduction", "mean_batch")}
    return build_model(settings=settings, tokenizer=tokenizer, config=described, name=path.stem)


def _tokenizer_section(tokenizer: Tokenizer) -> dict[str, Any]:
    """What of a NeMo configuration says where the vocabulary comes from."""
    family = "nemo.collections.asr.models"
    if isinstance(tokenizer, SentencePieceTokenizer):
        section = {"type": "bpe", "model_path": "nemo:tokenizer.model"}
        return {"target": f"{family}.ctc_bpe_models.EncDecCTCModelBPE", "tokenizer": section}
    return {"target": f"{family}.ctc_models.EncDecCTCModel", "labels": tokenizer.vocabulary}


def with_vocabulary(model: AsrModel, tokenizer: Tokenizer, *, seed: int) -> AsrModel:
    """The model's encoder under a fresh head for another vocabulary; adapters do not come along."""
    settings = {part: dict(values) for part, values in model.settings.items()}
    settings["decoder"]["classes"] = tokenizer.size
    torch.manual_seed(seed)
    changed = build_model(settings=settings, tokenizer=tokenizer, name=model.name)
    own = changed.base_state_dict()
    with torch.no_grad():
        for name, tensor in model.base_state_dict().items():
            if not name.startswith("decoder."):
                own[name].copy_(tensor)
    return changed


@contextmanager
def being_trained(model: AsrModel) -> Iterator[None]:
    """Give the model back as it came: for inference, on its device and in its arithmetic.

    After an error also without a new adapter, and with the old choice of what is trained and what files enable.
    """
    backend, device, adapters = model.backend, model.device, model.adapters
    frozen, dropout, learns = (
        model.base_is_frozen,
        model.base_dropout,
        [(x, x.requires_grad) for x in model.parameters()],
    )
    choice, nemo, forms = adapters.file_choice, adapters.nemo, {adapter.name: adapter.nemo for adapter in adapters}
    try:
        yield
    except Exception:
        for name in adapters.names:
            if name in forms:
                adapters[name].nemo = forms[name]
            else:
                adapters.remove(name)
        adapters.file_choice, adapters.nemo = choice, nemo
        model.base_is_frozen, model.base_dropout = frozen, dropout
        for parameter, learnt in learns:
            parameter.requires_grad_(learnt)
        raise
    finally:
        model.eval().to(device)
        model.backend = backend


# Adapters


def add_adapter(model: AsrModel, settings: Settings) -> Adapter:
    """Add the new adapter, disable all others, freeze everything else. Raises AdapterError, and ConfigError after
    the adapter has been added."""
    chosen = settings.model.adapter
    assert chosen.adapter_name is not None, "the configuration is checked"
    section = section_with_dim(chosen)
    name, modules = split_name(chosen.adapter_name, chosen.adapter_module_name)
    torch.manual_seed(settings.seed)
    adapter = model.adapters.add(
        name,
        kind_of(section),
        modules=modules,
        layers=list(chosen.layers) if isinstance(chosen.layers, tuple) else chosen.layers,
        strategy=ResidualAdd(
            stochastic_depth=section.adapter_strategy.stochastic_depth,
            l2_lambda=section.adapter_strategy.l2_lambda,
        ),
    )
    check_width(model, adapter, chosen, section)
    disable_others(model, name)
    model.adapters.nemo = asdict(chosen.global_settings)
    model.train_only(name, base_dropout=settings.model.base_dropout)
    return adapter


def split_name(name: str, modules: str | None) -> tuple[str, str]:
    """`decoder:medical` carries its modules in the name, as NeMo writes them."""
    before, colon, after = name.rpartition(":")
    return (after, before or "encoder") if colon else (name, modules or "encoder")


def disable_others(model: AsrModel, name: str) -> None:
    """Files written from now on have this adapter alone enabled."""
    model.adapters.file_choice = (name,)
    for adapter in model.adapters:
        if adapter.name != name and has_nemo_form(adapter):
            form = adapter.nemo or {"modules": nemo_modules(adapter), "config": adapter_config(adapter)}
            adapter.nemo = {**form, "enabled": False}


def check_width(model: AsrModel, adapter: Adapter, chosen: AdapterSettings, section: KindSettings) -> None:
    """Widths that the configuration names must be the model's."""
    given: dict[str, int | None] = {"model.adapter.in_features": chosen.in_features}
    form = SECTIONS[type(section)].section if type(section) in SECTIONS else None
    for key in () if form is None else form.width_keys:
        given[f"model.adapter.{chosen.adapter_type}.{key}"] = getattr(section, key)
    widths = {adapter.at(point).point.out_width for point in adapter.points}
    for key, width in given.items():
        if width is not None and width not in widths:
            own = ", ".join(map(str, sorted(widths)))
            raise ConfigError(f"{key}: {width} is not the width of the model's layers, {own}; leave it out.")


def section_with_dim(chosen: AdapterSettings) -> KindSettings:
    """The section of the adapter's type, `model.adapter.dim` taken in."""
    section = chosen.kinds[chosen.adapter_type]
    if chosen.dim is None:
        return section
    if "dim" not in vars(section):
        raise ConfigError(f"model.adapter.dim: an adapter of type {chosen.adapter_type} has none; leave it out.")
    return type(section)(**{**vars(section), "dim": chosen.dim})
