"""The tokenizer's files as they lie in a `.nemo`."""

from __future__ import annotations

import hashlib

import sentencepiece

from overtone.errors import CheckpointError
from overtone.tokenizers import SentencePieceTokenizer, Tokenizer

FILE_PREFIX = "nemo:"
"""A configuration's mark for the name of a file in the same archive."""


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
