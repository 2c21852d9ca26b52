"""Recognition service: admission, adapter lease, audio decoding and recognition, the same for every interface."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import IO, Any, Protocol, Self

import numpy as np

from overtone.audio.decode import AudioDecoder, AudioLimits
from overtone.decoding.decoder import DecodingOptions
from overtone.decoding.phrase_boost import BoostTree
from overtone.errors import AdapterError, AudioError, UsageError
from overtone.languages import target_language
from overtone.nets.prompt import AUTO
from overtone.serving.adapter_store.names import chosen_adapters, join_listed, model_name, visible_adapters
from overtone.serving.adapter_store.store import AdapterEntry, AdapterStore, Lease
from overtone.serving.auth.guard import Guard, Metadata
from overtone.serving.auth.quotas import Quotas
from overtone.serving.auth.rates import rank_of
from overtone.serving.engine.engine import Engine, EngineState, Samples
from overtone.serving.errors import AccessError, LanguageError, RequestError, UnknownModelError
from overtone.serving.recognition.decoding import DecodingThreads, HeldAudio
from overtone.serving.recognition.offline import Recognition, head_of, recognise, recognise_in_parts
from overtone.serving.recognition.request import MULTILINGUAL, Call, RecognitionRequest, understands

__all__ = ["PROFANITIES", "Elsewhere", "HeldAudio", "Mask", "RecognitionService", "RemoteStream"]

Mask = Callable[[str], str]
"""Text of a result -> the text that the client sees."""

PIECE = 2**20
"""Bytes that are decoded at a time."""

PROFANITIES = frozenset(
    {
        "arsehole", "asshole", "bastard", "bitch", "bitches", "bollocks", "bullshit", "cock", "cunt", "dickhead",
        "fuck", "fucked", "fucker", "fuckers", "fucking", "motherfucker", "motherfucking", "shit", "shits", "shitty",
        "slut", "twat", "wanker", "whore",
    }
)  # fmt: skip
"""Words that a request may ask not to see; a server's own list replaces them."""
WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


class RemoteStream(Protocol):
    """A stream that another process computes; as `streaming.stream.Stream`."""

    @property
    def keeps_words(self) -> bool: ...

    async def push(self, samples: Samples, *, force_eou: bool = False) -> list[Any]: ...

    async def finish(self) -> list[Any]: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class Elsewhere(Protocol):
    """Other processes that recognise in place of this one, which keeps to admission, audio and answers."""

    async def recognise(
        self, samples: Samples, request: RecognitionRequest, call: Call, *, deadline: float | None
    ) -> Recognition:
        """As `RecognitionService.recognise`."""

    def recognise_in_parts(
        self, samples: Samples, request: RecognitionRequest, call: Call, *, deadline: float | None
    ) -> AsyncGenerator[Recognition]:
        """As `RecognitionService.recognise_in_parts`."""

    async def open_stream(self, request: RecognitionRequest, call: Call, settings: Any) -> RemoteStream:
        """Stream on the call's adapters. settings: the `StreamSettings` of this request."""

    async def change_adapters(self, work: str, name: str) -> None:
        """Tell every process to `load`, `unload` or `scan`."""

    def state(self) -> EngineState:
        """State of their engines together."""

    def states(self) -> Mapping[str, tuple[EngineState, Mapping[str, float]]]:
        """State of each engine and counts of its adapter store, by the process's name."""


class RecognitionService:
    """Works on one request after another; slow work is done off the event loop, to which the service belongs."""

    def __init__(
        self,
        engine: Engine,
        store: AdapterStore,
        *,
        guard: Guard | None = None,
        quotas: Quotas | None = None,
        base: str = "",
        language: str = "en-US",
        limits: AudioLimits | None = None,
        profanities: frozenset[str] = PROFANITIES,
        aliases: Mapping[str, str] | None = None,
        held: HeldAudio | None = None,
        elsewhere: Elsewhere | None = None,
        beside: RecognitionService | None = None,
    ) -> None:
        """guard: open to all unless given. quotas: of adapters; none unless given. base: name of the base in requests;
        the model's own unless given. language: of the model, as a BCP-47 tag. limits: of one request's audio.
        profanities: lower-case words. aliases: other names of models, with the models that they mean. elsewhere:
        recognises in place of the engine. beside: another base's service, with which this one shares its threads, the
        room for audio, and the server's end.
        """
        self.engine = engine
        self.store = store
        self.guard = guard or Guard()
        self.quotas = quotas or Quotas()
        self.base_name = base or engine.model.name or "base"
        self.base_is_reserved = False
        """No adapter takes the base's name over: the server has several bases, which must be told apart."""
        self.language = language
        self.limits = limits or AudioLimits()
        self.profanities = profanities
        self.aliases = dict(aliases or {})
        self.ending: asyncio.Event = asyncio.Event() if beside is None else beside.ending
        """Set shortly before streams are cut off, so that each is still told its last utterance."""
        self.held: HeldAudio = held or (HeldAudio() if beside is None else beside.held)
        self.threads: DecodingThreads = DecodingThreads() if beside is None else beside.threads
        self.elsewhere = elsewhere

    def close(self) -> None:
        """End the threads that decode audio."""
        self.threads.close()

    def state(self) -> EngineState:
        """State of the engine, or of those elsewhere."""
        return self.engine.state() if self.elsewhere is None else self.elsewhere.state()

    # Admission

    def admit(self, metadata: Metadata, call: Call) -> None:
        """Note the tenant of a caller whose token is valid, before anything is waited for. Raises AccessError."""
        call.tenant = self.guard.admit(metadata)

    def check(
        self, request: RecognitionRequest, metadata: Metadata, call: Call, *, running: Sequence[str] = ()
    ) -> None:
        """Note the adapters of a request that may use them, that exist, and whose quotas leave room for it.

        running: adapters of a stream that is the caller's own and goes on, as `counted` names them; it has its places.
        Raises LanguageError, UsageError, AccessError or UnknownModelError.
        """
        self.told_language(request)
        names = chosen_adapters(self.resolve(request.model), self.resolve(request.adapter), self.base)
        self.authorise(metadata, names)
        try:
            for name in names:
                self.store.entry(name)
        except AdapterError as error:
            raise self.unknown_model(request.model or "+".join(names), metadata) from error
        try:
            counted = self.counted(names)
            self.quotas.admit([name for name in counted if name not in running])
        except AccessError:
            call.adapter = call.adapter or "+".join(names)  # for the record of the refusal
            raise
        call.adapter = "+".join(names)
        call.base = self.base if self.base_is_reserved else call.base
        call.rank = rank_of((self.guard.priority(call.tenant), *self.quotas.priorities(counted)))
        has_tasks = self.engine.model.head.prompts is not None
        call.ignored = request.ignored + (("task",) if request.task and not has_tasks else ())

    def authorise(self, metadata: Metadata, adapters: Sequence[str]) -> None:
        """Raises AccessError where the caller may not use one of the adapters on this base."""
        for name in adapters:
            self.guard.authorise(metadata, name, base=self.base_name)

    def counted(self, adapters: Sequence[str]) -> tuple[str, ...]:
        """Names under which the quotas count adapters of this base."""
        return self.quotas.names(adapters, self.base_name)

    @property
    def base(self) -> str:
        """Name of the base in requests: `base` where an adapter has the base's own, which then means that adapter.

        Among several bases a base's name always means the base.
        """
        return "base" if not self.base_is_reserved and self.base_name in self.store else self.base_name

    def resolve(self, name: str) -> str:
        """Model that a name means: that of an alias, or itself."""
        return self.aliases.get(name, name)

    def holds(self, names: Sequence[str]) -> bool:
        """Tell whether all of these adapters are in the store."""
        return all(name in self.store for name in names)

    def can_use(self, names: Sequence[str]) -> bool:
        """Tell whether all of these adapters are in the store, and none is refused."""
        return self.holds(names) and all(self.store.entry(name).state != "refused" for name in names)

    def is_known(self, name: str) -> bool:
        """Tell whether a name is an alias or an adapter."""
        return name in self.aliases or name in self.store.names()

    def is_for(self, request: RecognitionRequest) -> bool:
        """Tell whether the model understands the request's language."""
        try:
            self.told_language(request)
        except LanguageError:
            return False
        except RequestError:  # the language is one of the model's, something else is not
            return True
        return True

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that requests may name: those that the model is told, or the server's."""
        return tuple(self.engine.model.languages) or (self.language,)

    def told_language(self, request: RecognitionRequest) -> str | None:
        """Language, or the task, that a model which is told such is told; None is its own `auto`.

        Raises LanguageError, and RequestError for slots that a multitask model does not have.
        """
        model, asked = self.engine.model, request.language
        if not model.languages:
            if not understands(self.language, asked):
                raise LanguageError(asked, self.language)
            return None
        language = None if asked.lower() in ("", MULTILINGUAL) else asked
        try:
            told = model.check_language(language)
        except UsageError as error:
            raise LanguageError(asked, ", ".join(model.languages)) from error
        if model.head.prompts is None or not request.task:
            return told
        try:
            return model.check_language(",".join(filter(None, (language, request.task))))
        except UsageError as error:
            raise RequestError(str(error), "task") from error

    def spoken_language(self, request: RecognitionRequest) -> str:
        """Language of the results: the one that the model was told, else the server's. Raises LanguageError."""
        told = self.told_language(request)
        return self.language if told in (None, AUTO) else target_language(str(told))

    def unknown_model(self, name: str, metadata: Metadata) -> UnknownModelError:
        """Error that lists the models which the caller may use."""
        return UnknownModelError(name, join_listed(self.visible_models(metadata)))

    def visible_adapters(self, metadata: Metadata) -> Iterator[AdapterEntry]:
        """Usable adapters that the caller may use. Raises AccessError for an invalid token."""
        return visible_adapters(self.store, self.guard, metadata, base=self.base_name)

    def visible_models(self, metadata: Metadata) -> list[str]:
        """Names of the base and of the adapters that the caller may use, as requests have them."""
        named = ((), *((entry.name,) for entry in self.visible_adapters(metadata)))
        return [model_name(self.base, names) for names in named]

    # Resources of a request

    async def lease(self, call: Call) -> Lease:
        """Lease the call's adapters. Raises AdapterError and OverloadError."""
        if self.store.is_in_model(call.adapter.split("+") if call.adapter else ()):
            return self.store.acquire(call.adapter)
        return await asyncio.to_thread(self.store.acquire, call.adapter)

    async def decoding(self, request: RecognitionRequest, call: Call, lease: Lease) -> DecodingOptions:
        """Decoding options of a request; phrases that have no effect with the lease are noted in the call."""
        boosts = None
        if request.boosts:
            tokenizer = head_of(self.engine, lease).tokenizer
            boosts = await self.threads.run(BoostTree, request.boosts, tokenizer, client=call.client)
        decoding = DecodingOptions(boosts=boosts, alternatives=request.hypotheses, language=self.told_language(request))
        call.ignored += decoding.ignored
        return decoding

    def audio_decoder(self, request: RecognitionRequest) -> AudioDecoder:
        """Decoder of the request's audio to the model's rate."""
        return AudioDecoder(
            encoding=request.encoding,
            sample_rate=request.sample_rate,
            channels=request.channels,
            target_rate=self.engine.sample_rate,
            limits=self.limits,
        )

    def mask(self, request: RecognitionRequest) -> Mask:
        """Mask of the texts in the request's results."""
        return partial(mask_words, words=self.profanities) if request.mask_profanity else str

    # Recordings

    async def decode(self, file: IO[bytes], request: RecognitionRequest, call: Call) -> Samples:
        """Decode a whole recording to [S] float32 at the model's rate, never empty.

        Decoding ends where the call is cancelled; what was done of it is charged in any case. Raises AudioError,
        UnsupportedError and OverloadError.
        """
        parts: list[Samples] = []
        with self.audio_decoder(request) as decoder, self.held.hold(0.0, call.tenant) as holding:
            try:
                async for pieces in self.threads.steps(decode_pieces(file, decoder, request), call.client):
                    parts += pieces
                    holding.grow(sum(piece.size for piece in pieces) / self.engine.sample_rate)
            finally:
                self.guard.charge(call.tenant, audio_seconds=decoder.work_seconds)
        samples = np.concatenate(parts)
        if not samples.size:
            raise AudioError("The audio is too short: it holds no sample at the model's rate.")
        call.audio_seconds += samples.size / self.engine.sample_rate
        return samples

    async def recognise(
        self, samples: Samples, request: RecognitionRequest, call: Call, *, deadline: float | None = None
    ) -> Recognition:
        """Recognise a recording [S]. deadline: as `time.monotonic()`. Cancelling frees the places in the queue.

        Raises AccessError where a quota is used up, AdapterError, OverloadError, DrainingError, DeadlineError and
        WorkerError.
        """
        seconds = samples.size / self.engine.sample_rate
        counted = self.counted(call.adapters)
        with self.quotas.session(counted, audio_seconds=seconds), self.held.hold(call.audio_seconds, call.tenant):
            if self.elsewhere is not None:
                return await self.elsewhere.recognise(samples, request, call, deadline=deadline)
            with await self.lease(call) as lease:
                decoding = await self.decoding(request, call, lease)
                return await recognise(
                    self.engine, samples, lease=lease, decoding=decoding, deadline=deadline, group=call.turn
                )

    async def recognise_in_parts(
        self, samples: Samples, request: RecognitionRequest, call: Call, *, deadline: float | None = None
    ) -> AsyncGenerator[Recognition]:
        """Recognise a recording [S] and yield its transcript after each window; the last one is the whole.

        Raises the errors of `recognise`. Leaving the iteration frees the places in the queue.
        """
        seconds = samples.size / self.engine.sample_rate
        counted = self.counted(call.adapters)
        with self.quotas.session(counted, audio_seconds=seconds), self.held.hold(call.audio_seconds, call.tenant):
            async with aclosing(self.parts(samples, request, call, deadline)) as parts:
                async for part in parts:
                    yield part

    async def parts(
        self, samples: Samples, request: RecognitionRequest, call: Call, deadline: float | None
    ) -> AsyncGenerator[Recognition]:
        """Transcripts of a recording [S] after each window, by the replicas elsewhere or by the engine."""
        if self.elsewhere is not None:
            there = self.elsewhere.recognise_in_parts(samples, request, call, deadline=deadline)
            async with aclosing(there) as found:
                async for part in found:
                    yield part
            return
        with await self.lease(call) as lease:
            decoding = await self.decoding(request, call, lease)
            here = recognise_in_parts(
                self.engine, samples, lease=lease, decoding=decoding, deadline=deadline, group=call.turn
            )
            async with aclosing(here) as found:
                async for part in found:
                    yield part


def decode_pieces(file: IO[bytes], decoder: AudioDecoder, request: RecognitionRequest) -> Iterator[Samples]:
    """Pieces [S] of a recording at the model's rate, decoded as they are asked for.

    Raises AudioError and UnsupportedError.
    """
    while not decoder.closed and (data := file.read(PIECE)):
        yield decoder.push(data)
        request.check_format(decoder.format)
    yield from decoder.rest()
    request.check_format(decoder.format)


def mask_words(text: str, words: Collection[str] = PROFANITIES) -> str:
    """Text with `x**` for each of the words, whatever its case. words: lower case."""

    def mask(match: re.Match[str]) -> str:
        word = match.group()
        return word[0] + "*" * (len(word) - 1) if word.lower() in words else word

    return WORD.sub(mask, text)
