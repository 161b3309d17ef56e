"""Statistics as tables and bars in HTML, without scripts; all text from data is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from meerkat_jax.data.statistics import CLAIMS, GRID, TWICE, Statistics

MOST_CLASSES = 40
MOST_BARS = 20


def statistics_html(found: Statistics, ids: Mapping[int, str], manifest: Mapping[str, Any]) -> str:
    """All tables. `ids` names the records that `found.repeats` tells of, by their number."""
    return "".join(
        (
            "<h3>Questions</h3>",
            _table(
                ("Kind", "Questions", "In records"),
                [(kind, n, found.holding[kind]) for kind, n in sorted(found.kinds.items())],
            ),
            "<h3>True and False</h3>",
            _balance("Kind", found.verdicts),
            *_claims(found),
            '<h3>Classes</h3><div class="charts">',
            _bars(f"Seen, {_of(found.image_labels)}", found.image_labels.most_common(MOST_CLASSES)),
            _bars(
                f"Heard, {_of(found.audio_labels)}", found.audio_labels.most_common(MOST_CLASSES)
            ),
            '</div><h3>Boxes</h3><div class="charts">',
            _bars("Distinct boxes of a record", sorted(found.boxes_each.items())),
            histogram("Size, per cent of the image", found.areas, step=5),
            _places(found),
            '</div><h3>Sounds and times</h3><div class="charts">',
            histogram("Length of sounds, seconds", found.seconds),
            _bars("Segments of a question", sorted(found.segments.items())),
            histogram("Length of segments, seconds", found.lengths),
            histogram("Length of claimed intervals, seconds", found.intervals),
            "</div>",
            _unread(found.unread),
            '<h3>Texts</h3><div class="charts">',
            histogram("Instructions, characters", found.instructions),
            histogram("Responses, characters", found.responses),
            "</div>",
            _table(
                ("Text", "All", "Distinct"),
                [
                    (f"{what}s", sum(found.kinds.values()), found.distinct(what))
                    for what in ("instruction", "response")
                ],
            ),
            "<h3>More than once</h3>",
            _table(
                ("The same", "Distinct", "Repeated records", "The most frequent"),
                [_repeats_row(found, what, ids) for what in TWICE],
            ),
            "<h3>Left out by the build, and noted</h3>",
            left_out(manifest),
        )
    )


def left_out(manifest: Mapping[str, Any]) -> str:
    """What the manifest tells of skips and drops, and of media that were changed."""
    skipped = manifest.get("skipped")
    if skipped is None and "dropped" not in manifest:
        return '<p class="note">The manifest does not tell of any.</p>'
    rows = [
        (f"skipped {what}", reason, count)
        for what, reasons in (skipped or {}).items()
        for reason, count in reasons.items()
    ]
    for what in ("dropped", "noted"):
        rows += [(what, why, count) for why, count in (manifest.get(what) or {}).items()]
    return _table(("What", "Why", "Count"), rows)


def histogram(title: str, counts: Mapping[float, int], step: float | None = None) -> str:
    """Bars of numbers counted by value, in stretches of `step` (default: at most MOST_BARS)."""
    if not counts:
        return _bars(title, [])
    low, high = min(counts), max(counts)
    sizes = (size * 10.0**power for power in range(-1, 12) for size in (1, 2, 5))
    step = step or next(size for size in sizes if (high - low) / size < MOST_BARS - 1)
    binned: Counter[int] = Counter()
    for value, count in counts.items():
        binned[int(np.floor(value / step + 1e-6))] += count
    rows = [
        (f"{number * step:g} to {(number + 1) * step:g}", binned[number])
        for number in range(min(binned), max(binned) + 1)
    ]
    mean = sum(value * count for value, count in counts.items()) / sum(counts.values())
    return _bars(title, rows, f"mean {mean:.4g}, {low:g} to {high:g}")


def _bars(title: str, rows: Iterable[tuple[Any, int]], note: str = "") -> str:
    rows = list(rows)
    largest = max((count for _, count in rows), default=0) or 1
    drawn = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{count}</td><td class="long"><div '
        f'class="meter"><span style="width:{100 * count / largest:.1f}%"></span></div></td></tr>'
        for name, count in rows
    )
    drawn = f'<table class="bars">{drawn}</table>' if rows else '<p class="note">none</p>'
    note = f'<p class="fine">{escape(note)}</p>' if note else ""
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{note}{drawn}</figure>'


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    rows = list(rows)
    if not rows:
        return '<p class="note">none</p>'
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(
        f'<tr><th scope="row">{escape(str(first))}</th>'
        + "".join(f"<td>{escape(str(value))}</td>" for value in rest)
        + "</tr>"
        for first, *rest in rows
    )
    head = f"<thead><tr>{titles}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'


def _balance(title: str, counts: Mapping[tuple[str, bool], int], most: int | None = None) -> str:
    """One row for each name, the most frequent first where they are cut to `most`."""
    totals = Counter()
    for (name, _), count in counts.items():
        totals[name] += count
    rows = []
    for name, total in totals.most_common(most) if most else sorted(totals.items()):
        true = counts.get((name, True), 0)
        rows.append((name, true, total - true, f"{true / total:.0%}"))
    return _table((title, "True", "False", "Share of True"), rows)


def _claims(found: Statistics) -> list[str]:
    parts = []
    for task in CLAIMS:
        counts = {(name, said): n for (t, name, said), n in found.claims.items() if t == task}
        if counts:
            total = len({name for name, _ in counts})
            parts.append(
                f"<details><summary>{task} by class <span>{total} classes</span></summary>"
                f"{_balance('Class', counts, MOST_CLASSES)}</details>"
            )
    return parts


def _places(found: Statistics) -> str:
    largest = found.places.max() or 1
    cells = "".join(
        f'<rect x="{x}" y="{y}" width="1" height="1" fill-opacity="{share:.3f}"><title>'
        f"{found.places[y, x] / max(found.boxes, 1):.0%} of boxes</title></rect>"
        for (y, x), share in np.ndenumerate(found.places / largest)
    )
    note = f"{found.boxes} boxes; the darkest cell lies in {largest / max(found.boxes, 1):.0%}"
    return (
        '<figure class="chart"><figcaption>Places of boxes in the image</figcaption>'
        f'<p class="fine">{note if found.boxes else "no boxes"}</p>'
        f'<svg class="places" viewBox="0 0 {GRID} {GRID}" role="img" '
        f'aria-label="Map of the places of boxes">{cells}</svg></figure>'
    )


def _repeats_row(found: Statistics, what: str, ids: Mapping[int, str]) -> tuple:
    repeats = found.repeats(what)
    told = "; ".join(f"{ids.get(number, number)}: {count} times" for number, count in repeats.most)
    return what, repeats.distinct, repeats.extra, told


def _unread(count: int) -> str:
    return f'<p class="note">{count} sounds cannot be opened.</p>' if count else ""


def _of(counts: Counter) -> str:
    if len(counts) <= MOST_CLASSES:
        return f"all {len(counts)} classes"
    return f"{MOST_CLASSES} of {len(counts)} classes"
