"""The plan of a prefix cache: where the frozen part of the base below an adapter ends, and what is random in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from overtone.adapters.adapter import Adapter
from overtone.adapters.kinds.registry import known
from overtone.config import to_plain
from overtone.errors import ConfigError
from overtone.models.asr_model import COMPUTE_DTYPES, AsrModel
from overtone.models.attention import attention_facts
from overtone.training.plan import TrainingPlan
from overtone.training.trainer import Machine, RunLength, base_dtype, lightning_precision
from overtone.version import __version__

FEATURES = -1
"""The cut between the features and the encoder."""
FORMAT = 1
"""Version of the files and of their values."""
KEY = "model.prefix_cache"


@dataclass(frozen=True, kw_only=True)
class PrefixPlan:
    """The part of the net whose outputs are cached for each utterance."""

    cut: int
    """Number of layers below the cut; 0: the subsampling alone; FEATURES: not even that."""
    variants: int
    """Draws of what is random below the cut; 1 where nothing is."""
    seed: int
    """Seed of these draws."""
    width: int
    """D of the cached activations, [T', D]."""
    bytes_per_second: float
    """Memory for a second of audio."""
    owner: str
    """SHA-256 of all that the values depend on, besides the audio and the draws."""
    draws: str
    """SHA-256 of the settings of what is random; empty where nothing is."""
    note: str
    """Description for the user."""

    def identity(self) -> dict[str, Any]:
        """Return what must not change between the parts of a resumed run."""
        return {"cut": self.cut, "variants": self.variants}

    def bytes_of(self, seconds: float, *, drawn: bool = False) -> float:
        """Return the memory for so much audio; `drawn`: in all its variants."""
        return seconds * self.bytes_per_second * (self.variants if drawn else 1)


def plan_prefix(
    plan: TrainingPlan,
    model: AsrModel,
    adapter: Adapter | None,
    *,
    machine: Machine,
    length: RunLength,
    cached_before: bool | None = None,
) -> PrefixPlan | None:
    """Decide what is cached; None caches nothing. Raises ConfigError for settings that ask for what cannot be.

    cached_before: whether the run that is resumed cached anything; None begins a run, whose length decides for `auto`.
    """
    chosen = plan.prefix_cache
    check_variants(plan)
    if chosen.enabled is False:
        return None
    obstacle = find_obstacle(plan, model, adapter)
    if chosen.enabled is True and (obstacle is not None or adapter is None):
        raise ConfigError(f"{KEY}.enabled: {obstacle} Leave it out, or give false.")
    if obstacle is not None or adapter is None:
        return None
    random = find_random(plan)
    dithered = model.preprocessor.dither > 0.0
    drops = plan.base_dropout and model.encoder.dropout_rate > 0.0
    cut = find_cut(model, adapter)
    if chosen.enabled == "auto":
        again = length.batches > length.batches_per_epoch or chosen.folder is not None
        worth = again if cached_before is None else cached_before
        if not worth or dithered or "augmentor" in random:
            return None
        cut = 0 if drops else cut
    if "spec_augment" in random and chosen.variants == 1:
        cut = FEATURES
    left_out = [name for name, there in (("dropout", drops and cut > 0), ("dither", dithered)) if there]
    return PrefixPlan(
        cut=cut,
        variants=chosen.variants,
        seed=plan.seed,
        width=model.preprocessor.features if cut == FEATURES else model.encoder.size_at(cut)[0],
        bytes_per_second=bytes_per_second(model, cut, base_dtype(plan, machine)),
        owner=digest(describe_owner(plan, model, machine, cut)) if chosen.folder is not None else "",
        draws=digest(random) if chosen.variants > 1 else "",
        note=make_note(model, cut, left_out, chosen.variants),
    )


def check_variants(plan: TrainingPlan) -> None:
    """Raises ConfigError for a number of draws where nothing is drawn, and for none where something is."""
    chosen, random = plan.prefix_cache, find_random(plan)
    if chosen.variants > 1 and chosen.enabled is not True:
        raise ConfigError(f"{KEY}.variants: {chosen.variants} draws of each utterance need {KEY}.enabled=true.")
    if chosen.variants > 1 and not random:
        raise ConfigError(
            f"{KEY}.variants: {chosen.variants}, but neither model.train_ds.augmentor nor model.spec_augment makes "
            "anything random; leave it at 1."
        )
    if chosen.enabled is True and chosen.variants == 1 and "augmentor" in random:
        raise ConfigError(
            f"{KEY}.variants: 1, but model.train_ds.augmentor changes the audio anew every time. Give the number of "
            f"draws to take in turn, such as {KEY}.variants=8, or leave one of the two out."
        )


def find_random(plan: TrainingPlan) -> dict[str, Any]:
    """Return what changes an utterance by chance before the encoder, by name."""
    found: dict[str, Any] = {}
    masks, waves = plan.spec_augment, plan.train_data.augmentor
    if masks is not None and masks.freq_masks + masks.time_masks > 0:
        found["spec_augment"] = to_plain(masks)
    if waves is not None and any(section is not None for section in vars(waves).values()):
        manifests = [getattr(section, "manifest_path", None) for section in vars(waves).values()]
        paths = [Path(name).expanduser() for name in manifests if name]
        files = [path.stat() for path in paths if path.exists()]
        found["augmentor"] = [to_plain(waves), [(file.st_size, file.st_mtime_ns) for file in files]]
    return found


def find_obstacle(plan: TrainingPlan, model: AsrModel, adapter: Adapter | None) -> str | None:
    """Return why nothing can be cached; None where something can."""
    if adapter is None:
        return "with model.train=everything no part of the base stays the same."
    if plan.inner_losses_of(model):
        return "the losses on inner layers (model.interctc, of the checkpoint) need the layers; null is without them."
    if model.languages:
        return "this model is told the language of each utterance, which is not cached."
    if model.encoder.uncut:
        return f"{model.encoder.uncut}."
    return None


def find_cut(model: AsrModel, adapter: Adapter) -> int:
    """Return the number of layers below the first point where the adapter acts.

    An adapter behind a layer that looks at that layer's output alone, as a linear one, has the layer itself below it.
    """
    points = [adapter.at(name).point for name in adapter.points]
    layers = [point.layer for point in points if point.layer is not None]
    if not layers:
        return model.encoder.depth
    first = [point for point in points if point.layer == min(layers)]
    kind = known(adapter.kind)
    reads_output_alone = kind is not None and kind.reads_output_alone
    return min(layers) + (reads_output_alone and all(point.place == "after_block" for point in first))


def bytes_per_second(model: AsrModel, cut: int, dtype: str) -> float:
    """Return the memory that is cached for a second of audio."""
    if cut == FEATURES:
        return 4 * model.preprocessor.features / model.preprocessor.seconds_per_frame
    width, factor = model.encoder.size_at(cut)
    return width * COMPUTE_DTYPES[dtype].itemsize / (model.preprocessor.seconds_per_frame * factor)


def describe_owner(plan: TrainingPlan, model: AsrModel, machine: Machine, cut: int) -> dict[str, Any]:
    """Return all that the values depend on, besides the audio and the draws."""
    on_gpu = machine.accelerator == "gpu"
    return {
        "format": FORMAT,
        "overtone": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "base": model.fingerprint(),
        "dtype": base_dtype(plan, machine),
        "prepared": plan.compute_dtype != "float32",
        "precision": lightning_precision(plan.trainer),
        "cut": cut,
        **attention_facts(model),
    }


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def make_note(model: AsrModel, cut: int, left_out: Sequence[str], variants: int) -> str:
    """Describe for the user what is computed once."""
    stem = model.encoder.stem()
    parts = {FEATURES: "the features, before their masks,", 0: f"features and {stem}" if stem else "features"}
    below = f"features, {stem} and" if stem else "features and"
    part = parts.get(cut, f"{below} {cut} of {model.encoder.depth} layers")
    how = f"once for each utterance, in {variants} draws" if variants > 1 else "once for each utterance"
    without = f", without {' and '.join(left_out)} there" if left_out else ""
    return f"Prefix cache: {part} are computed {how}{without}"
