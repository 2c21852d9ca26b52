"""When the rows of a training's batches are shared by several processes, and what these do first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from overtone.data.dataset import collate
from overtone.errors import DataError
from overtone.training.data import validation_batches
from overtone.training.forward import Recogniser, make_recogniser
from overtone.training.row_parallel.processes import MOST_PROCESSES, RowProcesses, process_count
from overtone.training.run import Run
from overtone.training.trainer import precision_of
from overtone.training.validation import Score


@contextmanager
def sharing_rows(run: Run) -> Iterator[RowProcesses | None]:
    """The processes that share the rows of every batch; None where the run does not allow it, or nothing is gained."""
    recogniser = make_recogniser(run)
    count = min(process_count(run.settings.compute_processes), run.training.plan.batch_size or MOST_PROCESSES)
    alone = run.machine.processes == 1 and run.machine.accelerator == "cpu"
    plain = run.prefix is None and precision_of(run.settings.trainer) == "32-true"
    if not (count > 1 and alone and plain and run.adapter is not None and recogniser.rows_are_independent):
        yield None
        return
    run.model.set_compute_dtype(run.settings.compute_dtype)
    with RowProcesses(recogniser, count, errand=scoring_of_base(run, recogniser)) as processes:
        yield processes


def scoring_of_base(run: Run, recogniser: Recogniser) -> Callable[[], Score] | None:
    """Score the base on the first validation set; None where a training does not begin with that."""
    settings = run.settings
    if run.resumption is not None or not run.validation or settings.model.init is not None:
        return None
    held = run.validation[0]
    batches = validation_batches(held, settings, rank=0, processes=1)

    def score() -> Score:
        model, found = run.model.eval(), Score()
        held.dataset.room = 0  # nothing is read twice here, nor kept as long as the process lives
        with torch.no_grad():
            for indices in batches:
                batch = collate([held.dataset[index] for index in indices])
                if isinstance(batch, DataError):
                    raise batch
                (emissions,), lengths, _ = recogniser(batch.waveforms, batch.lengths, base_alone=True)
                found.add(model.head, batch, emissions, lengths)
        return found

    return score
