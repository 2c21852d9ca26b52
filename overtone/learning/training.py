"""The acoustic part of an adapter that learns: trained as long as there is something new, judged, kept or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from overtone.adapters.adapter import Adapter
from overtone.adapters.card import part
from overtone.adapters.storage import read_description, read_folder
from overtone.adapters.words import WORDS_ALONE, WordPart
from overtone.data.manifest import Utterance
from overtone.errors import OvertoneError
from overtone.inference.retention import choose_strength, weaken
from overtone.inference.word_weights import Recording, count_errors, hear
from overtone.learning.acoustic import (
    enough_for_training,
    heard_in_training,
    replay_of_card,
    replayed,
    train_acoustic_part,
)
from overtone.learning.corrections import Correction, Learnt
from overtone.learning.learn import Learner, judged
from overtone.learning.state import LearnSettings, write_state
from overtone.learning.versions import ChangedError, Version
from overtone.learning.words import grow_part, held_out_of, recordings_of, without_held_out
from overtone.training.retention import (
    describe_retention,
    general_recordings,
    read_general_speech,
    retention_facts,
)

BEFORE = "before-learning"
"""The name of the adapter of before, while it is compared."""


def learn(learner: Learner, corrections: Sequence[Correction], settings: LearnSettings) -> list[Version]:
    """Add corrections, and make the versions that they lead to: of the words at once, then by a training.

    Raises UsageError where another process changes or trains the adapter.
    """
    made = [learner.add(corrections, settings), *AcousticLearner(learner, settings).learn()]
    return [version for version in made if version is not None]


class AcousticLearner:
    """Trains the acoustic part of an adapter as long as there is something new, and judges it."""

    def __init__(self, learner: Learner, settings: LearnSettings) -> None:
        self.learner, self.settings = learner, settings
        self.model, self.store, self.versions = learner.model, learner.store, learner.versions
        self.judged: set[str] | None = None
        """Ids of the corrections whose recordings the last training was made of; None before the first."""
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
        if current is None or self.was_changed:
            return None
        with self.learner.writing(current):
            corrections = self.learner.read(lines)
        heard = ids_of_heard(corrections)
        if self.judged is not None and heard <= self.judged:  # fewer, where recordings are removed meanwhile
            return None
        if not heard - self.versions.recordings_of(current, self.store):
            if self.judged is None:
                self.learner.say("Acoustic part: no new recordings")
            return None
        if reason := enough_for_training(corrections):
            self.learner.say(f"Acoustic part: not yet, there are {reason}")
            return None
        return lines

    def train(self, lines: int) -> Version | None:
        """One training, on so many lines of the journal; the version, if it is kept."""
        current = self.versions.current()
        assert current is not None
        self.learner.check_general(self.settings.general, current.folder)
        with self.learner.writing(current):
            return self.train_on(lines, current)

    def train_on(self, lines: int, current: Version) -> Version | None:
        """The same, in a block of the adapter's tokens. current: the version to go on from."""
        say, folder, name = self.learner.say, self.learner.folder, self.learner.name
        corrections = self.learner.read(lines)
        self.judged = ids_of_heard(corrections)
        replay = self.find_replay(current, len(corrections))
        stored = read_folder(current.folder, self.model.adapters.identity())
        self.learner.load(None)
        say(
            "Acoustic part: training on {trained_lines} of the {audio_lines} corrections with a recording, judged on "
            "{judged_lines} that are held out".format(**self.count_lines(corrections))
        )

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
                say=say,
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
            self.learner.say(f"Replay: none, for {describe_missing(origin.card)}; --replay names recordings")
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
        blind = self.blind_words(current, words, corrections)
        recordings = recordings_of(model, self.store, held_out_of(corrections))
        model.adapters.load(current.folder, name=BEFORE)
        try:
            before = count_errors(
                model, list(hear(model, recordings, BEFORE)), blind, scope=lambda: model.adapters.use(BEFORE)
            )
        finally:
            model.adapters.remove(BEFORE)
        weakened = self.weaken(adapter, blind, recordings)
        share, facts = (1.0, None) if weakened is None else weakened
        acting = weaken(blind, share)
        after = count_errors(model, list(hear(model, recordings, name)), acting, scope=lambda: model.adapters.use(name))
        rates = f"WER {before.rate:.2%} → {after.rate:.2%} on {before.reference_length} held-out words"
        if after.errors > before.errors or facts is None:
            say(f"Acoustic part: not kept, {rates}. The recordings stay, and count with the next ones")
            return None
        say(f"Acoustic part: {rates}")
        adapter.words = words = weaken(words, share)
        adapter.card = {**adapter.card, **({} if words is None else {"words": words.describe()}), **facts}
        journal = {"journal_lines": current.journal_lines, "learnt": current.learnt, "acoustic_lines": lines}
        counted = {"corrections": len(corrections), **self.count_lines(corrections)}
        described = {**journal, **counted, **judged(before, after)}
        heard = ids_of_heard(corrections)
        try:
            return self.learner.write(adapter, current, part="acoustic", facts=described, recordings=heard)
        except ChangedError:
            self.was_changed = True
            say("Acoustic part: not kept, the adapter is another one by now")
            return None

    def count_lines(self, corrections: Sequence[Learnt]) -> dict[str, int]:
        """Numbers of corrections with a recording, and of those that the acoustic part is trained and judged on."""
        return {
            "audio_lines": len(ids_of_heard(corrections)),
            "trained_lines": len(heard_in_training(self.model, corrections)),
            "judged_lines": len(held_out_of(corrections)),
        }

    def blind_words(self, current: Version, words: WordPart | None, corrections: Sequence[Learnt]) -> WordPart | None:
        """Today's words as they would be without the held-out corrections, by which the acoustic part is judged."""
        origin = self.learner.words_of(self.learner.origin_of(current))
        known = without_held_out(self.learner.read(current.journal_lines), corrections)
        if words is None or not known:
            return origin
        return grow_part(self.model, origin, known, words)

    def weaken(
        self, adapter: Adapter, blind: WordPart | None, recordings: Sequence[Recording]
    ) -> tuple[float, dict[str, Any]] | None:
        """Make the adapter as weak as general speech needs it; the share of its words' weight, and facts for its card.

        blind: words that do not know the recordings. None where it cannot be weak enough.
        """
        if not self.settings.general:
            return 1.0, {}
        model = self.model
        general = general_recordings(model, read_general_speech(self.settings.general))
        found = choose_strength(
            model,
            adapter,
            blind,
            general=lambda choice: hear(model, general, choice),
            domain=lambda choice: hear(model, recordings, choice),
            kappa=self.settings.kappa,
        )
        self.learner.say(describe_retention(found))
        if found.chosen is None:
            return None
        return found.chosen.share, {"retention": retention_facts(found)}


def describe_missing(card: Mapping[str, Any]) -> str:
    """The reason why a card names no speech to be replayed."""
    data = part(card, "data")
    if "spoken" in data:
        return "the adapter was trained on text that a voice spoke, and these recordings are not kept"
    if not data.get("manifest"):
        return "the adapter's card does not say what it was trained on"
    return "the manifests that the adapter was trained on are not where its card says"


def ids_of_heard(corrections: Sequence[Learnt]) -> set[str]:
    """Ids of the corrections that have a recording."""
    return {own.id for own in corrections if own.audio is not None}
