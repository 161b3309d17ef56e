"""Boxes as annotations write them: conventions, order, rounding; and what can be written of them.

Four numbers mean one of these (`FORMS`), in 0 to 1 of the image, or in pixels of a known size:

    xyxy      x0, y0, x1, y1      left, top, right, bottom
    xywh      x, y, w, h          left, top, width, height (COCO)
    cxcywh    cx, cy, w, h        middle, width, height (YOLO)
    thousand  x0, y0, x1, y1      0 to 1000 of width and height (Qwen-VL)

The same numbers can be a box in several of them, so nothing is put right here: corners out of order
or outside are a fault, and its message guesses what the numbers may be. `Tally` guesses for a whole
file, in which a single box tells what all of them are. (A model's answers are another thing: they
are in one form that is asked for, and a slip in them is mended and counted; see `data/text.py`.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box, Segment
from meerkat_jax.data.sources.reading import number, shown
from meerkat_jax.data.sources.skips import RowError
from meerkat_jax.data.text import BOX_DECIMALS, vanishes, write_box, write_segment

# How far outside the image a corner may lie and still be rounding: one step of the decimals that
# are written, as a share of the side. 1.0000001 is, and 640.01 of 640.
ROUNDING = 10.0**-BOX_DECIMALS
ROUNDED = "box with a corner put onto the border"  # how it is counted
FORMS = {
    "xyxy": lambda a, b, c, d: (a, b, c, d),
    "xywh": lambda a, b, c, d: (a, b, a + c, b + d),
    "cxcywh": lambda a, b, c, d: (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
    "thousand": lambda a, b, c, d: (a, b, c, d),
}
MISREAD = ("box outside the image", "corners out of order")  # why numbers may be of another form
MEANINGS = {
    "xyxy": "x0, y0, x1, y1",
    "xywh": "x, y, width, height (form xywh)",
    "cxcywh": "middle, width, height (form cxcywh)",
}
# So many boxes of a file that all fit another form do so by no accident: of corners one in four
# does.
LEAST = 8

Item = TypeVar("Item", Box, Segment)


def corners(
    values: Sequence[Any],
    width: float = 1.0,
    height: float = 1.0,
    slack: float = 0.0,
    form: str = "xyxy",
    noted: Counter[str] | None = None,
) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) in 0..1 of a box in pixels of an image `width` x `height`.

    Args:
        values: four numbers, as `FORMS[form]` has them.
        width: of the image; 1 where the numbers are 0 to 1 already, unused for "thousand".
        height: likewise.
        slack: pixels by which a data set's corners are known to lie outside; `ROUNDING` of the side
            may do so everywhere. Such a corner is put onto the border.
        form: a key of `FORMS`.
        noted: counts the boxes with such a corner (ROUNDED).

    Raises Bad for corners out of order, outside the image, or without an area between them.
    """
    if not isinstance(values, list | tuple) or len(values) != 4:
        raise RowError("a box has not four numbers", shown(values))
    raw = tuple(number(value, "box corner") for value in values)
    if form == "thousand":
        width, height = 1000.0, 1000.0

    def bad(reason: str, more: str = "") -> RowError:
        return RowError(reason, f"{list(values)} of {width:g} x {height:g}{more}")

    x0, y0, x1, y1 = FORMS[form](*raw)
    across, down = max(slack, ROUNDING * width), max(slack, ROUNDING * height)
    if not all(-across <= x <= width + across for x in (x0, x1)) or not all(
        -down <= y <= height + down for y in (y0, y1)
    ):
        raise bad(MISREAD[0], _guess(raw, width, height, form))
    if x1 < x0 or y1 < y0:
        raise bad(MISREAD[1], _guess(raw, width, height, form))
    outside = min(x0, y0) < 0 or x1 > width or y1 > height
    x0, x1 = (min(max(x, 0.0), width) / width for x in (x0, x1))
    y0, y1 = (min(max(y, 0.0), height) / height for y in (y0, y1))
    if x1 <= x0 or y1 <= y0:
        raise bad("box without an area")
    if max(raw) <= 1 < min(width, height):
        raise bad("box within the first pixel", "; are the numbers 0 to 1?")
    if noted is not None and outside:
        noted[ROUNDED] += 1
    return x0, y0, x1, y1


def fits(raw: Sequence[float], form: str, width: float = 1.0, height: float = 1.0) -> bool:
    """Whether four numbers are a box inside the image when they are read as `form`."""
    x0, y0, x1, y1 = FORMS[form](*raw)
    over = ROUNDING * width, ROUNDING * height
    inside = min(x0 + over[0], y0 + over[1], width + over[0] - x1, height + over[1] - y1) >= 0
    return inside and x0 < x1 and y0 < y1


def _guess(raw: Sequence[float], width: float, height: float, form: str) -> str:
    """What numbers that are no box as `form` may be, for a message; "" when nothing fits."""
    if form == "thousand":
        return ""
    others = [other for other in MEANINGS if other != form]
    likely = [MEANINGS[other] for other in others if fits(raw, other, width, height)]
    a, b, c, d = raw
    if fits((a, c, b, d), "xyxy", width, height):
        likely.append("x0, x1, y0, y1, to be brought into order")
    if width == height == 1 and max(raw) > 1 + ROUNDING and min(raw) >= 0:
        if max(raw) <= 1000 * (1 + ROUNDING):
            likely.append("0 to 1000 (form thousand)")
        likely.append("pixels (pixels and size)")
    return f"; perhaps {' or '.join(likely)}" if likely else ""


class Tally:
    """How many boxes of a file fit which form, where none is told.

    `odd` is the first that is none as corners: where it stands, and its numbers. `noted` counts
    what was rounded.
    """

    def __init__(self, noted: Counter[str] | None = None) -> None:
        self.noted = Counter() if noted is None else noted
        self.count, self.odd = 0, ""
        self.fitting: Counter[str] = Counter()

    def add(self, values: Sequence[float], width: float, height: float, where: str) -> None:
        """Count one box without a form."""
        found = [form for form in MEANINGS if fits(values, form, width, height)]
        if "xyxy" in found and not any(values[:2]):  # the same in other forms: it tells nothing
            return
        self.count += 1
        self.fitting.update(found)
        if not self.odd and "xyxy" not in found:
            self.odd = f"{where} is {list(values)}"

    def others(self) -> str:
        """The forms beside corners that every box fits, for a message; "" when there is none."""
        return " or ".join(
            meaning
            for form, meaning in MEANINGS.items()
            if form != "xyxy" and 0 < self.fitting[form] == self.count
        )


def written(item: Item) -> Item:
    """`item`, when it reads back from the text that is written of it; RowError otherwise.

    That is when its label is plain words ("1, 2" is none), and something is left of it when its
    numbers are rounded.
    """
    decimals = "three decimals" if isinstance(item, Box) else "tenths of a second"
    if vanishes(item):
        numbers = [*vars(item).values()][1:]
        raise RowError(f"nothing is left of it in {decimals}", f"{item.label[:80]!r} {numbers}")
    try:
        write_box(item) if isinstance(item, Box) else write_segment(item)
    except UserError:
        raise RowError("label cannot be written in an answer", f"{item.label[:80]!r}") from None
    return item
