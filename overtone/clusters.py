"""Connection to a Ray cluster: one that runs, or one that is started for the time of a command."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from overtone.errors import UsageError

LOG = logging.getLogger("overtone.clusters")
HERE = "here"
"""Address without one: this machine's cluster where one runs, else a new one."""


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
    Ray, and where there is no cluster at the address.
    """
    check_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    import ray

    if ray.is_initialized():
        yield False
        return
    place = None if address in (None, HERE) else address
    if place in (None, "local"):
        options = {"include_dashboard": False, **options}
    try:
        context = ray.init(address=place, log_to_driver=False, logging_level=logging.WARNING, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"There is no Ray cluster at '{address}': {error}") from error
    joined = context.address_info["address"]
    LOG.info("the Ray cluster is at %s", joined)
    try:
        yield place in (None, "local")
    finally:
        ray.shutdown()
