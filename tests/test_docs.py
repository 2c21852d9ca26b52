"""The documents: their commands and snippets are run, their settings exist, their links lead somewhere."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from overtone import cli
from overtone.adapters.kinds.registry import KINDS
from overtone.checkpoints import load
from overtone.checkpoints.load import save_model
from overtone.config import Settings, VocabularySettings, to_plain
from support.small_models import small_model

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROMPTS = ROOT / "overtone/prompts"

QUICK = {
    "trainer.max_steps=300": "trainer.max_steps=2",
    "trainer.val_check_interval=60": "trainer.val_check_interval=2",
    "range(100)": "range(2)",
    "output_dir=": "max_steps=2, output_dir=",
}
"""What the tests replace, so that a page is run in seconds."""

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """Language and text of the page's fenced blocks, in order."""
    for language, text in BLOCK.findall(page.read_text("utf-8")):
        if language in languages:
            for slow, quick in QUICK.items():
                text = text.replace(slow, quick)
            yield language, text


def commands(text: str) -> list[list[str]]:
    """The words of each `$ overtone …`."""
    joined = text.replace("\\\n", " ")
    return [shlex.split(line.removeprefix("$ ")) for line in joined.splitlines() if line.startswith("$ ")]


def entries(name: str, count: int) -> list[dict[str, Any]]:
    lines = (PROMPTS / name).read_text("utf-8").splitlines()[:count]
    return [{**(entry := json.loads(line)), "audio_filepath": str(PROMPTS / entry["audio_filepath"])} for line in lines]


@pytest.fixture(autouse=True)
def own_kinds_are_forgotten() -> Iterator[None]:
    """What a page registers is known to that page alone."""
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run a page in. Where the embedded base is not built, a small model stands in for it."""
    monkeypatch.chdir(tmp_path)
    if not (ROOT / "overtone/fundamental").is_dir():
        folder = save_model(small_model(layers=4, name="fundamental"), tmp_path / ".models/fundamental")
        monkeypatch.setattr(load, "embedded_folder", lambda name: folder)
    return tmp_path


@pytest.fixture
def manifests(workplace: Path) -> Path:
    """`train.json`, `valid.json` and `test.json` of a few prompts, and two recordings."""
    for name, source in (("train", "train"), ("valid", "train"), ("test", "test")):
        lines = "".join(json.dumps(entry) + "\n" for entry in entries(f"{source}.jsonl", 16))
        (workplace / f"{name}.json").write_text(lines, "utf-8")
    for name, entry in zip(("a.ogg", "b.ogg"), entries("test.jsonl", 2), strict=True):
        (workplace / name).write_bytes(Path(entry["audio_filepath"]).read_bytes())
    return workplace


def run_page(page: Path, *, only_python: bool = False) -> dict[str, Any]:
    """Run the page's snippets, in one namespace, and its commands, in order."""
    namespace: dict[str, Any] = {"__name__": page.stem}
    for number, (language, text) in enumerate(blocks(page, *(("python",) if only_python else ("python", "console")))):
        if language == "python":
            exec(compile(text, f"{page.name}[{number}]", "exec", dont_inherit=True), namespace)
            continue
        for program, *words in commands(text):
            assert program == "overtone"
            assert cli.main(words) == 0, shlex.join(words)
    return namespace


def test_the_tutorial_runs_from_top_to_bottom(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_page(ROOT / "docs/tutorial.md")
    assert names["model"].adapters.names == ["prompts", "upper"]
    written = {path.name for path in workplace.iterdir()}
    assert {"train.json", "report", "prompts", "adapted.nemo", "adapters.pt", "transcripts.jsonl"} <= written
    transcripts = (workplace / "transcripts.jsonl").read_text("utf-8").splitlines()
    assert len(transcripts) == 86
    assert {json.loads(line)["adapter"] for line in transcripts} == {"prompts"}
    assert "checks passed." in capsys.readouterr().out


@pytest.mark.parametrize(
    "page", ["README.md", "docs/adapters.md", "docs/formats.md", "docs/training.md", "docs/migrating.md"]
)
def test_the_snippets_of_a_page_run(manifests: Path, page: str) -> None:
    names = run_page(ROOT / page, only_python=True)
    assert names["model"].adapters.names != []
    if page != "docs/formats.md":
        assert any((manifests / name / "adapter.yaml").is_file() for name in ("medical", "mine"))


def test_the_commands_of_the_readme_run(manifests: Path) -> None:
    base = load.load_model("fundamental")
    save_model(base, "base.nemo")
    (manifests / "calls").mkdir()
    (manifests / "a.ogg").rename(manifests / "calls/a.ogg")
    text = next(text for _, text in blocks(ROOT / "README.md", "") if text.startswith("overtone train"))
    lines = text.replace("\\\n", " ").splitlines()
    assert len(lines) == 4
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "overtone"
        extra = ["trainer.max_steps=2"] if words[0] == "train" else []
        assert cli.main([*words, *extra]) == 0, line
    assert (manifests / "report/report.html").is_file()
    assert (manifests / "captions/a.srt").is_file()


def known_keys(settings: Any = None, path: str = "") -> Iterator[str]:
    data = to_plain(Settings()) if settings is None else settings
    for key, value in data.items():
        yield f"{path}{key}"
        if isinstance(value, dict):
            yield from known_keys(value, f"{path}{key}.")


def test_every_setting_that_is_named_exists() -> None:
    known = set(known_keys()) | set(known_keys(to_plain(VocabularySettings()), "model.adapter.vocabulary."))
    for page in PAGES:
        named = re.findall(r"\b((?:model|trainer|exp_manager)\.[a-z_]+(?:\.[a-z_]+)*)=", page.read_text("utf-8"))
        named += re.findall(r"`((?:model|trainer|exp_manager)\.[a-z_]+(?:\.[a-z_]+)*)`", page.read_text("utf-8"))
        settings = {key for key in named if not key.startswith("model.adapters") and not key.endswith(("safetensors",))}
        unknown = {key for key in settings if key not in known and key != "tokenizer.model"}
        assert unknown <= {"model.nemo"}, (page.name, unknown)


def test_defaults_in_the_table_are_the_defaults() -> None:
    shipped = dict(leaves(yaml.safe_load((ROOT / "overtone/configs/asr_adaptation.yaml").read_text("utf-8"))))
    ours = {key: shipped[key] for key in ("model.adapter.words", "model.optim.lr")}  # elsewhere as NeMo has them
    defaults = dict(leaves(to_plain(Settings()))) | ours
    rows = re.findall(
        r"^\| `([a-z_.]+)`(?: \*)? \| ([^|]+) \|", (ROOT / "docs/training.md").read_text("utf-8"), re.MULTILINE
    )
    told = {key: value.strip() for key, value in rows if key in defaults and value.strip()}
    assert len(told) > 12
    for key, value in told.items():
        actual = defaults[key]
        if key == "model.adapter.adapter_module_name":
            assert actual is None  # which is the encoder
        else:
            assert str(actual).lower() == value, key


def leaves(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def test_commands_that_are_named_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"\bovertone ([a-z]+)\b", "\n".join(text for _, text in BLOCK.findall(page.read_text()))
        ):
            assert name in {*cli.COMMANDS, "import"}, (page.name, name)


def test_the_tests_that_hold_what_is_promised_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (ROOT / "SECURITY.md").read_text("utf-8"))
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text("utf-8"), f"{file}::{name}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
            if not target.startswith("https://"):
                assert (page.parent / target.partition("#")[0]).exists(), (page.name, target)


def test_kinds_are_told_with_their_defaults() -> None:
    text = (ROOT / "docs/adapters.md").read_text("utf-8")
    for kind in (known.kind for known in KINDS.values()):
        signature = ", ".join(f"{item.name}={item.default!r}".replace("'", '"') for item in dataclasses.fields(kind))
        assert f"| `{kind.__name__}` | `{signature}` |" in text
