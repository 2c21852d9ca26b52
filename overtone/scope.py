"""Choices that act inside a `with` block: which adapters, which head, which dtype.

A choice is seen by the block that made it and by nobody else: not by other threads and tasks, and not by whoever
goes through a generator, while that generator waits with a block open.
"""

from __future__ import annotations

import contextlib
import sys
from contextvars import Context, ContextVar, copy_context
from inspect import CO_GENERATOR
from types import FrameType
from typing import Any, Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")
CONTEXTLIB = vars(contextlib)


class Choice(Generic[T]):
    """One open block."""

    def __init__(
        self,
        owner: object,
        value: T,
        generator: FrameType | None = None,
        waiting: tuple[Choice[T], ...] = (),
    ) -> None:
        self.owner = owner
        self.value = value
        self.generator = generator
        """The frame of the generator that the block is in; None where it is in a function."""
        self.waiting = waiting
        """Blocks in generators that waited when this one began: when they go on, that happens inside this one."""
        self.closed = False

    def acts(self) -> bool:
        """True inside the block. A generator that waits has no caller: its block is not where the program is."""
        return not self.closed and (self.generator is None or self.generator.f_back is not None)


class Scope(Generic[T]):
    """The choices of one sort, for any number of owners."""

    def __init__(self, name: str) -> None:
        self.choices: ContextVar[tuple[Choice[T], ...]] = ContextVar(name, default=())
        """Open blocks, the innermost first."""
        SCOPES.append(self)

    def get(self, owner: object, default: U) -> T | U:
        """The choice of the innermost block around the caller that is the owner's."""
        choices = self.choices.get()
        for place, choice in enumerate(choices):
            if choice.owner is owner and choice.acts():
                return choice.value if not choice.waiting else find_innermost(choice, choices[place + 1 :]).value
        return default

    def choose(self, owner: object, value: T) -> Block[T]:
        """Make a block in which `get` gives the value for the owner."""
        return Block(self, owner, value)

    def pin(self) -> None:
        """Keep, in this context, what acts now, for a function that runs in it later."""
        acting = {id(choice.owner): choice for choice in self.choices.get() if choice.acts()}
        pinned = (Choice(choice.owner, self.get(choice.owner, choice.value)) for choice in acting.values())
        self.choices.set(tuple(pinned))


SCOPES: list[Scope[Any]] = []
"""All of them."""


class Block(Generic[T]):
    """A context manager: the choice acts in its block, whatever other blocks end before or after it."""

    def __init__(self, scope: Scope[T], owner: object, value: T) -> None:
        self.scope = scope
        self.owner = owner
        self.value = value
        self.choice: Choice[T] | None = None

    def __enter__(self) -> T:
        choices = self.scope.choices
        open_ones = tuple(choice for choice in choices.get() if not choice.closed)
        waiting = tuple(choice for choice in open_ones if not choice.acts())
        self.choice = Choice(self.owner, self.value, find_generator(sys._getframe(1)), waiting)
        choices.set((self.choice, *open_ones))
        return self.value

    def __exit__(self, *_: object) -> None:
        assert self.choice is not None
        self.choice.closed = True  # wherever it is: a generator may be closed by another thread
        self.choice.generator, self.choice.waiting = None, ()
        choices = self.scope.choices
        choices.set(tuple(choice for choice in choices.get() if not choice.closed))


def find_innermost(newest: Choice[T], older: tuple[Choice[T], ...]) -> Choice[T]:
    """The innermost block of those that act, where generators go on that had waited when the newest one began."""
    resumed = [
        choice for choice in older if choice.owner is newest.owner and choice in newest.waiting and choice.acts()
    ]
    if not resumed:
        return newest
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        for choice in (newest, *resumed):
            if choice.generator is frame:
                return choice
        frame = frame.f_back
    return resumed[0]


def find_generator(frame: FrameType | None) -> FrameType | None:
    """The generator whose `with` statement enters a block; None where it is a function's.

    Context managers made with contextlib are generators too, but their block is that of the `with` they stand in.
    """
    while True:
        while frame is not None and frame.f_globals is CONTEXTLIB:
            frame = frame.f_back
        if frame is None or not frame.f_code.co_flags & CO_GENERATOR:
            return None
        above = frame.f_back
        if above is None or above.f_globals is not CONTEXTLIB:
            return frame
        frame = above


def pinned_context() -> Context:
    """A copy of the context variables in which the choices of now act, also when their blocks have ended."""
    context = copy_context()
    for scope in SCOPES:
        context.run(scope.pin)
    return context
