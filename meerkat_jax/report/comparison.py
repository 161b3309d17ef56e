"""The paper's own results beside ours, and whether the two can be compared.

paper.json beside this file holds what is known of the paper's results (arXiv 2407.01851), each with
where it is from, the score of benchmark.json that is nearest to it, and a plain statement: is the
metric the same, is the test set the same, and why not. Values there are in per cent, and so is what
stands beside them here. The mini data set is no part of the paper: its scores have no place here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from meerkat_jax.report.tables import TASK_NAMES

ABSENT = "not on disk"  # of a benchmark that was not scored
NO_SCORE = "no such score"
_FILE = Path(__file__).with_name("paper.json")


class Row(NamedTuple):
    """One result of the paper; `ours` in per cent or None, of `n` samples.

    other: name and value of the best other generalist that the paper lists, or None.
    """

    benchmark: str
    task: str
    metric: str
    paper: float
    other: tuple[str, float] | None
    ours: float | None
    n: int | None
    missing: str
    same_metric: str
    same_test: str
    why: str
    source: str


def paper() -> dict[str, Any]:
    """What paper.json holds."""
    return json.loads(_FILE.read_text(encoding="utf-8"))


def rows(benchmark: Mapping[str, Any]) -> list[Row]:
    """Every known result of the paper beside that of `benchmark` (benchmark.json's content)."""
    return [_row(one, benchmark) for one in paper()["rows"]]


def _row(one: Mapping[str, Any], benchmark: Mapping[str, Any]) -> Row:
    place, other = one["ours"], one["other"]
    entry = benchmark.get(place["entry"]) if place else None
    score = entry.get(place["score"]) if entry else None
    return Row(
        benchmark=one["benchmark"],
        task=one["task"],
        metric=one["metric"],
        paper=one["value"],
        other=other and (other["name"], other["value"]),
        ours=None if score is None else 100 * score,
        n=entry.get("n") if entry else None,
        missing=ABSENT if place and not entry else NO_SCORE,
        same_metric=one["same_metric"],
        same_test=one["same_test"],
        why=one["why"],
        source=one["source"],
    )


def text(benchmark: Mapping[str, Any]) -> str:
    """The rows as a table for a terminal, in per cent."""
    lines = [f"{'':<36}paper  best other       ours", ""]
    for row in rows(benchmark):
        other = f"{row.other[1]:.2f} {row.other[0]}" if row.other else ""
        ours = row.missing if row.ours is None else f"{row.ours:.2f} (n {row.n})"
        lines.append(f"{f'{row.benchmark}, {row.metric}':<36}{row.paper:.2f}  {other:<15}  {ours}")
        lines.append(
            f"    same metric: {row.same_metric}; same test set: {row.same_test}. {row.why}"
        )
    return "\n".join([*lines, ""])


def section(benchmark: Mapping[str, Any]) -> str:
    """The rows as HTML."""
    known = paper()
    head = ("Benchmark", "Paper", "Best other generalist", "Ours")
    head += ("Same metric", "Same test set", "What differs")
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    body = "".join(map(_html, rows(benchmark)))
    sources = "; ".join(f"{_MARKS[name]} {words}" for name, words in known["sources"].items())
    return (
        f"<p>{escape(known['paper'])}. Its model: {escape(known['model'])}. Only a model of that "
        "size, trained on that data, can be expected to reach these numbers. The scenes of the "
        "mini data set are no part of the paper's benchmarks: scores on them cannot be compared "
        "with any number here. All numbers are per cent.</p>"
        f'<div class="scroll"><table class="paper"><thead><tr>{titles}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="fine">Sources: {escape(sources)}.</p>'
    )


_MARKS = {"authors": "*", "elsewhere": "†"}


def _html(row: Row) -> str:
    other = f"{row.other[1]:.2f} <small>{escape(row.other[0])}</small>" if row.other else "–"
    ours = f'<span class="note">{row.missing}</span>'
    if row.ours is not None:
        ours = f"<b>{row.ours:.2f}</b> <small>n {row.n}</small>"
    cells = (f"{row.paper:.2f}{_MARKS[row.source]}", other, ours)
    cells += tuple(map(escape, (row.same_metric, row.same_test, row.why)))
    return (
        f'<tr><th scope="row">{escape(row.benchmark)}, {escape(row.metric)}'
        f"<small>{escape(TASK_NAMES[row.task])}</small></th>"
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )
