"""The configuration of an evaluation: what it would not do is refused."""

from __future__ import annotations

import pytest

from overtone.config import load_settings
from overtone.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model.test_ds.max_utts=3", "model.test_ds.max_utts"),
        ("model.test_ds.min_duration=0.5", "model.test_ds.min_duration"),
        ("model.test_ds.max_duration=5", "model.test_ds.max_duration"),
        ("model.test_ds.augmentor={speed: {prob: 0.5}}", "model.test_ds.augmentor"),
        ("trainer.limit_test_batches=1", "trainer.limit_test_batches"),
        ("trainer.limit_test_batches=0.5", "trainer.limit_test_batches"),
    ],
)
def test_an_evaluation_refuses_what_it_would_not_do(override: str, key: str) -> None:
    given = ["model.nemo_model=a.nemo", "model.test_ds.manifest_filepath=t.json", "model.adapter.adapter_name=x"]
    with pytest.raises(ConfigError, match=f"^{key}: an evaluation counts every line"):
        load_settings([*given, override], purpose="evaluate")
    load_settings([*given, "trainer.limit_test_batches=1.0", "model.test_ds.max_utts=0"], purpose="evaluate")


def test_an_evaluation_is_of_weights_that_are_there() -> None:
    given = ["model.init=x.yaml", "model.tokenizer=x.model", "model.train=everything", "model.adapter.adapter_name=x"]
    with pytest.raises(ConfigError, match=r"model\.init: is for training") as caught:
        load_settings([*given, "model.test_ds.manifest_filepath=t.json"], purpose="evaluate")
    assert "model.tokenizer: is for training" in str(caught.value)
