"""`tokenizer.json` as a sentencepiece model and back: both hold the same pieces, scores and rules.

Legend: a message of protobuf is a row of fields, each a number, a type and a value.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from overtone.config.keys import refuse, shown
from overtone.errors import CheckpointError
from overtone.tokenizers import WORD_BOUNDARY, SentencePieceTokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""Types of pieces in a sentencepiece model."""
UNIGRAM, BPE = 1, 2
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
VARINT, WIDE, TEXT, FLOAT = 0, 1, 2, 5
"""Types of protobuf's fields."""
PLAIN_NORMALIZERS = ("Strip", "Replace", "Prepend", "Precompiled", "Sequence")
HINT = "or the sentencepiece model as tokenizer.model beside it"


def read_pieces(content: Mapping[str, Any], size: int, where: str) -> SentencePieceTokenizer:
    """The first `size` tokens of a `tokenizer.json` as a sentencepiece model.

    Raises CheckpointError for other rules than those that sentencepiece has, and where tokens are missing.
    """
    model = content.get("model")
    if not isinstance(model, dict) or model.get("type") not in ("BPE", "Unigram"):
        kind = model.get("type") if isinstance(model, dict) else model
        refuse(where, "model.type", kind, f"BPE and Unigram, {HINT}")
    try:
        charsmap = read_normalizer(content.get("normalizer"), where)
    except RecursionError as error:
        raise CheckpointError(f"{where}: its normalizers stand in each other too deeply.") from error
    splitting = str(content.get("pre_tokenizer")) + str(content.get("decoder"))
    if ("Metaspace" not in splitting and WORD_BOUNDARY not in splitting) or "ByteLevel" in splitting:
        refuse(where, "pre_tokenizer", content.get("pre_tokenizer"), f"Metaspace, {HINT}")
    try:
        added = {int(token["id"]): token for token in content.get("added_tokens") or ()}
        scores = read_bpe(model) if model["type"] == "BPE" else read_unigram(model)
        texts = {token: text for token, (text, _) in scores.items()}
        texts |= {token: str(each["content"]) for token, each in added.items()}
        unknown = model.get("unk_token") if model["type"] == "BPE" else texts.get(model.get("unk_id") or 0)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{where} is malformed ({type(error).__name__}: {error}).") from error
    missing = [token for token in range(size) if token not in texts]
    if missing:
        raise CheckpointError(
            f"{where} has no token {missing[0]}, and {len(missing)} of {size} are missing; the model needs all of them."
        )
    pieces = []
    for token in range(size):
        text, special = texts[token], bool(added.get(token, {}).get("special"))
        kind = CONTROL if special else USER_DEFINED if token in added else NORMAL
        kind = BYTE if model.get("byte_fallback") and BYTE_PIECE.fullmatch(text) else kind
        kind = UNKNOWN if text == unknown else kind
        pieces.append((text, scores[token][1] if token in scores else 0.0, kind))
    try:
        return SentencePieceTokenizer(write_model(pieces, BPE if model["type"] == "BPE" else UNIGRAM, charsmap))
    except (CheckpointError, UnicodeEncodeError, OverflowError) as error:
        raise CheckpointError(
            f"{where} makes no sentencepiece model: tokens must be different, and one of them the unknown token "
            f"{shown(unknown)}; needed is that, {HINT}."
        ) from error


def read_bpe(model: Mapping[str, Any]) -> dict[int, tuple[str, float]]:
    """Text and score of every token by id: an earlier merge has a higher score, and letters come last."""
    merges = ("".join(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in model.get("merges") or ())
    ranks = dict.fromkeys(merges)
    place = {text: number for number, text in enumerate(ranks)}
    return {int(token): (text, -float(place.get(text, len(place) + token))) for text, token in model["vocab"].items()}


def read_unigram(model: Mapping[str, Any]) -> dict[int, tuple[str, float]]:
    """Text and score of every token by id."""
    return {token: (str(text), float(score)) for token, (text, score) in enumerate(model["vocab"])}


def read_normalizer(section: Any, where: str) -> bytes:
    """The table of characters that are replaced, empty for none. Raises CheckpointError for other normalizers."""
    if section is None:
        return b""
    kind = section.get("type") if isinstance(section, dict) else section
    if kind not in PLAIN_NORMALIZERS:
        refuse(where, "normalizer.type", kind, f"{', '.join(PLAIN_NORMALIZERS)}, {HINT}")
    if kind == "Sequence":
        steps = section.get("normalizers") or []
        if not isinstance(steps, list):
            refuse(where, "normalizer.normalizers", steps, "a list")
        return b"".join(read_normalizer(each, where) for each in steps)
    if kind == "Replace" and section.get("content") not in (" ", "", WORD_BOUNDARY, 2 * WORD_BOUNDARY):
        refuse(where, "normalizer.content", section.get("content"), f"spaces, {HINT}")
    try:
        return base64.b64decode(section.get("precompiled_charsmap") or "", validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: normalizer.precompiled_charsmap is damaged: {error}.") from error


# The other way


def write_pieces(tokenizer: SentencePieceTokenizer, blank: str) -> dict[str, Any]:
    """The `tokenizer.json` of a sentencepiece model, with the blank as one token more.

    Raises CheckpointError for a model that splits by other rules than BPE and unigram.
    """
    pieces, trainer, charsmap = read_model(tokenizer.model_bytes)
    kind, byte_fallback = trainer.get(3, UNIGRAM), bool(trainer.get(35, 0))
    if kind not in (UNIGRAM, BPE):
        raise CheckpointError("The tokenizer is neither BPE nor unigram, and has no form in the Hugging Face layout.")
    unknown = next((token for token, (_, _, each) in enumerate(pieces) if each == UNKNOWN), None)
    vocabulary = {text: token for token, (text, _, _) in enumerate(pieces)}
    if kind == BPE:
        model: dict[str, Any] = {
            "type": "BPE",
            "dropout": None,
            "unk_token": None if unknown is None else pieces[unknown][0],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": byte_fallback,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges_of(pieces),
        }
    else:
        entries = [[text, score] for text, score, _ in pieces]
        model = {"type": "Unigram", "unk_id": unknown, "vocab": entries, "byte_fallback": byte_fallback}
    special = [(token, text, each != USER_DEFINED) for token, (text, _, each) in enumerate(pieces) if each in (2, 3, 4)]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": token, "content": text, **plain, "special": flag}
        for token, text, flag in [*special, (len(pieces), blank, True)]
    ]
    normalizers: list[dict[str, Any]] = [
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]
    if charsmap:
        table = base64.b64encode(charsmap).decode()
        normalizers.insert(0, {"type": "Precompiled", "precompiled_charsmap": table})
    metaspace = {"type": "Metaspace", "replacement": WORD_BOUNDARY, "prepend_scheme": "always"}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {**metaspace, "split": False},
        "post_processor": None,
        "decoder": {**metaspace, "split": False},
        "model": model,
    }


def merges_of(pieces: list[tuple[str, float, int]]) -> list[list[str]]:
    """The pairs of pieces that make another, by its score: those that are merged first stand first."""
    scores = {text: score for text, score, kind in pieces if kind == NORMAL}
    pairs = [
        (-score, -cut, text[:cut], text[cut:])
        for text, score in scores.items()
        for cut in range(1, len(text))
        if text[:cut] in scores and text[cut:] in scores
    ]
    return [[left, right] for _, _, left, right in sorted(pairs)]


# The bytes of a sentencepiece model, which is a message of protobuf


def write_model(pieces: list[tuple[str, float, int]], kind: int, charsmap: bytes) -> bytes:
    """The bytes of a sentencepiece model with these pieces: text, score and type."""
    body = b""
    for text, score, each in pieces:
        piece = field(1, text.encode()) + number_field(2, FLOAT) + struct.pack("<f", score) + field(3, each)
        body += field(1, piece)
    unknown = next((token for token, (_, _, each) in enumerate(pieces) if each == UNKNOWN), 0)
    has_bytes = any(each == BYTE for _, _, each in pieces)
    trainer = field(3, kind) + field(4, len(pieces)) + field(35, int(has_bytes)) + field(40, unknown)
    if pieces:
        trainer += field(45, pieces[unknown][0].encode())
    normalizer = field(1, b"nmt_nfkc" if charsmap else b"identity") + field(2, charsmap)
    normalizer += field(3, 1) + field(4, 1) + field(5, 1)
    return body + field(2, trainer) + field(3, normalizer)


def read_model(content: bytes) -> tuple[list[tuple[str, float, int]], dict[int, Any], bytes]:
    """The pieces, the trainer's settings by number of field, and the table of characters of a sentencepiece model."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    charsmap = b""
    for key, value in fields(content):
        if key == 1:
            piece = dict(fields(value))
            pieces.append((piece.get(1, b"").decode(), piece.get(2, 0.0), piece.get(3, NORMAL)))
        elif key == 2:
            trainer = dict(fields(value))
        elif key == 3:
            charsmap = dict(fields(value)).get(2, b"")
    return pieces, trainer, charsmap


def field(key: int, value: int | bytes) -> bytes:
    """One field of a message: a whole number from 0 on, or bytes behind their length."""
    if isinstance(value, int):
        return number_field(key, VARINT) + varint(value)
    return number_field(key, TEXT) + varint(len(value)) + value


def number_field(key: int, kind: int) -> bytes:
    """The beginning of a field."""
    return varint(key << 3 | kind)


def varint(value: int) -> bytes:
    """A whole number in groups of seven bits, the lowest first."""
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message that sentencepiece has read: number and value."""
    place = 0

    def read_varint() -> int:
        nonlocal place
        value, shift = 0, 0
        while True:
            byte = content[place]
            place, value, shift = place + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while place < len(content):
        head = read_varint()
        key, kind = head >> 3, head & 7
        if kind == VARINT:
            yield key, read_varint()
            continue
        length = read_varint() if kind == TEXT else {WIDE: 8, FLOAT: 4}[kind]
        value: Any = content[place : place + length]
        place += length
        yield key, struct.unpack("<f", value)[0] if kind == FLOAT else value
