"""Realtime interface: a session by POST, then a WebSocket of JSON messages; audio in, transcripts out.

It has two dialects on one path (`dialect.py`). In Riva's, which is spoken here, a client appends audio (base64, or
binary messages of plain bytes), commits it, and says when it is done. It gets `…delta` with the current utterance as
it is recognised so far, and `…completed` for each utterance, whose `transcript` is everything since the beginning; the
last one has `is_last_result`. OpenAI's is spoken in `openai_conversation.py`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from overtone.serving.adapter_store.names import model_name
from overtone.serving.auth.guard import Metadata
from overtone.serving.errors import IdleError, RequestError
from overtone.serving.http.bodies import read_body
from overtone.serving.http.errors import envelope, error_response, status_of
from overtone.serving.http.requests import HttpRequests, call_of, metadata_of
from overtone.serving.realtime.dialect import (
    Handshake,
    MintedSessions,
    dialect_of_message,
    openai_metadata,
    read_handshake,
)
from overtone.serving.realtime.events import SessionEvents
from overtone.serving.realtime.openai_conversation import OpenAiConversation
from overtone.serving.realtime.openai_secrets import OpenAiSecrets
from overtone.serving.realtime.openai_session import TranscriptionSession
from overtone.serving.realtime.pace import Pace
from overtone.serving.realtime.session import Secrets, new_session, recognition_request, update_session
from overtone.serving.recognition.request import Call, RecognitionRequest
from overtone.serving.recognition.service import RecognitionService
from overtone.serving.streaming.session import Inbox, check_streams, open_session

LOG = logging.getLogger("overtone.serving.realtime.endpoint")
SUBPROTOCOL = "realtime"
SECRET_PREFIX = "realtime-token."
MAX_BODY = 2**16
CLOSE_CODES = {400: 1007, 413: 1009, 429: 1013, 500: 1011, 503: 1012}
"""Codes of the closing WebSocket; every other mistake of the client is 1008."""
GREETING_SECONDS = 1.0
"""Silence after Riva's greeting which tells that the client waits for OpenAI's."""
Message = str | bytes


@dataclass(frozen=True, kw_only=True)
class ClientMessage:
    """One message of the client."""

    kind: str
    """`update`, `audio`, `commit`, `clear` or `done`."""
    audio_content: bytes = b""
    force_eou: bool = False
    session: Any = None
    size: int = 0
    """Bytes or characters that it came in."""


class Realtime:
    """Endpoints of the realtime interface."""

    def __init__(self, requests: HttpRequests) -> None:
        self.requests = requests
        self.bases = requests.bases
        self.service = self.bases.first
        """The first base's; all of them share guard, threads and the server's end."""
        self.settings = requests.settings
        self.secrets = Secrets()
        self.openai_secrets = OpenAiSecrets(self.settings.stream.endpointing)
        self.minted = MintedSessions()

    async def mint(self, request: Request) -> Response:
        """POST /v1/realtime/transcription_sessions: a session with the server's defaults, changed by the body."""
        self.requests.admit(request)
        body = await read_body(request, most=MAX_BODY, seconds=self.settings.idle_seconds)
        if "openai-beta" in request.headers:
            return JSONResponse(self.openai_secrets.mint_beta(metadata_of(request), json_of(body or "{}")))
        self.minted.add(request.client)
        session = update_session(self.new_session(self.secret_for(request)), json_of(body) if body.strip() else {})
        recognition_request(session, self.settings.stream.endpointing)
        return JSONResponse(session)

    async def mint_secret(self, request: Request) -> Response:
        """POST /v1/realtime/client_secrets: OpenAI's way to let a browser open sessions without a token."""
        self.requests.admit(request)
        body = await read_body(request, most=MAX_BODY, seconds=self.settings.idle_seconds)
        return JSONResponse(self.openai_secrets.mint(metadata_of(request), json_of(body or "{}")))

    def secret_for(self, request: Request) -> dict[str, Any] | None:
        """Secret of a new session; None where the server asks for no tokens."""
        return None if self.service.guard.tenants is None else self.secrets.mint(metadata_of(request))

    def new_session(self, secret: dict[str, Any] | None = None) -> dict[str, Any]:
        """Session with the server's defaults; with several bases, what the client sets in it chooses one."""
        model, language = model_name(self.service.base, ()), self.service.language
        if self.bases.are_several:
            model, language = "base", ""
        sample_rate = self.service.engine.sample_rate
        return new_session(language=language, model=model, sample_rate=sample_rate, secret=secret)

    async def connect(self, websocket: WebSocket) -> None:
        """WebSocket /v1/realtime."""
        call = call_of(websocket)
        try:
            metadata, prepared = self.credentials(websocket)
            self.service.admit(metadata, call)
            with self.requests.begin(call.tenant):
                offered = websocket.scope.get("subprotocols", [])
                await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
                handshake = read_handshake(websocket)
                session = prepared or TranscriptionSession(model=handshake.model)
                openai = OpenAiConversation(
                    send=lambda content: send(websocket, content),
                    bases=self.bases,
                    settings=self.settings,
                    metadata=metadata,
                    call=call,
                    session=session,
                    beta=handshake.beta,
                )
                await self.begin(websocket, handshake, openai, metadata, call)
        except WebSocketDisconnect:
            return
        except Exception as error:
            await self.refuse(websocket, error)

    async def begin(
        self, websocket: WebSocket, handshake: Handshake, openai: OpenAiConversation, metadata: Metadata, call: Call
    ) -> None:
        """Converse in the client's dialect, which its first message may have to tell."""
        dialect, first = handshake.dialect, None
        riva = self.new_session()
        if dialect is None:
            expects_riva = self.minted.take(websocket.client)
            greet = self.greet_riva(websocket, riva) if expects_riva else openai.greet("session.created")
            await greet
            may_wait = expects_riva and "authorization" in websocket.headers  # as all clients of OpenAI's send it
            first = await self.first_message(websocket, openai if may_wait else None)
            dialect = dialect_of_message(first, "riva" if expects_riva else "openai")
        elif dialect == "riva":
            await self.greet_riva(websocket, riva)
        else:
            await openai.greet(openai.greeting(is_transcription=handshake.is_transcription))
        if dialect == "riva":
            await self.converse(websocket, riva, first, metadata, call)
            return
        try:
            await openai.run(raw_messages(websocket, first))
        except WebSocketDisconnect:
            raise
        except Exception as error:
            await self.refuse(websocket, error, tell=openai.fail)

    async def greet_riva(self, websocket: WebSocket, session: dict[str, Any]) -> None:
        """Send the first message of Riva's dialect."""
        conversation = {"id": session["id"], "object": "realtime.conversation"}
        await send(websocket, {"type": "conversation.created", "conversation": conversation})

    async def first_message(self, websocket: WebSocket, openai: OpenAiConversation | None) -> Message:
        """First message of a client. openai: greets too where it stays silent. Raises IdleError."""
        receiving = asyncio.ensure_future(receive(websocket))
        try:
            if openai is not None:
                await asyncio.wait({receiving}, timeout=GREETING_SECONDS)
                if not receiving.done():
                    await openai.greet("session.created")
            await asyncio.wait({receiving}, timeout=self.settings.idle_seconds)
            if not receiving.done():
                raise IdleError(self.settings.idle_seconds)
            return receiving.result()
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)

    async def refuse(
        self,
        websocket: WebSocket,
        error: Exception,
        tell: Callable[[Exception], Awaitable[None]] | None = None,
    ) -> None:
        """Send an error and close, as far as the client is still there. tell: sends it in another form."""
        status = status_of(error)
        if status == 500:
            LOG.exception("a realtime session failed", exc_info=error)
        try:
            if websocket.application_state is WebSocketState.CONNECTING:
                await websocket.send_denial_response(error_response(error, with_detail=True))
                return
            if tell is not None:
                await tell(error)
            else:
                await websocket.send_text(json.dumps({"type": "error", **envelope(error)}))
            await websocket.close(CLOSE_CODES.get(status, 1008))
        except (WebSocketDisconnect, RuntimeError, OSError):
            return

    def credentials(self, websocket: WebSocket) -> tuple[Metadata, TranscriptionSession | None]:
        """Headers that carry a token: the handshake's own, or those that its secret was minted for.

        And the session that OpenAI's secret was minted with. Raises AccessError.
        """
        metadata = openai_metadata(websocket)
        minted = self.openai_secrets.find(metadata)
        if minted is not None:
            return minted
        secrets = [name for name in websocket.scope.get("subprotocols", []) if name.startswith(SECRET_PREFIX)]
        if secrets and self.service.guard.tenants is not None:
            return self.secrets.redeem(secrets[0].removeprefix(SECRET_PREFIX)), None
        return metadata, None

    async def converse(
        self, websocket: WebSocket, session: dict[str, Any], first: Message | None, metadata: Metadata, call: Call
    ) -> None:
        """Take changes of the session until its first audio, and transcribe that. first: message that has come."""
        idle_seconds = self.settings.idle_seconds
        pace = Pace(self.service, call)
        arriving = messages(raw_messages(websocket, first), pace)
        async with Inbox(arriving, message_size, idle_seconds=idle_seconds, ending=self.service.ending) as inbox:
            waiting: list[ClientMessage] = []
            while not any(message.kind == "audio" for message in waiting):
                arrived = await inbox.take(most=1)
                if not arrived or arrived[0].kind == "done":
                    break
                if arrived[0].kind == "update":
                    session = await pace.change(partial(self.changed, session, arrived[0].session), arrived[0].size)
                    self.check(session, metadata, call)
                    await send(websocket, {"type": "transcription_session.updated", "session": session})
                else:
                    waiting += arrived
            await self.transcribe(websocket, session, inbox, waiting, metadata, call)
            inbox.check_ending()
        await websocket.close()

    def changed(self, session: dict[str, Any], changes: Any) -> dict[str, Any]:
        """Session with a client's changes, which can be followed. Raises RequestError or UnsupportedError."""
        session = update_session(session, changes)
        recognition_request(session, self.settings.stream.endpointing)
        return session

    def check(
        self, session: dict[str, Any], metadata: Metadata, call: Call
    ) -> tuple[RecognitionService, RecognitionRequest]:
        """Base and request of a session that may be followed. Raises errors of request and service."""
        request = recognition_request(session, self.settings.stream.endpointing)
        service = self.bases.choose(request, metadata, call)
        check_streams(service)
        service.check(request, metadata, call)
        return service, request

    async def transcribe(
        self,
        websocket: WebSocket,
        session: dict[str, Any],
        inbox: Inbox[ClientMessage],
        waiting: list[ClientMessage],
        metadata: Metadata,
        call: Call,
    ) -> None:
        """Transcribe from the first audio to the client's `done`. waiting: messages taken from the inbox already."""
        service, request = self.check(session, metadata, call)
        async with open_session(service, request, call, self.settings.stream) as stream:
            mask = service.mask(request)
            events = SessionEvents(send=lambda content: send(websocket, content), session=stream, mask=mask)
            while waiting and waiting[-1].kind != "done":
                await take(events, waiting)
                waiting = cut_at_done(await inbox.take())
            await take(events, [message for message in waiting if message.kind != "done"])
            await events.end()


def cut_at_done(messages: list[ClientMessage]) -> list[ClientMessage]:
    """Messages up to the client's `done`; later ones have no meaning."""
    done = next((count for count, message in enumerate(messages, start=1) if message.kind == "done"), len(messages))
    return messages[:done]


async def take(events: SessionEvents, messages: list[ClientMessage]) -> None:
    """Give messages that have arrived together to the stream together, and send its results. Raises RequestError."""
    for message in messages:
        if message.kind == "update":
            raise RequestError("The session cannot be changed once audio has been sent; open another one.")
        if message.kind == "clear":
            events.session.clear()
        elif message.audio_content:
            await events.session.take(message.audio_content)
        if message.force_eou:
            await events.push(force_eou=True)
    await events.push()


def message_size(message: ClientMessage) -> int:
    """Bytes or characters of a message."""
    return message.size


async def receive(websocket: WebSocket) -> Message:
    """Next message of the client: a text, or bytes of audio. Raises WebSocketDisconnect."""
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code") or 1006)
    data: bytes | None = message.get("bytes")
    return str(message.get("text") or "") if data is None else data


async def raw_messages(websocket: WebSocket, first: Message | None) -> AsyncIterator[Message]:
    """Messages of the client. first: the one that has come already."""
    if first is not None:
        yield first
    while True:
        yield await receive(websocket)


async def messages(raw: AsyncIterator[Message], pace: Pace) -> AsyncIterator[ClientMessage]:
    """Messages of Riva's dialect up to its `done`. Raises RequestError for one that cannot be understood."""
    async for message in raw:
        if isinstance(message, str):
            found = replace(await pace.read(read, message), size=len(message))
        else:
            found = ClientMessage(kind="audio", audio_content=message, size=len(message))
        yield found
        if found.kind == "done":
            return


def read(text: str) -> ClientMessage:
    """Message in JSON. Raises RequestError."""
    content = json_of(text)
    kind = content.get("type") if isinstance(content, dict) else None
    match kind:
        case "transcription_session.update":
            return ClientMessage(kind="update", session=content.get("session", {}))
        case "input_audio_buffer.append":
            runtime = content.get("runtime_config")
            force = isinstance(runtime, dict) and str(runtime.get("force_eou", "")).lower() == "true"
            return ClientMessage(kind="audio", audio_content=bytes_of(content.get("audio")), force_eou=force)
        case "input_audio_buffer.commit":
            return ClientMessage(kind="commit")
        case "input_audio_buffer.clear":
            return ClientMessage(kind="clear")
        case "input_audio_buffer.done":
            return ClientMessage(kind="done")
    raise RequestError(f"A message of type {str(kind)[:60]!r} is unknown.", "type")


def bytes_of(audio: Any) -> bytes:
    """Audio in base64. Raises RequestError."""
    try:
        return base64.b64decode(audio, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise RequestError("'audio' must be base64.", "audio") from None


def json_of(text: str | bytes) -> Any:
    """Value of a JSON text. Raises RequestError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("The message is no JSON.") from None


async def send(websocket: WebSocket, content: dict[str, Any]) -> None:
    """Send a message in JSON."""
    await websocket.send_text(json.dumps(content, ensure_ascii=False))
