"""What a search with a sampler reads from a command line and a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from overtone.config import load_settings
from overtone.config.sweeper import Choices, Numbers, corners, read_search
from overtone.errors import ConfigError

OPTUNA = "hydra/sweeper=optuna"


def test_the_words_of_hydra() -> None:
    """Lists, ranges and intervals; a range ends before its last number, as in a search that counts up."""
    words = ["a=choice(8,16)", "b=x,'y z'", "c=range(1,9,2)", "d=interval(0,1)", "e=int(interval(1,9))"]
    found = read_search([OPTUNA, *words, "f=tag(log,interval(0.001,0.1))", "g=tag(log,range(1,8))", "seed=3"])
    assert found is not None
    assert found.space == (
        Choices("a", ("8", "16")),
        Choices("b", ("x", "'y z'")),
        Numbers("c", 1, 7, 2, True, False),
        Numbers("d", 0, 1, None, False, False),
        Numbers("e", 1, 9, None, True, False),
        Numbers("f", 0.001, 0.1, None, False, True),
        Numbers("g", 1, 7, None, True, True),
    )
    assert found.overrides == ("seed=3",)
    assert corners(found.space[:1] + found.space[3:4]) == [
        {"a": "8", "d": "0.0"},
        {"a": "16", "d": "0.0"},
        {"a": "8", "d": "1.0"},
    ]


def test_a_file_and_the_command_line(tmp_path: Path) -> None:
    """The command line has the last word; other commands read the same file."""
    (tmp_path / "own.yaml").write_text(
        "defaults:\n  - asr_adaptation\n  - _self_\n  - override hydra/sweeper: optuna\n"
        "hydra:\n  sweeper:\n    n_trials: 3\n    sampler: {seed: 7}\n    pruner: none\n"
        "    params: {model.optim.lr: 'interval(0.1,1)', seed: '1,2', trainer.max_steps: 5}\n"
    )
    where = {"config_path": str(tmp_path), "config_name": "own"}
    found = read_search(["hydra.sweeper.n_trials=4", "hydra/sweeper/sampler=random", "seed=9"], **where)
    assert found is not None
    assert (found.sweeper.n_trials, found.sweeper.pruner.name) == (4, "none")
    assert (found.sweeper.sampler.name, found.sweeper.sampler.seed) == ("random", 7)
    assert found.space == (Numbers("model.optim.lr", 0.1, 1, None, False, False),)
    assert found.overrides == ("trainer.max_steps=5", "seed=9")
    given = ["model.nemo_model=a.nemo", "model.adapter.adapter_name=a", "model.train_ds.manifest_filepath=a.json"]
    assert load_settings(given, **where).name == "ASR-Adapter"
    assert read_search(["hydra/sweeper=basic", "seed=1,2"]) is None
    assert read_search(["seed=1,2"]) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([OPTUNA, "seed=1"], "nothing is searched over"),
        ([OPTUNA, "seed=1,1"], "values that differ"),
        ([OPTUNA, "a=interval(2,1)"], "ends before it begins"),
        ([OPTUNA, "a=tag(log,interval(0,1))"], "begins above 0"),
        ([OPTUNA, "a=tag(log,range(1,9,2))"], "steps of 1"),
        ([OPTUNA, "a=1,2", "hydra.sweeper.n_trials=0"], "n_trials"),
        ([OPTUNA, "a=1,2", "hydra.sweeper.sampler=cmaes"], "sampler.name"),
        ([OPTUNA, "a=1,2", "hydra.sweeper.sampler.sed=1"], "seed"),
        ([OPTUNA, "a=1,2", "hydra.sweeper.storage=sqlite:///a.db"], "leave it out"),
        (["a=1,2", "hydra.sweeper.n_trials=3"], "give hydra/sweeper=optuna too"),
    ],
)
def test_searches_that_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_search(words)
