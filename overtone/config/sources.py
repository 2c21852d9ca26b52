"""The files of a data set and their shares, in whichever of NeMo's ways they are written.

A *source* is read as a whole: manifests, manifests with archives, cuts, or shards of cuts. Sources that are drawn from
by one weight are a *part*.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from overtone.config.dataset import DatasetSettings
from overtone.config.fields import Findings, bounded, build, one_of
from overtone.config.paths import split_commas
from overtone.safe_yaml import read_values

TYPES = ("nemo", "nemo_tarred", "lhotse", "lhotse_shar", "group")
MOST_BYTES = 10_000_000
"""Bytes of a file that holds an input_cfg."""
DEEPEST = 20
"""Levels of groups."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Files that are read as a whole."""

    key: str
    """The setting that names them."""
    manifest: str | None = None
    """Manifests: a path, several joined by commas, or a pattern of NeMo's."""
    archives: str | None = None
    """Archives of the manifests' recordings, in the same form."""
    cuts: str | None = None
    """A file of lhotse's cuts."""
    shar: str | Mapping[str, Any] | None = None
    """A folder of Lhotse Shar, or the files of its fields."""
    part: int = 0
    text_field: str = "text"
    lang_field: str = "lang"
    tags: Mapping[str, Any] = field(default_factory=dict)
    """Keys of lines that have none of their own: language, task."""
    skip_unlisted: bool = False
    """Allow recordings in archives that no line names."""

    @property
    def name(self) -> str:
        """Its manifest, its cuts or its shards."""
        return str(self.manifest or self.cuts or self.shar)


@dataclass(frozen=True, kw_only=True)
class SourceList:
    """The sources of a data set."""

    sources: tuple[Source, ...] = ()
    weights: tuple[float, ...] | None = None
    """Share of each part in an epoch, the sum being 1; None: every utterance comes once."""

    @property
    def parts(self) -> int:
        return 1 + max((source.part for source in self.sources), default=-1)


@dataclass(frozen=True, kw_only=True)
class EntrySettings:
    """One entry of an input_cfg: a set, or a group of further ones."""

    type: str = one_of("nemo", TYPES)
    weight: float | None = bounded(None, above=0)
    """Share beside the others of its group; all of a group have one, or none."""
    tags: Mapping[str, Any] = field(default_factory=dict)
    """Keys of lines that have none of their own, such as `lang`, or the task of a multitask model."""
    inputs: Any = field(default=None, metadata={"key": "input_cfg"})
    """The entries of a group."""
    manifest_filepath: Any = None
    tarred_audio_filepaths: Any = None
    cuts_path: str | None = None
    shar_path: Any = None
    text_field: str | None = None
    lang_field: str | None = None
    skip_missing_manifest_entries: bool | None = None
    shuffle: bool | None = None
    """Without effect, as the keys that follow: the data set decides."""
    shard_seed: int | str | None = None
    max_open_streams: int | None = None
    force_finite: bool | None = None
    metadata_only: bool | None = None


NEEDED = {
    "nemo": "manifest_filepath",
    "nemo_tarred": "tarred_audio_filepaths",
    "lhotse": "cuts_path",
    "lhotse_shar": "shar_path",
    "group": "input_cfg",
}
"""The key that a type of entry cannot do without."""


def list_sources(dataset: DatasetSettings, findings: Findings | None = None, *, key: str = "dataset") -> SourceList:
    """The sources of a data set, none where none is given.

    key: of the data set in messages, which go into the findings. Raises ConfigError for them where there are none.
    """
    found = findings if findings is not None else Findings()
    if dataset.inputs is not None:
        check_alone(dataset, found, key)
        temperatures = dataset.reweight_temperature
        listed = group_sources(dataset.inputs, Context.of(dataset), found, f"{key}.input_cfg", temperatures)
    else:
        check_conflicts(dataset, found, key)
        given = EntrySettings(
            manifest_filepath=dataset.manifest_filepath,
            tarred_audio_filepaths=dataset.tarred_audio_filepaths,
            cuts_path=dataset.cuts_path,
            shar_path=dataset.shar_path,
        )
        listed = entry_sources(given, Context.of(dataset), found, key, each_own=dataset.is_concat)
    if findings is None:
        found.raise_if_any()
    return listed


def check_alone(dataset: DatasetSettings, findings: Findings, key: str) -> None:
    """Check that nothing names files beside an input_cfg."""
    for name in ("manifest_filepath", "tarred_audio_filepaths", "cuts_path", "shar_path"):
        if getattr(dataset, name) is not None:
            findings.add(f"{key}.{name}", "is given beside input_cfg; give it as an entry there.")


def check_conflicts(dataset: DatasetSettings, findings: Findings, key: str) -> None:
    """Check that one way of naming files is chosen."""
    if dataset.is_tarred and dataset.tarred_audio_filepaths is None:
        findings.add(f"{key}.is_tarred", "needs tarred_audio_filepaths, the archives of the recordings.")
    if dataset.tarred_audio_filepaths is not None and dataset.manifest_filepath is None:
        findings.add(f"{key}.tarred_audio_filepaths", "needs manifest_filepath, the transcripts.")
    ways = [name for name in ("manifest_filepath", "cuts_path", "shar_path") if getattr(dataset, name) is not None]
    if len(ways) > 1:
        findings.add(
            f"{key}.{ways[0]}", f"is given beside {ways[1]}; give one of them, or both as groups of input_cfg."
        )


@dataclass(frozen=True, kw_only=True)
class Context:
    """Settings that a group hands down to its entries."""

    text_field: str
    lang_field: str
    skip_unlisted: bool
    tags: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: DatasetSettings) -> Context:
        return cls(
            text_field=dataset.text_field,
            lang_field=dataset.lang_field,
            skip_unlisted=dataset.skip_missing_manifest_entries,
        )

    def inside(self, entry: EntrySettings) -> Context:
        """The same with what an entry says otherwise."""
        tags = {"lang" if key == "language" else str(key): value for key, value in entry.tags.items()}
        given: dict[str, Any] = {
            "text_field": entry.text_field,
            "lang_field": entry.lang_field,
            "skip_unlisted": entry.skip_missing_manifest_entries,
            "tags": {**self.tags, **tags},
        }
        return replace(self, **{name: value for name, value in given.items() if value is not None})


# Groups


def group_sources(
    given: Any, context: Context, findings: Findings, key: str, temperatures: Any, depth: int = 0
) -> SourceList:
    """The sources of an input_cfg. As in NeMo, entries without weights have equal shares."""
    entries = read_entries(given, findings, key)
    if depth > DEEPEST:
        findings.add(key, f"groups lie deeper than {DEEPEST} levels.")
        return SourceList()
    temperature, below = split_temperatures(temperatures, findings, key)
    lists: list[SourceList] = []
    weights: list[float | None] = []
    for index, raw in enumerate(entries):
        where = f"{key}[{index}]"
        if not isinstance(raw, Mapping):
            findings.add(where, f"is {raw!r}; a section with a type and its files is needed.")
            continue
        entry = build(EntrySettings, raw, findings, path=where)
        if raw.get(NEEDED[entry.type]) is None:
            findings.add(f"{where}.{NEEDED[entry.type]}", f"has to be given with type {entry.type}.")
            continue
        inner = context.inside(entry)
        if entry.type == "group":
            lists.append(group_sources(entry.inputs, inner, findings, f"{where}.input_cfg", below, depth + 1))
        else:
            lists.append(as_one_part(entry_sources(entry, inner, findings, where)))
        weights.append(entry.weight)
    if any(weight is None for weight in weights) and any(weight is not None for weight in weights):
        findings.add(key, "some entries have a weight and some have none; give all of them one, or none.")
        return SourceList()
    powers = [1.0 if weight is None else weight**temperature for weight in weights]
    return join(lists, powers)


def read_entries(given: Any, findings: Findings, key: str) -> Sequence[Any]:
    """The list itself, or that of the file which is named."""
    if isinstance(given, str):
        path = Path(given).expanduser()
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES} bytes")
            given = read_values(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            findings.add(key, f"{path} cannot be read as YAML ({getattr(error, 'strerror', None) or error}).")
            return ()
        if isinstance(given, Mapping) and "input_cfg" in given:
            given = given["input_cfg"]
    if not isinstance(given, list | tuple) or not given:
        findings.add(key, "has to be a list of sets, or the path of a YAML file that holds one.")
        return ()
    return given


def split_temperatures(given: Any, findings: Findings, key: str) -> tuple[float, Any]:
    """The power of the weights of this level, and those of the levels below."""
    own, below = (given[0], given[1:]) if isinstance(given, list | tuple) and given else (given, given)
    if own is None or (isinstance(given, list | tuple) and not given):
        return 1.0, None
    if isinstance(own, bool) or not isinstance(own, int | float) or own < 0:
        findings.add(key, f"reweight_temperature is {own!r}; a number from 0 is needed, or one for each level.")
        return 1.0, None
    return float(own), below


def as_one_part(listed: SourceList) -> SourceList:
    """The list, its sources drawn from by their size where they have no weights."""
    if listed.weights is not None:
        return listed
    return SourceList(sources=tuple(replace(source, part=0) for source in listed.sources))


def join(lists: Sequence[SourceList], weights: Sequence[float]) -> SourceList:
    """One list of several, each with its share; a part keeps its share within its list."""
    sources: list[Source] = []
    shares: list[float] = []
    for listed, weight in zip(lists, weights, strict=True):
        first = len(shares)
        sources += [replace(source, part=first + source.part) for source in listed.sources]
        own = listed.weights or (1.0,) * listed.parts
        shares += [weight / sum(weights) * share / sum(own) for share in own]
    return SourceList(sources=tuple(sources), weights=tuple(shares) if len(shares) > 1 else None)


# Sets


def entry_sources(
    entry: EntrySettings, context: Context, findings: Findings, key: str, *, each_own: bool = False
) -> SourceList:
    """The sources of one set. each_own: every manifest of a list is a part, without weights."""
    if entry.shar_path is not None:
        return shar_sources(entry.shar_path, context, findings, f"{key}.shar_path")
    if entry.cuts_path is not None:
        return SourceList(sources=(Source(key=f"{key}.cuts_path", cuts=entry.cuts_path, **vars(context)),))
    return manifest_sources(
        entry.manifest_filepath, entry.tarred_audio_filepaths, context, findings, key, each_own=each_own
    )


def manifest_sources(
    manifests: Any, archives: Any, context: Context, findings: Findings, key: str, *, each_own: bool
) -> SourceList:
    """The sources of manifests: one, a list, or a list of `[manifest, weight]`, with archives in the same form."""
    where = f"{key}.manifest_filepath"
    pairs: list[tuple[str, float | None]] = []
    if not isinstance(manifests, str | list | tuple | None):
        findings.add(where, f"{manifests!r} is no manifest; a path or a list of paths is needed.")
        return SourceList()
    for item in [manifests] if isinstance(manifests, str) else flatten(manifests or (), tarred=archives is not None):
        name, weight = split_weight(item)
        if not isinstance(name, str):
            findings.add(where, f"{item!r} is neither a manifest nor a manifest with its weight.")
            return SourceList()
        pairs += [(path, weight) for path in ([name] if archives is not None else split_paths(name))]
    named: list[str | None] = [None] * len(pairs)
    if archives is not None:
        named = list(archive_list(archives))
        if len(named) != len(pairs):
            message = f"{len(named)} for {len(pairs)} manifests; give one (a path or a pattern) for each."
            findings.add(f"{key}.tarred_audio_filepaths", message)
            return SourceList()
    weights = [weight for _, weight in pairs]
    if any(weight is None for weight in weights) and any(weight is not None for weight in weights):
        findings.add(where, "some manifests have a weight and some have none; give all of them one, or none.")
        return SourceList()
    weighted = len(pairs) > 1 and weights[0] is not None
    own_part = weighted or each_own or archives is not None
    sources = tuple(
        Source(key=where, manifest=name, archives=archive, part=index if own_part else 0, **vars(context))
        for index, ((name, _), archive) in enumerate(zip(pairs, named, strict=True))
    )
    return SourceList(sources=sources, weights=normalised(weights) if weighted else None)


def split_weight(item: Any) -> tuple[Any, float | None]:
    """`[a, 0.3]` and `[a]` as a name and its weight."""
    if isinstance(item, list | tuple) and len(item) == 1:
        return item[0], None
    if isinstance(item, list | tuple) and len(item) == 2 and is_weight(item[1]):
        return item[0], float(item[1])
    return item, None


def is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def flatten(items: Sequence[Any], *, tarred: bool) -> Sequence[Any]:
    """The list with lists of several manifests in it spread out; archives belong to each entry as it is."""
    if tarred:
        return items
    spread: list[Any] = []
    for item in items:
        several = isinstance(item, list | tuple) and len(item) != 1 and not any(map(is_weight, item))
        spread += flatten(item, tarred=False) if several else [item]
    return spread


def archive_list(archives: Any) -> Sequence[str]:
    """The archives of each manifest; several of one are joined by commas."""
    if isinstance(archives, str):
        return [archives]
    return [",".join(map(str, item)) if isinstance(item, list | tuple) else str(item) for item in archives]


def split_paths(name: str) -> list[str]:
    """The manifests of a text, which is one where a file has that name."""
    if os.path.exists(os.path.expanduser(name)):  # noqa: PTH110, PTH111 (Path raises for long lists)
        return [name]
    return list(split_commas(name))


def shar_sources(given: Any, context: Context, findings: Findings, key: str) -> SourceList:
    """The sources of Lhotse Shar: a folder, a list of them, a list of `[folder, weight]`, or files by field."""
    if isinstance(given, str) or (isinstance(given, Mapping) and "cuts" in given):
        return SourceList(sources=(Source(key=key, shar=given, **vars(context)),))
    pairs = [split_weight(item) for item in given] if isinstance(given, list | tuple) else []
    if not pairs or not all(isinstance(name, str) for name, _ in pairs):
        findings.add(key, "has to be a folder, a list of them, a list of [folder, weight], or files of the field cuts.")
        return SourceList()
    weights = [weight for _, weight in pairs]
    weighted = len(pairs) > 1 and all(weight is not None for weight in weights)
    if not weighted and any(weight is not None for weight in weights) and len(pairs) > 1:
        findings.add(key, "some folders have a weight and some have none; give all of them one, or none.")
    sources = tuple(
        Source(key=key, shar=name, part=index if weighted else 0, **vars(context))
        for index, (name, _) in enumerate(pairs)
    )
    return SourceList(sources=sources, weights=normalised(weights) if weighted else None)


def normalised(weights: Sequence[float | None]) -> tuple[float, ...]:
    """The weights, none of which is missing, as shares of 1."""
    given = [weight for weight in weights if weight is not None]
    return tuple(weight / sum(given) for weight in given)
