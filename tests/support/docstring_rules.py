"""The rules of the house for docstrings, each a function from one source file to its faults in words."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from support.house_rules import BUILTINS, ROOT, Function, Source

QUESTIONS = re.compile(r"(What|Which|Where|Whether|Of|How)\b")
SHAPE = re.compile(r"\[[^\[\]\n]*[A-Z][^\[\]\n]*\]|\[samples\]|any shape|\bscalars?\b", re.IGNORECASE)
ARRAYS = re.compile(r"(?<![\w.])(torch\.)?(Tensor|(np\.)?ndarray|(npt\.)?NDArray|Waveform)\b")
OTHER_ARRAYS = re.compile(r"(Mapping|dict|Callable)\[")
FORWARDS = {"forward", "__call__"}
COMPOUND = ast.If | ast.For | ast.While | ast.With | ast.Try | ast.Match | ast.AsyncFor | ast.AsyncWith
COMMAND = {"add_arguments", "run"}
BUILDERS = {"__init__", "__post_init__"}


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A class or function of a module, with the class that it stands in."""

    node: ast.ClassDef | Function
    owner: ast.ClassDef | None = None

    @property
    def name(self) -> str:
        return self.node.name if self.owner is None else f"{self.owner.name}.{self.node.name}"

    @property
    def is_public(self) -> bool:
        return not self.node.name.startswith("_") and (self.owner is None or not self.owner.name.startswith("_"))

    @property
    def text(self) -> str:
        """The docstring, and for a method its class's behind it."""
        own, whole = ast.get_docstring(self.node), self.owner and ast.get_docstring(self.owner)
        return f"{own or ''}\n{whole or ''}".strip()


def definitions(tree: ast.Module) -> Iterator[Definition]:
    """Classes and functions at the top of a module, and the methods of its classes; nothing inside functions."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function):
            yield Definition(node=node)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.ClassDef | Function):
                    yield Definition(node=inner, owner=node)


def docstring_faults(source: Source) -> list[str]:
    """A module, a public class and a public function have a docstring.

    A method and a function of one statement may stand without, as may the two functions of a command's module, which
    `cli/__init__` describes.
    """
    if not source.in_package or not source.tree.body:
        return []
    faults = [] if ast.get_docstring(source.tree) else [f"{source.path}:1: the module has no docstring"]
    silent = [
        found.node
        for found in definitions(source.tree)
        if found.is_public and found.owner is None and not ast.get_docstring(found.node) and not is_plain(found.node)
        if not (source.path.startswith("overtone/cli/") and found.name in COMMAND)
    ]
    return faults + [source.at(node, f"'{node.name}' has no docstring") for node in silent]


def is_plain(node: ast.ClassDef | Function) -> bool:
    """Whether it is a function of one statement."""
    return isinstance(node, Function) and len(node.body) == 1 and not isinstance(node.body[0], COMPOUND)


def docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Every string that stands alone: of modules, classes, functions, fields and constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def question_faults(source: Source) -> list[str]:
    """A docstring is a sentence that stands alone: it does not begin as a question or a genitive does."""
    if not source.in_package:
        return []
    return [
        source.at(text, f"the docstring begins with '{match[1]}'; say it as a sentence, the subject first")
        for text in docstrings(source.tree)
        if (match := QUESTIONS.match(str(text.value).strip()))
    ]


@cache
def error_bases() -> dict[str, set[str]]:
    """The errors of the package, each with itself and the errors that it is derived from."""
    bases: dict[str, set[str]] = {}
    for path in (ROOT / "overtone").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases.setdefault(node.name, set()).update(ast.unparse(base).split(".")[-1] for base in node.bases)

    def ancestors(name: str) -> set[str]:
        return {name}.union(*(ancestors(base) for base in bases.get(name, ())))

    return {name: found for name in bases if "OvertoneError" in (found := ancestors(name))}


def own_nodes(function: Function) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions and classes inside it."""
    waiting: list[ast.AST] = [*function.body]
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.ClassDef | Function | ast.Lambda):
            waiting += ast.iter_child_nodes(node)


def raise_faults(source: Source) -> list[str]:
    """A public function that raises an error of ours says so: "Raises ConfigError where …".

    The words may name a base of the error. A method and what builds an object may say it in the class's docstring.
    """
    if not source.in_package:
        return []
    faults = []
    for found in definitions(source.tree):
        function = found.node
        is_builder = function.name in BUILDERS and found.owner is not None and not found.owner.name.startswith("_")
        if not isinstance(function, Function) or not (found.is_public or is_builder):
            continue
        _, _, said = re.sub(r"\b[Rr]aise\b|\braises\b", "Raises", found.text).partition("Raises")
        for node in own_nodes(function):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                error = ast.unparse(node.exc.func).split(".")[-1]
                if error in error_bases() and not error_bases()[error] & set(re.findall(r"\w+", said)):
                    faults.append(source.at(function, f"'{found.name}' raises {error}; its docstring does not say so"))
    return list(dict.fromkeys(faults))


def shape_faults(source: Source) -> list[str]:
    """A public function with a tensor or an array as argument names shapes, such as [B, T, D], in its docstring.

    "any shape" is one. A method may name them in the class's docstring. Tensors by name, as in a state dictionary, have
    none, nor those that a given function takes.
    """
    if not source.in_package:
        return []
    faults = []
    for found in definitions(source.tree):
        function = found.node
        is_forward = function.name in FORWARDS and found.owner is not None and not found.owner.name.startswith("_")
        if not isinstance(function, Function) or not (found.is_public or is_forward):
            continue
        given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        types = {argument.arg: ast.unparse(argument.annotation) for argument in given if argument.annotation}
        arrays = [name for name, kind in types.items() if ARRAYS.search(kind) and not OTHER_ARRAYS.search(kind)]
        if arrays and not SHAPE.search(found.text):
            faults.append(source.at(function, f"'{found.name}' names no shape of its {', '.join(arrays)}"))
    return faults


OWN_WORDS = {
    "arithmetic": "dtype",
    "door": "server, endpoint",
    "lookout": "folder watcher",
    "resident": "cached",
    "shelf": "adapter store",
    "trainee": "model",
}
"""Words that only this project used -> those of the field."""


def word_faults(source: Source) -> list[str]:
    """Standard words for standard things, in names and docstrings. Texts on the wire stay as they are."""
    if not source.in_package:
        return []
    faults = []
    for node in ast.walk(source.tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.ClassDef(name=name):
                found = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().split("_")
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found = name.lower().split("_")
            case ast.Expr(value=ast.Constant(value=str(text))):
                found = re.findall(r"[a-z]+", re.sub(r"`[^`]*`|\"[^\"]*\"", "", text.lower()))
            case _:
                continue
        if isinstance(node, ast.Name) and node.id in BUILTINS:
            continue
        own = {word for word in OWN_WORDS if {word, word + "s", word.replace("lf", "lves")} & {*found}}
        faults += [source.at(node, f"'{word}': say {OWN_WORDS[word]}") for word in sorted(own)]
    return list(dict.fromkeys(faults))
