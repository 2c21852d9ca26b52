"""Workers that learn: processes at low priority beside the server, one for words and one for trainings at a time.

What there is to learn lies on disk, and so does what comes of it: the adapter store sees new versions as it sees any
other change of its folder. A worker that is ended loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from overtone.errors import AdapterError
from overtone.learning.corrections import SUFFIX, Correction, Corrections
from overtone.learning.state import LOG, SETTINGS, read_settings, read_state, worker_command, yield_processor
from overtone.learning.versions import WAITS, Versions, go_back, own_tokenizer
from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store.store import AdapterStore
from overtone.tokenizers import Tokenizer

REPORT = logging.getLogger("overtone.serving.learning")
WORDS_ONLY = "--words-only"
GENTLE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", WAITS: "1"}
"""Environment of a worker: it takes one core at most, and waits for whoever changes its adapter."""
FAILED = "The learning failed. The server's own log of it, learning.log, tells the reason; nothing is lost."
"""All that clients are told: the reason may name files of the server."""
Command = Callable[[Path, Sequence[str]], list[str]]
"""A function of an adapter's folder and options that makes a worker's command line."""


class LearningJobs:
    """Corrections of the store's adapters, and the workers that learn from them. Belongs to one event loop."""

    def __init__(self, model: str, store: AdapterStore, *, sample_rate: int, command: Command | None = None) -> None:
        """model: the base, as the worker is told it. command: in place of `overtone learn`."""
        self.store = store
        self.sample_rate = sample_rate
        self.command: Command = command or (lambda folder, options: worker_command(folder, model, *options))
        self.waiting: dict[str, list[str]] = {"words": [], "training": []}
        """Names of adapters whose turn comes."""
        self.at_work: dict[str, str] = {}
        """Name of the adapter that is worked on, by the part."""
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.ending = False
        self.yields = True
        """Workers let every other process of the machine go first."""
        self.running: set[asyncio.subprocess.Process] = set()

    def folder(self, name: str) -> Path:
        """Folder of an adapter, which need not exist."""
        assert self.store.folder is not None, "checked when the server is made"
        return self.store.folder / name

    def add(self, name: str, corrections: Sequence[Correction]) -> int:
        """Write corrections down; the number of new ones. Blocks for the writing. Raises DataError."""
        folder = self.folder(name)
        return Corrections(folder, sample_rate=self.sample_rate).add(corrections, hours=read_settings(folder).hours)

    def tokenizer_of(self, name: str, model: AsrModel) -> Tokenizer:
        """The tokenizer of an adapter's transcripts: its own, or the base's. Blocks for the reading.

        Raises AdapterError for a folder that is damaged, and for general speech that was given for an adapter before
        this one and that it cannot be held to: the worker would refuse it, where nobody sees that.
        """
        folder = self.folder(name)
        own = own_tokenizer(folder, model.adapters.identity()) if folder.is_dir() else None
        if own is not None and read_settings(folder).general:
            raise AdapterError(
                f"'{name}' has a vocabulary of its own, and cannot be held to what the base makes of the general "
                f"speech that {name}{SUFFIX}/{SETTINGS} names. Empty its 'general', and hand the corrections in again."
            )
        return own or model.tokenizer

    def state(self, name: str) -> dict[str, Any]:
        """Versions, corrections and the state of the learner of an adapter. Blocks for the reading."""
        folder = self.folder(name)
        versions, store = Versions(folder), Corrections(folder, sample_rate=self.sample_rate)
        current, every = versions.current(), store.read()
        state = read_state(folder)
        waits = name in self.at_work.values() or any(name in names for names in self.waiting.values())
        is_busy = state["phase"] in ("words", "training")
        return {
            "version": None if current is None else current.number,
            "versions": len(versions.all()),
            "corrections": len(every),
            "recordings": sum(own.audio is not None for own in every),
            "phase": "waiting" if waits and not is_busy else state["phase"],
            **{key: state[key] for key in ("step", "steps") if key in state},
            **({"message": FAILED} if state.get("message") else {}),
        }

    def back(self, name: str) -> int:
        """Go back to the version before; its number. Raises UsageError where there is none."""
        return go_back(self.folder(name))[0].number

    # Workers

    def start(self, name: str) -> None:
        """Have an adapter's corrections learnt: its words first, then its acoustic part."""
        self.wait_for_turn("words", name)

    def wait_for_turn(self, part: str, name: str) -> None:
        """Put an adapter in the queue of one part, and see to it that somebody works on that."""
        if name not in self.waiting[part]:
            self.waiting[part].append(name)
        task = self.tasks.get(part)
        if task is None or task.done():
            self.tasks[part] = asyncio.get_running_loop().create_task(self.work(part))

    async def work(self, part: str) -> None:
        """Learn one adapter after the other."""
        while self.waiting[part]:
            name = self.at_work[part] = self.waiting[part].pop(0)
            try:
                code = await self.run(name, [WORDS_ONLY] if part == "words" else [])
                await asyncio.to_thread(self.store.scan)
                level = logging.INFO if code == 0 else logging.WARNING
                REPORT.log(level, "learning of '%s' (%s) ended with %d", name, part, code)
                if part == "words" and code == 0 and not self.ending:
                    self.wait_for_turn("training", name)
            except OSError as error:
                REPORT.error("learning of '%s' (%s) could not begin: %s", name, part, error)
            finally:
                del self.at_work[part]

    async def run(self, name: str, options: Sequence[str]) -> int:
        """Run a worker to its end; its exit code."""
        folder = self.folder(name)
        log = Corrections(folder, sample_rate=self.sample_rate).folder / LOG
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                *self.command(folder, options),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, **GENTLE},
                preexec_fn=yield_processor if self.yields and os.name == "posix" else None,
            )
        self.running.add(process)
        try:
            return await process.wait()
        finally:
            self.running.discard(process)

    async def stop(self) -> None:
        """End the workers; what they had not finished is learnt another time."""
        self.ending = True
        for names in self.waiting.values():
            names.clear()
        for process in list(self.running):
            with suppress(ProcessLookupError):
                process.terminate()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
