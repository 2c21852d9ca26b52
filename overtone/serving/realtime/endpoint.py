"""Riva's realtime interface: a session by POST, then a WebSocket of JSON messages; audio in, transcripts out.

A client appends audio (base64, or binary messages of plain bytes), commits it, and says when it is done. It is told
`…delta` with the current utterance as it is understood so far, and `…completed` for each utterance, whose
`transcript` is everything since the beginning; the last one has `is_last_result`.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from overtone.serving.adapter_store.names import model_name
from overtone.serving.auth.access import AccessError, Metadata
from overtone.serving.http.bodies import body_of
from overtone.serving.http.errors import HttpError, envelope, error_response, invalid, status_of
from overtone.serving.http.requests import Reception, call_of, metadata_of
from overtone.serving.realtime.events import Talk
from overtone.serving.realtime.session import Secrets, ignored_wishes, new_session, recognition_config, updated
from overtone.serving.riva.requests import RecognitionRequest
from overtone.serving.riva.servicer import Call
from overtone.serving.streaming.inbox import Inbox
from overtone.serving.streaming.session import Hearing
from overtone.serving.streaming.stream import Stream

LOG = logging.getLogger("overtone.serving.realtime.endpoint")
SUBPROTOCOL = "realtime"
SECRET_PREFIX = "realtime-token."
MAX_BODY = 2**16
CLOSE_CODES = {400: 1007, 413: 1009, 429: 1013, 500: 1011, 503: 1012}
"""Codes of the closing WebSocket; every other mistake of the client is 1008."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """One message of the client."""

    kind: str
    """`update`, `audio`, `commit`, `clear` or `done`."""
    audio_content: bytes = b""
    force_eou: bool = False
    session: Any = None


class Realtime:
    def __init__(self, reception: Reception) -> None:
        self.reception = reception
        self.secrets = Secrets()

    async def mint(self, request: Request) -> Response:
        """POST /v1/realtime/transcription_sessions: a session with the server's defaults, or the body's."""
        reception = self.reception
        reception.admitted(request)
        body = await body_of(request, most=MAX_BODY, seconds=reception.settings.idle_seconds)
        session = updated(self.session(self.secret_for(request)), json_of(body) if body.strip() else {})
        recognition_config(session)
        return JSONResponse(session)

    def secret_for(self, request: Request) -> dict[str, Any] | None:
        """Only a server with tokens asks for one."""
        return None if self.reception.guard.tenants is None else self.secrets.mint(metadata_of(request))

    def session(self, secret: dict[str, Any] | None = None) -> dict[str, Any]:
        reception = self.reception
        model = model_name(reception.base, ())
        return new_session(reception.settings, model, reception.engine.sample_rate, secret)

    async def connect(self, websocket: WebSocket) -> None:
        """WebSocket /v1/realtime."""
        call = call_of(websocket)
        try:
            metadata = self.credentials(websocket)
            call.tenant = self.reception.guard.authorise(metadata, None)
            with self.reception.working():
                offered = websocket.scope.get("subprotocols", [])
                await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
                await self.converse(websocket, metadata, call)
        except WebSocketDisconnect:
            return
        except Exception as error:
            await self.refuse(websocket, error)

    async def refuse(self, websocket: WebSocket, error: Exception) -> None:
        """Tell what went wrong, as far as there still is somebody to tell."""
        status = status_of(error)
        if status == 500:
            LOG.exception("a realtime session failed", exc_info=error)
        try:
            if websocket.application_state is WebSocketState.CONNECTING:
                await websocket.send_denial_response(error_response(error, with_detail=True))
                return
            await websocket.send_text(json.dumps({"type": "error", **envelope(error)}))
            await websocket.close(CLOSE_CODES.get(status, 1008))
        except (WebSocketDisconnect, RuntimeError, OSError):
            return

    def credentials(self, websocket: WebSocket) -> Metadata:
        """The headers that carry a token: the handshake's own, or those that its secret was minted for."""
        self.check_origin(websocket)
        secrets = [name for name in websocket.scope.get("subprotocols", []) if name.startswith(SECRET_PREFIX)]
        if secrets and self.reception.guard.tenants is not None:
            return self.secrets.redeem(secrets[0].removeprefix(SECRET_PREFIX))
        return metadata_of(websocket)

    def check_origin(self, websocket: WebSocket) -> None:
        """A page of another site must not speak through the browser of somebody who may."""
        origin = websocket.headers.get("origin")
        if origin is None or origin in self.reception.settings.origins:
            return
        if urlsplit(origin).netloc.lower() != websocket.headers.get("host", "").lower():
            raise AccessError("Pages of that site may not open sessions here.")

    async def converse(self, websocket: WebSocket, metadata: Metadata, call: Call) -> None:
        session = self.session()
        await send(
            websocket,
            {"type": "conversation.created", "conversation": {"id": session["id"], "object": "realtime.conversation"}},
        )
        async with Inbox(messages(websocket)) as inbox:
            waiting: list[Said] = []
            while not any(said.kind == "audio" for said in waiting):
                arrived = await self.arrived(inbox, most=1)
                if not arrived or arrived[0].kind == "done":
                    break
                if arrived[0].kind == "update":
                    session = updated(session, arrived[0].session)
                    self.understood(session, metadata, call)
                    await send(websocket, {"type": "transcription_session.updated", "session": session})
                else:
                    waiting += arrived
            await self.transcribe(websocket, session, inbox, waiting, metadata, call)
        await websocket.close()

    def understood(self, session: dict[str, Any], metadata: Metadata, call: Call) -> RecognitionRequest:
        config = recognition_config(session)
        return self.reception.understood(config, "online", call, metadata, ignored=ignored_wishes(session))

    async def transcribe(
        self,
        websocket: WebSocket,
        session: dict[str, Any],
        inbox: Inbox,
        waiting: list[Said],
        metadata: Metadata,
        call: Call,
    ) -> None:
        """From the first audio to the client's `done`."""
        reception = self.reception
        request = self.understood(session, metadata, call)
        reception.guard.charge(call.tenant, requests=1)
        settings = replace(reception.settings.stream, endpointing=request.endpointing, interim=True)
        decoding = await reception.provision.decoding(request)
        call.ignored += decoding.ignored
        lease = await reception.provision.lease(request)
        stream = Stream(reception.engine, lease, settings=settings, decoding=decoding, group=call.tenant or None)
        with stream, reception.provision.decoder(request) as decoder:
            hearing = Hearing(stream=stream, decoder=decoder, request=request, in_thread=reception.in_thread)
            talk = Talk(
                send=lambda content: send(websocket, content),
                hearing=hearing,
                request=request,
                mask=reception.provision.mask(request),
            )
            try:
                while waiting and waiting[-1].kind != "done":
                    await hear(talk, waiting)
                    waiting = await self.arrived(inbox)
                await hear(talk, [said for said in waiting if said.kind != "done"])
                await talk.end()
            finally:
                call.audio_seconds = hearing.samples / reception.engine.sample_rate

    async def arrived(self, inbox: Inbox, *, most: int = 64) -> list[Said]:
        """Messages up to the client's `done`, at least one; none where it has gone."""
        seconds = self.reception.settings.idle_seconds
        try:
            found: list[Said] = await inbox.take(seconds, most=most)
        except TimeoutError:
            raise HttpError(408, f"Nothing was sent for {seconds:g} seconds; the session is closed.") from None
        done = next((index for index, said in enumerate(found, start=1) if said.kind == "done"), len(found))
        return found[:done]


async def hear(talk: Talk, said: list[Said]) -> None:
    """Messages that have arrived together go to the stream together."""
    for each in said:
        if each.kind == "update":
            raise invalid("The session cannot be changed once audio has been sent; open another one.")
        if each.kind == "clear":
            talk.hearing.clear()
        elif each.audio_content:
            await talk.hearing.take(each.audio_content)
        if each.force_eou:
            await talk.push(force_eou=True)
    await talk.push()


async def messages(websocket: WebSocket) -> AsyncIterator[Said]:
    """What the client says, until `done`. Raises HttpError for what cannot be understood."""
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code") or 1006)
        data = message.get("bytes")
        said = Said(kind="audio", audio_content=data) if data is not None else read(message.get("text") or "")
        yield said
        if said.kind == "done":
            return


def read(text: str) -> Said:
    content = json_of(text)
    kind = content.get("type") if isinstance(content, dict) else None
    match kind:
        case "transcription_session.update":
            return Said(kind="update", session=content.get("session", {}))
        case "input_audio_buffer.append":
            runtime = content.get("runtime_config")
            force = isinstance(runtime, dict) and str(runtime.get("force_eou", "")).lower() == "true"
            return Said(kind="audio", audio_content=bytes_of(content.get("audio")), force_eou=force)
        case "input_audio_buffer.commit":
            return Said(kind="commit")
        case "input_audio_buffer.clear":
            return Said(kind="clear")
        case "input_audio_buffer.done":
            return Said(kind="done")
    raise invalid(f"A message of type {str(kind)[:60]!r} is unknown.", "type")


def bytes_of(audio: Any) -> bytes:
    try:
        return base64.b64decode(audio, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise invalid("'audio' must be base64.", "audio") from None


def json_of(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise invalid("The message is no JSON.") from None


async def send(websocket: WebSocket, content: dict[str, Any]) -> None:
    await websocket.send_text(json.dumps(content, ensure_ascii=False))
