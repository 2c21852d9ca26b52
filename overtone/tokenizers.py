"""Tokenizers: text to ids and back by sentencepiece models, WordPiece or characters, without the CTC blank."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import sentencepiece

from overtone.errors import CheckpointError, UsageError
from overtone.languages import SPECIALS, match_language, target_language

WORD_BOUNDARY = "▁"
"""U+2581, sentencepiece's visible space."""

UNKNOWN_WORD = "[UNK]"
MARKS = (UNKNOWN_WORD, "[SEP]", "[PAD]", "[CLS]", "[MASK]")
"""Marks of WordPiece that stand for no text."""
CONTINUATION = "##"
"""The beginning of a WordPiece that goes on in a word."""
LONGEST_WORD = 100
"""Characters of a word that WordPiece takes apart; a longer one is unknown."""
CJK = re.compile(
    "[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f]"
)
"""A Chinese character."""

_WORD = re.compile(r"\S+")


class Tokenizer(Protocol):
    """The tokenizer that models, training and decoding work with."""

    @property
    def vocabulary(self) -> list[str]:
        """The piece of every id, in order."""

    @property
    def size(self) -> int:
        """The number of pieces, without the blank."""

    @property
    def spelled(self) -> list[str]:
        """Every piece as it is written, with a space where a word begins."""

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages that `encode` tells apart, none where one vocabulary serves all."""

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Encode the text as ids; of several languages the first unless one is given."""

    def decode(self, ids: Sequence[int]) -> str:
        """Decode the ids to text."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The piece of each id, as it stands in the vocabulary."""

    def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """The words of `decode(ids)`, each with the range of the ids that write its letters: first, one past last."""

    def unwritable(self, text: str, language: str | None = None) -> list[str]:
        """The characters of the text that no piece can write, in order, each as often as it occurs.

        language: as for `encode`.
        """

    def starts_word(self, piece_id: int) -> bool:
        """True if the piece begins a new word or is the space itself."""

    def digest(self) -> str:
        """`sha256:` of the kind and the pieces in order: equal for equal vocabularies, however they are stored."""


class SentencePieceTokenizer:
    """A sentencepiece model (BPE or unigram), given as the bytes of its file."""

    languages: tuple[str, ...] = ()

    def __init__(self, model_bytes: bytes) -> None:
        """Raises CheckpointError where the bytes are not a sentencepiece model."""
        self.model_bytes = bytes(model_bytes)
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self.model_bytes)
            size = self._processor.get_piece_size()
        except (RuntimeError, ValueError, TypeError, OSError):  # which one depends on the damage
            size = 0
        if size == 0:
            raise CheckpointError(
                f"The tokenizer ({len(self.model_bytes)} bytes) is not a sentencepiece model; "
                "it is damaged or of another kind. Fetch the model file again."
            )
        self._vocabulary: list[str] = self._processor.id_to_piece(list(range(size)))

    @property
    def vocabulary(self) -> list[str]:
        return list(self._vocabulary)

    @property
    def size(self) -> int:
        return len(self._vocabulary)

    @property
    def spelled(self) -> list[str]:
        return [piece.replace(WORD_BOUNDARY, " ") for piece in self._vocabulary]

    def encode(self, text: str, language: str | None = None) -> list[int]:
        return list(self._processor.encode_as_ids(text))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._processor.decode_ids([int(piece_id) for piece_id in ids]))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._vocabulary[piece_id] for piece_id in ids]

    def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        if not ids:
            return []
        decoded = self._processor.decode([int(piece_id) for piece_id in ids], return_type="offset_mapping")
        return _words(decoded["text"], decoded["offsets"])

    def unwritable(self, text: str, language: str | None = None) -> list[str]:
        encoded = self._processor.encode(text, return_type="offset_mapping")
        unknown = self._processor.unk_id()
        ranges = [span for own, span in zip(encoded["ids"], encoded["offsets"], strict=True) if own == unknown]
        return [character for first, end in ranges for character in text[first:end]]

    def starts_word(self, piece_id: int) -> bool:
        return self._vocabulary[piece_id].startswith(WORD_BOUNDARY)

    def digest(self) -> str:
        return _digest("sentencepiece", self._vocabulary)


class AggregateTokenizer:
    """A sentencepiece model for each of several languages; their ids follow one another in the order of the languages.

    Text is written as NeMo writes it, the pieces side by side: it begins with a space.
    """

    def __init__(self, parts: Mapping[str, SentencePieceTokenizer]) -> None:
        """parts: by language. Raises CheckpointError where there is none."""
        if not parts.keys() - {SPECIALS}:
            raise CheckpointError("The tokenizer of several languages holds none; one for each language is needed.")
        self.parts = dict(parts)
        sizes = [part.size for part in parts.values()]
        self.offsets = dict(zip(parts, itertools.accumulate([0, *sizes[:-1]]), strict=True))
        """The first id of each language."""
        self._vocabulary = [piece for part in parts.values() for piece in part.vocabulary]
        self._spelled = [piece.replace(WORD_BOUNDARY, " ") for piece in self._vocabulary]

    @property
    def vocabulary(self) -> list[str]:
        return list(self._vocabulary)

    @property
    def size(self) -> int:
        return len(self._vocabulary)

    @property
    def spelled(self) -> list[str]:
        return list(self._spelled)

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(name for name in self.parts if name != SPECIALS)

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Raises UsageError for a language that the tokenizer does not have."""
        language = self.check_language(language)
        return [self.offsets[language] + piece_id for piece_id in self.parts[language].encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._spelled[piece_id] for piece_id in ids)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._vocabulary[piece_id] for piece_id in ids]

    def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        return _words_of_spellings([self._spelled[piece_id] for piece_id in ids])

    def unwritable(self, text: str, language: str | None = None) -> list[str]:
        """Raises UsageError for a language that the tokenizer does not have."""
        return self.parts[self.check_language(language)].unwritable(text)

    def check_language(self, language: str | None) -> str:
        """Return the language, the first for None. Raises UsageError for one that the tokenizer does not have."""
        own = self.languages
        chosen = own[0] if language is None else language
        if SPECIALS in self.parts:
            chosen = match_language(target_language(chosen), own) or chosen
        if chosen not in own:
            raise UsageError(f"language '{chosen}' is none of this model's: {', '.join(own)}.")
        return chosen

    def starts_word(self, piece_id: int) -> bool:
        return self._vocabulary[piece_id].startswith(WORD_BOUNDARY)

    def digest(self) -> str:
        return _digest("aggregate", [text for name, part in self.parts.items() for text in (name, part.digest())])


class WordPieceTokenizer:
    """WordPiece with BERT's rules for words, cased, given as the bytes of its `vocab.txt`.

    A word is the longest piece of the vocabulary from its start on, then the longest that goes on (`##`), and so forth;
    punctuation is a word of its own. Marks such as [UNK] are never written.
    """

    languages: tuple[str, ...] = ()

    def __init__(self, vocabulary_bytes: bytes) -> None:
        """Raises CheckpointError where a line is empty or double, and where the mark for unknown words is missing."""
        self.vocabulary_bytes = bytes(vocabulary_bytes)
        try:
            lines = self.vocabulary_bytes.decode("utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"The vocabulary of the tokenizer is no UTF-8 text: {error}.") from error
        self._vocabulary = [line.removesuffix("\r") for line in lines]
        self._ids = {piece: piece_id for piece_id, piece in enumerate(self._vocabulary)}
        if "" in self._ids or len(self._ids) < len(self._vocabulary) or UNKNOWN_WORD not in self._ids:
            raise CheckpointError(
                f"The vocabulary of the tokenizer holds an empty or a double line, or no {UNKNOWN_WORD}; "
                "it is damaged or of another kind."
            )

    @property
    def vocabulary(self) -> list[str]:
        return list(self._vocabulary)

    @property
    def size(self) -> int:
        return len(self._vocabulary)

    @property
    def spelled(self) -> list[str]:
        return [self._spell(piece_id) for piece_id in range(self.size)]

    def encode(self, text: str, language: str | None = None) -> list[int]:
        return [piece_id for word in _bert_words(text) for piece_id in self._encode_word(word)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._spellings(ids)).strip()

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._vocabulary[piece_id] for piece_id in ids]

    def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        return _words_of_spellings(self._spellings(ids))

    def unwritable(self, text: str, language: str | None = None) -> list[str]:
        """The characters without a piece of their own in words that cannot be written, or all that such a word has."""
        found = []
        for word in _bert_words(text):
            if self._encode_word(word) == [self._ids[UNKNOWN_WORD]] and word != UNKNOWN_WORD:
                strange = [sign for sign in word if sign not in self._ids and f"{CONTINUATION}{sign}" not in self._ids]
                found += strange or list(word)
        return found

    def starts_word(self, piece_id: int) -> bool:
        return self._spell(piece_id).startswith(" ")

    def digest(self) -> str:
        return _digest("wordpiece", self._vocabulary)

    def _encode_word(self, word: str) -> list[int]:
        """The ids of a word, those of the mark for unknown ones where no pieces write it."""
        if word in MARKS or len(word) > LONGEST_WORD:
            return [self._ids.get(word, self._ids[UNKNOWN_WORD])]
        ids: list[int] = []
        start = 0
        while start < len(word):
            prefix = CONTINUATION if start else ""
            end = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in self._ids), None)
            if end is None:
                return [self._ids[UNKNOWN_WORD]]
            ids.append(self._ids[prefix + word[start:end]])
            start = end
        return ids

    def _spell(self, piece_id: int) -> str:
        """A piece as it is written inside of a text."""
        piece = self._vocabulary[piece_id]
        if piece in MARKS:
            return ""
        return piece.removeprefix(CONTINUATION) if piece.startswith(CONTINUATION) else f" {piece}"

    def _spellings(self, ids: Sequence[int]) -> list[str]:
        """Each piece as it is written; the first keeps its sign of continuation, as there is nothing before it."""
        spellings = [self._spell(piece_id) for piece_id in ids]
        first = next((place for place, piece_id in enumerate(ids) if self._vocabulary[piece_id] not in MARKS), None)
        if first is not None and not spellings[first].startswith(" "):
            spellings[first] = self._vocabulary[ids[first]]
        return spellings


class CharTokenizer:
    """One id a character; a label of several characters writes the word that it spells, as in NeMo."""

    languages: tuple[str, ...] = ()

    def __init__(self, labels: Sequence[str]) -> None:
        """Raises CheckpointError where labels are missing, empty or double."""
        self.labels = [str(label) for label in labels]
        double = sorted(label for label, count in Counter(self.labels).items() if count > 1)
        if not self.labels or "" in self.labels or double:
            found = f"double labels {double}" if double else "an empty list" if not self.labels else "an empty label"
            raise CheckpointError(f"The character vocabulary holds {found}; one label for each id is needed.")
        self._ids = {label: label_id for label_id, label in enumerate(self.labels)}

    @property
    def vocabulary(self) -> list[str]:
        return list(self.labels)

    @property
    def size(self) -> int:
        return len(self.labels)

    @property
    def spelled(self) -> list[str]:
        return list(self.labels)

    def encode(self, text: str, language: str | None = None) -> list[int]:
        """Characters that have no label are left out; `unwritable` names them."""
        return [self._ids[symbol] for symbol in self._symbols(text) if symbol in self._ids]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces(ids))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.labels[piece_id] for piece_id in ids]

    def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        return _words_of_spellings(self.pieces(ids))

    def unwritable(self, text: str, language: str | None = None) -> list[str]:
        return [symbol for symbol in self._symbols(text) if symbol not in self._ids]

    def starts_word(self, piece_id: int) -> bool:
        return self.labels[piece_id].startswith(" ")

    def digest(self) -> str:
        return _digest("characters", self.labels)

    def _symbols(self, text: str) -> Iterable[str]:
        """Characters, and whole words where such a label exists."""
        for position, word in enumerate(text.split(" ")):
            if position > 0:
                yield " "
            if word in self._ids:
                yield word
            else:
                yield from word


def _bert_words(text: str) -> Iterator[str]:
    """The words of a text by BERT's rules: punctuation and each Chinese character stand alone."""
    for word in "".join(map(_plain, unicodedata.normalize("NFC", text))).split():
        parted = word if word in MARKS else "".join(f" {sign} " if _stands_alone(sign) else sign for sign in word)
        yield from parted.split()


def _plain(sign: str) -> str:
    """A space for white space, nothing for signs of control, else the sign itself."""
    kind = unicodedata.category(sign)
    if sign in "\t\n\r" or kind == "Zs":
        return " "
    return "" if sign == "\ufffd" or kind.startswith("C") else sign


def _stands_alone(sign: str) -> bool:
    """True for a Chinese character and for punctuation, which is every ASCII sign that is no letter, digit or space."""
    visible = sign.isascii() and sign.isprintable() and not sign.isalnum() and sign != " "
    return visible or unicodedata.category(sign).startswith("P") or CJK.match(sign) is not None


def _words_of_spellings(pieces: Sequence[str]) -> list[tuple[str, int, int]]:
    """The words of the pieces side by side, each with the range of pieces that hold its characters."""
    ends = list(itertools.accumulate(map(len, pieces)))
    return _words("".join(pieces), list(zip([0, *ends], ends, strict=False)))


def _words(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[str, int, int]]:
    """The words of the text, each with the range of pieces that hold its characters; spans: characters of a piece."""
    owners = [0] * len(text)
    for index, (first, end) in enumerate(spans):
        owners[first:end] = [index] * (end - first)
    return [(match.group(), owners[match.start()], owners[match.end() - 1] + 1) for match in _WORD.finditer(text)]


def _digest(kind: str, vocabulary: Sequence[str]) -> str:
    canonical = json.dumps([kind, list(vocabulary)], ensure_ascii=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()
