"""The notebook in NeMo's words, its cells executed in order as Jupyter does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overtone.checkpoints import load
from overtone.checkpoints.load import load_model, save_model
from overtone.compat.nemo import ASRModel
from support.fixtures import HERE
from support.small_models import small_model

NOTEBOOK = HERE.parent / "docs/nemo_adapters.ipynb"
QUICK = {"max_steps = 300": "max_steps = 2", "check_val_every_n_epoch=3": "check_val_every_n_epoch=1"}
"""What the test replaces, so that the notebook is run in seconds."""
LINES = 12
"""Lines of each manifest that are used."""


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The notebook's names after its last cell, run in an empty folder over a small base."""
    monkeypatch.chdir(tmp_path)
    folder = save_model(small_model(layers=2, name="fundamental"), tmp_path / ".models/fundamental")
    monkeypatch.setattr(load, "embedded_folder", lambda name: folder)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    content = json.loads(NOTEBOOK.read_text("utf-8"))
    assert content["nbformat"] == 4
    for number, cell in enumerate(content["cells"]):
        assert cell["metadata"] == {}
        if cell["cell_type"] != "code":
            continue
        assert (cell["outputs"], cell["execution_count"]) == ([], None), "notebooks are kept without outputs"
        text = "".join(cell["source"])
        for slow, quick in QUICK.items():
            text = text.replace(slow, quick)
        exec(compile(text, f"cell {number}", "exec", dont_inherit=True), namespace)
        for name in ("train", "test"):
            path = Path(f"{name}_manifest.json")
            if path.exists():
                path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:LINES]), "utf-8")
    return namespace


def test_the_cells_run(names: dict[str, Any], tmp_path: Path) -> None:
    """Files, best weights and flags are what NeMo's tutorial leads to; the base has not moved."""
    model = names["model"]
    assert isinstance(model, ASRModel)
    assert model.model.fingerprint() == small_model(layers=2).fingerprint()
    assert model.get_enabled_adapters() == ["prompts-v2"]
    assert names["trainer"].global_step == 2
    adapted, disabled = load_model("adapted_model.nemo"), load_model("adapter_disabled_model.nemo")
    assert (adapted.adapters.file_choice, disabled.adapters.file_choice) == (("prompts",), ())
    assert load_model("unadapted_model.nemo").adapters.names == []
    assert adapted.adapters["prompts"].digest() == model.model.adapters["prompts"].digest()
    best = load_model(names["logdir"] / "checkpoints/ASR-Adapters.nemo")
    assert best.adapters["prompts"].digest() == adapted.adapters["prompts"].digest()
    assert any(names["logdir"].glob("events.out.tfevents.*"))
    assert (names["logdir"] / "checkpoints/last.ckpt").is_file()
    restored = ASRModel.from_pretrained("fundamental")
    restored.load_adapters("adapter_modules.pt")
    assert restored.get_enabled_adapters() == ["prompts"]
