"""Captions (SRT, WebVTT) and NIST's CTM from words with times.

Captions follow the rules usual in subtitling (BBC Subtitle Guidelines; Netflix Timed Text Style Guide): two lines of
at most 42 characters, on screen for one to seven seconds, broken where the speaker pauses.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from overtone.decoding.hypothesis import Word

SENTENCE_ENDS = (".", "?", "!", "…", "。", "？", "！")
CLAUSE_ENDS = (",", ";", ":", "–", "—", "、", "，")


@dataclass(frozen=True, kw_only=True)
class CaptionRules:
    """Limits of captions: their length, and the time that they stay on screen."""

    line_characters: int = 42
    """Characters of a line; a longer word stays whole."""

    lines: int = 2
    """Lines of a caption."""

    longest: float = 7.0
    """Seconds that a caption may last."""

    shortest: float = 1.0
    """Seconds that a caption stays at least, where the next one leaves room."""

    pause: float = 0.8
    """Seconds of silence that end a caption."""

    gap: float = 0.08
    """Seconds kept free between two captions when the first is held (two frames of film)."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """Words shown together."""

    start: float
    """Seconds."""

    end: float
    """Seconds; not before the last word ends."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


def captions(words: Sequence[Word], rules: CaptionRules | None = None) -> list[Caption]:
    """Part the words into captions, every word in exactly one, in order."""
    rules = rules or CaptionRules()
    groups = [group for block in _blocks(words, rules) for group in _split(block, rules)]
    shown = []
    for index, group in enumerate(groups):
        start, end = group[0].start, group[-1].end
        held = max(end, start + rules.shortest)
        if index + 1 < len(groups):
            held = max(end, min(held, groups[index + 1][0].start - rules.gap))
        shown.append(Caption(start=start, end=held, words=tuple(group)))
    return shown


def lines(text: str, rules: CaptionRules | None = None) -> list[str]:
    """Break a caption's text into the fewest lines that the rules allow, of nearly equal length."""
    rules = rules or CaptionRules()
    words = text.split()
    fewest = _fill(words, rules.line_characters)
    for width in range(len(text) // max(1, len(fewest)), rules.line_characters):
        balanced = _fill(words, width)
        if len(balanced) == len(fewest):
            return balanced
    return fewest


def srt(shown: Iterable[Caption], rules: CaptionRules | None = None) -> str:
    """Captions as SubRip: numbered blocks, times with a comma."""
    blocks = (
        f"{number}\n{_clock(caption.start, ',')} --> {_clock(caption.end, ',')}\n"
        + "\n".join(lines(caption.text, rules))
        for number, caption in enumerate(shown, 1)
    )
    return "".join(f"{block}\n\n" for block in blocks)


def vtt(shown: Iterable[Caption], rules: CaptionRules | None = None) -> str:
    """Captions as WebVTT (W3C): a header, then cues; `&`, `<` and `>` are escaped."""
    blocks = (
        f"{_clock(caption.start, '.')} --> {_clock(caption.end, '.')}\n"
        + "\n".join(_escape(line) for line in lines(caption.text, rules))
        for caption in shown
    )
    return "WEBVTT\n\n" + "".join(f"{block}\n\n" for block in blocks)


def ctm(name: str, words: Iterable[Word], *, channel: str = "1", offset: float = 0.0) -> str:
    """Words as NIST's CTM (sclite): file, channel, start, duration, word, confidence.

    name: of the file; spaces in it become underscores.
    offset: seconds added to every start, for a stretch from within a file.
    """
    file = "_".join(name.split()) or "audio"
    return "".join(
        f"{file} {channel} {word.start + offset:.3f} {word.end - word.start:.3f} {written} {word.confidence:.4f}\n"
        for word in words
        for written in word.text.split()
    )


def _blocks(words: Sequence[Word], rules: CaptionRules) -> list[list[Word]]:
    """The words parted at pauses and at ends of sentences."""
    blocks: list[list[Word]] = []
    for word in words:
        last = blocks[-1][-1] if blocks else None
        if last is None or word.start - last.end >= rules.pause or last.text.endswith(SENTENCE_ENDS):
            blocks.append([])
        blocks[-1].append(word)
    return blocks


def _split(block: list[Word], rules: CaptionRules) -> list[list[Word]]:
    """A block cut into captions that fit, each cut at the best place in the second half of what would fit."""
    groups = []
    while not _fits(block, rules):
        most = 1
        while _fits(block[: most + 1], rules):
            most += 1
        rest = len(block)
        # Where two captions are enough, both shall fit; then balance decides between equal pauses.
        both = [cut for cut in range(1, most + 1) if rest - cut <= most * 2 and _fits(block[cut:], rules)]
        candidates = both or range((most + 1) // 2, most + 1)
        ideal = rest / 2 if both else most
        cut = max(candidates, key=lambda cut: (_break_quality(block, cut), -abs(cut - ideal)))
        groups.append(block[:cut])
        block = block[cut:]
    return [*groups, block]


def _break_quality(block: list[Word], cut: int) -> float:
    """The quality of a break before word `cut`: the pause in tenths of a second, and more after a comma."""
    pause = round(max(0.0, block[cut].start - block[cut - 1].end), 1) if cut < len(block) else 0.0
    return pause + (1.0 if block[cut - 1].text.endswith(CLAUSE_ENDS) else 0.0)


def _fits(group: list[Word], rules: CaptionRules) -> bool:
    if len(group) <= 1:
        return True
    if group[-1].end - group[0].start > rules.longest:
        return False
    return len(_fill([word.text for word in group], rules.line_characters)) <= rules.lines


def _fill(words: Sequence[str], width: int) -> list[str]:
    """Lines of at most `width` characters, filled one after the other; a longer word has a line of its own."""
    filled: list[str] = []
    for word in words:
        if filled and len(filled[-1]) + 1 + len(word) <= width:
            filled[-1] += " " + word
        else:
            filled.append(word)
    return filled


def _clock(seconds: float, decimal: str) -> str:
    """`01:02:03,456`."""
    milliseconds = max(0, round(seconds * 1000))
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{decimal}{rest % 1000:03d}"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
