"""What a request needs, off the event loop."""

from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import numpy as np
import pytest
import soundfile

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.audio.decode import AudioDecoder, AudioLimits
from overtone.errors import AudioError
from overtone.serving.adapter_store.names import adapter_names
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.auth.guard import Guard, Tenant, hash_token
from overtone.serving.engine.engine import Engine
from overtone.serving.errors import OverloadError
from overtone.serving.recognition.decoding import THREADS, HeldAudio
from overtone.serving.recognition.request import Call, RecognitionRequest
from overtone.serving.recognition.service import RecognitionService
from overtone.serving.streaming.session import open_session
from overtone.serving.streaming.stream import StreamSettings
from support.serving_models import tiny_model
from support.streams import run


def silence(seconds: int, *, rate: int = 48_000, channels: int = 1) -> bytes:
    """A small FLAC file of a long silence."""
    recording = io.BytesIO()
    soundfile.write(recording, np.zeros((rate * seconds, channels), np.int16), rate, format="FLAC")
    return recording.getvalue()


def test_a_short_recording_waits_for_no_long_one() -> None:
    """Ten long recordings of one client are being decoded; a short one of another client comes, and is done first."""
    model = tiny_model()
    long, short = silence(1200), silence(1)
    with Engine(model) as engine, AdapterStore(model, None, lock=engine.lock, poll_seconds=0) as store:
        service = RecognitionService(engine, store)

        async def both() -> None:
            request = RecognitionRequest()
            greedy = [
                asyncio.ensure_future(service.decode(io.BytesIO(long), request, Call(method="", connection="greedy")))
                for _ in range(10)
            ]
            while not service.threads.turns.waiting:
                await asyncio.sleep(0)
            samples = await service.decode(io.BytesIO(short), request, Call(method="", connection="modest"))
            assert samples.size == engine.sample_rate
            assert not any(task.done() for task in greedy)
            for task in greedy:
                task.cancel()
            await asyncio.gather(*greedy, return_exceptions=True)

        run(both())
        service.close()


def test_decoded_audio_is_charged_by_its_work_also_where_it_is_refused() -> None:
    """Eight channels at 192 kHz are sixteen times the work of two at 48 kHz."""
    model = tiny_model()
    tenant = Tenant(name="anna", adapters=None, audio_seconds_per_minute=60.0)
    guard = Guard(tenants={hash_token("anna"): tenant})
    metadata = [("authorization", "Bearer anna")]
    with Engine(model) as engine, AdapterStore(model, None, lock=engine.lock, poll_seconds=0) as store:
        service = RecognitionService(engine, store, guard=guard, limits=AudioLimits(max_seconds=10.0))

        async def decode(content: bytes) -> None:
            call = Call(method="")
            service.admit(metadata, call)
            await service.decode(io.BytesIO(content), RecognitionRequest(), call)

        run(decode(silence(2)))
        with pytest.raises(AudioError, match="more than 960000 samples in its 8 channels at 192000 Hz"):
            run(decode(silence(1, rate=192_000, channels=8)))
        used = [60.0 - usage.audio.left for usage in guard._usage.values()]
        assert 11.0 < used[0] < 13.0
        with pytest.raises(AudioError, match="longer than 10 s"):
            run(decode(silence(60)))
        service.close()
    assert 21.0 < 60.0 - next(iter(guard._usage.values())).audio.left < 24.0


def test_audio_counts_while_it_is_decoded() -> None:
    """Two recordings are too long together: the second one is refused before it is decoded whole."""
    model = tiny_model()
    decoders: list[AudioDecoder] = []
    with Engine(model) as engine, AdapterStore(model, None, lock=engine.lock, poll_seconds=0) as store:
        service = RecognitionService(engine, store, held=HeldAudio(max_seconds=100.0))
        make = service.audio_decoder
        service.audio_decoder = lambda request: decoders.append(make(request)) or decoders[-1]  # type: ignore[method-assign, func-returns-value]

        async def decode() -> None:
            with service.held.hold(80.0), pytest.raises(OverloadError):
                await service.decode(io.BytesIO(silence(1200)), RecognitionRequest(), Call(method=""))
            assert (service.held.recordings, service.held.seconds) == (0, 0.0)
            alone = await service.decode(io.BytesIO(silence(120)), RecognitionRequest(), Call(method=""))
            assert alone.size == 120 * engine.sample_rate

        run(decode())
        service.close()
    assert decoders[0]._seconds < 1000


def test_one_tenant_holds_half_of_the_audio() -> None:
    held = HeldAudio(max_seconds=100.0)
    with held.hold(80.0, "anna"):
        with pytest.raises(OverloadError, match="'anna'"), held.hold(1.0, "anna"):
            pass
        with held.hold(20.0, "bert"):
            with pytest.raises(OverloadError, match="too long together"), held.hold(1.0, "carl"):
                pass
            assert held.seconds == 100.0
    assert (held.recordings, held.seconds, held.by_tenant) == (0, 0.0, {})
    with held.hold(60.0), held.hold(40.0):  # nobody tells clients apart
        pass


def test_codecs_never_run_in_the_event_loop() -> None:
    """A few bytes of a codec can be hours of silence; plain samples are read where they come."""
    model = tiny_model()
    with Engine(model) as engine, AdapterStore(model, None, lock=engine.lock, poll_seconds=0) as store:
        service = RecognitionService(engine, store)

        async def pushed_in(content: bytes, **format: object) -> list[bool]:
            """Whether each push ran in the thread of the event loop."""
            request, ran = RecognitionRequest(**format), []  # type: ignore[arg-type, var-annotated]
            async with open_session(service, request, Call(method=""), StreamSettings()) as session:
                push = session.decoder.push

                def noted(data: bytes) -> Any:
                    ran.append(threading.current_thread() is threading.main_thread())
                    return push(data)

                session.decoder.push = noted  # type: ignore[method-assign]
                for first in range(0, len(content), 4000):
                    await session.take(content[first : first + 4000])
            return ran

        flac = run(pushed_in(silence(60)))
        assert flac
        assert not any(flac)
        plain = run(pushed_in(bytes(20_000), encoding="linear_pcm", sample_rate=16_000))
        assert plain == [False, True, True, True, True]  # the first bytes tell that it is plain
        service.close()


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
                for _ in range(THREADS)
            ]
            while not all(decoder.format for decoder in decoders) or len(decoders) < THREADS:
                await asyncio.sleep(0.001)
            for client in clients:
                client.cancel()
            assert all(
                isinstance(end, asyncio.CancelledError)
                for end in await asyncio.gather(*clients, return_exceptions=True)
            )
            await asyncio.gather(*(service.threads.run(int, client="") for _ in range(4 * THREADS)))

        run(leave())
        service.close()
    assert all(decoder.closed and 0 < decoder._samples < 0.9 * 48_000 * 1200 for decoder in decoders)


def test_an_adapter_of_the_bases_own_name_is_that_adapter() -> None:
    """`serve medical.nemo` with an adapter `medical` in it: the name means the adapter, `base` the base."""
    model = tiny_model()
    model.adapters.add("medical", LinearAdapter(dim=4))
    with Engine(model) as engine, AdapterStore(model, None, lock=engine.lock, poll_seconds=0) as store:
        apart, shared = RecognitionService(engine, store), RecognitionService(engine, store, base="medical")
        assert (apart.base, shared.base) == ("tiny", "base")
        for asked, meant in (("medical", ("medical",)), ("base", ()), ("base+medical", ("medical",))):
            assert adapter_names(asked, shared.base) == meant
        assert adapter_names("tiny", apart.base) == ()
        for service in (apart, shared):
            service.close()
