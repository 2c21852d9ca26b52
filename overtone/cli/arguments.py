"""Parser of a command's words, and the options that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from overtone.errors import UsageError, did_you_mean

DTYPES = ("auto", "float32", "bfloat16", "openvino")
ATTENTIONS = {"local": "rel_pos_local_attn", "full": "rel_pos"}
"""Kinds of attention, and NeMo's names for them."""
DEVICES = ("auto", "cpu", "cuda", "mps")


class CommandParser(argparse.ArgumentParser):
    """A parser that takes options and words in any order, and raises UsageError of one line for a mistake."""

    def __init__(self, prog: str, description: str | None = None, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.color = False  # later versions of Python colour the help, also on a terminal that spells that out
        self.hints: dict[str, str] = {}
        """Advice on options that another command has."""

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Raises UsageError, naming the nearest option for an unknown one."""
        found, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            first = unknown[0].partition("=")[0]
            others = [name for name in known if name != "--help"]
            self.error(f"unknown option '{first}'.{self.hints.get(first) or did_you_mean(first, others)}")
        return found

    def error(self, message: str) -> NoReturn:
        """Raises UsageError with the message and a hint to `--help`."""
        text = message if message.endswith((".", "?")) else f"{message}."
        raise UsageError(f"{text[0].upper()}{text[1:]} `{self.prog} --help` shows what is possible.")


def number(*, above: float | None = None, at_least: float | None = None) -> Callable[[str], float]:
    """An argument type: a number within limits."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is no number") from None
        if above is not None and not value > above:
            raise argparse.ArgumentTypeError(f"{text} is too small; more than {above:g} is needed")
        if at_least is not None and not value >= at_least:
            raise argparse.ArgumentTypeError(f"{text} is too small; {at_least:g} or more is needed")
        return value

    return read


def add_computing(parser: argparse.ArgumentParser) -> None:
    """`--dtype` and `--device`."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="auto",
        help="what the frozen base computes in; auto is bfloat16 where the machine is fast at it, openvino the same "
        "computed by OpenVINO, for linear adapters (default: auto)",
    )
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="where to compute; auto is a GPU if there is one (default)"
    )


def add_decoder(parser: argparse.ArgumentParser) -> None:
    """`--decoder`."""
    parser.add_argument(
        "--decoder",
        choices=("rnnt", "ctc"),
        help="the head of a hybrid model that recognises (default: rnnt where the model has it)",
    )


def add_language(parser: argparse.ArgumentParser) -> None:
    """`--language` and `--prompt`."""
    parser.add_argument(
        "--language",
        metavar="TAG",
        help="language that a model with prompts is told, such as de-DE (default: a manifest's lang, else auto); a "
        "Canary model takes 'SOURCE>TARGET' too",
    )
    parser.add_argument(
        "--prompt",
        nargs="+",
        default=[],
        metavar="SLOT=VALUE",
        help="slots of a Canary model's prompt, such as source_lang=de target_lang=en pnc=no timestamp=yes",
    )


def language_of(arguments: argparse.Namespace) -> str | None:
    """The language or the task that `--language` and `--prompt` name. Raises UsageError for a slot without a value."""
    wrong = [slot for slot in arguments.prompt if "=" not in slot]
    if wrong:
        raise UsageError(f"--prompt {wrong[0]}: SLOT=VALUE is needed, such as target_lang=en.")
    last = sorted(arguments.prompt, key=lambda slot: slot.startswith("decodercontext="))
    return ",".join(filter(None, (arguments.language, *last))) or None


def add_search(parser: argparse.ArgumentParser) -> None:
    """`--beam` and `--phrases`."""
    parser.add_argument(
        "--beam",
        type=whole_number,
        metavar="N",
        help="search with the N likeliest beginnings of the text; 1: greedily (default: 8 where the adapter knows "
        "words or phrases are given, else greedily)",
    )
    parser.add_argument(
        "--phrases",
        metavar="FILE",
        help="words and phrases that are likelier, one a line; after a tab its boost, -100 to 100 (default: 10)",
    )


def whole_number(text: str) -> int:
    """An argument type: a whole number from 1 on."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number from 1 on")
    return int(text)


def port(text: str) -> int:
    """An argument type: a port; 0 is any."""
    return whole_within(text, 0, 65_535)


def whole(text: str) -> int:
    """An argument type: a whole number from 1 to a million."""
    return whole_within(text, 1, 1_000_000)


def whole_within(text: str, least: int, most: int) -> int:
    """Whole number within limits."""
    if not text.isdecimal() or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"'{text[:20]}' is no whole number from {least} to {most}")
    return int(text)


def search_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The two options as arguments of `Transcriber`. Raises DataError for phrases that cannot be read."""
    from overtone.decoding.phrase_boost import read_phrases
    from overtone.inference.choices import PHRASE_BOOST

    phrases = {} if arguments.phrases is None else read_phrases(Path(arguments.phrases), PHRASE_BOOST)
    return {"beam": arguments.beam, "phrases": phrases}


def add_attention(parser: argparse.ArgumentParser) -> None:
    """`--att-context-size` and `--attention`."""
    parser.add_argument(
        "--att-context-size",
        type=attention_context,
        metavar="LEFT,RIGHT",
        help="encoder frames that a frame sees, one of the pairs that a cache-aware model was trained with "
        "(default: its first), or any for local attention",
    )
    parser.add_argument(
        "--attention",
        choices=tuple(ATTENTIONS),
        help="local: attention to neighbours alone, of which --att-context-size tells the number, such as 128,128; "
        "hours are then recognised in one piece (--window 0). full: the contrary (default: as the model was trained)",
    )


def attention_context(text: str) -> tuple[int, ...]:
    """An argument type: `12,1`, also in brackets, as (12, 1)."""
    try:
        left, right = map(int, text.strip("[] ").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form 12,1") from None
    return left, right


def attention_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The two options as arguments of `cli.models.load`."""
    kind = None if arguments.attention is None else ATTENTIONS[arguments.attention]
    return {"att_context_size": arguments.att_context_size, "attention": kind}


def add_windows(parser: argparse.ArgumentParser) -> None:
    """`--window`, `--overlap` and `--batch-seconds`."""
    parser.add_argument(
        "--window",
        type=number(at_least=0),
        default=30.0,
        metavar="SECONDS",
        help="longer recordings are heard in overlapping windows of this length; 0: in one piece (default: 30)",
    )
    parser.add_argument(
        "--overlap",
        type=number(at_least=0),
        default=4.0,
        metavar="SECONDS",
        help="what neighbouring windows share (default: 4)",
    )
    parser.add_argument(
        "--batch-seconds",
        type=number(above=0),
        metavar="SECONDS",
        help="audio in one forward, padding included; less needs less memory (default: 120 on a CPU)",
    )


ADAPTER_HELP = (
    "an adapter of the model, the folder of a saved adapter, an adapters.pt of NeMo (what it has enabled), several "
    "joined by + (applied from left to right), @file for what the model's file has enabled, or null for the base"
)
