"""Every benchmark runs, on tiny shapes; nothing here looks at a time."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from support.benchmark_runs import run


@pytest.mark.parametrize("name", ["step", "inference"])
def test_shapes(name: str, tmp_path: Path) -> None:
    output = run(f"benchmarks.{name}", "--smoke", "--threads", "1", "--json", str(tmp_path / "figures.json"))
    assert "NOT COMPARED with NeMo" in output
    for expected in ("threads: 1", "conformer", "fastconformer", "bfloat16", "peak memory"):
        assert expected in output
    assert '"figures"' in (tmp_path / "figures.json").read_text("utf-8")


def test_startup() -> None:
    output = run("benchmarks.startup", "--smoke", "--threads", "1")
    assert "first transcription, bfloat16: peak memory" in output


def test_audio(tmp_path: Path) -> None:
    output = run("benchmarks.audio", "--smoke", "--threads", "1", "--json", str(tmp_path / "figures.json"))
    for expected in ("| 5.wav |", "| 60.mp3 |", "| 60.webm |", "windows in order"):
        assert expected in output
    assert '"last window alone"' in (tmp_path / "figures.json").read_text("utf-8")


def test_transducers() -> None:
    output = run("benchmarks.transducers", "--smoke", "--threads", "1")
    assert "TDT loss and gradient" in output
    assert "NOT COMPARED with NeMo" in output
    assert output.count("decoding of 4 × 10 frames") == output.count("beam 8") == 2


def test_words(tmp_path: Path) -> None:
    output = run("benchmarks.words", "--smoke", "--threads", "1", "--json", str(tmp_path / "figures.json"))
    for expected in ("conformer", "fastconformer", "greedy", "one n-gram, width 1", "16 n-grams, width 8"):
        assert expected in output
    assert '"figures"' in (tmp_path / "figures.json").read_text("utf-8")


def test_prefix(tmp_path: Path) -> None:
    output = run("benchmarks.prefix", "--smoke", "--threads", "1", "--json", str(tmp_path / "figures.json"))
    assert "| top half, cached |" in output
    assert '"waiting"' in (tmp_path / "figures.json").read_text("utf-8")


def test_growth(tmp_path: Path) -> None:
    output = run("benchmarks.growth", "--smoke", "--threads", "1", "--plots", str(tmp_path))
    for expected in ("TFLOP/s", "by rows of the batch", "by adapters in memory", "share of the peak", "Slope: "):
        assert expected in output
    assert "2 different adapters have" in output
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"growth-{name}.svg" for name in ("batch", "distinct", "length", "residents", "width")]
    for name in names:
        assert ElementTree.parse(tmp_path / name).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_whole_job(tmp_path: Path) -> None:
    words = ("benchmarks.whole_job", "--smoke", "--threads", "1", "--folder", str(tmp_path))
    output = run(*words)
    assert "NOT COMPARED with NeMo" in output
    assert "| conformer, 2 | Overtone |" in output
    cell = tmp_path / "conformer-2-overtone-0.json"
    first = cell.stat().st_mtime_ns
    assert "| conformer, 2 | Overtone |" in run(*words)
    assert cell.stat().st_mtime_ns == first


def test_install() -> None:
    assert "packages: " in run("benchmarks.install", "--smoke")


def test_sizes(tmp_path: Path) -> None:
    names = ("parakeet-tdt_ctc-110m", "stt_en_citrinet_1024")
    output = run("benchmarks.sizes", "--smoke", "--threads", "1", "--models", *names, "--dtypes", "float32")
    assert "NOT COMPARED with NeMo" in output
    assert output.count("| Overtone float32 |") == 2
    for name in names:
        assert f"{name}, a file of" in output
