"""Bases of one server: each has a recognition service of its own, and every request chooses one of them.

A name may begin with the base's: `BASE`, `BASE:ADAPTER`, `BASE+ADAPTER`. A name without it (`medical`, `base+medical`)
means the one base whose store holds the adapter. Where that leaves several, the request's language decides; a request
without any name gets the first base that understands its language. With one base, all names are that one's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from overtone.adapters.adapter import check_name
from overtone.errors import AdapterError, UsageError
from overtone.serving.adapter_store.names import adapter_names, chosen_adapters, join_listed, model_name
from overtone.serving.adapter_store.store import BASE_NAMES
from overtone.serving.auth.guard import Metadata
from overtone.serving.engine.engine import EngineState
from overtone.serving.engine.stats import add_states
from overtone.serving.errors import AccessError, LanguageError, RequestError, UnknownModelError
from overtone.serving.recognition.request import Call, RecognitionRequest
from overtone.serving.recognition.service import RecognitionService

SIGNS = re.compile("[+:]")
"""Marks between a base and its adapters."""
WAY_OUT = "Give each a name of its own: NAME=MODEL."
Place = tuple[RecognitionService | None, tuple[str, ...]]
"""Base that a name says (None: it says none), and adapters."""


class Bases:
    """Services of all bases, the default one first; they share guard, quotas and aliases."""

    def __init__(self, services: Sequence[RecognitionService]) -> None:
        """Raises UsageError where several have names by which requests could not tell them apart."""
        self.services = tuple(services)
        self.first = self.services[0]
        self.are_several = len(self.services) > 1
        self.named = {service.base_name: service for service in self.services}
        if self.are_several:
            check_base_names([service.base_name for service in self.services])
            for alias in self.first.aliases.keys() & self.named.keys():
                raise UsageError(f"--alias {alias}: a base is called so, and its name always means it. Choose another.")
            for service in self.services:
                service.base_is_reserved = True

    def __iter__(self) -> Iterator[RecognitionService]:
        return iter(self.services)

    @property
    def apart(self) -> Mapping[str, RecognitionService]:
        """Each base by its name where there are several; empty for one."""
        return self.named if self.are_several else {}

    def state(self) -> EngineState:
        """State of all engines together."""
        return self.first.state() if not self.are_several else add_states([service.state() for service in self])

    # Names

    def place(self, name: str) -> Place:
        """Base and adapters that the name of a model means."""
        name = self.first.resolve(name)
        if not self.are_several:
            return self.first, adapter_names(name, self.first.base)
        if name in BASE_NAMES:
            return None, ()
        if name in self.named:
            return self.named[name], ()
        head, *rest = SIGNS.split(name, maxsplit=1)
        if rest and (head in self.named or head == "base"):
            return self.named.get(head), tuple(rest[0].split("+"))
        return None, tuple(name.split("+"))

    def is_known(self, name: str) -> bool:
        """Tell whether a name is an alias or an adapter, or says which of several bases is meant."""
        if any(service.is_known(name) for service in self):
            return True
        return self.are_several and self.place(name)[0] is not None

    def holders(self, names: Sequence[str]) -> list[RecognitionService]:
        """Bases whose stores hold all of these adapters."""
        return [service for service in self if service.holds(names)]

    def permitted(self, names: Sequence[str], metadata: Metadata) -> list[RecognitionService]:
        """Bases on which the caller may use all of these adapters. Raises AccessError where there is none."""
        found: list[RecognitionService] = []
        refusal: AccessError | None = None
        for service in self:
            try:
                service.authorise(metadata, names)
            except AccessError as error:
                refusal = error
            else:
                found.append(service)
        if refusal is not None and not found:
            raise refusal
        return found

    def unknown_model(self, name: str, metadata: Metadata) -> UnknownModelError:
        """Error that lists the models of all bases which the caller may use."""
        if not self.are_several:
            return self.first.unknown_model(name, metadata)
        return UnknownModelError(
            name, join_listed([own for service in self for own in service.visible_models(metadata)])
        )

    # Requests

    def choose(self, request: RecognitionRequest, metadata: Metadata, call: Call) -> RecognitionService:
        """Service of the base that a request means, which is noted in the call.

        Raises RequestError for a name that several bases understand, UsageError for two places that name different
        adapters, UnknownModelError, LanguageError, AccessError.
        """
        if not self.are_several:
            return self.first
        service = self.find(request, metadata)
        call.base = call.base or service.base  # for the record of a refusal; the service's check notes it else
        return service

    def find(self, request: RecognitionRequest, metadata: Metadata) -> RecognitionService:
        """Service of the base that a request means among several.

        Raises RequestError, UsageError, UnknownModelError, LanguageError or AccessError, as `choose`.
        """
        candidates, names = self.candidates(request, metadata)
        if len(candidates) == 1:
            return candidates[0]
        speaking = [service for service in candidates if service.is_for(request)]
        if not speaking:
            known = dict.fromkeys(language for service in candidates for language in service.languages)
            raise LanguageError(request.language, ", ".join(known))
        if names and len(speaking) > 1:
            raise ambiguous(names, speaking)
        return speaking[0]

    def candidates(
        self, request: RecognitionRequest, metadata: Metadata
    ) -> tuple[Sequence[RecognitionService], Sequence[str]]:
        """Services of the bases that the names of a request may mean among several, and the adapters of those names.

        Those that refuse an adapter are left out where others can use it. Raises RequestError, UsageError,
        UnknownModelError or AccessError, as `choose`.
        """
        of_model, names = self.place(request.model)
        of_adapter, more = self.place(request.adapter)
        if of_model is not None and of_adapter not in (None, of_model):
            raise RequestError(
                f"The model '{request.model}' and the adapter '{request.adapter}' are of different bases.",
                "adapter",
            )
        if (named := of_model or of_adapter) is not None:
            return [named], (*names, *more)
        if request.adapter:
            names = chosen_adapters("+".join(names), "+".join(more), "")
        found = [service for service in self.permitted(names, metadata) if service.holds(names)]
        if not found:
            raise self.unknown_model(request.model or request.adapter, metadata)
        return [service for service in found if service.can_use(names)] or found, names

    def are_left(self, model: str, metadata: Metadata) -> bool:
        """Tell whether a model's name leaves several bases, of which the language that is still to come may choose.

        Raises UnknownModelError or AccessError, as `choose`.
        """
        return self.are_several and len(self.candidates(RecognitionRequest(model=model), metadata)[0]) > 1

    # Adapters

    def owner(self, name: str) -> tuple[RecognitionService, str]:
        """Service of the base that an adapter belongs to, and the adapter's own name; with several bases the name may
        be `BASE:ADAPTER`.

        Raises AdapterError for a malformed name, and RequestError where it does not say which base is meant.
        """
        if not self.are_several:
            return self.first, check_name(name)
        named, names = self.place(name) if SIGNS.search(name) else (None, (name,))
        own = check_name("+".join(names))
        if named is not None:
            return named, own
        holders = self.holders((own,))
        if len(holders) == 1:
            return holders[0], own
        if holders:
            raise ambiguous((own,), holders)
        examples = ", ".join(f"{service.base}:{own}" for service in self)
        raise RequestError(f"No base has an adapter '{own}'. Say which base is meant: {examples}.", "name")


def ambiguous(names: Sequence[str], services: Sequence[RecognitionService]) -> RequestError:
    """Error for adapters that several bases have."""
    own = "+".join(names)
    meant = ", ".join(model_name(service.base, names) for service in services)
    return RequestError(f"Several bases have the adapter '{own}'. Say which one is meant: {meant}.", "model")


def check_base_names(names: Sequence[str]) -> None:
    """Raises UsageError for names of several bases that are malformed, reserved or the same."""
    for name in names:
        if name in BASE_NAMES:
            raise UsageError(f"A base among several cannot be called '{name}': that means any of them. {WAY_OUT}")
        try:
            check_name(name)
        except AdapterError as error:
            raise UsageError(f"A base among several cannot be called '{name}': {error} {WAY_OUT}") from error
        if names.count(name) > 1:
            raise UsageError(f"Two bases are called '{name}'. {WAY_OUT}")
