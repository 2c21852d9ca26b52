"""The numbers that NeMo 3.0.0's `scoring_and_analysis.py` gave for a table of fine-tunings, with its own constants."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

import pytest

from overtone import cli
from overtone.evaluation.nemo_scores import FROZEN, TableSettings, add_scores, rank, read_table

GIVEN = """\
Model,Group,Frozen Module,Train Steps,Learning Rate,WER: Test,WER: Librispeech Test Other
conformer,irish_english_male,encoder,1000,0.001,19.6,8.301
conformer,midlands_english_female,encoder,1000,0.001,8.63,6.713
conformer,scottish_english_male,encoder,1000,0.001,8.042,5.823
conformer,irish_english_male,encoder,1000,0.0001,13.169,4.458
conformer,midlands_english_female,encoder,1000,0.0001,8.201,5.553
conformer,scottish_english_male,encoder,1000,0.0001,11.776,4.343
conformer,irish_english_male,encoder,5000,0.001,21.562,7.587
conformer,midlands_english_female,encoder,5000,0.001,10.134,8.601
conformer,scottish_english_male,encoder,5000,0.001,12.417,7.003
conformer,irish_english_male,encoder,5000,0.0001,10.508,7.844
conformer,midlands_english_female,encoder,5000,0.0001,5.797,5.617
conformer,scottish_english_male,encoder,5000,0.0001,10.721,6.743
conformer,irish_english_male,-,1000,0.001,15.481,8.813
conformer,midlands_english_female,-,1000,0.001,8.336,5.825
conformer,scottish_english_male,-,1000,0.001,7.78,8.426
conformer,irish_english_male,-,1000,0.0001,16.269,8.03
conformer,midlands_english_female,-,1000,0.0001,6.835,5.105
conformer,scottish_english_male,-,1000,0.0001,9.802,8.202
conformer,irish_english_male,-,5000,0.001,12.472,8.076
conformer,midlands_english_female,-,5000,0.001,10.122,8.148
conformer,scottish_english_male,-,5000,0.001,11.872,4.156
conformer,irish_english_male,-,5000,0.0001,18.149,8.431
conformer,midlands_english_female,-,5000,0.0001,5.094,5.475
conformer,scottish_english_male,-,5000,0.0001,7.895,6.754
"""

WRITTEN_BY_NEMO = """\
Group,Frozen Module,Train Steps,Learning Rate,WER: Test,WER: Librispeech Test Other,Original Scale,Adapt WERR,Score
irish_english_male,encoder,1000,0.001,19.6,8.301,0.0,0.0527,0.0
midlands_english_female,encoder,1000,0.001,8.63,6.713,0.4683,0.1022,0.0478
scottish_english_male,encoder,1000,0.001,8.042,5.823,0.765,0.3266,0.2498
irish_english_male,encoder,1000,0.0001,13.169,4.458,0.78,0.3635,0.2835
midlands_english_female,encoder,1000,0.0001,8.201,5.553,0.855,0.1468,0.1255
scottish_english_male,encoder,1000,0.0001,11.776,4.343,0.7417,0.0139,0.0103
irish_english_male,encoder,5000,0.001,21.562,7.587,0.177,0.0,0.0
midlands_english_female,encoder,5000,0.001,10.134,8.601,0.0,0.0,0.0
scottish_english_male,encoder,5000,0.001,12.417,7.003,0.3717,0.0,0.0
irish_english_male,encoder,5000,0.0001,10.508,7.844,0.0913,0.4921,0.0449
midlands_english_female,encoder,5000,0.0001,5.797,5.617,0.8337,0.3969,0.3309
scottish_english_male,encoder,5000,0.0001,10.721,6.743,0.4583,0.1022,0.0469
irish_english_male,null,1000,0.001,15.481,8.813,0.0,0.2518,0.0
midlands_english_female,null,1000,0.001,8.336,5.825,0.7643,0.1328,0.1015
scottish_english_male,null,1000,0.001,7.78,8.426,0.0,0.3485,0.0
irish_english_male,null,1000,0.0001,16.269,8.03,0.0293,0.2137,0.0063
midlands_english_female,null,1000,0.0001,6.835,5.105,0.9957,0.2889,0.2877
scottish_english_male,null,1000,0.0001,9.802,8.202,0.0,0.1792,0.0
irish_english_male,null,5000,0.001,12.472,8.076,0.014,0.3972,0.0056
midlands_english_female,null,5000,0.001,10.122,8.148,0.0,0.0,0.0
scottish_english_male,null,5000,0.001,11.872,4.156,0.6793,0.0059,0.004
irish_english_male,null,5000,0.0001,18.149,8.431,0.0,0.1228,0.0
midlands_english_female,null,5000,0.0001,5.094,5.475,0.881,0.47,0.4141
scottish_english_male,null,5000,0.0001,7.895,6.754,0.4547,0.3389,0.1541
"""

CONSTRAINED_BY_NEMO = {
    "encoder": [
        ("5000", "0.0001", 0.1409),
        ("1000", "0.0001", 0.13976666666666665),
        ("1000", "0.001", 0.0992),
        ("5000", "0.001", 0.0),
    ],
    "null": [
        ("5000", "0.0001", 0.1894),
        ("1000", "0.0001", 0.09799999999999999),
        ("1000", "0.001", 0.03383333333333333),
        ("5000", "0.001", 0.0032),
    ],
}
UNCONSTRAINED_BY_NEMO = {
    "encoder": [
        ("5000", "0.0001", 9.008666666666667, 6.734666666666667),
        ("1000", "0.0001", 11.048666666666668, 4.784666666666666),
        ("1000", "0.001", 12.09066666666667, 6.945666666666667),
        ("5000", "0.001", 14.704333333333333, 7.730333333333334),
    ],
    "null": [
        ("5000", "0.0001", 10.379333333333333, 6.886666666666666),
        ("1000", "0.001", 10.532333333333334, 7.688),
        ("1000", "0.0001", 10.968666666666666, 7.112333333333333),
        ("5000", "0.001", 11.488666666666667, 6.793333333333333),
    ],
}
BASES = {"irish_english_male": 20.69, "midlands_english_female": 9.612, "scottish_english_male": 11.942}
SETTINGS = TableSettings(
    group="Group",
    base_original=5.118,
    base_adapted=BASES,
    category=FROZEN,
    hyperparameters=("Train Steps", "Learning Rate"),
)


def test_the_file_is_that_of_nemo(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(GIVEN)
    bases = [word for group, rate in BASES.items() for word in ("--base-adapted", f"{group}={rate}")]
    words = ["scores", str(path), "--nemo-compat", "--dataset-type-column", "Group", "--base-original", "5.118"]
    assert cli.main([*words, *bases, "-ft"]) == 0
    assert list(csv.reader(path.open())) == list(csv.reader(StringIO(WRITTEN_BY_NEMO)))


def test_the_ranking_is_that_of_nemo(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(GIVEN)
    rows = read_table(path, SETTINGS)
    add_scores(rows, SETTINGS)
    for by, theirs in (("score", CONSTRAINED_BY_NEMO), ("test", UNCONSTRAINED_BY_NEMO)):
        ours = rank(rows, SETTINGS, by=by)
        assert list(ours) == list(theirs)
        for category, means in ours.items():
            found = [(*each.hyperparameters, each.score) for each in means]
            if by == "test":
                found = [(*each.hyperparameters, each.test, each.original) for each in means]
            assert [each[:2] for each in found] == [each[:2] for each in theirs[category]]
            for mine, other in zip(found, theirs[category], strict=True):
                assert mine[2:] == pytest.approx(other[2:], rel=1e-12)
