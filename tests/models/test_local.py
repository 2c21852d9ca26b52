"""Models with local attention beside NeMo, and models whose attention becomes local, every way that they go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.backends.fused.encoder import FusedEncoder
from overtone.checkpoints.load import load_model, save_model
from overtone.cli import main
from overtone.errors import AdapterError, CheckpointError, UsageError
from overtone.evaluation.verify import verify
from overtone.models.asr_model import AsrModel
from overtone.models.attention import attention_facts, attention_text, choose_attention
from overtone.nets.encoder_cache import CachedEncoder
from overtone.training.console import Reporter
from overtone.training.train import run_training
from support.families import batch, family_model
from support.fixtures import fixture_file
from support.train_samples import settings_for, write_corpus

LOCAL = "rel_pos_local_attn"
NAMES = ("fastconformer_long_ctc_bpe", "fastconformer_long_ctc_bpe_global", "fastconformer_long_ctc_bpe_global_sep")
TAGS = {"0": ["w0"], "l": ["l9"], "bl": ["l9", "w1"]}
CHANGED = [
    ("fastconformer_long_ctc_bpe", {"att_context_size": [8, 4]}, f"{LOCAL}_8_4"),
    ("fastconformer_long_ctc_bpe", {"att_context_size": [4, 8], "attention": LOCAL}, f"{LOCAL}_4_8"),
    ("fastconformer_long_ctc_bpe", {"attention": "rel_pos"}, "rel_pos_-1_-1"),
    ("fastconformer_tdt_bpe", {"att_context_size": [8, 8], "attention": LOCAL}, f"{LOCAL}_8_8"),
]


def waves(tag: str) -> tuple[Tensor, Tensor]:
    signals = [torch.from_numpy(soundfile.read(fixture_file(f"wavs/{n}.wav"), dtype="float32")[0]) for n in TAGS[tag]]
    return torch.nn.utils.rnn.pad_sequence(signals, batch_first=True), torch.tensor([len(x) for x in signals])


def assert_equals_nemo(
    model: AsrModel, reference: str, choice: str | None, tags: tuple[str, ...] = tuple(TAGS)
) -> None:
    arrays = np.load(fixture_file(f"{reference}.npz"))
    facts = json.loads(fixture_file(f"{reference}.json").read_text("utf-8"))
    found = 0
    for tag in tags:
        if f"enc_{tag}" not in arrays:
            continue
        expected = torch.from_numpy(arrays[f"enc_{tag}"]).transpose(1, 2)
        with torch.no_grad(), model.adapters.use(choice):
            mel, lengths = model.preprocessor(*waves(tag))
            for backend in (None, FusedEncoder(model.encoder, torch.float32)):
                with model.computing_with(backend):
                    encoded, frames = model.encoder_in_use(mel, lengths)
                for row, length in enumerate(frames.tolist()):
                    torch.testing.assert_close(encoded[row, :length], expected[row, :length], rtol=0, atol=2e-4)
            head = next(name for name in model.heads if name != "hybrid")
            texts = [hypothesis.text for hypothesis in model.transcribe(*waves(tag))]
        assert texts == facts[f"{head}_{tag}"]
        found += 1
    assert found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("combo", ["base", "none", "an4", "an4+two", "all"])
def test_outputs_are_those_of_nemo(name: str, combo: str) -> None:
    model = load_model(fixture_file(f"{name}/adapted.nemo"))
    if set(combo.split("+")) - {"base", "none", "all", *model.adapters.names}:
        pytest.skip("NeMo made no such adapter for this model")
    choice = {"base": None, "none": None, "all": "@file"}.get(combo, combo)
    if combo != "base" and name == NAMES[2]:
        pytest.skip("NeMo's rows of a batch disturb each other, and there is no other reference")
    tags = ("0", "l") if name == NAMES[2] else tuple(TAGS)
    assert_equals_nemo(model, f"{name}/ref_{combo}", choice, tags)


@pytest.mark.parametrize(("name", "options", "reference"), CHANGED)
def test_changed_attention_is_that_of_nemo(name: str, options: dict[str, Any], reference: str) -> None:
    model = load_model(fixture_file(f"{name}/model.nemo"), **options)
    plain = load_model(fixture_file(f"{name}/model.nemo"))
    assert model.fingerprint() == plain.fingerprint()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert_equals_nemo(model, f"{name}/ref_changed_{reference}", None)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_in_a_batch_is_the_row_alone(name: str) -> None:
    model = load_model(fixture_file(f"{name}/model.nemo"))
    waveforms, lengths = batch(150_000, 44_000, 9_000, 3_000)
    with torch.no_grad():
        together, frames = model(waveforms, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone, own = model(waveforms[row : row + 1, :length], lengths[row : row + 1])
            assert own.tolist() == [frames[row]]
            kept = int(frames[row])
            torch.testing.assert_close(alone[0, :kept], together[row, :kept], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_files_are_written_and_read_again(name: str, tmp_path: Path) -> None:
    model = load_model(fixture_file(f"{name}/adapted.nemo"))
    for path in (tmp_path / "again.nemo", tmp_path / "folder"):
        save_model(model, path)
        again = load_model(path)
        assert again.fingerprint() == model.fingerprint()
        assert again.encoder.window == model.encoder.window
        assert again.transcribe(*waves("0")) == model.transcribe(*waves("0"))


def test_a_model_of_our_own_is_written_and_read_again(tmp_path: Path) -> None:
    tokens = {"tokens": 2, "spacing": 3, "separate": True}
    model = family_model("fastconformer", position=LOCAL, attention_context=[4, 2], global_attention=tokens)
    for path in (tmp_path / "x.nemo", tmp_path / "folder"):
        save_model(model, path)
        again = load_model(path)
        assert again.fingerprint() == model.fingerprint()
        assert again.encoder.window == model.encoder.window
        assert torch.equal(again(*batch(30_000))[0], model(*batch(30_000))[0])


# Adapters and the ways of computing


def test_a_window_wider_than_the_recording_is_full_attention() -> None:
    model = family_model("fastconformer")
    waveforms, lengths = batch(30_000, 12_000)
    full, frames = model(waveforms, lengths)
    choose_attention(model, [40, 40], LOCAL)
    local, _ = model(waveforms, lengths)
    for row, length in enumerate(frames.tolist()):
        torch.testing.assert_close(local[row, :length], full[row, :length], rtol=0, atol=1e-4)
    choose_attention(model, [4, 4])
    assert not torch.allclose(model(waveforms, lengths)[0], full, atol=1e-2)
    choose_attention(model, None, "rel_pos")
    assert torch.equal(model(waveforms, lengths)[0], full)


class LargestTensor(TorchDispatchMode):
    """The elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        outcome = function(*arguments, **(options or {}))
        if isinstance(outcome, Tensor):
            self.elements = max(self.elements, outcome.numel())
        return outcome


def largest_tensor(model: AsrModel, frames: int) -> int:
    mel = torch.randn(1, 20, frames, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), LargestTensor() as largest:
        model.encoder(mel, torch.tensor([frames]))
    return largest.elements


def test_memory_grows_with_the_length_alone() -> None:
    model = family_model("fastconformer")
    assert largest_tensor(model, 16_000) > 3.5 * largest_tensor(model, 8_000)
    choose_attention(model, [8, 8], LOCAL)
    assert largest_tensor(model, 16_000) < 2.1 * largest_tensor(model, 8_000)


@pytest.mark.parametrize("kind", [LinearAdapter(dim=4), LoraAdapter(rank=2)])
def test_adapters_act_row_by_row(kind: Any) -> None:
    model = family_model("fastconformer", position=LOCAL, attention_context=[6, 6])
    adapter = model.adapters.add("mine", kind)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.2)
    assert verify(model).passed
    for backend in (None, FusedEncoder(model.encoder, torch.float32)):
        with model.computing_with(backend), torch.no_grad(), model.adapters.use(["mine", None]):
            waveforms, lengths = batch(30_000, 30_000)
            mixed, _ = model(waveforms, lengths)
        with model.computing_with(backend), torch.no_grad():
            base, _ = model(waveforms, lengths)
        torch.testing.assert_close(mixed[1], base[1], rtol=0, atol=1e-5)
        assert not torch.allclose(mixed[0], base[0], atol=1e-3)


def test_adapters_of_the_attention_are_refused() -> None:
    model = family_model("fastconformer", position=LOCAL, attention_context=[6, 6])
    with pytest.raises(AdapterError, match="tiny_attn adapter has no point"):
        model.adapters.add("rel", TinyAttentionAdapter())
    changed = family_model("fastconformer")
    changed.adapters.add("rel", TinyAttentionAdapter())
    choose_attention(changed, [6, 6], LOCAL)
    with changed.adapters.use("rel"), pytest.raises(AdapterError, match="does not act under local attention"):
        changed(*batch(30_000))


def test_a_copy_made_before_notices_the_change() -> None:
    model = family_model("fastconformer")
    model.set_compute_dtype("float32", prepared=True)
    waveforms, lengths = batch(30_000)
    full = model(waveforms, lengths)[0]
    choose_attention(model, [4, 4], LOCAL)
    local = model(waveforms, lengths)[0]
    model.set_compute_dtype("float32")
    torch.testing.assert_close(local, model(waveforms, lengths)[0], rtol=0, atol=1e-4)
    assert not torch.allclose(local, full, atol=1e-2)
    model.set_compute_dtype("bfloat16")
    assert (model(waveforms, lengths)[0] - local).abs().mean() < 0.05


def test_openvino_and_steps_of_a_stream_are_refused() -> None:
    pytest.importorskip("openvino")
    model = family_model("fastconformer", position=LOCAL, attention_context=[6, 6])
    with pytest.raises(UsageError, match="attention that is not local"):
        model.set_compute_dtype("openvino")
    changed = family_model("fastconformer").set_compute_dtype("openvino")
    choose_attention(changed, [6, 6], LOCAL)
    with pytest.raises(UsageError, match="does not compute local attention"):
        changed(*batch(30_000))
    with pytest.raises(UsageError, match="its attention is local"):
        CachedEncoder(model.encoder)  # type: ignore[arg-type]


# Choosing


def test_what_cannot_be_is_refused() -> None:
    model = family_model("fastconformer")
    for context in (None, [0, 0], [-1, 4]):
        with pytest.raises(UsageError, match="Local attention needs att_context_size"):
            choose_attention(model, context, LOCAL)
    with pytest.raises(UsageError, match="self_attention_model is 'abs_pos'"):
        choose_attention(model, None, "abs_pos")
    with pytest.raises(UsageError, match="no relative attention"):
        choose_attention(family_model("abs_pos"), [4, 4], LOCAL)
    with pytest.raises(UsageError, match="was not trained with"):
        choose_attention(model, [4, 4], "rel_pos")
    with pytest.raises(CheckpointError, match="att_context_size"):
        load_model_of(att_context_size=[-1, -1])


def load_model_of(**encoder: Any) -> None:
    from overtone.checkpoints.nemo.config import translate
    from overtone.checkpoints.nemo.yaml import read_yaml

    path = fixture_file(f"{NAMES[0]}/model_config.yaml")
    config = read_yaml(path.read_bytes(), str(path))
    config["encoder"] |= encoder
    translate(config)


def test_texts_and_facts_of_the_choice() -> None:
    model = family_model("fastconformer")
    assert (attention_text(model), attention_facts(model)) == ("", {})
    choose_attention(model, [6, 4], LOCAL)
    assert attention_text(model) == "local attention [6, 4]"
    assert attention_facts(model) == {"self_attention_model": LOCAL, "att_context_size": [6, 4]}
    own = family_model("fastconformer", position=LOCAL, attention_context=[6, 6])
    assert attention_facts(own) == {"att_context_size": [6, 6]}
    choose_attention(own, None, "rel_pos")
    assert attention_text(own) == "full attention"
    assert attention_facts(own) == {"self_attention_model": "rel_pos", "att_context_size": [-1, -1]}


def test_training_with_local_attention(tmp_path: Path) -> None:
    """One adapter of a base whose attention becomes local, one of a base that has it so; both are loaded anywhere."""
    write_corpus(tmp_path, text="abc abc")
    write_corpus(tmp_path, count=3, name="valid", text="abc abc")
    words = ["model.encoder.self_attention_model=rel_pos_local_attn", "model.encoder.att_context_size=[6,6]"]
    settings = settings_for(tmp_path, "trainer.max_steps=2", *words)
    model = family_model("fastconformer")
    result = run_training(settings, model=model, reporter=Reporter(quiet=True))
    assert model.encoder.window is None
    assert model.encoder.attention_context == (-1, -1)
    assert result.card["self_attention_model"] == LOCAL
    assert result.card["att_context_size"] == [6, 6]
    family_model("fastconformer").adapters.load(result.best)
    own = family_model("fastconformer", position=LOCAL, attention_context=[6, 6])
    for dtype in ("float32", "bfloat16"):
        folder = f"exp_manager.explicit_log_dir={tmp_path / dtype}"
        settings = settings_for(tmp_path, "trainer.max_steps=2", f"compute_dtype={dtype}", folder)
        assert run_training(settings, model=own, reporter=Reporter(quiet=True)).steps == 2
        own.adapters.remove("mine")


def test_the_command_recognises_in_one_piece(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(family_model("fastconformer"), tmp_path / "base")
    soundfile.write(tmp_path / "long.wav", batch(700_000)[0][0].numpy(), 16_000, subtype="FLOAT")
    words = ["transcribe", str(tmp_path / "long.wav"), "--model", str(tmp_path / "base"), "--window", "0"]
    assert main([*words, "--attention", "local", "--att-context-size", "6,6"]) == 0
    captured = capsys.readouterr()
    assert "local attention [6, 6]" in captured.err
    model = load_model(tmp_path / "base", attention=LOCAL, att_context_size=[6, 6])
    with model.computing_in("auto"):
        assert captured.out.strip() == model.transcribe(*batch(700_000))[0].text.strip()
    assert main([*words, "--attention", "local"]) == 2
    assert "such as [128, 128]" in capsys.readouterr().err
