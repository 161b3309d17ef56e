"""Data of your own: a line of JSON for each image and audio.

    my_data/
      annotations.jsonl
      dogs/1.jpg  dogs/1.wav  films/a.mp4  ...     media, in any folders below

A line, here the least that is needed and then more of it:

    {"image": "dogs/1.jpg", "audio": "dogs/1.wav",
     "questions": [{"task": "arig", "boxes": [["dog", 0.1, 0.2, 0.5, 0.9]]}]}

    {"id": "film-a-12", "split": "test", "group": "film a",
     "image": "films/a.mp4", "image_at": 12.5, "audio": "films/a.mp4", "audio_at": 10,
     "image_labels": ["dog", "cat"], "audio_labels": ["dog"], "matched": true,
     "boxes": [["dog", 64, 96, 320, 432]], "pixels": true, "size": [640, 480],
     "questions": [
       {"task": "igatl", "segments": [["dog", 0.5, 2.0]]},
       {"task": "avfact3", "boxes": [["dog", 0.1, 0.2, 0.5, 0.9]], "segments": [["dog", 4, 5]],
        "answer": false, "response": "The dog is silent by then: False."},
       {"task": "avqa", "instruction": "How many dogs bark?", "answer": 1},
       {"task": "avc", "captions": ["A dog barks at a cat.", "A barking dog."]}]}

`jsonl.schema.json`, beside this file, says of each key what it may hold, and a line that is not so
is left out and told with its number. Times are seconds from the beginning of the clip. The four
numbers of a box are, by the keys beside `boxes`, which count for these boxes alone:

    (none), or "form": "xyxy"               x0, y0, x1, y1 in 0 to 1 of the image
    "form": "xywh"                          x, y, width, height, likewise (COCO)
    "form": "cxcywh"                        middle, width, height, likewise (YOLO)
    "form": "thousand"                      x0, y0, x1, y1 in 0 to 1000 of width and height
    "pixels": true, "size": [640, 480]      in pixels of an image of that size; with `form`, too,
                                            but for "thousand"

An instruction that is missing gets one of the wordings of its task (avqa has none), a response is
made of what else is told. What is told beside a response has to agree with it. Beyond the schema: a
box has its corners in order, an area and lies in the image, a segment ends after it begins, of
both something is left when they are written, no id comes twice. When boxes without a form are no
corners, or look like another form as a whole, the messages say so.

An image with an EXIF turn is taken as viewers show it, upright, and its boxes as of that; only
where `size` is that of the image as it is stored, the image is left as it is stored.
"""

from __future__ import annotations

import contextlib
import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box, Question, Segment
from meerkat_jax.data.leaks import hashed
from meerkat_jax.data.sources import asking, boxes
from meerkat_jax.data.sources.byte_spans import ByteSpans, changed
from meerkat_jax.data.sources.entry import Entry, Options, Place, Plan, generator
from meerkat_jax.data.sources.reading import interval, json_lines, require, shown
from meerkat_jax.data.sources.schema import check, load
from meerkat_jax.data.sources.skips import RowError, Skips
from meerkat_jax.data.text import check_response, write_box, write_segment
from meerkat_jax.data.verdict import parse_verdict

FILE = "annotations.jsonl"
SCHEMA = load(Path(__file__).with_name("jsonl.schema.json"))
MOST_BOXES = 16


def plan(folder: Path, options: Options) -> Plan:
    """An entry for each good line; what is held of it is where it lies in the file."""
    (path,) = require(folder, FILE)
    skips = Skips()
    starts = _line_starts(path)
    rows, lines = ByteSpans([path]), array("Q")
    ids, contents = set(), set()
    tally = boxes.Tally(skips.noted)
    for line, value in json_lines(path, skips):
        with skips.row(path, line):
            ident = entry(value, line, options, tally).id
            content = hashed(json.dumps(value, sort_keys=True))
            if content in contents:
                skips.drop("row twice")
                continue
            if hashed(ident) in ids:
                raise RowError(
                    "id twice", f"id is {ident.split('-', 2)[2]!r}, expected one of its own"
                )
            ids.add(hashed(ident))
            contents.add(content)
            rows.add(0, starts[line - 1], starts[line])
            lines.append(line)
    _judge(path, tally, skips)
    return Plan(Rows(rows, lines, options), (path,), skips)


def _judge(path: Path, tally: boxes.Tally, skips: Skips) -> None:
    """Say what the boxes without a form are as a whole; UserError when they are surely no corners.

    One box that is none as corners, where all are in another form, tells what the others are: those
    that happen to look like corners must not go on as these.
    """
    others = tally.others()
    if not others or tally.count < 2:
        return
    told = f"all {tally.count} boxes without a form would be boxes as {others}"
    if tally.count < boxes.LEAST:
        skips.faults[:] = [
            fault._replace(detail=f"{fault.detail}; {told}")
            if fault.reason in boxes.MISREAD
            else fault
            for fault in skips.faults
        ]
    elif tally.odd:
        raise UserError(
            f"{path}:{tally.odd}, no box as x0, y0, x1, y1; {told}: tell 'form' beside the boxes "
            "of each line ('xyxy' where they are corners)"
        )
    else:
        skips.noted["box that may be none as x0, y0, x1, y1: " + told + "; tell 'form'"] = (
            tally.count
        )


class Rows(Sequence[Entry]):
    """The good lines of the file, read when they are asked for."""

    def __init__(self, rows: ByteSpans, lines: array, options: Options) -> None:
        self.rows, self.lines, self.options = rows, lines, options

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Entry:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return entry(self.rows.read(index), self.lines[index], self.options)
        except RowError:
            raise changed(self.rows.paths[0]) from None


def entry(row: Any, line: int, options: Options, tally: boxes.Tally | None = None) -> Entry:
    """What a line says; RowError, with key, value and what was expected, when it is no good.

    Its boxes are counted in `tally`.
    """
    tally = boxes.Tally() if tally is None else tally
    check(row, SCHEMA)
    _check_letters(row)
    split = row.get("split", "train")
    ident = f"jsonl-{split}-{row.get('id', f'line{line}')}"
    rng = generator(options.seed, "jsonl", ident)
    questions = tuple(
        _question(rng, split, asked, f"questions[{number}]", line, tally)
        for number, asked in enumerate(row["questions"])
    )
    sounding = _boxes(row, "boxes", line, tally)
    if "boxes" not in row:
        grounded = (box for one in questions if one.task == "arig" for box in one.boxes)
        sounding = tuple(dict.fromkeys(grounded))
    if len(sounding) > MOST_BOXES:
        raise RowError("more than 16 boxes", f"questions of arig have {len(sounding)}")
    # What is to be found in the image, or in time, is what is both seen and heard.
    spots = (spot for one in questions for spot in (*one.boxes, *one.segments))
    told = dict.fromkeys(spot.label for spot in (*sounding, *spots))
    media = dict.fromkeys((row["image"], row["audio"]))
    groups = [f"jsonl:group:{row['group']}"] if "group" in row else []
    return Entry(
        ident,
        split,
        image=(_place(row["image"], row.get("image_at", 0)),),
        audio=(_place(row["audio"], row.get("audio_at", 0)),),
        questions=questions,
        keys=(*(f"jsonl:{path}" for path in media), *groups),
        image_labels=tuple(row.get("image_labels", told)),
        audio_labels=tuple(row.get("audio_labels", told)),
        boxes=sounding,
        matched=row.get("matched", True),
        seconds=_last_time(row["questions"]),
        sizes=_sizes(row),
    )


def _question(rng, split: str, asked: dict, at: str, line: int, tally: boxes.Tally) -> Question:
    """One question, its defaults filled in and its answer checked."""
    task = asked["task"]
    segments = _segments(asked, f"{at}.segments")
    spots = _boxes(asked, f"{at}.boxes", line, tally)
    if task == "arig":
        made = asking.arig(rng, split, spots)
    elif task == "igatl":
        made = asking.igatl(rng, split, segments)
    elif task == "avc":
        captions = asked.get("captions") or [asked["response"]]
        made = asking.avc(rng, split, captions)
    elif task == "avqa":
        answer = _word(asked.get("answer", asked.get("response")))
        made = Question(task, "", answer, truth={"kind": "avqa", "answer": answer})
    else:
        made = _fact(rng, split, asked, spots, segments)
    instruction = asked.get("instruction", made.instruction)
    response = asked.get("response", made.response)
    question = Question(task, instruction, response, made.boxes, made.segments, made.truth)
    if "response" in asked:
        _check_response(question, at)
    return question


def _fact(rng, split: str, asked: dict, spots, segments) -> Question:
    """A fact check without its reason, and with a wording of ours if it has none."""
    task, value = asked["task"], asked["answer"]
    box = spots[0] if spots else None
    times = (segments[0].start, segments[0].end) if segments else None
    truth: dict[str, Any] = {"kind": task, "answer": value}
    if box:
        truth["objects"] = [list(vars(box).values())]
    if times:
        truth["interval"] = list(times)
    text = ""
    if "instruction" not in asked:
        text = asking.avfact(rng, split, task, value, "", box, times).instruction
    return Question(task, text, f"{value}.", truth=truth)


def _check_response(question: Question, at: str) -> None:
    """RowError when a response of the user's own does not say what is told beside it."""
    found, expected = question.response, ""
    if question.task in ("arig", "igatl"):
        try:
            check_response(question)
        except UserError:
            spots = (*map(write_box, question.boxes), *map(write_segment, question.segments))
            expected = f"one that reads back as {' '.join(spots)}"
    elif question.task.startswith("avfact"):
        if parse_verdict(found) is not question.truth["answer"]:
            expected = f"one with {question.truth['answer']} as its last verdict"
    if expected:
        reason = "response says other than what is beside it"
        raise RowError(reason, f"{at}.response is {shown(found)}, expected {expected}")


def _word(answer: bool | str | int | float) -> str:
    if isinstance(answer, bool):
        return "yes" if answer else "no"
    return f"{answer:.12g}" if isinstance(answer, float) else str(answer)


def _boxes(holder: dict, at: str, line: int, tally: boxes.Tally) -> tuple[Box, ...]:
    """The boxes of a row or a question in 0..1; those without a form are counted in `tally`."""
    size, form = holder.get("size", (1.0, 1.0)), holder.get("form")
    if form == "thousand" and "size" in holder:
        raise RowError("form thousand with pixels", f"{at.removesuffix('boxes')}size is {size}")
    found = []
    for number, (label, *numbers) in enumerate(holder.get("boxes", ())):
        with _placed(f"{at}[{number}]"):
            if form is None:
                tally.add(numbers, *size, f"{line}: {at}[{number}]")
            corners = boxes.corners(numbers, *size, form=form or "xyxy", noted=tally.noted)
            found.append(boxes.written(Box(label, *corners)))
    return tuple(found)


def _sizes(row: dict) -> tuple[tuple[float, float], ...]:
    """Of what images, (width, height), the boxes of a row and its questions are pixels."""
    told = (one["size"] for one in (row, *row["questions"]) if "size" in one)
    return tuple(dict.fromkeys((float(width), float(height)) for width, height in told))


def _segments(asked: dict, at: str) -> tuple[Segment, ...]:
    segments = []
    for number, (label, start, end) in enumerate(asked.get("segments", ())):
        with _placed(f"{at}[{number}]"):
            segments.append(boxes.written(Segment(label, *interval(start, end))))
    return tuple(segments)


@contextlib.contextmanager
def _placed(at: str) -> Iterator[None]:
    """Adds to a fault where in the row it is."""
    try:
        yield
    except RowError as bad:
        raise RowError(bad.reason, f"{at}: {bad.detail}") from None


def _place(path: str, at: float) -> Place:
    """The file that is named, and no other of its stem."""
    pure = PurePosixPath(path)
    folder = "" if str(pure.parent) == "." else str(pure.parent)
    return Place(folder, pure.stem, float(at), pure.suffix)


def _last_time(questions: Sequence[dict]) -> float:
    ends = [end for asked in questions for _, _, end in asked.get("segments", ())]
    return float(max(ends, default=0.0))


def _check_letters(row: Any) -> None:
    """RowError for half a character, which JSON can write and no file can hold."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RowError("half a character", shown(error.object[error.start : error.end])) from None


def _line_starts(path: Path) -> array:
    """Where each line begins, and the end."""
    starts = array("Q", [0])
    with open(path, "rb") as file:
        for line in file:
            starts.append(starts[-1] + len(line))
    return starts
