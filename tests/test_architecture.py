"""The house plan: floors of modules, and the rules of `house_rules`, read from the source, never imported."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Callable, Iterator

import pytest

from support.house_faults import SINGLE_FILE_RULES
from support.house_rules import (
    ROOT,
    Source,
    class_faults,
    declared,
    dependency_faults,
    export_faults,
    folder_faults,
    import_of_test_faults,
    name_faults,
    path_faults,
    project_files,
    project_sources,
    size_faults,
    small_file_faults,
)
from support.serving_floors import SERVING_FLOORS, protocol_faults, serving_floor_faults

FLOORS: dict[int, tuple[str, ...]] = {
    1: (
        "errors",
        "version",
        "files",
        "budgets",
        "clusters",
        "scope",
        "safe_yaml",
        "startup",
        "progress",
        "text_table",
        "config",
        "configs",
        "wer",
        "languages",
        "tokenizers",
    ),
    2: ("audio",),
    3: ("nets", "data"),
    4: ("adapters", "decoding"),
    5: ("backends",),
    6: ("models",),
    7: ("checkpoints", "inference"),
    8: ("training", "evaluation"),
    9: ("demo", "lightning", "compat", "learning", "search", "serving"),
    10: ("__init__", "__main__", "cli"),
}
"""A room (a module, or a package with all its modules) imports only rooms of lower floors."""

NEIGHBOURS: set[tuple[str, str]] = {
    ("config", "safe_yaml"),
    ("tokenizers", "languages"),
    ("safe_yaml", "budgets"),
    ("adapters", "decoding"),
    ("compat", "lightning"),
    ("data", "nets"),
    ("inference", "checkpoints"),
    ("serving", "learning"),
    ("__main__", "cli"),
}
"""Rooms of one floor of which the first may import the second. `errors` is open to all rooms, and the modules
of one package to each other, as long as no circle arises."""

# Floors


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor_of(module: str) -> int | None:
    room = room_of(module)
    return next((floor for floor, rooms in FLOORS.items() if room in rooms), None)


def own_imports(source: Source, modules: set[str]) -> Iterator[tuple[ast.stmt | ast.expr, str]]:
    """The modules of overtone that a file imports, wherever in the file it does."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "overtone":
                    yield node, alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "overtone":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_room = node.module == "overtone" and floor_of(whole) is not None
                if whole in modules or is_room:
                    yield node, whole
                else:
                    yield node, str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "import_module":
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and str(name.value).split(".")[0] == "overtone":
                yield node, str(name.value)


def floor_faults(source: Source, modules: set[str]) -> list[str]:
    if not source.in_package:
        return []
    room, floor = room_of(source.module), floor_of(source.module)
    if floor is None:
        return [f"{source.path}: '{room}' stands on no floor; give it one in FLOORS"]
    faults = []
    for node, target in own_imports(source, modules):
        other, other_floor = room_of(target), floor_of(target)
        if other_floor is None:
            faults.append(source.at(node, f"imports '{target}', which stands on no floor"))
        elif other in ("errors", room) or (room, other) in NEIGHBOURS:
            continue
        elif other_floor >= floor:
            where = "the same floor" if other_floor == floor else f"floor {other_floor}"
            faults.append(source.at(node, f"'{room}' (floor {floor}) imports '{target}' of {where}"))
    return faults


def circles(sources: list[Source]) -> list[str]:
    """Each circle of imports between modules, once."""
    modules = {source.module for source in sources}
    graph = {
        source.module: {target for _, target in own_imports(source, modules) if target in modules}
        for source in sources
        if source.module != "overtone"
    }
    found: dict[frozenset[str], str] = {}
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            circle = path[path.index(module) :]
            found.setdefault(frozenset(circle), " -> ".join([*circle, module]))
        elif module not in done:
            for target in sorted(graph.get(module, ())):
                walk(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    return [f"circle of imports: {circle}" for circle in found.values()]


# Tests


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return project_sources()


@pytest.fixture(scope="module")
def project() -> dict[str, list[str]]:
    """The requirements by name: "dependencies", and each extra."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return {"dependencies": table["dependencies"], **table["optional-dependencies"]}


def assert_none(faults: list[str]) -> None:
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("rule", SINGLE_FILE_RULES)
def test_each_file_keeps_the_rule(rule: str, sources: list[Source]) -> None:
    assert_none([fault for source in sources for fault in SINGLE_FILE_RULES[rule](source)])


def test_folders_hold_few_files_and_small_files_serve_several(sources: list[Source]) -> None:
    assert_none(folder_faults(project_files()) + small_file_faults(sources))


def test_imports_go_down(sources: list[Source]) -> None:
    package = [source for source in sources if source.in_package]
    modules = {source.module for source in package}
    assert modules, "no module of overtone was found"
    assert_none([fault for source in package for fault in floor_faults(source, modules)] + circles(package))


def test_imports_of_the_server_go_down_and_protocols_stay_in_their_rooms(sources: list[Source]) -> None:
    assert_none([fault for source in sources for fault in serving_floor_faults(source) + protocol_faults(source)])


def test_every_import_is_declared_and_pinned(sources: list[Source], project: dict[str, list[str]]) -> None:
    required = declared(project["dependencies"])
    extras = ("datasets", "hub", "openvino", "ray", "search", "wandb")
    optional = declared([name for extra in extras for name in project[extra]])
    serving = required | declared(project["serve"]) | declared(project["ray"])
    assert_none(
        [
            fault
            for source in sources
            for fault in dependency_faults(source, serving if is_serving(source) else required, optional)
        ]
    )
    pinned = declared((ROOT / "constraints.txt").read_text("utf-8").splitlines())
    assert required | serving | optional - declared(project["wandb"]) | declared(project["dev"]) <= pinned


def is_serving(source: Source) -> bool:
    """The server's room imports the extra that it is installed with."""
    return source.module.startswith("overtone.serving")


def test_no_text_names_a_place_on_one_machine() -> None:
    faults = []
    for name in project_files():
        try:
            faults += path_faults(name, (ROOT / name).read_text("utf-8"))
        except UnicodeDecodeError:
            continue
    assert_none(faults)


def test_a_room_stands_on_one_floor() -> None:
    assert len(rooms()) == len(set(rooms()))
    assert {room for pair in NEIGHBOURS for room in pair} <= set(rooms())


def test_the_design_page_has_these_floors() -> None:
    text = (ROOT / "docs/design.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| ((?:`\w+` ?)+)\|", text, re.MULTILINE)
    assert {int(floor): tuple(re.findall(r"\w+", names)) for floor, names in rows} == FLOORS
    (line,) = re.findall(r"^Inside the server, from below: ([^.]+)\.", text, re.MULTILINE)
    assert tuple(tuple(re.findall(r"\w+", names)) for names in line.split("·")) == SERVING_FLOORS


def test_files_that_pages_name_are_there() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    missing = []
    for page in pages:
        for name in re.findall(r"(?<![\w/.-])(?:\w+/)*\w+\.(?:py|yaml|html)\b", page.read_text("utf-8")):
            is_ours = name.startswith(("overtone/", "tests/", "benchmarks/", *(f"{room}/" for room in rooms())))
            if is_ours and "NAME" not in name and not any((root / name).exists() for root in (ROOT, ROOT / "overtone")):
                missing.append(f"{page.name}: {name}")
    assert_none(missing)


def test_names_in_the_ways_of_the_design_page_are_those_of_their_files() -> None:
    text = (ROOT / "docs/design.md").read_text("utf-8")
    steps = re.findall(r"^((?:\w+/)*\w+\.py) +(\w+)  ", text, re.MULTILINE)
    assert len(steps) > 15
    for file, name in steps:
        source = (ROOT / "overtone" / file).read_text("utf-8")
        assert re.search(rf"^\s*(?:async )?(?:class|def) {name}\b", source, re.MULTILINE), f"{file}: no {name}"


def rooms() -> list[str]:
    return [room for rooms in FLOORS.values() for room in rooms]


BAD_SAMPLES: dict[str, tuple[Callable[[Source], list[str]], str, str]] = {
    "own class as base": (class_faults, "class A: ...\nclass B(A): ...", "'B' inherits from 'A'"),
    "imported own class": (
        class_faults,
        "from overtone.models.asr_model import M\nclass B(M): ...",
        "'overtone.models.asr_model.M'",
    ),
    "foreign implementation": (
        class_faults,
        "import torch\nclass B(torch.nn.Linear): ...",
        "'torch.nn.Linear'",
    ),
    "two bases": (class_faults, "import enum\nclass B(Exception, enum.Enum): ...", "2 bases"),
    "mixin": (class_faults, "class SavingMixin: ...", "is a mixin"),
    "long file": (size_faults, "x = 1\n" * 401, "401 lines"),
    "long function": (size_faults, "def f():\n" + "    x = 1\n" * 60, "'f' has 61 lines"),
    "short name": (name_faults, "def f(model_cfg): ...", "'model_cfg'"),
    "star import": (name_faults, "from math import *", "star import from 'math'"),
    "export that is not there": (export_faults, "__all__ = ['f']", "'f', which is not there"),
    "export named twice": (export_faults, "f = 1\n__all__ = ['f', 'f']", "'f' twice"),
    "computed exports": (export_faults, "f = 1\n__all__ = sorted(globals())", "not a plain list"),
    "import of a test file": (
        import_of_test_faults,
        "from support.streams import run\nfrom tests.nets.test_conformer import recordings",
        "imports 'tests.nets.test_conformer.recordings' of a test file",
    ),
    "import of a test file by its name": (import_of_test_faults, "from nets import test_conformer", "of a test file"),
    "import upwards": (
        lambda source: floor_faults(source, set()),
        "def f():\n    from overtone.training.train import train",
        "'text_table' (floor 1) imports 'overtone.training.train' of floor 8",
    ),
    "import sideways": (
        lambda source: floor_faults(source, set()),
        "from overtone import wer",
        "'text_table' (floor 1) imports 'overtone.wer' of the same floor",
    ),
    "import of the door": (
        lambda source: floor_faults(source, set()),
        "from overtone import load_model",
        "imports 'overtone' of floor 10",
    ),
    "undeclared package": (
        lambda source: dependency_faults(source, {"numpy"}, set()),
        "import numpy\nimport pandas",
        "imports 'pandas'",
    ),
    "extra at the top": (
        lambda source: dependency_faults(source, set(), {"wandb"}),
        "import wandb",
        "imports 'wandb'",
    ),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_the_rules_see_what_they_forbid(name: str) -> None:
    rule, text, message = BAD_SAMPLES[name]
    faults = rule(Source(path="overtone/text_table.py", text=text))
    assert len(faults) == 1
    assert message in faults[0]


def test_the_rules_leave_good_code_alone() -> None:
    text = """
from typing import Generic, NamedTuple, Protocol, TypeVar
from torch import nn
from torch.utils import data
from overtone.errors import DataError

T = TypeVar("T")
__all__ = ["Net", "Rows"]
class Net(nn.Module): ...
class Rows(data.Dataset[int]): ...
class Box(Generic[T]): ...
class Named(Protocol): ...
class Kind(Named, Protocol): ...
class Size(NamedTuple): ...
class Missing(DataError): ...
def f():
    import wandb
"""
    source = Source(path="overtone/text_table.py", text=text)
    assert_none([fault for rule in SINGLE_FILE_RULES.values() for fault in rule(source)])
    assert_none(floor_faults(source, set()) + dependency_faults(source, {"torch"}, {"wandb"}))


def test_a_circle_is_found() -> None:
    first = Source(path="overtone/nets/a.py", text="from overtone.nets import b")
    second = Source(path="overtone/nets/b.py", text="def f():\n    import overtone.nets.a")
    faults = circles([first, second])
    assert faults == ["circle of imports: overtone.nets.a -> overtone.nets.b -> overtone.nets.a"]


def test_a_full_folder_is_seen() -> None:
    names = [f"overtone/nets/net{number}.py" for number in range(26)]
    assert folder_faults(names) == ["overtone/nets: 26 files; a folder has at most 25"]
    assert folder_faults(names[:25] + ["overtone/nets/page.html", "overtone/nets/deeper/net.py"]) == []


def test_a_small_file_for_one_other_is_seen() -> None:
    small = Source(path="overtone/nets/small.py", text="X = 1\n" * 39)
    user = Source(path="overtone/nets/user.py", text="from overtone.nets.small import X\n" + "\n" * 40)
    other = Source(path="overtone/nets/other.py", text="from overtone.nets import small\n" + "\n" * 40)
    message = "overtone/nets/small.py: 39 lines for 1 other files; put them where they are used"
    assert small_file_faults([small, user]) == [message]
    assert small_file_faults([small, user, other]) == []
    long = Source(path=small.path, text=small.text + "X = 2\n")
    assert small_file_faults([long, user]) == []


def test_a_module_without_a_floor_is_refused() -> None:
    faults = floor_faults(Source(path="overtone/helpers.py", text=""), set())
    assert faults == ["overtone/helpers.py: 'helpers' stands on no floor; give it one in FLOORS"]


def test_an_import_upwards_in_the_server_and_a_protocol_elsewhere_are_seen() -> None:
    text = "import grpc\nfrom overtone.serving.errors import WorkerError\nfrom overtone.serving.riva import requests"
    service = Source(path="overtone/serving/recognition/service.py", text=text)
    upwards = "'recognition' imports 'overtone.serving.riva', which is not below it"
    assert serving_floor_faults(service) == [f"{service.path}:3: {upwards}"]
    assert protocol_faults(service) == [f"{service.path}:1: imports 'grpc'; only riva may"]
    servicer = Source(path="overtone/serving/riva/servicer.py", text=text)
    assert serving_floor_faults(servicer) + protocol_faults(servicer) == []
    unknown = Source(path="overtone/serving/helpers.py", text="")
    message = "'helpers' stands on no floor of the server; give it one in SERVING_FLOORS"
    assert serving_floor_faults(unknown) == [f"{unknown.path}: {message}"]


def test_a_place_on_one_machine_is_seen_and_an_address_is_not() -> None:
    folder = "/" + "home"
    assert path_faults("README.md", f"cd {folder}/anna/speech") != []
    assert path_faults("README.md", f"see https://example.org{folder}/page") == []
