"""A search with several trainings at once, each in a process of its own, on processors or spread over GPUs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from overtone.adapters.card import reached_rates, reached_step
from overtone.config import quoted
from overtone.errors import ConfigError
from overtone.search.trials import Outcome, Trial, TrialResult, find_folder, score_of
from overtone.startup import LIFELINE, lifeline
from overtone.training.interruption import exit_on_sigterm
from overtone.training.run_folder import RESULT_FILE

GO_ON = ("exp_manager.resume_if_exists=true", "exp_manager.resume_ignore_no_checkpoint=true")
"""Overrides with which a training goes on from its checkpoint, or begins where there is none."""

WAKING_SECONDS = 1.0
LAST_WORDS = 2000
"""Characters of a process's last output that are looked at for its error."""


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A place where one training runs at a time."""

    gpu: str | None
    """The GPU that it sees, as CUDA_VISIBLE_DEVICES names it; None on processors."""
    threads: int
    """Threads of its PyTorch."""


def plan_slots(jobs: int | None, launcher: dict[str, Any]) -> list[Slot]:
    """The places of a search: so many jobs, or as many as the launcher's keys say.

    launcher: `num_gpus` and `jobs_per_gpu` as NeMo's launcher reads them; on processors one job runs at a time unless
    `jobs` says more. Raises ConfigError for numbers that make no sense.
    """
    each, wanted = launcher.get("jobs_per_gpu", 1), launcher.get("num_gpus", -1)
    for key, value in (("jobs_per_gpu", each), ("num_gpus", wanted)):
        if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and (key, value) != ("num_gpus", -1)):
            raise ConfigError(f"hydra.launcher.{key}: {value!r} is no number of them; give 1 or more.")
    visible = visible_gpus()
    if wanted > len(visible) and visible:
        raise ConfigError(f"hydra.launcher.num_gpus: {wanted} are asked for, {len(visible)} are here; give -1 for all.")
    gpus = visible if wanted == -1 else visible[:wanted]
    if gpus:
        count = jobs or len(gpus) * each
        return [Slot(gpu=gpus[number % len(gpus)], threads=threads_for(count)) for number in range(count)]
    return [Slot(gpu=None, threads=threads_for(jobs or 1))] * (jobs or 1)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not torch.cuda.is_available():
        return []
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named or [str(number) for number in range(torch.cuda.device_count())]


def threads_for(jobs: int) -> int:
    """Threads of each of so many jobs: this process's, shared."""
    return max(1, torch.get_num_threads() // jobs)


def run_at_once(
    trials: Iterable[Trial],
    slots: Sequence[Slot],
    configuration: Sequence[str],
    tell: Callable[[Outcome], Outcome] = lambda outcome: outcome,
) -> Iterator[Outcome]:
    """Train as many as there are slots at the same time; outcomes as they come. One that dies is repeated once.

    configuration: the options of the command that choose the YAML. tell: hears of every outcome before its slot asks
    for the next trial, and may add to it. An interruption ends all of them, and is told to nobody.
    """
    waiting, asking = iter(trials), threading.Lock()
    done: SimpleQueue[Outcome | Exception | None] = SimpleQueue()
    running: set[subprocess.Popen[str]] = set()
    ended = threading.Event()

    def work(slot: Slot) -> None:
        try:
            while not ended.is_set():
                with asking:
                    trial = next(waiting, None)
                if trial is None:
                    break
                outcome = train_in_process(trial, slot, configuration, running, ended)
                if outcome.died and not ended.is_set():  # once more, from its checkpoint where there is one
                    again = replace(trial, overrides=(*trial.overrides, *GO_ON))
                    outcome = replace(
                        train_in_process(again, slot, configuration, running, ended), repeated=outcome.error
                    )
                if not ended.is_set():
                    with asking:
                        outcome = tell(outcome)
                    done.put(outcome)
        except Exception as error:  # of the trials or of `tell`: the caller's
            done.put(error)
        done.put(None)

    threads = [threading.Thread(target=work, args=(slot,), daemon=True) for slot in slots]
    for thread in threads:
        thread.start()
    try:
        with exit_on_sigterm():
            left = len(threads)
            while left:
                found = done.get()
                if isinstance(found, Exception):
                    raise found
                if found is None:
                    left -= 1
                else:
                    yield found
    finally:
        ended.set()
        for process in list(running):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()


def train_in_process(
    trial: Trial,
    slot: Slot,
    configuration: Sequence[str],
    running: set[subprocess.Popen[str]],
    ended: threading.Event,
) -> Outcome:
    """Train one trial in a process of its own, which ends with this one, and wait for it."""
    folder = find_folder(trial.settings).path
    words = [*trial.overrides, f"exp_manager.explicit_log_dir={quoted(folder)}"]
    command = [sys.executable, "-m", "overtone", "train", *configuration, *trial.options, *words]
    line = lifeline()
    environment = {**os.environ, "OMP_NUM_THREADS": str(slot.threads), LIFELINE: str(line)}
    if slot.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = slot.gpu

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", start_new_session=True, pass_fds=(line,),
        )  # fmt: skip
        running.add(process)
        return process

    try:
        # A thread of its own: what is raised in this one from outside meanwhile does not lose a process that has begun.
        with ThreadPoolExecutor(1) as starter:
            process = starter.submit(start).result()
    except OSError as error:
        return Outcome(trial=trial, error=f"The process could not be started: {error}.")
    if ended.is_set():  # since the others were told to end
        process.terminate()
    errors = wait_for(process)
    running.discard(process)
    if process.returncode != 0:
        reason = explain_end(process.returncode, errors, folder)
        return Outcome(trial=trial, error=reason, died=process.returncode < 0)
    return Outcome(trial=trial, result=read_result(folder))


def wait_for(process: subprocess.Popen[str]) -> str:
    """Wait until a process ends, and return what it wrote to standard error.

    It wakes now and then, so that what is raised in this thread from outside, as by a cluster's task, is not lost.
    """
    while True:
        with suppress(subprocess.TimeoutExpired):
            _, errors = process.communicate(timeout=WAKING_SECONDS)
            return errors


def explain_end(code: int, errors: str, folder: Path) -> str:
    """Say why a process ended with an exit code other than 0."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"{folder}: the training was ended by {name}; a lack of memory may be the reason (SIGKILL)."
    marked = [line for line in errors[-LAST_WORDS:].splitlines() if line.startswith("overtone: error: ")]
    last = marked[-1].removeprefix("overtone: error: ") if marked else (errors.strip().splitlines() or [""])[-1]
    return last or f"{folder}: the training ended with exit code {code}."


def read_result(folder: Path) -> TrialResult:
    """The result that a complete training has written into its folder."""
    content = json.loads((folder / RESULT_FILE).read_text("utf-8"))
    (before, after), step = reached_rates(content), reached_step({**content, "steps": content["best_step"]})
    return TrialResult(
        adapter=content["adapter"],
        folder=folder,
        best=Path(content["best"]),
        best_step=content["best_step"] if step is None else step,
        wer=after,
        wer_before=before,
        score=score_of(before, after, content.get("general")),
    )
