"""The choice of one of the attention contexts that a cache-aware model was trained with."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.checkpoints.load import load_model, save_model
from overtone.cli import main
from overtone.errors import CheckpointError, UsageError
from overtone.evaluation.evaluate import evaluate
from overtone.models.asr_model import AsrModel
from overtone.models.attention import attention_text, choose_attention
from overtone.training.console import Reporter
from overtone.training.train import run_training
from support.families import batch, family_model
from support.fixtures import fixture_file, fixture_folders
from support.train_samples import settings_for, write_corpus

CACHE_AWARE = {
    "fastconformer_cache_aware_ctc_bpe": [[12, 3], [12, 1], [12, 0]],
    "fastconformer_cache_aware_hybrid_bpe": [[12, 3], [12, 1]],
    "conformer_cache_aware_regular_ctc_bpe": [[16, 1]],
}
WINDOWS = [(name, context) for name, contexts in CACHE_AWARE.items() for context in contexts]
CONTEXTS = [[4, 1], [4, 3], [-1, 0]]


def cache_aware(**changes: object) -> AsrModel:
    return family_model("streaming", attention_context=CONTEXTS[0], attention_contexts=CONTEXTS, **changes)


def whole_recording(name: str) -> tuple[torch.Tensor, str]:
    """NeMo's outputs [1, T, D] of the whole recording, and its text; copies of the stream alone hold neither."""
    for folder in fixture_folders():
        if (folder / f"{name}.npz").exists() and "offline_enc" in (arrays := np.load(folder / f"{name}.npz")):
            facts = json.loads((folder / f"{name}.json").read_text("utf-8"))
            return torch.from_numpy(arrays["offline_enc"]).transpose(1, 2), facts["offline_text"][0]
    pytest.skip(f"{name} with the outputs of the whole recording is not here")


@pytest.mark.parametrize(("name", "context"), WINDOWS)
def test_every_context_is_computed_as_nemo_does(name: str, context: list[int]) -> None:
    model = load_model(fixture_file(f"{name}/model.nemo"), att_context_size=context)
    expected, text = whole_recording(f"{name}/stream_base_{context[0]}_{context[1]}")
    samples = torch.from_numpy(soundfile.read(fixture_file("wavs/s6.wav"), dtype="float32")[0])[None]
    with torch.no_grad():
        mel, lengths = model.preprocessor(samples, torch.tensor([samples.size(1)]))
        for dtype in (None, "float32"):
            with model.computing_in(dtype):
                encoded, frames = model.encoder_in_use(mel, lengths)
            assert encoded.shape == expected.shape
            torch.testing.assert_close(encoded[0, : frames[0]], expected[0, : frames[0]], rtol=0, atol=2e-4)
    assert model.transcribe(samples, torch.tensor([samples.size(1)]))[0].text == text


def test_the_first_context_acts_unless_another_is_chosen() -> None:
    model = cache_aware()
    waveforms, lengths = batch(20_000)
    first = model(waveforms, lengths)[0]
    assert attention_text(model) == "attention context [4, 1] of [4, 1], [4, 3], [-1, 0]"
    fingerprint = model.fingerprint()
    outcomes = [first]
    for context in CONTEXTS[1:]:
        choose_attention(model, context)
        outcomes.append(model(waveforms, lengths)[0])
        assert model.fingerprint() == fingerprint
        assert attention_text(model).startswith(f"attention context {context} of")
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(outcomes))
    choose_attention(model, [4, 1])
    assert torch.equal(model(waveforms, lengths)[0], first)
    choose_attention(model, None)
    assert torch.equal(model(waveforms, lengths)[0], first)
    assert attention_text(family_model()) == ""


def test_the_fingerprint_is_that_of_the_same_base_with_one_context() -> None:
    assert cache_aware().fingerprint() == family_model("streaming", attention_context=CONTEXTS[0]).fingerprint()


def test_a_context_that_the_model_was_not_trained_with_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\[4, 2\].*Allowed: \[4, 1\], \[4, 3\], \[-1, 0\]"):
        choose_attention(cache_aware(), [4, 2])
    with pytest.raises(UsageError, match=r"Allowed: \[-1, -1\]"):
        choose_attention(family_model(), [12, 1])


def test_files_keep_all_contexts(tmp_path: Path) -> None:
    model = cache_aware()
    choose_attention(model, [4, 3])
    for path in (tmp_path / "x.nemo", tmp_path / "folder"):
        save_model(model, path)
        again = load_model(path, att_context_size=[-1, 0])
        assert again.fingerprint() == model.fingerprint()
        assert again.encoder.attention_context == (-1, 0)
        assert [list(each) for each in again.encoder.attention_contexts] == CONTEXTS
        assert load_model(path).encoder.attention_context == (4, 1)


def test_an_adapter_is_trained_with_a_context_and_loaded_with_another(tmp_path: Path) -> None:
    save_model(cache_aware(), tmp_path / "base")
    write_corpus(tmp_path, text="abc abc")
    write_corpus(tmp_path, count=3, name="valid", text="abc abc")
    overrides = ["model.adapter.linear.dim=4", "trainer.max_steps=2", "compute_processes=1"]
    trained = {}
    for context in ([4, 1], [4, 3]):
        settings = settings_for(tmp_path, *overrides, f"model.encoder.att_context_size={context}",
                                f"exp_manager.explicit_log_dir={tmp_path / f'run{context[1]}'}")  # fmt: skip
        model = load_model(tmp_path / "base")
        result = run_training(settings, model=model, reporter=Reporter(quiet=True))
        assert model.encoder.attention_context == (4, 1)
        assert result.card["att_context_size"] == context
        trained[context[1]] = [parameter.detach().clone() for parameter in model.adapters["mine"].parameters()]
        other = load_model(tmp_path / "base", att_context_size=[-1, 0])
        assert other.adapters.load(result.best).card["att_context_size"] == context
    assert any(not torch.equal(one, two) for one, two in zip(trained[1], trained[3], strict=True))


def test_a_resumed_training_keeps_its_context(tmp_path: Path) -> None:
    save_model(cache_aware(), tmp_path / "base")
    write_corpus(tmp_path, text="abc abc")
    write_corpus(tmp_path, count=3, name="valid", text="abc abc")
    overrides = ["model.adapter.linear.dim=4", "compute_processes=1", "exp_manager.resume_if_exists=true"]
    ignore = "exp_manager.resume_ignore_no_checkpoint=true"
    first = settings_for(tmp_path, *overrides, ignore, "trainer.max_steps=2")
    run_training(first, model=load_model(tmp_path / "base"), reporter=Reporter(quiet=True))
    other = settings_for(tmp_path, *overrides, "trainer.max_steps=4", "model.encoder.att_context_size=[4,3]")
    with pytest.raises(CheckpointError, match=r"att_context_size was \[4, 1\], now \[4, 3\]"):
        run_training(other, model=load_model(tmp_path / "base"), reporter=Reporter(quiet=True))


def test_the_commands_name_the_context_and_take_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = cache_aware()
    adapter = model.adapters.add("mine", LinearAdapter(dim=4))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3)
    save_model(model, tmp_path / "base")
    manifest = write_corpus(tmp_path, count=2, text="abc")
    base, wav = str(tmp_path / "base"), str(tmp_path / "train0.wav")
    listed = "of [4, 1], [4, 3], [-1, 0]"
    assert main(["transcribe", wav, "--model", base]) == 0
    assert f"on cpu · attention context [4, 1] {listed}" in capsys.readouterr().err
    assert main(["transcribe", wav, "--model", base, "--att-context-size", "4,3"]) == 0
    assert f"attention context [4, 3] {listed}" in capsys.readouterr().err
    assert main(["evaluate", base, str(manifest), "--att-context-size", "[4,3]"]) == 0
    assert "attention context [4, 3]" in " ".join(capsys.readouterr().out.split())
    words = [f"model.nemo_model={base}", f"model.test_ds.manifest_filepath={manifest}"]
    words += ["model.adapter.adapter_name=null", "model.encoder.att_context_size=[4,3]"]
    assert main(["evaluate", *words]) == 0
    assert "attention context [4, 3]" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", base, wav, "--att-context-size=-1,0"]) == 0
    assert f"attention context [-1, 0] {listed}" in capsys.readouterr().err
    assert main(["transcribe", wav, "--model", base, "--att-context-size", "4,2"]) == 2
    assert "Allowed: [4, 1], [4, 3], [-1, 0]" in capsys.readouterr().err
    assert main(["transcribe", wav, "--model", base, "--att-context-size", "4"]) == 2
    assert "'4' is not of the form 12,1" in capsys.readouterr().err


def test_an_evaluation_records_the_context(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path, count=2, text="abc")
    model = cache_aware()
    choose_attention(model, [4, 3])
    numbers = evaluate(model, manifest).to_json()["numbers"]
    assert numbers["attention"] == "attention context [4, 3] of [4, 1], [4, 3], [-1, 0]"
    assert "attention" not in evaluate(family_model(), manifest).to_json()["numbers"]
