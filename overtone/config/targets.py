"""The known `_target_` strings. They are looked up here and never imported."""

from __future__ import annotations

_PARTS = "nemo.collections.common.parts"
_ATTENTION_SHORT = "nemo.collections.asr.parts.submodules.adapters"
_ATTENTION = f"{_ATTENTION_SHORT}.multi_head_attention_adapter_module"
_STRATEGIES_SHORT = "nemo.core.classes.mixins"
_STRATEGIES = f"{_STRATEGIES_SHORT}.adapter_mixin_strategies"

NEMO_LINEAR_TARGETS = (f"{_PARTS}.adapter_modules.LinearAdapter", f"{_PARTS}.LinearAdapter")
"""The first of each tuple is what NeMo itself writes."""
LINEAR_TARGETS = (*NEMO_LINEAR_TARGETS, "overtone.LinearAdapter")
RELATIVE_ATTENTION_TARGETS = (
    f"{_ATTENTION}.RelPositionMultiHeadAttentionAdapter",
    f"{_ATTENTION_SHORT}.RelPositionMultiHeadAttentionAdapter",
)
ABSOLUTE_ATTENTION_TARGETS = (
    f"{_ATTENTION}.MultiHeadAttentionAdapter",
    f"{_ATTENTION_SHORT}.MultiHeadAttentionAdapter",
)
TRANSFORMER_ATTENTION_TARGETS = tuple(
    f"{path}.TransformerMultiHeadAttentionAdapter"
    for path in (f"{_ATTENTION_SHORT}.transformer_multi_head_attention_adapter_module", _ATTENTION_SHORT)
)
NEMO_ATTENTION_TARGETS = (*RELATIVE_ATTENTION_TARGETS, *ABSOLUTE_ATTENTION_TARGETS)
OWN_ATTENTION_TARGET = "overtone.TinyAttentionAdapter"
TINY_ATTENTION_TARGETS = (*NEMO_ATTENTION_TARGETS, OWN_ATTENTION_TARGET, *TRANSFORMER_ATTENTION_TARGETS)
LORA_TARGETS = ("overtone.LoraAdapter",)
RESIDUAL_TARGETS = (
    f"{_STRATEGIES}.ResidualAddAdapterStrategy",
    f"{_STRATEGIES_SHORT}.ResidualAddAdapterStrategy",
)
ATTENTION_RESIDUAL_TARGETS = (
    f"{_ATTENTION}.MHAResidualAddAdapterStrategy",
    f"{_ATTENTION_SHORT}.MHAResidualAddAdapterStrategy",
)
NEMO_STRATEGY_TARGETS = (*RESIDUAL_TARGETS, *ATTENTION_RESIDUAL_TARGETS)
STRATEGY_TARGETS = (*NEMO_STRATEGY_TARGETS, "overtone.ResidualAdd")
SPEC_AUGMENT_TARGETS = (
    "nemo.collections.asr.modules.SpectrogramAugmentation",
    "nemo.collections.asr.modules.audio_preprocessing.SpectrogramAugmentation",
    "overtone.SpecAugment",
)
DDP_TARGETS = (
    "lightning.pytorch.strategies.DDPStrategy",
    "lightning.pytorch.strategies.ddp.DDPStrategy",
    "pytorch_lightning.strategies.DDPStrategy",
    "pytorch_lightning.strategies.ddp.DDPStrategy",
)

KINDS_BY_TARGET: dict[str, str] = {
    **dict.fromkeys(LINEAR_TARGETS, "linear"),
    **dict.fromkeys(TINY_ATTENTION_TARGETS, "tiny_attn"),
    **dict.fromkeys(LORA_TARGETS, "lora"),
}
"""`_target_` of an adapter's section -> name of the kind."""
