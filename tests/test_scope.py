"""Choices act inside their blocks and nowhere else, in generators and threads too, in whatever order blocks end."""

from __future__ import annotations

import gc
import threading
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import Context

from overtone.scope import Scope, pinned_context

SCOPE: Scope[str] = Scope("test_scope")
OWNER, OTHER = object(), object()


def seen(owner: object = OWNER) -> str:
    return SCOPE.get(owner, "nothing")


def looking(value: str) -> Generator[str, None, None]:
    with SCOPE.choose(OWNER, value):
        while True:
            yield seen()


def test_blocks_nest_and_owners_have_choices_of_their_own() -> None:
    with SCOPE.choose(OWNER, "outer"):
        with SCOPE.choose(OWNER, "inner"), SCOPE.choose(OTHER, "other"):
            assert (seen(), seen(OTHER)) == ("inner", "other")
        assert (seen(), seen(OTHER)) == ("outer", "nothing")
    assert seen() == "nothing"


def test_a_generator_that_waits_has_no_effect_on_its_caller() -> None:
    """In whatever order generators go on and end: what each sees is its own, and its caller sees nothing of it."""
    first, second = looking("first"), looking("second")
    assert (next(first), seen()) == ("first", "nothing")
    assert (next(second), seen()) == ("second", "nothing")
    with SCOPE.choose(OWNER, "outer"):
        assert (next(first), next(second), seen()) == ("first", "second", "outer")
    first.close()
    assert (next(second), seen()) == ("second", "nothing")
    second.close()
    assert (seen(), SCOPE.choices.get()) == ("nothing", ())


def test_of_generators_that_go_through_each_other_the_inner_one_counts() -> None:
    inner = looking("inner")

    def going_through() -> Generator[tuple[str, str], None, None]:
        with SCOPE.choose(OWNER, "outer"):
            while True:
                yield next(inner), seen()

    outer = going_through()
    assert next(inner) == "inner"
    assert next(outer) == ("inner", "outer")
    with SCOPE.choose(OWNER, "caller"):
        assert next(outer) == ("inner", "outer")
        assert next(inner) == "inner"
    outer.close()
    inner.close()


def test_a_function_that_a_generator_calls_has_blocks_inside_its_own() -> None:
    def helped() -> Generator[tuple[str, str], None, None]:
        def help_out() -> str:
            with SCOPE.choose(OWNER, "helper"):
                return seen()

        with SCOPE.choose(OWNER, "mine"):
            while True:
                yield help_out(), seen()

    generator = helped()
    assert next(generator) == ("helper", "mine")
    with SCOPE.choose(OWNER, "caller"):
        assert next(generator) == ("helper", "mine")
    generator.close()


def test_context_managers_give_their_choice_to_their_block() -> None:
    @contextmanager
    def chosen(value: str) -> Iterator[None]:
        with SCOPE.choose(OWNER, value):
            yield

    @contextmanager
    def twice(value: str) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(chosen("below"))
            stack.enter_context(chosen(value))
            yield

    @chosen("decorated")
    def decorated() -> str:
        return seen()

    def in_a_generator() -> Generator[str, None, None]:
        with twice("generator"):
            yield seen()

    with twice("block"):
        assert seen() == "block"
        assert decorated() == "decorated"
        generator = in_a_generator()
        assert (next(generator), seen()) == ("generator", "block")
        generator.close()
    assert seen() == "nothing"


def test_threads_see_nothing_of_each_other() -> None:
    found: list[str] = []
    generator = looking("generator")
    with SCOPE.choose(OWNER, "main"):
        next(generator)
        for target in (lambda: found.append(seen()), generator.close):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        assert seen() == "main"
    assert (found, seen()) == (["nothing"], "nothing")


def test_a_generator_that_nobody_holds_any_more_leaves_nothing() -> None:
    next(looking("lost"))
    gc.collect()
    assert seen() == "nothing"
    with SCOPE.choose(OWNER, "block"):
        assert seen() == "block"
    assert SCOPE.choices.get() == ()


def test_a_pinned_context_has_the_choices_of_now() -> None:
    """Also those of a generator that waits by then, and of a block that has ended."""

    def pinning() -> Generator[Context, None, None]:
        with SCOPE.choose(OWNER, "generator"):
            yield pinned_context()

    generator = pinning()
    context = next(generator)
    with SCOPE.choose(OTHER, "other"):
        other = pinned_context()
    assert (context.run(seen), other.run(seen, OTHER), seen()) == ("generator", "other", "nothing")
    generator.close()
