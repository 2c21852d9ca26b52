"""Callbacks of the caller's, and kinds by their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from overtone.errors import AdapterError, OvertoneError
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


def test_a_cell_that_trains_can_be_run_again(tmp_path: Path) -> None:
    manifest, model = write_corpus(tmp_path), small_model()
    other = tmp_path / "run" / "checkpoints" / "about"

    def cell(**more: Any) -> Any:
        given = {"train_manifest": manifest, "output_dir": tmp_path / "run", "max_steps": 1, "quiet": True}
        return train(model, adapter_name="a", **given, **more)

    first = cell()
    with pytest.raises(OvertoneError, match="holds a run already"):
        cell()
    again = cell(overwrite=True)
    assert model.adapters.names == ["a"]
    assert again.last == first.last
    other.mkdir()
    with pytest.raises(OvertoneError, match="holds a run already"):
        cell(overwrite=True)
    assert other.is_dir()
