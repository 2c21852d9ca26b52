"""Learning from corrections: the next version of an adapter, kept where held-out ones are not recognised worse."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from overtone.adapters.adapter import Adapter, check_name
from overtone.adapters.storage import read_description, read_folder
from overtone.adapters.words import WORDS_ALONE, WordPart
from overtone.data.manifest import Utterance
from overtone.errors import AdapterError, OvertoneError
from overtone.inference.retention import SHARES, choose_strength
from overtone.inference.word_weights import Heard, Recording, count_errors, hear
from overtone.learning.acoustic import enough_for_training, replay_of_card, replayed, train_acoustic_part
from overtone.learning.corrections import Correction, Corrections, Learnt, now
from overtone.learning.state import LearnSettings, write_state
from overtone.learning.versions import CARD, Version, Versions
from overtone.learning.words import ENOUGH_WORDS, WordChoice, choose_words, grow_part, held_out_of, recordings_of
from overtone.models.asr_model import AsrModel
from overtone.training.retention import (
    describe_retention,
    general_recordings,
    read_general_speech,
    retention_facts,
)
from overtone.wer import ErrorCounts

Say = Callable[[str], None]
BEFORE = "before-learning"
"""The name of the adapter of before, while it is compared."""


@dataclass(kw_only=True)
class Learner:
    """One adapter's folder, the base that it is of, and what it has learnt."""

    model: AsrModel
    folder: Path
    """The adapter's; it need not exist."""
    say: Say = print
    store: Corrections = field(init=False)
    versions: Versions = field(init=False)

    def __post_init__(self) -> None:
        """Raises AdapterError where the folder's name cannot be an adapter's."""
        check_name(self.name)
        self.store = Corrections(self.folder, sample_rate=self.model.sample_rate)
        self.versions = Versions(self.folder)

    @property
    def name(self) -> str:
        """The adapter's name in the model, which is its folder's."""
        return self.folder.resolve().name

    def learn(self, corrections: Sequence[Correction], settings: LearnSettings) -> list[Version]:
        """Add corrections, and make the versions that they lead to: of the words at once, then by a training.

        Raises UsageError where another process changes or trains the adapter.
        """
        made = [self.add(corrections, settings), *AcousticLearner(self, settings).learn()]
        return [version for version in made if version is not None]

    def add(self, corrections: Sequence[Correction], settings: LearnSettings) -> Version | None:
        """Add corrections, and make the version with their words, if there is one."""
        self.check_base()
        new = self.store.add(corrections)
        with self.versions.change():
            write_state(self.folder, "words")
            parent = self.versions.adopt() if self.exists else None
            self.say(self.describe(new))
            version = self.learn_words(parent, settings)
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
        """Raises AdapterError where the adapter is of another base, damaged, or has a vocabulary of its own."""
        if self.exists and read_folder(self.folder, self.model.adapters.identity()).vocabulary is not None:
            raise AdapterError(
                f"The adapter in {self.folder} has a vocabulary of its own, and corrections are read in the base's. "
                "Train it further on their recordings, with model.adapter.start_from."
            )

    def describe(self, new: int) -> str:
        """The line on what is there to learn from."""
        every = self.store.read()
        heard = [own for own in every if own.audio is not None]
        held = sum(own.is_held_out for own in heard)
        return (
            f"Corrections: {new} new, {len(every)} in all, {len(heard)} with a recording "
            f"({sum(own.seconds for own in heard) / 60:.1f} min; {held} held out)"
        )

    # Words

    def learn_words(self, parent: Version | None, settings: LearnSettings) -> Version | None:
        """The version with the words of all corrections; None where there is nothing new, or it would be worse."""
        every = self.store.read()
        before = [] if parent is None else self.store.read(parent.journal_lines)
        if {own.id for own in every} == {own.id for own in before}:
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
        return self.write(adapter, parent, part="words", facts=facts)

    def bear_general_speech(
        self, part: WordPart, adapter: Adapter | None, current: WordPart | None, settings: LearnSettings
    ) -> WordPart | None:
        """The part with as much weight as general speech can bear; None where it cannot bear any of it."""
        model, name = self.model, None if adapter is None else adapter.name
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

    def write(self, adapter: Adapter, parent: Version | None, *, part: str, facts: Mapping[str, Any]) -> Version:
        """Keep the adapter as the next version, and put it in the place of the one before."""
        number = self.versions.next_number()
        adapter.card = {
            **adapter.card,
            CARD: {
                "version": number,
                "parent": None if parent is None else parent.number,
                "part": part,
                "made": now(),
                "corrections": len(self.store.read()),
                "journal_lines": len(self.store.lines()),
                "acoustic_lines": 0 if parent is None else parent.acoustic_lines,
                **facts,
            },
        }
        self.model.adapters.save(adapter.name, self.versions.folder / str(number))
        version = self.versions.read(number)
        self.versions.serve(version)
        self.say(f"Version {number}: {self.folder}")
        return version


class AcousticLearner:
    """Trains the acoustic part of an adapter as long as there is something new, and judges it."""

    def __init__(self, learner: Learner, settings: LearnSettings) -> None:
        self.learner, self.settings = learner, settings
        self.model, self.store, self.versions = learner.model, learner.store, learner.versions
        self.judged_lines = -1
        """Lines of the journal that the last training was made of."""
        self.was_changed = False
        """True once somebody has changed the adapter meanwhile: it stays as it is until there is something new."""

    def learn(self) -> list[Version]:
        """Train until nothing is new. Raises UsageError where another process trains the adapter."""
        made = []
        with self.versions.training():
            while (lines := self.find_work()) is not None:
                version = self.train(lines)
                if version is not None:
                    made.append(version)
        return made

    def find_work(self) -> int | None:
        """The lines of the journal to train on; None where there is nothing new, or too little."""
        current = self.versions.current()
        lines = len(self.store.lines())
        if current is None or lines == self.judged_lines or self.was_changed:
            return None
        now_heard, before = (
            {own.id for own in self.store.read(end) if own.audio is not None} for end in (lines, current.acoustic_lines)
        )
        if not now_heard - before:
            if self.judged_lines < 0:
                self.learner.say("Acoustic part: no new recordings")
            return None
        if reason := enough_for_training(self.store.read(lines)):
            self.learner.say(f"Acoustic part: not yet, there are {reason}")
            return None
        return lines

    def train(self, lines: int) -> Version | None:
        """One training, on so many lines of the journal; the version, if it is kept."""
        self.judged_lines = lines
        say, folder, name = self.learner.say, self.learner.folder, self.learner.name
        current = self.versions.current()
        assert current is not None
        corrections = self.store.read(lines)
        replay = self.find_replay(current, len(corrections))
        stored = read_folder(current.folder, self.model.adapters.identity())
        self.learner.load(None)
        say(f"Acoustic part: training on {sum(own.audio is not None for own in corrections)} recordings")

        def watch(step: int, steps: int) -> None:
            if step % 5 == 0 or step == steps:
                write_state(folder, "training", step=step, steps=steps)

        write_state(folder, "training", step=0)
        try:
            adapter = train_acoustic_part(
                self.model,
                name,
                self.store.folder,
                start_from=None if stored.kind == WORDS_ALONE else current.folder,
                kind=self.settings.kind,
                corrections=corrections,
                replay=replay,
                steps=self.settings.steps,
                watch=watch,
            )
            with self.versions.change():
                version = self.judge(adapter, current, corrections, lines)
        except BaseException as error:
            failed = isinstance(error, OvertoneError)
            write_state(folder, "failed" if failed else "ended", message=str(error) if failed else "")
            raise
        write_state(folder, "done", version=None if version is None else version.number)
        return version

    def find_replay(self, current: Version, count: int) -> list[Utterance]:
        """Speech that was learnt before learning began, beside the corrections."""
        origin = self.learner.origin_of(current)
        if origin is None or read_folder(origin.folder, self.model.adapters.identity()).kind == WORDS_ALONE:
            return []
        names = list(self.settings.replay) or replay_of_card(origin.card)
        if not names:
            self.learner.say(
                "Replay: none, for the manifests that the adapter was trained on are not where its card says; "
                "--replay names them"
            )
            return []
        found = replayed(self.model, names, count)
        self.learner.say(f"Replay: {len(found)} utterances of {', '.join(names)}")
        return found

    def judge(self, adapter: Adapter, start: Version, corrections: Sequence[Learnt], lines: int) -> Version | None:
        """Keep the trained adapter if held-out corrections, and general speech, are recognised no worse with it."""
        model, name, say = self.model, adapter.name, self.learner.say
        current, active = self.versions.current(), {own.id for own in self.store.read()}
        same = current is not None and read_description(current.folder)["parameters_digest"]
        if current is None or same != read_description(start.folder)["parameters_digest"]:
            self.was_changed = True
            say("Acoustic part: not kept, the adapter is another one by now")
            return None
        if not {own.id for own in corrections} <= active:
            self.was_changed = True
            say("Acoustic part: not kept, some of its corrections have been set aside meanwhile")
            return None
        words = self.learner.words_of(current)
        blind = self.blind_words(current, words)
        recordings = recordings_of(model, self.store, held_out_of(corrections))
        model.adapters.load(current.folder, name=BEFORE)
        try:
            before = count_errors(
                model, list(hear(model, recordings, BEFORE)), blind, scope=lambda: model.adapters.use(BEFORE)
            )
        finally:
            model.adapters.remove(BEFORE)
        weakened = self.weaken(adapter, words, recordings)
        words, facts = (words, None) if weakened is None else weakened
        after = count_errors(model, list(hear(model, recordings, name)), blind, scope=lambda: model.adapters.use(name))
        rates = f"WER {before.rate:.2%} → {after.rate:.2%} on {before.reference_length} held-out words"
        if after.errors > before.errors or facts is None:
            say(f"Acoustic part: not kept, {rates}. The recordings stay, and count with the next ones")
            return None
        say(f"Acoustic part: {rates}")
        adapter.words = words
        adapter.card = {**adapter.card, **({} if words is None else {"words": words.describe()}), **facts}
        journal = {"journal_lines": current.journal_lines, "acoustic_lines": lines}
        return self.learner.write(adapter, current, part="acoustic", facts={**journal, **judged(before, after)})

    def blind_words(self, current: Version, words: WordPart | None) -> WordPart | None:
        """Today's words as they would be without the held-out corrections, by which the acoustic part is judged."""
        origin = self.learner.words_of(self.learner.origin_of(current))
        known = [own for own in self.store.read(current.journal_lines) if not own.is_held_out]
        if words is None or not known:
            return origin
        return grow_part(self.model, origin, known, words)

    def weaken(
        self, adapter: Adapter, words: WordPart | None, recordings: Sequence[Recording]
    ) -> tuple[WordPart | None, dict[str, Any]] | None:
        """Make the adapter as weak as general speech needs it; its words, and facts for its card.

        None where it cannot be weak enough.
        """
        if not self.settings.general:
            return words, {}
        model = self.model
        general = general_recordings(model, read_general_speech(self.settings.general))
        found = choose_strength(
            model,
            adapter,
            words,
            general=lambda choice: hear(model, general, choice),
            domain=lambda choice: hear(model, recordings, choice),
            kappa=self.settings.kappa,
        )
        self.learner.say(describe_retention(found))
        if found.chosen is None:
            return None
        return found.chosen.part, {"retention": retention_facts(found)}


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
