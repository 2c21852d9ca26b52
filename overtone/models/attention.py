"""The attention of a loaded model's encoder: the choice of one of its contexts."""

from __future__ import annotations

from collections.abc import Sequence

from overtone.errors import UsageError
from overtone.models.asr_model import AsrModel


def choose_attention(model: AsrModel, context: Sequence[int] | None) -> None:
    """Let another of the attention contexts act that the model was trained with; None changes nothing.

    context: encoder frames to the left and to the right that a frame sees. The fingerprint stays the same.
    Raises UsageError for a context that is not one of them.
    """
    if context is None:
        return
    known = model.encoder.attention_contexts
    if tuple(context) not in known:
        raise UsageError(
            f"att_context_size is {list(context)}, which {model.name or 'this model'} was not trained with. "
            f"Allowed: {contexts_text(known)}."
        )
    model.encoder.attention_context = (context[0], context[1])


def contexts_text(contexts: Sequence[Sequence[int]]) -> str:
    """`[70, 13], [70, 1]`."""
    return ", ".join(str(list(each)) for each in contexts) or "none, as it has no attention"


def attention_text(model: AsrModel) -> str:
    """`attention context [70, 13] of [70, 13], [70, 1]` for a model with several, else nothing."""
    encoder = model.encoder
    if len(encoder.attention_contexts) < 2:
        return ""
    return f"attention context {list(encoder.attention_context)} of {contexts_text(encoder.attention_contexts)}"


def attention_facts(model: AsrModel) -> dict[str, list[int]]:
    """The context that acts, as plain data under NeMo's key; nothing for a model with a single one."""
    encoder = model.encoder
    return {"att_context_size": list(encoder.attention_context)} if len(encoder.attention_contexts) > 1 else {}
