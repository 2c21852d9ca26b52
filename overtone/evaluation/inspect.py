"""Contents of a model or a stored adapter, as plain data and as text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overtone.adapters.adapter import Adapter
from overtone.adapters.kinds.base import Kind
from overtone.adapters.kinds.registry import KINDS
from overtone.adapters.points import Layers, Point
from overtone.adapters.storage import (
    DESCRIPTION,
    count_parameters,
    described_digest,
    read_description,
    read_kind,
    read_words,
)
from overtone.adapters.words import words_text
from overtone.checkpoints.load import load_model
from overtone.checkpoints.nemo.adapters import StoredNemoAdapter, read_adapters_pt
from overtone.checkpoints.nemo.adapters import read_kind as read_nemo_kind
from overtone.errors import UsageError
from overtone.models.asr_model import AsrModel
from overtone.models.parts import complete
from overtone.text_table import bytes_text, columns, share_text

NUMBER = re.compile(r"\.(\d+)(?=\.|$)")
TOKENIZERS = {
    "SentencePieceTokenizer": "sentencepiece",
    "AggregateTokenizer": "sentencepiece for each language",
    "WordPieceTokenizer": "WordPiece",
    "CharTokenizer": "characters",
}
MODEL_CARDS = ("MODEL_CARD.md", "README.md")


@dataclass(frozen=True, kw_only=True)
class AdapterInspection:
    """One adapter, in a model or on disk."""

    name: str
    kind: str
    settings: dict[str, Any]
    """The fields of the kind."""
    strategy: dict[str, Any]
    modules: str
    layers: str | int | list[int]
    points: list[str]
    """The points where it acts; numbered hosts for a file of NeMo, which names no points."""
    parameters: int
    digest: str | None
    """SHA-256 of its values; None where the file has none."""
    base_fingerprint: str | None
    tokenizer_digest: str | None
    card: dict[str, Any]
    words: dict[str, Any] | None = None
    """The word part: bytes, order, n-grams, weights, number of phrases; of a file of NeMo the bytes alone."""
    vocabulary: dict[str, Any] | None = None
    """Digest, kind and size of its own tokenizer; None where it writes the base's tokens."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class AdaptersInspection:
    """Adapters on disk, without their base."""

    source: str
    bytes: int
    """Size on disk."""
    adapters: tuple[AdapterInspection, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class PartInspection:
    """The preprocessor, the encoder or the decoder."""

    name: str
    parameters: int
    settings: dict[str, Any]
    """Every keyword argument, defaults included."""


@dataclass(frozen=True, kw_only=True)
class PointsInspection:
    """Points that differ in the layer's number alone."""

    pattern: str
    """The name with `*` for the number."""
    count: int
    place: str
    in_width: int
    out_width: int
    kinds: list[str]
    """Adapters that act here."""


@dataclass(frozen=True, kw_only=True)
class ModelInspection:
    """A model and its adapters."""

    source: str
    name: str
    bytes: int | None
    """Size on disk; None for a model in memory."""
    architecture: str
    parameters: int
    """Parameters of the base."""
    parts: tuple[PartInspection, ...]
    fingerprint: str
    sample_rate: int
    seconds_per_frame: float
    tokenizer: dict[str, Any]
    """The tokenizer's kind, size, digest and first pieces."""
    points: tuple[PointsInspection, ...]
    adapters: tuple[AdapterInspection, ...]
    file_choice: list[str]
    """The adapters that the file had enabled: what `@file` stands for."""
    card: str | None
    """Path of the model card beside the weights."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


Inspection = ModelInspection | AdaptersInspection


def inspect(source: str | Path | AsrModel) -> Inspection:
    """Inspect a model (in memory, `.nemo`, folder, name), an adapter's folder, or an `adapters.pt` of NeMo.

    Raises CheckpointError or AdapterError for what is damaged, UsageError for what is neither.
    """
    if isinstance(source, AsrModel):
        return inspect_model(source)
    path = Path(source)
    if (path / DESCRIPTION).is_file():
        return AdaptersInspection(
            source=str(source), bytes=size_on_disk(path), adapters=(inspect_adapter_folder(path),)
        )
    if path.name == DESCRIPTION and path.is_file():
        return inspect(path.parent)
    if path.suffix == ".pt" and path.is_file():
        stored = read_adapters_pt(path)
        adapters = tuple(inspect_nemo_adapter(adapter, str(path)) for adapter in stored)
        return AdaptersInspection(source=str(source), bytes=size_on_disk(path), adapters=adapters)
    if path.is_file() and path.suffix in (".safetensors", ".yaml", ".yml"):
        raise UsageError(f"{path} is a part of a model or adapter. Name the folder that it lies in.")
    return inspect_model(load_model(str(source)), source=str(source))


def inspect_model(model: AsrModel, *, source: str = "") -> ModelInspection:
    """Inspect a model with all its adapters; sizes and card where its source is on disk."""
    path = Path(source) if source else None
    on_disk = path is not None and path.exists()
    return ModelInspection(
        source=source or model.name,
        name=model.name,
        bytes=size_on_disk(path) if path is not None and on_disk else None,
        architecture=architecture_of(model),
        parameters=sum(parameter.numel() for parameter in model.base_parameters()),
        parts=tuple(inspect_part(model, part) for part in model.parts),
        fingerprint=model.fingerprint(),
        sample_rate=model.sample_rate,
        seconds_per_frame=model.seconds_per_frame,
        tokenizer={
            "kind": type(model.tokenizer).__name__,
            "size": model.tokenizer.size,
            "digest": model.tokenizer.digest(),
            "first": model.tokenizer.vocabulary[:12],
        },
        points=inspect_points(model),
        adapters=tuple(inspect_adapter(model, adapter) for adapter in model.adapters),
        file_choice=list(model.adapters.file_choice),
        card=find_card(path) if path is not None and on_disk else None,
    )


def architecture_of(model: AsrModel) -> str:
    """`FastConformer-CTC: 8 layers of width 176, …`"""
    name, sizes = model.encoder.describe()
    transducer = "TDT" if model.settings.get("joint", {}).get("durations") else "RNNT"
    heads = [transducer if head == "rnnt" else head.upper() for head in model.heads if head != "hybrid"]
    return f"{'-'.join((name, *heads))}: {sizes}"


def inspect_part(model: AsrModel, part: str) -> PartInspection:
    """Inspect one of PARTS."""
    count = sum(parameter.numel() for parameter in getattr(model, part).parameters())
    return PartInspection(name=part, parameters=count, settings=complete(part, model.settings[part]))


def inspect_points(model: AsrModel) -> tuple[PointsInspection, ...]:
    """Inspect the points of the model, the same point of all layers as one."""
    groups: dict[tuple[str, int, int], list[Point]] = {}
    for point in model.adapters.points.values():
        groups.setdefault((NUMBER.sub(".*", point.name), point.in_width, point.out_width), []).append(point)
    return tuple(
        PointsInspection(
            pattern=pattern,
            count=len(points),
            place=points[0].place,
            in_width=in_width,
            out_width=out_width,
            kinds=[name for name, known in KINDS.items() if known.kind().acts_at(points[0])],
        )
        for (pattern, in_width, out_width), points in groups.items()
    )


def inspect_adapter(model: AsrModel, adapter: Adapter) -> AdapterInspection:
    """One adapter of a model."""
    return AdapterInspection(
        name=adapter.name,
        kind=adapter.kind.name,
        settings=fields_of(adapter.kind),
        strategy=dataclasses.asdict(adapter.strategy),
        modules=adapter.modules_text,
        layers=plain_layers(adapter.layers),
        points=adapter.points,
        parameters=adapter.parameter_count(),
        digest=adapter.digest(),
        base_fingerprint=model.fingerprint(),
        tokenizer_digest=model.tokenizer.digest(),
        card=adapter.card,
        words=None if adapter.words is None else {"bytes": len(adapter.words.to_bytes()), **adapter.words.describe()},
        vocabulary=None if adapter.vocabulary is None else dict(adapter.vocabulary.describe()),
    )


def inspect_adapter_folder(folder: Path) -> AdapterInspection:
    """Inspect an adapter's folder without its base. Raises AdapterError where it is damaged."""
    description = read_description(folder)
    words = read_words(folder, description)
    return AdapterInspection(
        name=description["name"],
        kind=description["kind"],
        settings=fields_of(read_kind(folder, description)),
        strategy=description["strategy"],
        modules=description["modules"],
        layers=description["layers"],
        points=list(description.get("points") or ()),
        parameters=count_parameters(folder),
        digest=described_digest(folder, description),
        base_fingerprint=description["base_fingerprint"],
        tokenizer_digest=description["tokenizer_digest"],
        card=description["card"],
        words=None if words is None else {"bytes": len(words.to_bytes()), **words.describe()},
        vocabulary=description.get("vocabulary"),
    )


def inspect_nemo_adapter(stored: StoredNemoAdapter, source: str) -> AdapterInspection:
    """Inspect one adapter of NeMo's file `source`."""
    kind, strategy = read_nemo_kind(stored.described, source)
    return AdapterInspection(
        name=stored.name,
        kind=kind.name,
        settings=fields_of(kind),
        strategy=dataclasses.asdict(strategy),
        modules=stored.described.modules or "encoder",
        layers="all",
        points=[f"host {number}" for number in range(len(stored.hosts))],
        parameters=sum(tensor.numel() for host in stored.hosts for tensor in host.values()),
        digest=None,
        base_fingerprint=None,
        tokenizer_digest=None,
        card={},
        words=None if stored.words is None else {"bytes": len(stored.words)},
    )


def fields_of(kind: Kind) -> dict[str, Any]:
    """The settings of a kind."""
    return dataclasses.asdict(kind)  # type: ignore[call-overload,no-any-return]


def plain_layers(layers: Layers) -> str | int | list[int]:
    return layers if isinstance(layers, str | int) else list(layers)


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def find_card(path: Path) -> str | None:
    """The path of the model card beside the weights."""
    return next((str(path / name) for name in MODEL_CARDS if (path / name).is_file()), None)


# Text


def as_text(found: Inspection) -> str:
    """The inspection for a terminal."""
    if isinstance(found, ModelInspection):
        return "\n".join(model_lines(found))
    head = f"{found.source}: {len(found.adapters)} adapters, {bytes_text(found.bytes)}"
    if len(found.adapters) == 1:
        head = f"{found.source}: an adapter, {bytes_text(found.bytes)}"
    return "\n".join([head, *(line for adapter in found.adapters for line in adapter_lines(adapter, None))])


def model_lines(found: ModelInspection) -> list[str]:
    """A model: its facts, its points, its adapters."""
    size = "" if found.bytes is None else f", {bytes_text(found.bytes)} on disk"
    facts = [
        ("parameters", f"{found.parameters:,}{size}"),
        *((f"  {part.name}", f"{part.parameters:,}") for part in found.parts if part.parameters),
        ("input", f"{found.sample_rate} Hz; one output frame every {1000 * found.seconds_per_frame:g} ms"),
        ("vocabulary", vocabulary_text(found.tokenizer)),
        ("fingerprint", found.fingerprint),
        *([("card", found.card)] if found.card else []),
    ]
    points = [
        (group.pattern, f"{group.count}×", group.place, width_text(group), ", ".join(group.kinds) or "none")
        for group in found.points
    ]
    adapters = [line for adapter in found.adapters for line in adapter_lines(adapter, found.parameters)]
    enabled = f" Enabled in the file (@file): {'+'.join(found.file_choice)}." if found.file_choice else ""
    head = f"Adapters: {len(found.adapters)}; none acts until it is asked for.{enabled}"
    return [
        found.name or found.source,
        f"  {found.architecture}",
        *columns(facts),
        "",
        "Points where adapters can act",
        *columns([("point", "", "place", "width", "kinds"), *points], right=(1,)),
        "",
        head if found.adapters else "Adapters: none.",
        *adapters,
    ]


def adapter_lines(adapter: AdapterInspection, base_parameters: int | None) -> list[str]:
    """One adapter with its card; base_parameters: of its base, None where that is unknown."""
    share = "" if base_parameters is None else f" ({share_text(adapter.parameters, base_parameters)} of the base)"
    settings = ", ".join(f"{name} {value_text(value)}" for name, value in adapter.settings.items())
    strategy = ", ".join(f"{name} {value}" for name, value in adapter.strategy.items() if value)
    facts = [
        ("kind", f"{adapter.kind}: {settings}"),
        *([("strategy", strategy)] if strategy else []),
        ("acts on", f"{adapter.modules}, layers {value_text(adapter.layers)}: {len(adapter.points)} points"),
        ("parameters", f"{adapter.parameters:,}{share}"),
        *([("words", f"{words_text(adapter.words)}{bytes_text(adapter.words['bytes'])}")] if adapter.words else []),
        *([("vocabulary", own_vocabulary_text(adapter.vocabulary))] if adapter.vocabulary else []),
        *([("digest", adapter.digest)] if adapter.digest else []),
        *([("made for", adapter.base_fingerprint)] if adapter.base_fingerprint and base_parameters is None else []),
        *card_facts(adapter.card),
    ]
    return [f"  {adapter.name}", *columns(facts, indent="    ")]


def card_facts(card: Mapping[str, Any], prefix: str = "card") -> list[tuple[str, str]]:
    """The card flat, one line for each value."""
    facts = []
    for key, value in card.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            facts += card_facts(value, name)
        else:
            facts.append((name, value_text(value)))
    return facts


def value_text(value: object) -> str:
    """A value of a card or a setting: lists without brackets, floats with six digits."""
    if isinstance(value, list | tuple):
        return ", ".join(map(value_text, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def vocabulary_text(tokenizer: Mapping[str, Any]) -> str:
    """One line on the vocabulary."""
    kind = TOKENIZERS.get(tokenizer["kind"], "")
    return f"{tokenizer['size']} symbols ({kind}): {' '.join(tokenizer['first'])} …"


def own_vocabulary_text(vocabulary: Mapping[str, Any]) -> str:
    """One line on the vocabulary of an adapter."""
    return (
        f"its own, {vocabulary.get('size')} symbols ({vocabulary.get('kind')}), heads of "
        f"{vocabulary.get('parameters', 0):,} parameters; {vocabulary['digest']}"
    )


def width_text(group: PointsInspection) -> str:
    return str(group.out_width) if group.in_width == group.out_width else f"{group.in_width} → {group.out_width}"
