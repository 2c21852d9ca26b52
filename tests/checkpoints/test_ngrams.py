"""Files of n-grams on disk: ARPA and NeMo's own, and files that are something else."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from overtone.checkpoints.nemo.archive import write_archive
from overtone.checkpoints.ngrams import KENLM_MAGIC, read_ngram, save_arpa
from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_counts import build_ngram
from overtone.errors import DataError
from overtone.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer([" ", "a", "b", "c"])
TARGET = "nemo.collections.asr.parts.submodules.ngram_lm.ngram_lm_batched.NGramGPULanguageModel"


@pytest.fixture
def ngram() -> Ngram:
    return build_ngram([[1, 2, 3], [1, 2, 0, 1]], vocabulary_size=4, order=3)


def nemo_state(ngram: Ngram) -> dict[str, Tensor]:
    """NeMo's tensors: state 1 is the beginning of a sentence, arcs have room at their end, and the end of the sentence
    is missing where the shorter context knows it.
    """
    arcs = ngram.arcs
    order = torch.arange(ngram.states)
    order[1], order[ngram.start] = ngram.start, 1  # its own inverse
    room = torch.zeros(4)
    ends = arcs.end_log_probs.clone()
    implied = (ends - arcs.backoff_log_probs - ends[arcs.backoff_states]).abs() < 1e-6
    ends[1:][implied[1:]] = -1e20
    return {
        "arcs_weights": torch.cat([arcs.log_probs, room]),
        "backoff_weights": arcs.backoff_log_probs[order],
        "final_weights": ends[order],
        "from_states": torch.zeros(len(ngram) + 4, dtype=torch.int32),
        "to_states": torch.cat([order[arcs.next], room.long()]).int(),
        "ilabels": torch.cat([arcs.tokens, room.long()]).int(),
        "backoff_to_states": order[arcs.backoff_states[order]].int(),
        "start_end_arcs": torch.stack([arcs.starts[:-1], arcs.starts[1:]], dim=1)[order].int(),
        "state_order": torch.ones(ngram.states, dtype=torch.int32),
    }


def write_nemo(path: Path, state: dict[str, Tensor], *, target: str = TARGET, size: int = 4) -> Path:
    weights = io.BytesIO()
    torch.save(state, weights)
    config = f"max_order: 3\nvocab_size: {size}\nseparate_bos_state: true\ntarget: {target}\n"
    write_archive(path, [("model_config.yaml", config.encode()), ("model_weights.ckpt", weights.getvalue())])
    return path


def test_an_arpa_comes_back(ngram: Ngram, tmp_path: Path) -> None:
    save_arpa(ngram, tmp_path / "deep" / "words.arpa", TOKENIZER)
    again = read_ngram(tmp_path / "deep" / "words.arpa", TOKENIZER, form="offset")
    assert again.sentence_log_prob([1, 2, 3]) == pytest.approx(ngram.sentence_log_prob([1, 2, 3]), abs=1e-4)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["words.arpa"]


def test_an_ngram_of_nemo_is_read(ngram: Ngram, tmp_path: Path) -> None:
    again = read_ngram(write_nemo(tmp_path / "words.nemo", nemo_state(ngram)), TOKENIZER)
    for tokens in ([1, 2, 3], [1, 2, 0, 1], [3], [], [2, 2, 1, 1]):
        assert again.sentence_log_prob(tokens) == pytest.approx(ngram.sentence_log_prob(tokens), abs=1e-4)


def edited(state: dict[str, Tensor], **changes: Any) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in {**state, **changes}.items() if tensor is not None}


@pytest.mark.parametrize(
    "changes",
    [
        {"to_states": None},
        {"to_states": torch.full((17,), 99, dtype=torch.int32)},
        {"start_end_arcs": torch.full((11, 2), -1, dtype=torch.int32)},
        {"start_end_arcs": torch.zeros(3, dtype=torch.int32)},
        {"backoff_to_states": torch.full((11,), 1, dtype=torch.int32)},
        {"arcs_weights": torch.full((17,), torch.nan)},
    ],
)
def test_a_damaged_ngram_of_nemo_is_refused(changes: dict[str, Any], ngram: Ngram, tmp_path: Path) -> None:
    path = write_nemo(tmp_path / "words.nemo", edited(nemo_state(ngram), **changes))
    with pytest.raises(DataError, match="damaged"):
        read_ngram(path, TOKENIZER)


def test_other_files_are_refused(ngram: Ngram, tmp_path: Path) -> None:
    state = nemo_state(ngram)
    (tmp_path / "kenlm.bin").write_bytes(KENLM_MAGIC + b" version 5\n\0" + bytes(64))
    (tmp_path / "pointer.arpa").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "noise.arpa").write_bytes(b"\\data\\\nngram 1=1\n\\1-grams:\n\xff\xfe")
    (tmp_path / "text.nemo").write_text("hello")
    write_nemo(tmp_path / "model.nemo", state, target="nemo.collections.asr.models.EncDecCTCModel")
    write_nemo(tmp_path / "foreign.nemo", state, size=5)
    expected = {
        "none.arpa": "cannot be read",
        "kenlm.bin": "Give the ARPA file that it was made from",
        "pointer.arpa": "git lfs pull",
        "noise.arpa": "no UTF-8",
        "text.nemo": "no .nemo file",
        "model.nemo": "is no n-gram of NeMo's",
        "foreign.nemo": "has 5 tokens, the model 4",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message):
            read_ngram(tmp_path / name, TOKENIZER)
