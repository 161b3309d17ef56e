"""Line charts of the training curves as inline SVG that follows the page's colours.

Not by matplotlib: its SVG has fixed colours and no <title> per mark, so dark mode and tooltips need
as much code again to rewrite its XML; a chart takes 20 KB instead of 3, and the core needs no such
package.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from meerkat_jax.data.example import TASKS

# The page's style sheet gives --line0 to --line5 (Okabe and Ito's colours, lighter in the dark);
# the dashes repeat the difference for eyes that see few colours.
COLOURS = 6
DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 3", "4 2")
MAX_POINTS = 200
WIDE = 5  # times the median distance of neighbouring points
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 340, 190, 44, 26, 10, 20
LOSSES = {
    "loss": "Total loss",
    "loss/language": "Answers in words alone (cross-entropy)",
    "loss/answer": "Answer tokens (cross-entropy)",
    "loss/avopt": "AVOpT: distance of sound and image",
    "loss/avace": "AVACE: attention outside the box",
    "loss/image_names": "Image against class names",
    "loss/audio_names": "Sound against class names",
}

HELD_OUT = "eval/"  # what begins the keys of rows that training does not learn from

Series = dict[str, list[tuple[float, float]]]


def series(rows: Iterable[Mapping[str, Any]]) -> Series:
    """Every finite number of the rows over its row's `step`; nested keys are joined by "/"."""
    found: Series = defaultdict(list)
    for row in rows:
        step = row.get("step")
        if not _is_number(step):
            continue
        for key, value in flatten_dict(row, sep="/").items():
            if key != "step" and _is_number(value):
                found[key].append((float(step), float(value)))
    return dict(found)


def panels(found: Series) -> tuple[dict[str, Series], dict[str, Series]]:
    """Charts of losses (one term each) and of scores (one task each): title -> lines.

    A loss has a line for training and one for what training does not learn from. What is neither
    (learning rate, speed, ...) is left out.
    """
    losses: dict[str, Series] = defaultdict(dict)
    scores: dict[str, Series] = defaultdict(dict)
    for key, points in found.items():
        lower = key.lower()
        task = next((t for t in TASKS if t in lower), None)
        held_out = key.startswith(HELD_OUT)
        if "loss" in lower:
            term = key.removeprefix(HELD_OUT)
            losses[LOSSES.get(term, term)]["new compositions" if held_out else "training"] = points
        elif task or lower.startswith(("score", "eval")) or "accuracy" in lower:
            line = _without(key, task) + held_out * ", new compositions"
            scores[task or "all tasks"][line] = points
    return dict(losses), dict(scores)


def line_chart(title: str, lines: Series, unit_range: bool = False) -> str:
    """One chart with axes; `unit_range` fixes the y axis to 0..1. Several lines are named."""
    lines = {name: _thinned(points) for name, points in lines.items() if points}
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    if not xs:
        return ""
    x_ticks = ticks(0, max(xs))
    y_ticks = [0, 0.25, 0.5, 0.75, 1] if unit_range else ticks(min(0, *ys), max(ys))
    place = placer(x_ticks, y_ticks)
    parts = axes(place, x_ticks, y_ticks)
    parts += [
        polyline(name, [place(x, y) for x, y in stretch], i)
        for i, (name, points) in enumerate(lines.items())
        for stretch in _stretches(points)
    ]
    summary = "; ".join(f"{n} ends at {p[-1][1]:.3g}" for n, p in lines.items())
    return figure(title, parts, summary, legend(lines) if unit_range or len(lines) > 1 else "")


def figure(title: str, parts: Iterable[str], summary: str, below: str = "") -> str:
    """A chart of SVG `parts` under its title; `summary` for who cannot see it, `below` HTML."""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(summary)}">'
        f"{''.join(parts)}</svg>{below}</figure>"
    )


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that cover low..high, at most `most` + 1 of them."""
    if high - low < 1e-12 * max(abs(high), 1e-300):
        high = low + 1
    rough = (high - low) / (most - 1)
    magnitude = 10 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10, 20) if m * magnitude >= rough * 0.999999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _is_number(value: object) -> bool:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return numeric and math.isfinite(value)


def _without(key: str, task: str | None) -> str:
    parts = [p for p in key.split("/") if p not in (task, "score", "scores", "eval")]
    return " ".join(parts).replace("_", " ") or key


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Means of neighbouring points, so that no line has more than MAX_POINTS."""
    points = sorted(points)
    groups = np.array_split(np.array(points), min(len(points), MAX_POINTS))
    return [tuple(group.mean(0).tolist()) for group in groups]


def _stretches(points: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The points in parts, broken at wide gaps: a phase between did not measure this."""
    steps = np.diff([x for x, _ in points])
    breaks = np.flatnonzero(steps > WIDE * np.median(steps)) + 1 if len(steps) else []
    bounds = [0, *breaks, len(points)]
    return [points[i:j] for i, j in itertools.pairwise(bounds)]


def placer(x_ticks: Sequence[float], y_ticks: Sequence[float]):
    """`place(x, y)` -> where in the chart that is, the ticks reaching from end to end."""

    def place(x: float, y: float) -> tuple[float, float]:
        u = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        v = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + u * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - v * (HEIGHT - BOTTOM - TOP)

    return place


def axes(place, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> list[str]:
    """A line and a number for each of `y_ticks`, numbers for `x_ticks`."""
    below = [label(place(x, y_ticks[0])[0], HEIGHT - 8, _short(x), "middle") for x in x_ticks]
    return [_grid_line(place, x_ticks, y) for y in y_ticks] + below


def _grid_line(place, x_ticks: Sequence[float], y: float) -> str:
    (x0, y0), (x1, _) = place(x_ticks[0], y), place(x_ticks[-1], y)
    line = f'<line class="grid" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y0:.1f}"/>'
    return line + label(LEFT - 6, y0 + 4, _short(y), "end")


def label(x: float, y: float, text: str, anchor: str) -> str:
    """Text of a chart; `anchor` "start", "middle" or "end" is at x."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def polyline(name: str, points: Sequence[tuple[float, float]], index: int) -> str:
    """The `index`-th line of a chart through places; a single one is a dot."""
    colour, dash = _style(index)
    if len(points) == 1:
        (x, y) = points[0]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:{colour}"/>'
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<polyline points="{path}" style="stroke:{colour};stroke-dasharray:{dash}">'
        f"<title>{escape(name)}</title></polyline>"
    )


def _style(index: int) -> tuple[str, str]:
    """Colour and dash of a line; each round through the colours shifts the dashes by one."""
    dash = DASHES[(index + index // COLOURS) % len(DASHES)]
    return f"var(--line{index % COLOURS})", dash or "none"


def legend(lines: Iterable[str]) -> str:
    """The names of a chart's lines, each with its colour and dashes."""
    return f'<ul class="legend">{"".join(itertools.starmap(_key, enumerate(lines)))}</ul>'


def _key(index: int, name: str) -> str:
    colour, dash = _style(index)
    return (
        '<li><svg width="26" height="8" aria-hidden="true"><line x1="0" y1="4" x2="26" y2="4" '
        f'style="stroke:{colour};stroke-dasharray:{dash}"/></svg>{escape(name)}</li>'
    )


def _short(value: float) -> str:
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    return f"{value:.4g}"
