"""Adapters with a vocabulary of their own: one batch of several vocabularies, and a base that stays as it was."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml

from overtone.adapters.adapter_set import AdapterSet
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.storage import read_folder
from overtone.adapters.words import WordPart
from overtone.checkpoints.load import load_model, save_model
from overtone.decoding.phrase_boost import Boost
from overtone.errors import AdapterError, OvertoneError, UsageError
from overtone.inference.transcribe import Transcriber
from overtone.models.asr_model import AsrModel
from overtone.tokenizers import AggregateTokenizer, CharTokenizer
from support.families import LABELS as BASE
from support.families import batch
from support.own_vocabulary import LABELS, LENGTHS, MODELS, SECOND, add_own, emissions, texts

MIXED = ["own", None, "other", "plain"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> AsrModel:
    """A model of every head with two adapters of own vocabularies and a plain one."""
    made = MODELS[request.param]()
    add_own(made, "own", LABELS)
    add_own(made, "other", SECOND, modules="encoder+decoder", seed=2)
    made.adapters.add("plain", LinearAdapter(dim=4))
    return made


def test_the_base_is_bit_for_bit_what_it_was(model: AsrModel) -> None:
    name = model.name
    base = emissions(model)
    before = {key: tensor.clone() for key, tensor in model.base_state_dict().items()}
    mixed = emissions(model, MIXED)
    assert torch.equal(mixed[1, :, : base.size(-1)], base[1])
    assert torch.equal(mixed[3, :, : base.size(-1)], base[3])
    model.train_only("own")
    model.head_name, head_name = list(model.heads)[-1], model.head_name  # both of a hybrid
    with model.adapters.use("own"):
        head = model.head
        found, frames = model(*batch(*LENGTHS))
        head.loss(found, frames, torch.ones(4, 2, dtype=torch.int64), torch.full((4,), 2)).backward()
    optimiser = torch.optim.SGD(model.adapters.parameters_of("own"), lr=0.1)
    optimiser.step()
    model.eval().head_name = head_name
    own = model.adapters["own"].vocabulary
    assert own is not None
    assert all(parameter.grad is not None for parameter in own.parameters())
    assert all(parameter.grad is None for parameter in model.base_parameters())
    assert torch.equal(emissions(model), base)
    for each in ("own", "other", "plain"):
        model.adapters.remove(each)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert model.name == name


def test_rows_of_several_vocabularies_decode_in_one_batch(model: AsrModel) -> None:
    mixed, found = emissions(model, MIXED), texts(model, MIXED)
    for row, choice in enumerate(MIXED):
        alone = emissions(model, choice, rows=slice(row, row + 1))[0]
        torch.testing.assert_close(mixed[row, :, : alone.size(-1)], alone, rtol=0, atol=1e-5)
        assert found[row] == texts(model, choice, rows=slice(row, row + 1))[0]
    assert set(found[0]) <= set(LABELS)
    assert found[0]
    assert set(found[2]) <= set(SECOND)
    assert set(found[1]) <= set(BASE)


def test_every_head_of_a_hybrid_writes_the_new_tokens() -> None:
    model = MODELS["hybrid"]()
    add_own(model, "own", LABELS)
    for head in ("rnnt", "ctc"):
        with model.decoding_with(head):
            mixed = texts(model, ["own", None, "own", None])
            assert mixed[0] == texts(model, "own", rows=slice(0, 1))[0]
            assert mixed[1] == texts(model, None, rows=slice(1, 2))[0]
            assert set(mixed[0]) <= set(LABELS)


def test_a_beam_search_with_words_writes_the_tokens_of_each_row(model: AsrModel) -> None:
    waveforms, lengths = batch(*LENGTHS)
    paths = [(row[:length].numpy(), 16_000) for row, length in zip(waveforms, lengths, strict=True)]
    transcriber = Transcriber(model, beam=4, phrases=["ace"])
    together = [found.text for found in transcriber.transcribe(paths, adapter=["own", None, None, "own"])]
    for row, choice in ((0, "own"), (1, None)):
        assert (
            together[row]
            == Transcriber(model, beam=4, phrases=["ace"]).transcribe([paths[row]], adapter=choice)[0].text
        )
    with pytest.raises(UsageError, match="vocabulary of 'other'"):
        transcriber.transcribe(paths[:1], adapter="other")


def test_known_tokens_begin_with_the_values_of_the_base(model: AsrModel) -> None:
    adapter = model.adapters.add("fresh", LinearAdapter(dim=4), tokenizer=CharTokenizer(["z", "C", "a", " "]))
    own = adapter.vocabulary
    assert own is not None
    assert own.reused == 3  # a, the space, and C as the base's c
    with torch.no_grad(), model.adapters.use("fresh"):
        new = model.head.scores(*model(*batch(*LENGTHS)))
    with torch.no_grad():
        base = model.head.scores(*model(*batch(*LENGTHS)))
    pick = [2, 3, 1, 4]  # a, space, C, blank
    before = [BASE.index("a"), BASE.index(" "), BASE.index("c"), len(BASE)]
    ratio = (new[..., pick] - base[..., before])[0, 0]
    assert float((ratio - ratio[0]).abs().max()) < 1e-4  # but for the sum over all tokens
    unlike = model.adapters.add("unlike", LinearAdapter(dim=4), tokenizer=CharTokenizer(list("ace")), reuse=False)
    assert unlike.vocabulary is not None
    assert unlike.vocabulary.reused == 0


def test_a_folder_brings_the_vocabulary_along(model: AsrModel, tmp_path: Path) -> None:
    model.adapters.save("own", tmp_path / "own")
    written = yaml.safe_load((tmp_path / "own/adapter.yaml").read_text())
    assert written["vocabulary"]["digest"] == CharTokenizer(LABELS).digest()
    assert json.loads((tmp_path / "own/labels.json").read_text()) == LABELS
    other = copy.deepcopy(model)
    other.adapters.remove("own")
    again = other.adapters.load(tmp_path / "own")
    assert again.digest() == model.adapters["own"].digest()
    frozen = other.adapters.make_frozen("frozen", read_folder(tmp_path / "own", other.adapters.identity()))
    other.adapters.insert(frozen)
    for name in ("own", "frozen"):
        assert torch.equal(emissions(other, name), emissions(model, "own"))
    copied = other.adapters.copy("own", "copied")
    assert copied.digest() == again.digest()
    save_model(model, tmp_path / "whole")
    whole = load_model(tmp_path / "whole")
    assert texts(whole, MIXED) == texts(model, MIXED)
    model.adapters["own"].vocabulary = None
    model.adapters.save("own", tmp_path / "own", overwrite=True)
    assert not (tmp_path / "own/labels.json").exists()


def damage(folder: Path, how: str) -> None:
    labels = folder / "labels.json"
    if how == "gone":
        labels.unlink()
    elif how == "other":
        labels.write_text(json.dumps(LABELS[:-1]))
    elif how == "text":
        labels.write_text("no json")
    elif how == "numbers":
        labels.write_text("[1, 2]")
    else:
        text = (folder / "adapter.yaml").read_text()
        (folder / "adapter.yaml").write_text(text.replace("labels.json", "../labels.json"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("gone", "labels.json cannot be read"),
        ("other", "not the tokenizer of the adapter"),
        ("text", "damaged"),
        ("numbers", "no JSON list of labels"),
        ("elsewhere", "'vocabulary' is malformed"),
    ],
)
def test_a_damaged_tokenizer_is_refused(how: str, message: str, tmp_path: Path) -> None:
    model = MODELS["ctc"]()
    add_own(model, "own", LABELS)
    model.adapters.save("own", tmp_path / "own")
    damage(tmp_path / "own", how)
    with pytest.raises(AdapterError, match=message):
        model.adapters.load(tmp_path / "own", name="again")


def test_adapters_over_other_tokens_are_no_chain(model: AsrModel) -> None:
    model.adapters.add("head", LinearAdapter(dim=2), modules="decoder")
    words = WordPart(tokenizer_digest=model.tokenizer.digest(), boosts=(Boost(phrases=("ace",), boost=5.0),))
    model.adapters.add_words("words", words)
    for chain, message in (
        ("own+other", "a vocabulary of their own each"),
        ("own+head", "acts in the decoder of the base"),
        ("words+own", "word part over the base's tokens"),
    ):
        with pytest.raises(AdapterError, match=message), model.adapters.use(["plain", chain]):
            pass
    assert texts(model, ["own+plain", "plain", "plain+own", None])


def test_what_cannot_be_an_adapters_tokenizer_is_refused(tmp_path: Path) -> None:
    model = MODELS["ctc"]()
    made = model.adapters.add("many", LinearAdapter(dim=2), tokenizer=CharTokenizer(["a"]))
    assert made.vocabulary is not None
    made.vocabulary.tokenizer = AggregateTokenizer.__new__(AggregateTokenizer)
    with pytest.raises(OvertoneError, match="no single file"):
        model.adapters.save("many", tmp_path / "many")
    alone = AdapterSet(torch.nn.Linear(1, 1))
    with pytest.raises(AdapterError, match="belongs to no model"):
        alone.heads_for(CharTokenizer(["a"]))
