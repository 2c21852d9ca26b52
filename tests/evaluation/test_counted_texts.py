"""Texts as they are counted, choices that are told apart, and what of an evaluation is shown."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
import soundfile

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.data.vocabulary import reference_text
from overtone.errors import AdapterError
from overtone.evaluation.evaluate import evaluate
from overtone.evaluation.report.audio import AudioBudget
from overtone.evaluation.report.page import sections
from overtone.evaluation.report.writer import base_first
from overtone.inference.transcribe import transcribe
from overtone.tokenizers import CharTokenizer, SentencePieceTokenizer
from overtone.wer import TextProcessing
from support.command_line import AUDIO
from support.small_models import add_trained, small_model
from support.tone_model import SAMPLE_RATE, ToneModel, spoken


@pytest.fixture(scope="module")
def folding() -> SentencePieceTokenizer:
    """A tokenizer that folds case, as NeMo's own script makes them."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["please enter your password", "abc def ghi", "groß"] * 20),
        model_writer=model,
        vocab_size=40,
        model_type="bpe",
        normalization_rule_name="nmt_nfkc_cf",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())


def write_manifest(folder: Path, *pairs: tuple[str, str], name: str = "m.json") -> Path:
    lines = []
    for number, (said, meant) in enumerate(pairs):
        soundfile.write(folder / f"{number}.wav", spoken(said), SAMPLE_RATE)
        lines.append(json.dumps({"audio_filepath": f"{number}.wav", "text": meant}) + "\n")
    (folder / name).write_text("".join(lines))
    return folder / name


def test_references_have_the_form_that_the_tokenizer_writes(folding: SentencePieceTokenizer) -> None:
    assert reference_text(folding, "Please ENTER  your Password") == "please enter your password"
    assert reference_text(folding, "GROSS") == "gross"
    assert reference_text(folding, "Please Ж enter") == "please Ж enter"
    assert reference_text(CharTokenizer(list(" ab")), "a b c Ab") == "a b c Ab"


def test_a_folded_reference_is_no_error(folding: SentencePieceTokenizer, tmp_path: Path) -> None:
    model = ToneModel()
    manifest = write_manifest(tmp_path, ("abc fed", "ABC Fed"))
    (plain,) = evaluate(model, manifest).results
    model.tokenizer = folding  # type: ignore[assignment]  # the head still writes letters
    (folded,) = evaluate(model, manifest).results
    assert (plain.wer, folded.wer) == (1.0, 0.0)
    utterance = folded.utterances[0]
    assert (utterance.reference, utterance.written) == ("abc fed", "ABC Fed")
    assert utterance.to_json()["written"] == "ABC Fed"


def test_what_the_model_cannot_write_is_told_with_counts(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, ("abc", "Abc."), ("fed", "fed"), ("cc", "zz"))
    evaluation = evaluate(ToneModel(), manifest)
    report = evaluation.unwritable[manifest]
    assert report.message.startswith("2 of 3 transcripts hold what the model cannot write: 'z' × 2, 'A' × 1, '.' × 1")
    (told,) = evaluation.to_json()["unwritable"]
    assert told == {
        "manifest": str(manifest),
        "utterances": 2,
        "total": 3,
        "characters": {"z": 2, "A": 1, ".": 1},
        "writable_in_lower_case": 0,
    }
    page = sections(evaluation, tmp_path / "report.html", AudioBudget(players=0, bytes=0))
    assert "2 of 3 transcripts hold what the model cannot write" in page["facts"]
    assert "unwritable" not in evaluate(ToneModel(), write_manifest(tmp_path, ("abc", "abc"))).to_json()


def test_texts_are_counted_alike_on_request(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, ("abc", "Abc."), ("fed", "F-e-d!"), ("cc", "two c"))
    processing = TextProcessing(do_lowercase=True, rm_punctuation=True, replace=(("two c", "cc"), ("F-e-d", "fed")))
    evaluation = evaluate(ToneModel(), manifest, text_processing=processing)
    assert evaluation.results[0].wer == 0.0
    assert not evaluation.unwritable
    assert evaluation.to_json()["counted"] == "in lower case, without punctuation, 'two c' as 'cc', 'F-e-d' as 'fed'"


@pytest.mark.parametrize(
    ("processing", "text", "counted"),
    [
        (TextProcessing(), "Don't,  STOP", "Don't, STOP"),
        (TextProcessing(do_lowercase=True), "Don't,  STOP", "don't, stop"),
        (TextProcessing(rm_punctuation=True), "Don't, “stop” - it’s well-known… 'no'", "Don't stop it’s well known no"),
        (TextProcessing(rm_punctuation=True, punctuation_marks=".,"), "Don't, stop. Now!", "Don't stop Now!"),
        (TextProcessing(replace=(("a", "b"), ("b", "c"))), "abc", "ccc"),
    ],
)
def test_text_processing(processing: TextProcessing, text: str, counted: str) -> None:
    assert processing(text) == counted


def test_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    model = small_model()
    folders = {}
    for place, seed in (("one/best", 1), ("two/best", 2), ("three", 3)):
        name = "b" if place == "three" else "a"
        add_trained(model, name, seed=seed)
        folders[place] = model.adapters.save(name, tmp_path / place)
        model.adapters.remove(name)
    shutil.copytree(folders["one/best"], tmp_path / "one/last")
    folders = {"one/best": folders.pop("one/best"), "one/last": tmp_path / "one/last", **folders}
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps({"audio_filepath": AUDIO[0], "text": "activated"}))
    results = evaluate(model, manifest, adapters=[None, *folders.values()]).results
    assert [(each.label, each.chain) for each in results] == [
        ("base", None),
        ("one/best", "a"),
        ("one/last", "a"),
        ("two/best", "a-2"),
        ("b", "b"),
    ]
    assert [each.to_json().get("source") for each in results] == [None, *map(str, folders.values())]
    assert results[1].utterances == results[2].utterances


def test_saved_adapters_are_named_by_their_path(tmp_path: Path) -> None:
    model = small_model()
    add_trained(model, "medical", seed=1)
    folder = model.adapters.save("medical", tmp_path / "runs" / "best")
    by_name = transcribe(model, AUDIO[0], adapter="medical")[0]
    model.adapters.remove("medical")
    assert transcribe(model, AUDIO[0], adapter=folder)[0] == by_name
    assert transcribe(model, AUDIO[0], adapter=[str(folder)])[0] == by_name
    assert model.adapters.names == ["medical"]
    with pytest.raises(AdapterError, match=r"not an adapter; expected .* Below it are .*runs/best"):
        transcribe(model, AUDIO[0], adapter=tmp_path)
    with pytest.raises(AdapterError, match="'medcal' is unknown"):
        transcribe(model, AUDIO[0], adapter="medcal")


def test_the_base_comes_first(tmp_path: Path) -> None:
    model = ToneModel()
    model.adapters.add("swap", LinearAdapter(dim=2))
    manifest = write_manifest(tmp_path, ("abc", "bac"))
    results = evaluate(model, manifest, adapters=["swap", None]).results
    assert [each.label for each in base_first(results)] == ["base", "swap"]
    assert results[0].difference is not None


def test_an_evaluation_is_shown_as_a_table(tmp_path: Path) -> None:
    model = ToneModel()
    model.adapters.add("swap", LinearAdapter(dim=2))
    evaluation = evaluate(model, write_manifest(tmp_path, ("abc", "bac"), ("fed", "f<d")), adapters=[None, "swap"])
    head, names, base, swap, note = str(evaluation).splitlines()
    assert repr(evaluation) == str(evaluation)
    assert head == "tones: base float32, adapters float32, on cpu"
    assert names.split()[:2] == ["Manifest", "Adapter"]
    assert base.split()[1:3] == ["base", "100.00"]
    assert swap.split()[1:4] == ["swap", "50.00", "-50.00"]
    assert note.startswith("1 of 2 transcripts hold what the model cannot write")
    assert "<td>swap</td><td>50.00</td>" in evaluation._repr_html_()
    rows = evaluation.rows()
    assert [(row["adapter"], row["text"], row["wer"]) for row in rows] == [
        ("base", "bac", 1.0), ("base", "f<d", 1.0), ("swap", "bac", 0.0), ("swap", "f<d", 1.0)
    ]  # fmt: skip
    assert dataclasses.asdict(evaluation.results[1].utterances[0])["wer"] == 0.0
    heard = evaluation.results[0].utterances[1]._repr_html_()
    assert '<audio controls preload="metadata" src="data:audio/' in heard
    assert "<td>f&lt;d</td>" in heard


def test_adapters_are_shown_as_a_table() -> None:
    model = small_model()
    assert repr(model.adapters) == "No adapters."
    model.adapters.add("medical", "linear")
    model.adapters.add("legal", "lora", layers="last:1")
    model.adapters.file_choice = ("legal",)
    lines = [line.split() for line in repr(model.adapters).splitlines()]
    assert lines[0] == ["adapter", "kind", "modules", "layers", "parameters", "use"]
    assert lines[1][:4] == ["medical", "linear", "encoder", "all"]
    assert (lines[2][:4], lines[2][-1]) == (["legal", "lora", "encoder", "last:1"], "@file")
    with pytest.raises(AdapterError, match=r"kind 'liner' is unknown. Did you mean 'linear'\?"):
        model.adapters.add("x", "liner")
