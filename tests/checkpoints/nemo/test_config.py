"""NeMo's configuration: what it becomes here, what it may not hold, and the way back."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from overtone.audio.features import LogMel
from overtone.checkpoints.nemo.config import describe, translate, translate_spec_augment
from overtone.checkpoints.nemo.yaml import read_yaml, refuse_resolvers, resolved, write_yaml
from overtone.errors import CheckpointError
from overtone.models.fingerprint import canonical_text
from overtone.tokenizers import CharTokenizer
from support.fixtures import fixture_file

MODULES = "nemo.collections.asr.modules"
LETTERS = list(" abc'")


def char_config() -> dict[str, Any]:
    """As little as a character model needs; everything else is NeMo's default."""
    return {
        "target": "nemo.collections.asr.models.ctc_models.EncDecCTCModel",
        "preprocessor": {"_target_": f"{MODULES}.AudioToMelSpectrogramPreprocessor", "features": 80},
        "encoder": {"_target_": f"{MODULES}.ConformerEncoder", "feat_in": 80, "n_layers": 2, "d_model": 32},
        "decoder": {
            "_target_": f"{MODULES}.ConvASRDecoder",
            "feat_in": 32,
            "num_classes": -1,
            "vocabulary": LETTERS,
        },
    }


def changed(path: str, value: Any) -> dict[str, Any]:
    config = char_config()
    place = config
    *parents, last = path.split(".")
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return config


def test_absent_keys_have_nemos_defaults() -> None:
    description = translate(char_config())
    assert description.settings["encoder"] == {
        "features": 80, "width": 32, "layers": 2, "heads": 4, "feed_forward_expansion": 4, "kernel_size": 31,
        "subsampling": "striding", "subsampling_factor": 4, "subsampling_channels": None,
        "causal_downsampling": False, "position": "rel_pos", "scale_input": True, "untie_biases": True,
        "use_bias": True, "conv_norm": "batch_norm", "conv_context": None, "attention_context": [-1, -1],
        "attention_context_style": "regular", "output_width": None, "dropout": 0.1, "dropout_pre_encoder": 0.1,
        "dropout_emb": 0.1, "dropout_att": 0.0, "position_max_len": 5000,
    }  # fmt: skip
    assert description.settings["preprocessor"] == {
        "sample_rate": 16000, "window_size": 0.02, "window_stride": 0.01, "window": "hann",
        "normalize": "per_feature", "n_fft": None, "preemphasis": 0.97, "features": 80, "low_frequency": 0.0,
        "high_frequency": None, "log": True, "log_zero_guard_type": "add", "log_zero_guard_value": 2**-24,
        "dither": 1e-5, "pad_to": 16, "pad_value": 0.0, "magnitude_power": 2.0, "mel_norm": "slaney",
    }  # fmt: skip
    assert description.settings["decoder"] == {"width": 32, "classes": 5}
    assert description.tokenizer.labels == tuple(LETTERS)
    assert description.adapters == ()


@pytest.mark.parametrize(
    ("path", "value", "ours", "expected"),
    [
        ("encoder.subsampling_conv_channels", 16, "subsampling_channels", 16),
        ("encoder.feat_out", -1, "output_width", None),
        ("encoder.conv_context_size", "causal", "conv_context", [30, 0]),
        ("encoder.conv_context_size", [20, 10], "conv_context", [20, 10]),
        ("encoder.att_context_size", [[70, 13], [70, 6]], "attention_context", [70, 13]),
        ("encoder.att_context_size", None, "attention_context", [-1, -1]),
        ("encoder.conv_norm_type", "group_norm8", "conv_norm", "group_norm8"),
        ("encoder.self_attention_model", "abs_pos", "position", "abs_pos"),
        ("encoder.xscaling", False, "scale_input", False),
        ("encoder.untie_biases", False, "untie_biases", False),
        ("encoder.use_bias", False, "use_bias", False),
        ("encoder.subsampling", "stacking_norm", "subsampling", "stacking_norm"),
        ("encoder.dropout", 0, "dropout", 0.0),
        ("preprocessor.n_fft", 512, "n_fft", 512),
        ("preprocessor.preemph", None, "preemphasis", None),
        ("preprocessor.lowfreq", 20, "low_frequency", 20.0),
        ("preprocessor.highfreq", 7600, "high_frequency", 7600.0),
        ("preprocessor.normalize", "NA", "normalize", "NA"),
        ("preprocessor.log_zero_guard_value", "tiny", "log_zero_guard_value", "tiny"),
    ],
)
def test_values_are_renamed(path: str, value: Any, ours: str, expected: Any) -> None:
    settings = translate(changed(path, value)).settings[path.partition(".")[0]]
    assert settings[ours] == expected
    assert type(settings[ours]) is type(expected)


def test_training_keys_are_accepted() -> None:
    config = char_config()
    config["encoder"] |= {
        "stochastic_depth_drop_prob": 0.3, "stochastic_depth_mode": "linear", "stochastic_depth_start_layer": 1,
        "reduction": None, "reduction_position": None, "reduction_factor": 1, "att_context_probs": None,
        "use_pytorch_sdpa": True, "subsampling_conv_chunking_factor": 1, "a_key_of_tomorrow": None,
        "att_chunk_context_size": None, "conv_context_style": "regular", "rope_base": 10000.0, "rotary_fraction": 1.0,
        "use_triton": None,
    }  # fmt: skip
    config["interctc"] = {"loss_weights": [], "apply_at_layers": []}
    config["optim"] = {"name": "anything"}
    assert translate(config) == translate(char_config())


def test_several_attention_contexts_are_kept_and_the_first_acts() -> None:
    encoder = translate(changed("encoder.att_context_size", [[70, 13], [70, -1]])).settings["encoder"]
    assert encoder["attention_context"] == [70, 13]
    assert encoder["attention_contexts"] == [[70, 13], [70, -1]]
    assert "attention_contexts" not in translate(changed("encoder.att_context_size", [70, 13])).settings["encoder"]


def test_chunks_of_streams_leave_whole_recordings_alone() -> None:
    config = char_config()
    config["encoder"] |= {
        "att_context_style": "chunked_limited_with_rc", "att_chunk_context_size": [[70], [1, 2], [0, 1]],
        "conv_context_style": "dcc", "att_context_size": [-1, -1],
    }  # fmt: skip
    assert translate(config) == translate(char_config())


def test_losses_on_inner_layers_are_read() -> None:
    config = changed("interctc", {"loss_weights": [0.2, 0.3], "apply_at_layers": [1, 0]})
    assert translate(config).settings["interctc"] == {"losses": {0: 0.3, 1: 0.2}}
    assert "interctc" not in translate(char_config()).settings


def test_a_window_in_samples_is_that_many_samples() -> None:
    for samples in (320, 399, 400, 401, 1023):
        config = char_config()
        config["preprocessor"] |= {"window_size": None, "n_window_size": samples}
        assert LogMel(**translate(config).settings["preprocessor"]).window_length == samples


REFUSED = [
    ("encoder.conv_context_style", "dcc", "regular"),
    ("encoder.att_chunk_context_size", [[70], [1], [0]], "chunked_limited_with_rc"),
    ("encoder.att_context_size", [[70, 13], [70]], "a list of such pairs"),
    ("target", "nemo.collections.asr.models.EncDecHATModel", "encoder-decoder type transducer (HAT)"),
    ("target", "nemo.collections.asr.models.SLUIntentSlotBPEModel", "encoder-decoder type SLUIntentSlotBPEModel"),
    ("target", "nemo.collections.asr.models.EncDecTransfModelBPE", "attention encoder-decoder"),
    ("target", "my.package.Model", "encoder-decoder type Model is not supported yet"),
    ("target", "os.system", "not supported yet"),
    ("encoder._target_", f"{MODULES}.RNNEncoder", "encoder type RNNEncoder is not supported yet"),
    ("encoder._target_", "my.ConformerEncoder", "my.ConformerEncoder"),
    ("preprocessor._target_", f"{MODULES}.AudioToMFCCPreprocessor", "AudioToMFCCPreprocessor"),
    ("decoder._target_", f"{MODULES}.LSTMDecoder", "LSTMDecoder"),
    ("encoder.self_attention_model", "rope", "Supported: rel_pos, abs_pos, rel_pos_local_attn"),
    ("encoder.subsampling", "vggnet", "Supported: striding, dw_striding, stacking, stacking_norm"),
    ("encoder.subsampling", "striding_conv1d", "striding_conv1d"),
    ("encoder.subsampling", "dw_striding_conv1d", "dw_striding_conv1d"),
    ("encoder.subsampling_factor", 1, "from 2"),
    ("encoder.subsampling_factor", 6, "a power of 2"),
    ("encoder.conv_norm_type", "instance_norm", "batch_norm, layer_norm, group_normN"),
    ("encoder.conv_norm_type", "fused_batch_norm", "fused_batch_norm"),
    ("encoder.conv_norm_type", "group_norm0", "group_norm0"),
    ("encoder.conv_kernel_size", 30, "an odd number"),
    ("encoder.conv_context_size", [3, 3], "add up to 30"),
    ("encoder.att_context_style", "causal", "regular, chunked_limited, chunked_limited_with_rc"),
    ("encoder.att_context_size", [1, 2, 3], "[left, right]"),
    ("encoder.n_heads", 5, "a divisor of d_model 32"),
    ("encoder.n_layers", "two", "a whole number"),
    ("encoder.n_layers", 0, "a whole number"),
    ("encoder.n_layers", "???", "encoder.n_layers is missing"),
    ("encoder.d_model", 10**12, "a whole number"),
    ("encoder.use_bias", "yes", "true or false"),
    ("encoder.global_tokens", 4, "global_tokens is 4"),
    ("encoder.novel_attention", True, "this key is unknown"),
    ("encoder.dropout", 2.0, "a finite number from 0 to 1"),
    ("preprocessor.frame_splicing", 3, "frame_splicing is 3"),
    ("preprocessor.exact_pad", True, "exact_pad is true"),
    ("preprocessor.nb_augmentation_prob", 0.5, "nb_augmentation_prob is 0.5"),
    ("preprocessor.window_size", math.inf, "from 0 to 60"),
    ("preprocessor.pad_value", math.nan, "a finite number"),
    ("preprocessor.window", "kaiser", "hann, hamming"),
    ("preprocessor.normalize", "batch", "per_feature, all_features"),
    ("preprocessor.features", 64, "they must be equal"),
    ("preprocessor.n_window_size", 320, "both window_size and n_window_size"),
    ("preprocessor.window_size", None, "neither window_size nor n_window_size"),
    ("preprocessor.preemphasis", 0.9, "Did you mean 'preemph'?"),
    ("decoder.feat_in", 64, "the width of the encoder's output"),
    ("decoder.add_blank", False, "add_blank is false"),
    ("decoder.vocabulary", "abc", "a list of symbols"),
    ("decoder.hidden", 7, "decoder.hidden is 7"),
    ("interctc", {"loss_weights": [0.3], "apply_at_layers": []}, "0 numbers"),
    ("interctc", {"loss_weights": [0.3, 0.7], "apply_at_layers": [0, 1]}, "whose sum is less than 1"),
    ("interctc", {"loss_weights": [0.3], "apply_at_layers": [99]}, "different layers, from 0 to"),
    ("interctc", {"loss_weights": [0.3], "apply_at_layers": "all"}, "a list"),
    ("interctc", {"loss_weights": [0.3], "apply_at_layers": [0], "more": 1}, "this key is unknown"),
    ("encoder.reduction", "pooling", None),
]


@pytest.mark.parametrize(("path", "value", "words"), REFUSED)
def test_unsupported_values_are_refused_by_name(path: str, value: Any, words: str | None) -> None:
    config = changed(path, value)
    if path == "encoder.reduction":
        config["encoder"]["reduction_factor"] = 2
    with pytest.raises(CheckpointError) as caught:
        translate(config, "a.nemo: model_config.yaml")
    message = str(caught.value)
    assert message.startswith("a.nemo: model_config.yaml")
    assert path.rpartition(".")[2] in message
    assert (words or "Supported: null, or reduction_factor 1") in message


@pytest.mark.parametrize(
    ("content", "words"),
    [("transf_encoder", "encoder-decoder type .* is not supported yet"), ("transf_decoder", "transf_decoder type x")],
)
def test_without_a_target_the_content_tells(content: str, words: str) -> None:
    config = char_config()
    del config["target"]
    assert translate(config) == translate(char_config())
    config[content] = {"_target_": "x"}
    with pytest.raises(CheckpointError, match=words):
        translate(config)


MULTITASK_REFUSED = [
    ("prompt_format", "gemma", "Supported: canary, canary2"),
    ("transf_encoder.mask_future", True, "mask_future is true"),
    ("transf_encoder.hidden_size", 64, "32, as transf_decoder"),
    ("transf_encoder._target_", "my.Encoder", "my.Encoder"),
    ("transf_decoder._target_", "my.Decoder", "transf_decoder type Decoder is not supported yet"),
    ("transf_decoder.model_name", "bert", "model_name is bert"),
    ("transf_decoder.config_dict.hidden_act", "tanh", "relu, gelu"),
    ("transf_decoder.config_dict.novel", 1, "this key is unknown"),
    ("head.num_layers", 2, "num_layers is 2"),
    ("loss._target_", "my.Loss", "SmoothedCrossEntropyLoss"),
    ("loss.label_smoothing", 2.0, "from 0 to 1"),
    ("tokenizer.custom_tokenizer._target_", "my.Tokenizer", "CanaryTokenizer"),
    ("decoding.beam.max_generation_delta", "many", "a whole number"),
]


@pytest.mark.parametrize(("path", "value", "words"), MULTITASK_REFUSED)
def test_unsupported_values_of_multitask_models_are_refused_by_name(path: str, value: Any, words: str) -> None:
    file = fixture_file("canary_aed/model_config.yaml")
    config = read_yaml(file.read_bytes(), str(file))
    translate(config)
    *parents, name = path.split(".")
    section = config
    for parent in parents:
        section = section[parent]
    section[name] = value
    with pytest.raises(CheckpointError) as caught:
        translate(config, "a.nemo: model_config.yaml")
    assert str(caught.value).startswith("a.nemo: model_config.yaml")
    assert name in str(caught.value)
    assert words in str(caught.value)


def test_references_within_the_file_are_followed() -> None:
    config = char_config() | {"sizes": {"d": 32, "alias": "${.d}"}, "sample_rate": 16000}
    config["encoder"]["d_model"] = "${sizes.alias}"
    config["decoder"]["feat_in"] = "${encoder.d_model}"
    config["decoder"]["vocabulary"] = "${labels}"
    config["labels"] = LETTERS
    config["preprocessor"]["sample_rate"] = "${sample_rate}"
    config["train_ds"] = {"manifest_filepath": "${nowhere}"}
    before = copy.deepcopy(config)
    assert translate(config) == translate(char_config())
    assert config == before


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("${oc.env:HOME}", "resolver 'oc.env'"),
        ("x ${oc.env:HOME,16} y", "resolver 'oc.env'"),
        ("${oc.decode:${oc.env:HOME}}", "resolver 'oc.env'"),
        ("${hydra:runtime.cwd}", "resolver 'hydra'"),
        ("${nowhere.at.all}", "holds no key 'nowhere.at.all'"),
        ("${encoder.n_layers}", "in a circle"),
    ],
)
def test_references_that_leave_the_file_or_lead_nowhere_are_refused(value: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words.replace(".", r"\.")):
        translate(changed("encoder.n_layers", value))


def test_a_resolver_is_refused_wherever_it_stands() -> None:
    with pytest.raises(CheckpointError, match=r"train_ds\.files\[1\] is '\$\{oc\.env:HOME\}'"):
        refuse_resolvers({"train_ds": {"files": ["a", "${oc.env:HOME}"]}}, "x")


def test_relative_references_and_text_around_them() -> None:
    root = read_yaml(
        "a: {b: 3, c: '${a.b}', d: '${.b}', e: 'x${a.b}y', l: [1, 2], m: '${a.l[1]}', n: '${..z}'}\nz: 9", "x"
    )
    assert resolved(root, "a", "x") == {"b": 3, "c": 3, "d": 3, "e": "x3y", "l": [1, 2], "m": 2, "n": 9}


AWKWARD = {
    "a": "1e-5", "b": "1_0", "c": "n", "d": "on", "e": "null", "f": "2020-01-01", "g": "", "h": " x", "i": "'",
    "j": 1e-05, "k": -math.inf, "l": "0x1f", "m": "1:30", "n": "~", "o": "${a}", "p": "+1e5", "q": ".5", "r": "▁é",
    "s": [], "t": {}, "u": [["x"], {"y": None}], "v": True, "w": "a: b", "x": "123e4", "y": "!", "z": "😀",
}  # fmt: skip


def test_yaml_comes_back_and_omegaconf_reads_the_same() -> None:
    text = write_yaml(AWKWARD)
    assert read_yaml(text, "x") == AWKWARD
    assert OmegaConf.to_container(OmegaConf.create(text), resolve=False) == AWKWARD
    assert read_yaml("a: 1e-5\nb: 2020-01-01", "x") == {"a": 1e-5, "b": "2020-01-01"}


@pytest.mark.parametrize(
    "name", ["conformer_ctc_bpe/adapted_model_config.yaml", "conformer_ctc_char/model_config.yaml"]
)
def test_what_nemo_wrote_is_written_letter_for_letter(name: str) -> None:
    text = fixture_file(name).read_text(encoding="utf-8")
    assert write_yaml(read_yaml(text, name)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!python/object/apply:os.system ['touch x']", "no plain YAML"),
        ("a: !!python/name:os.system", "no plain YAML"),
        ("a: 1\na: 2", "occurs twice"),
        ("- 1", "a mapping of keys is needed"),
        ("", "a mapping of keys is needed"),
        ("a: [", "no plain YAML"),
        ("\x00", "no plain YAML"),
        ("a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
        ), "more values"),
        ("a: " + "[" * 100 + "]" * 100, "no plain YAML"),
        ("a: &a\n  b: *a", "no plain YAML"),
        ("{a: " * 500_000, "deeper than 60 levels"),
        ("a: !!bool maybe", "not what its tag says"),
        ("a: !!int ''", "not what its tag says"),
        ("a: !!timestamp soon", "not what its tag says"),
    ],
)  # fmt: skip
def test_yaml_that_is_more_than_data_is_refused(text: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        read_yaml(text, "x")
    with pytest.raises(CheckpointError, match="no plain YAML"):
        read_yaml(b"\xff\xfe\xff", "x")


def test_a_fresh_model_is_described_so_that_it_reads_back() -> None:
    settings = {
        "preprocessor": {"pad_to": 0, "high_frequency": 7000.0, "preemphasis": None},
        "encoder": {"width": 16, "layers": 1, "heads": 2, "subsampling_channels": 8, "attention_context": (8, 4)},
        "decoder": {"width": 16, "classes": 5},
    }
    config = describe(settings, CharTokenizer(LETTERS))
    again = read_yaml(write_yaml(config), "x")
    assert again == yaml.safe_load(yaml.safe_dump(config))
    description = translate(again)
    assert canonical_text(description.settings) == canonical_text(settings)
    assert description.tokenizer.labels == tuple(LETTERS)
    assert again["target"] == "nemo.collections.asr.models.EncDecCTCModel"
    with pytest.raises(CheckpointError, match="temperature"):
        describe(settings | {"decoder": {"width": 16, "classes": 5, "temperature": 2.0}}, CharTokenizer(LETTERS))


def test_spec_augment_is_translated_when_asked_for() -> None:
    config = char_config()
    assert translate_spec_augment(config) is None
    config["spec_augment"] = {"_target_": f"{MODULES}.SpectrogramAugmentation", "freq_masks": 2, "time_width": 0.05}
    assert translate_spec_augment(config) == {
        "freq_masks": 2, "time_masks": 0, "freq_width": 10, "time_width": 0.05, "mask_value": 0.0,
    }  # fmt: skip
    config["spec_augment"]["rect_masks"] = 5
    translate(config)
    with pytest.raises(CheckpointError, match="rect_masks is 5"):
        translate_spec_augment(config)


def test_nothing_that_a_configuration_names_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for path in ("target", "encoder._target_", "preprocessor._target_", "decoder._target_"):
        with pytest.raises(CheckpointError, match=r"trap\.Model"):
            translate(changed(path, "trap.Model"))
    assert not (tmp_path / "imported").exists()
