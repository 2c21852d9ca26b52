"""An adapter for each row of a table: what a row may say, what a command leaves, and how it goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from overtone import cli
from overtone.checkpoints.load import load_model, save_model
from overtone.config import load_settings
from overtone.errors import ConfigError, UsageError
from overtone.search.fleet import plan_fleet, read_rows
from overtone.search.trials import find_folder
from support.small_models import small_model
from support.train_samples import environment, write_corpus


def fleet_words(folder: Path, table: Path, *more: str) -> list[str]:
    """Words of a fleet over the small model, trainings of one step."""
    if not (folder / "base").exists():
        save_model(small_model(), folder / "base")
    return [
        "train",
        "--fleet",
        str(table),
        f"model.nemo_model={folder / 'base'}",
        "model.adapter.words=off",
        f"model.validation_ds.manifest_filepath={write_corpus(folder, count=3, name='valid')}",
        "model.train_ds.num_workers=0",
        "model.validation_ds.num_workers=0",
        "trainer.max_steps=1",
        "trainer.devices=1",
        "compute_processes=1",
        f"exp_manager.explicit_log_dir={folder / 'fleet'}",
        *more,
    ]


def write_table(folder: Path) -> Path:
    """Three tenants; the second one's recordings are not there."""
    own = write_corpus(folder / "it's one, with a comma")
    table = folder / "tenants.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ["adapter_name", "train_manifest", "model.adapter.linear.dim"],
                ["first", own, "2"],
                ["second", folder / "nothing.json", ""],
                ["third", write_corpus(folder), "4"],
            ]
        )
    return table


def test_a_fleet_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each adapter has its card; one that fails is told; what is complete is not trained again."""
    words = fleet_words(tmp_path, write_table(tmp_path))
    assert cli.main(words) == 1
    out, err = capsys.readouterr()
    assert "nothing.json" in err
    assert err.endswith("1 of 3 trainings failed.\n")
    folder = tmp_path / "fleet"
    assert f"Adapters: {folder / 'adapters'}" in out
    assert sorted(path.name for path in (folder / "adapters").iterdir()) == ["first", "third"]
    model = load_model(tmp_path / "base")
    for name, dim in (("first", 2), ("third", 4)):
        adapter = model.adapters.load(folder / "adapters" / name)
        assert (adapter.name, adapter.kind.dim, adapter.card["steps"]) == (name, dim, 1)  # type: ignore[attr-defined]
    rows = list(csv.DictReader((folder / "fleet.csv").open()))
    assert [row["adapter_name"] for row in rows] == ["first", "second", "third"]
    assert float(rows[0]["wer_before"]) > 0
    assert "nothing.json" in rows[1]["error"]
    assert rows[2]["adapter"] == str(folder / "adapters/third")

    assert cli.main(words) == 2
    assert "holds a run already" in capsys.readouterr().err
    write_corpus(tmp_path, name="nothing")
    logs = {name: (folder / name / "log.txt").read_text() for name in ("first", "third")}
    assert cli.main([*words, "exp_manager.resume_if_exists=true"]) == 0
    assert {name: (folder / name / "log.txt").read_text() for name in logs} == logs
    assert sorted(path.name for path in (folder / "adapters").iterdir()) == ["first", "second", "third"]
    assert [row["error"] for row in csv.DictReader((folder / "fleet.csv").open())] == ["", "", ""]
    assert cli.main([*words, "exp_manager.resume_if_exists=true", "trainer.max_steps=2"]) == 0
    assert json.loads((folder / "first/result.json").read_text())["steps"] == 2  # other settings: it goes on


def test_several_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    assert cli.main([*fleet_words(tmp_path, write_table(tmp_path)), "--jobs", "2"]) == 1
    assert "3 trainings, 2 at once" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "fleet/adapters").iterdir()) == ["first", "third"]


GIVEN = ["model.nemo_model=a.nemo", "model.validation_ds.manifest_filepath=v.json"]


def test_cells_are_settings(tmp_path: Path) -> None:
    """Names and paths as they stand, other texts as on a command line; an empty cell leaves the command's setting."""
    table = tmp_path / "t.jsonl"
    rows = [
        {"adapter_name": "007", "train_manifest": ["a b.json", "c,d.json"], "seed": 3, "model.optim.lr": 0.01},
        {"adapter_name": "x", "train_manifest": "e.json", "model.base_dropout": False, "model.optim.lr": None},
    ]
    table.write_text("\n".join(map(json.dumps, rows)))
    fleet = plan_fleet(table, [*GIVEN, "exp_manager.explicit_log_dir=f", "model.optim.lr=0.5"], load_settings)
    first, second = (trial.settings for trial in fleet.trials)
    assert first.model.adapter.adapter_name == "007"
    assert first.model.train_ds.manifest_filepath == ("a b.json", "c,d.json")
    assert (first.seed, first.model.optim.lr, first.model.base_dropout) == (3, 0.01, True)
    assert (second.seed, second.model.optim.lr, second.model.base_dropout) == (0, 0.5, False)
    assert [find_folder(each).path for each in (first, second)] == [Path("f/007"), Path("f/x")]
    assert load_settings(fleet.trials[0].overrides).model.train_ds == first.model.train_ds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 rows"),
        ("adapter_name,tran_manifest\na,b\n", "Did you mean 'train_manifest'"),
        ("adapter_name,train_manifest\na,b,c\n", "more cells"),
        ("adapter_name,train_manifest\na,b\na,c\n", "the rows 1, 2 have one name, a"),
        ("adapter_name,exp_manager.name\na,b\n", "one of the whole fleet"),
        ("adapter_name,train_manifest,model.optim.lr\na,b,fast\n", r"row 1: model\.optim\.lr: 'fast'"),
        ("train_manifest\nb\n", r"row 1: model\.adapter\.adapter_name: has to be given"),
    ],
)
def test_tables_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text(text)
    with pytest.raises((UsageError, ConfigError), match=message):
        plan_fleet(table, GIVEN, load_settings)


def test_files_that_are_no_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.jsonl").write_text("{")
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("t.jsonl", "t.csv", "nothing.csv"):
        with pytest.raises(UsageError, match="cannot be read"):
            read_rows(tmp_path / name)
    assert cli.main(["train", "-m", "--fleet", "t.csv"]) == 2
    assert cli.main(["train", "--ray", "auto"]) == 2
    assert cli.main(["train", "-m", "--job-cpus", "2"]) == 2
    err = capsys.readouterr().err
    for message in ("two things", "--ray is for a search", "--job-cpus is for a cluster"):
        assert message in err
