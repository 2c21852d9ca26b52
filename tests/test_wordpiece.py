"""WordPiece beside the tokenizer of the library that NeMo takes it from (transformers 4.57.6, BertTokenizer, cased)."""

from __future__ import annotations

import pickle

import pytest

from overtone.decoding.phrase_boost import Boost, BoostTree
from overtone.errors import CheckpointError
from overtone.tokenizers import WordPieceTokenizer

VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "please", "press", "one", "for", "the", "it", "'", "s", "##s", ".",
    "call", "##ing", "##e", "un", "##able", "##believ", "d", "##er", "e", "für", "f", "##ü", "##r", "漢", "字", "-",
    ",", "$", "5", "##5", "##", "Aa", "A", "##A",
]  # fmt: skip
REFERENCES = [
    ('please press one', [5, 6, 7], 'please press one'),
    ("it's the call", [10, 11, 12, 9, 15], "it ' s the call"),
    ('calling unable unbelieverable', [15, 16, 18, 19, 18, 20, 22, 19], 'calling unable unbelieverable'),
    ('für the 漢字one', [24, 9, 28, 29, 7], 'für the 漢 字 one'),
    ('un-able, one.', [18, 30, 1, 31, 7, 14], 'un - , one .'),
    ('$55 call', [32, 33, 34, 15], '$ 55 call'),
    ('zzz one', [1, 7], 'one'),
    ('one\tfor\xa0the\u200b x\x0bone', [7, 8, 9, 1], 'one for the'),
    ('[UNK] one [CLS]', [1, 7, 2], 'one'),
    ('A AA Aas  s', [37, 37, 38, 36, 13, 12], 'A AA Aas s'),
    ('é für', [1, 24], 'für'),
    ('calls.one', [15, 13, 14, 7], 'calls . one'),
    ('', [], ''),
    ('  ', [], ''),
    (None, [24, 26, 2, 16, 32, 31, 25, 19], 'fürüing $ , fable'),
    (None, [30, 22, 37, 13, 32, 8, 18, 8], '-er As $ for un for'),
    (None, [6, 16, 34, 38, 9, 19, 6, 4], 'pressing5A theable press'),
    (None, [21, 30, 35, 6, 22, 27, 20, 13], 'd - presserrbelievs'),
    (None, [35, 30, 28, 33, 16, 3, 35, 0], '## - 漢 5ing'),
    (None, [5, 25, 0, 31, 21, 15, 20, 4], 'please f , d callbeliev'),
]  # fmt: skip
"""A text, None for random ids; its ids; the text of these ids."""


def make() -> WordPieceTokenizer:
    return WordPieceTokenizer("".join(f"{piece}\n" for piece in VOCABULARY).encode())


@pytest.mark.parametrize(("text", "ids", "written"), REFERENCES)
def test_ids_and_texts_are_those_of_the_library(text: str | None, ids: list[int], written: str) -> None:
    tokenizer = make()
    if text is not None:
        assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == written
    words = tokenizer.words(ids)
    assert [word for word, _, _ in words] == written.split()
    assert all(0 <= first < end <= len(ids) for _, first, end in words)


def test_the_range_of_a_word_holds_its_pieces() -> None:
    tokenizer = make()
    assert tokenizer.words(tokenizer.encode("calling [PAD] unable")) == [("calling", 0, 2), ("unable", 3, 5)]


def test_pieces_and_where_words_begin() -> None:
    tokenizer = make()
    assert tokenizer.vocabulary == tokenizer.pieces(range(tokenizer.size)) == VOCABULARY
    assert tokenizer.languages == ()
    starts = [piece for piece_id, piece in enumerate(VOCABULARY) if tokenizer.starts_word(piece_id)]
    assert starts == [piece for piece in VOCABULARY if not piece.startswith(("##", "["))]


def test_unwritable_characters() -> None:
    tokenizer = make()
    assert tokenizer.unwritable("please öne [UNK] for") == ["ö", "n"]
    assert tokenizer.unwritable("A5") == []
    assert tokenizer.unwritable("r") == ["r"]
    assert tokenizer.unwritable("one " + "s" * 101) == ["s"] * 101


def test_phrases_are_boosted() -> None:
    tree = BoostTree([Boost(phrases=("calling for", "zzz"), boost=20.0)], make())
    assert tree.ignored == ("zzz",)
    state = tree.start
    for piece_id in make().encode("calling for"):
        assert piece_id in tree.onward(state)
        state = tree.after(state, piece_id)
    assert tree.final(state) > 0


def test_the_digest_is_of_the_pieces() -> None:
    assert make().digest() == pickle.loads(pickle.dumps(make())).digest()
    windows = WordPieceTokenizer("\r\n".join(VOCABULARY).encode())
    assert windows.digest() == make().digest()
    other = WordPieceTokenizer("\n".join([*VOCABULARY, "more"]).encode())
    assert other.digest() != make().digest()


@pytest.mark.parametrize("content", [b"", b"a\nb", b"[UNK]\n\nb", b"[UNK]\na\na", b"\xff\xfe"])
def test_refuses_what_is_no_vocabulary(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="The vocabulary of the tokenizer"):
        WordPieceTokenizer(content)
