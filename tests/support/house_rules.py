"""The rules of the house for one source file, each a function from the file to its faults in words.

python -m tests.support.house_rules overtone/nets overtone/decoding        # or all of the project
"""

from __future__ import annotations

import ast
import builtins
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

BASES: dict[str, set[str]] = {
    "argparse": {"Action", "ArgumentParser", "HelpFormatter", "RawDescriptionHelpFormatter"},
    "builtins": {"Exception"},
    "enum": {"Enum", "IntEnum", "StrEnum"},
    "json": {"JSONDecoder", "JSONEncoder"},
    "lightning": {"Callback", "CheckpointIO", "LightningDataModule", "LightningModule", "ProgressBar"},
    "logging": {"Filter", "Formatter", "Handler"},
    "overtone.errors": set(),
    "pickle": {"Unpickler"},
    "ray": {"RequestRouter"},
    "torch": {
        "BatchSampler",
        "Dataset",
        "Function",
        "IterableDataset",
        "Module",
        "Optimizer",
        "Sampler",
        "TorchFunctionMode",
    },
    "typing": {"Generic", "NamedTuple", "Protocol", "TypedDict"},
}
"""What a class may be derived from, by package: contracts of others, never an implementation of ours."""

DISTRIBUTIONS = {
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_reflection": "grpcio-reflection",
    "hydra": "hydra-core",
    "pytorch_lightning": "lightning",
    "yaml": "pyyaml",
}
"""Names of distributions where they differ from the imported name."""

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_FOLDER_FILES = 25
MIN_FILE_LINES = 40
"""Of a file that serves one other; see `small_file_faults`."""

BUILTINS = set(dir(builtins))
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Source:
    path: str
    """Relative to the root, with `/`."""
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @property
    def module(self) -> str:
        """`overtone/nets/ctc.py` is `overtone.nets.ctc`, `overtone/nets/__init__.py` is `overtone.nets`."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def in_package(self) -> bool:
        return self.path.startswith("overtone/")

    def at(self, node: ast.stmt | ast.expr | ast.arg, message: str) -> str:
        return f"{self.path}:{node.lineno}: {message}"


def project_files() -> list[str]:
    """Every file of the project that git does not ignore; without git, what lies outside hidden folders."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listing.returncode == 0:
        names = [name for name in listing.stdout.split("\0") if name]
    else:
        paths = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        names = [path.as_posix() for path in paths if path.parts[0] != ".venv" and ".git" not in path.parts]
    return sorted(name for name in set(names) if (ROOT / name).is_file())


def project_sources() -> list[Source]:
    names = [name for name in project_files() if name.endswith(".py")]
    return [Source(path=name, text=(ROOT / name).read_text("utf-8")) for name in names]


# Classes


def origins(tree: ast.Module) -> dict[str, str]:
    """Where imported names come from: `nn` is `torch.nn`, `Module` is `torch.nn.Module`."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                head = alias.name.split(".")[0]
                names[alias.asname or head] = alias.name if alias.asname else head
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return names


def full_name(base: ast.expr, names: dict[str, str]) -> str:
    """The dotted name of a base class, `Generic[T]` being `Generic`; a class of the same file has no dot."""
    written = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
    head, dot, rest = written.partition(".")
    if head not in names and not dot and head in BUILTINS:
        return f"builtins.{head}"
    return names.get(head, head) + dot + rest


def is_allowed_base(name: str, source: Source) -> bool:
    if name.startswith("overtone.errors.") or source.module == "overtone.errors":
        return True
    package, _, _ = name.partition(".")
    return name.rpartition(".")[2] in BASES.get(package, set())


def class_faults(source: Source) -> list[str]:
    if not source.in_package:
        return []
    names, faults = origins(source.tree), []
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ClassDef):
            continue
        bases = [full_name(base, names) for base in node.bases]
        is_protocol = any(base.endswith(".Protocol") for base in bases)
        contracts = [base for base in bases if not base.endswith((".Protocol", ".Generic"))]
        if node.name.lower().endswith("mixin"):
            faults.append(source.at(node, f"'{node.name}' is a mixin; compose instead"))
        if len(contracts) > 1 and not is_protocol:
            faults.append(source.at(node, f"'{node.name}' has {len(contracts)} bases: {', '.join(contracts)}"))
        inherited = [] if is_protocol else [base for base in contracts if not is_allowed_base(base, source)]
        faults += [source.at(node, f"'{node.name}' inherits from '{base}'; compose instead") for base in inherited]
    return faults


# Sizes and names


def size_faults(source: Source) -> list[str]:
    faults = []
    lines = len(source.text.splitlines())
    if lines > MAX_FILE_LINES:
        faults.append(f"{source.path}: {lines} lines; a file has at most {MAX_FILE_LINES}")
    for node in ast.walk(source.tree):
        if isinstance(node, Function):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                message = f"'{node.name}' has {length} lines; a function has at most {MAX_FUNCTION_LINES}"
                faults.append(source.at(node, message))
    return faults


def name_faults(source: Source) -> list[str]:
    faults = []
    of_nemo = "compat/nemo" in source.path  # NeMo's own names
    for node in ast.walk(source.tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                pass
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                pass
            case ast.ImportFrom(names=[ast.alias(name="*")]):
                faults.append(source.at(node, f"star import from '{node.module}'; name what you need"))
                continue
            case _:
                continue
        if "cfg" in name.lower().split("_") and not of_nemo:
            faults.append(source.at(node, f"'{name}': say what it is, 'settings' or 'config', not 'cfg'"))
    return faults


def bound_names(body: list[ast.stmt]) -> Iterator[str]:
    """Names that a module binds at its top, those behind `if TYPE_CHECKING` included."""
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name.split(".")[0] for alias in aliases)
            case ast.Assign(targets=targets):
                yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.If(body=inner, orelse=otherwise):
                yield from bound_names([*inner, *otherwise])
            case ast.Try(body=inner, handlers=handlers):
                yield from bound_names([*inner, *(statement for h in handlers for statement in h.body)])


def export_faults(source: Source) -> list[str]:
    """`__all__` is a plain list of names that the module binds, each once."""
    faults = []
    for node in source.tree.body:
        if not isinstance(node, ast.Assign) or [ast.unparse(target) for target in node.targets] != ["__all__"]:
            continue
        try:
            names = list(ast.literal_eval(node.value))
        except ValueError:
            faults.append(source.at(node, "__all__ is not a plain list of names"))
            continue
        bound = set(bound_names(source.tree.body))
        faults += [source.at(node, f"__all__ names '{name}' twice") for name in {*names} if names.count(name) > 1]
        faults += [
            source.at(node, f"__all__ names '{name}', which is not there") for name in names if name not in bound
        ]
    return faults


# Dependencies and texts


def import_of_test_faults(source: Source) -> list[str]:
    """A test file stands alone: what several share lives in `tests/support`, or as a fixture in a `conftest.py`."""
    faults = []
    for node in ast.walk(source.tree):
        match node:
            case ast.Import(names=aliases):
                modules = [alias.name for alias in aliases]
            case ast.ImportFrom(module=str(module), names=aliases):
                modules = [f"{module}.{alias.name}" for alias in aliases]
            case _:
                continue
        shared = [name for name in modules if any(part.startswith("test_") for part in name.split(".")[:-1])]
        shared += [name for name in modules if name.startswith("tests.") or name.rpartition(".")[2].startswith("test_")]
        faults += [source.at(node, f"imports '{name}' of a test file") for name in sorted({*shared})]
    return faults


def declared(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", line.strip(), maxsplit=1)[0].lower().replace("_", "-") for line in requirements}


def dependency_faults(source: Source, required: set[str], optional: set[str]) -> list[str]:
    """What the package imports, `pyproject.toml` declares; an extra is imported inside functions only."""
    if not source.in_package:
        return []
    faults = []
    for node in ast.walk(source.tree):
        match node:
            case ast.Import(names=aliases):
                packages = {alias.name.split(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                packages = {module.split(".")[0]}
            case _:
                continue
        for package in sorted(packages - sys.stdlib_module_names - {"overtone"}):
            distribution = DISTRIBUTIONS.get(package, package).lower().replace("_", "-")
            if distribution in required or (distribution in optional and node not in source.tree.body):
                continue
            faults.append(source.at(node, f"imports '{package}', which pyproject.toml does not require"))
    return faults


HOME_FOLDERS = re.compile(r"(?<![\w.~-])/(?:" + "|".join(["home", "root", "work"]) + r")/")


def path_faults(name: str, text: str) -> list[str]:
    return [
        f"{name}:{number}: absolute path of one machine: {line.strip()[:80]}"
        for number, line in enumerate(text.splitlines(), 1)
        if HOME_FOLDERS.search(line)
    ]


# Files and folders


def small_file_faults(sources: list[Source]) -> list[str]:
    """A file of few lines serves several others; otherwise it belongs into the one that it serves.

    Commands, which are imported by their names, and what begins with two underscores stand alone.
    """
    package = [source for source in sources if source.in_package]
    importers: dict[str, set[str]] = {source.module: set() for source in package}
    for source in package:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom):
                for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                    if name in importers:
                        importers[name].add(source.module)
    faults = []
    for source in package:
        lines, served = len(source.text.splitlines()), len(importers[source.module])
        stands_alone = Path(source.path).name.startswith("__") or source.path.startswith("overtone/cli/")
        if lines < MIN_FILE_LINES and served < 2 and not stands_alone:
            faults.append(f"{source.path}: {lines} lines for {served} other files; put them where they are used")
    return faults


def folder_faults(names: list[str]) -> list[str]:
    """A folder of the package has few enough files to be read at a glance."""
    folders = Counter(str(Path(name).parent) for name in names if name.startswith("overtone/") and name.endswith(".py"))
    return [
        f"{folder}: {count} files; a folder has at most {MAX_FOLDER_FILES}"
        for folder, count in sorted(folders.items())
        if count > MAX_FOLDER_FILES
    ]
