"""Serving on a Ray cluster: replicas of the engine behind Ray Serve, and fronts with the server's own ports.

The extra `overtone[ray]`; nothing else imports this package. With Serve alone, `serve run overtone.serving.ray:app
model=base.nemo` deploys both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["app"]


def app(arguments: Mapping[str, Any]) -> Any:
    """Serve's application of replicas and fronts. Raises UsageError for arguments that do not fit."""
    from overtone.serving.ray.application import app as build

    return build(arguments)
