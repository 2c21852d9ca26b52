"""Bodies of HTTP requests, read within limits of size and time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive

from overtone.serving.errors import IdleError, RequestError
from overtone.serving.http.errors import CLIENT_GONE, HttpError

LOG = logging.getLogger("overtone.serving.http.bodies")
R = TypeVar("R")
ENVELOPE = 2**18
"""Bytes of a form around its file."""
MAX_FIELDS = 64
LINGERING = 2**24
"""Bytes of a too large body that are still read, and thrown away."""
LINGERING_SECONDS = 5.0


class LimitedBody:
    """The messages of a request, with limits of its body's bytes and pauses."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self.receive = receive
        self.most = most
        self.seconds = seconds
        self.received = 0
        self.ended = False
        """The whole body has been read; what comes now is the client's going."""

    async def __call__(self) -> Message:
        """The next message. Raises HttpError after too many bytes and IdleError after too long a pause."""
        if self.ended:
            return await self.receive()
        try:
            async with asyncio.timeout(self.seconds):
                message = await self.receive()
        except TimeoutError:
            raise IdleError(self.seconds) from None
        self.received += len(message.get("body", b""))
        self.ended = not message.get("more_body", False)
        if self.received > self.most:
            await self.discard()
            raise too_large_error(self.most)
        return message

    async def discard(self) -> None:
        """Read on for a moment, if the body has not ended."""
        if not self.ended:
            await discard(self.receive)


async def limit_body(request: Request, *, most: int, seconds: float) -> LimitedBody:
    """The request's messages with these limits. Raises HttpError where it says that it is larger."""
    text = request.headers.get("content-length", "")
    declared = int(text) if text.isdecimal() else 0
    if declared > most:
        if request.headers.get("expect", "").lower() != "100-continue":  # such a client waits for the answer
            await discard(request.receive, declared)
        raise too_large_error(most, declared)
    return LimitedBody(request.receive, most, seconds)


async def discard(receive: Receive, left: int = LINGERING) -> None:
    """Read on for a moment: a client whose connection is closed while it sends never sees the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGERING_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


def too_large_error(most: int, declared: int = 0) -> HttpError:
    """Error of a body of more bytes than `most`. declared: its bytes, where they are known."""
    size = f"has {declared / 2**20:.1f} MiB" if declared else "is too large"
    return HttpError(
        413,
        f"The request {size}; at most {most / 2**20:.1f} MiB are allowed. Send a recording compressed (FLAC, Opus) or "
        "in parts, or have the server's limit raised (--max-megabytes).",
    )


async def read_body(request: Request, *, most: int, seconds: float) -> bytes:
    """Body of a request. Raises HttpError and IdleError."""
    return await Request(request.scope, await limit_body(request, most=most, seconds=seconds)).body()


@asynccontextmanager
async def read_form(request: Request, *, most: int, seconds: float) -> AsyncIterator[tuple[Request, FormData]]:
    """Multipart form of a request, its file in a temporary one; and the request, to go on with.

    Raises RequestError, HttpError and IdleError.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError(
            "The request must be a form, Content-Type: multipart/form-data, with the audio in 'file'.", "file"
        )
    body = await limit_body(request, most=most + ENVELOPE, seconds=seconds)
    request = Request(request.scope, body)
    try:
        form = await request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=ENVELOPE)
    except (HTTPException, FormParserError) as error:
        raise RequestError(f"The form cannot be read: {getattr(error, 'detail', error)}") from error
    except OSError as error:  # of the temporary file: no descriptor is left, or no room on the disk
        LOG.warning("a recording could not be received: %s", error.strerror or error)
        await body.discard()
        raise HttpError(
            503, f"The server cannot keep the recording at the moment: {error.strerror or error}. Try again later."
        ) from error
    try:
        yield request, form
    finally:
        await form.close()


def form_file(form: FormData) -> UploadFile:
    """The one file of a form, its field `file`. Raises RequestError."""
    files = [value for name, value in form.multi_items() if name == "file" and isinstance(value, UploadFile)]
    if len(files) != 1:
        raise RequestError("The form holds no audio; send one file in the field 'file'.", "file")
    return files[0]


async def while_connected(request: Request, work: Coroutine[Any, Any, R]) -> R:
    """Result of the work. Raises HttpError, and cancels it, when the client goes away; the body has been read."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(wait_for_disconnect(request))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise HttpError(CLIENT_GONE, "The client went away.")
        return task.result()
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def wait_for_disconnect(request: Request) -> None:
    """Wait until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
