"""Language prompt of a multilingual model: a net on the encoder's output that is told the language of each row.

Legend: B batch, T encoder frames, D width, P prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overtone.errors import UsageError
from overtone.scope import Scope

AUTO = "auto"
"""The language that stands for none: the model finds it out."""
SHOWN = 20
"""Languages in a message."""
Languages = str | None | Sequence[str | None]
"""One language for all rows of a batch, or one for each; None is the model's `auto`."""
languages_in_use: Scope[Languages] = Scope("overtone_languages")
"""The languages of every net in a `speaking` block."""


class PromptKernel(nn.Module):
    """x [B, T, D], prompts [B] -> [B, T, D]: two layers over each frame and the one-hot vector of its row's prompt."""

    def __init__(self, *, width: int, prompts: int, languages: Mapping[str, int]) -> None:
        """languages: the prompt of each language, 0 to prompts-1."""
        super().__init__()
        self.width = width
        self.languages = dict(languages)
        self.up = nn.Linear(width + prompts, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, prompts: Tensor) -> Tensor:
        x, weight = x.float(), self.up.weight
        # The product with a one-hot vector is a column of the weights.
        told = weight[:, self.width + prompts].T.unsqueeze(1)  # [B, 1, 2D]
        return self.down(F.relu(F.linear(x, weight[:, : self.width], self.up.bias) + told))  # type: ignore[no-any-return]

    @contextmanager
    def speaking(self, languages: Languages) -> Iterator[Self]:
        """The languages of `prompt` inside the block."""
        with languages_in_use.choose(self, languages):
            yield self

    def prompt(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D] with the languages of the innermost `speaking` block.

        Raises UsageError as `check`, and for a list that does not fit the batch.
        """
        chosen = languages_in_use.get(self, None)
        languages = [chosen] * x.size(0) if chosen is None or isinstance(chosen, str) else list(chosen)
        if len(languages) != x.size(0):
            raise UsageError(f"{len(languages)} languages for {x.size(0)} rows; give one for all, or one for each.")
        prompted: Tensor = self(x, self.prompts_of(languages))
        return prompted

    def prompts_of(self, languages: Sequence[str | None]) -> Tensor:
        """The prompt of each row, [B] int64. Raises UsageError as `check`."""
        chosen = [self.languages[self.check(language)] for language in languages]
        return torch.tensor(chosen, device=self.up.weight.device)

    def check(self, language: str | None) -> str:
        """The language as the model spells it; None is `auto`, where the model has that.

        Raises UsageError for a language that the model does not have.
        """
        asked = language or AUTO
        if asked in self.languages:
            return asked
        found = [own for own in self.languages if own.lower() == asked.lower()]
        if found:
            return found[0]
        names = list(self.languages)
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        told = f"language '{asked[:40]}' is none of this model's" if language else "This model needs a language"
        raise UsageError(f"{told}: {', '.join(names[:SHOWN])}{more}.")
