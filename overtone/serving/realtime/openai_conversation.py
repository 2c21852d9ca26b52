"""Conversation with a client of OpenAI's realtime transcription: its messages in, items and their transcripts out.

The audio between two ends is an item. With turn detection the model's silence ends it, else the client's `commit`.
Of each item a client gets `delta` messages that append to each other, and one `completed` with the whole transcript.
Where an utterance is computed once more as a whole when it has ended, its text comes then; a session with a short
`delay` gets words while they are spoken, and does without.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from overtone.decoding.hypothesis import Word
from overtone.errors import AdapterError, UsageError
from overtone.serving.auth.guard import Metadata
from overtone.serving.errors import AccessError, LanguageError, RequestError, UnknownModelError, UnsupportedError
from overtone.serving.http.errors import HttpError, envelope
from overtone.serving.http.openai_json import word_logprobs
from overtone.serving.realtime.events import EVENT, new_id
from overtone.serving.realtime.openai_session import (
    LOGPROBS,
    QUICK,
    TranscriptionSession,
    recognition_request,
    session_json,
    update_session,
)
from overtone.serving.realtime.pace import Pace
from overtone.serving.recognition.bases import Bases
from overtone.serving.recognition.request import Call, RecognitionRequest
from overtone.serving.recognition.service import RecognitionService
from overtone.serving.settings import ServerSettings
from overtone.serving.streaming.session import Inbox, StreamSession, check_streams, open_session
from overtone.serving.streaming.stream import Event, Final, Interim

Message = str | bytes
"""A text of JSON, or audio."""
Send = Callable[[dict[str, Any]], Awaitable[None]]

MOST_HELD = 2**20
"""Bytes of audio that wait for the session's settings."""
SETTING_SECONDS = 5.0
"""Time that they wait."""
LEAST_SECONDS = 0.1
"""Audio of an item, as OpenAI's interface asks for it."""
MISTAKES = (RequestError, UnsupportedError, UsageError, AdapterError, LanguageError, UnknownModelError)
"""Errors after which the conversation goes on: what the client asked for is not done."""
NOT_SET = "The session is not set up: send session.update with the transcription's model before audio is transcribed."


@dataclass(kw_only=True)
class Item:
    """Audio between two ends, as far as its transcript has come."""

    id: str = field(default_factory=lambda: new_id("item"))
    words: list[Word] = field(default_factory=list)
    """Words that are final."""
    sent: str = ""
    """Deltas so far."""
    begun: bool = False
    """The client knows that somebody speaks."""


@dataclass(kw_only=True)
class OpenAiConversation:
    """One client's conversation. For one task at a time."""

    send: Send
    bases: Bases
    settings: ServerSettings
    metadata: Metadata
    call: Call
    session: TranscriptionSession
    beta: bool
    """Events have the names of the beta."""
    running: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Resources of the stream."""
    stream: StreamSession | None = None
    request: RecognitionRequest | None = None
    """Request of the settings; None until they are made."""
    service: RecognitionService = field(init=False)  # of the base that the settings choose, else of the first one
    mask: Callable[[str], str] = str
    item: Item = field(default_factory=Item)
    last_item: str | None = None
    held: list[bytes] = field(default_factory=list)
    """Audio before the settings."""
    held_until: float = math.inf
    """Time of the event loop when it is given up."""
    offset: float = 0.0
    """Seconds of audio before the stream."""
    received: int = 0
    """Bytes of audio of the current item."""

    def __post_init__(self) -> None:
        self.service = self.bases.first
        self.pace = Pace(self.service, self.call)

    async def run(self, messages: AsyncIterator[Message]) -> None:
        """Converse until the client leaves. Raises what ends the conversation."""
        if self.session.configured:
            self.service, self.request = self.checked_request(self.session)
        elif self.session.model and not self.bases.are_left(self.session.model, self.metadata):
            self.check(RecognitionRequest(model=self.session.model))
        seconds, ending = self.settings.idle_seconds, self.service.ending
        async with self.running, Inbox(messages, len, idle_seconds=seconds, ending=ending) as inbox:
            while arrived := await self.next_messages(inbox):
                for message in arrived:
                    await self.answer(message)
                if self.stream is not None:
                    await self.results(await self.stream.push())
            await self.close_stream()
            if self.item.words:
                await self.announce()
                await self.complete()
            self.received = 0
            inbox.check_ending()

    async def next_messages(self, inbox: Inbox[Message]) -> list[Message]:
        """Messages that have arrived. Raises RequestError where audio waits for settings that do not come."""
        try:
            async with asyncio.timeout_at(self.held_until if self.held else None):
                return await inbox.take()
        except TimeoutError:
            raise not_set_error() from None

    async def answer(self, message: Message) -> None:
        """Do what a message asks for; a mistake in it is answered, and the conversation goes on."""
        event_id = None
        try:
            if isinstance(message, bytes):
                content: dict[str, Any] = {"type": "input_audio_buffer.append"}
            else:
                content = await self.pace.read(read_message, message)
            event_id = content.get("event_id")
            await self.act(content, message)
        except MISTAKES as error:
            await self.send_error(error, event_id)
        except AccessError as error:
            if error.fault != "forbidden":
                raise
            await self.send_error(error, event_id)

    async def act(self, content: dict[str, Any], message: Message) -> None:
        """Do what the content of a message asks for. Raises RequestError, and errors of the service."""
        kind = content.get("type")
        match kind:
            case "session.update" | "transcription_session.update":
                await self.update(content.get("session"), kind, len(message))
            case "input_audio_buffer.append":
                await self.append(message if isinstance(message, bytes) else audio_of(content.get("audio")))
            case "input_audio_buffer.commit":
                await self.commit()
            case "input_audio_buffer.clear":
                await self.clear()
            case _:
                raise RequestError(
                    f"A message of type {str(kind)[:60]!r} is not supported: this server transcribes.", "type"
                )

    async def send_error(self, error: BaseException, event_id: Any = None) -> None:
        """Send an error event. event_id: of the message that caused it."""
        details = {**envelope(error)["error"], "event_id": event_id if isinstance(event_id, str) else None}
        await self.tell("error", error=details)

    async def tell(self, kind: str, **content: Any) -> None:
        """Send an event."""
        await self.send({"type": kind, "event_id": new_id("event"), **content})

    async def greet(self, kind: str) -> None:
        """Send the session as it is. kind: of the event."""
        endpointing = self.settings.stream.endpointing
        await self.tell(kind, session=session_json(self.session, beta=self.beta, endpointing=endpointing))

    def greeting(self, *, is_transcription: bool) -> str:
        """Name of the first event."""
        return "transcription_session.created" if self.beta and is_transcription else "session.created"

    # Settings

    async def update(self, changes: Any, kind: str, size: int) -> None:
        """Change the settings; audio so far is recognised by those of before. Raises as `checked_request`.

        size: characters of the message.
        """
        session = await self.pace.change(partial(update_session, self.session, changes), size)
        service, request = self.checked_request(session)
        if service is not self.service or request != self.request or session.delay != self.session.delay:
            await self.close_stream()
        self.session, self.service, self.request = session, service, request
        self.beta = self.beta or kind == "transcription_session.update"
        await self.greet(f"{kind}d")
        held, self.held = self.held, []
        for data in held:
            await self.append(data)

    def checked_request(self, session: TranscriptionSession) -> tuple[RecognitionService, RecognitionRequest]:
        """Base and request of settings that the client may use. Raises RequestError, and errors of the service."""
        endpointing = self.settings.stream.endpointing
        request = recognition_request(session, endpointing, prompt_boost=self.settings.prompt_boost)
        return self.check(request), request

    def check(self, request: RecognitionRequest) -> RecognitionService:
        """Service of a request's base, which has checked it. Raises its errors, and those of `Bases.choose`."""
        service = self.bases.choose(request, self.metadata, self.call)
        check_streams(service)
        service.check(request, self.metadata, self.call, running=() if self.stream is None else self.stream.counted)
        return service

    async def close_stream(self) -> None:
        """End the stream, whose last words belong to the item."""
        if self.stream is not None:
            await self.results(await self.stream.finish())
            await self.leave_stream()

    async def leave_stream(self) -> None:
        """Give the stream up."""
        if self.stream is not None:
            self.offset += self.stream.samples / self.service.engine.sample_rate
            await self.running.aclose()
            self.stream = None

    async def open_stream(self) -> StreamSession:
        """Stream by the session's settings. Raises errors of the service."""
        if self.request is None:
            raise not_set_error()
        if self.stream is None:
            if self.offset:  # the first stream is charged with the session
                self.service.guard.charge(self.call.tenant, requests=1)
            settings = self.settings.stream
            if self.session.delay in QUICK:
                settings = replace(settings, finals="chunks")
            opening = open_session(self.service, self.request, self.call, settings)
            self.stream = await self.running.enter_async_context(opening)
            self.mask = self.service.mask(self.request)
        return self.stream

    # Audio

    async def append(self, data: bytes) -> None:
        """Take audio, as soon as the settings are made. Raises RequestError where they are not, and AudioError."""
        if self.request is None:
            now = asyncio.get_running_loop().time()
            self.held_until = self.held_until if self.held else now + SETTING_SECONDS
            self.held.append(data)
            if sum(map(len, self.held)) > MOST_HELD or now > self.held_until:
                raise not_set_error()
        elif data:
            self.received += len(data)
            await (await self.open_stream()).take(data)

    async def clear(self) -> None:
        """Forget the audio since the last item, and what was recognised of it."""
        self.held.clear()
        if self.received:
            await self.leave_stream()
            self.item, self.received = Item(), 0
        await self.tell("input_audio_buffer.cleared")

    async def commit(self) -> None:
        """End the item here; without settings, or with too little audio, an error is sent."""
        if self.request is None:
            self.held.clear()
            await self.send_error(not_set_error())
            return
        seconds = self.received / self.session.bytes_per_second
        if seconds < LEAST_SECONDS:
            lengths = f"{1000 * seconds:.0f} ms of audio, at least {1000 * LEAST_SECONDS:.0f} ms are needed"
            message = f"The buffer is too small: {lengths}."
            await self.send_error(HttpError(400, message, code="input_audio_buffer_commit_empty"))
            return
        stream = await self.open_stream()
        item = self.item
        await self.results(await stream.push())  # turn detection may have ended it meanwhile
        if self.item is not item and not self.item.words and not self.item.begun:
            return
        await self.announce()
        for event in await stream.push(force_eou=True):
            await (self.collect(event) if isinstance(event, Final) else self.interim(event))
        await self.complete()

    # Results

    async def results(self, events: Sequence[Event]) -> None:
        """Send results of the stream; with turn detection a final one ends its item."""
        for event in events:
            if isinstance(event, Interim):
                await self.interim(event)
                continue
            if self.session.turn_detection is not None:
                await self.begin(event)
            await self.collect(event)
            if self.session.turn_detection is not None:
                end = round(1000 * (self.offset + event.end))
                await self.tell("input_audio_buffer.speech_stopped", audio_end_ms=end, item_id=self.item.id)
                await self.announce()
                await self.complete()

    async def begin(self, event: Event) -> None:
        """Tell that somebody speaks, once for each item."""
        if not self.item.begun:
            self.item.begun = True
            start = round(1000 * (self.offset + event.words[0].start)) if event.words else 0
            await self.tell("input_audio_buffer.speech_started", audio_start_ms=start, item_id=self.item.id)

    async def interim(self, event: Interim) -> None:
        """Send the words that will not change any more, where there are such: those decoded for good, but the last."""
        if self.session.turn_detection is not None:
            await self.begin(event)
        if self.stream is None or not self.stream.stream.keeps_words:
            return
        words = [*self.item.words, *event.words[: max(0, event.known - 1)]]
        await self.add(words)

    async def collect(self, event: Final) -> None:
        """Add the words of a final result to the item."""
        self.item.words.extend(event.words)
        await self.add(self.item.words)

    async def add(self, words: Sequence[Word]) -> None:
        """Send the text of the words after the deltas before, if it begins with them."""
        text = self.text_of(words)
        if text != self.item.sent and text.startswith(self.item.sent):
            delta = text.removeprefix(self.item.sent)
            sent = len(self.item.sent.split())
            self.item.sent = text
            await self.tell(
                f"{EVENT}.delta", item_id=self.item.id, content_index=0, delta=delta, **self.logprobs(words[sent:])
            )

    async def announce(self) -> None:
        """Tell that the item's audio is complete."""
        item, before = self.item.id, self.last_item
        content = [{"type": "input_audio", "transcript": None}]
        shown = {"id": item, "object": "realtime.item", "type": "message", "status": "completed", "role": "user"}
        await self.tell("input_audio_buffer.committed", item_id=item, previous_item_id=before)
        for name in ("created",) if self.beta else ("added", "done"):
            await self.tell(f"conversation.item.{name}", previous_item_id=before, item={**shown, "content": content})
        self.last_item = item

    async def complete(self) -> None:
        """Send the transcript of the item, and begin the next one."""
        item, seconds = self.item, self.received / self.session.bytes_per_second
        self.item, self.received = Item(), 0
        await self.tell(
            f"{EVENT}.completed",
            item_id=item.id,
            content_index=0,
            transcript=self.text_of(item.words),
            usage={"type": "duration", "seconds": round(seconds, 3)},
            **self.logprobs(item.words),
        )

    def text_of(self, words: Sequence[Word]) -> str:
        return " ".join(self.mask(word.text) for word in words)

    def logprobs(self, words: Sequence[Word]) -> dict[str, Any]:
        """`logprobs` of words, where the session includes them."""
        if LOGPROBS not in self.session.include:
            return {}
        return {"logprobs": word_logprobs(words, self.mask)}

    async def fail(self, error: BaseException) -> None:
        """Tell of an error that ends the conversation, and of the item that it leaves without a transcript."""
        if self.received:
            details = envelope(error)["error"]
            await self.tell(f"{EVENT}.failed", item_id=self.item.id, content_index=0, error=details)
        await self.send_error(error)


def not_set_error() -> HttpError:
    """Error of a session without settings."""
    return HttpError(400, NOT_SET, code="session_not_configured")


def read_message(text: str) -> dict[str, Any]:
    """Content of a message. Raises RequestError."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("The message is no JSON.") from None
    if not isinstance(content, dict):
        raise RequestError("The message is no JSON object.")
    return content


def audio_of(audio: Any) -> bytes:
    """Audio in base64. Raises RequestError."""
    try:
        return base64.b64decode(audio, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise RequestError("'audio' must be base64.", "audio") from None
