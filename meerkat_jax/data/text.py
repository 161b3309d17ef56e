"""The one place where boxes and times become text and are read back from it.

Text form of the paper (its section on grounding instructions): a box is
`[label, x0, y0, x1, y1]` with corners in 0..1 and three decimals, a stretch of sound is
`[label, start, end]` in seconds with one decimal. Writing is strict; reading is tolerant, because a
model's slip in punctuation says nothing about where it points: what can be understood is mended and
counted, so that a score can say how often that was needed. Annotations are not read with this
tolerance: there a swapped corner is a fault (`sources/boxes.py`).

What is read, beside the exact form: missing or other brackets and separators, points in brackets of
their own (`(x0, y0), (x1, y1)`), swapped corners or ends, numbers with a Unicode minus or an
exponent, `s` or `seconds` and `m:ss` of a time, `%` of a place. What could mean several things is
not read at all: pixels, 0 to 1000, decimal commas, units that are not known. Labels may hold commas
and digits ("rock 2.0", "T-34"), but none of their parts behind a comma begins with a number, so no
number that could not be read ends in a label. Every reading takes time in proportion to the text,
and nothing is ever evaluated.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box, Question, Segment

BOX_DECIMALS = 3
TIME_DECIMALS = 1
# How far outside its range a number may lie and still be taken for a slip: beyond this it is
# something else (pixels for a box, say), and guessing would invent an answer.
BOX_SLACK = 0.1
TIME_SLACK = 1.0
LONGEST_LABEL = 500  # characters

_TOKEN = re.compile(
    r"""
    (?P<bracket> [\[\]] )
    | (?<! [\w.] ) (?<! \d: ) (?<! \d[eE][-+−] )  # amid a word or a number none begins
    # A longer dash is a sign behind a separator alone: "1.2 –3.4" is a range.
    (?P<sign> [-+−﹣－] | (?: (?<=[\[(,;:]) | (?<=[\[(,;:]\s) ) [‐-―] )?
    (?:
        (?P<clock> [0-9]{1,3} (?: :[0-5][0-9] ){1,2}+ (?: \.[0-9]++ )? )
        | (?P<plain>
            (?: [0-9]++ (?: \.[0-9]++ | \. (?= \s*+ [,;\])] ) )? | \.[0-9]++ )
            (?: [eE] [-+−]? [0-9]{1,3} )?
        )
    )
    (?P<unit> \s? (?: s | secs? | seconds? | % ) )?
    (?! \w | \.\w | :[0-9] )
    """,
    re.VERBOSE,
)
# What may stand between two numbers of one item, white space left out.
_MARKS = ("", ",", ";", "-", "–", "—", "−", "to")
_BETWEEN = {f"{end}{mark}{begin}" for mark in _MARKS for end, begin in (("", ""), ")(", "}{")}
_BETWEEN_BRACKETS = {f"]{mark}[" for mark in _MARKS}
_CLOSED = re.compile(r"\s*\]")
_BREAKS = re.compile(r"[\[\](){}.?!:;,\n]")
_PLAIN = re.compile(r"-?[0-9]*\.?[0-9]+")
# Fractions and raised digits, which are no decimal digits, begin a number too ("½", "²").
_DIGIT = r"[\d¼-¾⅐-↉²³¹⁰-₉]"
# Numbers that could not be read: at the beginning of a label, behind a comma in it, at its end
# where no bracket tells where it begins, and behind an item. Then a mark of a number that is read.
_STRAY = re.compile(rf"^\W*[0-9]*[.:][0-9]|(?:[,;]|:\s)\s*[^\w\s]?\.?{_DIGIT}")
_STRAY_END = re.compile(rf"(?:(?<!\w){_DIGIT}|{_DIGIT}[./:]|[./:]{_DIGIT})\S*$")
_STRAY_MEASURE = re.compile(rf"\W*{_DIGIT}\S*\s*(?:s|secs?|seconds?|%)?")
_NO_WORD = re.compile(r"\W+|s|secs?|seconds?")  # a sign or a unit that is left of a number
_STRAY_NEXT = re.compile(rf"\s*[,;/]\s*[^\w\s]?\.?{_DIGIT}")
_STRAY_MARK = re.compile(r"[,;][^\w,;]*[^\w\s,;:(\[{][\s(\[{]*$")

Item = TypeVar("Item", Box, Segment)


@dataclasses.dataclass(frozen=True)
class Parsed(Generic[Item]):
    """What a text holds, in its order; `mended` of the items were not in the exact form."""

    items: tuple[Item, ...]
    mended: int


def write_box(box: Box) -> str:
    """`[dog, 0.123, 0.250, 0.500, 0.750]`; UserError if it would not read back."""
    return _written(
        box, (box.x0, box.y0, box.x1, box.y1), BOX_DECIMALS, parse_boxes, parse_segments
    )


def write_segment(segment: Segment) -> str:
    """`[dog, 1.2, 3.4]` in seconds; UserError if it would not read back."""
    numbers = segment.start, segment.end
    return _written(segment, numbers, TIME_DECIMALS, parse_segments, parse_boxes)


def parse_boxes(text: str) -> Parsed[Box]:
    """Every box in `text`, corners ordered and within 0..1; never raises."""
    return _parse(text, Box, _mend_box)


def parse_segments(text: str, seconds: float = math.inf) -> Parsed[Segment]:
    """Every stretch of time in `text`, ordered and within 0..`seconds`; never raises."""
    return _parse(text, Segment, lambda label, numbers: _mend_segment(label, numbers, seconds))


def vanishes(item: Box | Segment) -> bool:
    """Whether no extent is left of a box or a stretch when its numbers are written."""
    if isinstance(item, Segment):
        return _fixed(item.start, TIME_DECIMALS) == _fixed(item.end, TIME_DECIMALS)
    x0, y0, x1, y1 = (_fixed(n, BOX_DECIMALS) for n in (item.x0, item.y0, item.x1, item.y1))
    return x0 == x1 or y0 == y1


def find_segments(text: str) -> Iterator[tuple[str, float, float]]:
    """(label, first, second number) of every stretch of time in `text`, not put in order."""
    return ((label, *numbers) for label, numbers, _ in _candidates(text, Segment))


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


def _fixed(number: float, decimals: int) -> str:
    # "z" writes -0.0004 as 0.000: a minus sign would have to be mended.
    return f"{number:z.{decimals}f}"


def _written(
    item: Item, numbers: tuple[float, ...], decimals: int, parse: Callable, parse_other: Callable
) -> str:
    text = f"[{item.label}, {', '.join(_fixed(number, decimals) for number in numbers)}]"
    if vanishes(item):
        raise UserError(f"{item} cannot be written: nothing is left of it in {text!r}")
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


def _parse(
    text: str, kind: type[Item], mend: Callable[[str, list[float]], Item | None]
) -> Parsed[Item]:
    items, mended = [], 0
    for label, numbers, exact in _candidates(text, kind):
        item = mend(label, numbers)
        if item is not None:
            items.append(item)
            mended += not exact or [*dataclasses.astuple(item)][1:] != numbers
    return Parsed(tuple(items), mended)


def _candidates(text: str, kind: type) -> Iterator[tuple[str, list[float], bool]]:
    """Label, numbers and whether the text has the exact form, of what may be a `kind`."""
    count, floor = len(dataclasses.fields(kind)) - 1, 0
    for numbers, openings in _runs(text):
        if len(numbers) not in (count, count + 1):
            continue
        label_end = numbers[0].start()
        opening = _opening(text, openings, floor, label_end)
        if len(numbers) == count + 1:
            if opening < 0 or not _is_label(text[opening + 1 : label_end]):
                continue
            label_end, numbers = numbers[0].end(), numbers[1:]  # a label "Boeing 747"
        if opening < 0 and not any(map(_is_measure, numbers)):
            continue
        label = _read_label(text, opening, floor, label_end)
        end = numbers[-1].end()
        if (
            label is None
            or _STRAY_NEXT.match(text, end)
            or not all(_fits(n, kind) for n in numbers)
        ):
            continue
        floor = end
        closed = _CLOSED.match(text, end)
        source = text[opening : closed.end()] if opening >= 0 and closed else ""
        exact = bool(label) and all(_PLAIN.fullmatch(n[0]) for n in numbers)
        exact = exact and source == f"[{label}, {', '.join(n[0] for n in numbers)}]"
        yield label, [_value(n) for n in numbers], exact


class _Run(NamedTuple):
    """Numbers with separators alone between them, and the two last brackets that opened before.

    A bracket is -1 where there is none, or one was closed since.
    """

    numbers: list[re.Match[str]]
    openings: tuple[int, int]


def _runs(text: str) -> Iterator[_Run]:
    """Numbers of `text`, grouped."""
    run, openings = None, (-1, -1)
    for token in _TOKEN.finditer(text):
        if token["bracket"]:
            openings = (openings[1], token.start()) if token[0] == "[" else (-1, -1)
            continue
        if run and _joined(text, run, token.start()):
            run.numbers.append(token)
            continue
        if run:
            yield run
        run = _Run([token], openings)
    if run:
        yield run


def _joined(text: str, run: _Run, start: int) -> bool:
    """Whether the number at `start` goes on with `run`."""
    end = run.numbers[-1].end()
    between = "".join(text[end:start].split()).lower()
    if between in _BETWEEN_BRACKETS:  # points of one thing, if what is around them has its label
        outer, opening = run.openings
        near = outer >= 0 and opening - outer <= LONGEST_LABEL
        return near and bool(_label(text[outer + 1 : opening]))
    return start > end and between in _BETWEEN


def _opening(text: str, openings: tuple[int, int], floor: int, end: int) -> int:
    """The bracket that the item of a run begins with, -1 for none: the last one with a label."""
    there = [one for one in reversed(openings) if one >= floor and end - one <= LONGEST_LABEL]
    return next((one for one in there if _label(text[one + 1 : end])), there[0] if there else -1)


def _is_label(before: str) -> bool:
    """Whether a number after `before` still belongs to the label: no separator lies between."""
    return not before.rstrip(" \t\n([{").endswith((",", ";", ":"))


def _is_measure(number: re.Match[str]) -> bool:
    """Whether a number is more than a count, so that it may be meant without a bracket."""
    return bool(number["clock"] or number["unit"] or "." in number[0])


def _fits(number: re.Match[str], kind: type) -> bool:
    """Whether a number may be of a place (Box) or of a time (Segment), by its unit."""
    unit = (number["unit"] or "").strip()
    return unit in ("", "%") and not number["clock"] if kind is Box else unit != "%"


def _value(number: re.Match[str]) -> float:
    if number["clock"]:
        value = 0.0
        for part in number["clock"].split(":"):
            value = 60 * value + float(part)
    else:
        value = float(number["plain"].replace("−", "-"))
    value = value / 100 if (number["unit"] or "").strip() == "%" else value
    return value if number["sign"] in (None, "+") else -value


def _read_label(text: str, opening: int, floor: int, end: int) -> str | None:
    """The label in front of `end`; None when a number stands in it that could not be read."""
    if opening >= 0:
        before = text[opening + 1 : end]
        label = _label(before)
        return None if _STRAY.search(label) or _STRAY_MARK.search(before) else label
    before = _label(re.split(r"[\[\]\n]", text[max(floor, end - LONGEST_LABEL) : end])[-1])
    label = _BREAKS.split(before)[-1].strip()
    stray = _STRAY_END.search(before) or _STRAY_MEASURE.fullmatch(label)
    return None if stray or _NO_WORD.fullmatch(label) else label


def _label(text: str) -> str:
    text = text.rstrip(" \t\n([{") if text.rstrip().endswith(("(", "[", "{")) else text
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
