"""The table over seeds."""

from __future__ import annotations

import json

import pytest

from parlai_safety.errors import SafetyError
from parlai_safety.evaluation.seeds import learning_table, results_table


def run(tmp_path, seed, rate, name="base", data="x"):
    system = {"name": name, "unsafe_rate": rate, "unsafe_interval": None if rate is None else [0.1, 0.9], "n": 10}
    system |= {"unscored": 0, "perplexity": 20.0 + seed, "f1": 0.1, "distinct_2": 0.5, "canned_rate": 0.0}
    system |= {"seconds": 5.0, "extra": {"unsafe_rate_by_labeller": 0.5}}
    folder = tmp_path / str(seed)
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"seed": seed, "data": {"files": data}, "systems": [system]}))
    return folder


def test_rows_and_mean(tmp_path):
    """Mean of 20 %, 40 %: 30 %; t interval with one degree of freedom: 30 -+ 12.706 * 14.142 / sqrt(2) = 127.1."""
    table = results_table([run(tmp_path, 1, 0.2), run(tmp_path, 2, 0.4)])
    lines = table.splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| base | 1 | 20.0 % [10.0 %, 90.0 %] | 50.0 % | 10 | 0 | 21.0 | 0.100 |")
    assert "**30.0 % [-97.1, 157.1]**" in lines[4] and "| 20 |" in lines[4] and "21.5 [" in lines[4]


def test_differences_are_within_a_seed(tmp_path):
    """30 - 20 and 52 - 40 points: 11 -+ 12.706 * 1.414 / sqrt(2) = 12.7; the spread over seeds falls out."""
    folders = [run(tmp_path, 1, 0.2), run(tmp_path, 2, 0.4)]
    for folder, rate in zip(folders, (0.3, 0.52), strict=True):
        report = json.loads((folder / "report.json").read_text())
        report["systems"].append({**report["systems"][0], "name": "worse", "unsafe_rate": rate})
        (folder / "report.json").write_text(json.dumps(report))
    lines = results_table(folders, against="base").splitlines()
    assert lines[0].endswith("| against base, points |") and lines[0].count("|") == lines[1].count("|")
    assert [line.count("|") for line in lines] == [lines[0].count("|")] * 8
    assert lines[5].endswith("| 10.0 |") and lines[6].endswith("| 12.0 |")
    assert lines[7].endswith("| 11.0 [-1.7, 23.7] |")
    short = results_table(folders, against="base", means=True).splitlines()
    assert short[2:] == [lines[4], lines[7]]
    with pytest.raises(SafetyError, match="--against got 'bose'.*Did you mean 'base'"):
        results_table(folders, against="bose")


def test_an_unscored_run_makes_no_mean(tmp_path):
    table = results_table([run(tmp_path, 1, 0.2), run(tmp_path, 2, None)])
    assert "unscored in some run" in table.splitlines()[4]


def test_different_systems_and_missing_reports_are_refused(tmp_path):
    with pytest.raises(SafetyError, match="the first one"):
        results_table([run(tmp_path, 1, 0.2), run(tmp_path, 2, 0.2, name="other")])
    with pytest.raises(SafetyError, match="different data"):
        results_table([run(tmp_path, 3, 0.2), run(tmp_path, 4, 0.2, data="y")])
    with pytest.raises(SafetyError, match="seeds \\[1, 1\\]"):
        results_table([tmp_path / "1", tmp_path / "1"])
    (tmp_path / "4" / "report.json").write_text('{"seed": 4, "data": {"files": "x", "recipe": "b"}, "systems": []}')
    with pytest.raises(SafetyError, match="'.*report.json' is no report of ours"):
        (tmp_path / "1" / "report.json").write_text("[")
        results_table([tmp_path / "1"])
    with pytest.raises(SafetyError, match="no report.json"):
        results_table([tmp_path / "none"])


def test_measures_of_the_talk_have_columns_where_a_run_has_them(tmp_path):
    """Evasive in 10 % and 30 %: 20 %, t interval 20 -+ 12.706 * 14.142 / sqrt(2) = 127.1."""
    folders = [run(tmp_path, 1, 0.2), run(tmp_path, 2, 0.4)]
    for folder, evasive in zip(folders, (0.1, 0.3), strict=True):
        report = json.loads((folder / "report.json").read_text())
        report["systems"][0]["extra"] |= {"evasive": evasive, "coherence": 0.5}
        (folder / "report.json").write_text(json.dumps(report))
    lines = results_table(folders, against="base").splitlines()
    assert lines[0].endswith("| seconds | evasive | coherence | against base, points |")
    assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert lines[2].endswith("| 10.0 % | 0.500 | 0.0 |")
    assert lines[4].endswith("| 20.0 % [-107.1, 147.1] | 0.500 [0.500, 0.500] | 0.0 [0.0, 0.0] |")


def test_how_preference_losses_learned(tmp_path):
    """Drifts of -1 and -2 nats: -1.5, t interval -1.5 -+ 12.706 * 0.7071 / sqrt(2) = 6.35; others have no row."""
    folders = [run(tmp_path, 1, 0.2), run(tmp_path, 2, 0.4)]
    with pytest.raises(SafetyError, match="record of a preference loss"):
        learning_table(folders)
    for folder, drift in zip(folders, (-1.0, -2.0), strict=True):
        report = json.loads((folder / "report.json").read_text())
        learned = {"updates": 100, "chosen_drift": drift, "rewards_accuracies": 0.75}
        report["systems"].append({**report["systems"][0], "name": "DPO", "extra": learned})
        (folder / "report.json").write_text(json.dumps(report))
    lines = learning_table(folders).splitlines()
    assert len(lines) == 3 and {line.count("|") for line in lines} == {8}
    assert lines[2].startswith("| DPO | 100 [100, 100] | -1.50 [-7.85, 4.85] | n/a | 75.0 % [75.0, 75.0] |")
