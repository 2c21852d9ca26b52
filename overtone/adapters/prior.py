"""The general prior of the embedded base: an n-gram of general English over its tokens, with the weights it acts with.

It belongs to a tokenizer: any model with the embedded base's tokens has it. Domains are mixed with it by reference, so
that an adapter's file does not hold it, and it is in memory once.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from safetensors.torch import load

from overtone.decoding.ngram import Ngram
from overtone.decoding.ngram_compact import expand

PRIOR = "prior"
"""The name that the general prior has among adapters, unless a model has an adapter or folder of that name."""
FILE = Path(__file__).resolve().parents[1] / "fundamental" / "prior.safetensors"
"""A word part as adapters have it, written by recipes/fundamental/prior.py."""
SHARE = 0.5
"""The general prior's share in a mixture where no recordings are there to choose it with."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prior:
    """An n-gram of general text over the tokens of one tokenizer, and the weights that were chosen for it alone."""

    tokenizer_digest: str
    digest: str
    """SHA-256 of its file; adapters that are mixed with it name it."""
    ngram: Ngram
    weight: float
    token_bonus: float
    beam: int = 0
    """Prefixes of the search that it was tuned with; 0 leaves that to the decoder."""


def find_prior(tokenizer_digest: str) -> Prior | None:
    """The general prior over the tokens of a tokenizer, None where there is none."""
    return read_prior(FILE) if find_tokenizer(FILE) == tokenizer_digest else None


@cache
def find_tokenizer(path: Path) -> str | None:
    """Digest of the tokenizer of a prior's file; None where there is no file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found: str = header["__metadata__"]["tokenizer_digest"]
    return found


@cache
def read_prior(path: Path) -> Prior | None:
    """The prior of a file of this package, read once; None where the package was installed without it.

    Its n-gram is compact there. Files of adapters, which may come from anybody, have no such form.
    """
    tokenizer_digest = find_tokenizer(path)
    if tokenizer_digest is None:
        return None
    content = path.read_bytes()
    tensors = load(content)
    weight, token_bonus = tensors["settings"].tolist()
    ngram = {name.removeprefix("ngram."): tensor for name, tensor in tensors.items() if name.startswith("ngram.")}
    return Prior(
        tokenizer_digest=tokenizer_digest,
        digest=f"sha256:{hashlib.sha256(content).hexdigest()}",
        ngram=Ngram.from_tensors(expand(ngram)),
        weight=weight,
        token_bonus=token_bonus,
        beam=int(tensors["beam"]),
    )
