"""The table over an ablation's arms and seeds."""

from __future__ import annotations

import json

import pytest

from experiments.ablations.summary import ROWS, collect, table


def write(folder, arm, seed, score):
    entries = {}
    for tasks, metric in ROWS.values():
        for task in tasks:
            entries.setdefault(f"compositions/{task}", {})[metric] = score
    (folder / f"{arm}-{seed}").mkdir()
    (folder / f"{arm}-{seed}" / "benchmark.json").write_text(json.dumps(entries))


def test_cells_are_mean_lowest_and_highest_over_the_seeds(tmp_path):
    for seed, score in enumerate((0.2, 0.4, 0.9)):
        write(tmp_path, "full", seed, score)
        write(tmp_path, "no_avace", seed, 0.1)
    lines = table(collect(tmp_path)).splitlines()
    assert lines[0] == "| compositions | full | no_avace |"
    assert len(lines) == 2 + len(ROWS)
    assert all(line.endswith("| 0.500 (0.20-0.90) | 0.100 (0.10-0.10) |") for line in lines[2:])


def test_arms_with_different_seeds_are_not_compared(tmp_path):
    write(tmp_path, "full", 0, 0.5)
    write(tmp_path, "no_avace", 1, 0.5)
    with pytest.raises(ValueError, match="different seeds"):
        collect(tmp_path)


def test_a_folder_without_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluate first"):
        collect(tmp_path)
