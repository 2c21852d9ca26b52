"""Models with an attention decoder beside NeMo, and every way that a model goes: files, tasks, windows, training."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.checkpoints.load import load_model, save_model
from overtone.checkpoints.nemo.fresh import build_fresh
from overtone.checkpoints.nemo.keys import nemo_key
from overtone.checkpoints.nemo.model import load_base
from overtone.compat.nemo import models as nemo_models
from overtone.config.targets import TRANSFORMER_ATTENTION_TARGETS
from overtone.decoding.decoder import DecodingOptions
from overtone.decoding.multitask import MultitaskHead
from overtone.errors import AdapterError, CheckpointError, DataError, UsageError
from overtone.evaluation.evaluate import evaluate
from overtone.evaluation.verify import verify
from overtone.inference.transcribe import Transcriber, transcribe
from overtone.models.asr_model import AsrModel
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.recognition.offline import recognise
from overtone.tokenizers import AggregateTokenizer
from overtone.training.console import Reporter
from overtone.training.train import run_training
from support.fixtures import fixture_file, fixture_folders, recordings
from support.streams import run
from support.train_samples import settings_for

NAMES = ("canary_aed", "canary2_aed")
QUIET = Reporter(quiet=True)


def combos(name: str) -> list[str]:
    """The combinations of adapters of which there are references."""
    names = {path.stem[4:] for folder in fixture_folders() for path in (folder / name).glob("ref_*.npz")}
    return sorted(names)


CASES = [(name, combo) for name in NAMES for combo in combos(name)]


@pytest.fixture(scope="module")
def adapted() -> dict[str, AsrModel]:
    return {}


def head_of(model: AsrModel) -> MultitaskHead:
    head = model.heads["aed"]
    assert isinstance(head, MultitaskHead)
    return head


def facts_of(name: str, file: str) -> Any:
    return json.loads(fixture_file(f"{name}/{file}.json").read_text("utf-8"))


@pytest.mark.parametrize(("name", "combo"), CASES)
def test_states_scores_losses_and_texts_are_those_of_nemo(name: str, combo: str, adapted: dict[str, AsrModel]) -> None:
    if name not in adapted:
        adapted[name] = load_model(fixture_file(f"{name}/adapted.nemo"))
    model, facts = adapted[name], facts_of(name, f"ref_{combo}")
    head, arrays = head_of(model), np.load(fixture_file(f"{name}/ref_{combo}.npz"))
    chains = {"base": None, "none": None, "all": "+".join(model.adapters.names)}
    found = 0
    for tag, (waveforms, lengths) in {"0": recordings(0), "1": recordings(1), "b": recordings()}.items():
        if tag not in facts:
            continue
        texts, sizes = (torch.from_numpy(arrays[f"{key}_{tag}"]) for key in ("transcript", "transcript_len"))
        prompt = int(arrays[f"prompt_len_{tag}"])
        with torch.no_grad(), model.adapters.use(chains.get(combo, combo)):
            states, frames = model(waveforms, lengths)
            log_probs = head.net(texts[:, :-1], sizes - 1, states, frames)
            loss = head.loss(states, frames, texts[:, prompt:], sizes - prompt - 1)
            paths = head.align(states, frames)
        for row, (length, size) in enumerate(zip(frames.tolist(), sizes.tolist(), strict=True)):
            if f"states_{tag}" in arrays:
                assert_near(states[row, :length], arrays[f"states_{tag}"][row, :length])
            if f"logp_{tag}" in arrays:
                assert_near(log_probs[row, : size - 1], arrays[f"logp_{tag}"][row, : size - 1])
        assert float(loss) == pytest.approx(float(arrays[f"loss_{tag}"]), rel=1e-5)
        assert list(texts[0, :prompt]) == list(head.prompts.tokens(None))
        for path, (ids, text), length in zip(paths, facts[tag]["greedy"], frames.tolist(), strict=True):
            # A row's limit is its own; NeMo's is that of the longest of the batch.
            limit = min(head.net.max_length, length + head.greedy.max_delta) - prompt
            assert path.ids.tolist() == ids[:limit]
            assert len(ids) > limit or head.read(path).text == text
            found += 1
    assert found


def assert_near(own: torch.Tensor, theirs: np.ndarray) -> None:
    torch.testing.assert_close(own, torch.from_numpy(theirs), rtol=0, atol=1e-4)


def test_the_prompt_may_be_left_out_of_the_loss() -> None:
    for name in NAMES:
        model = load_model(fixture_file(f"{name}/model.nemo"))
        arrays, head = np.load(fixture_file(f"{name}/ref_base.npz")), head_of(model)
        head.masks_prompt = True
        texts, sizes = (torch.from_numpy(arrays[f"{key}_b"]) for key in ("transcript", "transcript_len"))
        prompt = int(arrays["prompt_len_b"])
        with torch.no_grad():
            states, frames = model(*recordings())
            loss = head.loss(states, frames, texts[:, prompt:], sizes - prompt - 1)
        assert float(loss) == pytest.approx(float(arrays["loss_promptmasked_b"]), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_texts_of_every_task_are_those_of_nemo(name: str) -> None:
    model = load_model(fixture_file(f"{name}/model.nemo"))
    for case in facts_of(name, "summary")["prompts"]:
        task = ",".join(f"{slot}={value}" for slot, value in case["slots"].items())
        assert list(head_of(model).prompts.tokens(model.check_language(task))) == case["ids"]
        for wave, (ids, text) in case["greedy"].items():
            (found,) = transcribe(model, fixture_file(f"wavs/{wave}.wav"), language=task)
            assert (list(found.ids), found.text) == (ids, text)
            assert [word.start for word in found.words] == sorted(word.start for word in found.words)


def test_each_row_has_a_task_of_its_own_and_comes_out_as_alone() -> None:
    model = load_model(fixture_file("canary2_aed/adapted.nemo"))
    tasks, choices = ["en,decodercontext=dekegu pacob", "en>de,pnc=no", None], ["an4+tdec", None, "tdec"]
    with model.speaking(tasks), model.adapters.use(choices):
        mixed = model.transcribe(*recordings())
    for row, (task, choice) in enumerate(zip(tasks, choices, strict=True)):
        with model.speaking(task), model.adapters.use(choice):
            (alone,) = model.transcribe(*recordings(row))
        assert alone.ids == mixed[row].ids
        assert alone.score == pytest.approx(mixed[row].score, abs=1e-3)
    with model.speaking(["en"]), pytest.raises(UsageError, match="1 languages for 3 rows"):
        model.transcribe(*recordings())


@pytest.mark.parametrize("name", NAMES)
def test_files_are_written_and_read_again(name: str, tmp_path: Path) -> None:
    model = load_model(fixture_file(f"{name}/adapted.nemo"))
    for path in (tmp_path / "again.nemo", tmp_path / "folder", tmp_path / "bare.nemo"):
        if path.stem == "bare":
            model.config = {}
        save_model(model, path)
        again = load_model(path)
        assert again.fingerprint() == model.fingerprint()
        assert again.adapters.names == model.adapters.names
        with model.adapters.use(model.adapters.names[-1]), again.adapters.use(model.adapters.names[-1]):
            assert again.transcribe(*recordings(0)) == model.transcribe(*recordings(0))


def test_every_kind_has_places_and_is_identity_at_birth() -> None:
    model = load_model(fixture_file("canary_aed/model.nemo"))
    before = model.transcribe(*recordings(0))
    kinds = {"linear": LinearAdapter(dim=4), "lora": LoraAdapter(rank=2), "attention": TinyAttentionAdapter(heads=2)}
    for name, kind in kinds.items():
        model.adapters.add(name, kind, modules="encoder+transf_encoder+transf_decoder")
        with model.adapters.use(name):
            assert model.transcribe(*recordings(0)) == before
        with torch.no_grad():
            for parameter in model.adapters[name].parameters():
                parameter.add_(0.1)
    assert verify(model, [fixture_file("wavs/w0.wav"), fixture_file("wavs/w1.wav")]).passed
    with pytest.raises(AdapterError, match="relative positions"):
        model.adapters.add("rel", TinyAttentionAdapter(position="rel_pos"), modules="transf_decoder")
    assert model.transcribe(*recordings(0)) == before


def test_nemo_has_no_attention_adapter_over_both_kinds_of_layers(tmp_path: Path) -> None:
    model = load_model(fixture_file("canary_aed/model.nemo"))
    model.adapters.add("wide", TinyAttentionAdapter(heads=2), modules="encoder+transf_decoder")
    with pytest.raises(CheckpointError, match=r"which NeMo does not have in encoder\+transf_decoder"):
        save_model(model, tmp_path / "wide.nemo")
    save_model(model, tmp_path / "wide")
    assert load_model(tmp_path / "wide").adapters.names == ["wide"]


@pytest.mark.parametrize("variant", ["linear_nonzero", "tdec_nonzero"])
@pytest.mark.parametrize("name", NAMES)
def test_steps_of_training_are_those_of_nemo(name: str, variant: str) -> None:
    model = load_model(fixture_file(f"{name}/adapted.nemo"))
    arrays, facts = np.load(fixture_file(f"{name}/train/{variant}.npz")), facts_of(name, f"train/{variant}")
    adapter = "an4" if variant.startswith("linear") else "tdec"
    head, parameters = head_of(model), model.adapters[adapter].tensors()
    names = {}
    for key in (key for key in arrays if key.startswith("init|")):
        host, _, part = key.removeprefix("init|").partition(f".adapter_layer.{adapter}.module.")
        ours = {"0": "norm", "1": "down", "3": "up"}[part.partition(".")[0]]
        point = host.replace("transf_decoder._decoder", "transf_decoder")
        names[key.removeprefix("init|")] = f"{point}.after_block.{ours}.{part.partition('.')[2]}"
    assert sorted(names.values()) == sorted(parameters)
    with torch.no_grad():
        for theirs, ours in names.items():
            parameters[ours].copy_(torch.from_numpy(arrays[f"init|{theirs}"]))
    model.train_only(adapter).preprocessor.eval()  # no dither, as in the references
    optimiser = torch.optim.AdamW(model.adapters.parameters_of(adapter), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.0)
    texts, sizes = (torch.from_numpy(arrays[key]) for key in ("transcript", "transcript_len"))
    prompt, losses = int(arrays["prompt_len"]), []
    for _ in range(5):
        optimiser.zero_grad()
        with model.adapters.use(adapter):
            states, frames = model(*recordings())
            loss = head.loss(states, frames, texts[:, prompt:], sizes - prompt - 1)
        loss.backward()
        losses.append(loss.item())
        optimiser.step()
    assert losses == pytest.approx(facts["losses"][:5], rel=1e-4)
    for theirs, ours in names.items():
        assert_near(parameters[ours].detach(), arrays[f"final|{theirs}"])


def write_manifest(path: Path, *lines: dict[str, Any]) -> Path:
    """A manifest of the three recordings, in order, with what each line says."""
    rows = []
    for row, line in enumerate(lines):
        shutil.copy(fixture_file(f"wavs/w{row}.wav"), path.parent)
        whole = {"audio_filepath": f"w{row}.wav", "duration": int(recordings(row)[1]) / 16_000}
        rows.append(json.dumps(whole | line))
    path.write_text("\n".join(rows) + "\n", "utf-8")
    return path


def test_a_manifest_names_the_task_of_each_line(tmp_path: Path) -> None:
    model = load_model(fixture_file("canary_aed/model.nemo"))
    cases = facts_of("canary_aed", "summary")["prompts"]
    translated = {"source_lang": "en", "target_lang": "de", "taskname": "ast", "pnc": "no"}
    expected = cases[1]["greedy"]["w0"][1], cases[2]["greedy"]["w1"][1]
    manifest = write_manifest(
        tmp_path / "calls.json", {**translated, "text": expected[0]}, {"lang": "de", "text": expected[1]}
    )
    found = [result.hypothesis for result in Transcriber(model).stream(manifest)]
    assert [each and each.text for each in found] == list(expected)
    assert evaluate(model, manifest).results[0].wer == 0.0
    assert evaluate(model, manifest, language="en").results[0].wer > 0.0


def test_tasks_that_the_model_does_not_have_are_refused() -> None:
    model = load_model(fixture_file("canary_aed/model.nemo"))
    for task, words in {
        "xx": "language 'xx' is none of this model's: en, de",
        "en>xx": "language 'xx' is none",
        "pnc=perhaps": "pnc is 'perhaps', .* Allowed: yes, true, 1, no, false, 0",
        "task=sing": "task is 'sing'",
        "timestamp=yes": "'timestamp' is no slot of this model's prompt. Allowed: source_lang, task, target_lang, pnc",
    }.items():
        with pytest.raises(UsageError, match=words):
            Transcriber(model, language=task)
    assert model.check_language("DE-de") == "de"
    assert model.check_language(None) == "en"


def test_an_adapter_is_trained_on_the_task_of_each_utterance(tmp_path: Path) -> None:
    model = load_model(fixture_file("canary_aed/model.nemo"))
    case = facts_of("canary_aed", "summary")["prompts"][2]["greedy"]
    lines = [{"source_lang": "de", "target_lang": "de", "text": case[wave][1].strip() or "a"} for wave in ("w0", "w1")]
    manifest = write_manifest(tmp_path / "train.json", *lines)
    frozen = {key: tensor.clone() for key, tensor in model.base_state_dict().items()}
    overrides = [f"model.{part}_ds.manifest_filepath={manifest}" for part in ("train", "validation")]
    settings = settings_for(
        tmp_path / "run", *overrides, "model.train_ds.batch_size=2", "trainer.max_steps=2",
        "model.adapter.adapter_module_name=transf_decoder", "model.vocabulary_check=keep",
        "model.adapter.adapter_type=tiny_attn", f"model.adapter.tiny_attn._target_={TRANSFORMER_ATTENTION_TARGETS[0]}",
    )  # fmt: skip
    result = run_training(settings, model=model, reporter=QUIET)
    assert all(torch.equal(frozen[key], tensor) for key, tensor in model.base_state_dict().items())
    assert result.wer_before is not None
    assert result.nemo is not None
    assert load_model(result.nemo).adapters["mine"].modules_text == "transf_decoder"
    write_manifest(tmp_path / "train.json", {**lines[0], "text": 100 * "a "}, lines[1])
    with pytest.raises(DataError, match=r"train.json:1.* tokens, and the model reads 91 at most"):
        run_training(
            settings_for(tmp_path / "long", *overrides, "model.vocabulary_check=keep"), model=model, reporter=QUIET
        )
    write_manifest(tmp_path / "train.json", {**lines[0], "target_lang": "fr"}, lines[1])
    with pytest.raises(DataError, match=r"train.json:1: language 'de>fr' is none of this model's: en, de"):
        run_training(settings_for(tmp_path / "other", *overrides), model=model, reporter=QUIET)


def test_the_server_takes_recordings_of_any_task_and_no_streams() -> None:
    model = load_model(fixture_file("canary_aed/adapted.nemo"))
    waveform = recordings(0)[0][0].numpy()
    with Engine(model, EngineSettings(threads=1)) as engine:
        for task in (None, "en>de,pnc=no"):
            found = run(recognise(engine, waveform, decoding=DecodingOptions(language=task)))
            (expected,) = transcribe(model, fixture_file("wavs/w0.wav"), language=task)
            assert found.hypotheses[0].text == expected.text


def test_nemos_names_take_the_slots_of_prompts() -> None:
    model = nemo_models.EncDecMultiTaskModel.restore_from(fixture_file("canary_aed/adapted.nemo"))
    assert "transf_decoder" in model.adapter_module_names
    model.set_enabled_adapters(enabled=False)
    case = facts_of("canary_aed", "summary")["prompts"][1]
    (found,) = model.transcribe([str(fixture_file("wavs/w0.wav"))], **case["slots"])
    assert (list(found.y_sequence), found.text) == tuple(case["greedy"]["w0"])
    model.set_enabled_adapters("tdec", enabled=True)
    (adapted,) = model.transcribe([str(fixture_file("wavs/w0.wav"))], **case["slots"])
    assert adapted.text != found.text


def test_a_second_model_for_times_is_left_in_the_file(tmp_path: Path) -> None:
    """It may be large, and is not read, whatever it holds."""
    with tarfile.open(fixture_file("canary_aed/model.nemo")) as before, tarfile.open(tmp_path / "x.nemo", "w") as after:
        for member in before.getmembers():
            after.addfile(member, before.extractfile(member) if member.isfile() else None)
        second = tarfile.TarInfo("./timestamps_asr_model_weights.ckpt")
        second.size = 70 * 2**20  # more than is read of other files
        with (tmp_path / "zeros").open("wb+") as zeros:
            zeros.truncate(second.size)
            after.addfile(second, zeros)
    model = load_model(tmp_path / "x.nemo")
    assert not any("timestamps" in name for name in model.checkpoint_files)
    assert model.fingerprint() == load_model(fixture_file("canary_aed/model.nemo")).fingerprint()


def test_an_embedding_that_is_not_the_head_is_refused() -> None:
    model = load_model(fixture_file("canary_aed/model.nemo"))
    tensors = {nemo_key(name): tensor.clone() for name, tensor in model.base_state_dict().items()}
    tensors["log_softmax.mlp.layer0.weight"][0] += 1.0
    with pytest.raises(CheckpointError, match="although NeMo ties them"):
        load_base(model, tensors, "a.nemo")


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_model_is_that_of_the_same_configuration(name: str) -> None:
    model = load_model(fixture_file(f"{name}/model.nemo"))
    fresh = build_fresh(fixture_file(f"{name}/model_config.yaml"), model.tokenizer, seed=0)
    assert fresh.settings == model.settings
    tensors, own = model.base_state_dict(), fresh.base_state_dict()
    assert {key: tensor.shape for key, tensor in own.items()} == {key: tensor.shape for key, tensor in tensors.items()}


def test_a_model_is_trained_from_nothing(tmp_path: Path) -> None:
    tokenizer = load_model(fixture_file("canary_aed/model.nemo")).tokenizer
    assert isinstance(tokenizer, AggregateTokenizer)
    for language, part in tokenizer.parts.items():
        (tmp_path / "languages" / language).mkdir(parents=True)
        (tmp_path / "languages" / language / "tokenizer.model").write_bytes(part.model_bytes)
    lines = [{"source_lang": "de", "target_lang": target, "text": "a"} for target in ("de", "en")]
    manifest = write_manifest(tmp_path / "train.json", *lines)
    settings = settings_for(
        tmp_path / "run", "model.nemo_model=null", "model.train=everything", "trainer.max_steps=2",
        f"model.init={fixture_file('canary_aed/model_config.yaml')}", f"model.tokenizer={tmp_path / 'languages'}",
        "model.vocabulary_check=keep", "model.train_ds.batch_size=2",
        *(f"model.{part}_ds.manifest_filepath={manifest}" for part in ("train", "validation")),
    )  # fmt: skip
    result = run_training(settings, reporter=QUIET)
    assert result.nemo is not None
    trained, fresh = (
        load_model(result.nemo),
        build_fresh(fixture_file("canary_aed/model_config.yaml"), tokenizer, seed=settings.seed),
    )
    assert sorted(trained.tokenizer.languages) == ["de", "en"]
    own = fresh.base_state_dict()
    moved = [key for key, tensor in trained.base_state_dict().items() if not torch.equal(tensor, own[key])]
    for part in ("encoder.layers.1.", "transf_encoder.layers.1.", "transf_decoder.layers.1.", "transf_decoder.embed"):
        assert any(key.startswith(part) for key in moved), part
