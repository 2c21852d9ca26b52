"""The rules of the server's folders: their floors, and the protocol packages that each may import."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from support.house_rules import Source

SERVING_FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("auth",),
    ("adapter_store",),
    ("engine", "memory", "descriptors"),
    ("recognition",),
    ("streaming",),
    ("learning", "metrics", "settings"),
    ("riva", "http"),
    ("openai", "realtime"),
    ("openapi", "base"),
    ("app",),
    ("server",),
    ("ray",),
)
"""A folder or module of the server imports those of lower floors, and a folder its own modules."""

NEIGHBOURS = {("memory", "engine")}
"""Rooms of one floor of which the first may import the second."""

PROTOCOL_PACKAGES: dict[str, set[str]] = {
    "google": {"riva"},
    "grpc": {"riva"},
    "grpc_reflection": {"riva"},
    "prometheus_client": {"metrics"},
    "python_multipart": {"http"},
    "starlette": {"http", "openai", "realtime", "app", "ray"},
    "uvicorn": {"http"},
    "websockets": set(),
}
"""Packages of a protocol, and the rooms that import them: requests are plain values everywhere else."""

PREFIX = "overtone.serving."


def room_of(module: str) -> str | None:
    """`overtone.serving.riva.requests` -> `riva`; None outside the server."""
    return module.removeprefix(PREFIX).split(".")[0] if module.startswith(PREFIX) else None


def imports(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    """The modules that a file imports, wherever in the file it does."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == PREFIX.rstrip("."):
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, str(node.module)


def floor_of(room: str) -> int | None:
    return next((floor for floor, rooms in enumerate(SERVING_FLOORS) if room in rooms), None)


def serving_floor_faults(source: Source) -> list[str]:
    """Imports of the server go down its floors."""
    room = room_of(source.module)
    if room is None:
        return []
    floor = floor_of(room)
    if floor is None:
        return [f"{source.path}: '{room}' stands on no floor of the server; give it one in SERVING_FLOORS"]
    faults = []
    for node, target in imports(source):
        other = room_of(target)
        if other in (None, room) or (room, other) in NEIGHBOURS:
            continue
        other_floor = floor_of(other)
        if other_floor is None or other_floor >= floor:
            faults.append(source.at(node, f"'{room}' imports '{target}', which is not below it"))
    return faults


def protocol_faults(source: Source) -> list[str]:
    """gRPC, protobuf, Starlette and their like stay in the rooms of their protocol."""
    if not source.in_package:
        return []
    room = room_of(source.module)
    return [
        source.at(node, f"imports '{target}'; only {', '.join(sorted(allowed)) or 'nobody'} may")
        for node, target in imports(source)
        if (allowed := PROTOCOL_PACKAGES.get(target.split(".")[0])) is not None and room not in allowed
    ]
