"""`ASRModel` with the methods of NeMo's models that its scripts and notebooks for adapters call.

Which adapters are enabled is a state of the model, kept in `model.cfg.adapters` as in NeMo. `ASRModel.model` has
Overtone's own interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from overtone.adapters.adapter import Adapter
from overtone.checkpoints.adapters import enable_adapters
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo import adapters as files
from overtone.checkpoints.nemo.config import NemoAdapter
from overtone.compat.nemo.adapter_mixins import plain_config
from overtone.compat.nemo.decoding import choose_decoding
from overtone.compat.nemo.parts import GLOBAL, ModelSummary, NemoHypothesis, PartView, nemo_hypothesis, summarize
from overtone.compat.nemo.settings import (
    LIVE_SECTIONS,
    check_override,
    live_config,
    mask_settings,
    optimiser_settings,
    read_settings,
)
from overtone.config import DatasetSettings, SpecAugmentSettings
from overtone.data.dataset import Batch
from overtone.errors import AdapterError, DataError, UsageError, did_you_mean
from overtone.inference.transcribe import Transcriber
from overtone.lightning import AdapterSteps
from overtone.models.asr_model import AsrModel
from overtone.training.console import Reporter
from overtone.training.data import SpeechSet, read_speech


class ASRModel(LightningModule):
    """A recogniser with NeMo's names; a LightningModule, so that `trainer.fit(model)` trains what is trainable."""

    def __init__(self, model: AsrModel, *, config: DictConfig | None = None, trainer: Any = None) -> None:
        super().__init__()
        self.model = model
        self.cfg = live_config(model.config) if config is None else config
        """The configuration, to be read and changed as in NeMo."""
        self.base_dropout = True
        """The dropout of a frozen base acts while adapters are trained, as in NeMo."""
        self.encoder, self.decoder = PartView(model, "encoder"), PartView(model, "decoder")
        if "joint" in model.parts:
            self.joint = PartView(model, "joint")
        self.steps = AdapterSteps(model)
        self.sets: dict[str, tuple[DatasetSettings, list[SpeechSet]]] = {}
        """The sets of utterances that have been set up, by their section."""
        self.head_name = model.head_name
        self.strict_loading = False
        with open_dict(self.cfg):
            self.cfg.pop("adapters", None)
            if self.names:
                self.cfg.adapters = OmegaConf.create(files.adapters_section(model, self.names))
        if trainer is not None:
            self.set_trainer(trainer)

    # Files

    @classmethod
    def restore_from(
        cls,
        restore_path: str | Path,
        override_config_path: DictConfig | str | Path | None = None,
        map_location: torch.device | str | None = None,
        return_config: bool = False,
        trainer: Any = None,
    ) -> Self | DictConfig:
        """Load a `.nemo`, a folder or a name; or its configuration alone. Raises CheckpointError, ConfigError."""
        model = load_model(str(restore_path))
        if return_config:
            return live_config(model.config)
        config = None
        if override_config_path is not None:
            config, attention = check_override(model.config, override_config_path)
            if attention:
                model = load_model(str(restore_path), **attention)
        if map_location is not None:
            model = model.to(torch.device(map_location))
        return cls(model, config=config, trainer=trainer)

    @classmethod
    def from_pretrained(cls, model_name: str, **options: Any) -> Self | DictConfig:
        """The same by the name of a model. options: those of `restore_from`."""
        return cls.restore_from(model_name, **options)

    def save_to(self, save_path: str | Path) -> None:
        """Write a `.nemo` with its adapters, enabled as they are now; an older one is replaced, as in NeMo."""
        enable_adapters(self.model, self.chain())
        before = self.model.config
        sections = {key: plain_config(self.cfg[key]) for key in LIVE_SECTIONS if key in before and key in self.cfg}
        try:
            self.model.config = {**before, **sections}
            save_model(self.model, save_path, overwrite=True)
        finally:
            self.model.config = before

    # Adapters

    @property
    def adapter_module_names(self) -> list[str]:
        """The parts that may have adapters; the empty name is the encoder."""
        own = {point.module for point in self.model.adapters.points.values()}
        return ["", *(part for part in files.NEMO_MODULES if part in own)]

    @property
    def default_adapter_module_name(self) -> str:
        return "encoder"

    def split(self, name: str) -> tuple[str, str]:
        """Module and name of `decoder:an4`; the module of an adapter that exists is known. Raises AdapterError."""
        module, colon, plain = name.rpartition(":")
        if not colon and plain in self.model.adapters:
            module = files.nemo_modules(self.model.adapters[plain])
        unknown = [part for part in module.split("+") if part not in self.adapter_module_names]
        if unknown:
            allowed = ", ".join(repr(part) for part in self.adapter_module_names)
            raise AdapterError(f"'{unknown[0]}' has no adapters in this model. Allowed: {allowed}.")
        return module, plain

    def add_adapter(self, name: str, cfg: Any) -> None:
        """Add an adapter, enabled unless its configuration says otherwise; `decoder:an4` and `encoder+decoder:an4` say
        where. Raises AdapterError for a name that is taken, CheckpointError for a configuration that is not supported.
        """
        module, plain = self.split(name)
        if plain == GLOBAL:
            raise AdapterError(f"'{GLOBAL}' cannot be an adapter's name: NeMo keeps its settings there.")
        config = plain_config(cfg)
        described = NemoAdapter(name=plain, modules=module, config=config)
        kind, strategy = files.read_kind(described, "add_adapter")
        self.model.adapters.check_free(plain)
        adapter = self.model.adapters.add(plain, kind, modules=module or "encoder", strategy=strategy)
        widths = {self.model.adapters.points[point].out_width for point in adapter.points}
        for key in ("in_features", "n_feat"):
            if config.get(key) is not None and config[key] not in widths:
                self.model.adapters.remove(plain)
                raise AdapterError(f"{key} is {config[key]}; the layers have {', '.join(map(str, sorted(widths)))}.")
        adapter.nemo = {"modules": module, "enabled": described.enabled, "config": config}
        self.publish()

    def publish(self) -> None:
        """Write the adapters that there are into `cfg.adapters`; flags that were set there stay."""
        before = self.cfg.get("adapters") or {}
        section = files.adapters_section(self.model, self.names)
        for name in self.names:
            if name in before:
                section[name]["enabled"] = bool(before[name].get("enabled", True))
        with open_dict(self.cfg):
            self.cfg.adapters = OmegaConf.create(section)

    @property
    def names(self) -> list[str]:
        """The adapters that NeMo can have, in order; a LoRA, or words, are left to Overtone's own interface."""
        return [adapter.name for adapter in self.model.adapters if files.has_nemo_form(adapter)]

    def chain(self) -> list[str]:
        """The enabled adapters in the order in which they act, that of their addition."""
        section = self.cfg.get("adapters") or {}
        return [name for name in self.names if bool(section[name].get("enabled", True))]

    @property
    def choice(self) -> str | None:
        return "+".join(self.chain()) or None

    def is_adapter_available(self) -> bool:
        """True if the model has any adapter, enabled or not."""
        return len(self.names) > 0

    def set_enabled_adapters(self, name: str | None = None, enabled: bool = True) -> None:
        """Enable or disable one adapter, or all. Raises AdapterError for an unknown one, CheckpointError for a LoRA."""
        if not self.is_adapter_available():
            raise AdapterError("The model has no adapters to enable or disable; add one first.")
        names = self.names
        if name is not None:
            plain = self.split(name)[1]
            if plain == GLOBAL:
                raise AdapterError(f"'{GLOBAL}' is no adapter, and cannot be enabled or disabled.")
            files.check_nemo_can_hold(self.model.adapters[plain])
            names = [plain]
        with open_dict(self.cfg):
            for each in names:
                self.cfg.adapters[each].enabled = bool(enabled)

    def get_enabled_adapters(self) -> list[str]:
        """The names of the enabled adapters, sorted."""
        return sorted(self.chain())

    def get_adapter_cfg(self, name: str) -> DictConfig | None:
        """The configuration of an adapter; None for an unknown name."""
        plain = self.split(name)[1]
        return self.cfg.adapters[plain] if plain in self.names else None

    def get_adapter_module(self, name: str) -> Adapter | None:
        """The adapter itself, with its parameters at every point; None for an unknown name."""
        plain = self.split(name)[1]
        return self.model.adapters.by_name.get(plain)

    def update_adapter_cfg(self, cfg: DictConfig) -> None:
        """Take over which adapters a section `adapters` enables. Raises AdapterError for one that does not exist."""
        own = [str(key) for key in cfg if key != GLOBAL]
        for name in own:
            if name not in self.model.adapters:
                near = did_you_mean(name, self.model.adapters.names)
                raise AdapterError(f"The configuration names adapter '{name}', which the model does not have.{near}")
        with open_dict(self.cfg):
            for name in own:
                self.cfg.adapters[name].enabled = bool(cfg[name].get("enabled", True))

    def save_adapters(self, filepath: str | Path, name: str | Sequence[str] | None = None) -> None:
        """Write an `adapters.pt`: all adapters, or those named. Raises AdapterError where there is none."""
        enable_adapters(self.model, self.chain())
        names = [name] if isinstance(name, str) else name
        chosen = None if names is None else [self.split(each)[1] for each in names]
        files.save_adapters(self.model, filepath, chosen)

    def load_adapters(
        self, filepath: str | Path, name: Any = None, map_location: Any = None, strict: bool = True
    ) -> None:
        """Add the adapters of an `adapters.pt`: all, or those named, onto the model's device.

        Raises AdapterError for a name that is unknown or taken, UsageError for `strict=False`.
        """
        if not strict:
            raise UsageError("strict=False would leave tensors out silently; an adapter is loaded whole.")
        files.load_adapters(self.model, filepath, [name] if isinstance(name, str) else name)
        self.publish()

    # Training

    def freeze(self) -> Self:
        """Make nothing trainable, and leave training mode."""
        self.model.requires_grad_(False)
        self.model.base_is_frozen, self.model.base_dropout = True, self.base_dropout
        return self.eval()

    def unfreeze(self) -> Self:
        """Make every weight of the base trainable; its batch norms then move."""
        self.model.train_base()
        return self

    def unfreeze_enabled_adapters(self, freeze_batchnorm: bool = True) -> None:
        """Train the enabled adapters; the base's statistics never move. Raises UsageError where they should."""
        if not freeze_batchnorm:
            raise UsageError("freeze_batchnorm=False would change the base; Overtone keeps it as it is.")
        for name in self.chain():
            self.model.adapters[name].requires_grad_(True)
        self.model.base_is_frozen = not any(x.requires_grad for x in self.model.base_parameters())
        self.model.base_dropout = self.base_dropout
        self.train()

    def set_trainer(self, trainer: Any) -> None:
        self.trainer = trainer

    def set_up(self, key: str, section: Any) -> None:
        """Read the manifests of a section, `key`; those of validation and test are a set each. Raises OvertoneError."""
        chosen = read_settings(DatasetSettings, section, f"model.{key}")
        given = chosen.names_files
        self.sets[key] = (chosen, read_speech(self.model, chosen, key, Reporter()) if given else [])

    def setup_training_data(self, train_data_config: Any) -> None:
        self.set_up("train_ds", train_data_config)

    def setup_validation_data(self, val_data_config: Any) -> None:
        self.set_up("validation_ds", val_data_config)

    def setup_test_data(self, test_data_config: Any) -> None:
        self.set_up("test_ds", test_data_config)

    setup_multiple_validation_data = setup_validation_data
    setup_multiple_test_data = setup_test_data

    def setup_optimization(self, optim_config: Any = None) -> None:
        """Choose optimiser and schedule; `cfg.optim` unless given. Raises ConfigError for what is not supported."""
        self.steps.optim = optimiser_settings(self.cfg.optim if optim_config is None else optim_config)

    @property
    def spec_augmentation(self) -> SpecAugmentSettings | None:
        """The masks on the features of training utterances."""
        return self.steps.spec_augment

    @spec_augmentation.setter
    def spec_augmentation(self, masks: SpecAugmentSettings | None) -> None:
        self.steps.spec_augment = masks

    @staticmethod
    def from_config_dict(config: Any) -> SpecAugmentSettings:
        """The object of a section with a `_target_`: SpecAugment, the one that scripts make. Raises ConfigError."""
        return mask_settings(config)

    def summarize(self, max_depth: int = 1) -> ModelSummary:
        """A table of parts and adapters with their parameters; it has one depth."""
        return summarize(self.model)

    # Lightning

    def on_fit_start(self) -> None:
        self.head_name = self.model.head_name
        if self.model.head_name == "rnnt" and "hybrid" in self.model.heads:
            self.model.head_name = "hybrid"
        self.model.base_is_frozen = not any(x.requires_grad for x in self.model.base_parameters())
        self.model.train()

    def on_fit_end(self) -> None:
        self.model.head_name = self.head_name
        self.model.eval()

    def training_step(self, batch: Batch | DataError, batch_idx: int) -> Tensor:
        return self.steps.training_loss(self, batch, self.choice)

    def validation_step(self, batch: Batch | DataError, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.steps.count_errors(batch, self.choice, dataloader_idx)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        self.steps.log_errors(self, "val")

    def on_test_epoch_end(self) -> None:
        self.steps.log_errors(self, "test")

    def configure_optimizers(self) -> Any:
        return self.steps.configure_optimizers(self)

    def train_dataloader(self) -> Any:
        """Raises UsageError before `setup_training_data`."""
        chosen, sets = self.sets.get("train_ds", (None, []))
        if chosen is None or not sets:
            raise UsageError("There is nothing to train on: call setup_training_data(model.cfg.train_ds) first.")
        return self.steps.training_loader(sets[0], chosen, self)

    def loaders(self, key: str) -> Any:
        """The loaders of the sets of a section; none before it has been set up."""
        return self.steps.validation_loaders(self.sets[key][1], self.sets[key][0], self) if key in self.sets else []

    def val_dataloader(self) -> Any:
        return self.loaders("validation_ds")

    def test_dataloader(self) -> Any:
        return self.loaders("test_ds")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.steps.trim_checkpoint(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.steps.read_checkpoint(checkpoint)

    # Recognition

    def forward(self, input_signal: Tensor, input_signal_length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """input_signal [B, S], input_signal_length [B] -> emissions [B, T', C], lengths [B], best classes [B, T'].

        The emissions of a CTC head are log-probabilities.
        """
        with self.model.adapters.use(self.choice):
            emissions, lengths = self.model(input_signal, input_signal_length)
        return emissions, lengths, emissions.argmax(-1)

    def change_decoding_strategy(self, decoding_cfg: Any = None, decoder_type: str | None = None) -> None:
        """Decode greedily, with the head of `decoder_type` (`rnnt`, `ctc`) of a hybrid model. Raises ConfigError."""
        if decoding_cfg is not None:
            choose_decoding(plain_config(decoding_cfg))
            with open_dict(self.cfg):
                self.cfg.decoding = OmegaConf.create(plain_config(decoding_cfg))
        if decoder_type is not None:
            self.model.check_head(decoder_type)
            self.model.head_name = decoder_type

    def transcribe(
        self,
        audio: Any,
        batch_size: int = 4,
        return_hypotheses: bool = True,
        num_workers: int = 0,
        verbose: bool = True,
        timestamps: bool = False,
        **prompt: str,
    ) -> list[NemoHypothesis]:
        """The hypotheses of recordings with the enabled adapters, in order; batches have a length in seconds here.

        timestamps: fill in the times of the words. prompt: slots of a multitask model, such as target_lang="de".
        Raises DataError for a recording that cannot be read, UsageError for other slots.
        """
        task = ",".join(f"{slot}={value}" for slot, value in prompt.items())
        found = Transcriber(self.model, language=task or None).transcribe(audio, adapter=self.choice)
        return [nemo_hypothesis(hypothesis, timestamps=timestamps) for hypothesis in found]


EncDecCTCModel = EncDecCTCModelBPE = EncDecRNNTModel = EncDecRNNTBPEModel = ASRModel
EncDecHybridRNNTCTCModel = EncDecHybridRNNTCTCBPEModel = EncDecMultiTaskModel = ASRModel
