"""Choices for recordings: the adapters of each, with the chain of names behind them, and how it is decoded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from overtone.adapters.adapter_set import FILE_CHOICE
from overtone.decoding.decoder import BeamSettings, DecodingOptions
from overtone.decoding.phrase_boost import LARGEST_BOOST, Boost, BoostTree
from overtone.errors import OutputError, UsageError
from overtone.models.asr_model import AsrModel

Choice = str | Path | None
"""None is the base, "a" an adapter, "a+b" a chain of them, "@file" what the model's own file had enabled; or the folder
of a saved adapter, which is then loaded into the model."""

Phrases = Sequence[str] | Mapping[str, float]
"""Words and phrases that are likelier than the model thinks; a mapping has the boost of each, -100…100."""
PHRASE_BOOST = 10.0
"""Boost of phrases that come without one."""
WIDEST_BEAM = 256
MOST_ALTERNATIVES = 64


def decoding_options(
    model: AsrModel, *, beam: int | BeamSettings | None = None, phrases: Phrases = (), alternatives: int = 1
) -> DecodingOptions:
    """Options of decoding in the words of a caller.

    Raises UsageError for numbers out of range, and for phrases that the model cannot write.
    """
    if isinstance(beam, int):
        if not 1 <= beam <= WIDEST_BEAM:
            raise UsageError(f"beam is {beam}; 1 to {WIDEST_BEAM} prefixes are allowed, or None for none.")
        beam = BeamSettings(width=beam)
    if not 1 <= alternatives <= MOST_ALTERNATIVES:
        raise UsageError(f"alternatives is {alternatives}; 1 to {MOST_ALTERNATIVES} readings are allowed.")
    if isinstance(phrases, str):
        raise UsageError("phrases is one text; a list of phrases is needed, or a mapping of phrases to boosts.")
    boosted = dict(phrases) if isinstance(phrases, Mapping) else dict.fromkeys(phrases, PHRASE_BOOST)
    wrong = [phrase for phrase, boost in boosted.items() if not abs(boost) <= LARGEST_BOOST]
    if wrong:
        raise UsageError(f"The boost of '{wrong[0]}' is {boosted[wrong[0]]}; -100 to 100 are allowed.")
    tree = BoostTree([Boost(phrases=(phrase,), boost=boost) for phrase, boost in boosted.items()], model.tokenizer)
    if not any(adapter.vocabulary is not None for adapter in model.adapters):
        refuse_ignored(tree, "the model's vocabulary")
    return DecodingOptions(boosts=tree if boosted else None, alternatives=alternatives, beam=beam)


def refuse_ignored(tree: BoostTree, vocabulary: str) -> None:
    """Raises UsageError where a vocabulary cannot write a phrase."""
    if tree.ignored:
        shown = ", ".join(f"'{phrase[:40]}'" for phrase in tree.ignored[:5])
        raise UsageError(
            f"{len(tree.ignored)} of {sum(len(boost.phrases) for boost in tree.boosts)} phrases cannot be written in "
            f"{vocabulary}, or are empty: {shown}. Spell them as transcripts are spelt, or leave them out."
        )


def check_phrases(model: AsrModel, options: DecodingOptions, chains: Iterable[str | None]) -> None:
    """Raises UsageError where a vocabulary that one of the chains writes in cannot write a phrase."""
    if options.boosts is None:
        return
    for chain in chains:
        tokenizer = model.head_of(chain).tokenizer
        own = "the model's vocabulary" if tokenizer is model.tokenizer else f"the vocabulary of '{chain}'"
        refuse_ignored(options.boosts.over(tokenizer), own)


def refuse_selection(model: AsrModel) -> None:
    """Raises UsageError where a `use` block around the caller has adapters act, and `adapter` was not given."""
    selection = model.adapters.selection
    if selection is not None and not selection.is_base:
        names = "+".join(selection.chain) or "another adapter for each row"
        raise UsageError(
            f"A `use` block has {names} act, and `adapter` was not given, which means the base. Name the adapter here, "
            "as adapter=…, or leave the block; inside it, [None] for each path is the base."
        )


def check_weights(model: AsrModel, chain: str | None) -> None:
    """Raises OutputError with the first tensor of the base, or of the adapters in use, that is not finite."""
    for name, tensor in model.base_state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise OutputError(
                f"The outputs of the model are not finite: {name} holds NaN or infinity. Fetch or save the model again."
            )
    for adapter in [] if chain is None else chain.split("+"):
        for name, tensor in model.adapters[adapter].tensors().items():
            if not torch.isfinite(tensor).all():
                raise OutputError(
                    f"The outputs of the model are not finite: {name} of adapter '{adapter}' holds NaN or infinity. "
                    "Train it again, or fetch it again."
                )


def resolve_choice(model: AsrModel, choice: Choice) -> str | None:
    """The chain of names behind a choice, None for the base; what lies in a folder is loaded.

    Raises AdapterError for what is neither an adapter of the model nor on disk.
    """
    if choice == FILE_CHOICE:
        chain: str | None = "+".join(model.adapters.file_choice)
    elif choice is None or all(name in model.adapters for name in str(choice).split("+")):
        chain = None if choice is None else str(choice)
    else:
        from overtone.checkpoints.adapters import load_chain

        chain = load_chain(model, str(choice))
    with model.adapters.use(chain or None):
        return chain or None


@dataclass(frozen=True, kw_only=True)
class NamedChoice:
    """A choice of adapters with a name that tells it from the others of its run."""

    label: str | None
    """The choice as it was given, or the name of what lies in a folder; None is the base."""
    chain: str | None
    """The adapters that act, joined by `+`; None is the base."""
    source: str | None = None
    """The path that it was loaded from."""


def name_choices(model: AsrModel, choices: Sequence[Choice]) -> list[NamedChoice]:
    """Resolve each choice, once if it comes twice. What lies in folders is loaded.

    An adapter of a folder has its own name, unless another of the run, or of the model, has that name too: then
    folders tell them apart. Raises AdapterError, as `resolve_choice`.
    """
    given = list(dict.fromkeys(None if choice is None else str(choice) for choice in choices))
    known = set(model.adapters.names)
    named = []
    for text in given:
        chain = resolve_choice(model, text)
        is_stored = text is not None and text != FILE_CHOICE and chain != text
        named.append(NamedChoice(label=chain if is_stored else text, chain=chain, source=text if is_stored else None))
    unclear = [one for one in named if one.source is not None and is_unclear(one, named, known)]
    places = {str(one.source): Path(str(one.source)).resolve().parts for one in unclear}
    parts = 1
    while len({place[-parts:] for place in places.values()}) < len(places) and parts < max(map(len, places.values())):
        parts += 1
    tails = {source: "/".join(place[-parts:]) for source, place in places.items()}
    return [
        one if one not in unclear else NamedChoice(label=tails[str(one.source)], chain=one.chain, source=one.source)
        for one in named
    ]


def is_unclear(one: NamedChoice, named: Sequence[NamedChoice], known: Collection[str]) -> bool:
    """True if the name of what was loaded is not its own, or is also that of another choice or adapter."""
    from overtone.checkpoints.adapters import stored_name

    own = {str(other.source): stored_name(str(other.source)) for other in named if other.source is not None}
    name = own[str(one.source)]
    shared = sum(other == name for other in own.values()) > 1 if name is not None else False
    taken = any(other.label == one.label for other in named if other is not one)
    return shared or taken or (name is not None and name != one.chain) or (name is not None and name in known)
