"""Bytes that are no HTTP are refused, also where the client is gone by then."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from overtone.serving.http.uvicorn import Lingering, refuse


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_client_that_is_gone_is_no_fault(is_gone: bool) -> None:
    asyncio.run(refuse_one(is_gone))


async def refuse_one(is_gone: bool) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
    if is_gone:
        theirs.close()  # what is written now resets the connection
    protocol: Any = SimpleNamespace(cycle=None, transport=transport, loop=loop, connection_lost=lambda error: None)
    refuse(protocol, lambda message: pytest.fail("there is no answer on its way"), "malformed")
    assert isinstance(transport.get_protocol(), Lingering)
    if not is_gone:
        await asyncio.sleep(0)
        assert theirs.recv(4096).startswith(b"HTTP/1.1 400 Bad Request")
        theirs.close()
    await asyncio.sleep(0.05)
    transport.abort()
    await asyncio.sleep(0)
