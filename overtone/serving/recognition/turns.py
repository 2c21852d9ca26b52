"""Fair turns: places for work that many clients want at once, given to one client after the other."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """A number of places. Clients that wait get them in turn, one place each; one client's work keeps its order.

    Who asks a hundred times waits as often, and everybody else waits for one of its places at most. Belongs to one
    event loop.
    """

    def __init__(self, places: int, *, most_of_one: int | None = None) -> None:
        """most_of_one: places that one client may hold at a time; all of them unless given."""
        self.free = places
        self._most_of_one = places if most_of_one is None else most_of_one
        self._held: Counter[str] = Counter()
        """Places that each client holds."""
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """By client, whose turn is next first."""

    @property
    def waiting(self) -> int:
        """Pieces of work that wait."""
        return sum(map(len, self._waiting.values()))

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for a place and hold it. client: who asks."""
        if self._may_go(client) and client not in self._waiting:
            self._take(client)
        else:
            await self._wait(client)
        try:
            yield
        finally:
            self._give_back(client)

    async def _wait(self, client: str) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # its turn came in the same moment
                self._give_back(client)
            else:
                self._forget(client, mine)
            raise

    def _may_go(self, client: str) -> bool:
        return self.free > 0 and self._held[client] < self._most_of_one

    def _take(self, client: str) -> None:
        self.free -= 1
        self._held[client] += 1

    def _give_back(self, client: str) -> None:
        self.free += 1
        self._held[client] -= 1
        if not self._held[client]:
            del self._held[client]
        while (following := next(filter(self._may_go, self._waiting), None)) is not None:
            mine = self._waiting[following][0]
            self._waiting.move_to_end(following)
            self._forget(following, mine)
            if not mine.cancelled():  # its task has been told and has not run yet
                self._take(following)
                mine.set_result(None)

    def _forget(self, client: str, mine: asyncio.Future[None]) -> None:
        """Take work out of the row, if it is still there."""
        row = self._waiting.get(client, deque())
        if mine in row:
            row.remove(mine)
            if not row:
                del self._waiting[client]
