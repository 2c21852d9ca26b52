"""A worker of the server that learns with the tone model, which no command can load."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from overtone.learning.learn import Learner
from overtone.learning.state import LearnSettings
from support.speaking_model import SpeakingModel

TESTS = Path(__file__).resolve().parents[1]


def worker(folder: Path, options: Sequence[str]) -> list[str]:
    """The command line of one."""
    places = f"import sys; sys.path[:0] = {[str(TESTS.parent), str(TESTS)]!r}"
    return [
        sys.executable,
        "-c",
        f"{places}; from support.learning_worker import work; work()",
        str(folder),
        *options,
    ]


def work() -> None:
    """The work of the process: the words alone, or all there is."""
    learner = Learner(model=SpeakingModel().eval(), folder=Path(sys.argv[1]))
    if "--words-only" in sys.argv:
        learner.add([], LearnSettings())
    else:
        from overtone.learning.training import learn

        learn(learner, [], LearnSettings(steps=1))
