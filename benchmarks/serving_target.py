"""The server that is attacked, as its clients see it, and how large the attacks are."""

from __future__ import annotations

import http.client
import socket
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

import grpc

from benchmarks.serving_process import ServeProcess
from overtone.serving.riva import protobuf

PATIENCE = 120.0
"""Seconds for an answer."""
VICTIM, ATTACKER = "victim-token-0123456789", "attacker-token-0123456789"
WINDOW = 65_535
"""Bytes that a peer of HTTP/2 takes before it has said that it takes more."""
QUIET_SECONDS = 0.5
"""Time after which a server that says nothing takes no more."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Numbers of an attack."""

    idle: int = 2000
    half_open: int = 1000
    messages: int = 24
    message_bytes: int = 48 * 2**20
    sessions: int = 256
    uploads: int = 8
    minutes: float = 5.0
    """Of silence in eight channels at 192 kHz, in each upload."""
    changes: int = 20
    asked: int = 12
    """Requests of the victim during an attack."""
    descriptors: int = 1024
    """Open files that a server with few of them may have."""


SMOKE = Size(
    idle=40,
    half_open=40,
    messages=3,
    message_bytes=2**20,
    sessions=70,
    uploads=2,
    minutes=0.05,
    changes=2,
    asked=2,
    descriptors=160,
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server that is attacked."""

    server: ServeProcess
    size: Size
    recording: bytes
    """Of the victim, WAV."""

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.server.http.removeprefix("http://").partition(":")
        return host, int(port)

    def open(self, begin: bytes = b"") -> socket.socket:
        """Connection to the HTTP port that sends so much."""
        client = socket.create_connection(self.address, timeout=PATIENCE)
        client.sendall(begin)
        return client

    def health(self) -> float:
        """Seconds until health is answered over HTTP. Raises RuntimeError where it is not well."""
        began = time.monotonic()
        with urllib.request.urlopen(f"{self.server.http}/v1/health/ready", timeout=PATIENCE) as response:
            if response.status != 200:
                raise RuntimeError(f"health is {response.status}")
        return time.monotonic() - began

    def grpc_health(self) -> float:
        """The same over gRPC, with connections of its own, as many as it takes."""
        began = time.monotonic()
        while True:
            with grpc.insecure_channel(self.server.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                check = channel.unary_unary(
                    f"/{protobuf.HEALTH_SERVICE}/Check",
                    protobuf.HealthCheckRequest.SerializeToString,
                    protobuf.HealthCheckResponse.FromString,
                )
                try:
                    if check(protobuf.HealthCheckRequest(), timeout=PATIENCE).status != protobuf.SERVING:
                        raise RuntimeError("health is not SERVING")
                    return time.monotonic() - began
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() - began > PATIENCE:
                        raise
            time.sleep(0.1)

    def transcribe(self) -> float:
        """Seconds until the victim has its text."""
        began = time.monotonic()
        status = self.post(self.recording, VICTIM)
        if status != 200:
            raise RuntimeError(f"the victim got {status}")
        return time.monotonic() - began

    def post(self, audio: bytes, token: str, *, leave_after: float = 0.0) -> int:
        """Status of a transcription. leave_after: seconds after which the client is gone; 0 waits for the answer."""
        connection = http.client.HTTPConnection(*self.address, timeout=leave_after or PATIENCE)
        boundary = uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        body = head.encode() + audio + f"\r\n--{boundary}--\r\n".encode()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": f"multipart/form-data; boundary={boundary}"}
        try:
            connection.request("POST", "/v1/audio/transcriptions", body=body, headers=headers)
            return connection.getresponse().status
        except TimeoutError:
            return 0
        finally:
            connection.close()


class UnfinishedCall:
    """A call without a token whose message never ends, in HTTP/2 by hand: clients of gRPC send whole messages."""

    def __init__(self, address: str, message_bytes: int) -> None:
        """Open the call. message_bytes: of the message, as it is announced."""
        host, _, port = address.partition(":")
        self.client = socket.create_connection((host, int(port)), timeout=QUIET_SECONDS)
        self.client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + opening_frame())
        self.left = message_bytes - 1
        self.windows = {0: WINDOW, 1: WINDOW}
        """Bytes that the server takes now, of the connection and of the call."""
        self.arrived = b""
        self.announced = frame(0, 0, 1, b"\0" + message_bytes.to_bytes(4, "big"))

    def send(self) -> int:
        """Send all but the last byte of the message, as far as the server takes it; the bytes that were sent."""
        sent = 0
        with suppress(OSError):
            self.client.sendall(self.announced)
            while self.left:
                part = min(self.left, 16_384, *self.windows.values())
                if part <= 0:
                    self.listen()
                    continue
                self.client.sendall(frame(0, 0, 1, bytes(part)))
                sent += part
                self.left -= part
                self.windows = {stream: window - part for stream, window in self.windows.items()}
        return sent

    def listen(self) -> None:
        """Read what the server says of its windows. Raises OSError where it says nothing, or has ended the call."""
        self.arrived += self.client.recv(65_536)
        while len(self.arrived) >= 9:
            length, kind = int.from_bytes(self.arrived[:3], "big"), self.arrived[3]
            if len(self.arrived) < 9 + length:
                break
            stream, content = int.from_bytes(self.arrived[5:9], "big"), self.arrived[9 : 9 + length]
            self.arrived = self.arrived[9 + length :]
            if kind == 8:
                self.windows[stream] = self.windows.get(stream, 0) + int.from_bytes(content, "big")
            elif kind == 3 and stream == 1:
                raise OSError("the call was reset")

    def close(self) -> None:
        """Leave."""
        self.client.close()


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    """Frame of HTTP/2."""
    return len(content).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + content


def opening_frame() -> bytes:
    """Frame that opens a call, with literal headers."""

    def literal(name: str, value: str) -> bytes:
        return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()

    fields = {
        ":method": "POST", ":scheme": "http", ":path": f"/{protobuf.ASR_SERVICE}/Recognize", ":authority": "localhost",
        "content-type": "application/grpc", "te": "trailers",
    }  # fmt: skip
    return frame(1, 4, 1, b"".join(literal(name, value) for name, value in fields.items()))
