"""The attention of a loaded model's encoder: the choice of one of its contexts, and of local or full attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from overtone.errors import UsageError
from overtone.models.asr_model import AsrModel
from overtone.nets.taps import LOCAL, Window

FULL = "rel_pos"
"""NeMo's name of relative attention that is not local."""


def choose_attention(model: AsrModel, context: Sequence[int] | None, kind: str | None = None) -> None:
    """Let another attention context act, or another kind of attention, with the same weights and fingerprint.

    context: encoder frames to the left and to the right that a frame sees; None: as it is. kind: `rel_pos_local_attn`
    for local attention, in memory that grows with the length alone, `rel_pos` for any other, None as it is.
    Raises UsageError for contexts that the model was not trained with, where its attention is not local, and for an
    encoder without relative attention.
    """
    encoder, name = model.encoder, model.name or "this model"
    if context is None and kind is None:
        return
    if kind not in (None, LOCAL, FULL):
        raise UsageError(f"self_attention_model is '{kind}'. Allowed: {LOCAL}, {FULL}.")
    if kind is not None and not encoder.relative:
        raise UsageError(f"{name} has no relative attention, which alone can become local or cease to be.")
    if kind == LOCAL or (kind is None and encoder.window is not None):
        choose_window(model, context)
    elif context is None:
        encoder.window, encoder.attention_context = None, full_context(model)
    else:
        known = encoder.attention_contexts if not is_local(model) else ()
        if tuple(context) not in (known or [(-1, -1)]):
            raise UsageError(
                f"att_context_size is {list(context)}, which {name} was not trained with. "
                f"Allowed: {contexts_text(known)}."
            )
        encoder.window, encoder.attention_context = None, (context[0], context[1])


def choose_window(model: AsrModel, context: Sequence[int] | None) -> None:
    """Let attention be local, without global frames unless the model has them so. Raises UsageError for no window."""
    encoder = model.encoder
    if context is None and encoder.window is not None:
        return
    if context is None or min(context) < 0 or max(context) == 0:
        raise UsageError(
            f"Local attention needs att_context_size, the frames to the left and to the right that a frame sees, "
            f"such as [128, 128], not {None if context is None else list(context)}."
        )
    if encoder.window is None or (encoder.window.left, encoder.window.right) != tuple(context):
        encoder.window = Window(left=context[0], right=context[1])
    encoder.attention_context = (context[0], context[1])


def is_local(model: AsrModel) -> bool:
    """True if the attention of the base is local as it is loaded."""
    return model.settings["encoder"].get("position") == LOCAL


def full_context(model: AsrModel) -> tuple[int, int]:
    """The context of attention that is not local: all frames of a model that was trained with local attention."""
    return (-1, -1) if is_local(model) else model.encoder.attention_contexts[0]


@contextmanager
def keep_attention(model: AsrModel) -> Iterator[None]:
    """Let the attention after the block be that of before."""
    encoder = model.encoder
    context, window = encoder.attention_context, encoder.window
    try:
        yield
    finally:
        encoder.attention_context, encoder.window = context, window


def contexts_text(contexts: Sequence[Sequence[int]]) -> str:
    """`[70, 13], [70, 1]`."""
    return ", ".join(str(list(each)) for each in contexts) or "none, as it has no attention"


def attention_text(model: AsrModel) -> str:
    """`attention context [70, 13] of [70, 13], [70, 1]`, `local attention [128, 128]`; nothing without a choice."""
    encoder = model.encoder
    if encoder.window is not None:
        return f"local attention {list(encoder.attention_context)}"
    if is_local(model):
        return "full attention"
    if len(encoder.attention_contexts) < 2:
        return ""
    return f"attention context {list(encoder.attention_context)} of {contexts_text(encoder.attention_contexts)}"


def attention_facts(model: AsrModel) -> dict[str, Any]:
    """The attention that acts, as plain data under NeMo's keys; nothing where there is no choice."""
    encoder = model.encoder
    kind = {"self_attention_model": LOCAL if encoder.window is not None else FULL}
    changed = (encoder.window is not None) != is_local(model)
    if not changed and encoder.window is None and len(encoder.attention_contexts) < 2:
        return {}
    return {**(kind if changed else {}), "att_context_size": list(encoder.attention_context)}
