"""Cache-aware streams: beside the model offline, beside each other, their cost, and the choice of the mode."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from overtone.adapters.kinds.linear import LinearAdapter
from overtone.adapters.kinds.lora import LoraAdapter
from overtone.adapters.kinds.tiny_attention import TinyAttentionAdapter
from overtone.checkpoints.load import load_model
from overtone.decoding.decoder import Emissions
from overtone.errors import UsageError
from overtone.models.asr_model import AsrModel
from overtone.nets.encoder_cache import CachedEncoder, EncoderCache, mel_chunks
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.errors import WorkerError
from overtone.serving.recognition.request import Endpointing
from overtone.serving.streaming.cache_aware import CacheAwareStream, check_mode
from overtone.serving.streaming.session import open_stream
from overtone.serving.streaming.stream import Interim, Stream, StreamSettings
from support.families import family_model
from support.fixtures import fixture_file
from support.own_vocabulary import LABELS, add_own
from support.serving_models import make_adapter, noise, offline, store_of, until
from support.streams import finals, frames_of, run, stream_all
from support.tone_model import ToneModel

ONE = Endpointing(stop_history=0)
CHOICES = (None, "linear", "lora")
SECONDS = 3.0


def streaming_model(context: tuple[int, int] = (4, 1)) -> AsrModel:
    """A model trained for cache-aware streaming, as it were: an encoder frame in 40 ms, plain log-mel features."""
    contexts = [[4, 1], [4, 3], [8, 1]]
    model = family_model("streaming", attention_context=list(context), attention_contexts=contexts)
    model.preprocessor.normalize = "NA"
    return model


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(streaming_model(), EngineSettings(max_wait=0.01, threads=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def store(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterStore]:
    folder = tmp_path_factory.mktemp("adapters")
    kinds = {"linear": LinearAdapter(dim=4), "lora": LoraAdapter(rank=2), "attention": TinyAttentionAdapter()}
    for seed, (name, kind) in enumerate(kinds.items()):
        make_adapter(engine.model, folder / name, seed=seed, kind=kind)
    with AdapterStore(engine.model, folder, lock=engine.lock, poll_seconds=0) as store:
        yield store


def cached(engine: Engine, store: AdapterStore | None = None, choice: str | None = None, **options: Any) -> Any:
    """A cache-aware stream; options of StreamSettings."""
    lease = None if store is None else store.acquire(choice)
    return CacheAwareStream(engine, lease, settings=StreamSettings(**{"endpointing": ONE, **options}))


def step_loop(model: AsrModel, waveform: np.ndarray) -> np.ndarray:
    """[T, V+1]: the steps over the features of the whole, without a server."""
    encoder, found = CachedEncoder(model.encoder), []
    with torch.no_grad():
        mel, lengths = model.preprocessor(torch.from_numpy(waveform)[None], torch.tensor([waveform.size]))
        cache = encoder.begin()
        for chunk in mel_chunks(mel[:, :, : int(lengths[0])], lengths, encoder.sizes):
            x, valid, cache = encoder.step(chunk.mel, chunk.lengths, cache, last=chunk.last)
            found.append(model.head.emit(x, valid)[0, : int(valid[0])].numpy())
    return np.concatenate(found)


# Beside the model offline


@pytest.mark.parametrize("portion", [1600, 777, 10**9])
@pytest.mark.parametrize("samples", [48_000, 47_111, 900])
def test_a_stream_is_the_loop_over_steps_and_the_model_offline(engine: Engine, portion: int, samples: int) -> None:
    waveform = noise(SECONDS)[:samples]
    found = frames_of(cached(engine), waveform, portion)
    whole = offline(engine.model, waveform)
    assert found.shape == whole.shape
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-4)
    loop = step_loop(engine.model, waveform)
    assert 0 <= len(found) - len(loop) <= 1
    np.testing.assert_allclose(found[: len(loop)], loop, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["fastconformer_cache_aware_hybrid_bpe", "conformer_cache_aware_regular_ctc_bpe"])
@pytest.mark.parametrize("adapter", [None, "an4"])
def test_transducers_and_other_contexts_stream_too(name: str, adapter: str | None) -> None:
    model = load_model(fixture_file(f"{name}/adapted.nemo"))
    waveform = soundfile.read(fixture_file("wavs/s6.wav"), dtype="float32")[0]
    with model.adapters.use(adapter):
        expected = model.transcribe(torch.from_numpy(waveform)[None], torch.tensor([waveform.size]))[0]
    with Engine(model, EngineSettings(max_wait=0.0, threads=1)) as engine:
        (final,) = finals(stream_all(cached(engine, store_of(model, None), adapter), waveform, 4000))
    assert final.text.split() == expected.text.split()
    assert [word.start for word in final.words] == pytest.approx([word.start for word in expected.words])


def test_steps_are_computed_in_the_dtype_of_the_server(tmp_path: Path) -> None:
    model, waveform = streaming_model(), noise(SECONDS)
    exact = step_loop(model, waveform)
    make_adapter(model, tmp_path / "linear", seed=0)
    model.set_compute_dtype("bfloat16")
    with (
        Engine(model, EngineSettings(max_wait=0.0, threads=1)) as engine,
        AdapterStore(model, tmp_path, lock=engine.lock, poll_seconds=0) as adapters,
    ):
        stream = cached(engine)
        assert stream._cache.inputs.dtype is torch.bfloat16
        found = frames_of(stream, waveform, 1600)
        adapted = frames_of(cached(engine, adapters, "linear"), waveform, 1600)
        whole = offline(model, waveform)
        with adapters.acquire("linear") as lease, model.adapters.use(lease.choice):
            expected = step_loop(model, waveform)
    noise_floor = np.abs(whole[: len(exact)] - exact).mean()
    assert 0.0 < np.abs(found[: len(exact)] - exact).mean() < 3 * noise_floor
    assert np.abs(adapted[: len(exact)] - expected).mean() < 3 * noise_floor


# Several at once


def test_streams_of_different_adapters_at_once_are_each_alone(engine: Engine, store: AdapterStore) -> None:
    waveforms = [noise(SECONDS, seed) for seed in range(len(CHOICES))]
    alone = [
        frames_of(cached(engine, store, choice), waveform, 1600)
        for choice, waveform in zip(CHOICES, waveforms, strict=True)
    ]
    before = engine.state()
    together = run(all_frames([cached(engine, store, choice) for choice in CHOICES], waveforms))
    after = engine.state()
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-4)
    assert not np.allclose(alone[0], offline(engine.model, waveforms[1])[: len(alone[0])], atol=1e-2)
    assert after.mixed_batches - before.mixed_batches > 5
    assert after.batches - before.batches < after.rows - before.rows


def test_streams_of_different_vocabularies_share_their_steps(tmp_path: Path) -> None:
    model = streaming_model()
    add_own(model, "own", LABELS)
    model.adapters.save("own", tmp_path / "own")
    model.adapters.remove("own")
    with (
        Engine(model, EngineSettings(max_wait=0.05, threads=1)) as engine,
        AdapterStore(model, tmp_path, lock=engine.lock, poll_seconds=0) as store,
    ):
        waveforms, choices = [noise(SECONDS, seed) for seed in range(3)], (None, "own", None)
        alone = [
            frames_of(cached(engine, store, choice), waveform, 1600)
            for choice, waveform in zip(choices, waveforms, strict=True)
        ]
        together = run(all_frames([cached(engine, store, choice) for choice in choices], waveforms))
        assert engine.state().mixed_batches
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-4)
        said = finals(stream_all(cached(engine, store, "own"), waveforms[1]))
    assert [found.shape[1] for found in together] == [12, len(LABELS) + 1, 12]
    assert all(set(final.text) <= set(LABELS) for final in said)


def test_streams_of_different_contexts_run_side_by_side(engine: Engine) -> None:
    waveforms, contexts = [noise(SECONDS, seed) for seed in range(3)], [(4, 1), (4, 3), (8, 1)]
    streams = [cached(engine, attention_context=context) for context in contexts]
    for context, waveform, found in zip(contexts, waveforms, run(all_frames(streams, waveforms)), strict=True):
        np.testing.assert_allclose(found, offline(streaming_model(context), waveform), rtol=0, atol=1e-4)


async def all_frames(streams: list[Any], waveforms: list[np.ndarray]) -> list[np.ndarray]:
    """[T, V+1] of each stream; all are fed at once."""
    captured: list[list[np.ndarray]] = [[] for _ in streams]

    def capture(number: int) -> None:
        decode = streams[number]._utterances.push

        def push(emissions: Emissions, seconds: float) -> Any:
            captured[number].append(emissions)
            return decode(emissions, seconds)

        streams[number]._utterances.push = push

    async def feed(number: int) -> None:
        capture(number)
        with streams[number] as stream:
            for first in range(0, waveforms[number].size, 1600):
                await stream.push(waveforms[number][first : first + 1600])
            await stream.finish()

    await asyncio.gather(*map(feed, range(len(streams))))
    return [np.concatenate(frames) for frames in captured]


# Cost


def test_every_chunk_is_computed_once(engine: Engine) -> None:
    waveform = noise(SECONDS)
    before = engine.state().rows
    stream = CacheAwareStream(engine, settings=StreamSettings(endpointing=Endpointing(stop_history=200)))
    events = stream_all(stream, waveform, 800)
    sizes = stream.encoder.sizes
    assert finals(events)
    assert engine.state().rows - before == 1 + -(-(300 - sizes.first) // sizes.later)


def test_interim_results_follow_the_chunks(engine: Engine) -> None:
    events = stream_all(cached(engine), noise(SECONDS), 1600)
    interim = [event for event in events if isinstance(event, Interim)]
    assert len(interim) > 10
    assert all(later.audio_processed >= event.audio_processed for event, later in itertools.pairwise(interim))
    assert finals(events)[-1].text.startswith(interim[0].text)
    assert not any(isinstance(event, Interim) for event in stream_all(cached(engine, interim=False), noise(SECONDS)))


def test_an_utterance_that_the_client_ends_takes_no_frame_twice(engine: Engine) -> None:
    waveform = noise(SECONDS)

    async def events(stream: Any) -> list[Any]:
        with stream:
            first = await stream.push(waveform[:20_000], force_eou=True)
            return [*first, *await stream.push(waveform[20_000:]), *await stream.finish()]

    stream = cached(engine)
    captured: list[np.ndarray] = []
    decode = stream._utterances.push
    stream._utterances.push = lambda emissions, seconds: (captured.append(emissions), decode(emissions, seconds))[1]
    found = finals(run(events(stream)))
    assert len(found) == 2
    assert found[0].end <= 1.25 + 1e-6 <= found[1].start + 0.04
    frames, whole = np.concatenate(captured), offline(engine.model, waveform)
    assert frames.shape == whole.shape
    np.testing.assert_allclose(frames[33:], whole[33:], rtol=0, atol=1e-4)  # those before saw no later audio


# Ends


def test_closing_frees_the_place_in_the_queue_and_the_state(engine: Engine, store: AdapterStore) -> None:
    stream = cached(engine, store, "linear")
    run(stream.push(noise(0.5)))
    cache = weakref.ref(stream._cache)
    assert isinstance(cache(), EncoderCache)
    stream.close()
    gc.collect()
    assert cache() is None
    with pytest.raises(UsageError, match="over"):
        run(stream.push(noise(0.5)))
    assert stream.lease is not None
    assert not stream.lease._forget.alive


def test_a_cancelled_stream_leaves_nothing_behind() -> None:
    with Engine(streaming_model(), EngineSettings(max_wait=30.0, threads=1)) as engine:

        async def cancel() -> None:
            with cached(engine) as stream:
                task = asyncio.create_task(stream.push(noise(0.5)))
                await asyncio.to_thread(until, lambda: engine.state().waiting == 1)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        run(cancel())
        until(lambda: engine.state().waiting == 0)
        assert engine.state().cancelled == 1


def test_a_step_that_fails_ends_its_stream_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    bad, good = cached(engine), cached(engine)

    def fail(*arguments: Any, **options: Any) -> Any:
        raise ValueError("broken")

    monkeypatch.setattr(bad.encoder, "step", fail)
    with pytest.raises(WorkerError, match="broken"):
        run(bad.push(noise(0.5)))
    assert frames_of(good, noise(SECONDS), 8000).size


# The mode


def test_the_mode_follows_the_model_and_the_adapters(engine: Engine, store: AdapterStore) -> None:
    def mode(choice: str | None, **options: Any) -> type:
        with open_stream(engine, store.acquire(choice), settings=StreamSettings(**options)) as stream:
            return type(stream)

    assert mode(None) is mode("linear") is mode("linear+lora") is CacheAwareStream
    assert mode("attention") is mode("linear+attention") is Stream
    assert mode("linear", mode="buffered") is Stream
    assert mode("linear", mode="cache_aware") is CacheAwareStream
    with pytest.raises(UsageError, match="linear or LoRA"):
        mode("attention", mode="cache_aware")
    assert mode(None, attention_context=(8, 1)) is CacheAwareStream
    with pytest.raises(UsageError, match=r"not with the attention context \[6, 1\]"):
        mode(None, attention_context=(6, 1))
    with pytest.raises(UsageError, match="this stream is buffered"):
        mode("attention", attention_context=(8, 1))


def test_other_models_are_buffered() -> None:
    for model in (ToneModel(), family_model()):
        with Engine(model, EngineSettings(max_wait=0.0, threads=1)) as engine:  # type: ignore[arg-type]
            with open_stream(engine, settings=StreamSettings(normalisation="buffer")) as stream:
                assert type(stream) is Stream
            with pytest.raises(UsageError, match="not trained for cache-aware streaming"):
                open_stream(engine, settings=StreamSettings(mode="cache_aware"))
            with pytest.raises(UsageError, match="not trained for cache-aware streaming"):
                check_mode(StreamSettings(mode="cache_aware"), engine.model)
            check_mode(StreamSettings(), engine.model)


def test_a_state_that_would_grow_for_ever_is_refused() -> None:
    model = family_model("streaming", attention_context=[-1, 1])
    with Engine(model, EngineSettings(max_wait=0.0, threads=1)) as engine:
        with open_stream(engine, settings=StreamSettings()) as stream:
            assert type(stream) is Stream
        with pytest.raises(UsageError, match="no limit on the left"):
            open_stream(engine, settings=StreamSettings(mode="cache_aware"))


def test_a_regular_context_is_buffered_unless_asked() -> None:
    model = family_model("streaming", attention_context_style="regular")
    with Engine(model, EngineSettings(max_wait=0.0, threads=1)) as engine:
        with open_stream(engine, settings=StreamSettings()) as stream:
            assert type(stream) is Stream
        with open_stream(engine, settings=StreamSettings(mode="cache_aware")) as stream:
            assert type(stream) is CacheAwareStream
