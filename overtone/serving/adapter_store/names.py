"""Names of models in requests -> adapters. The rules are the same for every interface.

`""`, `base`, `none` and the base's own name mean the base alone; `base+medical`, `<base's name>+medical` and
`medical` mean an adapter, and so does Ray Serve LLM's `<base's name>:medical`; `a+b` is a chain in that order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from overtone.errors import UsageError
from overtone.serving.adapter_store.store import BASE_NAMES, AdapterEntry, AdapterStore
from overtone.serving.auth.guard import Guard, Metadata
from overtone.serving.errors import AccessError

LISTED = 20
"""Model names in a message."""


def adapter_names(name: str, base: str) -> tuple[str, ...]:
    """Adapters that `name` means, in the order in which they act; empty for the base. base: the base's name."""
    if name in BASE_NAMES or name == base:
        return ()
    for prefix in (base, "base"):
        for sign in "+:":
            if prefix and name.startswith(f"{prefix}{sign}"):
                return tuple(name.removeprefix(f"{prefix}{sign}").split("+"))
    return tuple(name.split("+"))


def chosen_adapters(model: str, adapter: str, base: str) -> tuple[str, ...]:
    """Adapters of a request that has two places for them; an empty `adapter` says nothing.

    Raises UsageError where both name adapters, and not the same.
    """
    of_model = adapter_names(model, base)
    if not adapter:
        return of_model
    of_adapter = adapter_names(adapter, base)
    if of_model and of_adapter != of_model:
        raise UsageError(
            f"The model '{model}' means {describe(of_model)}, the adapter '{adapter}' means {describe(of_adapter)}. "
            "Name it in one place, or the same in both."
        )
    return of_adapter


def describe(names: Sequence[str]) -> str:
    """Adapters in words, for a message."""
    return f"the adapter '{'+'.join(names)}'" if names else "the base alone"


def model_name(base: str, names: Sequence[str]) -> str:
    """Name of the base with adapters, `<base>+a+b`, as `adapter_names` reads it."""
    return "+".join((base or "base", *names))


def visible_adapters(store: AdapterStore, guard: Guard, metadata: Metadata, *, base: str) -> Iterator[AdapterEntry]:
    """Usable adapters that the caller may use. base: the base's name. Raises AccessError for an invalid token."""
    for entry in store.entries():
        if entry.state == "refused":
            continue
        try:
            guard.authorise(metadata, entry.name, base=base)
        except AccessError as error:
            if error.fault == "forbidden":
                continue
            raise
        yield entry


def join_listed(names: Sequence[str]) -> str:
    """Names in one line, for a message."""
    return ", ".join(names[:LISTED]) + (f" … {len(names)} in all" if len(names) > LISTED else "")
