"""The public names: all there, each reachable, none fetched before it is used."""

from __future__ import annotations

import ast
import tomllib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

import overtone
from support.interpreters import modules_after

ROOT = Path(__file__).resolve().parent.parent

EXPORTS = {
    "overtone.adapters.adapter_set": {"AdapterSet"},
    "overtone.adapters.kinds.linear": {"LinearAdapter"},
    "overtone.adapters.kinds.lora": {"LoraAdapter"},
    "overtone.adapters.kinds.registry": {"register_kind"},
    "overtone.adapters.kinds.tiny_attention": {"TinyAttentionAdapter"},
    "overtone.adapters.strategies": {"ResidualAdd"},
    "overtone.audio.load": {"load_audio"},
    "overtone.checkpoints.load": {"load_model", "save_model"},
    "overtone.decoding.hypothesis": {"Hypothesis", "Word"},
    "overtone.errors": {"OvertoneError"},
    "overtone.evaluation.evaluate": {"evaluate"},
    "overtone.training.train": {"train"},
    "overtone.inference.transcribe": {"Transcriber", "transcribe"},
    "overtone.models.asr_model": {"AsrModel"},
    "overtone.progress": {"progress_bar"},
}
"""The contract with users: what may be added to, and never quietly taken from."""


def test_all_is_the_contract() -> None:
    names = {name for names in EXPORTS.values() for name in names}
    assert sorted(overtone.__all__) == sorted([*names, "__version__"])
    assert set(overtone.__all__) <= set(dir(overtone))


@pytest.mark.parametrize(("home", "name"), [(home, name) for home in EXPORTS for name in sorted(EXPORTS[home])])
def test_each_name_is_that_of_its_home(home: str, name: str) -> None:
    module = import_module(home)
    assert getattr(overtone, name) is getattr(module, name)
    assert getattr(overtone, name).__module__ == home


def test_type_checkers_see_the_same_homes() -> None:
    tree = ast.parse((ROOT / "overtone/__init__.py").read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {
        node.module: {alias.name for alias in node.names} for node in block.body if isinstance(node, ast.ImportFrom)
    }
    assert imported == EXPORTS


def test_no_module_bears_the_name_of_an_export() -> None:
    assert [name for name in overtone.__all__ if name != "__version__" and find_spec(f"overtone.{name}")] == []


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_modell'"):
        overtone.load_modell  # noqa: B018


def test_version_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert overtone.__version__ == project["version"]


def test_import_loads_nothing_heavy() -> None:
    assert modules_after("import overtone; overtone.OvertoneError; overtone.__version__") == set()


def test_help_loads_nothing_heavy() -> None:
    call = "import sys, runpy; sys.argv = ['overtone', '--help']; runpy.run_module('overtone', run_name='__main__')"
    code = f"try:\n    {call}\nexcept SystemExit as stop:\n    assert not stop.code"
    assert modules_after(code) == set()
