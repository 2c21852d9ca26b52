"""A tokenizer of given pieces, which spells and cuts nothing itself."""

from __future__ import annotations


class Pieces:
    """A tokenizer of the pieces given, cutting nothing itself."""

    languages = ()

    def __init__(self, pieces: list[str]) -> None:
        self.vocabulary, self.size = pieces, len(pieces)
        self.spelled = [piece.replace("▁", " ") for piece in pieces]

    def decode(self, ids: list[int]) -> str:
        return "".join(self.vocabulary[piece] for piece in ids).replace("▁", " ").strip()

    def pieces(self, ids: list[int]) -> list[str]:
        return [self.vocabulary[piece] for piece in ids]

    def words(self, ids: list[int]) -> list[tuple[str, int, int]]:
        starts = [index for index, piece in enumerate(ids) if index == 0 or self.vocabulary[piece].startswith("▁")]
        ends = [*starts[1:], len(ids)]
        return [(self.decode(ids[first:end]), first, end) for first, end in zip(starts, ends, strict=True)]

    def unwritable(self, text: str, language: str | None = None) -> list[str]:
        return [sign for sign in text if sign not in "".join(self.vocabulary) + " "]
