"""Session of one client's stream: its messages, read ahead; its audio, decoded piece by piece; its results."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Generic, Self, TypeVar

import numpy as np

from overtone.audio.decode import AudioDecoder
from overtone.decoding.decoder import DecodingOptions
from overtone.errors import UsageError
from overtone.nets.encoder_cache import is_made_for_streams
from overtone.serving.adapter_store.store import Lease
from overtone.serving.engine.engine import Engine, Group, Samples
from overtone.serving.errors import DrainingError, IdleError, UnsupportedError
from overtone.serving.recognition.request import Call, RecognitionRequest
from overtone.serving.recognition.service import RecognitionService, RemoteStream
from overtone.serving.streaming.cache_aware import CacheAwareStream, attention_adapters
from overtone.serving.streaming.stream import Event, Stream, StreamSettings

M = TypeVar("M")
AnyStream = Stream | CacheAwareStream | RemoteStream

MOST_MESSAGES = 256
MOST_TAKEN = 64
"""Messages that are worked on together."""
MOST_BYTES = 2**18
"""Bytes read ahead: at 16 kHz 8 seconds of samples. Beyond them the client's own sending stalls."""
LARGE = 2**16
"""Bytes of a message that are decoded in a thread."""


class Inbox(Generic[M]):
    """Messages of a client, read ahead within a little memory. A context manager; leaving it stops the reading."""

    def __init__(
        self,
        messages: AsyncIterator[M],
        size: Callable[[M], int],
        *,
        idle_seconds: float,
        ending: asyncio.Event | None = None,
    ) -> None:
        """size: bytes of a message's audio; it may refuse the message. idle_seconds: the client may send nothing.

        ending: set when the server stops; the messages end there, so that the last utterance is still answered.
        """
        self._ending = ending or asyncio.Event()
        self._messages = messages
        self._size = size
        self._idle_seconds = idle_seconds
        self._waiting: deque[M] = deque()
        self._bytes = 0
        self._ended = False
        self.was_cut = False
        """The server has ended the messages."""
        self._failure: BaseException | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._reader = asyncio.create_task(self._read())
        self._end = asyncio.create_task(self._end_with_server())
        return self

    async def __aexit__(self, *error: object) -> None:
        for task in (self._reader, self._end):
            task.cancel()
        await asyncio.gather(self._reader, self._end, return_exceptions=True)

    def check_ending(self) -> None:
        """Raises DrainingError where the server has ended the messages, and not the client."""
        if self.was_cut:
            raise DrainingError()

    async def _end_with_server(self) -> None:
        await self._ending.wait()
        self.was_cut = not self._ended
        self._reader.cancel()

    async def take(self, *, most: int = MOST_TAKEN, seconds: float = math.inf) -> list[M]:
        """Take the messages that have arrived, at least one; none at the client's end of the stream.

        seconds: the client may send nothing for so long, if that is less than `idle_seconds`. Raises IdleError, and the
        error that ended the reading once the messages before it are taken.
        """
        seconds = min(seconds, self._idle_seconds)
        while not self._waiting and not self._ended:
            self._changed.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                raise IdleError(seconds) from None
        if self._failure is not None and not self._waiting:
            raise self._failure
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        self._bytes -= sum(map(self._size, taken))
        self._room.set()
        return taken

    async def _read(self) -> None:
        try:
            async for message in self._messages:
                self._bytes += self._size(message)
                self._waiting.append(message)
                self._changed.set()
                while self._bytes >= MOST_BYTES or len(self._waiting) >= MOST_MESSAGES:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:
            self._failure = error
        finally:
            self._ended = True
            self._changed.set()


@dataclass(kw_only=True)
class StreamSession:
    """Audio of one stream in, events out. For one task at a time."""

    service: RecognitionService
    request: RecognitionRequest
    call: Call
    """Its record, which is told how much audio it was."""
    stream: AnyStream
    decoder: AudioDecoder
    counted: tuple[str, ...] = ()
    """Names under which the quotas count its adapters; those of the call may change while it is open."""
    samples: int = 0
    """Samples given to the stream so far, at the model's rate."""
    received: int = 0
    """Bytes of audio so far."""
    charged: float = 0.0
    """Work that the tenant was charged for."""
    pieces: list[Samples] = field(default_factory=list)
    """Decoded audio that is not yet given to the stream, [S] each."""

    async def take(self, data: bytes) -> None:
        """Decode the next bytes, for the next `push`. Raises AudioError and UnsupportedError."""
        self.received += len(data)
        decoder = self.decoder
        if decoder.is_quick and len(data) <= LARGE:
            self.pieces.append(decoder.push(data))
        else:
            self.pieces.append(await self.service.threads.run(decoder.push, data, client=self.call.client))
        self.request.check_format(self.decoder.format)

    def clear(self) -> None:
        """Forget the audio that is not yet given to the stream."""
        self.pieces.clear()

    async def push(self, *, force_eou: bool = False) -> list[Event]:
        """Recognise the audio taken so far. force_eou: the utterance ends there."""
        samples = np.concatenate(self.pieces) if self.pieces else np.zeros(0, dtype=np.float32)
        self.pieces.clear()
        self.note(samples.size)
        if not samples.size and not force_eou:
            return []
        return await self.stream.push(samples, force_eou=force_eou)

    async def finish(self) -> list[Event]:
        """End the stream: recognise the rest of the audio, and of the last utterance."""
        events: list[Event] = []
        if self.received:
            service, client = self.service, self.call.client
            with service.held.hold(0.0, self.call.tenant) as holding:
                async for pieces in service.threads.steps(self.decoder.rest(), client):
                    self.pieces += pieces
                    holding.grow(sum(piece.size for piece in pieces) / service.engine.sample_rate)
                self.request.check_format(self.decoder.format)
                events = await self.push()
        return [*events, *await self.stream.finish()]

    def note(self, samples: int) -> None:
        """Note more samples in the call, and charge its tenant and adapters for the work so far."""
        self.samples += samples
        self.call.audio_seconds += samples / self.service.engine.sample_rate
        work = self.decoder.work_seconds
        self.service.guard.charge(self.call.tenant, audio_seconds=work - self.charged)
        self.service.quotas.charge(self.counted, audio_seconds=samples / self.service.engine.sample_rate)
        self.charged = work


def open_stream(
    engine: Engine,
    lease: Lease | None = None,
    *,
    settings: StreamSettings,
    decoding: DecodingOptions | None = None,
    group: Group = None,
) -> AnyStream:
    """Begin a stream in the mode that its settings ask for; `auto` takes what model and adapters allow.

    The stream takes the lease over. Raises UsageError for settings, a model or adapters that do not fit.
    """
    cached = settings.mode == "cache_aware"
    if settings.mode == "auto":
        cached = is_made_for_streams(engine.model.encoder) and not attention_adapters(engine, lease)
    if not cached:
        if settings.attention_context is not None:
            raise UsageError("att_context_size is for cache-aware streams; this stream is buffered. Leave it out.")
        return Stream(engine, lease, settings=settings, decoding=decoding, group=group)
    return CacheAwareStream(engine, lease, settings=settings, decoding=decoding, group=group)


async def begin_stream(
    service: RecognitionService, request: RecognitionRequest, call: Call, settings: StreamSettings
) -> AnyStream:
    """Stream of this process on the call's adapters, which it leases. settings: of this request."""
    lease = await service.lease(call)
    try:
        decoding = await service.decoding(request, call, lease)
        return open_stream(service.engine, lease, settings=settings, decoding=decoding, group=call.turn)
    except BaseException:
        lease.release()
        raise


def check_streams(service: RecognitionService) -> None:
    """Raises UnsupportedError for a model that has no streams: one with an attention decoder."""
    if service.engine.model.head.prompts is not None:
        raise UnsupportedError(
            "This model hears a recording as a whole before it writes, so that it has no live streams. Send the whole "
            "recording: Recognize of gRPC, POST /v1/audio/transcriptions of HTTP, a file in the page."
        )


@asynccontextmanager
async def open_session(
    service: RecognitionService, request: RecognitionRequest, call: Call, settings: StreamSettings
) -> AsyncIterator[StreamSession]:
    """Session on the call's adapters, which it leases until it ends; the call is told how much audio it was.

    settings: of the server; the request's own endpointing, interim results and attention context replace theirs.
    Raises UnsupportedError for a model that has no streams, and AccessError where a quota is used up.
    """
    check_streams(service)
    context = request.attention_context or settings.attention_context
    settings = replace(settings, endpointing=request.endpointing, interim=request.interim, attention_context=context)
    counted = service.counted(call.adapters)
    stream: AnyStream
    with service.quotas.session(counted):
        if service.elsewhere is not None:
            stream = await service.elsewhere.open_stream(request, call, settings)
        else:
            stream = await begin_stream(service, request, call, settings)
        with stream, service.audio_decoder(request) as decoder:
            yield StreamSession(
                service=service, request=request, call=call, stream=stream, decoder=decoder, counted=counted
            )
