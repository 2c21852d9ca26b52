"""Transducer and hybrid models beside NeMo, and every way that a model goes: files, windows, training, server."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.words import WordPart
from overtone.checkpoints.load import load_model, save_model
from overtone.decoding.decoder import DecodingOptions, read_best
from overtone.decoding.ngram_counts import build_ngram
from overtone.decoding.transducer import TransducerHead
from overtone.errors import AdapterError, CheckpointError, UsageError
from overtone.evaluation.verify import verify
from overtone.inference.transcribe import Transcriber, transcribe
from overtone.models.asr_model import AsrModel, build_model
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.recognition.offline import recognise
from overtone.serving.recognition.request import Endpointing
from overtone.serving.streaming.stream import Stream, StreamSettings
from overtone.tokenizers import CharTokenizer
from overtone.training.console import Reporter
from overtone.training.train import run_training
from support.families import batch
from support.fixtures import fixture_file, fixture_folders, recordings
from support.small_models import LABELS
from support.streams import finals, run
from support.train_samples import settings_for

NEMO_MODELS = (
    "conformer_rnnt_char",
    "conformer_tdt_stateless_bpe",
    "contextnet_rnnt_bpe",
    "fastconformer_cache_aware_hybrid_bpe",
    "fastconformer_hybrid_rnnt_ctc_bpe",
    "fastconformer_hybrid_tdt_ctc_bpe",
    "fastconformer_tdt_bpe",
)
QUIET = Reporter(quiet=True)


def combos(model: str) -> list[str]:
    """The combinations of adapters of which there are references."""
    names = {path.stem[4:] for folder in fixture_folders() for path in (folder / model).glob("ref_*.npz")}
    return sorted(name for name in names if not name.startswith("changed"))


CASES = [(model, combo) for model in NEMO_MODELS for combo in combos(model)]


@pytest.fixture(scope="module")
def nemo_models() -> dict[str, AsrModel]:
    return {}


def value_of(content: Any) -> Any:
    return ast.literal_eval(content) if isinstance(content, str) else content


@pytest.mark.parametrize(("name", "combo"), CASES)
def test_ids_times_texts_and_losses_are_those_of_nemo(name: str, combo: str, nemo_models: dict[str, AsrModel]) -> None:
    if name not in nemo_models:
        nemo_models[name] = load_model(fixture_file(f"{name}/adapted.nemo"))
    model = nemo_models[name]
    head = model.heads["rnnt"]
    assert isinstance(head, TransducerHead)
    head.omega = 0.0  # the loss that the references were made with does not know it
    arrays = np.load(fixture_file(f"{name}/ref_{combo}.npz"))
    facts = json.loads(fixture_file(f"{name}/ref_{combo}.json").read_text("utf-8"))
    chains = {"base": None, "none": None, "all": "+".join(model.adapters.names)}
    found = 0
    for tag, (waveforms, lengths) in {"0": recordings(0), "1": recordings(1), "b": recordings()}.items():
        if f"rnnt_ids_{tag}" not in facts:
            continue
        with torch.no_grad(), model.adapters.use(chains.get(combo, combo)):
            emissions, frames = model(waveforms, lengths)
            paths = head.align(emissions, frames)
            if f"rnnt_loss_{tag}" in arrays:
                targets, sizes = (torch.from_numpy(arrays[f"{key}_{tag}"]) for key in ("targets", "target_len"))
                loss = head.loss(emissions, frames, targets, sizes)
                assert float(loss) == pytest.approx(float(arrays[f"rnnt_loss_{tag}"]), rel=1e-4)
        assert [path.ids.tolist() for path in paths] == value_of(facts[f"rnnt_ids_{tag}"])
        assert [path.places.tolist() for path in paths] == value_of(facts[f"rnnt_timestep_{tag}"])
        assert [head.read(path).text for path in paths] == value_of(facts[f"rnnt_{tag}"])
        found += 1
    assert found


@pytest.mark.parametrize("name", NEMO_MODELS)
def test_files_are_written_and_read_again(name: str, tmp_path: Path) -> None:
    model = load_model(fixture_file(f"{name}/adapted.nemo"))
    for path in (tmp_path / "again.nemo", tmp_path / "folder"):
        save_model(model, path)
        again = load_model(path)
        assert again.fingerprint() == model.fingerprint()
        assert again.adapters.names == model.adapters.names
        assert again.transcribe(*recordings(0)) == model.transcribe(*recordings(0))


@pytest.mark.parametrize("name", [name for name in NEMO_MODELS if "hybrid" in name])
def test_either_head_of_a_hybrid_recognises(name: str, tmp_path: Path) -> None:
    model = load_model(fixture_file(f"{name}/model.nemo"))
    facts = json.loads(fixture_file(f"{name}/ref_base.json").read_text("utf-8"))
    path = fixture_file("wavs/w0.wav")
    (first,), (second,) = transcribe(model, path), transcribe(model, path, decoder="ctc")
    assert first.text.strip() == value_of(facts["rnnt_0"])[0].strip()
    assert second.text.strip() == value_of(facts["ctc_0"])[0].strip()
    assert first.text != second.text
    assert transcribe(model, path, decoder="rnnt") == [first]
    with pytest.raises(UsageError, match=r"decoder is 'aed', and model has no such head. Allowed: rnnt, ctc."):
        Transcriber(model, decoder="aed")


# Models of our own


def transducer(durations: tuple[int, ...] = (), *, hybrid: bool = False, stateless: bool = False) -> AsrModel:
    """A small FastConformer with a transducer's heads, whose random weights say much."""
    classes, width = len(LABELS), 32
    settings: dict[str, dict[str, Any]] = {
        "preprocessor": {"dither": 0.0},
        "encoder": {
            "width": width,
            "layers": 2,
            "heads": 4,
            "kernel_size": 5,
            "subsampling": "dw_striding",
            "subsampling_channels": 32,
            "scale_input": False,
        },
        "decoder": {"kind": "rnnt", "classes": classes, "width": 24},
        "joint": {
            "encoder_width": width, "prediction_width": 24, "width": 20, "classes": classes, "durations": durations
        },
        "transducer": {"ctc_weight": 0.3} if hybrid else {},
    }  # fmt: skip
    if stateless:
        settings["decoder"] = {"kind": "stateless", "classes": classes, "width": 24, "context": 2}
    if hybrid:
        settings["ctc_decoder"] = {"width": width, "classes": classes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(settings=settings, tokenizer=CharTokenizer(LABELS), name="small")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.startswith(("decoder.", "joint.")):
                    parameter.mul_(3.0)
            model.joint.joint_net[-1].bias[classes] += 0.5  # type: ignore[union-attr,operator,index]
    return model


def add_trained(model: AsrModel, name: str, modules: str) -> None:
    adapter = model.adapters.add(name, LinearAdapter(dim=4), modules=modules)
    generator = torch.Generator().manual_seed(len(modules))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


MODELS: dict[str, dict[str, Any]] = {
    "rnnt": {},
    "tdt": {"durations": (0, 1, 2, 3)},
    "stateless": {"stateless": True},
    "hybrid": {"durations": (0, 1, 2), "hybrid": True},
}
MODULES = ("encoder", "decoder", "joint", "encoder+decoder+joint")


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_different_adapters_are_what_each_says_alone(name: str) -> None:
    model = transducer(**MODELS[name])
    for number, modules in enumerate(MODULES):
        add_trained(model, f"a{number}", modules)
    choices = [None, "a0", "a1", "a2", "a3", "a1+a2"]
    waveforms, lengths = batch(*[30_000 - 2_000 * row for row in range(len(choices))])
    before = model.transcribe(waveforms, lengths)
    with model.adapters.use(choices):
        mixed = model.transcribe(waveforms, lengths)
    for row, choice in enumerate(choices):
        with model.adapters.use(choice):
            alone = model.transcribe(waveforms[row : row + 1, : int(lengths[row])], lengths[row : row + 1])[0]
        assert (mixed[row].text, mixed[row].spans) == (alone.text, alone.spans), choice
        assert (mixed[row].score == pytest.approx(before[row].score, abs=1e-3)) == (choice is None), choice
    assert model.transcribe(waveforms, lengths) == before
    assert verify(model).passed


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_different_words_are_searched_with_their_own_adapters(name: str) -> None:
    """Adapters act in the prediction network and the joint, one for each row; some know words, and some do not."""
    model = transducer(**MODELS[name])
    for number, modules in enumerate(MODULES):
        add_trained(model, f"a{number}", modules)
    tokenizer = model.tokenizer
    text = "".join(LABELS[:6])
    ngram = build_ngram([tokenizer.encode(text), tokenizer.encode(text[::-1])], vocabulary_size=tokenizer.size, order=2)
    for adapter, weight in (("a1", 0.5), ("a2", 0.3), ("a3", 0.8)):
        words = WordPart(tokenizer_digest=tokenizer.digest(), ngram=ngram, weight=weight, token_bonus=0.5)
        model.adapters[adapter].words = words
    choices = [None, "a0", "a1", "a2", "a3", "a1+a2"]
    waveforms, lengths = batch(*[30_000 - 2_000 * row for row in range(len(choices))])
    greedy = model.transcribe(waveforms, lengths)
    options = DecodingOptions(alternatives=3)
    with model.adapters.use(choices):
        mixed = model.transcribe(waveforms, lengths)
        several = model.find_readings(waveforms, lengths, options)
    changed = 0
    for row, choice in enumerate(choices):
        part = waveforms[row : row + 1, : int(lengths[row])], lengths[row : row + 1]
        with model.adapters.use(choice):
            (alone,), (readings,) = model.transcribe(*part), model.find_readings(*part, options)
        assert (mixed[row].text, mixed[row].spans) == (alone.text, alone.spans), choice
        found, expected = (
            read_best(model.head, [each.alignment for each in own], 3) for own in (several[row], readings)
        )
        assert [each.text for each in found] == [each.text for each in expected], choice
        changed += mixed[row].text != greedy[row].text
    assert mixed[0] == greedy[0]
    assert changed >= 3


@pytest.mark.parametrize("modules", MODULES)
def test_a_fresh_adapter_changes_nothing(modules: str) -> None:
    model = transducer(**MODELS["hybrid"])
    waveforms, lengths = batch(20_000, 30_000)
    before = model.transcribe(waveforms, lengths)
    model.adapters.add("fresh", LinearAdapter(dim=4), modules=modules)
    with model.adapters.use("fresh"):
        assert model.transcribe(waveforms, lengths) == before


def test_the_ctc_head_of_a_hybrid_takes_adapters(tmp_path: Path) -> None:
    """NeMo cannot: its files hold none, and say so."""
    model = transducer(**MODELS["hybrid"])
    add_trained(model, "head", "ctc_decoder")
    model.head_name = "ctc"
    waveforms, lengths = batch(30_000)
    base = model(waveforms, lengths)[0]
    with model.adapters.use("head"):
        assert not torch.equal(model(waveforms, lengths)[0], base)
    with pytest.raises(CheckpointError, match="ctc_decoder"):
        save_model(model, tmp_path / "x.nemo")
    model.adapters.save("head", tmp_path / "head")
    model.adapters.remove("head")
    assert model.adapters.load(tmp_path / "head").points == ["ctc_decoder.input"]
    with pytest.raises(AdapterError, match="ctc_decoder"):
        transducer().adapters.add("head", LinearAdapter(), modules="ctc_decoder")


@pytest.mark.parametrize("name", MODELS)
def test_windows_of_a_long_recording_are_joined(name: str, tmp_path: Path) -> None:
    model = transducer(**MODELS[name])
    path = tmp_path / "long.wav"
    soundfile.write(path, batch(160_000)[0][0].numpy(), 16_000, subtype="FLOAT")
    (whole,) = transcribe(model, path, window=None)
    (joined,) = Transcriber(model, window=4.0, overlap=1.5).transcribe(path)
    assert whole.text == model.transcribe(*batch(160_000))[0].text
    assert len(joined.ids) == len(joined.spans) > 0
    assert joined.spans == tuple(sorted(joined.spans))
    frames = 160_000 / 16_000 / model.seconds_per_frame
    assert joined.spans[-1][1] <= frames + 1


def parameters_of(model: AsrModel) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.adapters["mine"].parameters()]


@pytest.mark.parametrize("name", ["rnnt", "hybrid"])
@pytest.mark.parametrize("modules", MODULES)
def test_adapters_are_trained_wherever_they_are(name: str, modules: str, tmp_path: Path) -> None:
    """In one process and in two, with the frozen part below them kept and without: every parameter moves."""
    outcomes = {}
    for way, overrides in {
        "plain": ["compute_processes=1"],
        "two processes": ["compute_processes=2"],
        "cached": ["compute_processes=1", "model.prefix_cache.enabled=true"],
    }.items():
        model = transducer(**MODELS[name])
        frozen = {key: tensor.clone() for key, tensor in model.base_state_dict().items()}
        settings = settings_for(
            tmp_path / way,
            f"model.adapter.adapter_module_name={modules}",
            "model.adapter.linear.dim=4",
            "trainer.max_steps=3",
            "model.optim.lr=0.01",
            "model.base_dropout=false",
            *overrides,
        )
        result = run_training(settings, model=model, reporter=QUIET)
        assert result.steps == 3
        assert model.head_name == "rnnt"
        assert all(torch.equal(frozen[key], tensor) for key, tensor in model.base_state_dict().items())
        outcomes[way] = parameters_of(model)
        fresh = transducer(**MODELS[name])
        fresh.adapters.load(result.best)
        waveforms, lengths = batch(30_000)
        with fresh.adapters.use("mine"):
            fresh.transcribe(waveforms, lengths)
    for way in ("two processes", "cached"):
        for one, other in zip(outcomes[way], outcomes["plain"], strict=True):
            assert torch.allclose(one, other, atol=2e-3), way


@pytest.mark.parametrize("name", MODELS)
def test_the_server_decodes_with_the_adapters_of_each_request(name: str, tmp_path: Path) -> None:
    model = transducer(**MODELS[name])
    waveform = batch(60_000)[0][0]
    expected: dict[str | None, str] = {None: model.transcribe(waveform[None], torch.tensor([60_000]))[0].text}
    for number, modules in enumerate(MODULES):
        add_trained(model, f"a{number}", modules)
        with model.adapters.use(f"a{number}"):
            expected[f"a{number}"] = model.transcribe(waveform[None], torch.tensor([60_000]))[0].text
        model.adapters.save(f"a{number}", tmp_path / f"a{number}")
        model.adapters.remove(f"a{number}")
    assert len(set(expected.values())) >= 4
    with Engine(model, EngineSettings(max_wait=0.0, threads=1)) as engine:
        store = AdapterStore(model, tmp_path, lock=engine.lock, poll_seconds=0)
        for choice, text in expected.items():
            with store.acquire(choice) as lease:
                found = run(recognise(engine, waveform.numpy(), lease=lease))
            assert found.hypotheses[0].text == text, choice
            settings = StreamSettings(
                chunk=4.0,
                left=0.0,
                right=0.0,
                normalisation="buffer",
                interim=False,
                endpointing=Endpointing(stop_history=0),
            )
            stream = Stream(engine, store.acquire(choice), settings=settings)
            whole = run(stream_all(stream, waveform.numpy()))
            assert " ".join(final.text for final in finals(whole)).split() == text.split(), choice
        store.close()


async def stream_all(stream: Stream, samples: Any) -> list[Any]:
    with stream:
        return [*await stream.push(samples), *await stream.finish()]
