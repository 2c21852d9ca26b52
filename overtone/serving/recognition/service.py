"""What a request, through whichever door it came, is given to be worked on with."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import IO

import numpy as np

from overtone.audio.decode import AudioDecoder, AudioLimits
from overtone.decoding.decoder import DecodingOptions
from overtone.errors import AudioError
from overtone.serving.adapter_store.store import Lease, Shelf
from overtone.serving.engine.engine import Engine, Samples
from overtone.serving.recognition.held_audio import HeldAudio
from overtone.serving.recognition.profanity import masked
from overtone.serving.riva.requests import RecognitionRequest, check_channels
from overtone.serving.riva.responses import Mask

PIECE = 2**20
"""Bytes that are decoded at a time."""


@dataclass(frozen=True, kw_only=True)
class Provision:
    """Adapters, decoders and masks for one request after another; what takes long is done off the event loop."""

    engine: Engine
    shelf: Shelf
    limits: AudioLimits
    """What a request may send."""
    profanities: frozenset[str]
    """Lower-case words that are masked where the request asks for it."""
    held: HeldAudio
    """What the recordings of all doors take."""

    async def lease(self, request: RecognitionRequest) -> Lease:
        if self.shelf.at_hand(request.names):
            return self.shelf.acquire(request.adapter)
        return await asyncio.to_thread(self.shelf.acquire, request.adapter)

    async def decoding(self, request: RecognitionRequest) -> DecodingOptions:
        tokenizer = self.engine.model.tokenizer
        return await asyncio.to_thread(request.decoding, tokenizer) if request.boosts else request.decoding(tokenizer)

    def decoder(self, request: RecognitionRequest) -> AudioDecoder:
        return AudioDecoder(
            encoding=request.encoding,
            sample_rate=request.sample_rate,
            channels=request.channels,
            target_rate=self.engine.sample_rate,
            limits=self.limits,
        )

    def decoded(self, file: IO[bytes], request: RecognitionRequest) -> Samples:
        """A whole recording [S] at the model's rate, never empty. Takes a while. Raises AudioError or RivaError."""
        parts = []
        with self.decoder(request) as decoder:
            while data := file.read(PIECE):
                parts.append(decoder.push(data))
                check_channels(decoder.format, request)
            parts.append(decoder.finish())
            check_channels(decoder.format, request)
        samples = np.concatenate(parts)
        if not samples.size:
            raise AudioError("The audio is too short: it holds no sample at the model's rate.")
        return samples

    def mask(self, request: RecognitionRequest) -> Mask:
        return partial(masked, words=self.profanities) if request.mask_profanity else str
