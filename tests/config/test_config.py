"""The configuration: NeMo's commands run, mistakes are told at once, a file decides nothing about the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from overtone.config import (
    DatasetSettings,
    LinearSettings,
    LoraSettings,
    Settings,
    TinyAttentionSettings,
    load_settings,
    manifest_paths,
    to_plain,
)
from overtone.config.targets import ABSOLUTE_ATTENTION_TARGETS
from overtone.errors import ConfigError

GIVEN = [
    "model.nemo_model=base.nemo",
    "model.adapter.adapter_name=medical",
    "model.train_ds.manifest_filepath=train.json",
]


def load(*overrides: str, **options: Any) -> Settings:
    return load_settings([*GIVEN, *overrides], **options)


def message_of(*overrides: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(*overrides, **options)
    return str(caught.value)


def differences(first: Any, second: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(first, dict) and isinstance(second, dict):
        return {
            key: pair
            for name in {**first, **second}
            for key, pair in differences(first.get(name), second.get(name), f"{path}.{name}".lstrip(".")).items()
        }
    return {} if first == second else {path: (first, second)}


# What runs


def test_the_shipped_file_holds_the_defaults() -> None:
    """But for what a YAML of NeMo's leaves as NeMo has it: no words, and NeMo's learning rate."""
    found = differences(to_plain(load()), to_plain(Settings()))
    assert set(found) == {
        "model.nemo_model",
        "model.adapter.adapter_name",
        "model.adapter.words",
        "model.optim.lr",
        "model.train_ds.manifest_filepath",
        "exp_manager.name",
        "exp_manager.wandb_logger_kwargs",
    }


def test_nemos_documented_training_command_runs() -> None:
    settings = load_settings(
        [
            "model.pretrained_model=null",
            "model.nemo_model=base.nemo",
            "model.adapter.adapter_name=an4",
            "model.adapter.adapter_type=linear",
            "model.adapter.adapter_module_name=encoder",
            "model.adapter.linear.in_features=176",
            "model.adapter.linear.dim=16",
            "model.adapter.linear.dropout=0.0",
            "model.train_ds.manifest_filepath=train.json",
            "model.train_ds.batch_size=16",
            "model.validation_ds.manifest_filepath=valid.json",
            "model.validation_ds.batch_size=16",
            "model.optim.lr=0.001",
            "model.optim.weight_decay=0.0",
            "model.optim.sched.warmup_steps=100",
            "trainer.max_steps=300",
            "trainer.devices=1",
            "trainer.precision=32",
            "exp_manager.exp_dir=runs",
        ],
        config_path="../conf/asr_adapters",
        config_name="asr_adaptation.yaml",
    )
    linear = settings.model.adapter.kinds["linear"]
    assert isinstance(linear, LinearSettings)
    assert (linear.in_features, linear.dim) == (176, 16)
    assert settings.model.optim.sched is not None
    assert settings.model.optim.sched.warmup_steps == 100
    assert settings.trainer.max_steps == 300
    assert settings.exp_manager.exp_dir == "runs"


def test_nemos_documented_evaluation_command_runs() -> None:
    settings = load_settings(
        [
            "model.pretrained_model=null",
            "model.nemo_model=adapted.nemo",
            "model.adapter.adapter_name=null",
            "model.test_ds.manifest_filepath=test.json",
            "model.test_ds.batch_size=16",
            "model.train_ds.manifest_filepath=null",
            "model.validation_ds.manifest_filepath=null",
            "model.adapter.in_features=null",
            "trainer.devices=1",
            "trainer.precision=32",
        ],
        config_name="asr_adaptation.yaml",
        purpose="evaluate",
    )
    assert settings.model.adapter.adapter_name is None
    assert manifest_paths(settings.model.test_ds) == ("test.json",)


def test_the_search_file_names_each_run_after_its_settings() -> None:
    settings = load("model.optim.lr=0.01", config_name="asr_adaptation_hp")
    assert settings.exp_manager.name == "ASR-Adapter-hp-lr-0.01-adim-32-sd-0.0"
    assert (settings.trainer.max_epochs, settings.trainer.max_steps) == (1, -1)
    assert settings.exp_manager.resume_if_exists


def test_keys_are_set_with_and_without_plus() -> None:
    settings = load(
        "+model.adapter.dim=8", "++model.optim.lr=0.5", "model.adapter.in_features=176", "+delete_ckpt_after_train=True"
    )
    assert (settings.model.adapter.dim, settings.model.adapter.in_features) == (8, 176)
    assert settings.model.optim.lr == 0.5
    assert settings.delete_ckpt_after_train
    assert load("~trainer.strategy").trainer.strategy == Settings().trainer.strategy


@pytest.mark.parametrize(
    ("written", "paths"),
    [
        ("a.json", ("a.json",)),
        ("a.json,b.json", ("a.json", "b.json")),
        ("[a.json,[b.json]]", ("a.json", "b.json")),
        ("'a.json, b.json'", ("a.json", "b.json")),
    ],
)
def test_manifests_are_one_or_many(written: str, paths: tuple[str, ...]) -> None:
    settings = load(f"model.train_ds.manifest_filepath={written}")
    assert manifest_paths(settings.model.train_ds) == paths
    assert manifest_paths(DatasetSettings()) == ()


def test_a_manifest_may_have_a_comma_in_its_name(tmp_path: Path) -> None:
    path = str(tmp_path / "a,b.json")
    assert manifest_paths(DatasetSettings(manifest_filepath=path)) == tuple(path.split(","))
    Path(path).write_text("")
    assert manifest_paths(DatasetSettings(manifest_filepath=path)) == (path,)
    assert manifest_paths(DatasetSettings(manifest_filepath=(path, "c.json,d.json"))) == (path, "c.json", "d.json")
    assert len(manifest_paths(DatasetSettings(manifest_filepath=",".join(["long.json"] * 1000)))) == 1000


def test_our_own_keys() -> None:
    settings = load(
        "model.adapter.adapter_type=lora",
        "model.adapter.lora.rank=4",
        "model.adapter.lora.targets=[q,v]",
        "model.adapter.layers=[0,3]",
        "model.base_dropout=false",
        "model.vocabulary_check=drop",
        "compute_dtype=float32",
        "seed=7",
    )
    lora = settings.model.adapter.kinds["lora"]
    assert isinstance(lora, LoraSettings)
    assert (lora.rank, lora.targets) == (4, ("q", "v"))
    assert settings.model.adapter.layers == (0, 3)
    assert load("model.adapter.layers=last:8").model.adapter.layers == "last:8"
    assert (settings.compute_dtype, settings.seed, settings.model.base_dropout) == ("float32", 7, False)


def test_numbers_may_be_written_loosely() -> None:
    settings = load(
        "trainer.max_steps='12'", "model.optim.lr=1e-4", "trainer.val_check_interval=50", "model.optim.eps=1"
    )
    assert (settings.trainer.max_steps, settings.model.optim.lr, settings.model.optim.eps) == (12, 1e-4, 1.0)
    assert type(settings.trainer.val_check_interval) is int
    assert type(load("trainer.val_check_interval=0.5").trainer.val_check_interval) is float
    assert load("exp_manager.version=3").exp_manager.version == "3"


def test_a_users_own_file(tmp_path: Path) -> None:
    """It may take over a shipped one, and name a section of its own for a kind."""
    (tmp_path / "mine.yaml").write_text(
        "defaults: [asr_adaptation, _self_]\n"
        "name: mine\n"
        "model:\n"
        "  adapter:\n"
        "    adapter_type: narrow\n"
        "    narrow: {_target_: nemo.collections.common.parts.adapter_modules.LinearAdapter, dim: 2}\n"
        "    absolute: {_target_: nemo.collections.asr.parts.submodules.adapters.MultiHeadAttentionAdapter}\n"
        "  optim: {lr: '${seed}'}\n"
        "seed: 3\n"
    )
    adapter = load(config_path=str(tmp_path), config_name="mine").model.adapter
    assert adapter.kinds["narrow"] == LinearSettings(dim=2)
    absolute = adapter.kinds["absolute"]
    assert isinstance(absolute, TinyAttentionSettings)
    assert absolute.target in ABSOLUTE_ATTENTION_TARGETS
    assert load(config_name=str(tmp_path / "mine.yaml")).model.optim.lr == 3.0
    assert load(config_path=str(tmp_path), config_name="mine").exp_manager.name == "mine"


def test_a_folder_beside_the_file_is_a_group_of_which_one_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "short.yaml").write_text("max_steps: 5\n")
    (tmp_path / "trainer" / "long.yaml").write_text("max_steps: 500\n")
    (tmp_path / "trainer" / "evil.yaml").write_text("# @package _global_\nhydra: {searchpath: ['pkg://os']}\n")
    (tmp_path / "mine.yaml").write_text("defaults: [asr_adaptation, {trainer: short}, _self_]\n")
    mine: dict[str, Any] = {"config_path": str(tmp_path), "config_name": "mine"}
    assert load(**mine).trainer.max_steps == 5
    assert load("trainer=long", **mine).trainer.max_steps == 500
    assert load("trainer=long", "trainer.max_steps=7", **mine).trainer.max_steps == 7
    for override in ("trainer=evil", "trainer=[long,evil]", "+trainer@x=evil"):
        assert "'hydra.searchpath' may not be set" in message_of(override, **mine)
    assert "Could not find 'trainer/lon'" in message_of("trainer=lon", **mine)
    assert "--multirun" in message_of("trainer=short,long", **mine)


def test_a_file_may_merge_mappings_and_say_otherwise(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [asr_adaptation]\n"
        "model:\n"
        "  train_ds: &ds {batch_size: 4, shuffle: true}\n"
        "  validation_ds: {<<: *ds, shuffle: false}\n"
    )
    chosen = load(config_name=str(tmp_path / "mine.yaml")).model
    assert (chosen.train_ds.batch_size, chosen.train_ds.shuffle) == (4, True)
    assert (chosen.validation_ds.batch_size, chosen.validation_ds.shuffle) == (4, False)


def test_what_looks_like_a_date_is_text(tmp_path: Path) -> None:
    for version in ("2024-12-31", "2024-31-12"):
        (tmp_path / "mine.yaml").write_text(
            f"defaults: [asr_adaptation, _self_]\nexp_manager: {{version: {version}}}\n"
        )
        assert load(config_path=str(tmp_path), config_name="mine").exp_manager.version == version


# What is refused


def test_all_mistakes_are_told_at_once() -> None:
    message = message_of(
        "model.optm.lr=3",
        "trainer.max_stepss=3",
        "model.optim.lr=fast",
        "model.adapter.linear.dim=0",
        "model.train_ds.is_tarred=true",
        "model.vocabulary_check=maybe",
        "model.optim.name=adamwx",
        "model.adapter.linear.dropout=2",
    )
    assert message.startswith("8 mistakes in the configuration:")
    for line in (
        "model.optm: unknown key. Did you mean 'optim'?",
        "trainer.max_stepss: unknown key. Did you mean 'max_steps'?",
        "model.optim.lr: 'fast' is not a number or 'auto'.",
        "model.adapter.linear.dim: 0 is too small; it is at least 1.",
        "model.train_ds.is_tarred: needs tarred_audio_filepaths, the archives of the recordings.",
        "model.vocabulary_check: 'maybe' is not 'refuse' or 'drop' or 'keep'.",
        "model.optim.name: unknown 'adamwx'. Did you mean 'adamw'?",
        "model.adapter.linear.dropout: 2.0 is too large; it is at most 1.",
    ):
        assert f"  {line}" in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.nemo_model=null"], "model.nemo_model: has to be given"),
        (["model.pretrained_model=other"], "model.nemo_model: is given beside model.pretrained_model"),
        (["model.adapter.adapter_name=null"], "model.adapter.adapter_name: has to be given"),
        (["model.train_ds.manifest_filepath=null"], "model.train_ds.manifest_filepath: has to be given"),
        (["model.adapter.adapter_type=prompt"], "there is no section 'model.adapter.prompt'"),
        (["model.adapter.mine={_target_:os.system}"], "looked up in a list and never imported"),
        (["model.adapter.linear._target_=os.system"], "unknown 'os.system'"),
        (["trainer.strategy._target_=os.system"], "trainer.strategy._target_: unknown 'os.system'"),
        (["trainer.strategy=fsdp"], "trainer.strategy: unknown 'fsdp'"),
        (["trainer.max_steps=-1"], "trainer.max_steps: has to be at least 1"),
        (["model.train_ds.bucketing_batch_size=8"], "give batch_duration and num_buckets"),
        (["model.train_ds.min_duration=3", "model.train_ds.max_duration=1"], "is longer than max_duration"),
        (["model.init=a.yaml", "model.nemo_model=null"], "model.tokenizer: has to be given with model.init"),
        (["model.tokenizer=a.model"], "needs model.train=everything"),
        (["exp_manager.create_early_stopping_callback=true"], "needs model.validation_ds.manifest_filepath"),
        (
            [
                "exp_manager.create_early_stopping_callback=true",
                "model.validation_ds.manifest_filepath=valid.json",
                "trainer.limit_val_batches=0",
            ],
            "needs more than trainer.limit_val_batches=0",
        ),
        (["trainer.max_time=01:00:00"], "trainer.max_time: '01:00:00' is no duration; four hours are 00:04:00:00"),
        (["exp_manager.max_time_per_run=4h"], "exp_manager.max_time_per_run: '4h' is no duration"),
        (["trainer.profiler=foo"], "trainer.profiler: 'foo'"),
        (["trainer.limit_val_batches=1.5"], "trainer.limit_val_batches: 1.5 is no share"),
        (["exp_manager.checkpoint_callback_params.monitor=val_wr"], "Did you mean 'val_wer'?"),
        (["exp_manager.create_mlflow_logger=true"], "use TensorBoard or W&B"),
        (["model.optim.lr=0.1,0.2"], "give --multirun too"),
        (["a=b=c"], "'a=b=c' is no override"),
        (["model.optim.lr=${nothing}"], "nothing"),
    ],
)
def test_one_clear_message(overrides: list[str], message: str) -> None:
    assert message in message_of(*overrides)


def test_what_stands_as_question_marks_has_to_be_given(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nseed: ???\n")
    assert message_of(config_path=str(tmp_path), config_name="mine") == "seed: has to be given."
    with pytest.raises(ConfigError, match="adapter_name: has to be given; null is the base"):
        load_settings(["model.nemo_model=a.nemo", "model.test_ds.manifest_filepath=t.json"], purpose="evaluate")


def test_a_missing_file_names_the_shipped_ones(tmp_path: Path) -> None:
    message = message_of(config_path=str(tmp_path), config_name="absent")
    assert "absent.yaml" in message
    assert "asr_adaptation.yaml, asr_adaptation_hp.yaml" in message


def test_a_file_that_hydra_would_not_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "mine.yml").write_text("defaults: [asr_adaptation]\n")
    assert "mine.yml: the name of a configuration ends in .yaml" in message_of(
        config_path=str(tmp_path), config_name="mine.yml"
    )


@pytest.mark.parametrize(
    "text",
    [
        "[1, 2]",
        "a: [",
        "\x00",
        "a: !!python/object/apply:os.system [ls]",
        "a: !!bool maybe",
        "a: !!int ''",
        "a: !!timestamp soon",
        "[" * 100_000,
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert "mine.yaml" in message_of(config_path=str(tmp_path), config_name="mine")


@pytest.mark.parametrize(
    "value", ["${oc.env:HOME}", "${oc.env:NOTHING,x}", "a${oc.env:HOME}b", "${${name}:HOME}", "${oc.decode:1}"]
)
def test_references_reach_no_further_than_the_configuration(tmp_path: Path, value: str) -> None:
    (tmp_path / "mine.yaml").write_text(
        f"defaults: [asr_adaptation, _self_]\nname: x\nmodel: {{log_prediction: '{value}'}}\n"
    )
    message = message_of(config_path=str(tmp_path), config_name="mine")
    assert "never the environment" in message
    assert str(Path.home()) not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hydra: {searchpath: ['pkg://os']}", "'hydra.searchpath' may not be set"),
        ("hydra: {job_logging: {handlers: {x: {class: os.system}}}}", "'hydra.job_logging"),
        ("hydra: {callbacks: {x: {_target_: os.system}}}", "'hydra.callbacks"),
        ("hydra: {launcher: {_target_: os.system}}", "'hydra.launcher._target_' may not be set"),
        ("defaults: [asr_adaptation, {override hydra/launcher: joblib}]", "hydra/launcher 'joblib' is not available"),
        ("defaults: [{override hydra/job_logging: custom}]", "'hydra/job_logging' may not be set"),
        ("defaults: ['${oc.env:HOME}']", "is computed"),
        ("defaults: [other]", "'hydra.searchpath' may not be set"),
        ("defaults: [/other]", "'hydra.searchpath' may not be set"),
        ("defaults: [{group: [plain, other]}]", "'hydra.searchpath' may not be set"),
        ("defaults: [{/group: other}]", "'hydra.searchpath' may not be set"),
        ("defaults: 3", "'defaults' is no list"),
    ],
)
def test_a_file_decides_nothing_about_the_program(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "group").mkdir()
    for name in ("other.yaml", "group/other.yaml"):
        (tmp_path / name).write_text("hydra: {searchpath: ['pkg://os']}")
    (tmp_path / "mine.yaml").write_text(text)
    assert message in message_of(config_path=str(tmp_path), config_name="mine")


@pytest.mark.parametrize("override", ["hydra.searchpath=[pkg://os]", "hydra/launcher=joblib", "+hydra.callbacks.x=1"])
def test_the_command_line_sets_no_more_of_hydra(override: str) -> None:
    assert "hydra" in message_of(override)
    assert load("hydra.run.dir=.", "hydra/launcher=nemo_launcher").name == "ASR-Adapter"
