"""Tokenizers as plain files: in the folder of an adapter with a vocabulary of its own, and as a user names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overtone.errors import AdapterError, CheckpointError, ConfigError
from overtone.files import read_regular
from overtone.languages import SPECIALS
from overtone.tokenizers import AggregateTokenizer, CharTokenizer, SentencePieceTokenizer, Tokenizer, WordPieceTokenizer

SENTENCEPIECE = "tokenizer.model"
WORDPIECE = "vocab.txt"
LABELS = "labels.json"
TOKENIZER_FILES = (SENTENCEPIECE, WORDPIECE, LABELS)
"""Names of tokenizers in an adapter's folder: a sentencepiece model, WordPiece's vocabulary, a list of characters."""
LARGEST_TOKENIZER = 64 << 20
"""Bytes of a tokenizer's file."""
LARGEST_VOCABULARY = 1 << 17
"""Tokens of a vocabulary."""
ALLOWED = (
    f"a sentencepiece model (.model), WordPiece's {WORDPIECE}, a text file with one label a line, a {LABELS}, or a "
    "folder with one of these"
)


def tokenizer_file(tokenizer: Tokenizer) -> tuple[str, bytes]:
    """Name and content of the file that holds a tokenizer. Raises ConfigError for one that no single file holds."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return SENTENCEPIECE, tokenizer.model_bytes
    if isinstance(tokenizer, WordPieceTokenizer):
        return WORDPIECE, tokenizer.vocabulary_bytes
    if isinstance(tokenizer, CharTokenizer):
        return LABELS, (json.dumps(tokenizer.labels, ensure_ascii=False) + "\n").encode()
    raise ConfigError(
        f"A tokenizer of type {type(tokenizer).__name__} cannot be an adapter's: it is no single file. Allowed is "
        f"{ALLOWED}, or a list of labels."
    )


def parse_tokenizer(name: str, content: bytes) -> Tokenizer:
    """The tokenizer of a file's content, which kind its name tells.

    Raises CheckpointError for a damaged file and for more tokens than a vocabulary may have.
    """
    if Path(name).name == LABELS:
        found: Tokenizer = CharTokenizer(parse_labels(content))
    elif Path(name).name == WORDPIECE:
        found = WordPieceTokenizer(content)
    elif Path(name).suffix == ".model":
        found = SentencePieceTokenizer(content)
    else:
        lines = [line.removesuffix("\r") for line in decode(content).split("\n") if line]
        check_size(len(lines))
        found = CharTokenizer(lines)
    check_size(found.size)
    return found


def check_size(tokens: int) -> None:
    """Raises CheckpointError for more tokens than a vocabulary may have."""
    if tokens > LARGEST_VOCABULARY:
        raise CheckpointError(f"It has {tokens} tokens; {LARGEST_VOCABULARY} are allowed.")


def parse_labels(content: bytes) -> list[str]:
    """The labels of a JSON list. Raises CheckpointError for anything else, and for too many."""
    try:
        labels: Any = json.loads(decode(content))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"It is no JSON list of labels: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError("It is no JSON list of labels.")
    check_size(len(labels))
    return labels


def decode(content: bytes) -> str:
    """The text of a file. Raises CheckpointError unless it is UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"It is no UTF-8 text: {error}.") from error


def find_tokenizers(path: Path, *, key: str) -> Tokenizer:
    """The tokenizer of a path, as `find_tokenizer` finds it, or one of several languages.

    That is a folder which holds a folder with a sentencepiece model for each language. The special tokens of prompts
    come first, the languages in the order of their names. Raises ConfigError.
    """
    place = path.expanduser()
    plain = not place.is_dir() or any((place / name).is_file() for name in TOKENIZER_FILES)
    folders = [] if plain else sorted(each for each in place.iterdir() if each.is_dir() and each.name[0] != ".")
    if not any((folder / SENTENCEPIECE).is_file() for folder in folders):
        return find_tokenizer(path, key=key)
    parts: dict[str, SentencePieceTokenizer] = {}
    for folder in sorted(folders, key=lambda folder: folder.name != SPECIALS):
        part = find_tokenizer(folder, key=key)
        if not isinstance(part, SentencePieceTokenizer):
            raise ConfigError(f"{key}: {folder} holds no {SENTENCEPIECE}; a folder of languages has one in each.")
        parts[folder.name] = part
    try:
        check_size(sum(part.size for part in parts.values()))
        return AggregateTokenizer(parts)
    except CheckpointError as error:
        raise ConfigError(f"{key}: {path}: {error}") from error


def find_tokenizer(path: Path, *, key: str) -> Tokenizer:
    """The tokenizer that a user's path means. Raises ConfigError, naming the setting `key`, where there is none."""
    place = path.expanduser()
    if place.is_dir():
        found = [place / name for name in TOKENIZER_FILES if (place / name).is_file()]
        if len(found) != 1:
            what = ", ".join(each.name for each in found) or "none of them"
            raise ConfigError(f"{key}: the folder {path} holds {what}; expected is one: {ALLOWED}.")
        place = found[0]
    try:
        return parse_tokenizer(place.name, read_regular(place, at_most=LARGEST_TOKENIZER))
    except OSError as error:
        raise ConfigError(
            f"{key}: {place} cannot be read ({error.strerror or error}). Expected is {ALLOWED}."
        ) from error
    except (CheckpointError, ValueError) as error:
        raise ConfigError(f"{key}: {place}: {error} Expected is {ALLOWED}.") from error


# Folders of adapters


@dataclass(frozen=True, kw_only=True)
class StoredVocabulary:
    """The vocabulary of an adapter outside of a model; its tensors are among the adapter's."""

    tokenizer: Tokenizer
    reused: int = 0
    """Tokens that began with values of the base's."""


def folder_contents(tokenizer: Tokenizer | None) -> dict[str, bytes | None]:
    """The file of a tokenizer by its name, and the names of all others, which are not there.

    Raises ConfigError for a tokenizer that no single file holds.
    """
    own = {} if tokenizer is None else dict([tokenizer_file(tokenizer)])
    return {name: own.get(name) for name in TOKENIZER_FILES}


def check_section(section: Any, path: Path) -> None:
    """Raises AdapterError unless a description's section about a vocabulary has what is needed to read it."""
    if (
        not isinstance(section, dict)
        or section.get("file") not in TOKENIZER_FILES
        or not isinstance(section.get("digest"), str)
        or type(section.get("reused", 0)) is not int
    ):
        raise AdapterError(
            f"{path}: 'vocabulary' is malformed; it needs a digest and a file, one of {', '.join(TOKENIZER_FILES)}."
        )


def read_vocabulary(folder: Path, section: Mapping[str, Any] | None) -> StoredVocabulary | None:
    """The vocabulary that a description names, None where it names none.

    Raises AdapterError where its file is missing, damaged or another's.
    """
    if section is None:
        return None
    path = folder / section["file"]
    try:
        tokenizer = parse_tokenizer(path.name, read_regular(path, at_most=LARGEST_TOKENIZER))
    except OSError as error:
        cause = error.strerror or error
        raise AdapterError(f"{path} cannot be read: {cause}. It is the adapter's tokenizer; fetch it too.") from error
    except (CheckpointError, ValueError) as error:
        raise AdapterError(f"{path} is damaged: {error}") from error
    if tokenizer.digest() != section["digest"]:
        raise AdapterError(
            f"{path} is not the tokenizer of the adapter: its digest is {tokenizer.digest()}, the description names "
            f"{section['digest']}. Fetch or save the folder again."
        )
    return StoredVocabulary(tokenizer=tokenizer, reused=section.get("reused", 0))
