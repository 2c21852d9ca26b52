"""Adapters as NeMo keeps them: in the configuration, in the weights of a `.nemo`, and in an `adapters.pt`.

NeMo hangs adapters on hosts: each layer of the encoder, and the decoder. Each kind's own file has the table that aligns
NeMo's names with ours. Names of adapters are compared whole: `an4` is not the beginning of `an4_v2`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from overtone.adapters.adapter import Adapter, PointAdapter, check_finite, parameter_shapes
from overtone.adapters.kinds.base import WIDTH, Kind, NemoForm
from overtone.adapters.kinds.registry import KINDS, known
from overtone.adapters.points import Point, parse_modules
from overtone.adapters.strategies import ResidualAdd
from overtone.checkpoints.nemo.config import NemoAdapter, read_adapters
from overtone.checkpoints.nemo.keys import STRATEGY, nemo_key
from overtone.checkpoints.nemo.pickles import plain, read_torch_file
from overtone.checkpoints.nemo.torch_zip import RefusedError
from overtone.checkpoints.nemo.vocabulary import refuse_vocabulary
from overtone.checkpoints.nemo.words import make_entry, read_part, take_entry
from overtone.config.keys import read_section, refuse, write_section
from overtone.config.targets import NEMO_STRATEGY_TARGETS
from overtone.errors import AdapterError, CheckpointError, did_you_mean
from overtone.files import open_regular, replace_file, write_failure
from overtone.models.asr_model import AsrModel

HELD = re.compile(r"^(?P<host>.+)\.adapter_layer\.(?P<name>[^.]+)\.(?P<parameter>.+)$")
NEMO_MODULES = ("encoder", "decoder", "joint", "transf_encoder", "transf_decoder")
"""Parts of a model that have adapters in NeMo."""
NEMO_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*$")

HostTensors = Mapping[str, Mapping[str, Tensor]]
"""The tensors of one adapter: by host (`encoder.layers.0`, `decoder`), then by NeMo's name (`module.1.weight`)."""


@dataclass(frozen=True, kw_only=True)
class StoredNemoAdapter:
    """One adapter of an `adapters.pt`."""

    described: NemoAdapter
    hosts: tuple[Mapping[str, Tensor], ...]
    """The tensors of each host by NeMo's name, in the order of the hosts in the model."""
    words: bytes | None = None
    """The file of its word part."""

    @property
    def name(self) -> str:
        return self.described.name


def read_kind(described: NemoAdapter, source: str) -> tuple[Kind, ResidualAdd]:
    """The kind and strategy of a configuration's adapter.

    Raises CheckpointError for classes and values that are not supported.
    """
    where, section = f"{source}: adapters.{described.name}", dict(described.config)
    strategy = section.pop("adapter_strategy", None) or {}
    known_strategies = ", ".join(NEMO_STRATEGY_TARGETS)
    if not isinstance(strategy, dict):
        refuse(where, "adapter_strategy", strategy, known_strategies)
    try:
        kind = read_kind_section(section, where)
        if strategy and strategy.get("_target_") not in NEMO_STRATEGY_TARGETS:
            refuse(f"{where}.adapter_strategy", "_target_", strategy.get("_target_"), known_strategies)
        return kind, ResidualAdd(**read_section(strategy, STRATEGY, f"{where}.adapter_strategy"))
    except AdapterError as error:
        raise CheckpointError(f"{where}: {error}") from error


def read_kind_section(section: Mapping[str, Any], where: str) -> Kind:
    """The kind of an adapter's section. Raises CheckpointError, and AdapterError for values that contradict it."""
    target = str(section.get("_target_"))
    forms = [(each.kind, form) for each in KINDS.values() for form in each.nemo]
    found = next(((kind, form) for kind, form in forms if target in form.targets), None)
    if found is None:
        allowed = ", ".join(name for _, form in forms for name in form.targets)
        refuse(where, "_target_", section.get("_target_"), allowed)
    kind, form = found
    settings = read_section(section, form.keys, where, fixed=form.fixed, idle=("enabled", *form.constants))
    del settings[WIDTH]
    build: Callable[..., Kind] = kind
    return build(**settings, **form.targets[target])


def split_adapters(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, dict[str, Tensor]]]]:
    """The tensors of a `.nemo` as those of the base, and those of each adapter by host."""
    base: dict[str, Tensor] = {}
    adapters: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        held = HELD.match(key)
        if held is None:
            base[key] = tensor
        else:
            hosts = adapters.setdefault(held["name"], {})
            hosts.setdefault(held["host"], {})[held["parameter"]] = tensor
    return base, adapters


def own_tensors(
    model: AsrModel, kind: Kind, described: NemoAdapter, hosts: HostTensors, source: str
) -> dict[str, Tensor]:
    """The finite values of a file by our names. Raises CheckpointError where they do not fit, or AdapterError."""
    where = f"{source}: adapter '{described.name}'"
    points = points_of(model, kind, described.modules)
    if {host_of(point) for point in points} != set(hosts):
        raise CheckpointError(
            f"{where} has tensors for {', '.join(hosts) or 'no host'}; "
            f"this model needs them for {', '.join(map(host_of, points)) or 'none'}."
        )
    values = {}
    for point in points:
        names = parameter_names(kind, point)
        found = hosts[host_of(point)]
        if set(names.values()) != set(found):
            missing, left = set(names.values()) - set(found), set(found) - set(names.values())
            raise CheckpointError(
                f"{where} at {host_of(point)}: missing {', '.join(sorted(missing)) or 'nothing'}, "
                f"left over {', '.join(sorted(left)) or 'nothing'}."
            )
        for ours, shape in parameter_shapes(kind, point).items():
            tensor = found[names[ours]]
            if tensor.shape != shape:
                raise CheckpointError(
                    f"{where} at {host_of(point)}: {names[ours]} has shape {list(tensor.shape)}, "
                    f"expected {list(shape)}."
                )
            values[f"{point.name}.{ours}"] = tensor
    check_finite(values, where)
    return values


def add_nemo_adapter(
    model: AsrModel, described: NemoAdapter, hosts: HostTensors, source: str, *, name: str | None = None
) -> Adapter:
    """Add an adapter with the values of a file. Raises CheckpointError where it does not fit the model.

    name: what it is called here, unless as in the file.
    """
    kind, strategy = read_kind(described, source)
    values = own_tensors(model, kind, described, hosts, source)
    modules = described.modules or "encoder"
    adapter = model.adapters.add(name or described.name, kind, modules=modules, strategy=strategy)
    adapter.load_tensors(values)
    adapter.nemo = {
        "modules": described.modules,
        "enabled": described.enabled,
        "config": dict(described.config),
    }
    return adapter


def adapter_hosts(model: AsrModel, adapter: Adapter) -> dict[str, dict[str, Tensor]]:
    """The tensors of an adapter for NeMo, which wants them in every layer.

    A layer that the adapter leaves out gets a copy whose last part is zero: it changes nothing.
    Raises CheckpointError for what NeMo does not have (kinds, names), AdapterError for NaN or infinity.
    """
    check_nemo_can_hold(adapter)
    check_finite(adapter.tensors(), f"Adapter '{adapter.name}' is not written: it")
    form = nemo_form(adapter)
    hosts: dict[str, dict[str, Tensor]] = {}
    for point in points_of(model, adapter.kind, adapter.modules_text):
        own = adapter.at(point.name).tensors() if point.name in adapter else stand_in(adapter, point)
        names = parameter_names(adapter.kind, point)
        tensors = hosts[host_of(point)] = {
            theirs: own[ours].detach().float().cpu().clone() for ours, theirs in names.items()
        }
        if point.name not in adapter:
            for ours in form.last(adapter.kind):
                tensors[names[ours]].zero_()
    return hosts


def stand_in(adapter: Adapter, point: Point) -> dict[str, Tensor]:
    """Tensors for a point that the adapter leaves out: those of a point of the same shapes, else fresh ones."""
    shapes = parameter_shapes(adapter.kind, point)
    for name in adapter.points:
        if parameter_shapes(adapter.kind, adapter.at(name).point) == shapes:
            return adapter.at(name).tensors()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return PointAdapter(adapter.name, adapter.kind, point).tensors()


def adapters_section(model: AsrModel, names: Iterable[str], enabled: Container[str] | None = None) -> dict[str, Any]:
    """The `adapters` section of a configuration, as NeMo writes it. enabled: as `write_nemo` of the whole model."""
    present = [model.adapters[name] for name in names]
    before = (model.config.get("adapters") or {}).get("global_cfg") or {}
    meta = dict(before.get("adapter_meta_cfg") or {})
    meta["modules"] = {adapter.name: nemo_modules(adapter) for adapter in present}
    shared = before if model.adapters.nemo is None else model.adapters.nemo
    section: dict[str, Any] = {"global_cfg": {**shared, "adapter_meta_cfg": meta}}
    for adapter in present:
        check_nemo_can_hold(adapter)
        section[adapter.name] = adapter_config(adapter)
        if enabled is not None:
            section[adapter.name]["enabled"] = adapter.name in enabled
    return section


def adapter_config(adapter: Adapter) -> dict[str, Any]:
    """One adapter's own section: what the file said, or what NeMo would have written."""
    if adapter.nemo is not None:
        return {**adapter.nemo["config"], "enabled": adapter.nemo["enabled"]}
    form, first = nemo_form(adapter), adapter.at(adapter.points[0]).point
    # NeMo leaves the width of the last layer there, where layers have different ones.
    own = [adapter.at(name).point for name in adapter.points]
    point = [other for other in own if other.module == first.module][-1]
    return {
        **write_section({**vars(adapter.kind), WIDTH: point.out_width}, form.keys),
        "adapter_strategy": {**write_section(vars(adapter.strategy), STRATEGY), "_target_": form.strategy_target},
        **form.constants,
        **{key: values[0] for key, values in form.fixed.items()},
        "_target_": form.target_at(adapter.kind, point),
        "enabled": True,
    }


def nemo_modules(adapter: Adapter) -> str:
    """NeMo's empty string is the encoder."""
    if adapter.nemo is not None:
        return str(adapter.nemo["modules"])
    return "" if adapter.modules_text == "encoder" else adapter.modules_text


def has_nemo_form(adapter: Adapter) -> bool:
    """True if NeMo has this kind of adapter and can hold one of this name."""
    try:
        check_nemo_can_hold(adapter)
    except CheckpointError:
        return False
    return True


def nemo_form(adapter: Adapter) -> NemoForm:
    """The adapter's kind in NeMo's checkpoints. Raises CheckpointError for what NeMo does not have as one adapter."""
    found, own = known(adapter.kind), [adapter.at(name).point for name in adapter.points]
    forms = () if found is None else found.nemo
    if form := next((form for form in forms if all(map(form.holds, own))), None):
        return form
    places = f" in {adapter.modules_text}" if forms else ""
    raise CheckpointError(
        f"Adapter '{adapter.name}' is of kind {adapter.kind.name}, which NeMo does not have{places}. "
        "Save it as a folder (adapters.save), or the model as a native folder, or remove it before writing for NeMo."
    )


def check_nemo_can_hold(adapter: Adapter, *, vocabulary: bool = True) -> None:
    """Raises CheckpointError for a kind, place, name or `vocabulary` that adapters in NeMo cannot have."""
    if vocabulary:
        refuse_vocabulary(adapter)
    nemo_form(adapter)
    places = {adapter.at(point).point.module for point in adapter.points} - set(NEMO_MODULES)
    if places:
        raise CheckpointError(
            f"Adapter '{adapter.name}' acts in {', '.join(sorted(places))}, where NeMo has no adapters (it has them in "
            f"{', '.join(NEMO_MODULES)}). Save it as an adapter folder."
        )
    if adapter.name == "global_cfg" or hasattr(nn.ModuleDict(), adapter.name) or not NEMO_NAME.match(adapter.name):
        raise CheckpointError(
            f"'{adapter.name}' cannot be an adapter's name in NeMo (letters, digits, '_' and '-', and no word that "
            "PyTorch's ModuleDict uses itself). Save it as an adapter folder and load it under another name."
        )


def host_of(point: Point) -> str:
    """`encoder.layers.3.after_block` hangs on `encoder.layers.3`."""
    return nemo_key(point.name).rpartition(".")[0]


def points_of(model: AsrModel, kind: Kind, modules: str) -> list[Point]:
    """The points where NeMo has this kind act: every layer of the encoder, the decoder."""
    points = list(model.adapters.points.values())
    wanted = parse_modules(modules, {point.module for point in points})
    return [point for point in points if point.module in wanted and kind.acts_at(point)]


def parameter_names(kind: Kind, point: Point) -> dict[str, str]:
    """Our names of the parameters at a point -> NeMo's, for a kind that NeMo has."""
    forms = (form for each in KINDS.values() if isinstance(kind, each.kind) for form in each.nemo)
    table, names = next(form for form in forms if form.holds(point)).parts(kind), {}
    for ours in parameter_shapes(kind, point):
        part, dot, rest = ours.partition(".")
        names[ours] = f"{table[part]}{dot}{rest}"
    return names


def read_adapters_pt(path: Path | str) -> list[StoredNemoAdapter]:
    """The adapters of NeMo's `save_adapters()`. Nothing in the file is executed.

    Raises CheckpointError where the file is missing, damaged or foreign.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            content = read_torch_file(file, str(path))
        if not isinstance(content, dict) or "__cfg__" not in content:
            raise RefusedError("it holds no '__cfg__'; it was not written by NeMo's save_adapters().")
        described = {adapter.name: adapter for adapter in read_adapters(plain(content["__cfg__"]), str(path))}
        words = take_entry(content)
        return [_stored(key, value, described, words) for key, value in content.items() if key != "__cfg__"]
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error
    except RefusedError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _stored(
    key: Any, states: Any, described: Mapping[str, NemoAdapter], words: Mapping[str, bytes]
) -> StoredNemoAdapter:
    modules, _, name = str(key).rpartition(":")
    if name not in described:
        raise RefusedError(f"it has tensors of adapter '{name}', but no configuration of it.")
    if not isinstance(states, list) or not all(isinstance(state, dict) for state in states):
        raise RefusedError(f"the tensors of adapter '{name}' are no list of state dictionaries.")
    hosts = []
    for state in states:
        # NeMo picks by substring: the states of `attn` also hold what belongs to `attn8` and `absattn`.
        own = {
            parameter.removeprefix(f"{name}."): value
            for parameter, value in state.items()
            if isinstance(parameter, str) and parameter.startswith(f"{name}.")
        }
        if not all(isinstance(value, Tensor) for value in own.values()):
            raise RefusedError(f"the states of adapter '{name}' hold something else than tensors.")
        hosts.append(own)
    adapter = NemoAdapter(name=name, modules=modules, config=described[name].config)
    return StoredNemoAdapter(described=adapter, hosts=tuple(hosts), words=words.get(name))


def hosts_in(model: AsrModel, stored: StoredNemoAdapter, source: str) -> HostTensors:
    """The tensors by their host in this model. Raises CheckpointError where it has more or fewer."""
    kind, _ = read_kind(stored.described, source)
    places = [host_of(point) for point in points_of(model, kind, stored.described.modules)]
    if len(places) != len(stored.hosts):
        raise CheckpointError(
            f"{source}: adapter '{stored.name}' has tensors for {len(stored.hosts)} places, "
            f"this model has {len(places)}; it was made for another model."
        )
    return dict(zip(places, stored.hosts, strict=True))


def load_adapters(model: AsrModel, path: Path | str, names: Iterable[str] | None = None) -> list[Adapter]:
    """Add adapters of an `adapters.pt`: all, or those named (`an4` or `decoder:dec`); all of them or none.

    Raises AdapterError for a name that is unknown or taken, CheckpointError where the file does not fit the model.
    """
    stored = {adapter.name: adapter for adapter in read_adapters_pt(path)}
    chosen = list(stored) if names is None else [name.rpartition(":")[2] for name in names]
    for name in chosen:
        if name not in stored:
            raise AdapterError(
                f"{path} holds no adapter '{name}'.{did_you_mean(name, stored)} It holds {', '.join(stored) or 'none'}."
            )
    added: list[Adapter] = []
    try:
        for name in chosen:
            hosts = hosts_in(model, stored[name], str(path))
            added.append(add_nemo_adapter(model, stored[name].described, hosts, str(path)))
            added[-1].words = read_part(model, stored[name].words, path)
    except (AdapterError, CheckpointError):
        for adapter_added in added:
            model.adapters.remove(adapter_added.name)
        raise
    return added


def save_adapters(model: AsrModel, path: Path | str, names: Iterable[str] | None = None) -> None:
    """Write an `adapters.pt` that NeMo's `load_adapters()` reads: all adapters, or those named.

    Raises AdapterError for an unknown name, CheckpointError where NeMo lacks the kind or the file cannot be written.
    """
    from omegaconf import OmegaConf

    path = Path(path)
    chosen = [model.adapters[name] for name in (model.adapters.names if names is None else names)]
    if not chosen:
        raise AdapterError("The model has no adapters to save; add or load one first.")
    content: dict[str, Any] = {**make_entry(chosen)}
    for adapter in chosen:
        modules = nemo_modules(adapter)
        content[f"{modules}:{adapter.name}" if modules else adapter.name] = [
            {f"{adapter.name}.{parameter}": tensor for parameter, tensor in tensors.items()}
            for tensors in adapter_hosts(model, adapter).values()
        ]
    content["__cfg__"] = OmegaConf.create(adapters_section(model, [adapter.name for adapter in chosen]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(write_failure(path, error)) from error
