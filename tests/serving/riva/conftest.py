"""A Riva server that a module's tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.riva_service import Service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    from support.riva_service import SETTINGS, riva_service  # needs the serving extra, without which tests are skipped

    with riva_service(tmp_path_factory.mktemp("store"), settings=SETTINGS) as running:
        yield running
