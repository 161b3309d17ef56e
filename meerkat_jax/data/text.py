"""The one place where boxes and times become text and are read back from it.

Text form of the paper (its section on grounding instructions): a box is
`[label, x0, y0, x1, y1]` with corners in 0..1 and three decimals, a stretch of sound is
`[label, start, end]` in seconds with one decimal. Writing is strict; reading is tolerant, because a
model's slip in punctuation says nothing about where it points: what can be understood is mended and
counted, so that a score can say how often that was needed. Reading works on numbers found by a
regular expression; nothing is ever evaluated.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from meerkat_jax.data.example import Box, Question, Segment
from meerkat_jax.errors import UserError

BOX_DECIMALS = 3
TIME_DECIMALS = 1
# How far outside its range a number may lie and still be taken for a slip: beyond this it is
# something else (pixels for a box, say), and guessing would invent an answer.
BOX_SLACK = 0.1
TIME_SLACK = 1.0

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?!\w)")
_BETWEEN = re.compile(r"\s*(?:[,;–-]|to\b)\s*|\s+")
_CLOSED = re.compile(r"\s*\]")
_BREAKS = re.compile(r"[\[\](){}.?!:;,\n]")
_VERDICT = re.compile(r"\b(true|false)\b", re.IGNORECASE)

Item = TypeVar("Item", Box, Segment)


@dataclasses.dataclass(frozen=True)
class Parsed(Generic[Item]):
    """What a text holds, in its order; `mended` of the items were not in the exact form."""

    items: tuple[Item, ...]
    mended: int


def write_box(box: Box) -> str:
    """`[dog, 0.123, 0.250, 0.500, 0.750]`; UserError if that would not read back as `box`."""
    return _written(
        box, (box.x0, box.y0, box.x1, box.y1), BOX_DECIMALS, parse_boxes, parse_segments
    )


def write_segment(segment: Segment) -> str:
    """`[dog, 1.2, 3.4]` in seconds; UserError if that would not read back as `segment`."""
    numbers = segment.start, segment.end
    return _written(segment, numbers, TIME_DECIMALS, parse_segments, parse_boxes)


def parse_boxes(text: str) -> Parsed[Box]:
    """Every box in `text`, corners ordered and within 0..1; never raises."""
    return _parse(text, 4, _mend_box)


def parse_segments(text: str, seconds: float = math.inf) -> Parsed[Segment]:
    """Every stretch of time in `text`, ordered and within 0..`seconds`; never raises."""
    return _parse(text, 2, lambda label, numbers: _mend_segment(label, numbers, seconds))


def parse_verdict(text: str) -> bool | None:
    """The last word True or False in `text`, in any case; None when it has neither."""
    verdicts = _VERDICT.findall(text)
    return verdicts[-1].lower() == "true" if verdicts else None


def with_verdict(text: str, value: bool) -> str | None:
    """The text with its last True or False replaced by `value`; None when it has neither."""
    verdicts = [*_VERDICT.finditer(text)]
    return (
        f"{text[: verdicts[-1].start()]}{value}{text[verdicts[-1].end() :]}" if verdicts else None
    )


def check_response(question: Question) -> None:
    """Raise UserError unless the response reads back as the question's boxes and segments."""
    boxes, segments = parse_boxes(question.response), parse_segments(question.response)
    for name, parsed, wanted, decimals in (
        ("boxes", boxes, question.boxes, BOX_DECIMALS),
        ("segments", segments, question.segments, TIME_DECIMALS),
    ):
        same = len(parsed.items) == len(wanted) and not parsed.mended
        if not same or not all(map(_close, parsed.items, wanted, [decimals] * len(wanted))):
            raise UserError(
                f"{question.task} response {question.response!r} reads back as {name} "
                f"{parsed.items} ({parsed.mended} mended), expected {wanted}; write it with "
                "write_box and write_segment"
            )


def _written(
    item: Item, numbers: tuple[float, ...], decimals: int, parse: Callable, parse_other: Callable
) -> str:
    # "z" writes -0.0004 as 0.000: a minus sign would have to be mended.
    fields = ", ".join(f"{number:z.{decimals}f}" for number in numbers)
    text = f"[{item.label}, {fields}]"
    parsed = parse(text)
    good = len(parsed.items) == 1 and not parsed.mended
    good = good and _close(parsed.items[0], item, decimals)
    if not good or parse_other(text).items:  # a label with numbers of its own can be both
        raise UserError(
            f"{item} cannot be written: {text!r} reads back as {parsed.items}; the label must be "
            "plain words without brackets and numbers, the numbers finite, in order and in range"
        )
    return text


def _close(a: Item, b: Item, decimals: int) -> bool:
    """Same label, and numbers equal up to rounding to `decimals`."""
    (label, *xs), (other, *ys) = dataclasses.astuple(a), dataclasses.astuple(b)
    tolerance = 0.5 * 10.0**-decimals + 1e-9
    return label == other and all(abs(x - y) <= tolerance for x, y in zip(xs, ys, strict=True))


def _parse(text: str, count: int, mend: Callable[[str, list[float]], Item | None]) -> Parsed[Item]:
    items, mended = [], 0
    for label, numbers, exact in _candidates(text, count):
        item = mend(label, numbers)
        if item is not None:
            items.append(item)
            mended += not exact or [*dataclasses.astuple(item)][1:] != numbers
    return Parsed(tuple(items), mended)


def _candidates(text: str, count: int) -> Iterator[tuple[str, list[float], bool]]:
    """Label, `count` numbers and whether the text has the exact form, for each run of numbers."""
    floor = 0
    for run in _runs(text):
        label_end, end = run[0].start(), run[-1].end()
        opening = text.rfind("[", floor, label_end)
        bracketed = opening > text.rfind("]", floor, label_end)
        if bracketed and len(run) == count + 1 and _is_label(text[opening + 1 : label_end]):
            label_end, run = run[0].end(), run[1:]  # a label that ends in a number: "Boeing 747"
        if len(run) != count or not (bracketed or any("." in n[0] for n in run)):
            continue
        label = _label(text[opening + 1 if bracketed else floor : label_end])
        label = label if bracketed else _BREAKS.split(label)[-1].strip()
        floor = end
        closed = _CLOSED.match(text, end)
        source = text[opening : closed.end()] if bracketed and closed else ""
        exact = bool(label) and source == f"[{label}, {', '.join(n[0] for n in run)}]"
        yield label, [float(n[0]) for n in run], exact


def _runs(text: str) -> Iterator[list[re.Match[str]]]:
    """Numbers of `text`, grouped where only a separator stands between them."""
    run: list[re.Match[str]] = []
    for number in _NUMBER.finditer(text):
        if run and not _BETWEEN.fullmatch(text, run[-1].end(), number.start()):
            yield run
            run = []
        run.append(number)
    if run:
        yield run


def _is_label(before: str) -> bool:
    """Whether a number after `before` still belongs to the label: no separator lies between."""
    return not before.rstrip().endswith((",", ";", ":"))


def _label(text: str) -> str:
    text = text.rstrip(",;: \t\n").strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1].strip() if quoted else text


def _mend_box(label: str, numbers: list[float]) -> Box | None:
    if not all(-BOX_SLACK <= number <= 1 + BOX_SLACK for number in numbers):
        return None
    x0, y0, x1, y1 = (min(max(number, 0.0), 1.0) for number in numbers)
    return Box(label, min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))


def _mend_segment(label: str, numbers: list[float], seconds: float) -> Segment | None:
    if not all(-TIME_SLACK <= n <= seconds + TIME_SLACK and n < math.inf for n in numbers):
        return None
    start, end = sorted(min(max(number, 0.0), seconds) for number in numbers)
    return Segment(label, start, end)
