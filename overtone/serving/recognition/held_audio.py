"""How much decoded audio the recordings of all doors keep in memory together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from overtone.serving.errors import OverloadError


class HeldAudio:
    """Belongs to one event loop."""

    def __init__(self, max_seconds: float = 8 * 3600.0) -> None:
        """max_seconds: what would be more is refused; one recording alone never is."""
        self.max_seconds = max_seconds
        self.recordings = 0
        """Held now."""
        self.seconds = 0.0
        """Of these together, but for rounding."""

    @contextmanager
    def holding(self, seconds: float) -> Iterator[None]:
        """A recording is kept. Raises OverloadError."""
        if self.recordings and self.seconds + seconds > self.max_seconds:
            raise OverloadError("The recordings that are being transcribed are too long together; try again later.")
        self.recordings += 1
        self.seconds += seconds
        try:
            yield
        finally:
            self.recordings -= 1
            self.seconds -= seconds
