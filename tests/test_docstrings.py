"""The rules for docstrings and words: the package keeps them, and samples that break them are seen."""

from __future__ import annotations

import pytest

from support.docstring_rules import error_bases
from support.house_faults import DOCSTRING_RULES
from support.house_rules import Source, project_sources

BAD_SAMPLES: dict[str, tuple[str, str, str]] = {
    "module without": ("docstrings", "X = 1", "the module has no docstring"),
    "class without": ("docstrings", '"""A."""\nclass Plan:\n    x: int', "'Plan' has no docstring"),
    "function without": ("docstrings", '"""A."""\ndef f():\n    a = 1\n    return a', "'f' has no docstring"),
    "branches without": ("docstrings", '"""A."""\ndef f(x):\n    if x:\n        return 1', "'f' has no docstring"),
    "question": ("questions", 'def f():\n    """Whether it is so."""', "begins with 'Whether'"),
    "genitive of a field": ("questions", 'class A:\n    x: int\n    """Of the base."""', "begins with 'Of'"),
    "question of a module": ("questions", '"""How it works."""', "begins with 'How'"),
    "silent error": (
        "raises",
        "from overtone.errors import ConfigError\ndef f():\n    raise ConfigError('x')",
        "'f' raises ConfigError",
    ),
    "other error named": (
        "raises",
        'from overtone import errors\ndef f():\n    """Raises DataError."""\n    raise errors.ConfigError("x")',
        "'f' raises ConfigError",
    ),
    "silent construction": (
        "raises",
        "class A:\n    def __init__(self):\n        raise UsageError('x')",
        "'A.__init__' raises UsageError",
    ),
    "same error twice": (
        "raises",
        "def f(x):\n    if x:\n        raise DataError('x')\n    raise DataError('y')",
        "'f' raises DataError",
    ),
    "tensor": ("shapes", 'def f(x: Tensor):\n    """Double it."""', "'f' names no shape of its x"),
    "optional array": (
        "shapes",
        "def f(a: int, *, x: NDArray[np.float32] | None = None): ...",
        "'f' names no shape of its x",
    ),
    "own word in a docstring": ("words", '"""The shelves of adapters."""', "'shelf': say adapter store"),
    "own word in a name": ("words", "class TraineeModel: ...", "'trainee': say model"),
    "own word of a function": ("words", "def at(door): ...", "'door': say server, endpoint"),
    "forward": ("shapes", "class A:\n    def forward(self, x: torch.Tensor): ...", "'A.forward' names no shape"),
}


@pytest.mark.parametrize("name", BAD_SAMPLES)
def test_a_rule_sees_what_it_forbids(name: str) -> None:
    rule, text, message = BAD_SAMPLES[name]
    faults = DOCSTRING_RULES[rule](Source(path="overtone/text_table.py", text=text))
    assert len(faults) == 1
    assert message in faults[0]


GOOD_SAMPLE = '''
"""Words of the field."""

X = 1
"""Seconds of `door`."""


def one(): return 1


def _hidden(x: Tensor):
    raise ConfigError("x")


def check(x: Tensor, state: Mapping[str, Tensor]):
    """Check x [B, T].

    Raises ConfigError where it is empty, UsageError where it is none.
    """
    def inner():
        raise DataError("x")
    if x:
        raise UsageError("x")
    raise ConfigError("x")


def scale(x: Tensor):
    """Scale x, of any shape."""


class Net:
    """A net over x [B, T, D]. Raises OvertoneError for a width of 0."""

    def __init__(self, width: int):
        raise ConfigError("x")

    def forward(self, x: Tensor):
        raise error
'''


@pytest.fixture(scope="module")
def package() -> list[Source]:
    return [source for source in project_sources() if source.in_package]


@pytest.mark.parametrize("rule", DOCSTRING_RULES)
def test_the_package_keeps_the_rule(rule: str, package: list[Source]) -> None:
    faults = [fault for source in package for fault in DOCSTRING_RULES[rule](source)]
    assert not faults, "\n" + "\n".join(faults)


@pytest.mark.parametrize("rule", DOCSTRING_RULES)
def test_a_rule_leaves_good_words_alone(rule: str) -> None:
    assert DOCSTRING_RULES[rule](Source(path="overtone/text_table.py", text=GOOD_SAMPLE)) == []


@pytest.mark.parametrize("rule", DOCSTRING_RULES)
def test_tests_are_free(rule: str) -> None:
    for _, text, _ in BAD_SAMPLES.values():
        assert DOCSTRING_RULES[rule](Source(path="tests/test_wer.py", text=text)) == []


def test_errors_are_those_of_the_package_with_their_bases() -> None:
    bases = error_bases()
    assert bases["ConfigError"] >= {"ConfigError", "OvertoneError"}
    assert "ValueError" not in bases
    assert "LogMel" not in bases
