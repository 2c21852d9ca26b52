"""Tokenizers of NeMo's checkpoints, both ways: sections of the configuration, and files beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sentencepiece

from overtone.checkpoints.nemo.yaml import resolved
from overtone.config.keys import refuse, shown
from overtone.errors import CheckpointError
from overtone.languages import SPECIALS
from overtone.tokenizers import (
    AggregateTokenizer,
    CharTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordPieceTokenizer,
)

FILE_PREFIX = "nemo:"
"""A configuration's mark for the name of a file in the same archive."""
CANARY = "nemo.collections.common.tokenizers.canary_tokenizer"
CANARY_CLASSES = (f"{CANARY}.CanaryTokenizer", f"{CANARY}.CanaryBPETokenizer")
"""Tokenizers that know the special tokens of prompts: of several languages, and of one vocabulary for all."""
SUPPORTED = "bpe (a sentencepiece model), wpe (WordPiece), agg (one sentencepiece model a language), or characters"


@dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """The source of the tokenizer's symbols."""

    kind: Literal["sentencepiece", "wordpiece", "aggregate", "characters"]
    member: str | None = None
    """The name of the sentencepiece model, or of WordPiece's vocabulary, inside the archive."""
    labels: tuple[str, ...] = ()
    """The characters, in the order of their ids."""
    parts: tuple[tuple[str, TokenizerSource], ...] = ()
    """The languages of an aggregate with the source of each, in the order of their ids."""


def piece_source(config: Mapping[str, Any], source: str) -> TokenizerSource:
    """The files of a model over pieces. Raises CheckpointError for other kinds of tokenizers."""
    if not isinstance(config.get("tokenizer"), dict):
        raise CheckpointError(f"{source} has no section 'tokenizer', which a model over pieces needs.")
    section = resolved(config, "tokenizer", source)
    where = f"{source}: tokenizer"
    if str(section.get("type")).lower() != "agg" and not section.get("langs"):
        return single_source(section, where)
    refuse_custom(section, where)
    languages = section.get("langs")
    if not isinstance(languages, dict) or not languages or not all(isinstance(x, dict) for x in languages.values()):
        refuse(where, "langs", languages, "a section with a tokenizer for each language")
    parts = [(str(name), single_source(part, f"{where}.langs.{name}")) for name, part in languages.items()]
    for name, part in parts:
        if part.kind != "sentencepiece":
            refuse(f"{where}.langs.{name}", "type", languages[name].get("type"), "bpe (a sentencepiece model)")
    if len({part.member for _, part in parts}) < len(parts):
        raise CheckpointError(f"{where}.langs: two languages name the same file.")
    return TokenizerSource(kind="aggregate", parts=tuple(parts))


def single_source(section: Mapping[str, Any], where: str) -> TokenizerSource:
    """The file of one tokenizer. Raises CheckpointError for other kinds than sentencepiece and WordPiece."""
    kind = str(section.get("type")).lower()
    if kind not in ("bpe", "wpe"):
        refuse(where, "type", section.get("type"), SUPPORTED)
    refuse_custom(section, where)
    key, name = ("model_path", "tokenizer.model") if kind == "bpe" else ("vocab_path", "vocab.txt")
    path = str(section.get(key) or f"{section.get('dir', '')}/{name}")
    # Older files name the place where the model lay in training; inside, only the last part counts.
    member = path.removeprefix(FILE_PREFIX) if path.startswith(FILE_PREFIX) else path.rpartition("/")[2]
    return TokenizerSource(kind="sentencepiece" if kind == "bpe" else "wordpiece", member=member)


def refuse_custom(section: Mapping[str, Any], where: str) -> None:
    """Raises CheckpointError for a tokenizer with classes or symbols of its own, but for those of Canary."""
    custom = section.get("custom_tokenizer")
    if custom and not (isinstance(custom, dict) and custom.get("_target_") in CANARY_CLASSES):
        refuse(where, "custom_tokenizer", custom, f"null, or _target_ {CANARY_CLASSES[0]}")
    for key in ("special_tokens", "hf_kwargs"):
        if section.get(key):
            refuse(where, key, section[key], "null")


def character_source(config: Mapping[str, Any], source: str) -> TokenizerSource:
    """The labels of a model over characters. Raises CheckpointError where there are none."""
    decoder = resolved(config, "decoder", source)
    joint = resolved(config, "joint", source) if isinstance(config.get("joint"), dict) else {}
    labels = decoder.get("vocabulary") or joint.get("vocabulary")
    if not labels and config.get("labels"):
        labels = resolved(config, "labels", source)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{source}: decoder.vocabulary is {shown(labels)}; a list of characters is needed.")
    return TokenizerSource(kind="characters", labels=tuple(labels))


def read_tokenizer(source: TokenizerSource, files: Mapping[str, bytes], where: str) -> Tokenizer:
    """Build the tokenizer from its files. Raises CheckpointError where one is missing or damaged."""
    if source.kind == "characters":
        return CharTokenizer(source.labels)
    if source.kind == "aggregate":
        return AggregateTokenizer({name: read_pieces(part, files, where) for name, part in source.parts})
    if source.kind == "sentencepiece":
        return read_pieces(source, files, where)
    content = read_member(source, files, where)
    try:
        return WordPieceTokenizer(content)
    except CheckpointError as error:
        raise CheckpointError(f"{where}: '{source.member}': {error}") from error


def read_pieces(source: TokenizerSource, files: Mapping[str, bytes], where: str) -> SentencePieceTokenizer:
    """Build a sentencepiece tokenizer. Raises CheckpointError where its file is missing or damaged."""
    content = read_member(source, files, where)
    try:
        return SentencePieceTokenizer(content)
    except (CheckpointError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{where}: '{source.member}': {error}") from error


def read_member(source: TokenizerSource, files: Mapping[str, bytes], where: str) -> bytes:
    """The content of a tokenizer's file. Raises CheckpointError where it is missing."""
    if source.member is None or source.member not in files:
        raise CheckpointError(f"{where} holds no '{source.member}', which its configuration names as the tokenizer.")
    return files[source.member]


# Writing


def tokenizer_section(tokenizer: Tokenizer, *, prompts: bool = False) -> dict[str, Any]:
    """The section `tokenizer` of a configuration; prompts: of a model that is told a task in special tokens.

    Raises CheckpointError for a tokenizer of a user's own.
    """
    if isinstance(tokenizer, AggregateTokenizer):
        section = {"type": "agg", "langs": {name: tokenizer_section(part) for name, part in tokenizer.parts.items()}}
        custom = {"custom_tokenizer": {"_target_": CANARY_CLASSES[0], "tokenizers": None}}
        return section | (custom if SPECIALS in tokenizer.parts else {})
    names = {key: f"{FILE_PREFIX}{name}" for key, (name, _) in tokenizer_files(tokenizer).items()}
    section = {"dir": "tokenizer", "type": "wpe" if isinstance(tokenizer, WordPieceTokenizer) else "bpe", **names}
    return section | ({"custom_tokenizer": {"_target_": CANARY_CLASSES[1]}} if prompts else {})


def tokenizers_of(tokenizer: Tokenizer, section: Mapping[str, Any]) -> Iterator[tuple[Tokenizer, Mapping[str, Any]]]:
    """Every single tokenizer with its part of a configuration's section."""
    if isinstance(tokenizer, AggregateTokenizer):
        for name, part in tokenizer.parts.items():
            yield part, (section.get("langs") or {}).get(name) or {}
    else:
        yield tokenizer, section


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, tuple[str, bytes]]:
    """Name and content for each of the keys of a single tokenizer's section that name a file.

    The names begin with 32 hexadecimal digits and `_`, which NeMo strips. Raises CheckpointError for a tokenizer of a
    user's own.
    """
    if isinstance(tokenizer, WordPieceTokenizer):
        contents = {"vocab_path": ("vocab.txt", tokenizer.vocabulary_bytes)}
    elif isinstance(tokenizer, SentencePieceTokenizer):
        contents = sentencepiece_files(tokenizer)
    else:
        raise CheckpointError(
            f"A tokenizer of type {type(tokenizer).__name__} has no files that NeMo could read; "
            "use a sentencepiece model or characters."
        )
    return {
        key: (f"{hashlib.sha256(content).hexdigest()[:32]}_{name}", content)
        for key, (name, content) in contents.items()
    }


def sentencepiece_files(tokenizer: SentencePieceTokenizer) -> dict[str, tuple[str, bytes]]:
    """The model and its two lists of pieces, by the keys of a configuration."""
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.LoadFromSerializedProto(tokenizer.model_bytes)
    ids = range(pieces.get_piece_size())
    plain = [piece for piece in ids if not pieces.IsUnknown(piece) and not pieces.IsControl(piece)]
    return {
        "model_path": ("tokenizer.model", tokenizer.model_bytes),
        "vocab_path": ("vocab.txt", "".join(f"{pieces.id_to_piece(piece)}\n" for piece in plain).encode()),
        "spe_tokenizer_vocab": (
            "tokenizer.vocab",
            "".join(f"{pieces.id_to_piece(piece)}\t{pieces.get_score(piece):g}\n" for piece in ids).encode(),
        ),
    }
