"""Places that many clients want are given to one client after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from overtone.serving.recognition.turns import Turns


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


class Worker:
    """Work that takes its turn, and ends when it is told."""

    def __init__(self, turns: Turns, client: str, log: list[str]) -> None:
        self.turns, self.client, self.log = turns, client, log
        self.may_end = asyncio.Event()
        self.task = asyncio.ensure_future(self.run())

    async def run(self) -> None:
        async with self.turns.turn(self.client):
            self.log.append(self.client)
            await self.may_end.wait()


async def end(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.may_end.set()
    await asyncio.gather(*(worker.task for worker in workers), return_exceptions=True)


def test_nobody_waits_for_all_the_work_of_another() -> None:
    async def run() -> list[str]:
        turns, log = Turns(1), []
        workers = [Worker(turns, "greedy", log) for _ in range(5)]
        await settle()
        workers += [Worker(turns, client, log) for client in ("modest", "other", "modest")]
        await settle()
        assert turns.waiting == 7
        await end(workers)
        assert (turns.free, turns.waiting) == (1, 0)
        return log

    assert asyncio.run(run()) == ["greedy", "greedy", "modest", "other", "greedy", "modest", "greedy", "greedy"]


def test_one_client_gets_its_share_of_the_places() -> None:
    async def run() -> None:
        turns, log = Turns(3, most_of_one=2), []
        greedy = [Worker(turns, "greedy", log) for _ in range(5)]
        await settle()
        assert log == ["greedy", "greedy"]
        modest = Worker(turns, "modest", log)
        await settle()
        assert log == ["greedy", "greedy", "modest"]
        await end([modest])
        await settle()
        assert log == ["greedy", "greedy", "modest"]
        await end(greedy)
        assert (turns.free, turns.waiting) == (3, 0)

    asyncio.run(run())


@pytest.mark.parametrize("when", ["waiting", "called", "holding"])
def test_cancelled_work_leaves_its_place(when: str) -> None:
    async def run() -> None:
        turns, log = Turns(1), []
        first, second, third = (Worker(turns, client, log) for client in "abc")
        await settle()
        if when == "waiting":
            second.task.cancel()
        elif when == "called":  # its turn has come, and it has not noticed yet
            first.may_end.set()
            await first.task
            second.task.cancel()
        else:
            first.task.cancel()
        await settle()
        await end([first, second, third])
        assert log[-1] == "c"
        assert (turns.free, turns.waiting) == (1, 0)

    asyncio.run(run())


def test_many_that_leave_at_once_leave_every_place() -> None:
    async def run() -> None:
        turns, log = Turns(2), []
        workers = [Worker(turns, client, log) for client in "aaaabbbb"]
        await settle()
        last = Worker(turns, "c", log)
        await settle()
        for worker in workers:
            worker.task.cancel()
        await end([*workers, last])
        assert log[-1] == "c"
        assert (turns.free, turns.waiting) == (2, 0)

    asyncio.run(asyncio.wait_for(run(), 60))
