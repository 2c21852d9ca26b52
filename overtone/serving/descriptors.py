"""File descriptors of the process: as many as the system allows, and shared out before they run out."""

from __future__ import annotations

from contextlib import suppress

FILES = 128
"""Descriptors for adapters, logs and libraries."""
SHARES = {"http": 0.4, "grpc": 0.4}
"""Shares of the others for connections; what is left is for recordings that are being received, a file each."""

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]


def raise_limit() -> None:
    """Let this process have as many descriptors as the system allows it."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def most_connections(port: str, wanted: int) -> int:
    """Number of connections of a port (`http`, `grpc`) for which there are descriptors, `wanted` at most."""
    if resource is None:
        return wanted
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return min(wanted, max(8, int((soft - FILES) * SHARES[port])))
