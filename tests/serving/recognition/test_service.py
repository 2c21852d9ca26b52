"""What a request needs, off the event loop."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest
import soundfile

from overtone.audio.decode import AudioDecoder
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.engine.engine import Engine
from overtone.serving.recognition.request import Call, RecognitionRequest
from overtone.serving.recognition.service import DECODERS, RecognitionService
from support.serving_models import tiny_model
from support.streams import run


def test_decoding_ends_with_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two uploads of many minutes whose clients go away leave the threads to others."""
    recording = io.BytesIO()
    soundfile.write(recording, np.zeros(48_000 * 1200, np.int16), 48_000, format="FLAC")
    model = tiny_model()
    decoders: list[AudioDecoder] = []
    with Engine(model) as engine, AdapterStore(model, None, lock=engine.lock, poll_seconds=0) as store:
        service = RecognitionService(engine, store)
        make = service.audio_decoder

        def noted(request: RecognitionRequest) -> AudioDecoder:
            decoders.append(make(request))
            return decoders[-1]

        monkeypatch.setattr(service, "audio_decoder", noted)

        async def leave() -> None:
            request = RecognitionRequest()
            clients = [
                asyncio.ensure_future(
                    service.decode(io.BytesIO(recording.getvalue()), request, Call(method="transcriptions"))
                )
                for _ in range(DECODERS)
            ]
            while not all(decoder.format for decoder in decoders) or len(decoders) < DECODERS:
                await asyncio.sleep(0.001)
            for client in clients:
                client.cancel()
            assert all(
                isinstance(end, asyncio.CancelledError)
                for end in await asyncio.gather(*clients, return_exceptions=True)
            )
            await asyncio.gather(*(service.in_thread(int) for _ in range(4 * DECODERS)))

        run(leave())
        service.close()
    assert all(decoder.closed and 0 < decoder._samples < 0.9 * 48_000 * 1200 for decoder in decoders)
