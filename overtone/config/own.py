"""Settings of a training that are ours alone: words, flat start, prefix cache; and CTC on inner layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from overtone.config.fields import bounded


@dataclass(frozen=True, kw_only=True)
class WordsSettings:
    """Ours: the adapter's word part, counted from the training transcripts and from more text."""

    text: str | tuple[str, ...] | None = None
    """Files of further text, a sentence a line."""
    phrases: str | None = None
    """File of phrases to expect, one a line, each with its boost behind a tab or without."""
    order: int = bounded(6, at_least=1, at_most=10)
    """Tokens of the longest n-gram."""
    prior: bool = True
    """Mix the n-gram with the general prior of the base's tokens, where there is one."""


@dataclass(frozen=True, kw_only=True)
class VocabularySettings:
    """Ours: a vocabulary of the adapter's own, with new heads over its tokens."""

    tokenizer: str | None = None
    """A sentencepiece model, a WordPiece `vocab.txt`, a file with one label a line, or a folder with one of them."""
    labels: tuple[str, ...] | None = None
    """The characters, or whole words, in the place of a file."""
    reuse: bool = True
    """Tokens that the base has too begin with the base's values."""


@dataclass(frozen=True, kw_only=True)
class RetentionSettings:
    """Ours: the strongest adapter is kept with which general speech is not recognised worse than this allows."""

    manifest: str | tuple[str, ...] | None = None
    """Manifests of general speech, on which the strength is chosen."""
    kappa: float = bounded(0.5, at_least=0)
    """Points of word error rate that general speech may lose against the base."""


@dataclass(frozen=True, kw_only=True)
class InterCtcSettings:
    """CTC on the outputs of inner layers too (Lee and Watanabe 2021); empty: as the checkpoint was trained."""

    loss_weights: tuple[float, ...] = ()
    """Share of each inner loss in the whole; the final one has the rest."""
    apply_at_layers: tuple[int, ...] = ()
    """The layers, counted from 0, whose outputs the head is applied to."""


@dataclass(frozen=True, kw_only=True)
class FlatStartSettings:
    """Ours: a first guess of where the tokens lie, for a model with fresh weights.

    The tokens of a transcript are spread evenly over the loud part of the utterance, and their frame-wise likelihood
    is trained beside CTC, less and less. CTC alone may stay at blanks for hours of audio.
    """

    steps: int = bounded(0, at_least=0)
    """Steps over which the weight falls to nothing; 0 is no flat start."""
    weight: float = bounded(4.0, at_least=0)
    """Weight of the frame-wise loss at the first step."""


@dataclass(frozen=True, kw_only=True)
class PrefixCacheSettings:
    """Ours: the outputs of the frozen part below the adapter are computed once for each utterance and cached.

    That part computes as in evaluation then: without dropout, and its features without dither.
    """

    enabled: bool | Literal["auto"] = "auto"
    """auto: as far as nothing random lies below, so that the training is the same; true: up to the adapter."""
    memory_gb: float = bounded(2.0, at_least=0)
    """Most memory that is taken, in each process."""
    folder: str | None = None
    """Folder of the cache, for later runs too; null caches in memory alone."""
    disk_gb: float = bounded(20.0, above=0)
    """Most that this folder may hold."""
    variants: int = bounded(1, at_least=1)
    """Draws of what is random in an utterance (augmentor, spec_augment), taken in turn over the epochs."""
