"""Adapters with a vocabulary of their own in one server: whole recordings, streams, phrases and uploads."""

from __future__ import annotations

import asyncio
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from overtone.decoding.decoder import DecodingOptions
from overtone.decoding.phrase_boost import Boost, BoostTree
from overtone.errors import AdapterError
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.engine.engine import Engine, EngineSettings
from overtone.serving.recognition.offline import head_of, recognise
from overtone.serving.streaming.stream import Stream, StreamSettings
from support.families import batch
from support.own_vocabulary import LABELS, MODELS, SECOND, add_own, texts
from support.serving_models import store_of
from support.streams import finals, run, stream_all

CHOICES = ["own", None, "other", None]


@pytest.mark.parametrize("name", MODELS)
def test_requests_of_several_vocabularies_share_a_batch(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    add_own(model, "own", LABELS)
    add_own(model, "other", SECOND, modules="encoder+decoder", seed=2)
    expected = texts(model, CHOICES)
    for each in ("own", "other"):
        model.adapters.save(each, tmp_path / each)
        model.adapters.remove(each)
    waveforms, lengths = batch(8_000, 6_000, 8_000, 4_500)
    rows = [row[:length].numpy() for row, length in zip(waveforms, lengths.tolist(), strict=True)]
    with Engine(model, EngineSettings(max_wait=0.2)) as engine, store_of(model, tmp_path) as store:

        async def together() -> list[str]:
            leases = [store.acquire(choice) for choice in CHOICES]
            found = await asyncio.gather(
                *(recognise(engine, row, lease=lease) for row, lease in zip(rows, leases, strict=True))
            )
            return [each.hypotheses[0].text for each in found]

        assert run(together()) == expected
        assert engine.state().mixed_batches
        settings = StreamSettings(chunk=0.5, left=1.0, right=0.5)
        lease = store.acquire("own")
        for final in finals(stream_all(Stream(engine, lease, settings=settings), np.tile(rows[0], 6), 3_200)):
            assert set(final.text) <= set(LABELS)
        lease = store.acquire("own")
        boosts = BoostTree([Boost(phrases=("ace",), boost=50)], head_of(engine, lease).tokenizer)
        found = run(recognise(engine, rows[0], lease=lease, decoding=DecodingOptions(boosts=boosts)))
        assert set(found.hypotheses[0].text) <= set(LABELS)


def pack(folder: Path, *, without: str = "") -> bytes:
    """A tar of an adapter's folder."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for path in sorted(folder.iterdir()):
            if path.name != without:
                archive.add(path, path.name)
    return packed.getvalue()


def test_an_upload_brings_its_tokenizer(tmp_path: Path) -> None:
    model = MODELS["ctc"]()
    add_own(model, "own", LABELS)
    model.adapters.save("own", tmp_path / "made/own")
    model.adapters.remove("own")
    (tmp_path / "store").mkdir()
    with store_of(model, tmp_path / "store") as store:
        check_upload(store, tmp_path / "made/own")
        with store.acquire("new"):
            pass


def check_upload(store: AdapterStore, folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"labels\.json cannot be read"):
        store.put("new", pack(folder, without="labels.json"))
    assert store.put("new", pack(folder)).state == "ready"
