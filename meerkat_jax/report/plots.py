"""Figures of the diagnostics as inline SVG: histogram, reliability diagram, confusion matrix."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from meerkat_jax.evaluation.confusion import NOTHING
from meerkat_jax.report.charts import axes, figure, label, legend, placer, polyline, ticks

UNIT = (0.0, 0.25, 0.5, 0.75, 1.0)
COUNTED = 0.25  # of a reliability diagram's height, that of the fullest bin's bar
MOST_CLASSES = 40
OTHER = "another name"
CELL, MARGIN = 15, 112  # of a confusion matrix


def histogram(title: str, edges: Sequence[float], counts: Mapping[str, Sequence[int]]) -> str:
    """Outlines of several counts int[n] over the same bins with edges float[n + 1]."""
    x_ticks = ticks(edges[0], edges[-1])
    y_ticks = ticks(0, max(max(some) for some in counts.values()))
    place = placer(x_ticks, y_ticks)
    parts = axes(place, x_ticks, y_ticks)
    for number, (name, some) in enumerate(counts.items()):
        bins = zip(itertools.pairwise(edges), some, strict=True)
        corners = [(x, n) for bounds, n in bins for x in bounds]
        outline = [(edges[0], 0), *corners, (edges[-1], 0)]
        parts.append(polyline(name, [place(*corner) for corner in outline], number))
    summary = "; ".join(f"{name}: {sum(some)} in all" for name, some in counts.items())
    return figure(title, parts, summary, legend(counts))


def reliability_diagram(title: str, bins: Sequence[Mapping[str, Any]]) -> str:
    """How often claims are true over how probable the model finds them.

    `bins` as of `calibration.reliability`; the diagonal is calibration, bars at the foot and sizes
    of dots tell how many claims are in a bin.
    """
    place = placer(UNIT, UNIT)
    largest = max(one["n"] for one in bins) or 1
    parts = axes(place, UNIT, UNIT)
    for one in bins:
        (x0, y0), (x1, y1) = place(one["low"], 0), place(one["high"], COUNTED * one["n"] / largest)
        parts.append(
            f'<rect class="count" x="{x0 + 1:.1f}" y="{y1:.1f}" width="{x1 - x0 - 2:.1f}" '
            f'height="{y0 - y1:.1f}"><title>{one["n"]} claims</title></rect>'
        )
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    parts.append(f'<line class="even" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')
    known = [(one["chance"], one["true"], one["n"]) for one in bins if one["n"]]
    for p, true, n in known:
        (x, y), size = place(p, true), 2 + 4 * (n / largest) ** 0.5  # few claims, a small dot
        words = f"{n} claims: probability {p:.2f}, true {true:.2f}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" style="fill:var(--line0)">'
            f"<title>{words}</title></circle>"
        )
    summary = "; ".join(f"{n} at {p:.2f}: {true:.2f} true" for p, true, n in known)
    return figure(title, parts, summary)


def confusion_matrix(title: str, counts: Mapping[str, Mapping[str, int]]) -> str:
    """Rows are true classes, columns the names that were said, colours shares of a row.

    Of more than MOST_CLASSES classes those with the most mistakes are drawn.
    """
    wrong = {true: sum(said.values()) - said.get(true, 0) for true, said in counts.items()}
    rows = sorted(sorted(counts, key=lambda true: -wrong[true])[:MOST_CLASSES])
    columns = [*rows, OTHER, NOTHING]
    width, height = MARGIN + CELL * len(columns), MARGIN + CELL * len(rows)
    parts = []
    for row, true in enumerate(rows):
        y = MARGIN + CELL * row
        parts.append(label(MARGIN - 4, y + CELL - 4, escape(true), "end"))
        parts.append(f'<line class="grid" x1="{MARGIN}" y1="{y}" x2="{width}" y2="{y}"/>')
        total, grouped = sum(counts[true].values()), Counter()
        for said, n in counts[true].items():
            grouped[said if said in columns else OTHER] += n
        parts += [
            _cell(MARGIN + CELL * columns.index(said), y, true, said, n, total)
            for said, n in grouped.items()
        ]
    for column, said in enumerate(columns):
        x = MARGIN + CELL * column + CELL - 4
        parts.append(f'<g transform="rotate(-90 {x} {MARGIN - 4})">')
        parts.append(label(x, MARGIN - 4, escape(said), "start") + "</g>")
    some = f", the {len(rows)} of {len(counts)} with the most mistakes" * (len(rows) < len(counts))
    return (
        f'<figure class="matrix"><figcaption>{escape(title + some)}</figcaption>'
        f'<div class="scroll"><svg width="{width}" height="{height}" role="img" '
        f'aria-label="Confusion matrix of {len(rows)} classes">{"".join(parts)}</svg>'
        "</div></figure>"
    )


def _cell(x: int, y: int, true: str, said: str, n: int, total: int) -> str:
    kind = "same" if true == said else "other"
    words = escape(f"{true} named {said}: {n} of {total}")
    return (
        f'<rect class="{kind}" x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}" '
        f'style="fill-opacity:{0.15 + 0.85 * n / total:.2f}"><title>{words}</title></rect>'
    )
