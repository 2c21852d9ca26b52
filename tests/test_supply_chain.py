"""What is installed: by hashes, from the right index, under licences that are listed."""

from __future__ import annotations

import re
import tomllib

import pytest

from support.house_rules import ROOT, declared


@pytest.mark.parametrize(
    ("command", "extras"), [("demo", ["serve"]), ("test", ["serve", "dev", "openvino", "datasets", "ray", "search"])]
)
def test_what_make_installs_is_locked_by_hashes(command: str, extras: list[str]) -> None:
    """Every version is the pinned one, and nothing is left out but PyTorch: else `make lock` has to run again."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    optional = project["optional-dependencies"]
    needed = declared(project["dependencies"]).union(*(declared(optional[extra]) for extra in extras)) - {"torch"}
    lines = (ROOT / f"requirements/{command}.txt").read_text("utf-8").splitlines()
    locked = [line for line in lines if re.match(r"\w", line)]
    assert needed <= declared(locked)
    assert all(line.endswith("\\") for line in locked), "each is followed by its hashes"
    assert "--require-hashes --no-deps --requirement requirements/$(1).txt" in (ROOT / "Makefile").read_text("utf-8")
    pins = {normal(name): version for name, version in pinned_versions()}
    found = (re.findall(r"^([\w.-]+)==([^ ;]+)", line)[0] for line in locked)
    versions = {normal(name): version for name, version in found}
    assert {name: pins.get(name, version) for name, version in versions.items()} == versions


def test_pytorch_s_index_is_for_pytorch_alone() -> None:
    """A name on it that is none of PyTorch's could else take the place of any package."""
    text = (ROOT / "Makefile").read_text("utf-8")
    assert "extra-index-url" not in text
    assert re.findall(r".*--index-url \$\(TORCH_INDEX\).*", text) == [
        "\t$(pip_install) --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch"
    ]


def test_the_licence_of_every_pinned_package_is_listed() -> None:
    table = (ROOT / "docs/licences.md").read_text("utf-8")
    listed = dict(re.findall(r"^\| ([\w.-]+) \| (.+) \|$", table, re.MULTILINE))
    assert {name for name, _ in pinned_versions()} <= set(listed)
    assert all(licence.strip() for licence in listed.values())


def pinned_versions() -> list[tuple[str, str]]:
    text = (ROOT / "constraints.txt").read_text("utf-8")
    return re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
