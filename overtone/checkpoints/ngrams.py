"""N-gram files over a model's tokens: ARPA, and NeMo's NGPU-LM (`.nemo`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overtone.adapters.storage import LFS_POINTER
from overtone.checkpoints.nemo.archive import open_archive
from overtone.checkpoints.nemo.pickles import read_state_dict
from overtone.checkpoints.nemo.torch_zip import RefusedError
from overtone.checkpoints.nemo.yaml import read_yaml
from overtone.decoding.arpa import Form, read_arpa, write_arpa
from overtone.decoding.ngram import LARGEST_ORDER, LOWEST, Ngram
from overtone.errors import CheckpointError, DataError
from overtone.files import open_regular, replace_file, write_failure
from overtone.tokenizers import Tokenizer

KENLM_MAGIC = b"mmap lm http://kheafield.com/code"
CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
NEMO_TENSORS = (
    *("arcs_weights", "backoff_weights", "final_weights", "to_states", "ilabels"),
    *("backoff_to_states", "start_end_arcs"),
)
NEMO_NEVER = -1e8
"""NeMo's weights below this stand for nothing: the end of a sentence is then that of the shorter context."""


def read_ngram(path: Path, tokenizer: Tokenizer, *, form: Form | None = None) -> Ngram:
    """The n-gram of a file. form: of the tokens in an ARPA file; None: as they look.

    Raises DataError for a file that is missing, damaged, of another kind, or of other tokens than the tokenizer's.
    """
    try:
        with open_regular(path) as file:
            start = file.read(len(KENLM_MAGIC))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if start.startswith(LFS_POINTER):
        raise DataError(f"{path} is a Git LFS pointer; fetch the file with `git lfs pull`.")
    if start == KENLM_MAGIC:
        raise DataError(
            f"{path} is KenLM's binary form, which only KenLM reads. Give the ARPA file that it was made from (lmplz "
            "writes one), or the text."
        )
    if path.suffix == ".nemo":
        return read_nemo_ngram(path, tokenizer)
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            return read_arpa(lines, tokenizer.vocabulary, form=form, name=str(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no ARPA file: it is no UTF-8 text ({error.reason}).") from error


def read_nemo_ngram(path: Path, tokenizer: Tokenizer) -> Ngram:
    """The n-gram of NeMo's NGPU-LM. Raises DataError for another file, and for another number of tokens."""
    try:
        with open_archive(path) as archive:
            config = read_yaml(archive.read(CONFIG), str(path))
            if not str(config.get("target", "")).endswith("NGramGPULanguageModel"):
                raise DataError(f"{path} is no n-gram of NeMo's but a {config.get('target')}.")
            with archive.open(WEIGHTS) as file:
                state = read_state_dict(file, str(path))
    except (CheckpointError, RefusedError) as error:
        raise DataError(str(error)) from error
    if config.get("vocab_size") != tokenizer.size:
        raise DataError(
            f"{path} has {config.get('vocab_size')} tokens, the model {tokenizer.size}: it is of another tokenizer. "
            "Build it with this model."
        )
    try:
        return Ngram.from_tensors(convert(state, config))
    except (KeyError, RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DataError(f"{path} is damaged: {error}.") from error


def convert(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of `Ngram.to_tensors` from NeMo's own. Raises KeyError, ValueError or RuntimeError for a damage."""
    weights, back, ends, to, labels, shorter, spans = (state[name] for name in NEMO_TENSORS)
    first, last = spans.long().unbind(1)
    counts = last - first
    if bool((counts < 0).any()) or int(counts.sum()) > len(weights) or bool((first < 0).any()):
        raise ValueError("the arcs of its states do not follow one another")
    owners = torch.arange(len(counts)).repeat_interleave(counts)
    ahead = torch.arange(len(owners)) - (counts.cumsum(0) - counts)[owners]
    arcs = first[owners] + ahead
    ends, at = ends.float().clone(), shorter.long()
    added = back.float().clone()
    for _ in range(LARGEST_ORDER):  # the longest context that knows the end of the sentence
        open_ends = ends < NEMO_NEVER
        ends = torch.where(open_ends & (ends[at] >= NEMO_NEVER), ends[at] + added, ends)
        added, at = added + back[at], shorter.long()[at]
    return {
        "arc_tokens": labels[arcs].int(),
        "arc_next": to[arcs].int(),
        "arc_starts": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int(),
        "backoff_states": shorter.int(),
        "head": torch.tensor([config["max_order"], int(bool(config.get("separate_bos_state", True)))]).int(),
        "arc_log_probs": weights[arcs].float().clamp(min=LOWEST),
        "backoff_log_probs": back.float().clamp(min=LOWEST),
        "end_log_probs": ends.clamp(min=LOWEST),
    }


def save_arpa(ngram: Ngram, path: Path, tokenizer: Tokenizer, *, form: Form = "offset") -> None:
    """Write an ARPA file, whole or not at all. Raises DataError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            for line in write_arpa(ngram, tokenizer.vocabulary, form=form):
                file.write(line.encode())
    except OSError as error:
        raise DataError(write_failure(path, error)) from error
