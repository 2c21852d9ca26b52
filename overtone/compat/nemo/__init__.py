"""NeMo's names over Overtone's models, so that a script or notebook for NeMo's ASR adapters needs other imports alone.

    import overtone.compat.nemo as nemo_asr
    from overtone.compat.nemo import LinearAdapterConfig, adapter_mixins, exp_manager, read_manifest

    model = nemo_asr.models.ASRModel.restore_from("base.nemo")

The enabled adapters of such a model act in everything that it does, as in NeMo; Overtone's own choice by row and
request is `model.model.adapters.use`.
"""

from __future__ import annotations

from overtone.compat.nemo import adapter_mixins, exp_manager, models
from overtone.compat.nemo.adapter_mixins import (
    LinearAdapterConfig,
    MHAResidualAddAdapterStrategyConfig,
    MultiHeadAttentionAdapterConfig,
    RelPositionMultiHeadAttentionAdapterConfig,
    ResidualAddAdapterStrategyConfig,
)
from overtone.compat.nemo.models import ASRModel
from overtone.evaluation.speech_to_text import read_lines as read_manifest
from overtone.evaluation.speech_to_text import write_lines as write_manifest

__all__ = [
    "ASRModel",
    "LinearAdapterConfig",
    "MHAResidualAddAdapterStrategyConfig",
    "MultiHeadAttentionAdapterConfig",
    "RelPositionMultiHeadAttentionAdapterConfig",
    "ResidualAddAdapterStrategyConfig",
    "adapter_mixins",
    "exp_manager",
    "models",
    "read_manifest",
    "write_manifest",
]
