"""Tokenizers of NeMo's checkpoints, both ways: sections of the configuration, and files beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import sentencepiece

from overtone.checkpoints.nemo.yaml import resolved
from overtone.config.keys import refuse, shown
from overtone.errors import CheckpointError
from overtone.tokenizers import CharTokenizer, SentencePieceTokenizer, Tokenizer

FILE_PREFIX = "nemo:"
"""A configuration's mark for the name of a file in the same archive."""


@dataclass(frozen=True, kw_only=True)
class TokenizerSource:
    """The source of the tokenizer's symbols."""

    kind: Literal["sentencepiece", "characters"]
    member: str | None = None
    """The name of the sentencepiece model inside the archive."""
    labels: tuple[str, ...] = ()
    """The characters, in the order of their ids."""


def piece_source(config: Mapping[str, Any], source: str) -> TokenizerSource:
    """The file of a model over pieces. Raises CheckpointError for other tokenizers than one sentencepiece model."""
    if not isinstance(config.get("tokenizer"), dict):
        raise CheckpointError(f"{source} has no section 'tokenizer', which a model over pieces needs.")
    section = resolved(config, "tokenizer", source)
    kind = section.get("type")
    if kind == "agg" or section.get("langs"):
        refuse(f"{source}: tokenizer", "type", "agg (several tokenizers together)", "bpe (one sentencepiece model)")
    if str(kind).lower() != "bpe":
        refuse(f"{source}: tokenizer", "type", kind, "bpe (a sentencepiece model), or a model over characters")
    for key in ("custom_tokenizer", "special_tokens"):
        if section.get(key):
            refuse(f"{source}: tokenizer", key, section[key], "null")
    path = str(section.get("model_path") or f"{section.get('dir', '')}/tokenizer.model")
    # Older files name the place where the model lay in training; inside, only the last part counts.
    member = path.removeprefix(FILE_PREFIX) if path.startswith(FILE_PREFIX) else path.rpartition("/")[2]
    return TokenizerSource(kind="sentencepiece", member=member)


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
    if source.member is None or source.member not in files:
        raise CheckpointError(f"{where} holds no '{source.member}', which its configuration names as the tokenizer.")
    try:
        return SentencePieceTokenizer(files[source.member])
    except (CheckpointError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{where}: '{source.member}': {error}") from error


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, tuple[str, bytes]]:
    """Name and content for each of the three keys of a configuration's tokenizer section.

    The names begin with 32 hexadecimal digits and `_`, which NeMo strips. Raises CheckpointError for a tokenizer of a
    user's own.
    """
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise CheckpointError(
            f"A tokenizer of type {type(tokenizer).__name__} has no files that NeMo could read; "
            "use a sentencepiece model or characters."
        )
    pieces = sentencepiece.SentencePieceProcessor()
    pieces.LoadFromSerializedProto(tokenizer.model_bytes)
    ids = range(pieces.get_piece_size())
    plain = [piece for piece in ids if not pieces.IsUnknown(piece) and not pieces.IsControl(piece)]
    contents = {
        "model_path": ("tokenizer.model", tokenizer.model_bytes),
        "vocab_path": ("vocab.txt", "".join(f"{pieces.id_to_piece(piece)}\n" for piece in plain).encode()),
        "spe_tokenizer_vocab": (
            "tokenizer.vocab",
            "".join(f"{pieces.id_to_piece(piece)}\t{pieces.get_score(piece):g}\n" for piece in ids).encode(),
        ),
    }
    return {
        key: (f"{hashlib.sha256(content).hexdigest()[:32]}_{name}", content)
        for key, (name, content) in contents.items()
    }
