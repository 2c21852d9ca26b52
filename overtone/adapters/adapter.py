"""One adapter: a kind at named points, its parameters, and what is known about it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from overtone.adapters.kinds.base import Kind, Tensors
from overtone.adapters.kinds.registry import known
from overtone.adapters.points import Layers, Point, parse_layers, parse_modules
from overtone.adapters.strategies import ResidualAdd
from overtone.adapters.vocabulary import Vocabulary
from overtone.adapters.words import WORDS_ALONE, WordPart
from overtone.errors import AdapterError
from overtone.nets.taps import Bottleneck

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
RESERVED = ("base", "none", "null")


class PointAdapter(nn.Module):
    """The parameters of one adapter at one point."""

    def __init__(self, name: str, kind: Kind, point: Point, values: Tensors | None = None) -> None:
        """values: parameters to take over, in which nothing is learnt; fresh ones unless given.

        Raises AdapterError where the kind's parts are not what an adapter can hold.
        """
        super().__init__()
        self.name = name
        """Name of the adapter."""
        self.kind = kind
        self.point = point
        self.derived: tuple[torch.dtype, list[int], Tensors] | None = None
        """Parameters for inference, with their dtype and the version of the parameters that they come from."""
        if values is None:
            self.add_parts(kind.parts(point))
        else:  # under their whole names, as if in the parts' modules: to make those takes longer than all the rest
            self.training = False
            self._parameters.update((key, nn.Parameter(own, requires_grad=False)) for key, own in values.items())

    def add_parts(self, parts: Mapping[str, nn.Module | nn.Parameter]) -> None:
        """Hold fresh parameters. Raises AdapterError for names and modules that cannot be held."""
        for name, part in parts.items():
            if "." in name or hasattr(self, name):
                raise AdapterError(f"{self.kind.name} adapter: a part cannot be called '{name}'; give it another name.")
            setattr(self, name, part)
        nested = any(len(list(module.children())) for module in self.children())
        if nested or next(self.buffers(), None) is not None:
            raise AdapterError(
                f"{self.kind.name} adapter: each part is a parameter, or a module with parameters alone, without "
                "modules inside and without buffers."
            )

    def train(self, mode: bool = True) -> Self:
        """Between training and inference the derived parameters are forgotten: not every write leaves a trace."""
        if mode != self.training:
            self.derived = None
        return super().train(mode)

    def tensors(self) -> dict[str, Tensor]:
        """The same as `named_parameters`, without its search: this is asked at every point of every forward."""
        found: dict[str, Tensor] = {name: own for name, own in self._parameters.items() if own is not None}
        for part, module in self._modules.items():
            assert module is not None
            found.update((f"{part}.{name}", own) for name, own in module._parameters.items() if own is not None)
        return found

    def version(self) -> list[int]:
        """Numbers that change when a parameter does, quick to take; empty where none would tell."""
        found: list[int] = []
        for module in (self, *self._modules.values()):
            assert module is not None
            for own in module._parameters.values():
                if own is not None:
                    if own.is_inference():
                        return []
                    found += (own.data_ptr(), own._version)
        return found

    def inference_tensors(self, dtype: torch.dtype) -> Tensors:
        """The parameters for a forward in which nothing is learnt, for a stream in `dtype`.

        In a narrower dtype than their own they are derived, once for what the parameters are now.
        """
        derived, version = self.derived, self.version()
        if derived is not None and derived[0] is dtype and derived[1] == version:
            return derived[2]
        tensors: Tensors = self.tensors()
        if all(own.dtype.itemsize > dtype.itemsize for own in tensors.values()):
            with torch.no_grad():
                tensors = self.kind.prepare(tensors, dtype)
            self.cache(dtype, tensors)
        return tensors

    def cache(self, dtype: torch.dtype, tensors: Tensors) -> None:
        """Let `inference_tensors` give these as long as the parameters are seen to be what they are now."""
        version = self.version()
        if version:
            self.derived = (dtype, version, tensors)

    def bottleneck(self, dtype: torch.dtype) -> Bottleneck | None:
        """The adapter for an engine outside of PyTorch, in `dtype`; None for a kind that has no such form."""
        form = known(self.kind)
        if form is None or form.bottleneck is None:
            return None
        return form.bottleneck(self.kind, self.inference_tensors(dtype), dtype)


@lru_cache(maxsize=4096)
def parameter_shapes(kind: Kind, point: Point) -> Mapping[str, torch.Size]:
    """The shapes of a kind's parameters at a point, by name."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in PointAdapter("", kind, point).tensors().items()}


def stack_rows(rows: Sequence[Tensors]) -> dict[str, Tensor]:
    """The parameters of one kind, those of another adapter for each row: B times […] -> [B, …]."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def unstack(tensors: Tensors) -> list[dict[str, Tensor]]:
    """The other way: each [N, …] -> N times […]."""
    each = [tensor.unbind() for tensor in tensors.values()]
    return [dict(zip(tensors, one, strict=True)) for one in zip(*each, strict=True)]


class Adapter(nn.Module):
    """The parameters of one adapter at all its points."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        points: list[Point],
        *,
        modules: str,
        layers: Layers,
        strategy: ResidualAdd,
        values: Mapping[str, Tensor] | None = None,
    ) -> None:
        """values: by the names of `tensors()`, parameters for a frozen adapter; unless given they are fresh.

        Raises AdapterError where one is missing, left over or of another shape.
        """
        super().__init__()
        self.name = name
        self.kind = kind
        self.modules_text = modules
        self.layers = layers
        self.strategy = strategy
        self.card: dict[str, Any] = {}
        """Data and results of its training."""
        self.words: WordPart | None = None
        """Its word part, which decoding adds to the scores of tokens."""
        self.vocabulary: Vocabulary | None = None
        """Its own tokenizer, with heads over its tokens; None writes the base's."""
        self.nemo: dict[str, Any] | None = None
        """Its configuration as NeMo wrote it, kept for writing back."""
        self.frozen = False
        """True if its parameters are never written any more."""
        self.stacks: dict[tuple[torch.dtype, torch.device], Tensors | None] = {}
        """Results of `inference_stack`."""
        if values is None:
            self.by_point = {point.name: PointAdapter(name, kind, point) for point in points}
        else:
            self.by_point = self.hold(points, values)
            self.frozen = True
        self.parts = nn.ModuleDict({module_key(point): part for point, part in self.by_point.items()})
        self.training = self.parts.training = values is None

    @property
    def points(self) -> list[str]:
        """Names of its points, in the order of the model."""
        return list(self.by_point)

    def __contains__(self, point: str) -> bool:
        return point in self.by_point

    def at(self, point: str) -> PointAdapter:
        """Its parameters at a point, by the point's name."""
        return self.by_point[point]

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter by `point.parameter`, such as `encoder.layers.0.after_block.down.weight`."""
        found = {
            f"{point}.{name}": tensor.detach()
            for point in self.by_point
            for name, tensor in self.at(point).tensors().items()
        }
        return found if self.vocabulary is None else found | self.vocabulary.tensors()

    def scaled_tensors(self, scale: float) -> dict[str, Tensor] | None:
        """The tensors with which the adapter changes the stream by that factor; None for a kind that cannot tell them.

        The factor is in the parameters that the change is proportional to: nothing else is computed than before.
        """
        form = known(self.kind)
        if form is None or form.proportional is None:
            return None
        last = form.proportional(self.kind)
        return {
            name: tensor * scale if any(name.endswith(f".{own}") for own in last) else tensor.clone()
            for name, tensor in self.tensors().items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Copy values by the names of `tensors()`. Raises AdapterError where one is missing, left over or misshapen."""
        if self.frozen:
            raise AdapterError(f"Adapter '{self.name}' is frozen: its parameters stay as they are.")
        own = self.tensors()
        self.check_shapes({name: tensor.shape for name, tensor in own.items()}, tensors)
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def hold(self, points: list[Point], values: Mapping[str, Tensor]) -> dict[str, PointAdapter]:
        """The adapter at each point with these values as its parameters, in float32."""
        shapes = {point: parameter_shapes(self.kind, point) for point in points}
        own = {f"{point.name}.{name}": size for point in points for name, size in shapes[point].items()}
        self.check_shapes(own, values)
        return {
            point.name: PointAdapter(
                self.name, self.kind, point, {name: values[f"{point.name}.{name}"].float() for name in shapes[point]}
            )
            for point in points
        }

    def check_shapes(self, own: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> None:
        """Raises AdapterError unless the tensors are those of the adapter's own names and shapes."""
        if own.keys() != tensors.keys():
            missing, left = own.keys() - tensors.keys(), tensors.keys() - own.keys()
            raise AdapterError(
                f"Adapter '{self.name}': the file's tensors are not the adapter's. "
                f"Missing: {list_names(missing)}. Left over: {list_names(left)}."
            )
        for name, shape in own.items():
            if tensors[name].shape != shape:
                raise AdapterError(
                    f"Adapter '{self.name}': {name} has shape {list(tensors[name].shape)}, expected {list(shape)}."
                )

    def rename(self, name: str) -> None:
        """Give it another name; the set that owns it keeps names unique."""
        self.name = name
        for part in self.by_point.values():
            part.name = name

    def own_vocabulary(self, vocabulary: Vocabulary, values: Mapping[str, Tensor] | None = None) -> None:
        """Own a vocabulary. values: its tensors by the names of `tensors()`, for a frozen adapter.

        Raises AdapterError where one is missing, left over or of another shape.
        """
        if values is not None:
            own = vocabulary.tensors()
            self.check_shapes({name: tensor.shape for name, tensor in own.items()}, values)
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(values[name])
            vocabulary.requires_grad_(False)
        self.vocabulary = vocabulary.train(self.training)

    def freeze(self) -> None:
        """Promise that no parameter is written any more: forwards need not look whether one has been."""
        self.requires_grad_(False).eval()
        self.frozen = True

    def inference_stack(self, dtype: torch.dtype, device: torch.device) -> Tensors | None:
        """The parameters of all L points for inference in a stream of `dtype`: each [L, …], in the order of the points.

        None where the adapter is not frozen, its points are not alike, or `dtype` is as wide as its parameters.
        """
        if not self.frozen:
            return None
        key = (dtype, device)
        if key not in self.stacks:
            self.stacks[key] = self.stack_points(dtype)
        return self.stacks[key]

    def stack_points(self, dtype: torch.dtype) -> Tensors | None:
        """The same, computed; the points hold views of the stack."""
        parts = list(self.by_point.values())
        rows = [part.tensors() for part in parts]
        shapes = [{name: row.shape for name, row in each.items()} for each in rows]
        wide = all(row.dtype.itemsize > dtype.itemsize for each in rows for row in each.values())
        if not wide or any(each != shapes[0] for each in shapes):
            return None
        with torch.no_grad():
            stack = self.kind.prepare(stack_rows(rows), dtype)
        for part, own in zip(parts, unstack(stack), strict=True):  # views of the stack: held once, not twice
            part.cache(dtype, own)
        return stack

    def digest(self) -> str:
        """SHA-256 of kind, settings, strategy, parameters and words; the name does not count."""
        words = None if self.words is None else self.words.digest()
        vocabulary = None if self.vocabulary is None else self.vocabulary.digest()
        return adapter_digest(self.kind, self.strategy, parameters_digest(self.tensors()), words, vocabulary)

    def parameter_count(self) -> int:
        """The number of its parameters at all points."""
        return sum(parameter.numel() for parameter in self.parameters())


def adapter_digest(
    kind: Kind, strategy: ResidualAdd, parameters: str, words: str | None = None, vocabulary: str | None = None
) -> str:
    """SHA-256 over kind, settings, strategy, and the digests of parameters, word part and vocabulary of its own.

    Points show in the parameters' names, and so do some settings: what a position `auto` came to be in this model.
    """
    form = known(kind)
    shown = () if form is None else form.shown_in_parameters
    settings = {name: value for name, value in asdict(kind).items() if name not in shown}  # type: ignore[call-overload]
    meaning = [kind.name, settings, asdict(strategy), parameters, *([] if words is None else [words])]
    if vocabulary is not None:
        meaning.append({"vocabulary": vocabulary})
    return f"sha256:{hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()}"


def parameters_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and float32 values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{list(tensor.shape)}".encode())
        digest.update(tensor.float().cpu().contiguous().numpy().astype("<f4", copy=False).reshape(-1).data)
    return f"sha256:{digest.hexdigest()}"


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises AdapterError for a number that is not finite; `where` begins the message, and the place follows."""
    for name, tensor in tensors.items():
        finite = tensor.isfinite()
        if not bool(finite.all()):
            place = (~finite).nonzero()[0].tolist()
            raise AdapterError(
                f"{where} holds {tensor[tuple(place)].item()} in {name}{place}, "
                f"{int((~finite).sum())} of its {tensor.numel()} numbers are not finite. Nobody could recognise with "
                "it: train it anew, with a lower model.optim.lr or trainer.gradient_clip_val=1.0."
            )


def module_key(point: str) -> str:
    """The key of a point in a ModuleDict: keys hold no dots, names of points no slashes."""
    return point.replace(".", "/")


def list_names(names: set[str]) -> str:
    """The first names for a message, and the number of all."""
    listed = sorted(names)
    return "none" if not listed else ", ".join(listed[:5]) + (f" … {len(listed)} in all" if len(listed) > 5 else "")


def check_name(name: str) -> str:
    """The name itself. Raises AdapterError where an adapter cannot be called so."""
    if not NAME.fullmatch(name) or name in RESERVED:
        raise AdapterError(
            f"'{name}' cannot be an adapter's name. Allowed: letters, digits, '.', '_' and '-', "
            f"beginning with a letter or digit; not {', '.join(RESERVED)}."
        )
    return name


def choose_points(points: list[Point], kind: Kind, *, modules: str, layers: Layers) -> list[Point]:
    """The points of the named modules and layers where the kind acts; none for an adapter of words alone.

    Raises AdapterError for unknown modules and layers, and where a module has no point for the kind.
    """
    if kind == WORDS_ALONE:
        return []
    wanted = parse_modules(modules, {point.module for point in points})
    numbers = [point.layer for point in points if point.layer is not None]
    chosen_layers = parse_layers(layers, max(numbers, default=-1) + 1)
    chosen = [
        point
        for point in points
        if point.module in wanted and kind.acts_at(point) and (point.layer is None or point.layer in chosen_layers)
    ]
    for module in wanted:
        if not any(point.module == module for point in chosen):
            places = sorted({point.place for point in points if point.module == module})
            raise AdapterError(
                f"A {kind.name} adapter has no point in the {module}, whose points are {', '.join(places)}. "
                "Choose another kind or module."
            )
    return chosen
