"""Learning from corrections: the next version of an adapter, kept where held-out ones are not recognised worse."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overtone.adapters.adapter import Adapter, check_name
from overtone.adapters.storage import read_folder
from overtone.adapters.words import WordPart
from overtone.errors import UsageError
from overtone.inference.retention import SHARES
from overtone.inference.word_weights import Heard, count_errors, hear
from overtone.learning.corrections import Correction, Corrections, Learnt, digest_of, now
from overtone.learning.reading import Readings
from overtone.learning.state import SETTINGS, LearnSettings, write_state
from overtone.learning.versions import CARD, TRIES_OF_WORDS, ChangedError, Version, Versions, own_tokenizer
from overtone.learning.words import ENOUGH_WORDS, WordChoice, choose_words, held_out_of
from overtone.models.asr_model import AsrModel
from overtone.models.vocabulary import tokenizer_of, writing_with
from overtone.tokenizers import Tokenizer
from overtone.wer import ErrorCounts

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Learner:
    """One adapter's folder, the base that it is of, and what it has learnt."""

    model: AsrModel
    folder: Path
    """The adapter's; it need not exist."""
    say: Say = print
    store: Corrections = field(init=False)
    versions: Versions = field(init=False)
    readings: Readings = field(init=False, default_factory=Readings)

    def __post_init__(self) -> None:
        """Raises AdapterError where the folder's name cannot be an adapter's."""
        check_name(self.name)
        self.store = Corrections(self.folder, sample_rate=self.model.sample_rate)
        self.versions = Versions(self.folder)

    @property
    def name(self) -> str:
        """The adapter's name in the model, which is its folder's."""
        return self.folder.absolute().name

    def add(self, corrections: Sequence[Correction], settings: LearnSettings) -> Version | None:
        """Add corrections, and make the version with their words, if there is one.

        Raises UsageError where another process changes the adapter.
        """
        self.check_base()
        self.check_general(settings.general)
        new = self.store.add(corrections, hours=settings.hours)
        with self.versions.change():
            write_state(self.folder, "words")
            with self.writing():
                self.say(self.describe(new))
            version = self.learn_words_of_latest(settings)
            removed = self.store.trim(settings.hours)
            if removed:
                self.say(
                    f"Recordings: {removed} removed, an even draw of {settings.hours:g} h stays; the texts stay all"
                )
            write_state(self.folder, "done", version=None if version is None else version.number)
        return version

    @property
    def exists(self) -> bool:
        """True if there is an adapter in the folder, or something that should be one."""
        return self.folder.is_dir()

    def check_base(self) -> None:
        """Raises AdapterError where the adapter is of another base, or damaged."""
        if self.exists:
            read_folder(self.folder, self.model.adapters.identity())

    def check_general(self, general: Sequence[str], folder: Path | None = None) -> None:
        """Raises UsageError for general speech beside an adapter that writes other tokens than the base.

        folder: of the adapter; None: the one in its place.
        """
        if general and self.own_tokenizer(folder) is not None:
            raise UsageError(
                f"'{self.name}' has a vocabulary of its own, and is not the base at any strength: it cannot be held to "
                f"what the base makes of general speech. Leave --general out (one that was given before is in "
                f"{self.store.folder / SETTINGS}); `overtone evaluate --general` measures such an adapter."
            )

    def own_tokenizer(self, folder: Path | None = None) -> Tokenizer | None:
        """The tokenizer of the adapter in a folder, else in its place; None where it writes the base's tokens."""
        if folder is None and not self.exists:
            return None
        return own_tokenizer(folder or self.folder, self.model.adapters.identity())

    def writing(self, version: Version | None = None) -> AbstractContextManager[object]:
        """A block in which transcripts are of the tokens of a version; None: of the adapter in its place."""
        return writing_with(self.model, self.own_tokenizer(None if version is None else version.folder))

    def read(self, lines: int | None = None) -> list[Learnt]:
        """The corrections that count after so many lines of the journal, and that the tokens of the block can write."""
        return self.readings.read(tokenizer_of(self.model), self.store.read(lines))

    def describe(self, new: int) -> str:
        """The line on what is there to learn from."""
        every, written = self.store.read(), self.read()
        heard = [own for own in written if own.audio is not None]
        held = sum(own.is_held_out for own in heard)
        strange = len(every) - len(written)
        left = f"; {strange} are left out, for the adapter's tokens cannot write them" if strange else ""
        return (
            f"Corrections: {new} new, {len(every)} in all, {len(heard)} with a recording "
            f"({sum(own.seconds for own in heard) / 60:.1f} min; {held} held out){left}"
        )

    # Words

    def learn_words_of_latest(self, settings: LearnSettings) -> Version | None:
        """The version with the words of all corrections, of the adapter that is there then: one put there is an origin.

        Raises ChangedError where the adapter was removed meanwhile, or is changed again and again.
        """
        for left in reversed(range(TRIES_OF_WORDS)):
            parent = self.versions.adopt() if self.exists else None
            try:
                self.check_general(settings.general, None if parent is None else parent.folder)
                with self.writing(parent):
                    return self.learn_words(parent, settings)
            except ChangedError:
                if not left or not self.exists:
                    raise
                self.say("Words: the adapter is another one by now, and they are learnt anew")
        raise AssertionError("the last try returns or raises")

    def learn_words(self, parent: Version | None, settings: LearnSettings) -> Version | None:
        """The version with the words of all corrections; None where there is nothing new, or it would be worse."""
        lines = len(self.store.lines())  # more may be added meanwhile: they are the next version's
        every = self.read(lines)
        before = [] if parent is None else self.read(parent.journal_lines)
        if digest_of(every) == (digest_of(()) if parent is None else parent.learnt):
            self.say("Words: nothing new")
            return None
        adapter = self.load(parent)
        origin = self.origin_of(parent)
        choice = choose_words(
            self.model,
            self.store,
            adapter=None if adapter is None else adapter.name,
            origin=self.words_of(origin),
            current=self.words_of(parent),
            before=before,
            now=every,
        )
        self.say(describe_words(choice, every))
        if choice.is_worse or choice.part is None:
            return None
        part = choice.part
        if settings.general:
            bearable = self.bear_general_speech(part, adapter, self.words_of(parent), settings)
            if bearable is None:
                return None
            part = bearable
        if adapter is None:
            adapter = self.model.adapters.add_words(self.name, part)
        adapter.words = part
        facts = {} if choice.is_crossed else judged(choice.before, choice.after)
        adapter.card = {**adapter.card, "words": {**part.describe(), **facts}}
        learnt = {"corrections": len(every), "journal_lines": lines, "learnt": digest_of(every)}
        learnt["audio_lines"] = sum(own.audio is not None for own in every)
        return self.write(adapter, parent, part="words", facts={**learnt, **facts})

    def bear_general_speech(
        self, part: WordPart, adapter: Adapter | None, current: WordPart | None, settings: LearnSettings
    ) -> WordPart | None:
        """The part with as much weight as general speech can bear; None where it cannot bear any of it."""

        model, name = self.model, None if adapter is None else adapter.name
        from overtone.training.retention import general_recordings, read_general_speech  # Lightning, seldom needed

        recordings = general_recordings(model, read_general_speech(settings.general))
        base, heard = (list(hear(model, recordings, choice)) for choice in (None, name))

        def count(words: WordPart | None, own: Sequence[Heard] = heard, choice: str | None = name) -> ErrorCounts:
            return count_errors(model, own, words, scope=lambda: model.adapters.use(choice))

        plain = count(None, base, None)
        allowed = max(plain.errors + settings.kappa / 100 * plain.reference_length, count(current).errors)
        after = plain
        for share in SHARES:
            weaker = part.weakened(share) if share < 1.0 else part
            after = count(weaker)
            if after.errors <= allowed:
                self.say(
                    f"General WER {plain.rate:.2%} (base) → {after.rate:.2%} with {share:.0%} of the words' weight"
                )
                return weaker
        self.say(f"Words: not kept, general WER would be {after.rate:.2%}, and {plain.rate:.2%} of the base")
        return None

    def origin_of(self, version: Version | None) -> Version | None:
        """The version before anything was learnt, that a version comes from; None where there was none."""
        while version is not None and version.learning:
            version = None if version.parent is None else self.versions.read(version.parent)
        return version

    def words_of(self, version: Version | None) -> WordPart | None:
        """The word part of a version."""
        return None if version is None else read_folder(version.folder, self.model.adapters.identity()).words

    # Versions

    def load(self, version: Version | None) -> Adapter | None:
        """A version in the model, in the place of what has its name there."""
        if self.name in self.model.adapters:
            self.model.adapters.remove(self.name)
        return None if version is None else self.model.adapters.load(version.folder, name=self.name)

    def write(
        self,
        adapter: Adapter,
        parent: Version | None,
        *,
        part: str,
        facts: Mapping[str, Any],
        recordings: Iterable[str] | None = None,
    ) -> Version:
        """Keep the adapter as the next version, and put it in the place of the one before.

        recordings: ids of the corrections that a new acoustic part was made of; None: it is that of the one before.
        Raises ChangedError where something else is in that place.
        """
        number = self.versions.next_number()
        adapter.card = {
            **adapter.card,
            CARD: {
                "version": number,
                "parent": None if parent is None else parent.number,
                "part": part,
                "made": now(),
                "acoustic_lines": 0 if parent is None else parent.acoustic_lines,
                **facts,
            },
        }
        self.model.adapters.save(adapter.name, self.versions.folder / str(number))
        if recordings is not None:
            self.versions.note_recordings(number, recordings)
        version = self.versions.read(number)
        if not self.versions.has_in_place(parent):
            shutil.rmtree(version.folder)
            what = "was changed" if self.exists else "was removed"
            raise ChangedError(
                f"{self.folder} {what} while it learnt, and stays so. The corrections are kept: run it again."
            )
        self.versions.serve(version)
        self.say(f"Version {number}: {self.folder}")
        return version


def judged(before: ErrorCounts | None, after: ErrorCounts | None) -> dict[str, Any]:
    """The part of a card about held-out corrections; nothing where these were too few."""
    if before is None or after is None:
        return {}
    rates = {"wer_before": round(before.rate, 6), "wer_after": round(after.rate, 6)}
    return {"held_out": {"words": before.reference_length, **rates}}


def describe_words(choice: WordChoice, every: Sequence[Learnt]) -> str:
    """The line on the word part."""
    part = choice.part
    assert part is not None
    weights = f"weight {part.weight:g}, token bonus {part.token_bonus:g}"
    if choice.before is None or choice.after is None:
        words = sum(len(own.text.split()) for own in held_out_of(every))
        return f"Words: {weights}, as before ({words} of the {ENOUGH_WORDS} held-out words that a choice needs)"
    rates = f"WER {choice.before.rate:.2%} → {choice.after.rate:.2%} on {choice.before.reference_length} held-out words"
    if choice.is_crossed:
        return (
            f"Words: {weights}; WER {choice.before.rate:.2%} without words, {choice.after.rate:.2%} with them, each of "
            f"{choice.before.reference_length} words from the other corrections"
        )
    if choice.is_worse:
        return f"Words: not kept, {rates}. The corrections stay, and count with the next ones"
    return f"Words: {weights}; {rates}"
