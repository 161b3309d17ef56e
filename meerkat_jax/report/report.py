"""One self-contained HTML page: scores, diagnostics, the paper's table, curves, examples.

The page opens without network (a content security policy forbids any) and without scripts. Its
frame and style are in report.html and report.css beside this file; all text that comes from data is
escaped. More examples are on pages of their own (pages.py), which it links to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from meerkat_jax.core.config import dotted
from meerkat_jax.data.example import TASKS
from meerkat_jax.evaluation.benchmark import class_names
from meerkat_jax.report import charts, comparison, diagnostics_text, tables
from meerkat_jax.report.cards import Shown, card
from meerkat_jax.report.pages import Page, links, style, write_page

_FRAME = Path(__file__).with_name("report.html")
_NO_DIAGNOSTICS = '<p class="note">None were made.</p>'


def write_report(
    path: str | os.PathLike[str],
    benchmark: Mapping[str, Any],
    metrics_rows: Iterable[Mapping[str, Any]],
    examples: Sequence[Shown],
    config: Mapping[str, Any],
    notes: Sequence[str] = (),
    names: Iterable[str] = (),
    diagnostics: Mapping[str, Any] | None = None,
    pages: Sequence[Page] = (),
) -> Path:
    """Write the page to `path` and return it.

    `benchmark` is benchmark.json's content, `metrics_rows` those of metrics.jsonl, `notes` lines on
    how the scores came about (command, seed, date, machine), `names` class names to look for in
    answers beside those in the examples' truths, `diagnostics` what `diagnose` found by split,
    `pages` what `pages.write_pages` wrote beside it.
    """
    known = class_names([shown.answered for shown in examples]) | set(names)
    text = Template(_FRAME.read_text(encoding="utf-8")).substitute(
        style=style(),
        overview=tables.overview(benchmark),
        splits=_split_list(benchmark),
        details=tables.details(benchmark),
        diagnostics=diagnostics_text.section(diagnostics or {}) or _NO_DIAGNOSTICS,
        comparison=comparison.section(benchmark),
        curves=_curves(metrics_rows),
        pages=_pages(pages),
        examples=_examples(examples, known),
        notes="".join(f"<li>{escape(str(note))}</li>" for note in notes),
        config=_config(config),
    )
    return write_page(Path(path), text)


def _split_list(benchmark: Mapping[str, Any]) -> str:
    words = [tables.split_words(split) for split in tables.by_split(benchmark)]
    return "".join(f"<dt>{escape(t)}</dt><dd>{escape(w)}</dd>" for t, w in words)


def _curves(rows: Iterable[Mapping[str, Any]]) -> str:
    losses, scores = charts.panels(charts.series(rows))
    parts = []
    if losses:
        drawn = "".join(charts.line_chart(title, lines) for title, lines in losses.items())
        parts.append(f'<h3>Losses by training step</h3><div class="charts">{drawn}</div>')
    if scores:
        titles = [tables.TASK_NAMES.get(task, task.capitalize()) for task in scores]
        drawn = "".join(
            charts.line_chart(*panel, True) for panel in zip(titles, scores.values(), strict=True)
        )
        parts.append(f'<h3>Scores by training step</h3><div class="charts">{drawn}</div>')
    return "".join(parts) or '<p class="note">No curves were recorded.</p>'


def _examples(examples: Sequence[Shown], names: frozenset[str]) -> str:
    if not examples:
        return '<p class="note">No examples were kept.</p>'
    parts = []
    for task in TASKS:
        cards = [card(s, names) for s in examples if s.answered.question.task == task]
        if cards:
            title = tables.TASK_NAMES[task]
            parts.append(f'<h3 id="task-{task}">{escape(title)}</h3>{"".join(cards)}')
    return "".join(parts)


def _pages(pages: Sequence[Page]) -> str:
    return f"<p>The worst of each task, worst first:</p>{links(pages)}" if pages else ""


def _config(config: Mapping[str, Any]) -> str:
    return "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(str(value))}</td></tr>'
        for key, value in dotted(config).items()
    )
