from __future__ import annotations

import copy
import hashlib
import io
import itertools
import json
import pickle
import re
import string
import tarfile
from collections.abc import Iterator
from functools import cache
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pytest
import sentencepiece
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from overtone.errors import CheckpointError, UsageError
from overtone.tokenizers import AggregateTokenizer, CharTokenizer, SentencePieceTokenizer, Tokenizer
from support.fixtures import fixture_file, fixture_models

WORDS = ["please", "press", "one", "for", "the", "front", "desk", "it's", "your", "call", "is", "important", "to"]
LABELS = [" ", *string.ascii_lowercase, "'"]


def sentences() -> Iterator[str]:
    generator = np.random.default_rng(0)
    for _ in range(400):
        yield " ".join(generator.choice(WORDS, size=generator.integers(1, 8)))


@cache
def model_bytes(kind: str) -> bytes:
    options = {
        "bpe": {"model_type": "bpe", "vocab_size": 60, "bos_id": -1, "eos_id": -1},
        "unigram": {"model_type": "unigram", "vocab_size": 34},
        "bytes": {"model_type": "bpe", "vocab_size": 320, "byte_fallback": True},
        "phrases": {"model_type": "bpe", "vocab_size": 90, "split_by_whitespace": False},
    }[kind]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=sentences(), model_writer=model, minloglevel=2, **options
    )
    return model.getvalue()


KINDS = ["bpe", "unigram", "bytes", "phrases", "characters"]


@cache
def make(kind: str) -> Tokenizer:
    return CharTokenizer(LABELS) if kind == "characters" else SentencePieceTokenizer(model_bytes(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str) -> None:
    tokenizer = make(kind)
    for text in sentences():
        ids = tokenizer.encode(text)
        assert all(0 <= piece_id < tokenizer.size for piece_id in ids)
        assert tokenizer.decode(ids) == text
        assert tokenizer.unwritable(text) == []
        assert [word for word, _, _ in tokenizer.words(ids)] == text.split()
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""
    assert tokenizer.words([]) == []
    assert len(tokenizer.vocabulary) == tokenizer.size
    assert tokenizer.pieces(range(tokenizer.size)) == tokenizer.vocabulary


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_words_of_any_ids_are_the_words_of_the_text(kind: str, data: st.DataObject) -> None:
    tokenizer = make(kind)
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=30))
    words = tokenizer.words(ids)
    assert [word for word, _, _ in words] == tokenizer.decode(ids).split()
    for _, first, end in words:
        assert 0 <= first < end <= len(ids)
    assert all(a[1] <= b[1] and a[2] <= b[2] for a, b in pairwise(words))


def test_words_leave_bare_boundaries_out() -> None:
    tokenizer = make("bpe")
    ids = {piece: piece_id for piece_id, piece in enumerate(tokenizer.vocabulary)}
    spelled = [ids[piece] for piece in ("▁", "▁", "o", "n", "▁", "▁one", "▁")]
    assert tokenizer.words(spelled) == [("on", 2, 4), ("one", 5, 6)]
    assert make("characters").words(CharTokenizer(LABELS).encode("  on  one ")) == [("on", 2, 4), ("one", 6, 9)]


def test_starts_word() -> None:
    tokenizer = make("bpe")
    ids = {piece: piece_id for piece_id, piece in enumerate(tokenizer.vocabulary)}
    assert [tokenizer.starts_word(ids[piece]) for piece in ("▁", "▁one", "o")] == [True, True, False]
    assert [make("characters").starts_word(LABELS.index(label)) for label in " a'"] == [True, False, False]


def test_unwritable_characters() -> None:
    assert make("bpe").unwritable("öne für zß Z") == ["ö", "ü", "z", "ß", "Z"]
    assert make("bytes").unwritable("öne für zß") == []
    assert make("characters").unwritable("Öne, für\tone") == ["Ö", ",", "ü", "\t"]
    assert CharTokenizer(list("abc")).unwritable("ab c") == [" "]


def test_bytes_write_what_pieces_cannot() -> None:
    tokenizer = make("bytes")
    ids = tokenizer.encode("für 漢 one")
    assert tokenizer.decode(ids) == "für 漢 one"
    assert [word for word, _, _ in tokenizer.words(ids)] == ["für", "漢", "one"]


def test_characters_leave_out_what_they_cannot_write() -> None:
    tokenizer = CharTokenizer(LABELS)
    assert tokenizer.decode(tokenizer.encode("one, Two")) == "one wo"


def test_labels_of_several_characters_write_whole_words() -> None:
    tokenizer = CharTokenizer([" ", "a", "b", "<noise>"])
    assert tokenizer.encode("ab <noise> a<noise>") == [1, 2, 0, 3, 0, 1]
    assert tokenizer.unwritable("a<noise>") == list("<noise>")
    assert tokenizer.decode([3, 0, 1]) == "<noise> a"
    assert tokenizer.words([3, 0, 1]) == [("<noise>", 0, 1), ("a", 2, 3)]


def test_digest_is_of_the_pieces() -> None:
    note = b"\x0a\x0delsewhere.txt"  # the trainer's field `input`, added to its field of the model
    rewritten = model_bytes("bpe") + b"\x12" + bytes([len(note)]) + note
    assert SentencePieceTokenizer(rewritten).digest() == make("bpe").digest()
    assert make("unigram").digest() != make("bpe").digest()
    assert CharTokenizer(LABELS).digest() == CharTokenizer(tuple(LABELS)).digest()
    assert CharTokenizer(LABELS[::-1]).digest() != CharTokenizer(LABELS).digest()
    assert CharTokenizer(make("bpe").vocabulary).digest() != make("bpe").digest()
    canonical = b'["characters",["a","\\u00e4"]]'
    assert CharTokenizer(["a", "ä"]).digest() == "sha256:" + hashlib.sha256(canonical).hexdigest()


@pytest.mark.parametrize("damage", [b"", b"abc", bytes(100), "half", "no file"])
def test_refuses_what_is_not_a_model(damage: bytes | str) -> None:
    whole = model_bytes("bpe")
    content = {"half": whole[: len(whole) // 2], "no file": b"\x0a\x00" * 50}.get(str(damage), damage)
    assert isinstance(content, bytes)
    with pytest.raises(CheckpointError, match="not a sentencepiece model"):
        SentencePieceTokenizer(content)


@pytest.mark.parametrize(
    ("labels", "message"), [([], "an empty list"), (["a", ""], "an empty label"), (["a", "b", "a"], r"\['a'\]")]
)
def test_refuses_labels(labels: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        CharTokenizer(labels)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_travels(kind: str) -> None:
    tokenizer = make(kind)
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.digest() == tokenizer.digest()
        assert other.encode("one call") == tokenizer.encode("one call")


def test_keeps_the_bytes_for_saving() -> None:
    assert SentencePieceTokenizer(model_bytes("bpe")).model_bytes == model_bytes("bpe")


# Several languages


def aggregate() -> AggregateTokenizer:
    return AggregateTokenizer({"en": make("bpe"), "de": make("unigram")})  # type: ignore[dict-item]


def test_languages_have_their_ids_one_after_the_other() -> None:
    tokenizer, first, second = aggregate(), make("bpe"), make("unigram")
    assert tokenizer.languages == ("en", "de")
    assert tokenizer.size == first.size + second.size
    assert tokenizer.vocabulary == first.vocabulary + second.vocabulary
    for text in itertools.islice(sentences(), 20):
        assert tokenizer.encode(text) == tokenizer.encode(text, "en") == first.encode(text)
        ids = tokenizer.encode(text, "de")
        assert ids == [first.size + piece_id for piece_id in second.encode(text)]
        assert tokenizer.decode(ids) == f" {text}"
        assert [word for word, _, _ in tokenizer.words(ids)] == text.split()
        mixed = tokenizer.encode(text) + ids
        assert tokenizer.decode(mixed) == f" {text} {text}"
    assert tokenizer.starts_word(tokenizer.encode("one", "de")[0])
    assert tokenizer.unwritable("für", "de") == second.unwritable("für")


def test_languages_that_are_not_there_are_refused() -> None:
    with pytest.raises(UsageError, match="language 'fr' is none of this model's: en, de"):
        aggregate().encode("one", "fr")
    with pytest.raises(UsageError, match="'fr'"):
        aggregate().unwritable("one", "fr")
    with pytest.raises(CheckpointError, match="holds none"):
        AggregateTokenizer({})
    assert make("bpe").encode("one", "fr") == make("bpe").encode("one")


def test_the_digest_of_languages_is_of_their_names_and_pieces() -> None:
    digests = {aggregate().digest(), make("bpe").digest(), make("unigram").digest()}
    digests.add(AggregateTokenizer({"de": make("bpe"), "en": make("unigram")}).digest())  # type: ignore[dict-item]
    digests.add(AggregateTokenizer({"de": make("unigram"), "en": make("bpe")}).digest())  # type: ignore[dict-item]
    assert len(digests) == 5
    assert aggregate().digest() == aggregate().digest()
    assert pickle.loads(pickle.dumps(aggregate())).digest() == aggregate().digest()


@pytest.mark.parametrize("kind", [*KINDS, "aggregate"])
def test_spellings_side_by_side_are_the_words_of_the_text(kind: str) -> None:
    tokenizer = aggregate() if kind == "aggregate" else make(kind)
    spelled = tokenizer.spelled
    assert len(spelled) == tokenizer.size
    for text in itertools.islice(sentences(), 20):
        ids = [piece_id for piece_id in tokenizer.encode(text) if "<0x" not in spelled[piece_id]]
        assert "".join(spelled[piece_id] for piece_id in ids).split() == text.split()


# References


def reference_settings(name: str) -> dict[str, Any]:
    with tarfile.open(fixture_file(f"{name}/model.nemo")) as archive:
        config = archive.extractfile("./model_config.yaml")
        assert config is not None
        settings: dict[str, Any] = yaml.safe_load(config)
        return settings


def reference_tokenizer(name: str) -> Tokenizer:
    section = reference_settings(name).get("tokenizer")
    if section is None:
        return CharTokenizer(reference_settings(name)["labels"])
    with tarfile.open(fixture_file(f"{name}/model.nemo")) as archive:
        if "langs" not in section:
            return reference_pieces(archive, section)
        return AggregateTokenizer({language: reference_pieces(archive, x) for language, x in section["langs"].items()})


def reference_pieces(archive: tarfile.TarFile, section: dict[str, Any]) -> SentencePieceTokenizer:
    model = archive.extractfile("./" + section["model_path"].removeprefix("nemo:"))
    assert model is not None
    return SentencePieceTokenizer(model.read())


def has_a_plain_tokenizer(name: str) -> bool:
    """True for characters, a sentencepiece model or several; Canary's prompts are not supported."""
    return "custom_tokenizer" not in reference_settings(name).get("tokenizer", {})


def reference_ids(name: str) -> Iterator[tuple[list[int], str]]:
    """The ids and the text of every utterance that NeMo decoded with a head of the model, whatever the head."""
    reference = json.loads(fixture_file(f"{name}/ref_base.json").read_text())
    blank = reference_tokenizer(name).size
    of_frames = any(blank in ids for key, rows in reference.items() if key.startswith("ctc_ids") for ids in rows)
    for key, rows in reference.items():
        if match := re.fullmatch(r"(ctc|rnnt)_ids_(\w+)", key):
            for ids, text in zip(rows, reference["_".join(match.groups())], strict=True):
                if match[1] == "ctc" and of_frames:
                    yield [piece_id for piece_id, _ in groupby(ids) if piece_id != blank], text
                else:
                    yield ids, text


@pytest.mark.parametrize("name", [*filter(has_a_plain_tokenizer, fixture_models())])
def test_decodes_as_every_reference_model(name: str) -> None:
    tokenizer = reference_tokenizer(name)
    references = list(reference_ids(name))
    assert references
    for ids, text in references:
        assert tokenizer.decode(ids) == text
        assert [word for word, _, _ in tokenizer.words(ids)] == text.split()
