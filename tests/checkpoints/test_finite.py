"""Adapters with numbers that are not finite: no format takes them, and no reader gives them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.checkpoints.huggingface import peft
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo import adapters as nemo_adapters
from overtone.errors import AdapterError
from overtone.models.asr_model import AsrModel
from support.fixtures import HERE

FORMATS: dict[str, tuple[Kind, Callable[[AsrModel, Path], object], Callable[[AsrModel, Path], object]]] = {
    "adapters.pt": (
        LinearAdapter(dim=2),
        lambda model, path: nemo_adapters.save_adapters(model, path),
        lambda model, path: nemo_adapters.load_adapters(model, path),
    ),
    "model.nemo": (LinearAdapter(dim=2), save_model, lambda _, path: load_model(path)),
    "peft": (
        LoraAdapter(rank=2),
        lambda model, path: peft.save_peft(model.adapters["mine"], path),
        lambda model, path: peft.load_peft(model, path),
    ),
}


def base() -> AsrModel:
    return load_model(HERE / "fixtures/huggingface/ctc")


@pytest.mark.parametrize("form", FORMATS)
def test_numbers_that_are_not_finite_are_neither_written_nor_read(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, write, read = FORMATS[form]
    model = base()
    adapter = model.adapters.add("mine", kind)
    with torch.no_grad():
        adapter.at(adapter.points[-1]).tensors()["up.weight"][0, 1] = torch.nan
    path = tmp_path / form
    place = rf"holds nan in .*{adapter.points[-1].replace('.', '[.]')}[.]up[.]weight\[0, 1\]"
    with pytest.raises(AdapterError, match=f"Adapter 'mine' is not written: it {place}"):
        write(model, path)
    assert list(tmp_path.iterdir()) == []

    with monkeypatch.context() as patched:
        for module in (nemo_adapters, peft):
            patched.setattr(module, "check_finite", lambda tensors, where: None)
        write(model, path)
    again = base()
    with pytest.raises(AdapterError, match=place):
        read(again, path)
    assert again.adapters.names == []
