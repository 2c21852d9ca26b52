"""Several trainings, one for each combination of settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from overtone import cli
from overtone.config import ExperimentSettings, Settings, combinations, load_settings
from overtone.errors import ConfigError, UsageError
from overtone.search.trials import Trial, folder_names, run_trials, separate
from overtone.training.run_folder import plan_folder
from support.train_samples import search_words

GIVEN = ["model.nemo_model=a.nemo", "model.adapter.adapter_name=a", "model.train_ds.manifest_filepath=a.json"]


def test_the_last_key_changes_fastest() -> None:
    words = [
        "model.optim.lr=0.1,0.01",
        "seed=3",
        "+model.adapter.linear.dim=choice(8,16)",
        "trainer.max_steps=range(1,3)",
    ]
    found = combinations(words)
    assert [chosen for chosen, _ in found][:3] == [
        ("model.optim.lr=0.1", "+model.adapter.linear.dim=8", "trainer.max_steps=1"),
        ("model.optim.lr=0.1", "+model.adapter.linear.dim=8", "trainer.max_steps=2"),
        ("model.optim.lr=0.1", "+model.adapter.linear.dim=16", "trainer.max_steps=1"),
    ]
    assert len(found) == 8
    assert found[-1].overrides == [
        "model.optim.lr=0.01", "seed=3", "+model.adapter.linear.dim=16", "trainer.max_steps=2",
    ]  # fmt: skip
    settings = load_settings([*GIVEN, *found[-1].overrides])
    assert (settings.model.optim.lr, settings.seed, settings.trainer.max_steps) == (0.01, 3, 2)


def test_values_may_hold_commas() -> None:
    found = combinations(["model.train_ds.manifest_filepath=[a.json,b.json],c.json", "name='a,b'"])
    assert [chosen for chosen, _ in found] == [
        ("model.train_ds.manifest_filepath=[a.json,b.json]",),
        ("model.train_ds.manifest_filepath=c.json",),
    ]


def test_a_file_may_name_the_search(tmp_path: Path) -> None:
    """As NeMo's own search does; the command line has the last word."""
    (tmp_path / "own.yaml").write_text(
        "defaults: [asr_adaptation, _self_]\n"
        "hydra:\n  sweeper:\n    params:\n      model.optim.lr: 0.1,0.01\n      seed: 1,2\n"
    )
    where = {"config_path": str(tmp_path), "config_name": "own"}
    assert [chosen for chosen, _ in combinations(["seed=7"], **where)] == [
        ("model.optim.lr=0.1",),
        ("model.optim.lr=0.01",),
    ]
    assert load_settings([*GIVEN, *combinations(["seed=7"], **where)[1].overrides], **where).seed == 7


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.optim.lr=interval(0,1)", "cannot be counted up"),
        ("seed=range(0,100000)", "more than 1000 runs"),
        ("model.optim.lr=1,,2", "is no override"),
    ],
)
def test_searches_that_are_refused(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        combinations([word])


def trials(count: int = 2, **experiment: object) -> list[Trial]:
    settings = Settings(exp_manager=ExperimentSettings(**experiment))  # type: ignore[arg-type]
    return [Trial(chosen=(f"seed={seed}",), settings=settings) for seed in range(count)]


def folders(found: list[Trial]) -> list[str]:
    return [str(plan_folder(trial.settings.exp_manager, default_name=trial.settings.name).path) for trial in found]


def test_every_training_has_a_folder_of_its_own() -> None:
    assert folders(separate(trials(exp_dir="runs", name="x", version="1"))) == ["runs/x/1/seed=0", "runs/x/1/seed=1"]
    assert folders(separate(trials(explicit_log_dir="here"))) == ["here/seed=0", "here/seed=1"]
    assert folders(separate(trials(exp_dir="runs", resume_if_exists=True))) == [
        "runs/ASR-Adapter/seed=0",
        "runs/ASR-Adapter/seed=1",
    ]
    first, second = folders(separate(trials(exp_dir="runs")))
    assert Path(first).parent == Path(second).parent
    own = [trials(1, exp_dir="runs", name=name, version="1")[0] for name in "ab"]
    assert folders(separate(own)) == ["runs/a/1", "runs/b/1"]
    assert folders(separate(trials(1, explicit_log_dir="here"))) == ["here"]


def test_folders_are_named_by_their_settings() -> None:
    """By the last word of a key unless two keys have it, with plain signs, and never twice the same."""
    assert folder_names([["model.optim.lr=0.1", "+model.adapter.linear.dim=8"], ["model.optim.lr=0.2"]]) == [
        "lr=0.1_dim=8",
        "lr=0.2",
    ]
    assert folder_names([["a.lr=1", "b.lr=2"], ["a.lr=2", "b.lr=2"]]) == ["a.lr=1_b.lr=2", "a.lr=2_b.lr=2"]
    assert folder_names([["a.path=/x/../y [z]"], ["a.path=w"]]) == ["path=-x-..-y-z", "path=w"]
    assert folder_names([["seed=1"], ["seed=1"], []]) == ["0_seed=1", "1_seed=1", "2"]
    long = folder_names([["a.words=" + "x" * 500], ["a.words=" + "x" * 501]])
    assert len(set(long)) == 2
    assert max(map(len, long)) <= 120


def test_checkpoints_in_one_place_are_refused() -> None:
    shared = ExperimentSettings().checkpoint_callback_params.__class__(dirpath="one")
    with pytest.raises(UsageError, match="dirpath"):
        separate(trials(exp_dir="runs", checkpoint_callback_params=shared))


def test_a_search_ends_with_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second of three fails, the third is trained all the same, and the exit code tells."""
    words = search_words(tmp_path)
    assert cli.main(["train", "-m", *words]) == 1
    out, err = capsys.readouterr()
    assert "Adapter 'taken' exists already." in err
    assert err.endswith("1 of 3 trainings failed.\n")
    *lines, following = out.splitlines()[-5:]
    assert lines[0].split() == ["WER", "step", "settings", "folder"]
    assert lines[2].split() == ["1", "–", "–", "model.adapter.adapter_name=taken", "failed"]
    assert lines[3].split()[-2:] == ["model.adapter.adapter_name=three", str(tmp_path / "runs/adapter_name=three")]
    assert {line.split()[0] for line in lines[1:]} in ({"best", "1", "2"}, {"0", "1", "best"})
    assert following.startswith("Next: overtone evaluate ")
    assert (tmp_path / "runs/adapter_name=one/checkpoints/one-best/adapter.yaml").is_file()
    assert (tmp_path / "runs/adapter_name=three/checkpoints/three-best/adapter.yaml").is_file()


def test_all_settings_are_checked_before_the_first_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-m", *GIVEN, "model.optim.lr=0.1,fast"]) == 2
    assert "With model.optim.lr=fast: model.optim.lr: 'fast' is not a number or 'auto'." in capsys.readouterr().err


def test_an_unexpected_failure_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(settings: Settings, **_: object) -> None:
        raise MemoryError("no more of it")

    monkeypatch.setattr("overtone.search.trials.run_training", fail)
    assert [outcome.error for outcome in run_trials(trials())] == ["MemoryError: no more of it"] * 2
