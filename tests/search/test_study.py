"""Searches whose settings Optuna chooses: what is tried, pruned, repeated, and gone on with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from overtone import cli
from overtone.config import Settings, load_settings
from overtone.config.sweeper import read_search
from overtone.errors import ConfigError
from overtone.search import trials as trials_room
from overtone.search.processes import read_result
from overtone.search.study import StudySearch, open_study, read_prune
from overtone.search.trials import Outcome, Trial, TrialResult, find_folder
from overtone.training.plan import Validation
from support.train_samples import environment, losses, search_words

SPACE = ["model.optim.lr=tag(log,interval(0.0001,0.1))", "model.adapter.linear.dim=2,4"]


def words_for(folder: Path, *more: str) -> list[str]:
    """Words of a search over rate and width, of trainings of two steps with a validation after each."""
    words = [
        word for word in search_words(folder) if not word.startswith(("model.adapter.adapter_name", "trainer.max"))
    ]
    own = ["model.adapter.adapter_name=one", "model.adapter.words=off", "trainer.max_steps=2"]
    return ["hydra/sweeper=optuna", *words, *own, "trainer.val_check_interval=1", "compute_processes=1", *SPACE, *more]


def search_of(words: list[str]) -> StudySearch:
    found = read_search(words)
    assert found is not None
    return StudySearch(found, load_settings)


def plain_words(folder: Path, *more: str) -> list[str]:
    """Words of a search whose trainings are never carried out."""
    manifests = ["model.train_ds.manifest_filepath=a.json", "model.validation_ds.manifest_filepath=b.json"]
    own = ["hydra/sweeper=optuna", "model.nemo_model=a.nemo", "model.adapter.adapter_name=a", *manifests]
    return [*own, f"exp_manager.explicit_log_dir={folder}", *SPACE, *more]


def outcome(trial: Trial, wer: float, *, score: float | None = None) -> Outcome:
    """The outcome of a training, whose result lies in its folder."""
    folder = find_folder(trial.settings).path
    folder.mkdir(parents=True)
    content = {"adapter": "a", "best": str(folder), "best_step": 1, "wer_before": 0.5, "wer_after": wer}
    (folder / "result.json").write_text(json.dumps(content))
    result = TrialResult(adapter="a", folder=folder, best=folder, best_step=1, wer=wer, score=score)
    return Outcome(trial=trial, result=result)


def test_later_trainings_depend_on_earlier_ones(tmp_path: Path) -> None:
    """Small rates are good here: those that are chosen later are smaller; the same search chooses the same."""

    def rates(folder: Path) -> list[float]:
        with search_of(plain_words(folder, "hydra.sweeper.n_trials=40")) as study:
            found = []
            for trial in study.trials():
                found.append(float(trial.settings.model.optim.lr))
                study.tell(outcome(trial, found[-1]))
        return found

    first = rates(tmp_path / "first")
    assert sum(first[-10:]) < sum(first[:10]) / 2
    assert rates(tmp_path / "second") == first
    assert all(0.0001 <= rate <= 0.1 for rate in first)


def test_a_choice_is_trained_once(tmp_path: Path) -> None:
    """Of two widths alone there are two trainings, however many trials are asked for."""
    words = [word for word in plain_words(tmp_path / "s") if not word.startswith("model.optim.lr")]
    with search_of([*words, "model.optim.lr=0.1"]) as study:
        trained = [study.tell(outcome(trial, 0.1)).trial.settings.model.adapter for trial in study.trials()]
        assert len(study.study.trials) == 20
    assert len(trained) == 2


def test_folders_and_overrides_name_the_choice(tmp_path: Path) -> None:
    """Rounded in the name, exact in the overrides; a number before it."""
    with search_of(plain_words(tmp_path / "s", "hydra.sweeper.n_trials=1")) as study:
        (trial,) = study.trials()
    rate = float(trial.settings.model.optim.lr)
    dim = trial.settings.model.adapter.kinds["linear"].dim  # type: ignore[union-attr]
    assert find_folder(trial.settings).path == tmp_path / f"s/0_lr={rate:.4g}_dim={dim}"
    again = load_settings(trial.overrides)
    assert again.model.optim.lr == rate
    assert again.exp_manager.resume_if_exists
    assert trial.options == (f"--pruned-by=0:{tmp_path / 's/study.log'}",)


def test_names_that_differ_share_the_folder_above(tmp_path: Path) -> None:
    """A name with a setting in it, as in NeMo's own search, gives a folder each; the search lies above them."""
    words = [word for word in plain_words(tmp_path) if not word.startswith("exp_manager")]
    own = [f"exp_manager.exp_dir={tmp_path}", "exp_manager.version=1", "exp_manager.name=a-${model.optim.lr}"]
    assert search_of([*words, *own]).folder == tmp_path
    assert search_of([*words, *own[:2], "exp_manager.name=b"]).folder == tmp_path / "b/1"


def test_the_objective_is_the_score_with_general_speech(tmp_path: Path) -> None:
    """The best is the one with the best score, not the one with the fewest errors on the domain."""
    words = plain_words(tmp_path / "s", "model.general_manifest=g.json", "hydra.sweeper.n_trials=2")
    with search_of(words) as study:
        for trial, wer, score in zip(study.trials(), (0.1, 0.2), (0.1, 0.4), strict=True):
            study.tell(outcome(trial, wer, score=score))
        assert study.study.best_trial.number == 1
    with pytest.raises(ConfigError, match=r"begun with model\.general_manifest"):
        search_of([*plain_words(tmp_path / "s"), "exp_manager.resume_if_exists=true"]).__enter__()


def test_validations_prune(tmp_path: Path) -> None:
    """Worse than the median of the others at that step; a validation that is repeated counts once."""
    with search_of(plain_words(tmp_path / "s", "hydra.sweeper.pruner.n_startup_trials=1")) as study:
        coming = study.trials()
        first, second = next(coming), next(coming)
        good, bad = (read_prune(trial.options[0].partition("=")[2]) for trial in (first, second))
        assert not good(Validation(10, 0.2, 0.5))
        study.tell(outcome(first, 0.2))
        assert not bad(Validation(10, 0.2, 0.5))
        assert bad(Validation(20, 0.9, 0.5)) is False  # the other one has no validation at this step
        assert not bad(Validation(10, 0.9, 0.5))  # it counts as before
        told = study.tell(outcome(second, 0.2))
        assert not told.pruned
        third = next(coming)
        assert read_prune(third.options[0].partition("=")[2])(Validation(10, 0.3, 0.5))
        assert study.tell(outcome(third, 0.3)).pruned
        assert [trial.state.name for trial in study.study.trials] == ["COMPLETE", "COMPLETE", "PRUNED"]
    with pytest.raises(ConfigError, match="NUMBER:FILE"):
        read_prune("x:y")


def test_a_search_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second training ends at its first validation, where one before was better; settings reach TensorBoard."""
    words = words_for(tmp_path, "hydra.sweeper.n_trials=2", "hydra.sweeper.pruner.n_startup_trials=1")
    with search_of(words) as study:
        better = study.study.ask(study.distributions)
        better.report(0.0, 1)
        study.study.tell(better, 0.0)
    assert cli.main(["train", "-m", *words]) == 2
    assert "is the study of another search" in capsys.readouterr().err
    assert cli.main(["train", "-m", *words, "exp_manager.resume_if_exists=true"]) == 0
    out, err = capsys.readouterr()
    assert "Ended early, at step 1 of 2: other trainings of the search were better by then." in out
    assert f"Study: {tmp_path / 'runs/study.log'}" in err
    (folder,) = (tmp_path / "runs").glob("1_*")
    assert out.splitlines()[-1].split()[0] == "pruned"
    assert json.loads((folder / "result.json").read_text())["steps"] == 1
    assert "hp/wer_after" in losses(folder)
    assert cli.main(["train", "-m", *words, "exp_manager.resume_if_exists=true"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "pruned"


def test_trainings_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Processes of their own report their validations to the study."""
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    words = words_for(tmp_path, "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2")
    assert cli.main(["train", "-m", *words]) == 0
    assert "2 trainings, 2 at once" in capsys.readouterr().err
    study = open_study(tmp_path / "runs/study.log")
    assert [sorted(trial.intermediate_values) for trial in study.trials] == [[1], [1]]
    results = {path.parent.name[0]: json.loads(path.read_text()) for path in (tmp_path / "runs").glob("*/result.json")}
    assert {str(trial.number): trial.value for trial in study.trials} == {
        number: result["wer_after"] for number, result in results.items()
    }


def test_a_search_that_was_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was complete stands in the table, what was running is taken up again, a torn line is dropped."""
    words = ["train", "-m", *plain_words(tmp_path / "s", "hydra.sweeper.n_trials=3")]
    ran: list[Path] = []

    def train(settings: Settings, **_: object) -> None:
        ran.append(Path(settings.exp_manager.explicit_log_dir or ""))
        if len(ran) == 2:
            raise KeyboardInterrupt
        outcome(Trial(chosen=(), settings=settings), 0.25)

    monkeypatch.setattr(trials_room, "run_training", train)
    monkeypatch.setattr(trials_room.TrialResult, "of", lambda _: read_result(ran[-1]))
    assert cli.main(words) == 130
    with (tmp_path / "s/study.log").open("a") as journal:
        journal.write('{"op_code": 5, "wor')
    assert cli.main([*words, "exp_manager.resume_if_exists=true"]) == 0
    assert [path.name[0] for path in ran] == ["0", "1", "1", "2"]
    assert ran[1] == ran[2]
    assert sum("25.00%" in line for line in capsys.readouterr().out.splitlines()[-4:]) == 3


def test_searches_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = plain_words(tmp_path / "s")
    with pytest.raises(ConfigError, match="validation_ds"):
        search_of([word for word in words if "validation_ds" not in word])
    with pytest.raises(ConfigError, match=r"linear\.dim=two.*'two'"):
        search_of([*words[:-1], "model.adapter.linear.dim=2,two"])
    with search_of(words), pytest.raises(ConfigError, match="in use by another training"):
        search_of([*words, "exp_manager.resume_if_exists=true"]).__enter__()
    (tmp_path / "t").mkdir()
    (tmp_path / "t/study.log").write_text("no study\n")
    with pytest.raises(ConfigError, match="is no study, or damaged"):
        search_of([*plain_words(tmp_path / "t"), "exp_manager.resume_if_exists=true"]).__enter__()
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install overtone\[search\]"):
        search_of(words)
