"""What `build.py` uses of the G722 package, which has no types of its own."""

from collections.abc import Iterable

class G722:
    def __init__(self, sample_rate: int, bit_rate: int) -> None: ...
    def decode(self, encoded: bytes) -> Iterable[int]: ...
