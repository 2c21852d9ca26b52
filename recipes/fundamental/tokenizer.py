"""Train the byte-pair tokenizer of the fundamental, in the three files that NeMo expects."""

from __future__ import annotations

from pathlib import Path

import sentencepiece

WORD_START = "▁"
UNKNOWN = "<unk>"


def train_tokenizer(*, texts: Path, folder: Path, size: int) -> None:
    """Write `tokenizer.model`, `tokenizer.vocab` and `vocab.txt` with `size` pieces learnt from the lines of `texts`.

    The pieces are byte pairs over lower-case letters and the apostrophe; id 0 is the unknown piece and there are no
    sentence marks. `vocab.txt` is spelt as NeMo's process_asr_text_tokenizer.py spells it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.Train(
        input=str(texts),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=size,
        character_coverage=1.0,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,
        minloglevel=1,
    )
    lines = (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    pieces = [line.split("\t")[0] for line in lines]
    if len(pieces) != size or pieces[0] != UNKNOWN:
        raise SystemExit(f"the tokenizer has {len(pieces)} pieces starting with {pieces[0]!r}, expected {size}")
    spelt = [spell(piece) + "\n" for piece in pieces if piece != UNKNOWN]
    (folder / "vocab.txt").write_text("".join(spelt), encoding="utf-8")


def spell(piece: str) -> str:
    """A sentencepiece piece in the spelling of BERT vocabularies: the mark goes to pieces inside a word."""
    if not piece.startswith(WORD_START):
        return f"##{piece}"
    return piece.removeprefix(WORD_START) or WORD_START
