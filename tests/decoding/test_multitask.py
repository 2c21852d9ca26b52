"""Attention decoders: beams beside NeMo, words, places and times of tokens, stretches of a recording."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from overtone.checkpoints.load import load_model
from overtone.decoding.decoder import BeamSettings, DecodingOptions
from overtone.decoding.fusion import NO_WORDS, Words
from overtone.decoding.multitask import MultitaskHead, place_tokens, read_times
from overtone.decoding.phrase_boost import Boost, BoostTree
from overtone.decoding.transducer_path import TransducerPath
from overtone.errors import UsageError
from overtone.inference.transcribe import Transcriber
from overtone.models.asr_model import AsrModel
from support.fixtures import fixture_file, recordings

NAMES = ("canary_aed", "canary2_aed")
SEARCHES = {
    "beam1": BeamSettings(width=1),
    "beam2": BeamSettings(width=2),
    "beam4": BeamSettings(width=4),
    "beam4_lp1": BeamSettings(width=4, length_penalty=1.0),
}


def model_of(name: str, file: str = "model") -> tuple[AsrModel, MultitaskHead]:
    model = load_model(fixture_file(f"{name}/{file}.nemo"))
    head = model.heads["aed"]
    assert isinstance(head, MultitaskHead)
    return model, head


def ids_of(found: Any) -> list[int]:
    return found.alignment.ids.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_beams_and_their_scores_are_those_of_nemo(name: str) -> None:
    model, head = model_of(name)
    facts = json.loads(fixture_file(f"{name}/ref_base.json").read_text("utf-8"))
    for row in (0, 1):
        with torch.no_grad():
            states, frames = model(*recordings(row))
        for key, settings in SEARCHES.items():
            ((found, *_),) = head.search(states, frames, [NO_WORDS], settings, 1)
            ids, text = facts[str(row)][key][0]
            assert (ids_of(found), head.read(found.alignment).text) == (ids, text), key
        (found_all,) = head.search(states, frames, [NO_WORDS], BeamSettings(width=3), 3)
        expected = facts[str(row)]["beam3_nbest"][0]
        assert [ids_of(found) for found in found_all] == [ids for ids, _, _ in expected]
        assert [found.rank for found in found_all] == pytest.approx([score for _, score, _ in expected], abs=1e-3)


@pytest.mark.parametrize(("name", "combo"), [("canary_aed", "tdec"), ("canary_aed", "tdmha"), ("canary2_aed", "tdec")])
def test_beams_with_adapters_in_the_decoder_are_those_of_nemo(name: str, combo: str) -> None:
    model, head = model_of(name, "adapted")
    facts = json.loads(fixture_file(f"{name}/ref_{combo}.json").read_text("utf-8"))
    with torch.no_grad(), model.adapters.use(combo):
        states, frames = model(*recordings(0))
        ((found,),) = head.search(states, frames, [NO_WORDS], SEARCHES["beam1"], 1)
    assert ids_of(found) == facts["0"]["beam1"][0][0]


def test_rows_of_a_beam_come_out_as_alone() -> None:
    model, head = model_of("canary2_aed", "adapted")
    choices, tasks = ["tdec", None, "an4+tdec"], ["en", "en>de,pnc=no", None]
    settings = BeamSettings(width=3)
    with torch.no_grad(), model.adapters.use(choices), model.speaking(tasks):
        mixed = head.search(*model(*recordings()), [NO_WORDS] * 3, settings, 3)
    for row, (choice, task) in enumerate(zip(choices, tasks, strict=True)):
        with torch.no_grad(), model.adapters.use(choice), model.speaking(task):
            (alone,) = head.search(*model(*recordings(row)), [NO_WORDS], settings, 3)
        assert list(map(ids_of, alone)) == list(map(ids_of, mixed[row]))


def test_a_boosted_phrase_is_heard_and_others_keep_their_reading() -> None:
    model, head = model_of("canary_aed")
    tree = BoostTree([Boost(phrases=("ribbu",), boost=60.0)], model.tokenizer)
    with torch.no_grad():
        states, frames = model(*recordings())
        plain = head.search(states, frames, [NO_WORDS] * 3, SEARCHES["beam4"], 1)
        found = head.search(states, frames, [NO_WORDS, Words(boosts=(tree,)), NO_WORDS], SEARCHES["beam4"], 1)
    texts = [[head.read(own[0].alignment).text for own in each] for each in (plain, found)]
    assert "ribbu" in texts[1][1]
    assert "ribbu" not in texts[0][1]
    assert texts[0][::2] == texts[1][::2]


def test_the_transcriber_searches_and_gives_alternatives() -> None:
    model, _ = model_of("canary_aed")
    facts = json.loads(fixture_file("canary_aed/ref_base.json").read_text("utf-8"))
    (found,) = Transcriber(model, beam=3, alternatives=3).stream(fixture_file("wavs/w0.wav"))
    assert [each.text for each in found.alternatives] == [text for _, _, text in facts["0"]["beam3_nbest"][0]]


def test_tokens_are_placed_where_the_decoder_listened_in_order() -> None:
    weights = np.full((3, 6), 0.01)
    weights[0, 1] = weights[1, 4] = weights[2, 3] = 0.5
    weights[2, 5] = 0.4
    assert place_tokens(weights).tolist() == [1, 4, 5]
    assert place_tokens(np.zeros((0, 6))).tolist() == []
    assert place_tokens(np.zeros((2, 0))).tolist() == [0, 0]


def test_tokens_of_times_give_words_their_times_and_are_no_text() -> None:
    _, head = model_of("canary2_aed")
    times = head.prompts.times
    token_of = {frame: token for token, frame in times.items()}
    word, part = head.tokenizer.encode("ribbu"), head.tokenizer.encode("kipoq")
    ids = np.array([token_of[1], *word, token_of[3], token_of[4], *part, token_of[7]])
    path = TransducerPath(
        ids=ids,
        places=np.zeros(len(ids), dtype=np.int64),
        durations=np.zeros(len(ids), dtype=np.int64),
        log_probs=np.zeros(len(ids), dtype=np.float32),
        frames=9,
    )
    read = head.read(read_times(path, times))
    assert read.text == " ribbu kipoq"
    assert [(each.text, each.start, each.end) for each in read.words] == [("ribbu", 0.08, 0.24), ("kipoq", 0.32, 0.56)]
    assert read.ids == tuple(ids.tolist())
    assert len(read.spans) == len(ids)
    assert "<|1|>" in head.read(path).text
    assert not head.prompts.asks_times("en")
    assert head.prompts.asks_times("en,timestamp=yes")


def test_what_is_pushed_at_once_is_decoded_by_itself() -> None:
    model, head = model_of("canary_aed")
    with torch.no_grad():
        states, frames = model(*recordings())
        paths = head.align(states, frames)
    decoder = head.decoder(DecodingOptions())
    assert decoder.hypotheses()[0].text == ""
    for row in (0, 2):
        part = states[row, : frames[row]].numpy()
        assert decoder.silent(part).tolist() == paths[row].silent.tolist()
        twin = decoder.fork()
        decoder.push(part)
        assert twin.frames < decoder.frames == decoder.settled
    (found,) = decoder.hypotheses()
    first, second = (head.read(paths[row]) for row in (0, 2))
    assert found.text == first.text + second.text
    later = int(frames[0]) * head.seconds_per_frame
    assert found.words[-1].start == pytest.approx(second.words[-1].start + later)
    three = head.decoder(DecodingOptions(alternatives=3))
    three.push(states[0, : frames[0]].numpy())
    assert len(three.hypotheses(3)) == 3


def test_a_context_takes_no_token_of_a_short_recordings_text() -> None:
    model, head = model_of("canary2_aed")
    context = "en,decodercontext=" + "dekegu pacob " * 4
    prompts = [head.prompts.tokens(task) for task in (None, context)]
    bare, longer = head.greedy.limits([3, 3], prompts)
    assert bare == longer == 3 + head.greedy.max_delta - len(prompts[0])
    with pytest.raises(UsageError, match="with its decodercontext"):
        model.check_language("en,decodercontext=" + "dekegu pacob " * head.net.max_length)
