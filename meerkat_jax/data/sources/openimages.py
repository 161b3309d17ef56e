"""OpenImages V4 and later: images with boxes, for joining with sounds (`pairs.py`).

    openimages/
      class-descriptions-boxable.csv       (or oidv7-class-descriptions-boxable.csv)
      train-annotations-bbox.csv           (or oidv6-train-annotations-bbox.csv)
      validation-annotations-bbox.csv
      test-annotations-bbox.csv
      train/<ImageID>.jpg  validation/<ImageID>.jpg  test/<ImageID>.jpg     in any folders below

All from storage.googleapis.com/openimages/web/download.html. A row is a box: ImageID, Source,
LabelName (an id such as /m/0bt9lr), Confidence, XMin, XMax, YMin, YMax in 0..1, IsOccluded,
IsTruncated, IsGroupOf, IsDepiction, IsInside (1, 0, or -1 for unknown); later versions add columns.
Images of validation and test make our test split. Boxes around groups and of depictions (a
drawn dog) say that a class is seen, but not where each is, so nothing is asked about them.

Boxes are of images as they are stored: 2.6 % should be turned to stand upright, and then "the
image and boxes should be rotated" both (storage.googleapis.com/openimages/web/
2018-05-17-rotation-information.html; the Rotation column of the files of image ids). So an EXIF
turn, which files got from Flickr rather than from OpenImages may have, is not applied to them.
"""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box
from meerkat_jax.data.sources.boxes import corners
from meerkat_jax.data.sources.classes import Class, check_ids, read_display_names
from meerkat_jax.data.sources.reading import name, table
from meerkat_jax.data.sources.skips import RowError, Skips
from meerkat_jax.data.text import vanishes

DESCRIPTIONS = ("class-descriptions-boxable.csv", "oidv7-class-descriptions-boxable.csv")
FILES = {  # folder of the images -> (our split, names of its file)
    "train": ("train", ("train-annotations-bbox.csv", "oidv6-train-annotations-bbox.csv")),
    "validation": ("test", ("validation-annotations-bbox.csv",)),
    "test": ("test", ("test-annotations-bbox.csv",)),
}
COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf", "IsDepiction")
MOST_BOXES = 4  # of the things that sound, in one image: what an answer has room for


@dataclasses.dataclass(frozen=True)
class Images:
    """Images with boxes of our classes: P images, N boxes in their order, C classes.

    ids bytes[P]; folders uint8[P], indices of `FILES`; first int64[P + 1], where an image's boxes
    begin; boxes float32[N, 4], x0 y0 x1 y1 in 0..1; kinds int16[N], class numbers; seen bool[P, C];
    maybe bool[P, C], seen, or perhaps shown by a box of a more general class; usable bool[P, C],
    seen in single boxes, none of them of a group, at most MOST_BOXES.
    """

    ids: np.ndarray
    folders: np.ndarray
    first: np.ndarray
    boxes: np.ndarray
    kinds: np.ndarray
    image_labels: np.ndarray
    maybe: np.ndarray
    usable: np.ndarray

    def split(self, name: str) -> np.ndarray:
        """bool[P], which images are of our split `name`."""
        return np.array([split == name for split, _ in FILES.values()])[self.folders]

    def boxes_of(self, image: int, kind: int, label: str) -> list[Box]:
        """The boxes of one class in one image, largest first."""
        rows = np.arange(self.first[image], self.first[image + 1])
        rows = rows[self.kinds[rows] == kind]
        boxes = [Box(label, *map(float, self.boxes[row])) for row in rows]
        return sorted(boxes, key=lambda box: -(box.x1 - box.x0) * (box.y1 - box.y0))

    def place(self, image: int) -> tuple[str, str]:
        """(folder, id) of an image."""
        return [*FILES][self.folders[image]], self.ids[image].decode()


def annotation_files(folder: Path) -> dict[str, Path]:
    """Image folder -> its file, of those that are there; UserError when none is."""
    found = {}
    for images, (_, names) in FILES.items():
        there = [folder / one for one in names if (folder / one).is_file()]
        if there:
            found[images] = there[0]
    if not found:
        raise UserError(f"{folder}: no *-annotations-bbox.csv; see docs/data.md for the layout")
    return found


def descriptions(folder: Path) -> Path:
    """The file of class names; UserError when it is not there."""
    for one in DESCRIPTIONS:
        if (folder / one).is_file():
            return folder / one
    raise UserError(f"{folder}: no {DESCRIPTIONS[0]}; see docs/data.md for the layout")


def read_images(folder: Path, classes: tuple[Class, ...], skips: Skips) -> Images:
    """All images of `folder` that show one of `classes`."""
    path = descriptions(folder)
    known = read_display_names(path, skips)
    check_ids(path, known, (one.openimages | one.general for one in classes))
    rows = _Rows(known, classes, skips)
    for images, file in annotation_files(folder).items():
        number = list(FILES).index(images)
        for line, row in table(file, skips, COLUMNS):
            with skips.row(file, line):
                rows.add(row, number)
    return rows.gathered(skips)


class _Rows:
    """Boxes as they are read, in compact arrays: fourteen million rows are no Python objects.

    A box of a general class has the number C and up, an index of `general` behind C.
    """

    def __init__(self, known: Iterable[str], classes: Sequence[Class], skips: Skips) -> None:
        self.skips = skips
        self.count = len(classes)
        general = sorted({mid for one in classes for mid in one.general})
        self.general = [[mid in one.general for one in classes] for mid in general]
        self.numbers = dict.fromkeys(known, -1)  # of nothing that sounds
        self.numbers |= {mid: self.count + number for number, mid in enumerate(general)}
        self.numbers |= {mid: bit for bit, one in enumerate(classes) for mid in one.openimages}
        self.images: dict[str, int] = {}
        self.folders = array.array("B")
        self.owners, self.kinds = array.array("i"), array.array("h")
        self.single, self.corners = array.array("B"), array.array("f")

    def add(self, row: list[str], folder: int) -> None:
        """Take one row; RowError when it cannot be understood."""
        image, label, x0, x1, y0, y1, group, depiction = row
        kind = self.numbers.get(label)
        if kind is None:
            raise RowError("unknown class", f"{label[:40]!r} is not in the class descriptions")
        if kind < 0:
            return
        # Half the bytes; what is left of a box when it is written is that of these numbers.
        box = array.array("f", corners([x0, y0, x1, y1], noted=self.skips.noted))
        if vanishes(Box("", *box)):
            raise RowError("nothing is left of it in three decimals", f"{image} {box.tolist()}")
        flags = [_flag(value) for value in (group, depiction)]
        owner = self.images.setdefault(name(image, "ImageID"), len(self.images))
        if owner == len(self.folders):
            self.folders.append(folder)
        elif self.folders[owner] != folder:
            raise RowError("image in two splits", image)
        self.owners.append(owner)
        self.kinds.append(kind)
        self.single.append(not any(flags))
        self.corners.extend(box)

    def gathered(self, skips: Skips) -> Images:
        """Sorted by image, rows that came twice once, images of general classes alone gone."""
        owners, kinds = np.array(self.owners, np.int32), np.array(self.kinds, np.int16)
        shown = np.unique(owners[kinds < self.count])
        renumbered = np.full(len(self.images), -1, np.int32)
        renumbered[shown] = np.arange(len(shown))
        owners = renumbered[owners]
        maybe = np.zeros((len(shown), self.count), bool)
        for number, belongs in enumerate(self.general):
            rows = owners[(kinds == self.count + number) & (owners >= 0)]
            maybe[np.unique(rows)] |= np.array(belongs)
        named = kinds < self.count
        owners, kinds = owners[named], kinds[named]
        single = np.array(self.single, bool)[named]
        boxes = np.array(self.corners, np.float32).reshape(-1, 4)[named]
        order = np.lexsort((single, *boxes.T, kinds, owners))
        owners, kinds, single, boxes = owners[order], kinds[order], single[order], boxes[order]
        same = (owners[1:] == owners[:-1]) & (kinds[1:] == kinds[:-1])
        same &= (boxes[1:] == boxes[:-1]).all(axis=1)
        if same.any():
            skips.drop("row twice", int(same.sum()))
            keep = np.concatenate([~same, [True]])
            owners, kinds, single, boxes = owners[keep], kinds[keep], single[keep], boxes[keep]
        seen = np.zeros_like(maybe)
        seen[owners, kinds] = True
        usable = seen.copy()
        usable[owners[~single], kinds[~single]] = False
        pairs, many = np.unique(owners.astype(np.int64) * self.count + kinds, return_counts=True)
        usable.reshape(-1)[pairs[many > MOST_BOXES]] = False
        ids = np.array([one.encode() for one in self.images] or [b""])
        return Images(
            ids=ids[shown],
            folders=np.array(self.folders, np.uint8)[shown],
            first=np.searchsorted(owners, np.arange(len(shown) + 1)),
            boxes=boxes,
            kinds=kinds,
            image_labels=seen,
            maybe=maybe | seen,
            usable=usable,
        )


def _flag(value: str) -> bool:
    if value not in ("0", "1", "-1"):
        raise RowError("flag is not 0, 1 or -1", f"{value[:20]!r}")
    return value == "1"
