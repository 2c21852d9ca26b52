"""TLS of the server: certificate, key and the authority of its clients, read and checked."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from overtone.errors import UsageError
from overtone.serving.auth.guard import read_bytes


@dataclass(frozen=True, kw_only=True)
class ServerKeys:
    """Contents of the PEM files of TLS."""

    certificate: bytes
    """The server's chain, its own certificate first."""
    key: bytes
    client_authority: bytes | None = None
    """Clients must show a certificate that this authority signed (mTLS)."""


def read_keys(certificate: Path | None, key: Path | None, client_authority: Path | None) -> ServerKeys | None:
    """Keys for both ports, checked; None without TLS. Raises UsageError."""
    if certificate is None or key is None:
        if certificate is not None or key is not None or client_authority is not None:
            raise UsageError("TLS needs a certificate and its key; give both.")
        return None
    keys = ServerKeys(
        certificate=read_bytes(certificate, "the certificate"),
        key=read_bytes(key, "the key"),
        client_authority=None if client_authority is None else read_bytes(client_authority, "the client authority"),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=no_password)
    except (ssl.SSLError, OSError) as error:
        raise UsageError(f"{certificate} and {key} are no certificate with its key: {error}") from error
    if keys.client_authority is not None:
        try:
            context.load_verify_locations(cadata=keys.client_authority.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError) as error:
            raise UsageError(f"{client_authority} is no certificate of an authority: {error}") from error
    return keys


def no_password() -> str:
    """OpenSSL calls this for an encrypted key; without it, it would ask on the terminal."""
    return ""
