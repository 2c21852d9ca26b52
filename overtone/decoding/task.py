"""Tasks of multitask models: languages, translation, punctuation and the like, as text and as the tokens of a prompt.

A task is written `LANGUAGE`, `SOURCE>TARGET` for a translation, or either with further slots: `de>en,pnc=no`. The
formats are `canary` and `canary2`, after the models that brought them.

Legend: B batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from torch import Tensor

from overtone.errors import UsageError, did_you_mean
from overtone.languages import match_language
from overtone.nets.prompt import SHOWN, Languages, languages_in_use
from overtone.tokenizers import Tokenizer

BEGIN, END, PAD, CONTEXT = "<|startoftranscript|>", "<|endoftext|>", "<pad>", "<|startofcontext|>"
FLAGS = ("pnc", "itn", "timestamp", "diarize")
"""Slots that are on or off: punctuation and capitals, numbers in digits, times of words, speakers."""
YES, NO = ("yes", "true", "1"), ("no", "false", "0")
TASKS = {
    **dict.fromkeys(("transcribe", "asr", "<|transcribe|>"), "<|transcribe|>"),
    **dict.fromkeys(("translate", "ast", "s2t_translation", "<|translate|>"), "<|translate|>"),
}
SLOTS = {
    "canary": ("source_lang", "task", "target_lang", "pnc"),
    "canary2": ("emotion", "source_lang", "target_lang", *FLAGS),
}
"""Slots of each format in the order of the prompt; canary2 has `decodercontext` besides, before them."""
DEFAULTS = {"pnc": "<|pnc|>", "emotion": "<|emo:undefined|>", **{flag: f"<|no{flag}|>" for flag in FLAGS[1:]}}
TIME = re.compile(r"<\|\d+\|>")
LANGUAGE = re.compile(r"<\|[a-z]{2,3}(-[A-Za-z]{2,4})?\|>")
PROMPT_SHARE = 2
"""A prompt with a context is shorter than the decoder's positions divided by this: the text needs the others."""
CONTEXT_CHARACTERS = 16
"""Characters of a context for each position of the decoder; longer ones are not even encoded."""


class TaskPrompts:
    """The prompts of one model, and the task of each row of a batch as long as a `speaking` block lasts."""

    def __init__(
        self, tokenizer: Tokenizer, form: str, defaults: Mapping[str, str], *, max_length: int | None = None
    ) -> None:
        """form: `canary` or `canary2`. defaults: values of slots that a task does not name.

        max_length: positions of the decoder, for prompt and text together; None: no prompt is too long.
        Raises UsageError for defaults that the model does not have, and where its vocabulary lacks a special token.
        """
        self.tokenizer = tokenizer
        self.form = form
        self.max_length = max_length
        self.specials: dict[str, int] = {}
        for piece_id, piece in enumerate(tokenizer.vocabulary):
            if piece == PAD or (piece.startswith("<|") and piece.endswith("|>")):
                self.specials.setdefault(piece, piece_id)
        for token in (BEGIN, END, PAD, *([CONTEXT] if form == "canary2" else [])):
            if token not in self.specials:
                raise UsageError(f"The vocabulary has no {token}, which prompts of the format {form} need.")
        self.times = {own: int(piece[2:-2]) for piece, own in self.specials.items() if TIME.fullmatch(piece)}
        """Tokens that say a time, with the encoder frame that each means."""
        self.begin, self.end, self.pad = (self.specials[token] for token in (BEGIN, END, PAD))
        spoken = [piece[2:-2] for piece in self.specials if LANGUAGE.fullmatch(piece) and piece[2:-2] not in FLAGS]
        written = tokenizer.languages or spoken
        self.languages = tuple(name for name in spoken if match_language(name, written) is not None)
        """Languages that the model writes, as messages list them; its vocabulary may have tokens for further ones."""
        self.known = spoken
        self.defaults: dict[str, str] = {}
        first = "en" if "en" in self.languages else next(iter(self.languages), "en")
        self.defaults = self.read({"source_lang": first, "target_lang": first, **defaults})
        self.encoded: dict[str | None, tuple[int, ...]] = {}

    @contextmanager
    def speaking(self, languages: Languages) -> Iterator[Self]:
        """The tasks of all rows, or of each, inside the block."""
        with languages_in_use.choose(self, languages):
            yield self

    def prompt(self, x: Tensor) -> Tensor:
        """x [B, T, D] as it is: the decoder is told the task, not the encoder's output."""
        return x

    def rows(self, count: int) -> list[str | None]:
        """The tasks of so many rows in the innermost `speaking` block. Raises UsageError for a list of another size."""
        chosen = languages_in_use.get(self, None)
        tasks = [chosen] * count if chosen is None or isinstance(chosen, str) else list(chosen)
        if len(tasks) != count:
            raise UsageError(f"{len(tasks)} languages for {count} rows; give one for all, or one for each.")
        return tasks

    def check(self, task: str | None) -> str:
        """The task as text in its shortest form.

        Raises UsageError for what the model does not have, and for a context that leaves too little room for the text.
        """
        slots = self.slots(task)
        if slots.get("decodercontext"):
            self.tokens(task)
        return self.write(slots)

    def tokens(self, task: str | None) -> tuple[int, ...]:
        """The tokens of the prompt. Raises UsageError as `check`."""
        if task not in self.encoded:
            if len(self.encoded) > 1000:
                self.encoded = {}
            self.encoded[task] = tuple(self.encode_checked(self.slots(task)))
        return self.encoded[task]

    def most_tokens(self, task: str | None) -> int | None:
        """Tokens of the longest text behind the prompt; None: any. Raises UsageError as `check`."""
        return None if self.max_length is None else self.max_length - len(self.tokens(task))

    def asks_times(self, task: str | None) -> bool:
        """True if the text is to hold tokens that say when its words begin and end. Raises UsageError as `check`."""
        return bool(self.times) and self.slots(task).get("timestamp") == "<|timestamp|>"

    def slots(self, task: str | None) -> dict[str, str]:
        """The value of every slot, special tokens but for `decodercontext`. Raises UsageError as `check`."""
        named: dict[str, str] = {}
        rest = task or ""
        while rest:
            part, _, later = rest.partition(",")
            name, equals, value = part.partition("=")
            if name.strip() == "decodercontext":
                named["decodercontext"] = rest.partition("=")[2]
                break
            if equals:
                named[name.strip()] = value.strip()
            else:
                source, arrow, target = part.strip().partition(">")
                named |= {"source_lang": source.strip(), "target_lang": target.strip() if arrow else source.strip()}
            rest = later
        return self.read(named)

    def read(self, named: Mapping[str, str]) -> dict[str, str]:
        """Named slots as special tokens, with the defaults for the others. Raises UsageError as `check`."""
        named = {("task" if name == "taskname" else name): value for name, value in named.items()}
        allowed = [*SLOTS[self.form], *(["decodercontext"] if self.form == "canary2" else [])]
        found = {**DEFAULTS, "decodercontext": "", **self.defaults}
        for name, value in named.items():
            if name not in allowed:
                raise UsageError(
                    f"'{name[:40]}' is no slot of this model's prompt.{did_you_mean(name, allowed)} "
                    f"Allowed: {', '.join(allowed)}; or a language, or two as SOURCE>TARGET."
                )
            found[name] = value if name == "decodercontext" else self.token_of(name, value)
        translates = found["source_lang"] != found["target_lang"]
        if "task" not in named and ("task" not in self.defaults or {"source_lang", "target_lang"} & named.keys()):
            found["task"] = TASKS["translate" if translates else "transcribe"]
        return {name: found[name] for name in allowed}

    def token_of(self, name: str, value: str) -> str:
        """The special token of a value. Raises UsageError for one that the slot, or the model, does not have."""
        asked = value.lower()
        if name in ("source_lang", "target_lang"):
            own = self.languages
            found = match_language(value.removeprefix("<|").removesuffix("|>"), [*own, *self.known])
            if found is None:
                more = f" and {len(own) - SHOWN} more" if len(own) > SHOWN else ""
                raise UsageError(f"language '{value[:40]}' is none of this model's: {', '.join(own[:SHOWN])}{more}.")
            return f"<|{found}|>"
        token = ""
        if name == "task":
            token, allowed = TASKS.get(asked, ""), list(TASKS)
        elif name == "emotion":
            prefix = "<|emo:"
            allowed = [piece.removeprefix(prefix)[:-2] for piece in self.specials if piece.startswith(prefix)]
            token = asked if asked.startswith(prefix) else f"{prefix}{asked}|>"
        else:
            on, off = f"<|{name}|>", f"<|no{name}|>"
            allowed = [*YES, *NO]
            token = on if asked in (*YES, name, on) else off if asked in (*NO, f"no{name}", off) else ""
        if token not in self.specials:
            raise UsageError(
                f"{name} is '{value[:40]}', which this model does not have. Allowed: {', '.join(allowed)}."
            )
        return token

    def write(self, slots: Mapping[str, str]) -> str:
        """The shortest text of a task."""
        source, target = (slots[name][2:-2] for name in ("source_lang", "target_lang"))
        parts = [source if source == target else f"{source}>{target}"]
        usual = self.read({"source_lang": source, "target_lang": target})
        for name, value in slots.items():
            if value != usual[name]:
                plain = value.removeprefix("<|").removesuffix("|>").removeprefix("emo:")
                word = ("no" if plain == f"no{name}" else "yes") if name in FLAGS else plain
                parts.append(f"{name}={value if name == 'decodercontext' else word}")
        return ",".join(parts)

    def encode_checked(self, slots: Mapping[str, str]) -> list[int]:
        """The tokens of a prompt. Raises UsageError where its context is too long."""
        context = slots.get("decodercontext", "")
        if not context or self.max_length is None:
            return self.encode(slots)
        most = CONTEXT_CHARACTERS * self.max_length
        if len(context) > most:
            raise UsageError(f"decodercontext has {len(context)} characters; at most {most} are allowed. Shorten it.")
        tokens = self.encode(slots)
        if PROMPT_SHARE * len(tokens) >= self.max_length:
            raise UsageError(
                f"The prompt has {len(tokens)} tokens with its decodercontext; fewer than "
                f"{-(-self.max_length // PROMPT_SHARE)} are allowed, as the text needs the others. Shorten it."
            )
        return tokens

    def encode(self, slots: Mapping[str, str]) -> list[int]:
        """The tokens of a prompt."""
        context = slots.get("decodercontext", "")
        values = [slots[name] for name in SLOTS[self.form]]
        before = [CONTEXT] if self.form == "canary2" else []
        if not self.tokenizer.languages:  # one vocabulary for all: NeMo has it cut the prompt as a text
            return self.tokenizer.encode("".join((*before, context, BEGIN, *values)))
        said = self.tokenizer.encode(context, slots["target_lang"][2:-2]) if context else []
        return [
            *(self.specials[token] for token in before),
            *said,
            *(self.specials[token] for token in (BEGIN, *values)),
        ]
