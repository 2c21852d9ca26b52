"""Adapters with a vocabulary of their own as NeMo's models with a changed one."""

from __future__ import annotations

from pathlib import Path

import pytest

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.adapters import save_adapters
from overtone.errors import CheckpointError
from support.own_vocabulary import LABELS, MODELS, SECOND, add_own, texts


@pytest.mark.parametrize("head", MODELS)
def test_a_nemo_file_has_the_heads_of_the_adapter(head: str, tmp_path: Path) -> None:
    model = MODELS[head]()
    add_own(model, "own", LABELS)
    model.adapters.add("plain", LinearAdapter(dim=4))
    model.adapters.file_choice = ("own",)
    save_model(model, tmp_path / "own.nemo")
    save_model(model, tmp_path / "same.nemo", enabled=["own"])
    for name in ("own", "same"):
        whole = load_model(tmp_path / f"{name}.nemo")
        assert whole.tokenizer.vocabulary == LABELS
        assert whole.adapters["own"].vocabulary is None
        for choice in ("own", "plain+own"):
            assert texts(whole, choice) == texts(model, choice)


def test_what_a_nemo_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    model = MODELS["ctc"]()
    add_own(model, "own", LABELS)
    with pytest.raises(CheckpointError, match=r"enabled=\['own'\]"):
        save_model(model, tmp_path / "base.nemo", enabled=[])
    with pytest.raises(CheckpointError, match=r"adapter folder"):
        save_adapters(model, tmp_path / "adapters.pt")
    add_own(model, "other", SECOND)
    with pytest.raises(CheckpointError, match="other would bring another"):
        save_model(model, tmp_path / "two.nemo", enabled=["own", "other"])
    model.adapters.remove("other")
    model.adapters.add("head", LinearAdapter(dim=2), modules="decoder")
    with pytest.raises(CheckpointError, match="acts in the decoder of the base"):
        save_model(model, tmp_path / "head.nemo", enabled=["own"])
    assert not list(tmp_path.iterdir())
