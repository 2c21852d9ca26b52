"""A fleet: an adapter for each row of a table, such as one for each tenant, all over one base.

A column is a setting by its name, or one of the short names of `COLUMNS`; an empty cell leaves the setting as it is.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from overtone.config import Settings, quoted, to_plain
from overtone.errors import ConfigError, UsageError, did_you_mean
from overtone.files import replace_file, replace_folder
from overtone.safe_yaml import read_values
from overtone.search.processes import GO_ON, read_result
from overtone.search.trials import SHARED, Outcome, Trial, find_folder, share_one
from overtone.training.run_folder import HPARAMS_FILE, RESULT_FILE, check_folder_is_free

ADAPTER = "adapter_name"
COLUMNS = {
    ADAPTER: "model.adapter.adapter_name",
    "train_manifest": "model.train_ds.manifest_filepath",
    "validation_manifest": "model.validation_ds.manifest_filepath",
    "start_from": "model.adapter.start_from",
}
"""Short names of columns whose cells are names and paths -> settings."""
MAX_ROWS = 10_000
ADAPTERS = "adapters"
TABLE = "fleet.csv"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The trainings of a table, and the folder that holds all of them."""

    folder: Path
    trials: tuple[Trial, ...]
    """Those that are still to be carried out."""
    finished: tuple[Outcome, ...] = ()
    """Those that an earlier command has completed with the same settings."""

    @property
    def adapters(self) -> Path:
        """The folder of all adapters by name, as a server takes it."""
        return self.folder / ADAPTERS

    def keep(self, outcome: Outcome) -> Outcome:
        """Put the best adapter of a training beside those of the others. Raises OSError."""
        if outcome.result is not None and outcome.result.adapter is not None:
            best = outcome.result.best
            replace_folder(self.adapters / outcome.result.adapter, lambda place: copy_folder(best, place))
        return outcome

    def write_table(self, outcomes: Sequence[Outcome]) -> Path:
        """Write what became of each row. Raises OSError."""
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([ADAPTER, "wer_before", "wer_after", "best_step", "adapter", "error"])
        for outcome in sorted(outcomes, key=lambda each: each.trial.number):
            result, name = outcome.result, outcome.trial.settings.model.adapter.adapter_name
            if result is None:
                writer.writerow([name, "", "", "", "", outcome.error])
            else:
                place = self.adapters / str(result.adapter)
                writer.writerow([name, result.wer_before, result.wer, result.best_step, place, ""])
        self.folder.mkdir(parents=True, exist_ok=True)
        with replace_file(self.folder / TABLE) as file:
            file.write(text.getvalue().encode())
        return self.folder / TABLE


def copy_folder(source: Path, place: Path) -> None:
    """Copy what is in a folder into another one."""
    shutil.copytree(source, place, dirs_exist_ok=True)


def plan_fleet(table: Path, overrides: Sequence[str], load: Callable[[Sequence[str]], Settings]) -> Fleet:
    """Read a table and check the settings of every row. load: makes settings of overrides.

    Raises UsageError for a table that cannot be used, and ConfigError for settings, which name the row.
    """
    rows = read_rows(table)
    trials = []
    for number, row in enumerate(rows):
        words = (*overrides, *(f"++{key}={value}" for key, value in row.items()))
        try:
            settings = load(words)
        except ConfigError as error:
            raise ConfigError(f"{table}, row {number + 1}: {error}") from error
        name = str(settings.model.adapter.adapter_name)
        trials.append(Trial(chosen=(f"{ADAPTER}={name}",), settings=settings, overrides=words, number=number))
    check_names(trials, table)
    first = trials[0].settings
    above = find_folder(first).path
    placed = [share_one(place(trial, above), above / SHARED, prefix=False) for trial in trials]
    if not first.exp_manager.resume_if_exists:
        for trial in placed:
            check_folder_is_free(trial.settings.exp_manager, find_folder(trial.settings))
        return Fleet(folder=above, trials=tuple(placed))
    done = [outcome_of(trial) for trial in placed]
    return Fleet(
        folder=above,
        trials=tuple(trial for trial, outcome in zip(placed, done, strict=True) if outcome is None),
        finished=tuple(outcome for outcome in done if outcome is not None),
    )


def place(trial: Trial, above: Path) -> Trial:
    """Put the training of a row into a folder below that of the fleet, called by its adapter."""
    chosen = trial.settings.exp_manager
    own = replace(chosen, explicit_log_dir=str(above / str(trial.settings.model.adapter.adapter_name)))
    if not chosen.resume_if_exists:
        return replace(trial, settings=replace(trial.settings, exp_manager=own))
    settings = replace(trial.settings, exp_manager=replace(own, resume_ignore_no_checkpoint=True))
    return replace(trial, settings=settings, overrides=(*trial.overrides, *GO_ON))


def outcome_of(trial: Trial) -> Outcome | None:
    """Return the outcome of a training that is complete, with the settings of today; None for any other."""
    folder = find_folder(trial.settings).path
    try:
        before = read_values((folder / HPARAMS_FILE).read_text("utf-8"))
        result = read_result(folder) if (folder / RESULT_FILE).is_file() else None
    except (OSError, ValueError, KeyError):
        return None
    now = json.loads(json.dumps(to_plain(trial.settings), default=str))
    if result is None or not isinstance(before, dict) or what_trains(before) != what_trains(now):
        return None
    return Outcome(trial=trial, result=result)


def what_trains(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without those of the run folder and of going on."""
    return {key: value for key, value in record.items() if key != "exp_manager"}


# Table


def read_rows(table: Path) -> list[dict[str, str]]:
    """Read a CSV file, or JSON lines, as overrides by the setting's name. Raises UsageError."""
    try:
        text = table.expanduser().read_text("utf-8-sig")
        if table.suffix in (".json", ".jsonl"):
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(StringIO(text), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(
            f"{table} cannot be read as {'JSON lines' if table.suffix == '.jsonl' else 'a table'}: {error}."
        ) from error
    if not rows or len(rows) > MAX_ROWS:
        raise UsageError(f"{table} has {len(rows)} rows; a fleet has 1 to {MAX_ROWS}.")
    return [dict(read_cells(row, f"{table}, row {number}")) for number, row in enumerate(rows, 1)]


def read_cells(row: Any, where: str) -> list[tuple[str, str]]:
    """Return settings and values of a row. Raises UsageError for columns that name none, and for too many cells."""
    if not isinstance(row, Mapping) or None in row:
        raise UsageError(f"{where} has more cells than the first line has names; put cells with commas in quotes.")
    found: list[tuple[str, str]] = []
    for name, value in row.items():
        column = str(name)
        if column not in COLUMNS and "." not in column and column not in SINGLE:
            known = [*COLUMNS, *SINGLE]
            raise UsageError(
                f"{where}: the column '{column}' is no setting.{did_you_mean(column, known)} Columns are "
                f"{', '.join(COLUMNS)}, and settings by their whole names such as model.optim.lr."
            )
        if column.startswith(("exp_manager.", "hydra")):
            raise UsageError(f"{where}: '{column}' is one of the whole fleet; give it on the command line.")
        if value is not None and value != "":
            found.append((COLUMNS.get(column, column), write_cell(column, value)))
    return found


SINGLE = ("seed", "compute_dtype")
"""Settings without a section that a row may have."""


def write_cell(column: str, value: Any) -> str:
    """A cell as the value of an override: names and paths are quoted, other texts are read as on a command line."""
    if isinstance(value, list):
        return f"[{','.join(quoted(Path(str(each))) for each in value)}]"
    if column in COLUMNS:
        return quoted(Path(str(value)))
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_names(trials: Sequence[Trial], table: Path) -> None:
    """Raises UsageError for two rows with one name."""
    names = [str(trial.settings.model.adapter.adapter_name) for trial in trials]
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        rows = [str(number) for number, name in enumerate(names, 1) if name == twice]
        raise UsageError(f"{table}: the rows {', '.join(rows)} have one name, {twice}; a fleet's adapters differ.")
