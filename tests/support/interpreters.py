"""Interpreters of their own, for what a process imports."""

from __future__ import annotations

import subprocess
import sys

from support.fixtures import HERE

HEAVY = (
    "hydra",
    "lhotse",
    "lightning",
    "numpy",
    "rich",
    "sentencepiece",
    "soundfile",
    "tensorboard",
    "torch",
)


def modules_after(code: str) -> set[str]:
    """The heavy packages that a fresh interpreter has loaded after running the code."""
    report = f"import sys; print('LOADED', *[name for name in {HEAVY} if name in sys.modules])"
    command = [sys.executable, "-c", f"{code}\n{report}"]
    finished = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=True)
    return set(finished.stdout.splitlines()[-1].split()[1:])
