"""A table over arms and seeds from the benchmark.json files of an ablation, as Markdown.

    python experiments/ablations/summary.py runs/alignment

Reads `<folder>/<arm>-<seed>/benchmark.json`. Each cell is the mean over the seeds, and in brackets
the lowest and the highest: with three seeds those say more than a deviation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

SPLIT = "compositions"
ROWS = {  # title: the entries of benchmark.json whose mean it is, and their metric
    "ARIG: cIoU": (("arig",), "ciou"),
    "ARIG: mean IoU": (("arig",), "mean_iou"),
    "IGATL: segment F1": (("igatl",), "segment_f1"),
    "AVFact, mean of types": (("avfact1", "avfact2", "avfact3", "avfact4"), "accuracy"),
    "AVQA, which": (("avqa/which",), "accuracy"),
    "AVQA, where": (("avqa/where",), "accuracy"),
    "AVQA, exists": (("avqa/exists",), "accuracy"),
    "AVQA, heard and seen": (("avqa/heard_and_seen",), "accuracy"),
    "AVC: names right": (("avc",), "names_right"),
}


def collect(folder: Path) -> dict[str, dict[str, dict]]:
    """arm -> seed -> benchmark, of all runs in the folder.

    Raises FileNotFoundError when there is none, ValueError when arms have different seeds.
    """
    runs: dict[str, dict[str, dict]] = {}
    for path in sorted(folder.glob("*-*/benchmark.json")):
        arm, _, seed = path.parent.name.rpartition("-")
        runs.setdefault(arm, {})[seed] = json.loads(path.read_text())
    if not runs:
        raise FileNotFoundError(f"{folder}: no <arm>-<seed>/benchmark.json in it; evaluate first")
    seeds = {arm: sorted(of) for arm, of in runs.items()}
    if len(set(map(tuple, seeds.values()))) > 1:
        raise ValueError(f"{folder}: the arms have different seeds: {seeds}")
    return runs


def cell(benchmarks: Sequence[dict], tasks: Sequence[str], metric: str) -> str:
    """Mean, lowest and highest over the seeds of the mean over the tasks: "0.512 (0.49-0.53)"."""
    values = [
        sum(benchmark[f"{SPLIT}/{task}"][metric] for task in tasks) / len(tasks)
        for benchmark in benchmarks
    ]
    return f"{sum(values) / len(values):.3f} ({min(values):.2f}-{max(values):.2f})"


def table(runs: dict[str, dict[str, dict]]) -> str:
    """The arms side by side."""
    lines = [f"| {SPLIT} | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for title, (tasks, metric) in ROWS.items():
        cells = [cell(list(seeds.values()), tasks, metric) for seeds in runs.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        print(table(collect(Path(sys.argv[1]))))
    except (IndexError, OSError, ValueError) as error:
        sys.exit(f"{error or 'no folder given'}\n{__doc__}")
