"""Examples on pages of their own, worst first: one file per split and task beside report.html.

A page has a fixed number of examples at most, so that it opens in a moment; it needs no network, no
script and no other file.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

from meerkat_jax.data.example import TASKS
from meerkat_jax.evaluation.benchmark import Answered, judge
from meerkat_jax.report import tables
from meerkat_jax.report.cards import Shown, card

PER_PAGE = 8  # examples; each has about 300 kB of images and sound
FOLDER = "examples"
_FRAME = Path(__file__).with_name("page.html")
_STYLE = Path(__file__).with_name("report.css")
# What ranks answers that are all wrong, or all right; where nothing does, they keep their order.
_GRADES = {
    "arig": ("mean_iou",),
    "igatl": ("segment_f1", "event_f1"),
    "avc": ("seen_right", "heard_right"),
}


class Page(NamedTuple):
    """A page that was written: its place relative to the report, and how many examples of all."""

    split: str
    task: str
    path: str
    shown: int
    total: int


def choose_worst(
    answered: Sequence[Answered],
    names: Collection[str],
    per_task: int = PER_PAGE,
    chances: Sequence[float | None] | None = None,
) -> list[int]:
    """Numbers of the worst answers of each split and task, the worst first.

    Wrong ones come before right ones, then those of the lower score. With `chances`, each answer's
    probability of True (`observed.chances_of`), verdicts are ordered by the probability that the
    model gave to the right one: what it is most certain of and wrong about comes first.
    """
    groups: dict[tuple[str, int], list[tuple[tuple, int]]] = defaultdict(list)
    for number, record in enumerate(answered):
        key = record.split, TASKS.index(record.question.task)
        chance = chances[number] if chances else None
        groups[key].append((_grade(record, names, chance), number))
    splits = {record.split: None for record in answered}  # in the order that they came
    order = itertools.product(splits, range(len(TASKS)))
    return [n for key in order for _, n in sorted(groups.get(key, []))[:per_task]]


def _grade(record: Answered, names: Collection[str], chance: float | None) -> tuple:
    found = judge(record, names)
    if chance is not None:
        scores = (chance if record.question.truth["answer"] else 1 - chance,)
    else:
        scores = tuple(found.scores.get(key, 0.0) for key in _GRADES.get(record.question.task, ()))
    return bool(found.right), *scores


def write_pages(
    folder: Path,
    examples: Sequence[Shown],
    totals: Mapping[str, int],
    names: Collection[str],
    per_page: int = PER_PAGE,
) -> list[Page]:
    """Write `folder`/examples/<split>-<task>.html for each split and task of `examples`.

    The examples keep their order; no page has more than `per_page`. `totals` tells how many there
    are of each "<split>/<task>", `names` are the class names to look for in answers.
    """
    groups: dict[tuple[str, str], list[Shown]] = defaultdict(list)
    for shown in examples:
        groups[shown.answered.split, shown.answered.question.task].append(shown)
    pages = []
    for (split, task), some in groups.items():
        path = f"{FOLDER}/{split.replace('/', '-')}-{task}.html"
        total = totals.get(f"{split}/{task}", len(some))
        pages.append(Page(split, task, path, min(len(some), per_page), total))
    (Path(folder) / FOLDER).mkdir(exist_ok=True)
    frame = Template(_FRAME.read_text(encoding="utf-8"))
    for place, (page, some) in enumerate(zip(pages, groups.values(), strict=True)):
        near = [pages[i] for i in (place - 1, place + 1) if 0 <= i < len(pages)]
        text = frame.substitute(
            style=style(),
            title=escape(title(page)),
            lead=f"The worst {page.shown} of {page.total} answers, the worst first.",
            links="".join(f'<a href="{Path(n.path).name}">{escape(title(n))}</a>' for n in near),
            cards="".join(card(shown, frozenset(names)) for shown in some[:per_page]),
        )
        write_page(Path(folder) / page.path, text)
    return pages


def title(page: Page) -> str:
    """In words: "New compositions: Point at what sounds"."""
    split = tables.split_words(page.split)[0]
    return f"{split}: {tables.TASK_NAMES.get(page.task, page.task)}"


def links(pages: Sequence[Page]) -> str:
    """A list of links to pages, from the report."""
    items = (
        f'<li><a href="{escape(page.path)}">{escape(title(page))}</a> '
        f"<small>{page.shown} of {page.total}</small></li>"
        for page in pages
    )
    return f'<ul class="pages">{"".join(items)}</ul>'


def style() -> str:
    """The style sheet of the report and of the pages."""
    return _STYLE.read_text(encoding="utf-8")


def write_page(path: Path, text: str) -> Path:
    """Write a page whole or not at all; returns its path."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
    return path
