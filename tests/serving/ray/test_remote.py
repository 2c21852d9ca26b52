"""A front whose client or whose replicas fail it: what is ended where nobody waits any more."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import MagicMock

import pytest

pytest.importorskip("starlette", reason="the serving extra is not installed")
pytest.importorskip("grpc", reason="the serving extra is not installed")
pytest.importorskip("ray", reason="the ray extra is not installed")

from overtone.errors import UsageError
from overtone.serving.ray import front
from overtone.serving.ray.cluster import APPLICATION, ReplicaPlan
from overtone.serving.ray.remote import Replicas
from overtone.serving.recognition.request import RecognitionRequest
from overtone.serving.settings import ServerSettings
from overtone.serving.streaming.stream import StreamSettings


class Silence:
    """Answers of a replica that never come."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.cancelled = False

    async def __anext__(self) -> Any:
        self.asked.set()
        await asyncio.Event().wait()

    def cancel(self) -> None:
        self.cancelled = True


def test_a_client_that_leaves_while_its_stream_opens_leaves_none_at_the_replica() -> None:
    async def leave() -> Silence:
        answers, handle = Silence(), MagicMock()
        handle.options.return_value.stream.remote.return_value = answers
        replicas = Replicas(handle, application="application", deployment="deployment")
        call = MagicMock(adapter="", tenant="", audio_seconds=0.0)
        opening = asyncio.create_task(replicas.open_stream(RecognitionRequest(), call, StreamSettings()))
        await asyncio.wait_for(answers.asked.wait(), 60)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        return answers

    assert asyncio.run(leave()).cancelled


@pytest.mark.parametrize(
    ("error", "raised"), [(KeyboardInterrupt(), KeyboardInterrupt), (RuntimeError("no room"), UsageError)]
)
def test_replicas_that_do_not_start_are_taken_away(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, raised: type[BaseException]
) -> None:
    serve = MagicMock()
    serve.status.return_value.applications = {}
    serve.run.side_effect = error
    monkeypatch.setattr(front, "serve", serve)
    with pytest.raises(raised), front.deployed(ReplicaPlan(settings=ServerSettings())):
        pass
    serve.delete.assert_called_once_with(APPLICATION)
