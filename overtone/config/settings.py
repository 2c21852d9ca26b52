"""The settings of a training or evaluation, by NeMo's names; those of ours alone say so.

The defaults are those of the shipped `asr_adaptation.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from overtone.config.dataset import DatasetSettings
from overtone.config.experiment import ExperimentSettings, TrainerSettings
from overtone.config.fields import bounded, one_of, only, section, target_of
from overtone.config.own import (
    FlatStartSettings,
    InterCtcSettings,
    PrefixCacheSettings,
    RetentionSettings,
    VocabularySettings,
    WordsSettings,
)
from overtone.config.targets import (
    ATTENTION_RESIDUAL_TARGETS,
    KINDS_BY_TARGET,
    LINEAR_TARGETS,
    LORA_TARGETS,
    SPEC_AUGMENT_TARGETS,
    STRATEGY_TARGETS,
    TINY_ATTENTION_TARGETS,
)

Missing = None
"""A value that the user has to give, or that is taken from the model."""


@dataclass(frozen=True, kw_only=True)
class StrategySettings:
    """The way in which an adapter's change is added."""

    target: str = target_of(STRATEGY_TARGETS)
    """Residual addition, in one of NeMo's spellings."""
    stochastic_depth: float = bounded(0.0, at_least=0, at_most=1)
    """Probability of leaving an adapter out, drawn for each utterance and layer in training."""
    l2_lambda: float = bounded(0.0, at_least=0)
    """Weight of the squared size of the adapter's change, added to the loss."""


@dataclass(frozen=True, kw_only=True)
class LinearSettings:
    """The linear adapter (Houlsby et al. 2019)."""

    target: str = target_of(LINEAR_TARGETS)
    in_features: int | None = Missing
    """Width of the layers' outputs; taken from the model, and checked against it where given."""
    dim: int = bounded(32, at_least=1)
    """Width of the bottleneck."""
    activation: str = "swish"
    """Between the two projections."""
    norm_position: Literal["pre", "post"] = "pre"
    """The layer norm comes before the first projection (`pre`) or after the second (`post`)."""
    dropout: float = bounded(0.0, at_least=0, at_most=1)
    """On the adapter's output, in training."""
    adapter_strategy: StrategySettings = section(StrategySettings)


@dataclass(frozen=True, kw_only=True)
class TinyAttentionSettings:
    """Multi-head attention (Zhao et al. 2022), with relative or absolute positions by its `_target_`."""

    target: str = target_of(TINY_ATTENTION_TARGETS)
    n_feat: int | None = Missing
    """Width of the layers' outputs; taken from the model, and checked against it where given."""
    n_head: int = bounded(1, at_least=1)
    """Attention heads."""
    proj_dim: int | None = -1
    """Width inside: null is the model's own, −1 as many as heads."""
    dropout_rate: float = bounded(0.0, at_least=0, at_most=1)
    """On the attention weights, in training."""
    adapter_strategy: StrategySettings = field(
        default_factory=lambda: StrategySettings(target=ATTENTION_RESIDUAL_TARGETS[0])
    )


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Ours alone: low-rank changes of the frozen projections (Hu et al. 2021)."""

    target: str = target_of(LORA_TARGETS)
    rank: int = bounded(8, at_least=1)
    """Rank of the change."""
    alpha: float = bounded(16.0, above=0)
    """The change is scaled by alpha / rank."""
    dropout: float = bounded(0.0, at_least=0, at_most=1)
    """On the input of the change, in training."""
    targets: tuple[str, ...] = ("q", "k", "v", "out", "feed_forward")
    """Projections of a layer that are changed."""
    adapter_strategy: StrategySettings = section(StrategySettings)


@dataclass(frozen=True, kw_only=True)
class OwnKindSettings:
    """A kind of the user's own, given in Python: no configuration can name it."""

    target: str = field(default="", metadata={"key": "_target_"})
    """Module and name of its class, for the record."""
    kind: Any = None
    """The kind itself."""
    adapter_strategy: StrategySettings = section(StrategySettings)


KindSettings = LinearSettings | TinyAttentionSettings | LoraSettings | OwnKindSettings
KIND_SETTINGS: dict[str, type[KindSettings]] = {
    "linear": LinearSettings,
    "tiny_attn": TinyAttentionSettings,
    "tinyattn": TinyAttentionSettings,
    "lora": LoraSettings,
}
"""Sub-sections of `model.adapter` by name; another name is allowed where its `_target_` says what it is."""


def kind_of_section(name: str, values: Any) -> type[KindSettings] | None:
    """The settings that a sub-section of `model.adapter` holds; None where it is none."""
    if name in KIND_SETTINGS:
        return KIND_SETTINGS[name]
    target = values.get("_target_") if isinstance(values, Mapping) else None
    return KIND_SETTINGS.get(KINDS_BY_TARGET.get(str(target), ""))


@dataclass(frozen=True, kw_only=True)
class GlobalAdapterSettings:
    """NeMo's switches for its own checks; Overtone always checks, and keeps the values for writing back."""

    check_encoder_adapter: bool = True
    check_decoder_adapter: bool = True
    check_joint_adapter: bool = True


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """The new adapter of a training, or the adapter of an evaluation."""

    adapter_name: str | None = Missing
    """Name of the adapter: new in training, existing in evaluation, where null is the base."""
    adapter_type: str = "linear"
    """Name of the section below that is used."""
    adapter_module_name: str | None = None
    """`encoder` (also null), `decoder`, `joint`, or several joined by `+`."""
    adapter_state_dict_name: str | None = "adapters.pt"
    """File in NeMo's format, written beside the adapter folders; null writes none."""
    layers: str | int | tuple[int, ...] = "all"
    """Ours: `all`, `last:8` or `first:8` (a number of layers), or the indices, `[0,3,5]`."""
    start_from: str | None = None
    """Ours: an adapter to go on from, of the model or on disk; kind, places and strategy are its own."""
    words: WordsSettings | Literal["auto", "off"] | bool = "off"
    """Ours: `auto` counts the transcripts; weights are chosen on the validation set, no gain is no word part."""
    vocabulary: VocabularySettings | None = None
    """Ours: `{tokenizer: …}` or `{labels: […]}`, new tokens and heads of the adapter's own; null writes the base's."""
    retention: RetentionSettings | None = None
    """Ours: points that general speech may lose; null: the adapter is as strong as it was trained."""
    in_features: int | None = None
    """Another spelling of the width, checked against the model."""
    dim: int | None = bounded(None, at_least=1)
    """Another spelling of `linear.dim`."""
    kinds: Mapping[str, KindSettings] = field(
        default_factory=lambda: {name: KIND_SETTINGS[name]() for name in ("linear", "tiny_attn", "lora")},
        metadata={"rest": kind_of_section},
    )
    """The sections by name."""
    global_settings: GlobalAdapterSettings = section(GlobalAdapterSettings, "global_cfg")


@dataclass(frozen=True, kw_only=True)
class SpecAugmentSettings:
    """SpecAugment (Park et al. 2019) on the features of training utterances; all zero is none."""

    target: str = target_of(SPEC_AUGMENT_TARGETS)
    freq_masks: int = bounded(0, at_least=0)
    """Masks along frequency."""
    time_masks: int = bounded(0, at_least=0)
    """Masks along time."""
    freq_width: int = bounded(27, at_least=0)
    """Widest mask, in mel bins."""
    time_width: int | float = bounded(0.05, at_least=0)
    """Longest mask: a share of the utterance (below one, a fraction), or frames (a whole number)."""
    mask_value: float = 0.0
    """Value of masked places."""
    rect_masks: int = only(0, instead="use freq_masks and time_masks")
    rect_time: int = 5
    rect_freq: int = 20
    use_vectorized_spec_augment: bool = True
    use_numba_spec_augment: bool = False
    rng: None = None


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The learning rate over the steps; which of the fields a schedule takes is checked by it."""

    name: str = "CosineAnnealing"
    warmup_steps: int | None = bounded(None, at_least=0)
    """Steps of rising rate; wins over warmup_ratio."""
    warmup_ratio: float | None = bounded(0.1, at_least=0, at_most=1)
    """The same as a share of all steps."""
    min_lr: float = bounded(1e-5, at_least=0)
    """The rate never falls below it."""
    max_steps: int | None = None
    """Length of the schedule; unset: the length of the training."""
    constant_steps: int | None = bounded(None, at_least=0)
    constant_ratio: float | None = bounded(None, at_least=0, at_most=1)
    hold_steps: int | None = bounded(None, at_least=0)
    hold_ratio: float | None = bounded(None, at_least=0, at_most=1)
    decay_rate: float | None = None
    step_size: int | None = bounded(None, at_least=1)
    """Steps of a stair, of StepLR."""
    gamma: float | None = bounded(None, above=0)
    """Factor of each stair of StepLR, or of each step of CyclicLR's mode exp_range."""
    base_lr: float | None = bounded(None, at_least=0)
    """Lower rate of CyclicLR."""
    max_lr: float | None = bounded(None, above=0)
    """Upper rate of CyclicLR."""
    step_size_up: int | None = bounded(None, at_least=1)
    """Steps of CyclicLR upward, 2000."""
    step_size_down: int | None = bounded(None, at_least=1)
    """Steps of CyclicLR downward; unset: as many as upward."""
    mode: Literal["triangular", "triangular2", "exp_range"] | None = None
    """Upper rate of CyclicLR's later cycles: the same, half of the one before, or falling by gamma every step."""
    cycle_momentum: bool = only(False, instead="leave it out; the momentum stays")
    power: float | None = None
    cycle: bool | None = None
    d_model: int | None = bounded(None, at_least=1)
    last_epoch: int = only(-1, instead="a resumed run finds its place by itself")
    monitor: str | None = None
    reduce_on_plateau: bool = only(False, instead="choose a schedule over the steps")


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """The optimiser and its schedule."""

    name: str = one_of(
        "adamw",
        (
            *("adamw", "adam", "nadam", "radam", "adamax", "adadelta", "adagrad", "rmsprop", "rprop", "sgd"),
            *("novograd", "adafactor", "adan", "fused_adam"),
        ),
    )
    """The optimiser of torch.optim by that name, or one that PyTorch does not have as NeMo has it."""
    lr: float | Literal["auto"] = bounded(0.001, at_least=0)
    """Learning rate: the peak of the schedule (a factor, with NoamAnnealing); auto: by kind, steps and width."""
    betas: tuple[float, ...] = (0.9, 0.98)
    """Averages of the Adam family."""
    weight_decay: float = bounded(0.0, at_least=0)
    eps: float | tuple[float, ...] | None = bounded(None, above=0)
    """Unset: the optimiser's own. Two numbers for adafactor."""
    momentum: float | None = bounded(None, at_least=0)
    """Momentum of sgd and rmsprop."""
    nesterov: bool | None = None
    """Nesterov momentum of sgd."""
    grad_averaging: bool = False
    """Weigh each gradient by what the momentum leaves, with novograd."""
    amsgrad: bool | None = None
    """For adam and adamw. Unset here and below: the optimiser's own."""
    rho: float | None = bounded(None, at_least=0, at_most=1)
    """For adadelta."""
    alpha: float | None = bounded(None, at_least=0, at_most=1)
    """For rmsprop."""
    centered: bool | None = None
    """For rmsprop."""
    dampening: float | None = bounded(None, at_least=0)
    """For sgd."""
    lr_decay: float | None = bounded(None, at_least=0)
    """For adagrad."""
    initial_accumulator_value: float | None = bounded(None, at_least=0)
    """For adagrad."""
    etas: tuple[float, ...] | None = None
    """For rprop: factors of the rate where a gradient changes its sign, and where not."""
    step_sizes: tuple[float, ...] | None = None
    """For rprop: smallest and largest step."""
    beta1: float | None = bounded(None, at_least=0, at_most=1)
    """For adafactor: of a momentum; unset: none."""
    clip_threshold: float | None = bounded(None, above=0)
    """For adafactor: largest root mean square of an update."""
    decay_rate: float | None = bounded(None, at_most=0)
    """For adafactor: power of the step in the weight of the past, -0.8."""
    scale_parameter: bool | None = None
    """For adafactor: multiply the rate by each tensor's root mean square; unset: it does."""
    relative_step: bool = only(False, instead="the schedule decides the rate")
    warmup_init: bool = only(False, instead="give sched.warmup_steps")
    max_grad_norm: float | None = bounded(None, at_least=0)
    """For adan: largest norm of all gradients."""
    no_prox: bool | None = None
    """For adan: weights decay before the step, as in AdamW."""
    luc: bool = only(False, instead="give trainer.gradient_clip_val")
    sched: ScheduleSettings | None = section(ScheduleSettings)
    """null: a constant learning rate."""


@dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """The encoder's attention, where the model leaves a choice."""

    att_context_size: tuple[int, ...] | None = None
    """[left, right] in encoder frames, one of those that the model was trained with; null: the first."""
    self_attention_model: Literal["rel_pos_local_attn", "rel_pos"] | None = None
    """Local attention in the place of full, with any att_context_size, or the contrary; null: as it was trained."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The base, what is trained of it, and the data."""

    pretrained_model: str | None = None
    """Name of a model. Exactly one of this, nemo_model and init is given."""
    nemo_model: str | None = None
    """Path of a `.nemo` file or of a model folder."""
    init: str | None = None
    """Ours: path of a model's YAML, built with fresh weights (then `train=everything`)."""
    tokenizer: str | None = None
    """Ours, where the base is trained: another vocabulary, under fresh heads; a file or folder as for an adapter's."""
    train: Literal["adapter", "everything"] | tuple[str, ...] = "adapter"
    """Ours: a new adapter over the frozen base, every weight of the base, or parts, `[decoder, encoder.layers.12-]`."""
    base_dropout: bool = True
    """Ours: whether the base's own dropout acts in training."""
    vocabulary_check: Literal["refuse", "drop", "keep"] = "refuse"
    """Ours: what to do with transcripts that the model cannot write."""
    log_prediction: bool = False
    """Print a reference and its hypothesis now and then."""
    encoder: EncoderSettings = section(EncoderSettings)
    adapter: AdapterSettings = section(AdapterSettings)
    spec_augment: SpecAugmentSettings | None = section(SpecAugmentSettings)
    interctc: InterCtcSettings | None = section(InterCtcSettings)
    """null: no inner losses, even where the checkpoint was trained with some."""
    flat_start: FlatStartSettings = section(FlatStartSettings)
    prefix_cache: PrefixCacheSettings = section(PrefixCacheSettings)
    train_ds: DatasetSettings = section(DatasetSettings)
    validation_ds: DatasetSettings = field(default_factory=lambda: DatasetSettings(shuffle=False))
    test_ds: DatasetSettings = field(default_factory=lambda: DatasetSettings(shuffle=False))
    general_manifest: str | tuple[str, ...] | None = None
    """Ours: manifests of general speech, on which base and best adapter are measured at the end of a training."""
    refit: Literal["words"] | bool = False
    """Ours: train the adapter anew at the end, on training and validation data, with what validation has chosen;
    `words`: count its words on both, and leave the acoustic part."""
    base_errors: str | None = None
    """Ours: folder in which the errors of the base are kept, so that it is measured once for several trainings."""
    optim: OptimSettings = section(OptimSettings)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run."""

    name: str = "ASR-Adapter"
    """Name of the experiment, where `exp_manager.name` is not given."""
    model: ModelSettings = section(ModelSettings)
    trainer: TrainerSettings = section(TrainerSettings)
    exp_manager: ExperimentSettings = section(ExperimentSettings)
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Ours: the frozen base's dtype; `trainer.precision` is that of the trained parameters."""
    compute_processes: Literal["auto"] | int = bounded("auto", at_least=1)
    """Ours: processes that share the rows of every batch while an adapter is trained on a CPU; 1 shares nothing."""
    seed: int = bounded(0, at_least=0)
    """Ours: of the initial weights, the order of the data, dropout and augmentation."""
    delete_ckpt_after_train: bool = False
    """Remove the files that only a resumed run needs, once the training is complete."""
