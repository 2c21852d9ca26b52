"""Callbacks of the caller's, and kinds by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from overtone.errors import AdapterError
from overtone.training.train import train
from support.small_models import small_model
from support.train_samples import write_corpus


class Watcher(Callback):
    """The steps and the losses that it has seen."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        self.steps.append(trainer.global_step)


def test_callbacks_are_called_at_every_step(tmp_path: Path) -> None:
    manifest, watcher = write_corpus(tmp_path), Watcher()
    given = {"train_manifest": manifest, "validation_manifest": manifest, "max_steps": 3, "quiet": True}
    result = train(
        small_model(), adapter_name="a", kind="lora", output_dir=tmp_path / "run", callbacks=[watcher], **given
    )
    assert watcher.steps == [1, 2, 3]
    assert "kind: lora" in (result.best / "adapter.yaml").read_text()
    with pytest.raises(AdapterError, match=r"kind 'lorra' is unknown\. Did you mean 'lora'\?"):
        train(small_model(), adapter_name="a", kind="lorra", output_dir=tmp_path / "other", **given)
