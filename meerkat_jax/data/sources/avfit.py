"""AVFIT as the authors of Meerkat released it: their own questions and answers, for all tasks.

    data/
      <data set>/
        <data set>_train.json             the JSON files linked by github.com/schowdhury671/meerkat
        <data set>_test.json              or _test_inference, _val, _val_inference: the first there
        frames/<key>.mp4_0.jpg            a still of each video; of openimages <image>.jpg
        audios/<key>.mp4.wav              its sound
      audioset_sreyan/audios/<id>.wav     sounds of pairs; audioset_temporal and vggsound likewise

`--source_dir` is `data` or the folder that holds it. All of this is read from that repository's
loaders (preprocess_data_supervised.py, llm_trainer.py and its README, at 0b2a550); the JSON files
themselves are on a file share that we have not seen. A `_train` (`_test`, `_val`) file is

    {key: {"data": [{"dataset", "question", "answer", "dim": [W, H], "class_category"}, ...]}}

and an inference file `{"data": [{"image", "video", "audio", "instruction", "response"}, ...]}`,
where what is not there is "None", and a video is a path that lacks its `.mp4_0.jpg` or `.jpg`.
Keys are `<data set>_<id>`, with anything after a `#`; a pair's `openimages_<image>#<label>#<id>`,
`openimages_vggsound_...`, `audioset_temporal_..._<image>#<label>#<id>` and
`multimodal_factchecking_type<1 to 4>_..._<image>#<label>#<id>`; a `$` in a label stands for `/`.

The numbers of a box come in an order and unit of each data set's own: `avfit_answers.SETS` has them
all. The question is kept as it is published; the answer is written again in our form, so that it
reads back, and a fact check gives its verdict last. Boxes in an inference file are in the form that
the loader writes, `[<label>,x0,y0,x1,y1]`; without a label their order is not known: refused. All
questions about one image and one sound become one example, whichever files they are from.

Not confirmed, for want of the JSON files: how times are written (anything that data/text.py reads
is taken), how a fact check's answer is worded (True, False, yes or no in front, or a last True or
False), the order of numbers in a fact check's question (left alone), the keys of pascal (with or
without `pascal_`), whether media are named with the data set in front (both are looked for), and
that an id of 11 characters, or these and times, is YouTube's.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.sources.avfit_answers import SETS, ParsedAnswer, merged, read_answer
from meerkat_jax.data.sources.avfit_media import Media, of_key, of_paths
from meerkat_jax.data.sources.byte_spans import ByteSpans, changed, json_spans
from meerkat_jax.data.sources.entry import Entry, Options, Plan
from meerkat_jax.data.sources.reading import member, require
from meerkat_jax.data.sources.skips import RowError, Skips

# What a split is read from: the first that is there.
FILES = {"train": ("train",), "test": ("test", "test_inference", "val", "val_inference")}
MOST_BOXES = 16


class File(NamedTuple):
    """An annotation file; `root` is the folder of the data sets, relative to the source folder."""

    path: Path
    data_set: str
    root: str
    split: str
    inference: bool


def plan(folder: Path, options: Options) -> Plan:
    """All that the JSON files below `folder` ask, questions about the same media together."""
    require(folder)
    skips = Skips()
    files = _files(Path(folder), skips)
    byte_spans = ByteSpans([file.path for file in files])
    groups, rows, boxes = array("Q"), array("Q"), array("Q")
    for number, file in enumerate(files):
        for item in json_spans(file.path, "data" if file.inference else ""):
            told: list[ParsedAnswer] = []
            for read in _rows(file, item.key, item.value, skips.noted):
                with skips.row(file.path, item.line):
                    media, answer = read()
                    told.append(answer)
            if told:
                groups.append(_digest(file.split, media.name))
                rows.extend(_digest(file.split, media.name, repr(answer)) for answer in told)
                boxes.append(sum(len(answer.boxes) for answer in told))
                byte_spans.add(number, item.start, item.end)
    again = len(rows) - len(np.unique(np.array(rows)))
    if again:
        skips.drop("row twice", again)
    entries = _entries(files, byte_spans, groups, boxes, options, skips)
    return Plan(entries, tuple(file.path for file in files), skips)


class Entries(Sequence[Entry]):
    """Entries of rows by number: `order` lists the rows, `begins` where each entry's begin."""

    def __init__(self, files, byte_spans, order, begins, options) -> None:
        self.files: list[File] = files
        self.byte_spans: ByteSpans = byte_spans
        self.order, self.begins = order, begins
        self.options = options

    def __len__(self) -> int:
        return len(self.begins) - 1

    def __getitem__(self, index: int) -> Entry:
        if not 0 <= index < len(self):
            raise IndexError(index)
        told: dict[ParsedAnswer, None] = {}
        rows = self.order[self.begins[index] : self.begins[index + 1]].tolist()
        for row in rows:
            file = self.files[self.byte_spans.files[row]]
            value = self.byte_spans.read(row)
            key, value = ("", value) if file.inference else next(iter(value.items()))
            for read in _rows(file, key, value):
                try:
                    media, answer = read()
                except RowError:
                    continue  # counted in planning
                told[answer] = None
        if not told:
            raise changed(file.path)
        return _entry(file.split, media, list(told), self.options)


def _entry(split: str, media: Media, told: list[ParsedAnswer], options: Options) -> Entry:
    ident = f"avfit-{split}-{media.name}"
    labels = [spot.label for one in told for spot in (*one.boxes, *one.segments)]
    labels = tuple(dict.fromkeys(labels))
    verdicts = [one.answer for one in told if isinstance(one.answer, bool)]
    return Entry(
        ident,
        split,
        media.image,
        media.audio,
        merged(told, split, options.seed, ident),
        media.keys,
        image_labels=labels,
        audio_labels=labels,
        boxes=tuple(dict.fromkeys(box for one in told for box in one.boxes)),
        matched=bool(labels) or any(verdicts) or not verdicts,
        seconds=max((spot.end for one in told for spot in one.segments), default=0.0),
        stored=True,  # the authors' loader opens images with Pillow and applies no EXIF turn
        sizes=tuple(dict.fromkeys(size for one in told for size in one.sizes)),
    )


def _rows(
    file: File, key: str, item: Any, noted: Counter[str] | None = None
) -> Iterator[Callable[[], tuple[Media, ParsedAnswer]]]:
    """Of each row of an item what reads it, and raises Bad if it is no good."""
    if file.inference:
        yield partial(_inference, file, item, noted)
        return
    try:
        data_set, media, label = of_key(file.root, file.data_set, key)
        rows = member(item, "data", "value of the key")
        if not isinstance(rows, list) or not rows:
            raise RowError("data is not a list of questions", f"key {key[:60]!r}")
    except RowError as bad:
        yield partial(_refuse, bad)
        return
    for row in rows:
        yield partial(lambda one: (media, read_answer(data_set, one, label, noted)), row)


def _refuse(bad: RowError) -> tuple[Media, ParsedAnswer]:
    raise bad


def _inference(file: File, row: Any, noted: Counter[str] | None) -> tuple[Media, ParsedAnswer]:
    media = of_paths(file.root, file.data_set, row)
    told = {"question": member(row, "instruction"), "answer": member(row, "response")}
    return media, read_answer(file.data_set, told, "", noted)


def _files(folder: Path, skips: Skips) -> list[File]:
    """The annotation files below; UserError when there is none, or one of another data set."""
    found = []
    for base, root in ((folder, ""), (folder / "data", "data/")):
        for own in sorted(path.name for path in base.glob("*") if path.is_dir()):
            for split, kinds in FILES.items():
                paths = {kind: base / own / f"{own}_{kind}.json" for kind in kinds}
                there = [kind for kind in kinds if paths[kind].is_file()]
                if there[1:]:
                    skips.drop("file beside a better one of its split", len(there) - 1)
                for kind in there[:1]:
                    _known(paths[kind], own)
                    found.append(File(paths[kind], own, root, split, kind.endswith("inference")))
    if not found:
        raise UserError(
            f"{folder}: no <data set>/<data set>_train.json or _test.json below, with one of "
            f"{', '.join(SETS)}; see docs/data.md for the layout"
        )
    return found


def _known(path: Path, data_set: str) -> None:
    if data_set not in SETS:
        raise UserError(
            f"{path}: data set {data_set!r} is not known, expected one of {', '.join(SETS)}; "
            "move its folder out of the source folder"
        )


def _digest(*parts: str) -> int:
    digest = hashlib.blake2b("\0".join(parts).encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _entries(files, byte_spans, groups, boxes, options, skips) -> Entries:
    """Rows of equal `groups` as one entry, in the order of first rows; none of too many boxes."""
    _, first, group = np.unique(np.array(groups), return_index=True, return_inverse=True)
    rank = np.empty(len(first), int)
    rank[np.argsort(first)] = np.arange(len(first))
    group = rank[group]  # numbered as they come

    def entries(rows: np.ndarray) -> Entries:
        order = rows[np.argsort(group[rows], kind="stable")]
        sizes = np.unique(group[rows], return_counts=True)[1]
        begins = np.concatenate(([0], np.cumsum(sizes))).astype(int)
        return Entries(files, byte_spans, order, begins, options)

    every = entries(np.arange(len(group)))
    many = np.bincount(group, np.array(boxes), len(first)) > MOST_BOXES  # rows twice count here
    for index in np.flatnonzero(many).tolist():
        entry = every[index]
        many[index] = len(entry.boxes) > MOST_BOXES
        if many[index]:
            skips.add(entry.id, "more than 16 boxes", f"{len(entry.boxes)}")
    return entries(np.flatnonzero(~many[group]))
