"""Overtone adapts a pretrained speech recogniser to a domain without touching it.

The names below are the whole public interface. They are fetched when first used, so that `import overtone`
costs nothing: PyTorch is loaded by the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from overtone.adapters.adapter_set import AdapterSet
    from overtone.adapters.kinds import LinearAdapter, LoraAdapter, TinyAttentionAdapter
    from overtone.adapters.strategies import ResidualAdd
    from overtone.audio import load_audio
    from overtone.checkpoints.load import load_model, save_model
    from overtone.decoding.ctc import Hypothesis, Word
    from overtone.errors import OvertoneError
    from overtone.jobs.evaluate import evaluate
    from overtone.jobs.train import train
    from overtone.jobs.transcribe import Transcriber, transcribe
    from overtone.model import AsrModel

__version__ = "0.1.0"

__all__ = [
    "load_model",
    "save_model",
    "load_audio",
    "transcribe",
    "train",
    "evaluate",
    "AsrModel",
    "AdapterSet",
    "LinearAdapter",
    "TinyAttentionAdapter",
    "LoraAdapter",
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
    "load_audio": "overtone.audio",
    "transcribe": "overtone.jobs.transcribe",
    "train": "overtone.jobs.train",
    "evaluate": "overtone.jobs.evaluate",
    "AsrModel": "overtone.model",
    "AdapterSet": "overtone.adapters.adapter_set",
    "LinearAdapter": "overtone.adapters.kinds",
    "TinyAttentionAdapter": "overtone.adapters.kinds",
    "LoraAdapter": "overtone.adapters.kinds",
    "ResidualAdd": "overtone.adapters.strategies",
    "Hypothesis": "overtone.decoding.ctc",
    "Word": "overtone.decoding.ctc",
    "Transcriber": "overtone.jobs.transcribe",
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
