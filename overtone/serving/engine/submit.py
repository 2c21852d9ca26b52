"""Work that waits for the engine now and then, written once and driven from threads and from event loops.

Such work is a generator: it yields the future that it needs, or seconds to rest, and gets the answer sent in. Its
`finally` cancels what it still has in the queue.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TypeVar

from overtone.decoding.decoder import Emissions
from overtone.serving.errors import OverloadError

R = TypeVar("R")
Answer = Emissions | None
Steps = Generator[Future[Emissions] | float, Answer, R]

REST = 0.05
"""Seconds between tries while the queue is full."""
TRIES = 100
"""So often does work that has begun try for a place; work that begins is refused at once."""


def drive(steps: Steps[R]) -> R:
    """Run to the end in this thread."""
    answer: Answer = None
    request: Future[Emissions] | float | None = None
    try:
        while True:
            request, result = advance(steps, answer)
            if request is None:
                return result[0]
            if isinstance(request, Future):
                answer = request.result()
            else:
                time.sleep(request)
                answer = None
    finally:
        del request  # an error would lead from its future through its traceback to this frame, and round again
        steps.close()


async def drive_async(steps: Steps[R], *, begins_quickly: bool = False) -> R:
    """Run to the end; everything but the waiting happens in the loop's default executor, and the first step here where
    it `begins_quickly`: going to a thread and back costs more than putting a row into the queue.

    When the caller is cancelled, what is in the queue is cancelled too.
    """
    loop = asyncio.get_running_loop()
    answer: Answer = None
    request: Future[Emissions] | float | None = None
    resumed = None
    try:
        while True:
            if begins_quickly:
                begins_quickly = False
                request, result = advance(steps, answer)
            else:
                resumed = loop.run_in_executor(None, advance, steps, answer)
                request, result = await asyncio.shield(resumed)
            if request is None:
                return result[0]
            if isinstance(request, Future):
                answer = await asyncio.wrap_future(request)
            else:
                await asyncio.sleep(request)
                answer = None
    finally:
        if resumed is None or resumed.done():
            steps.close()
        else:
            resumed.add_done_callback(lambda done: done.cancelled() or done.exception())  # looked at, not reported
            resumed.add_done_callback(lambda done: steps.close())
        del request, resumed  # as in `drive`


def advance(steps: Steps[R], answer: Answer) -> tuple[Future[Emissions] | float | None, list[R]]:
    """What the work waits for next; None, and its result in a list, at its end."""
    try:
        return steps.send(answer), []
    except StopIteration as stop:
        return None, [stop.value]


def placed(submit: Callable[[], Future[Emissions]], *, begins: bool) -> Generator[float, Answer, Future[Emissions]]:
    """A place in the queue; for work that has begun, as soon as there is one. Raises OverloadError."""
    for _ in range(1 if begins else TRIES):
        try:
            return submit()
        except OverloadError:
            if begins:
                raise
            yield REST
    return submit()
