"""What AVFIT's published answers mean, data set by data set, and our questions made of them.

The conventions are those of the authors' loader (github.com/schowdhury671/meerkat,
preprocess_data_supervised.py); `avfit.py` tells where the rows come from and what is not confirmed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from meerkat_jax.data.example import Box, Question, Segment
from meerkat_jax.data.sources import asking
from meerkat_jax.data.sources.boxes import corners, written
from meerkat_jax.data.sources.entry import generator
from meerkat_jax.data.sources.reading import (
    interval,
    member,
    number,
    shown,
    words,
)
from meerkat_jax.data.sources.skips import RowError
from meerkat_jax.data.text import find_segments
from meerkat_jax.data.verdict import parse_verdict, with_verdict


class Convention(NamedTuple):
    """A data set's task, and how it writes a box.

    order: of the raw numbers, where x0 x1 y0 y1 stand; pixels: raw numbers are pixels of `dim`, not
    0 to 1; written: what 1 is in `[<label>,x0,y0,x1,y1]`, the loader's own form; sounds: the folder
    of a pair's sounds, "" when picture and sound are of one video.
    """

    task: str
    order: str = ""
    pixels: bool = False
    written: float = 1.0
    audio_set: str = ""


SETS = {
    "avsbench": Convention("arig", "xxyy", pixels=True),
    "vggss": Convention("arig", "xyxy"),
    "soundnet": Convention("arig", "xyxy", pixels=True, written=224),
    "pascal": Convention("arig", "xxyy", pixels=True, written=224),
    "openimages": Convention("arig", "xxyy", audio_set="audioset_sreyan"),
    "vggsound": Convention("arig", "xxyy", audio_set="vggsound"),
    "llp": Convention("igatl"),
    "audioset_temporal": Convention("igatl", audio_set="audioset_temporal"),
    "multimodal_factchecking_type1": Convention("avfact1", audio_set="audioset_sreyan"),
    "multimodal_factchecking_type2": Convention("avfact2", audio_set="audioset_temporal"),
    "multimodal_factchecking_type3": Convention("avfact3", audio_set="audioset_temporal"),
    "multimodal_factchecking_type4": Convention("avfact4", audio_set="audioset_temporal"),
    "avqa": Convention("avqa"),
    "music_avqa": Convention("avqa"),
    "valor": Convention("avc"),
}

_NUMBER = r"\s*([-+.0-9eE]+)\s*"
_LABELLED = re.compile(rf"\[([^\[\]]*?),{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_LEADING = re.compile(r"\W*(true\b|false\b|(?:yes|no)(?=[.,:;!]|$))[\s.,:;!-]*", re.IGNORECASE)
_TRAILING = re.compile(r"[\s.,:;-]*\b(true|false)\W*$", re.IGNORECASE)


class ParsedAnswer(NamedTuple):
    """What one row says. `answer` is a verdict, a word or a caption; None for grounding."""

    task: str
    data_set: str
    instruction: str
    response: str = ""
    boxes: tuple[Box, ...] = ()
    segments: tuple[Segment, ...] = ()
    answer: bool | str | None = None
    sizes: tuple[tuple[float, float], ...] = ()  # of the picture that pixels are of


def read_answer(
    data_set: str, row: Any, label: str, noted: Counter[str] | None = None
) -> ParsedAnswer:
    """The row of a `data` list; `label` is that of its key, "" if there is none.

    `noted` counts boxes that were rounded.
    """
    answer = member(row, "answer")
    question = row.get("question")
    instruction = words(question, "question") if question not in (None, "") else ""
    task = SETS[data_set].task
    if task == "arig":
        boxes, sizes = _boxes(_box_set(data_set, row), row, answer, label, noted)
        return ParsedAnswer(task, data_set, instruction, boxes=boxes, sizes=sizes)
    if task == "igatl":
        return ParsedAnswer(task, data_set, instruction, segments=_segments(row, answer, label))
    if task == "avc":
        return ParsedAnswer(task, data_set, instruction, answer=words(answer, "answer"))
    if not instruction:
        raise RowError("question is empty", f"answer {shown(answer)}")
    if task == "avqa":
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = f"{number(answer, 'answer'):g}"
        answer = words(answer, "answer")
        return ParsedAnswer(task, data_set, instruction, answer, answer=answer)
    value, response = _verdict(answer)
    return ParsedAnswer(task, data_set, instruction, response, answer=value)


def _box_set(data_set: str, row: Mapping[str, Any]) -> str:
    """The data set whose order of numbers a row has: the one it names itself, or its key's."""
    own = row.get("dataset", data_set)
    if not isinstance(own, str) or own not in SETS or not SETS[own].order:
        raise RowError("order of a box's numbers is not known", f"dataset {shown(own)}")
    return own


def _label(row: Mapping[str, Any], label: str) -> str:
    """The class of a row in plain words: what write_box takes."""
    category = row.get("class_category")
    category = label if category is None else category
    text = " ".join(re.sub(r"[\[\]{}<>]", " ", words(category, "class")).split())
    if not text:
        raise RowError("class is empty")
    return text


def _boxes(
    data_set: str, row: Mapping[str, Any], answer: Any, label: str, noted: Counter[str] | None
) -> tuple[tuple[Box, ...], tuple[tuple[float, float], ...]]:
    """Boxes, and the sizes (`Told.sizes`) of what they are pixels of."""
    sizes: tuple[tuple[float, float], ...] = ()
    order, pixels, unit = SETS[data_set][1:4]
    raw = _four(answer)
    if raw is None:
        found = _LABELLED.findall(answer) if isinstance(answer, str) else ()
        if not found:
            raise RowError("answer is no box", shown(answer))
        boxes = [
            Box(_label({}, named), *corners(numbers, unit, unit, unit / 100, noted=noted))
            for named, *numbers in found
        ]
    else:
        label = _label(row, label)
        width = height = 1.0
        if pixels:
            dim = row.get("dim")
            if not isinstance(dim, list) or len(dim) != 2:
                raise RowError("dim is not [width, height]", shown(dim))
            width, height = (number(side, "dim", 1) for side in dim)
            sizes = ((width, height),)
        if order == "xxyy":
            raw = [raw[0], raw[2], raw[1], raw[3]]
        slack = 1.0 if pixels else 0.01
        boxes = [Box(label, *corners(raw, width, height, slack, noted=noted))]
    return tuple(map(written, boxes)), sizes


def _four(answer: Any) -> list | None:
    """The four numbers of a raw box, a list or its text; None when it is something else."""
    if isinstance(answer, str):
        try:
            answer = json.loads(answer.replace("(", "[").replace(")", "]"))
        except (ValueError, RecursionError):
            return None
    return answer if isinstance(answer, list) and len(answer) == 4 else None


def _segments(row: Mapping[str, Any], answer: Any, label: str) -> tuple[Segment, ...]:
    segments = []
    for named, start, end in find_segments(words(answer, "answer")):
        named = named.strip("<> ")
        named = _label({}, named) if named else _label(row, label)
        segments.append(written(Segment(named, *interval(start, end))))
    if not segments:
        raise RowError("no time in the answer", shown(answer))
    return tuple(segments)


def _verdict(answer: Any) -> tuple[bool, str]:
    """(verdict, the answer with its reason first and the verdict last)."""
    if isinstance(answer, bool):
        return answer, f"{answer}."
    text = words(answer, "answer")
    first = _LEADING.match(text)
    if first:
        value, reason = first[1].lower() in ("true", "yes"), text[first.end() :]
    else:
        value = parse_verdict(text)
        if value is None:
            raise RowError("answer is neither True nor False", shown(text))
        last = _TRAILING.search(text)
        # "The claim is not true" is a reason as it stands: without its end it is none.
        reason = text[: last.start()] if last and with_verdict(text, value) else text
    reason = reason.strip().rstrip(".,:; ")
    return value, f"{reason}: {value}." if reason else f"{value}."


def merged(told: Sequence[ParsedAnswer], split: str, seed: int, ident: str) -> tuple[Question, ...]:
    """Questions of one picture and sound; what is asked in the same words is asked once."""
    groups: dict[tuple, list[ParsedAnswer]] = {}
    for one in told:
        grounds = one.task in ("arig", "igatl", "avc")
        groups.setdefault((one.task, one.instruction, grounds or one), []).append(one)
    rng = generator(seed, "avfit", ident)
    return tuple(_question(rng, split, group) for group in groups.values())


def _question(rng, split: str, group: Sequence[ParsedAnswer]) -> Question:
    task, data_set, instruction, response, *_, answer, _ = group[0]
    if task == "arig":
        spots = dict.fromkeys(box for one in group for box in one.boxes)
        question = asking.arig(rng, split, list(spots))
    elif task == "igatl":
        spots = dict.fromkeys(segment for one in group for segment in one.segments)
        ordered = sorted(spots, key=lambda spot: (spot.start, spot.end, spot.label))
        question = asking.igatl(rng, split, ordered)
    elif task == "avc":
        question = asking.avc(rng, split, list(dict.fromkeys(one.answer for one in group)))
    else:
        kind = data_set if task == "avqa" else task
        return Question(task, instruction, response, (), (), {"kind": kind, "answer": answer})
    return dataclasses.replace(question, instruction=instruction) if instruction else question
