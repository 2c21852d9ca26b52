"""Connection to a Ray cluster: one that runs, or one that is started for the time of a command."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from overtone.errors import UsageError

LOG = logging.getLogger("overtone.clusters")
HERE = "here"
"""Address without one: this machine's cluster where one runs, else a new one."""
STARTS = 3
"""So often a new cluster is started: Ray waits 30 seconds for its node, and a busy machine may need more."""
ANSWER_SECONDS = 10.0
"""So long a cluster's address may take to answer. Ray itself tries for many minutes."""
ADDRESS = "RAY_ADDRESS"
"""The environment variable by which Ray takes an address where none is given, or `auto`."""
LATE = "timed out during startup"
"""A part of Ray's message where its node came too late. Ray raises it as a bare Exception."""


def check_ray() -> None:
    """Raises UsageError where Ray is not installed."""
    if find_spec("ray") is None:
        raise UsageError(
            "A cluster needs the package ray, which is not installed. Install with: pip install 'overtone[ray]'"
        )


@contextmanager
def cluster(address: str | None = HERE, **options: Any) -> Iterator[bool]:
    """Join a Ray cluster, or start one here. Yields whether it was started here: then it ends with the block.

    A connection that this process has is used, and stays. address: `host:port`, `auto` for the cluster of this machine,
    HERE or None for that one or a new one, `local` for a new one. options: of `ray.init`. Raises UsageError without
    Ray, where there is no cluster at the address, and where a new one does not start.
    """
    check_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    # Ray's own 15 would starve replicas beside anything else that the machine does
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    if ray.is_initialized():
        yield False
        return
    place = None if address in (None, HERE) else address
    named = os.environ.get(ADDRESS) if place in (None, "auto") else place
    if place in (None, "local"):
        options = {"include_dashboard": False, **options}
    options |= {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if named and named not in ("auto", "local"):
            check_answer(named)
        context = started(place, options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        where = f"'{address}'" if named in (None, "", address) else f"'{named}', which {ADDRESS} names"
        if isinstance(error, ray.exceptions.RayError):  # of Ray's token, which is missing or another one
            raise UsageError(f"The Ray cluster at {where} does not let this command in: {error}") from error
        raise UsageError(f"There is no Ray cluster at {where}: {error}") from error
    joined = context.address_info["address"]
    LOG.info("the Ray cluster is at %s", joined)
    try:
        yield place != "auto" and named in (None, "", "local")
    finally:
        ray.shutdown()


def check_answer(address: str) -> None:
    """Raises ConnectionError where nothing answers at `HOST:PORT` or `ray://HOST:PORT`, ValueError for other texts."""
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:  # a port that is no number, brackets that do not close
        scheme, host, port = "", None, None
    if host is None or port is None or scheme not in ("", "ray"):
        raise ValueError("an address is HOST:PORT, such as 10.0.0.1:6379, ray://HOST:PORT of a client server, or auto")
    try:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except OSError as error:  # of the name or the network, too
        raise ConnectionError(error) from error


def started(place: str | None, options: dict[str, Any]) -> Any:
    """Call `ray.init`. A new cluster whose node comes too late is ended, and started again.

    place: the address for Ray. Returns Ray's context. Raises UsageError where STARTS nodes came too late, and what
    `ray.init` raises.
    """
    import ray

    for start in range(1, STARTS + 1):
        try:
            return ray.init(address=place, **options)
        except Exception as error:
            if LATE not in str(error):
                raise
            end_node(error)
            LOG.info("Ray's node came too late (start %d of %d)", start, STARTS)
    raise UsageError(
        f"Ray started no cluster here: its node came too late {STARTS} times. The machine is too busy, or has too "
        "little memory; Ray's logs are in /tmp/ray/session_latest/logs. Try again later, or name a cluster that runs"
    )


def end_node(error: BaseException) -> None:
    """End the processes of the node in whose constructor the error was raised. Nobody else holds it then."""
    trace = error.__traceback__
    while trace is not None:
        node: Any = trace.tb_frame.f_locals.get("self")
        if hasattr(node, "kill_all_processes"):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            return
        trace = trace.tb_next
