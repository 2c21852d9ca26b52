"""Tokenizers: text to ids and back, by a sentencepiece model or a character vocabulary, without the CTC blank."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

import sentencepiece

from overtone.errors import CheckpointError

WORD_BOUNDARY = "▁"
"""U+2581, sentencepiece's visible space."""

_WORD = re.compile(r"\S+")


class Tokenizer(Protocol):
    """The tokenizer that models, training and decoding work with."""

    @property
    def vocabulary(self) -> list[str]:
        """The piece of every id, in order."""

    @property
    def size(self) -> int:
        """The number of pieces, without the blank."""

    def encode(self, text: str) -> list[int]:
        """Encode the text as ids."""

    def decode(self, ids: Sequence[int]) -> str:
        """Decode the ids to text."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The piece of each id, as it stands in the vocabulary."""

    def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        """The words of `decode(ids)`, each with the range of the ids that write its letters: first, one past last."""

    def unwritable(self, text: str) -> list[str]:
        """The characters of the text that no piece can write, in order, each as often as it occurs."""

    def starts_word(self, piece_id: int) -> bool:
        """True if the piece begins a new word or is the space itself."""

    def digest(self) -> str:
        """`sha256:` of the kind and the pieces in order: equal for equal vocabularies, however they are stored."""


class SentencePieceTokenizer:
    """A sentencepiece model (BPE or unigram), given as the bytes of its file."""

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

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._processor.encode_as_ids(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._processor.decode_ids([int(piece_id) for piece_id in ids])
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self._vocabulary[piece_id] for piece_id in ids]

    def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        if not ids:
            return []
        decoded = self._processor.decode([int(piece_id) for piece_id in ids], return_type="offset_mapping")
        return _words(decoded["text"], decoded["offsets"])

    def unwritable(self, text: str) -> list[str]:
        encoded = self._processor.encode(text, return_type="offset_mapping")
        unknown = self._processor.unk_id()
        ranges = [
            span for piece_id, span in zip(encoded["ids"], encoded["offsets"], strict=True) if piece_id == unknown
        ]
        return [character for first, end in ranges for character in text[first:end]]

    def starts_word(self, piece_id: int) -> bool:
        return self._vocabulary[piece_id].startswith(WORD_BOUNDARY)

    def digest(self) -> str:
        return _digest("sentencepiece", self._vocabulary)


class CharTokenizer:
    """One id a character; a label of several characters writes the word that it spells, as in NeMo."""

    def __init__(self, labels: Sequence[str]) -> None:
        """Raises CheckpointError where labels are missing, empty or double."""
        self.labels = [str(label) for label in labels]
        double = sorted({label for label in self.labels if self.labels.count(label) > 1})
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

    def encode(self, text: str) -> list[int]:
        """Characters that have no label are left out; `unwritable` names them."""
        return [self._ids[symbol] for symbol in self._symbols(text) if symbol in self._ids]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces(ids))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        return [self.labels[piece_id] for piece_id in ids]

    def words(self, ids: Sequence[int]) -> list[tuple[str, int, int]]:
        pieces = self.pieces(ids)
        ends = list(itertools.accumulate(map(len, pieces)))
        return _words("".join(pieces), list(zip([0, *ends], ends, strict=False)))

    def unwritable(self, text: str) -> list[str]:
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


def _words(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[str, int, int]]:
    """The words of the text, each with the range of pieces that hold its characters; spans: characters of a piece."""
    owners = [0] * len(text)
    for index, (first, end) in enumerate(spans):
        owners[first:end] = [index] * (end - first)
    return [(match.group(), owners[match.start()], owners[match.end() - 1] + 1) for match in _WORD.finditer(text)]


def _digest(kind: str, vocabulary: Sequence[str]) -> str:
    canonical = json.dumps([kind, list(vocabulary)], ensure_ascii=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(canonical.encode("ascii")).hexdigest()
