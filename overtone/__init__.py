"""Overtone adapts a pretrained speech recogniser to a domain without touching it.

The names below are the whole public interface. They are fetched when first used, so that `import overtone`
costs nothing: PyTorch is loaded by the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from overtone.version import __version__

if TYPE_CHECKING:
    from overtone.adapters.adapter_set import AdapterSet
    from overtone.adapters.kinds.linear import LinearAdapter
    from overtone.adapters.kinds.lora import LoraAdapter
    from overtone.adapters.kinds.registry import register_kind
    from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
    from overtone.adapters.strategies import ResidualAdd
    from overtone.audio.load import load_audio
    from overtone.checkpoints.load import load_model, save_model
    from overtone.decoding.hypothesis import Hypothesis, Word
    from overtone.errors import OvertoneError
    from overtone.evaluation.evaluate import evaluate
    from overtone.inference.transcribe import Transcriber, transcribe
    from overtone.models.asr_model import AsrModel
    from overtone.progress import progress_bar
    from overtone.training.train import train

__all__ = [
    "load_model",
    "save_model",
    "load_audio",
    "transcribe",
    "train",
    "evaluate",
    "progress_bar",
    "AsrModel",
    "AdapterSet",
    "LinearAdapter",
    "TinyAttentionAdapter",
    "LoraAdapter",
    "register_kind",
    "ResidualAdd",
    "Hypothesis",
    "Word",
    "Transcriber",
    "OvertoneError",
    "__version__",
]

_HOMES = {
    "load_model": "overtone.checkpoints.load",
    "save_model": "overtone.checkpoints.load",
    "load_audio": "overtone.audio.load",
    "transcribe": "overtone.inference.transcribe",
    "train": "overtone.training.train",
    "evaluate": "overtone.evaluation.evaluate",
    "progress_bar": "overtone.progress",
    "AsrModel": "overtone.models.asr_model",
    "AdapterSet": "overtone.adapters.adapter_set",
    "LinearAdapter": "overtone.adapters.kinds.linear",
    "TinyAttentionAdapter": "overtone.adapters.kinds.tiny_attention",
    "LoraAdapter": "overtone.adapters.kinds.lora",
    "register_kind": "overtone.adapters.kinds.registry",
    "ResidualAdd": "overtone.adapters.strategies",
    "Hypothesis": "overtone.decoding.hypothesis",
    "Word": "overtone.decoding.hypothesis",
    "Transcriber": "overtone.inference.transcribe",
    "OvertoneError": "overtone.errors",
}


def __getattr__(name: str) -> object:
    """Fetch an exported name from its home module and keep it."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'overtone' has no attribute '{name}'; it exports {', '.join(__all__)}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
