"""One base of a server at work: its engine, its adapter store, and the service that recognises with both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from overtone.errors import UsageError
from overtone.models.asr_model import AsrModel
from overtone.serving.adapter_store.mirror import AdapterMirror
from overtone.serving.adapter_store.store import AdapterStore
from overtone.serving.auth.guard import Guard
from overtone.serving.auth.quotas import Quotas
from overtone.serving.engine.engine import Engine
from overtone.serving.recognition.service import Elsewhere, RecognitionService
from overtone.serving.settings import ServerSettings
from overtone.serving.streaming.cache_aware import check_mode, prepare_steps

Source = tuple[AsrModel, Elsewhere | None]
"""A base's model, and the processes that recognise with it in place of this one; the model then needs no weights."""


class ServedBase:
    """Engine, adapter store and service of one base; `close` it afterwards."""

    def __init__(
        self, settings: ServerSettings, source: Source, *, guard: Guard, quotas: Quotas, beside: ServedBase | None
    ) -> None:
        """settings: of this base alone. beside: the server's first base. Raises UsageError or AdapterError."""
        model, elsewhere = source
        self.is_first = beside is None
        if settings.adapters is not None and not settings.adapters.is_dir():
            raise UsageError(f"{settings.adapters} is no folder. Make it, and put adapter folders into it.")
        check_mode(settings.stream, model)
        self.settings = settings
        with ExitStack() as opened:
            self.mirror = AdapterMirror(settings.adapters_from) if settings.adapters_from else None
            if self.mirror is not None:
                opened.callback(self.mirror.close)
            self.engine = Engine(model, settings.engine)
            opened.callback(self.engine.close)
            if elsewhere is None:
                prepare_steps(settings.stream, self.engine)
            self.store = AdapterStore(
                model,
                settings.adapters if self.mirror is None else self.mirror.folder,
                lock=self.engine.lock,
                capacity=settings.capacity,
                poll_seconds=settings.poll_seconds,
                mirrored=settings.adapters_from,
            )
            opened.pop_all()
        self.service: RecognitionService = RecognitionService(
            self.engine,
            self.store,
            guard=guard,
            quotas=quotas,
            base=settings.base,
            language=settings.language,
            limits=settings.limits,
            profanities=settings.profanities,
            aliases=settings.aliases,
            elsewhere=elsewhere,
            beside=None if beside is None else beside.service,
        )

    def close(self) -> None:
        """End the threads. Waiting rows are answered with an error. The first base, whose service the others share
        threads with, goes last."""
        self.engine.close()
        if self.mirror is not None:
            self.mirror.close()
        self.store.close()
        if self.is_first:
            self.service.close()


def serve_each(
    settings: ServerSettings, sources: Sequence[Source], *, guard: Guard, quotas: Quotas
) -> tuple[ServedBase, ...]:
    """Bases of the settings, each with its source; either all of them run, or none does.

    Raises UsageError, which names the base where there are several, or AdapterError.
    """
    if len(sources) != 1 + len(settings.more):
        raise UsageError(f"The settings name {1 + len(settings.more)} bases; models are given for {len(sources)}.")
    served: list[ServedBase] = []
    try:
        for own, source in zip(settings.of_each_base(), sources, strict=True):
            beside = served[0] if served else None
            try:
                served.append(ServedBase(own, source, guard=guard, quotas=quotas, beside=beside))
            except UsageError as error:
                if not settings.more:
                    raise
                raise UsageError(f"The base '{own.base}': {error}") from error
    except BaseException:
        close_all(served)
        raise
    return tuple(served)


def close_all(served: Sequence[ServedBase]) -> None:
    """Close bases; the first one, whose threads the others share, at last."""
    for base in reversed(served):
        base.close()
