"""Evaluation: counts that add up, intervals, differences to the base, confusions, stable JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.errors import AdapterError, DataError, UsageError
from overtone.evaluation.evaluate import evaluate
from overtone.evaluation.results import SCHEMA, Difference, Evaluation
from overtone.inference.transcribe import transcribe
from overtone.wer import ErrorCounts
from support.tone_model import SAMPLE_RATE, ToneModel, spoken

SPOKEN_AND_MEANT = [
    ("abc fed", "bac fed"),  # the base hears the first word wrongly, `swap` rightly
    ("aa cc", "bb cc"),
    ("ac", "bc"),
    ("fed deed", "fed deed"),
    ("cede", "cede"),
    ("abe fee", "abe fee"),  # here it is the other way round
    ("hed", ""),  # nothing is meant
    ("cc dd ee", "cc ee"),
    ("cc", "cc dd"),
]


@pytest.fixture
def model() -> ToneModel:
    model = ToneModel()
    model.adapters.add("swap", LinearAdapter(dim=2))
    model.adapters.add("quiet", LinearAdapter(dim=2))
    return model


def write_manifest(folder: Path, pairs: list[tuple[str, str | None]], name: str = "test.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (said, meant) in enumerate(pairs):
        samples = spoken(said)
        soundfile.write(folder / f"{number}.wav", samples, SAMPLE_RATE)
        entry = {"audio_filepath": f"{number}.wav", "duration": len(samples) / SAMPLE_RATE, "text": meant}
        lines.append(json.dumps(entry) + "\n")
    (folder / name).write_text("".join(lines))
    return folder / name


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "tones", SPOKEN_AND_MEANT)


@pytest.fixture
def evaluation(model: ToneModel, manifest: Path) -> Evaluation:
    return evaluate(model, manifest, adapters=[None, "swap"])


def test_gain_is_set_against_damage(model: ToneModel, tmp_path: Path) -> None:
    domain = write_manifest(tmp_path / "domain", SPOKEN_AND_MEANT[:3])
    general = write_manifest(tmp_path / "general", SPOKEN_AND_MEANT[3:6])
    found = evaluate(model, domain, adapters=[None, "swap"], general=general)
    (balance,) = found.balances()
    rates = {(own.manifest, own.adapter): own.wer for own in found.results}
    assert balance.gain == rates[domain, None] - rates[domain, "swap"] > 0
    assert balance.damage == rates[general, "swap"] - rates[general, None] > 0
    assert found.to_json()["balance"] == [balance.to_json()]
    assert "balance" not in evaluate(model, domain, adapters=[None, "swap"]).to_json()
    assert evaluate(model, domain, adapters=["swap"], general=general).balances() == []
    with pytest.raises(UsageError, match="give it once"):
        evaluate(model, domain, adapters=[None], general=domain)


def test_counts_add_up_over_the_manifest(evaluation: Evaluation) -> None:
    base, swap = evaluation.results
    assert base.words == ErrorCounts(substitutions=3, deletions=1, insertions=2, hits=10)
    assert base.wer == 6 / 14
    assert swap.words == ErrorCounts(substitutions=1, deletions=1, insertions=2, hits=12)
    assert swap.wer == 4 / 14
    assert swap.characters.errors < base.characters.errors
    assert base.label == "base"
    assert base.name == "tones/test"
    assert sum(utterance.words.errors for utterance in base.utterances) == base.words.errors


def test_intervals_hold_the_rate(evaluation: Evaluation) -> None:
    for result in evaluation.results:
        assert 0.0 <= result.wer_interval[0] < result.wer < result.wer_interval[1]
        assert 0.0 <= result.cer_interval[0] < result.cer < result.cer_interval[1]


def test_the_difference_is_paired_with_the_base(evaluation: Evaluation) -> None:
    base, swap = evaluation.results
    assert base.difference is None
    assert swap.difference is not None
    assert swap.difference.wer == pytest.approx(-2 / 14)
    assert (swap.difference.better, swap.difference.worse, swap.difference.same) == (3, 1, 5)
    assert swap.difference.interval[0] < swap.difference.wer < swap.difference.interval[1]
    assert swap.difference.verdict == "no clear difference"


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.2, -0.1), "better"),
        ((0.1, 0.2), "worse"),
        ((-0.1, 0.1), "no clear difference"),
        ((0.0, 0.0), "no clear difference"),
    ],
)
def test_verdicts(interval: tuple[float, float], verdict: str) -> None:
    assert Difference(wer=sum(interval) / 2, interval=interval, better=0, worse=0, same=0).verdict == verdict


def test_an_adapter_that_changes_nothing_differs_by_nothing(model: ToneModel, manifest: Path) -> None:
    _, quiet = evaluate(model, manifest, adapters=[None, "quiet"]).results
    assert quiet.difference == Difference(wer=0.0, interval=(0.0, 0.0), better=0, worse=0, same=9)


def test_words_heard_for_nothing_count_as_insertions(evaluation: Evaluation) -> None:
    silent = evaluation.results[0].utterances[6]
    assert silent.reference == ""
    assert silent.words == ErrorCounts(substitutions=0, deletions=0, insertions=1, hits=0)
    assert silent.words.rate == 1.0


def test_confusions_are_counted_and_sorted(model: ToneModel, tmp_path: Path) -> None:
    manifest = write_manifest(
        tmp_path, [("aa cc", "bb cc"), ("aa", "bb"), ("dd ee", "dd"), ("cc", "cc hh"), ("c", "d")]
    )
    confusions = evaluate(model, manifest).results[0].confusions
    found = {kind: [(c.reference, c.hypothesis, c.count) for c in kinds] for kind, kinds in confusions.items()}
    assert found == {
        "substitute": [("bb", "aa", 2), ("d", "c", 1)],
        "delete": [("hh", None, 1)],
        "insert": [(None, "ee", 1)],
    }


def test_each_adapter_meets_each_manifest(model: ToneModel, manifest: Path, tmp_path: Path) -> None:
    other = write_manifest(tmp_path / "other", [("cc", "cc")])
    results = evaluate(model, [manifest, other], adapters=[None, "swap+quiet", None]).results
    assert [(result.name, result.label) for result in results] == [
        ("tones/test", "base"),
        ("tones/test", "swap+quiet"),
        ("other/test", "base"),
        ("other/test", "swap+quiet"),
    ]


def test_without_the_base_there_is_no_difference(model: ToneModel, manifest: Path) -> None:
    (result,) = evaluate(model, manifest, adapters=["swap"]).results
    assert result.difference is None


def test_what_the_file_enabled_is_named(model: ToneModel, manifest: Path) -> None:
    model.adapters.file_choice = ("swap",)
    (result,) = evaluate(model, manifest, adapters=["@file"]).results
    assert (result.adapter, result.chain, result.label) == ("@file", "swap", "@file (swap)")
    assert result.wer == 4 / 14


def test_texts_are_those_of_transcribe(model: ToneModel, manifest: Path, evaluation: Evaluation) -> None:
    texts = [hypothesis.text for hypothesis in transcribe(model, manifest, adapter="swap")]
    assert [utterance.hypothesis for utterance in evaluation.results[1].utterances] == texts


def test_json_has_stable_keys(evaluation: Evaluation) -> None:
    data = json.loads(json.dumps(evaluation.to_json()))
    assert data["schema"] == SCHEMA == "overtone.evaluation/1"
    assert list(data) == ["schema", "created", "model", "numbers", "intervals", "adapters", "results"]
    assert data["numbers"] == {"base": "float32", "adapters": "float32", "device": "cpu"}
    assert list(data["results"][1]) == [
        "adapter", "chain", "manifest", "name", "wer", "wer_interval", "cer", "cer_interval", "word_errors",
        "character_errors", "difference", "audio_seconds", "wall_seconds", "real_time_factor", "confusions",
        "utterances",
    ]  # fmt: skip
    assert data["results"][0]["difference"] is None
    utterance = data["results"][1]["utterances"][0]
    assert (utterance["text"], utterance["pred_text"], utterance["line"]) == ("bac fed", "bac fed", 1)
    assert data["results"][1]["word_errors"]["reference_length"] == 14


def test_the_same_seed_gives_the_same_numbers(model: ToneModel, manifest: Path, evaluation: Evaluation) -> None:
    again = evaluate(model, manifest, adapters=[None, "swap"])
    assert [result.wer_interval for result in again.results] == [result.wer_interval for result in evaluation.results]


def test_compute_dtype_is_told_and_returns(model: ToneModel, manifest: Path) -> None:
    evaluation = evaluate(model, manifest, compute_dtype="bfloat16")
    assert evaluation.numbers == "base bfloat16, adapters float32, on cpu"
    assert model.compute_dtype == "float32"


def test_progress_covers_all_passes(model: ToneModel, manifest: Path) -> None:
    seen: list[tuple[float, float]] = []
    evaluate(model, manifest, adapters=[None, "swap"], progress=lambda *now: seen.append(now))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == pytest.approx(seen[-1][1])


def test_bad_input_is_one_error_with_its_line(model: ToneModel, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, [("cc", "cc"), ("dd", None)])
    with pytest.raises(DataError, match=r"test.jsonl:2: the key 'text' is missing"):
        evaluate(model, manifest)
    manifest = write_manifest(tmp_path, [("cc", "cc"), ("dd", "dd")])
    (tmp_path / "1.wav").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"test.jsonl:2: .*1.wav"):
        evaluate(model, manifest)
    with pytest.raises(AdapterError, match="swop"):
        evaluate(model, manifest, adapters=["swop"])
    with pytest.raises(UsageError, match="Nothing to evaluate"):
        evaluate(model, [])


def test_a_use_block_and_a_missing_adapter_contradict_each_other(model: ToneModel, manifest: Path) -> None:
    """Neither silently wins: a list that names the base is the way to ask for it inside a block."""
    path = manifest.parent / "0.wav"
    with model.adapters.use("swap"):
        for work in (lambda: transcribe(model, path), lambda: evaluate(model, manifest)):
            with pytest.raises(UsageError, match=r"A `use` block has swap act, and `adapter` was not given"):
                work()
        assert transcribe(model, path, adapter="swap")[0].text == "bac fed"
        assert transcribe(model, [path], adapter=[None])[0].text == "abc fed"
        assert evaluate(model, manifest, adapters=[None]).results[0].wer == 6 / 14
    with model.adapters.use(None):
        assert transcribe(model, path)[0].text == "abc fed"
        assert evaluate(model, manifest).results[0].wer == 6 / 14
