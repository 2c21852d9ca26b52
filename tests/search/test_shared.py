"""What the trainings of a search share: errors of the base, and the prefix cache; each is computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from overtone import cli
from overtone.checkpoints.load import save_model
from overtone.config import ExperimentSettings, Settings, load_settings
from overtone.search.trials import Trial, share, shared_folder
from overtone.training import general
from overtone.training.module import TrainingModule
from overtone.training.prefix_cache.forward import PrefixForward
from overtone.training.run_folder import plan_folder
from support.small_models import small_model
from support.train_samples import environment, write_corpus


def search_of_two(folder: Path, *more: str) -> list[str]:
    """Words of a search over two widths, with general speech."""
    save_model(small_model(), folder / "base")
    return [
        "train",
        "-m",
        f"model.nemo_model={folder / 'base'}",
        "model.adapter.adapter_name=mine",
        "model.adapter.words=off",
        "model.adapter.layers=last:1",
        "model.adapter.linear.dim=2,4",
        f"model.train_ds.manifest_filepath={write_corpus(folder)}",
        f"model.validation_ds.manifest_filepath={write_corpus(folder, count=3, name='valid')}",
        f"model.general_manifest={write_corpus(folder, count=2, name='general')}",
        "model.train_ds.num_workers=0",
        "model.validation_ds.num_workers=0",
        "trainer.max_steps=3",
        "trainer.devices=1",
        "compute_processes=1",
        f"exp_manager.explicit_log_dir={folder / 'runs'}",
        *more,
    ]


def test_everything_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The base is measured by the first training alone, and each utterance below the adapters once."""
    calls = {"domain": 0, "general": 0, "below": 0}

    def counted(name: str, owner: Any, attribute: str, condition: Any = lambda *_: True) -> None:
        original = getattr(owner, attribute)

        def call(*arguments: Any, **options: Any) -> Any:
            calls[name] += bool(condition(*arguments))
            return original(*arguments, **options)

        monkeypatch.setattr(owner, attribute, call)

    general.BASE_ERRORS.clear()
    counted("domain", TrainingModule, "score_base")
    counted("general", general, "count_errors", lambda model, utterances, adapter: adapter is None)
    counted("below", PrefixForward, "below")
    assert cli.main(search_of_two(tmp_path, "model.prefix_cache.enabled=true")) == 0
    assert calls == {"domain": 1, "general": 1, "below": 12 + 3}
    said = capsys.readouterr().out
    first, second = [line for line in said.splitlines() if line.startswith("step 0: WER")]
    assert first == second
    assert not (tmp_path / "runs/shared/prefix_cache").exists()
    general.BASE_ERRORS.clear()
    (tmp_path / "again").mkdir()
    same = ["model.prefix_cache.enabled=true", f"model.base_errors={tmp_path / 'runs/shared/base'}"]
    assert cli.main(search_of_two(tmp_path / "again", *same)) == 0
    assert calls["general"] == 2  # the manifest lies elsewhere
    assert calls["domain"] == 1  # a corpus that was moved is the same


def test_trainings_at_once_share_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    assert cli.main([*search_of_two(tmp_path), "--jobs", "2"]) == 0
    assert len(list((tmp_path / "runs/shared/base").glob("*.json"))) == 2  # of the domain, and of general speech
    texts = [path.read_text() for path in (tmp_path / "runs").glob("*/log.txt")]
    assert len(texts) == 2
    assert all("step 0: WER" in text for text in texts)


def test_the_folder_that_is_shared(tmp_path: Path) -> None:
    """Above all run folders, where they have a place in common; a folder that is named stays."""

    def trials(*folders: str) -> list[Trial]:
        chosen = [ExperimentSettings(explicit_log_dir=str(tmp_path / name)) for name in folders]
        return [Trial(chosen=(), settings=Settings(exp_manager=each)) for each in chosen]

    assert shared_folder(trials("a/x", "a/y")) == tmp_path / "a/shared"
    assert shared_folder(trials("a/x", "b/y")) is None
    assert shared_folder(trials("a/x")) is None
    plain, named = share(
        [
            Trial(chosen=(), settings=load_settings([*GIVEN, "model.prefix_cache.enabled=false"])),
            Trial(chosen=(), settings=load_settings([*GIVEN, "model.base_errors=b", "model.prefix_cache.folder=c"])),
        ],
        tmp_path / "it's",
    )
    assert plain.settings.model.base_errors == str(tmp_path / "it's/base")
    assert load_settings([*GIVEN, *plain.overrides]).model.base_errors == plain.settings.model.base_errors
    assert len(plain.overrides) == 1
    assert (named.settings.model.base_errors, named.settings.model.prefix_cache.folder) == ("b", "c")
    assert named.overrides == ()
    assert plan_folder(plain.settings.exp_manager, default_name="x").path.name


GIVEN = ["model.nemo_model=a.nemo", "model.adapter.adapter_name=a", "model.train_ds.manifest_filepath=a.json"]
