"""OpenImages images joined with AudioSet or VGGSound clips by class (paper, AVFIT).

An image that shows a class is paired with a clip in which it is heard; they come from no one
video. Each image is used once for a class of its own and split, in a drawn order, at most
`Options.cap` times a class; clips are used in turn, as often as needed. From weak labels come
grounding (ARIG) and fact checks of types 1 and 2, from strong ones localisation in time (IGATL) and
types 3 and 4.

Every true claim about a class has a false one of the same class, type and split, so a verdict
cannot be told from the class or the type. What makes it false takes turns:

    class      the clip is of another class, of another family
    sibling    the clip is of another class of the same family (classes.csv)
    box        types 1, 3: the clip is right, the box is of another thing that is not heard
    interval   types 3, 4: the clip is right, but nothing that is seen (boxed) sounds at that time

Where the turn's kind cannot be had, it is the first one's; where that cannot be had either, neither
claim is made (counted). A clip that might hold something seen is never used for a false claim, and
no pair is made whose answer would be uncertain: with a class that is perhaps both heard and seen,
but not surely, or not in single boxes.

The plan is a few numbers a pair; questions are written when an entry is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from meerkat_jax.data.example import Question
from meerkat_jax.data.sources import audioset, openimages, vggsound
from meerkat_jax.data.sources.audio_clips import SPLITS, AudioClips
from meerkat_jax.data.sources.claims import Claims, gaps
from meerkat_jax.data.sources.classes import TABLE, Class, read_classes
from meerkat_jax.data.sources.entry import Entry, Options, Place, Plan, generator
from meerkat_jax.data.sources.openimages import Images
from meerkat_jax.data.sources.reading import require
from meerkat_jax.data.sources.skips import Skips

ROUNDS = 20  # of drawing a clip anew where the first one does not fit
MOST_SEGMENTS = 8  # of all that is asked for in one clip
NEGATIVES = {  # task -> what makes claims false, in turn
    1: ("class", "sibling", "box"),
    2: ("class", "sibling"),
    3: ("class", "sibling", "interval", "box"),
    4: ("class", "sibling", "interval"),
}


class Row(NamedTuple):
    """One example of the plan, or (as arrays) all of them.

    image, sound: indices. kind: the class that it is about. task: of its fact check, 1 to 4.
    negative: place in `NEGATIVES[task]` of its false claim, -1 for none. other: for "box" the class
    in the other box. matched: whether the clip goes with the image.
    """

    image: np.ndarray
    audio: np.ndarray
    kind: np.ndarray
    task: np.ndarray
    negative: np.ndarray
    other: np.ndarray
    matched: np.ndarray


def plan_audioset(folder: Path, options: Options) -> Plan:
    """OpenImages with AudioSet's weak labels."""
    files = audioset.files(folder / "audioset", audioset.WEAK)
    return _plan(
        "openimages_audioset", folder, files, audioset.read_weak, audioset.places, (1, 2), options
    )


def plan_strong(folder: Path, options: Options) -> Plan:
    """OpenImages with AudioSet's strong labels."""
    files = audioset.files(folder / "audioset", audioset.STRONG)
    return _plan(
        "openimages_strong", folder, files, audioset.read_strong, audioset.places, (3, 4), options
    )


def plan_vggsound(folder: Path, options: Options) -> Plan:
    """OpenImages with VGGSound."""
    files = require(folder / "vggsound", vggsound.FILE)
    return _plan(
        "openimages_vggsound", folder, files, vggsound.read_weak, vggsound.places, (1, 2), options
    )


def _plan(
    source: str,
    folder: Path,
    files: Sequence[Path],
    read: Callable[[Path, tuple[Class, ...], Skips], AudioClips],
    places: Callable[[str, float], tuple[Place, ...]],
    tasks: tuple[int, int],
    options: Options,
) -> Plan:
    classes, skips = read_classes(), Skips()
    home = folder / "openimages"
    files = [openimages.descriptions(home), *openimages.annotation_files(home).values(), *files]
    images = openimages.read_images(home, classes, skips)
    audio_clips = read(files[-1].parent, classes, skips)
    joiner = Joiner(source, images, audio_clips, classes, tasks, options, skips)
    rows, splits = joiner.all()
    entries = Pairs(source, images, audio_clips, classes, places, options, rows, splits)
    return Plan(entries, (*files, TABLE), skips)


class Joiner:
    """Draws the pairs of all classes."""

    def __init__(self, source, images, audio_clips, classes, tasks, options, skips) -> None:
        self.source, self.classes, self.tasks = source, classes, tasks
        self.images: Images = images
        self.audio_clips: AudioClips = audio_clips
        self.options, self.skips = options, skips
        self.count = len(classes)
        families = np.array([one.family for one in classes])
        self.siblings = (families[:, None] == families) & ~np.eye(self.count, dtype=bool)
        self.others = (families[:, None] != families) & ~np.eye(self.count, dtype=bool)
        self.spans = self._spans() if len(audio_clips.events) else None

    def _spans(self) -> np.ndarray:
        """int16[S, C], how many stretches of each class a clip has."""
        found = np.zeros(self.audio_clips.audio_labels.shape, np.int16)
        for clip, events in enumerate(self.audio_clips.events):
            for kind in {event.kind for event in events}:
                found[clip, kind] = len(self.audio_clips.spans(clip, kind, ""))
        return found

    def all(self) -> tuple[Row, np.ndarray]:
        """Every row in a drawn order, and the split of each, as an index of `SPLITS`."""
        rows, splits = [], []
        for number, split in enumerate(SPLITS):
            shown = self.images.split(split)
            clips = [self._clips(split, kind) for kind in range(self.count)]
            for kind in range(self.count):
                found = self._of_class(split, kind, np.flatnonzero(shown), clips)
                rows.append(found)
                splits.append(np.full(len(found.image), number, np.uint8))
        whole = Row(*(np.concatenate(column) for column in zip(*rows, strict=True)))
        order = generator(self.options.seed, self.source, "order").permutation(len(whole.image))
        return Row(*(column[order] for column in whole)), np.concatenate(splits)[order]

    def _clips(self, split: str, kind: int) -> np.ndarray:
        """Clips of a class, in a drawn order."""
        usable = self.audio_clips.split(split) & self.audio_clips.audio_labels[:, kind]
        if self.spans is not None:
            usable &= (self.spans[:, kind] > 0) & (self.spans[:, kind] <= MOST_SEGMENTS)
        rng = generator(self.options.seed, self.source, split, "clips", self.classes[kind].label)
        return rng.permutation(np.flatnonzero(usable))

    def _of_class(self, split: str, kind: int, shown: np.ndarray, clips: list) -> Row:
        """The rows of one class: true claims, and as many false ones."""
        rng = generator(self.options.seed, self.source, split, "pairs", self.classes[kind].label)
        images = rng.permutation(shown[self.images.usable[shown, kind]])
        if not len(clips[kind]):
            self.skips.drop("image of a class without clips", len(images))
            images = images[:0]
        if self.options.cap and len(images) > self.options.cap:
            self.skips.drop("class over its cap", len(images) - self.options.cap)
            images = images[: self.options.cap]
        audio_clips = np.resize(clips[kind], len(images))  # in turn
        audio_clips = self._redrawn(rng, images, audio_clips, clips[kind], self._uncertain)
        fits = audio_clips >= 0
        self.skips.drop("pair with an uncertain answer", int((~fits).sum()))
        return self._with_claims(rng, kind, images[fits], audio_clips[fits], clips)

    def _redrawn(self, rng, images, audio_clips, pool, bad: Callable) -> np.ndarray:
        """`sounds`, those that are bad for their image drawn anew from `pool`; -1: none fits."""
        for _ in range(ROUNDS):
            wrong = np.flatnonzero(bad(images, audio_clips))
            if not len(wrong) or not len(pool):
                break
            audio_clips[wrong] = pool[rng.integers(len(pool), size=len(wrong))]
        return np.where(bad(images, audio_clips), -1, audio_clips)

    def _uncertain(self, images: np.ndarray, audio_clips: np.ndarray) -> np.ndarray:
        """bool[n], pairs of which it is not certain what is both seen and heard, and where."""
        heard, maybe = (
            self.audio_clips.audio_labels[audio_clips],
            self.audio_clips.maybe[audio_clips],
        )
        certain = self.images.usable[images] & heard
        unclear = (self.images.maybe[images] & maybe & ~certain).any(axis=1)
        boxes = self.images.first[images + 1] - self.images.first[images]
        unclear |= (boxes > openimages.MOST_BOXES) & (certain.sum(axis=1) > 1)
        if self.spans is not None:
            unclear |= (self.spans[audio_clips] * certain).sum(axis=1) > MOST_SEGMENTS
        return unclear

    def _matches(self, images: np.ndarray, audio_clips: np.ndarray) -> np.ndarray:
        """bool[n], whether the clip may hold anything that the image may show."""
        return (self.images.maybe[images] & self.audio_clips.maybe[audio_clips]).any(axis=1)

    def _with_claims(self, rng, kind: int, images, audio_clips, clips: list) -> Row:
        """Matched pairs with their claims, then the mismatched ones."""
        turn = np.arange(len(images))
        task = np.array(self.tasks)[turn % 2]
        wanted = np.zeros(len(images), np.int64)
        for one in self.tasks:
            wanted[task == one] = turn[task == one] // 2 % len(NEGATIVES[one])
        other = self._other_boxes(rng, images, audio_clips)
        names = [NEGATIVES[t][w] for t, w in zip(task, wanted, strict=True)]
        for row, name in enumerate(names):
            possible = name != "box" or other[row] >= 0
            if name == "interval":
                possible = bool(self._quiet(kind, task[row], images[row], audio_clips[row]))
            if not possible:
                names[row], wanted[row] = "class", 0
        names = np.array(names, dtype=object)
        within = np.isin(names, ("box", "interval"))
        wrong = np.full(len(images), -1)
        for name, kinds in (("sibling", self.siblings), ("class", self.others)):
            rows = np.flatnonzero(names == name)
            wrong[rows] = self._wrong_clips(rng, images[rows], kinds[kind], clips)
            none = rows[wrong[rows] < 0]
            if name == "sibling":  # those that have none get another class
                names[none], wanted[none] = "class", 0
        kept = within | (wrong >= 0)
        self.skips.drop("claim without a counterpart", int((~kept).sum()))
        matched = Row(
            images, audio_clips, np.full(len(images), kind), task,
            np.where(within, wanted, -1), np.where(names == "box", other, -1),
            np.ones(len(images), bool),
        )  # fmt: skip
        mismatched = matched._replace(
            audio=wrong, negative=wanted, other=np.full(len(images), -1),
            matched=np.zeros(len(images), bool),
        )  # fmt: skip
        picks = np.flatnonzero(kept), np.flatnonzero(kept & ~within)
        return Row(
            *(
                np.concatenate([a[picks[0]], b[picks[1]]]).astype(_TYPES[name])
                for name, a, b in zip(Row._fields, matched, mismatched, strict=True)
            )
        )

    def _other_boxes(self, rng, images: np.ndarray, audio_clips: np.ndarray) -> np.ndarray:
        """int[n], a drawn class that the image shows in single boxes and that is not heard."""
        there = self.images.usable[images] & ~self.audio_clips.maybe[audio_clips]
        drawn = np.where(there, rng.random(there.shape), -1.0)
        return np.where(there.any(axis=1), drawn.argmax(axis=1) if drawn.size else -1, -1)

    def _quiet(self, kind: int, task: int, image: int, audio: int) -> list:
        """Times at which nothing sounds that the claim is about."""
        both = self.images.image_labels[image] & self.audio_clips.audio_labels[audio]
        kinds = [kind] if task == 3 else np.flatnonzero(both)
        return gaps([s for one in kinds for s in self.audio_clips.spans(audio, one, "")])

    def _wrong_clips(self, rng, images: np.ndarray, kinds: np.ndarray, clips: list) -> np.ndarray:
        """int[n], a clip of one of `kinds` (bool[C]), drawn evenly, for each image; or -1."""
        pools = [clips[kind] for kind in np.flatnonzero(kinds) if len(clips[kind])]
        audio_clips = np.full(len(images), -1)
        if not pools:
            return audio_clips
        pool, sizes = np.concatenate(pools), np.array([len(one) for one in pools])
        begins = np.cumsum(sizes) - sizes
        for _ in range(ROUNDS):
            rows = np.flatnonzero(audio_clips < 0)
            picks = rng.integers(len(pools), size=len(rows))
            drawn = pool[begins[picks] + (rng.random(len(rows)) * sizes[picks]).astype(np.int64)]
            good = ~self._matches(images[rows], drawn)
            audio_clips[rows[good]] = drawn[good]
        return audio_clips


_TYPES = {
    "image": np.int32,
    "audio": np.int32,
    "kind": np.int16,
    "task": np.int8,
    "negative": np.int8,
    "other": np.int16,
    "matched": bool,
}


class Pairs(Sequence[Entry]):
    """The planned pairs as entries."""

    def __init__(self, source, images, audio_clips, classes, places, options, rows, splits) -> None:
        self.source, self.options, self.rows, self.splits = source, options, rows, splits
        self.places: Callable[[str, float], tuple[Place, ...]] = places
        self.images: Images = images
        self.audio_clips: AudioClips = audio_clips
        self.labels = [one.label for one in classes]

    def __len__(self) -> int:
        return len(self.splits)

    def __getitem__(self, index: int) -> Entry:
        if not 0 <= index < len(self):
            raise IndexError(index)
        row = Row(*(column[index] for column in self.rows))
        split = SPLITS[self.splits[index]]
        folder, image = self.images.place(row.image)
        video, start = (
            self.audio_clips.ids[row.audio].decode(),
            float(self.audio_clips.starts[row.audio]),
        )
        ident = f"{self.source}-{split}-{image}-{video}-{start:g}-{self.labels[row.kind]}"
        claims = Claims(
            generator(self.options.seed, "ask", ident), split, self.labels,
            self.images, self.audio_clips, row.image, row.audio,
        )  # fmt: skip
        negative = NEGATIVES[int(row.task)][row.negative] if row.negative >= 0 else None
        both = claims.both if row.matched else ()
        questions = claims.questions(int(row.kind), int(row.task), negative, int(row.other))
        return Entry(
            id=ident,
            split=split,
            image=(Place(f"openimages/{folder}", image),),
            audio=self.places(video, start),
            questions=questions,
            keys=(f"image:{image}", f"video:{video}"),
            image_labels=tuple(self.labels[kind] for kind in claims.image_labels),
            audio_labels=tuple(self.labels[kind] for kind in claims.audio_labels),
            boxes=tuple(box for kind in both for box in claims.boxes(kind)),
            matched=bool(row.matched),
            seconds=max(map(_last_time, questions)),
            stored=True,  # as openimages.py tells
        )


def _last_time(question: Question) -> float:
    """The last time that a question or its answer tells, in seconds; 0 for none."""
    told = [segment.end for segment in question.segments]
    return max([*told, *question.truth.get("interval", ())], default=0.0)
