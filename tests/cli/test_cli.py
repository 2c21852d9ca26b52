"""The command line: what it says, what it writes, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from overtone import cli
from overtone.adapters.kinds.linear import LinearAdapter
from overtone.checkpoints.load import save_model
from support.command_line import AUDIO, ROOT, Overtone, one_line_error
from support.interpreters import modules_after
from support.shards import packed_corpus
from support.small_models import small_model

# The frame


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_command(overtone: Overtone, words: list[str]) -> None:
    code, out, err = overtone(*words)
    assert (code, err) == (0, "")
    assert all(f"\n  {name}" in out for name in cli.COMMANDS)
    assert max(map(len, out.splitlines())) <= 120


def test_the_version(overtone: Overtone) -> None:
    assert overtone("--version") == (0, "overtone 0.1.0\n", "")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_helps(overtone: Overtone, command: str) -> None:
    code, out, err = overtone(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: overtone {command}")
    assert "examples:" in out


def test_help_loads_nothing_heavy() -> None:
    for words in (["--help"], ["--version"], *([command, "--help"] for command in cli.COMMANDS)):
        assert modules_after(f"from overtone.cli import main; assert main({words!r}) == 0") == set(), words


def test_python_m_is_the_same_command() -> None:
    finished = subprocess.run([sys.executable, "-m", "overtone", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (finished.returncode, finished.stdout) == (0, "overtone 0.1.0\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inspct"], "'inspct' is no command. Did you mean 'inspect'?"),
        (["--verson"], "'--verson' is no option."),
        (["inspect"], "PATH"),
        (["transcribe", "--formt", "srt"], "Unknown option '--formt'. Did you mean '--format'?"),
        (["transcribe", "--format", "doc"], "invalid choice: 'doc'"),
        (["transcribe", "--window", "long"], "'long' is no number"),
        (["transcribe", "--window=-1"], "-1 is too small"),
        (["transcribe"], "Nothing to transcribe"),
        (["evaluate"], "A model and at least one manifest are needed"),
        (["evaluate", "a.nemo", "model.nemo_model=b.nemo"], "give either settings or MODEL MANIFEST"),
        (["train", "model.nemo_model"], "'model.nemo_model' is no setting"),
        (["train", "model.optim.lr=1,2"], "give --multirun too"),
        (["train", "-m", "model.optim.lr=interval(1,2)"], "cannot be counted up"),
        (["evaluate", "-m", "model.optim.lr=1,2"], "--multirun is for training"),
        (["train", "--config-name", "nothing"], "There is no configuration"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_line(overtone: Overtone, words: list[str], message: str) -> None:
    assert message in one_line_error(overtone(*words))


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted."),
        (OSError(28, "No space left on device", "run/log.txt"), 2, "run/log.txt: No space left on device."),
    ],
)
def test_interruptions_and_full_disks(
    overtone: Overtone, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, message: str
) -> None:
    def fail(*_: object) -> int:
        raise raised

    monkeypatch.setattr("overtone.cli.inspect.run", fail)
    assert one_line_error(overtone("inspect", "x"), code) == f"overtone: error: {message}\n"


def test_an_interrupt_of_a_command_that_is_done_gives_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever presses Ctrl-C several times hits the interpreter while it ends."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "argv", ["overtone", "--version"])
    try:
        assert cli.main() == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_reader_that_leaves_is_no_error(folder: Path) -> None:
    command = [sys.executable, "-m", "overtone", "inspect", str(folder / "model")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == cli.CLOSED_PIPE


# Commands


def test_transcribe_to_the_terminal(overtone: Overtone, folder: Path) -> None:
    code, out, err = overtone("transcribe", AUDIO[0], "--model", folder / "model", "--dtype", "float32")
    assert code == 0
    assert out.count("\n") == 1
    first, hint = err.splitlines()
    assert first == "small · no adapter · base in float32, adapters in float32, on cpu"
    assert hint.startswith("The model's file holds adapters (medical, noise); none acts. Use one with --adapter")


def test_options_and_paths_in_any_order(overtone: Overtone, folder: Path) -> None:
    words = [AUDIO[0], "--model", folder / "model", AUDIO[1], "--format=jsonl", "--adapter", "medical"]
    code, out, _ = overtone("transcribe", *words)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(line["audio_filepath"], line["adapter"]) for line in lines] == [(path, "medical") for path in AUDIO]


def test_each_adapter_choice_acts(overtone: Overtone, folder: Path) -> None:
    words = ["transcribe", AUDIO[0], "--model", folder / "model", "--dtype", "float32", "--format", "jsonl"]
    choices = ["null", "medical", "medical+noise", folder / "apart", f"medical+{folder / 'apart'}"]
    scores = [json.loads(overtone(*words, "--adapter", choice)[1])["score"] for choice in choices]
    assert len(set(scores)) == len(choices)
    assert json.loads(overtone(*words)[1])["score"] == scores[0]


@pytest.mark.parametrize(("style", "suffix"), [("text", "txt"), ("jsonl", "jsonl"), ("ctm", "ctm"), ("srt", "srt")])
def test_transcripts_in_files(overtone: Overtone, folder: Path, tmp_path: Path, style: str, suffix: str) -> None:
    words = ["--model", folder / "model", "--format", style, "--output", tmp_path / "out"]
    (tmp_path / "out").mkdir()
    code, out, _ = overtone("transcribe", *AUDIO, *words)
    assert (code, out) == (0, "")
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    names = ["activated", "added"] if style == "srt" else ["transcripts"]
    assert written == [f"{name}.{suffix}" for name in names]


def test_one_unreadable_file_is_reported_and_the_rest_go_on(overtone: Overtone, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF nonsense")
    code, out, err = overtone("transcribe", tmp_path / "broken.wav", AUDIO[0], "--model", folder / "model")
    assert code == 1
    assert out.startswith("activated.ogg\t")
    assert "overtone: error: " in err
    assert "broken.wav" in err
    assert err.endswith("1 of 2 recordings could not be transcribed.\n")


@pytest.mark.parametrize("style", ["text", "jsonl", "srt"])
def test_an_old_file_stays_where_every_recording_is_bad(
    overtone: Overtone, folder: Path, tmp_path: Path, style: str
) -> None:
    (tmp_path / "broken.wav").write_bytes(b"RIFF nonsense")
    output = tmp_path / f"out.{style}"
    output.write_text("old")
    words = ["transcribe", tmp_path / "broken.wav", "--format", style, "--output", output, "--model", folder / "model"]
    code, _, err = overtone(*words)
    assert (code, output.read_text()) == (2, "old")
    assert err.endswith(f"Nothing was written; {output} is as it was.\n")


def test_an_output_that_cannot_be_written_is_told_before_the_work(
    overtone: Overtone, manifest: Path, tmp_path: Path
) -> None:
    """Before even the model is looked for."""
    code, out, err = overtone("evaluate", "no-such-model", manifest, "--output", manifest / "report")
    assert (code, out) == (2, "")
    said = f"Cannot write {manifest}/report: Not a directory. Check the path and its permissions."
    assert err == f"overtone: error: {said}\n"
    code, _, err = overtone("transcribe", AUDIO[0], "--model", "no-such-model", "--output", manifest / "out.txt")
    assert code == 2
    assert "Cannot write" in err
    assert list(tmp_path.iterdir()) == [manifest]


def test_a_wrong_model_or_adapter_is_one_line(overtone: Overtone, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.nemo").write_bytes(b"nothing of the kind")
    assert "broken.nemo" in one_line_error(overtone("transcribe", AUDIO[0], "--model", tmp_path / "broken.nemo"))
    outcome = overtone("transcribe", AUDIO[0], "--model", folder / "model", "--adapter", "medcal")
    assert "Did you mean 'medical'" in one_line_error(outcome)
    other = save_model(small_model(seed=3), tmp_path / "other")
    outcome = overtone("transcribe", AUDIO[0], "--model", other, "--adapter", folder / "apart")
    assert one_line_error(outcome).count("sha256:") == 2


def test_evaluate_by_words(overtone: Overtone, folder: Path, manifest: Path, tmp_path: Path) -> None:
    code, out, err = overtone("evaluate", folder / "model", manifest, "--output", tmp_path / "report")
    assert code == 0
    assert all(name in out for name in ("base", "medical", "noise", "WER"))
    assert "report.html" in err
    data = json.loads((tmp_path / "report/evaluation.json").read_text("utf-8"))
    assert [result["adapter"] for result in data["results"]] == [None, "medical", "noise"]
    assert "<html" in (tmp_path / "report/report.html").read_text("utf-8")


def test_evaluate_chosen_adapters_as_json(overtone: Overtone, folder: Path, manifest: Path) -> None:
    words = ["--adapter", "null", "--adapter", folder / "apart", "--json"]
    code, out, _ = overtone("evaluate", folder / "model", manifest, *words)
    assert code == 0
    assert [result["adapter"] for result in json.loads(out)["results"]] == [None, "apart"]


def test_the_base_is_shown_beside_an_adapter(overtone: Overtone, folder: Path, manifest: Path) -> None:
    words = ["evaluate", folder / "model", manifest, "--adapter", "medical"]
    code, out, _ = overtone(*words)
    assert code == 0
    rows = [line.split()[0] for line in out.splitlines() if line.startswith((" base", " medical"))]
    assert rows == ["base", "medical"]
    _, out, _ = overtone(*words, "--json", "--no-base")
    assert [result["adapter"] for result in json.loads(out)["results"]] == ["medical"]


def test_unwritable_references_are_told(overtone: Overtone, folder: Path, manifest: Path) -> None:
    line = json.loads(manifest.read_text("utf-8").splitlines()[0])
    manifest.write_text(json.dumps(line | {"text": "ACTIVATED!"}))
    words = ["evaluate", folder / "model", manifest, "--adapter", "null"]
    code, _, err = overtone(*words)
    assert code == 0
    assert "1 of 1 transcripts hold what the model cannot write" in err
    code, out, err = overtone(*words, "--lower-case", "--no-punctuation")
    assert "cannot write" not in err
    assert "counted in lower case, without punctuation" in out
    assert "is not of the form OLD=NEW" in one_line_error(overtone(*words, "--replace", "x"))


@pytest.mark.parametrize(("name", "used"), [("medical", "medical"), ("encoder:medical", "medical"), ("null", None)])
def test_evaluate_as_in_nemo(overtone: Overtone, folder: Path, manifest: Path, name: str, used: str | None) -> None:
    code, out, _ = overtone(
        "evaluate",
        "--config-path=../conf/asr_adapters",
        "--config-name=asr_adaptation.yaml",
        f"model.nemo_model={folder / 'model'}",
        "model.pretrained_model=null",
        f"model.adapter.adapter_name={name}",
        f"model.test_ds.manifest_filepath={manifest}",
        "model.test_ds.batch_size=16",
        "model.test_ds.num_workers=8",
        "trainer.devices=1",
        "trainer.precision=32",
        "--json",
    )
    assert code == 0
    assert [result["adapter"] for result in json.loads(out)["results"]] == [used]


def test_the_accelerator_of_nemos_way_is_the_device(overtone: Overtone, folder: Path, manifest: Path) -> None:
    words = [f"model.nemo_model={folder / 'model'}", "model.adapter.adapter_name=null"]
    words += [f"model.test_ds.manifest_filepath={manifest}"]
    absent = "mps" if sys.platform == "linux" else "cuda"
    assert f"no device '{absent}'" in one_line_error(overtone("evaluate", *words, f"trainer.accelerator={absent}"))
    code, _, _ = overtone("evaluate", *words, f"trainer.accelerator={absent}", "--device", "cpu")
    assert code == 0
    message = one_line_error(overtone("evaluate", *words, "trainer.accelerator=gpus"))
    assert "trainer.accelerator: 'gpus' is not available. Did you mean 'gpu'?" in message


def test_evaluate_tells_the_line_of_a_bad_manifest(overtone: Overtone, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}\n")
    assert "bad.json:1:" in one_line_error(overtone("evaluate", folder / "model", tmp_path / "bad.json"))


def test_inspect(overtone: Overtone, folder: Path) -> None:
    code, out, err = overtone("inspect", folder / "model")
    assert (code, err) == (0, "")
    assert "medical" in out
    code, out, _ = overtone("inspect", folder / "apart", "--json")
    assert json.loads(out)["adapters"][0]["name"] == "apart"


def test_verify_ends_with_its_verdict(overtone: Overtone, folder: Path, tmp_path: Path) -> None:
    code, out, _ = overtone("verify", folder / "model", *AUDIO, "--adapter", "medical")
    assert code == 0
    assert out.endswith("All 6 checks passed.\n")
    model = small_model()
    model.adapters.add("fresh", LinearAdapter(dim=2))
    save_model(model, tmp_path / "fresh")
    code, out, _ = overtone("verify", tmp_path / "fresh", *AUDIO)
    assert code == 1
    assert "FAIL" in out
    assert json.loads(overtone("verify", tmp_path / "fresh", *AUDIO, "--json")[1])["passed"] is False


# Training


def training(folder: Path, manifest: Path, name: str) -> list[str]:
    """NeMo's documented call with the program's name swapped, made short."""
    return [
        "train",
        "--config-path=../conf/asr_adapters",
        "--config-name=asr_adaptation.yaml",
        f"model.nemo_model={folder / 'model'}",
        "model.pretrained_model=null",
        f"model.adapter.adapter_name={name}",
        "model.adapter.adapter_type=linear",
        "model.adapter.linear.dim=4",
        f"model.train_ds.manifest_filepath={manifest}",
        "model.train_ds.batch_size=2",
        "model.train_ds.num_workers=0",
        f"model.validation_ds.manifest_filepath={manifest}",
        "model.validation_ds.num_workers=0",
        "trainer.max_steps=2",
        "trainer.devices=1",
        f"exp_manager.exp_dir={manifest.parent / 'runs'}",
        "exp_manager.name=experiment",
        "exp_manager.version=first",
        "++delete_ckpt_after_train=True",
    ]


def test_train_as_in_nemo(overtone: Overtone, folder: Path, manifest: Path) -> None:
    code, out, err = overtone(*training(folder, manifest, "fresh"))
    assert (code, err) == (0, "")
    best = manifest.parent / "runs/experiment/first/checkpoints/fresh-best"
    assert (best / "adapter.yaml").is_file()
    assert out.splitlines()[-1].startswith("Next: overtone evaluate ")
    assert str(best) in out.splitlines()[-1]
    code, out, _ = overtone("evaluate", folder / "model", manifest, "--adapter", best, "--json")
    assert code == 0
    assert json.loads(out)["results"][0]["adapter"] == "fresh"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.adapter.adapter_name=medical", "Adapter 'medical' exists already."),
        ("model.adapter.linear.dmi=8", "Did you mean 'dim'?"),
        ("model.pretrained_model=fundamental", "give one of the two"),
        ("model.train_ds.manifest_filepath=missing.json", "missing.json: no such manifest."),
        ("model.optim.lr=fast", "model.optim.lr: 'fast' is not a number or 'auto'."),
    ],
)
def test_train_refuses_in_one_line_and_writes_nothing(
    overtone: Overtone, folder: Path, manifest: Path, change: str, message: str
) -> None:
    words = training(folder, manifest, "fresh")
    assert message in one_line_error(overtone(*words, change))
    assert not (manifest.parent / "runs").exists()


def test_all_mistakes_of_a_configuration_are_told_at_once(overtone: Overtone, folder: Path, manifest: Path) -> None:
    code, _, err = overtone(*training(folder, manifest, "fresh"), "model.optm.lr=1", "trainer.max_step=3")
    assert code == 2
    assert err.startswith("overtone: error: 2 mistakes in the configuration:\n")


def test_evaluate_by_settings_on_a_tarred_set(overtone: Overtone, folder: Path, tmp_path: Path) -> None:
    """The errors are those of the files that were packed; a page of it has their sound."""
    manifest, archives = packed_corpus(tmp_path, count=4, shards=2)
    words = ["evaluate", f"model.nemo_model={folder / 'model'}", "model.adapter.adapter_name=null"]
    tarred = [f"model.test_ds.manifest_filepath={manifest}", f"model.test_ds.tarred_audio_filepaths={archives}"]
    found = []
    for name, given in (("tarred", tarred), ("files", [f"model.test_ds.manifest_filepath={tmp_path / 'train.json'}"])):
        code, _, _ = overtone(*words, *given, "--output", tmp_path / name)
        assert code == 0
        (result,) = json.loads((tmp_path / name / "evaluation.json").read_text())["results"]
        found.append((result["wer"], [each["pred_text"] for each in result["utterances"]]))
        assert (tmp_path / name / "report.html").read_text().count("<audio") == 4
    assert found[0] == found[1]
    (tmp_path / "tarred/audio_1.tar").unlink()
    assert "audio_1.tar: no such archive" in one_line_error(overtone(*words, *tarred))
