"""Tasks of multitask models as text and as the tokens of a prompt."""

from __future__ import annotations

from typing import Any

import pytest

from overtone.decoding.task import TaskPrompts
from overtone.errors import UsageError
from overtone.languages import match_language, target_language

SPECIALS = (
    *("<unk>", "<|nospeech|>", "<pad>", "<|endoftext|>", "<|startoftranscript|>", "<|startofcontext|>"),
    *("<|en|>", "<|de|>", "<|fr|>", "<|transcribe|>", "<|translate|>", "<|pnc|>", "<|nopnc|>", "<|itn|>", "<|noitn|>"),
    *("<|timestamp|>", "<|notimestamp|>", "<|diarize|>", "<|nodiarize|>", "<|emo:undefined|>", "<|emo:happy|>"),
    *("<|0|>", "<|1|>", "<|2|>"),
)


class OneVocabulary:
    """A tokenizer with one vocabulary for all languages, which finds special tokens in a text."""

    languages: tuple[str, ...] = ()
    vocabulary = (*SPECIALS, *"abc ")

    def encode(self, text: str, language: str | None = None) -> list[int]:
        ids = []
        while text:
            piece = max((own for own in self.vocabulary if text.startswith(own)), key=len)
            ids.append(self.vocabulary.index(piece))
            text = text[len(piece) :]
        return ids


def prompts(form: str = "canary2", **defaults: str) -> TaskPrompts:
    tokenizer: Any = OneVocabulary()
    return TaskPrompts(tokenizer, form, defaults)


def pieces(tokens: tuple[int, ...]) -> str:
    return "".join(OneVocabulary.vocabulary[token] for token in tokens)


@pytest.mark.parametrize(
    ("task", "short", "prompt"),
    [
        (None, "en", "<|en|><|en|><|pnc|><|noitn|><|notimestamp|><|nodiarize|>"),
        ("de", "de", "<|de|><|de|><|pnc|><|noitn|><|notimestamp|><|nodiarize|>"),
        ("DE-de>en", "de>en", "<|de|><|en|><|pnc|><|noitn|><|notimestamp|><|nodiarize|>"),
        ("pnc=no,itn=<|itn|>", "en,pnc=no,itn=yes", "<|en|><|en|><|nopnc|><|itn|><|notimestamp|><|nodiarize|>"),
        ("fr,timestamp=True", "fr,timestamp=yes", "<|fr|><|fr|><|pnc|><|noitn|><|timestamp|><|nodiarize|>"),
    ],
)
def test_a_task_becomes_a_prompt(task: str | None, short: str, prompt: str) -> None:
    own = prompts()
    assert own.languages == ("en", "de", "fr")
    assert own.check(task) == short
    assert own.check(short) == short
    expected = f"<|startofcontext|><|startoftranscript|><|emo:undefined|>{prompt}"
    assert pieces(own.tokens(task)) == pieces(own.tokens(short)) == expected


def test_a_context_may_hold_commas_and_comes_last() -> None:
    own = prompts()
    assert own.check("decodercontext=a") == "en,decodercontext=a"
    assert own.slots("de,pnc=no,decodercontext=a,b=c")["decodercontext"] == "a,b=c"
    assert pieces(own.tokens("decodercontext=ab c")).startswith("<|startofcontext|>ab c<|startoftranscript|>")


def test_a_context_leaves_the_text_its_room() -> None:
    tokenizer: Any = OneVocabulary()
    own = TaskPrompts(tokenizer, "canary2", {}, max_length=24)
    assert own.check(None) == "en"
    assert own.check("decodercontext=ab") == "en,decodercontext=ab"
    assert (own.most_tokens(None), own.most_tokens("decodercontext=ab")) == (15, 13)
    for ask in (own.check, own.tokens):
        with pytest.raises(UsageError, match="prompt has 12 tokens with its decodercontext; fewer than 12"):
            ask("decodercontext=abc")
        with pytest.raises(UsageError, match="decodercontext has 385 characters; at most 384"):
            ask("decodercontext=" + "a" * 385)
    assert prompts().most_tokens(None) is None
    short = TaskPrompts(tokenizer, "canary2", {}, max_length=12)  # its own prompt is all that it has room for
    assert short.check("de>en") == "de>en"


def test_the_first_format_tells_the_task() -> None:
    own = prompts("canary")
    assert pieces(own.tokens(None)) == "<|startoftranscript|><|en|><|transcribe|><|en|><|pnc|>"
    assert pieces(own.tokens("de>en")) == "<|startoftranscript|><|de|><|translate|><|en|><|pnc|>"
    assert pieces(own.tokens("de>en,task=asr")) == "<|startoftranscript|><|de|><|transcribe|><|en|><|pnc|>"
    assert own.check("taskname=ast") == "en,task=translate"
    assert own.check("de>en,task=translate") == "de>en"


def test_defaults_of_a_checkpoint_fill_what_a_task_leaves_open() -> None:
    own = prompts(source_lang="<|de|>", target_lang="en", pnc="no", emotion="happy")
    assert own.check(None) == "de>en"
    assert own.check("en,pnc=yes") == "en,pnc=yes"
    assert own.slots(None)["emotion"] == "<|emo:happy|>"
    with pytest.raises(UsageError, match="language 'xx'"):
        prompts(source_lang="xx")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("xx", "language 'xx' is none of this model's: en, de, fr"),
        ("en>", "language '' is none"),
        ("pnc=maybe", "pnc is 'maybe', which this model does not have. Allowed: yes, true, 1, no, false, 0"),
        ("emotion=angry", "emotion is 'angry', .* Allowed: undefined, happy"),
        ("timestmp=yes", "'timestmp' is no slot .* Did you mean 'timestamp'"),
        ("task=asr", "'task' is no slot"),
    ],
)
def test_others_are_refused_by_name(task: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        prompts().check(task)


def test_special_tokens_that_prompts_need_are_named() -> None:
    tokenizer: Any = OneVocabulary()
    tokenizer.vocabulary = tuple(piece for piece in OneVocabulary.vocabulary if piece != "<|startofcontext|>")
    assert TaskPrompts(tokenizer, "canary", {}).form == "canary"
    with pytest.raises(UsageError, match=r"no <\|startofcontext\|>"):
        TaskPrompts(tokenizer, "canary2", {})


def test_tags_of_languages() -> None:
    assert match_language("en-us", ["de-DE", "en-US"]) == "en-US"
    assert match_language("en", ["de-DE", "en-US"]) == "en-US"
    assert match_language("en-GB", ["fil", "en"]) == "en"
    assert match_language("fi", ["fil"]) is None
    assert [target_language(task) for task in ("en", "de>en,pnc=no", "de > en")] == ["en"] * 3
