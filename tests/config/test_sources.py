"""Sources of a data set in each of NeMo's spellings, their shares, and the mistakes in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from overtone.config import DatasetSettings, SourceList, list_sources
from overtone.config.dataset_checks import check_dataset
from overtone.config.fields import Findings, build
from overtone.config.paths import expand_paths
from overtone.errors import ConfigError, DataError


def sources(**keys: Any) -> SourceList:
    return list_sources(settings(**keys), key="set")


def settings(**keys: Any) -> DatasetSettings:
    findings = Findings()
    found = build(DatasetSettings, keys, findings, path="set")
    findings.raise_if_any()
    return found


def mistakes(**keys: Any) -> list[str]:
    findings = Findings()
    dataset = build(DatasetSettings, {"manifest_filepath": ["a", "b"], **keys}, findings, path="set")
    check_dataset(dataset, list_sources(dataset, findings, key="set"), findings, key="set", trains=True)
    return findings.mistakes


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("a_OP_0..2_CL_.tar", ["a0.tar", "a1.tar", "a2.tar"]),
        ("a{08..10}.tar", ["a08.tar", "a09.tar", "a10.tar"]),
        ("a{2..0}.tar", ["a2.tar", "a1.tar", "a0.tar"]),
        ("{a,b}/(0..1).tar", ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar"]),
        ("a[0..1].tar, b.tar", ["a0.tar", "a1.tar", "b.tar"]),
        ("data (copy)/a<x>.tar", ["data (copy)/a<x>.tar"]),
    ],
)
def test_patterns(text: str, paths: list[str]) -> None:
    assert expand_paths(text) == paths


def test_patterns_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a{0..9}").touch()
    assert expand_paths(str(tmp_path / "a{0..9}")) == [str(tmp_path / "a{0..9}")]
    for text in ("a{0..99999999}", "{0..9999}{0..9999}"):
        with pytest.raises(DataError, match="more than 1000000 paths"):
            expand_paths(text)


def test_manifests() -> None:
    assert [each.manifest for each in sources(manifest_filepath="a, b{1,2}").sources] == ["a", "b{1,2}"]
    for spelling in (["a", "b"], [["a"], ["b"]], [["a", "b"]], "a,b"):
        listed = sources(manifest_filepath=spelling)
        assert [(each.manifest, each.part) for each in listed.sources] == [("a", 0), ("b", 0)]
        assert listed.weights is None
    listed = sources(manifest_filepath=[["a", 3], ["b", 1]])
    assert (listed.weights, [each.part for each in listed.sources]) == ((0.75, 0.25), [0, 1])
    assert sources().sources == ()


def test_tarred_sets() -> None:
    tarred = {"is_tarred": True, "manifest_filepath": [["a"], ["b"]]}
    listed = sources(**tarred, tarred_audio_filepaths=[["a_OP_0..1_CL_"], ["b0", "b1"]])
    assert [(each.manifest, each.archives) for each in listed.sources] == [("a", "a_OP_0..1_CL_"), ("b", "b0,b1")]
    with pytest.raises(ConfigError, match=r"set\.tarred_audio_filepaths: 1 for 2 manifests"):
        sources(**tarred, tarred_audio_filepaths="a")
    with pytest.raises(ConfigError, match=r"set\.is_tarred: needs tarred_audio_filepaths"):
        sources(**tarred)
    with pytest.raises(ConfigError, match=r"set\.tarred_audio_filepaths: needs manifest_filepath"):
        sources(tarred_audio_filepaths="a")


def test_groups(tmp_path: Path) -> None:
    """Weights count within their group; what a group says holds for its entries unless they say otherwise."""
    (tmp_path / "inner.yaml").write_text("- {manifest_filepath: b}\n- {manifest_filepath: [c, d], text_field: said}\n")
    listed = sources(
        text_field="spoken",
        input_cfg=[
            {"type": "nemo", "manifest_filepath": "a", "weight": 3, "tags": {"lang": "de", "corpus": "x"}},
            {"type": "group", "weight": 1, "tags": {"language": "en"}, "input_cfg": str(tmp_path / "inner.yaml")},
        ],
    )
    assert listed.weights == (0.75, 0.125, 0.125)
    found = [(each.manifest, each.part, each.tags["lang"], each.text_field) for each in listed.sources]
    assert found == [
        ("a", 0, "de", "spoken"),
        ("b", 1, "en", "spoken"),
        ("c", 2, "en", "said"),
        ("d", 2, "en", "said"),
    ]


def test_temperatures() -> None:
    """1 leaves weights as they are, 0 makes them equal; one for all levels or one for each."""
    entries = [{"manifest_filepath": name, "weight": weight} for name, weight in (("a", 1), ("b", 9))]
    groups = [{"type": "group", "weight": 4, "input_cfg": entries}, {"manifest_filepath": "c", "weight": 1}]
    assert sources(input_cfg=entries, reweight_temperature=0.5).weights == (0.25, 0.75)
    assert sources(input_cfg=groups, reweight_temperature=0).weights == (0.25, 0.25, 0.5)
    assert sources(input_cfg=groups, reweight_temperature=[0, 1]).weights == pytest.approx((0.05, 0.45, 0.5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("absent.yaml", "set.input_cfg: absent.yaml cannot be read as YAML (No such file or directory)."),
        ([], "set.input_cfg: has to be a list of sets"),
        (["a"], "set.input_cfg[0]: is 'a'; a section with a type and its files is needed."),
        ([{"type": "lhotse_shr"}], "set.input_cfg[0].type: unknown 'lhotse_shr'. Did you mean 'lhotse_shar'?"),
        (
            [{"type": "nemo_tarred", "manifest_filepath": "a"}],
            "set.input_cfg[0].tarred_audio_filepaths: has to be given",
        ),
        ([{"type": "txt", "paths": "a"}], "set.input_cfg[0].type: unknown 'txt'."),
        ([{"manifest_filepath": "a", "wieght": 1}], "set.input_cfg[0].wieght: unknown key. Did you mean 'weight'?"),
        ([{"manifest_filepath": "a", "weight": 0}], "set.input_cfg[0].weight: 0.0 is too small"),
        ([{"manifest_filepath": "a", "weight": 1}, {"manifest_filepath": "b"}], "some entries have a weight"),
        ([{"manifest_filepath": 3}], "set.input_cfg[0]"),
        ([{"type": "lhotse_shar", "shar_path": 3}], "set.input_cfg[0].shar_path: has to be a folder"),
    ],
)
def test_mistakes_in_groups(given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        sources(input_cfg=given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"cuts_path": "c"}, "set.manifest_filepath: is given beside cuts_path"),
        ({"input_cfg": [{"manifest_filepath": "c"}]}, "set.manifest_filepath: is given beside input_cfg"),
        ({"manifest_filepath": [["a", 1], "b"]}, "some manifests have a weight"),
        ({"manifest_filepath": [["a", 1], ["b", 2]], "shuffle": False}, "set.shuffle: has to be true with weights"),
        ({"manifest_filepath": [["a", 1], ["b", 2]], "is_concat": True}, "is_concat and weights are given together"),
        ({"is_concat": True, "concat_sampling_technique": "random"}, "a share above 0 for each of the 2 manifests"),
        ({"concat_sampling_probabilities": [0.5, 0.5]}, "needs is_concat=true"),
        ({"bucketing_batch_size": 8}, "set.bucketing_batch_size: is for tarred sets; give batch_duration"),
        ({"tarred_audio_filepaths": ["a", "b"], "bucketing_batch_size": [8]}, "has 1 numbers for 2 tarred sets"),
        ({"tarred_audio_filepaths": ["a", "b"], "bucketing_weights": [1, 0]}, "whole numbers from 1 are needed"),
        ({"bucket_duration_bins": [1, 2]}, "set.bucket_duration_bins: needs use_bucketing=true, or batch_duration."),
        ({"use_bucketing": True, "bucket_duration_bins": [2, 1]}, "rising numbers of seconds"),
        ({"use_bucketing": True, "bucket_batch_size": [4]}, "needs bucket_duration_bins"),
        ({"quadratic_duration": 15}, "set.quadratic_duration: needs batch_duration."),
        ({"perturb_speed": True}, "set.perturb_speed: True is not supported; use augmentor.speed."),
        ({"noise_path": "n.json"}, "set.noise_path: 'n.json' is not supported; use augmentor.noise."),
        ({"multi_config": True}, "set.multi_config: True is not supported"),
        ({"prompt_format": "canary"}, "set.prompt_format: 'canary' is not supported"),
        ({"max_cer": 0.3}, "set.max_cer: 0.3 is not supported"),
        (
            {"tarred_audio_filepath": "a"},
            "set.tarred_audio_filepath: unknown key. Did you mean 'tarred_audio_filepaths'?",
        ),
    ],
)
def test_contradictions_and_refusals(keys: dict[str, Any], message: str) -> None:
    assert any(message in mistake for mistake in mistakes(**keys)), mistakes(**keys)


def test_the_defaults_of_nemos_loader_are_accepted() -> None:
    """A configuration that spells out every default of NeMo's LhotseDataLoadingConfig asks for nothing."""
    spelt_out = {
        "skip_missing_manifest_entries": False,
        "tarred_random_access": False,
        "use_bucketing": False,
        "num_buckets": 30,
        "num_cuts_for_bins_estimate": 10000,
        "bucket_buffer_size": 10000,
        "shard_seed": "trng",
        "concurrent_bucketing": True,
        "bucketing_2d_strict_mode": True,
        "shuffle_buffer_size": 10000,
        "max_open_streams": None,
        "cuda_expandable_segments": True,
        "reweight_temperature": None,
        "multi_config": False,
        "sampler_fusion": "round_robin",
        "sampler_weights": None,
        "pretokenize": True,
        "prompt_format": None,
        "use_multimodal_sampling": False,
        "min_duration": -1,
        "max_duration": None,
        "min_tps": -1,
        "max_tps": float("inf"),
        "min_tpt": -1,
        "max_tpt": float("inf"),
        "max_cer": float("inf"),
        "min_context_speaker_similarity": -1,
        "keep": "pass",
        "seed": 0,
        "noise_path": None,
        "noise_mix_prob": 0.5,
        "perturb_speed": False,
        "concatenate_samples": False,
        "db_norm": -25.0,
        "truncate_duration": None,
        "cut_into_windows_duration": None,
        "rir_enabled": False,
        "rir_prob": 0.5,
        "pad_min_duration": None,
        "lowpass_enabled": False,
        "compression_enabled": False,
        "clipping_enabled": False,
        "force_finite": False,
        "metadata_only": False,
        "force_map_dataset": False,
        "force_iterable_dataset": False,
        "slice_length": None,
    }
    assert mistakes(**spelt_out) == []
