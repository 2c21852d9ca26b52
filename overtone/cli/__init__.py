"""The `overtone` command: one module for each of its commands, everything heavy imported when a command runs.

The module of a command has its help as docstring, EXAMPLES for the help's end, `add_arguments`, and `run`, which
returns the exit code.

Exit codes: 0 done, 1 done with failures that were reported, 2 a mistake in the call or its input, 130 interrupted,
143 ended by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from overtone.cli.arguments import CommandParser
from overtone.cli.screen import plain_terminal
from overtone.errors import OvertoneError, UsageError, did_you_mean
from overtone.text_table import printable
from overtone.version import __version__

COMMANDS = {
    "demo": "adapt the embedded model to telephone prompts, and see what changed and what did not",
    "train": "train an adapter over a frozen model",
    "words": "an adapter from text alone: what a domain says, without any audio",
    "learn": "the next version of an adapter, from corrected transcripts",
    "evaluate": "word error rates of a model and its adapters on manifests",
    "manifest": "manifests made of recordings and texts, checked, and split by speaker",
    "transcribe": "recordings to text, captions or word times",
    "serve": "one base, many adapters: Riva's gRPC and OpenAI's HTTP interface, each request its own adapter",
    "inspect": "what a model or an adapter is made of",
    "scores": "rank the runs of a search by gain on the domain against damage to general speech",
    "adapters": "list, remove, rename, copy and enable the adapters of a model or folder",
    "verify": "prove that adapters act, and that the base is untouched when they are off",
}
"""Each command lives in the module of its name."""

INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
CLOSED_PIPE = 141
"""The exit code of a program that ended because nobody read its output any more (128 + SIGPIPE)."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process unless given) and return its exit code; never raises."""
    with plain_terminal():
        code = answer(list(sys.argv[1:] if arguments is None else arguments))
    if arguments is None:  # the process ends: nobody wants a traceback of an interrupt that comes now
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return code


def answer(words: Sequence[str]) -> int:
    """Run a command line, report its errors, and return its exit code; never raises."""
    try:
        code = run(words)
        sys.stdout.flush()
    except SystemExit as stop:
        if stop.code == TERMINATED:
            return complain("ended by SIGTERM.", TERMINATED)
        return stop.code if isinstance(stop.code, int) else 1  # a number is said by argparse, after --help
    except OvertoneError as error:
        return complain(str(error), error.exit_code)
    except KeyboardInterrupt:
        return complain("interrupted.", INTERRUPTED)
    except BrokenPipeError:
        # What is still buffered goes nowhere, or the interpreter would complain while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}.", OvertoneError.exit_code)
    return code


def run(words: Sequence[str]) -> int:
    """Run a command line and return its exit code. Raises OvertoneError, a UsageError for no command."""
    if len(words) > 1 and words[0] == "help":
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"overtone {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        near = did_you_mean(name, COMMANDS)
        raise UsageError(f"'{name}' is no {kind}.{near} The commands are {', '.join(COMMANDS)}.")
    command = import_module(f"overtone.cli.{name}")
    parser = CommandParser(prog=f"overtone {name}", description=command.__doc__, epilog=command.EXAMPLES)
    command.add_arguments(parser)
    code: int = command.run(parser.parse(rest))
    return code


def overview() -> str:
    """The text of `overtone --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: overtone COMMAND …",
            "",
            "Adapts a pretrained speech recogniser to a domain without touching it.",
            "",
            *lines,
            "",
            "`overtone COMMAND --help` tells more; `overtone --version` the version. Begin with `overtone demo`.",
        ]
    )


def complain(message: str, code: int) -> int:
    """Print an error and return the exit code."""
    print(f"overtone: error: {printable(message)}", file=sys.stderr)
    return code
