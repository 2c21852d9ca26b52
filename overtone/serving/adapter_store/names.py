"""What a request calls a model -> the adapters it means. The same rules at every door.

`""`, `base`, `none` and the base's own name mean the base alone; `base+medical`, `<base's name>+medical` and
`medical` mean an adapter; `a+b` is a chain in that order.
"""

from __future__ import annotations

from collections.abc import Sequence

from overtone.errors import UsageError
from overtone.serving.adapter_store.store import BASE_NAMES


def adapter_names(name: str, base: str) -> tuple[str, ...]:
    """The adapters that `name` means, in the order in which they act; empty for the base. base: the base's name."""
    if name in BASE_NAMES or name == base:
        return ()
    for prefix in (base, "base"):
        if prefix and name.startswith(f"{prefix}+"):
            return tuple(name.removeprefix(f"{prefix}+").split("+"))
    return tuple(name.split("+"))


def chosen_adapters(model: str, adapter: str, base: str) -> tuple[str, ...]:
    """The same where a request has two places for it. An empty `adapter` says nothing.

    Raises UsageError where both name adapters, and not the same.
    """
    of_model = adapter_names(model, base)
    if not adapter:
        return of_model
    of_adapter = adapter_names(adapter, base)
    if of_model and of_adapter != of_model:
        raise UsageError(
            f"The model '{model}' means {described(of_model)}, the adapter '{adapter}' means {described(of_adapter)}. "
            "Name it in one place, or the same in both."
        )
    return of_adapter


def described(names: Sequence[str]) -> str:
    return f"the adapter '{'+'.join(names)}'" if names else "the base alone"


def model_name(base: str, names: Sequence[str]) -> str:
    """What `adapter_names` reads back: `<base>+a+b`."""
    return "+".join((base or "base", *names))
