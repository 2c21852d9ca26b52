"""Trainings of a search or a fleet as plain tasks of a Ray cluster, each in a process of its own there.

Run folders, recordings and checkpoints lie in folders that all nodes see under the same paths.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overtone.clusters import HERE, cluster
from overtone.errors import UsageError
from overtone.search.processes import GO_ON, Slot, train_in_process
from overtone.search.trials import Outcome, Trial
from overtone.training.interruption import exit_on_sigterm

if TYPE_CHECKING:
    import subprocess


@dataclass(frozen=True, kw_only=True)
class ClusterPlan:
    """Place of trainings on a cluster, and a training's share of a node."""

    address: str = HERE
    cpus: float = 1.0
    gpus: float = 0.0
    """GPUs of a training; with 0.5 two share one."""
    jobs: int | None = None
    """Trainings at once; None: as many as the nodes have room for."""


def run_on_cluster(
    trials: Iterable[Trial],
    plan: ClusterPlan,
    configuration: Sequence[str],
    tell: Callable[[Outcome], Outcome] = lambda outcome: outcome,
) -> Iterator[Outcome]:
    """Train on the nodes of a cluster; outcomes as they come. What dies, or is lost with its node, is repeated once.

    The next trial is asked for when there is room for it. configuration, tell: as in `run_at_once`. Raises UsageError
    where there is no cluster, and where no node has so many processors or GPUs.
    """
    with cluster(plan.address), exit_on_sigterm():
        import ray

        check_room(plan, ray.nodes())
        task = ray.remote(num_cpus=plan.cpus, num_gpus=plan.gpus, max_retries=0)(train_there)
        waiting, more = iter(trials), True
        running: dict[Any, tuple[Trial, str | None]] = {}
        """Task -> its trial, and the error of the first attempt."""

        def start(trial: Trial, first_error: str | None = None) -> None:
            sent = replace(trial, prune=None)  # its process makes its own
            reference = task.remote(sent, max(1, int(plan.cpus)), list(configuration), str(Path.cwd()))
            running[reference] = trial, first_error

        try:
            while True:
                while more and len(running) < (plan.jobs or room(plan, ray.nodes())):
                    trial = next(waiting, None)
                    more = trial is not None
                    if trial is not None:
                        start(trial)
                if not running:
                    break
                (ready,), _ = ray.wait(list(running), num_returns=1)
                trial, first_error = running.pop(ready)
                outcome = result_of(ready, trial)
                if outcome.died and first_error is None:
                    start(replace(trial, overrides=(*trial.overrides, *GO_ON)), outcome.error)
                else:
                    yield tell(replace(outcome, trial=trial, repeated=first_error))
        finally:
            for reference in running:
                ray.cancel(reference)
            ray.wait(list(running), num_returns=len(running), timeout=END_SECONDS) if running else None


END_SECONDS = 60.0
"""Time for trainings to write their last adapters when a search is interrupted."""


def result_of(reference: Any, trial: Trial) -> Outcome:
    """Return the outcome of a task that is over; an error where it died with its worker or node."""
    import ray

    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = f"{str(error).strip()}.".partition(". ")[0].splitlines()[0].rstrip(".")
        return Outcome(trial=trial, error=f"The task was lost on the cluster: {reason}.", died=True)
    return outcome


def train_there(trial: Trial, threads: int, configuration: Sequence[str], folder: str) -> Outcome:
    """Train a trial on this node of the cluster; a task that is cancelled ends its training first."""
    os.chdir(folder)
    running: set[subprocess.Popen[str]] = set()
    try:
        return train_in_process(trial, Slot(gpu=None, threads=threads), configuration, running, threading.Event())
    except BaseException:
        for process in list(running):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            process.wait(END_SECONDS)
        raise


def room(plan: ClusterPlan, nodes: Sequence[dict[str, Any]]) -> int:
    """Return how many trainings the living nodes hold at once, at least one."""
    return max(1, sum(room_on(plan, node["Resources"]) for node in nodes if node["Alive"]))


def room_on(plan: ClusterPlan, resources: dict[str, float]) -> int:
    """Return how many trainings a node holds at once."""
    shares = [(plan.cpus, resources.get("CPU", 0.0)), (plan.gpus, resources.get("GPU", 0.0))]
    return int(min(there / each + 1e-9 for each, there in shares if each > 0))


def check_room(plan: ClusterPlan, nodes: Sequence[dict[str, Any]]) -> None:
    """Raises UsageError where no node has room for a training."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    if not any(room_on(plan, resources) for resources in alive):
        there = "; ".join(f"{each.get('CPU', 0):g} CPUs and {each.get('GPU', 0):g} GPUs" for each in alive)
        raise UsageError(
            f"A training asks for {plan.cpus:g} CPUs and {plan.gpus:g} GPUs, but the cluster's nodes have {there}. "
            "Give less with --job-cpus and --job-gpus."
        )
