"""Flickr-SoundNet, annotated part (Senocak et al., CVPR 2018): boxes by three people, for testing.

    flickr_soundnet/
      Annotations/<id>.xml         5,000 files
      Data/<0 to 9>/<id>.jpg       an image and its sound
      Data/<0 to 9>/<id>.wav
      frames/<id>.*  audio/<id>.*  the same, as evaluation codes have them
      test_list.txt                <id>.png in a line, or
      flickr_test.csv              <id>,<number> in a line, without header

Annotations and Data are in the drive that github.com/ardasnck/learning_to_localize_sound_source
links to. test_list.txt is in that repository, flickr_test.csv in
github.com/hche11/Localizing-Visual-Sounds-the-Hard-Way, folder metadata; with one of them only its
250 images are taken, which published scores are of. Meerkat tests on 2,780: presumably (not
confirmed) all that have boxes, as come out without a list. Ids are of Flickr: digits.

An XML file is read as by the evaluation codes of that repository, of
github.com/stoneMo/EZ-VSL and others: each child of the root that has `bbox` elements is the work
of one person, and of a bbox all children but the first are xmin, ymin, xmax, ymax in pixels of a
image of 256 x 256. Not confirmed: the names of these elements, what the first child is, and that
a child of the root is a person rather than a box. The truth does not depend on the last: `truth`
has "annotators", a list of boxes [label, x0, y0, x1, y1] for each, and the map of the published
evaluation is min(sum / 2, 1) over all boxes of all of them. An image without any box (sound from
elsewhere, or all around) is left out. Boxes have no class names.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box
from meerkat_jax.data.sources.boxes import corners
from meerkat_jax.data.sources.entry import Options, Place, Plan
from meerkat_jax.data.sources.grounding import Scene, entries, labelled, usable, xml_root
from meerkat_jax.data.sources.reading import lines, name, require
from meerkat_jax.data.sources.skips import RowError, Skips

FOLDER = "Annotations"
LISTS = ("test_list.txt", "flickr_test.csv")
LABEL = "sound source"
SIZE = 256  # pixels of width and height that corners are given in
SLACK = 2.0  # pixels

_LISTED = re.compile(r"([\w-]{1,64})(\.\w+)?(,.*)?", re.ASCII)


def plan(folder: Path, options: Options) -> Plan:
    """One entry for each image: where is what is heard?"""
    require(folder)
    folder = Path(folder)
    if not (folder / FOLDER).is_dir():
        raise UserError(f"{folder}: no folder {FOLDER}; expected the layout in docs/data.md")
    skips = Skips()
    listed = next((folder / one for one in LISTS if (folder / one).is_file()), None)
    paths = list(_listed(listed, skips) if listed else sorted((folder / FOLDER).glob("*.xml")))
    found = entries("flickr_soundnet", _scenes(paths, skips), options, skips)
    return Plan(found, (*((listed,) if listed else ()), *paths), skips)


def _listed(path: Path, skips: Skips) -> Iterator[Path]:
    """The annotation files of a list."""
    seen = set()
    for line, text in lines(path):
        parts = _LISTED.fullmatch(text.strip())
        if not parts:
            skips.add(f"{path.name}:{line}", "no id in the line", f"{text[:80]!r}")
        elif parts[1] in seen:
            skips.drop("row twice")
        elif not (path.parent / FOLDER / f"{parts[1]}.xml").is_file():
            skips.add(f"{path.name}:{line}", "no annotation file", f"{parts[1]}.xml")
        else:
            seen.add(parts[1])
            yield path.parent / FOLDER / f"{parts[1]}.xml"


def _scenes(paths: list[Path], skips: Skips) -> Iterator[Scene]:
    for path in paths:
        scene = None
        with skips.row(path, 1):
            scene = _scene(path, skips)
        if scene:
            yield scene


def _scene(path: Path, skips: Skips) -> Scene | None:
    ident = name(path.stem, "id")
    root = xml_root(path)
    items = [(person, one) for person, child in enumerate(root) for one in child.iterfind("bbox")]
    if not items:
        skips.drop("no box drawn")
        return None
    drawn: dict[int, list[list]] = {}  # a person's number -> boxes

    def read(item: tuple[int, ElementTree.Element]) -> Box:
        box = _box(item[1], skips)
        drawn.setdefault(item[0], []).append([*vars(box).values()])
        return box

    boxes = usable(items, read, ident, f"{path.name}:1", skips)
    return Scene(
        where=f"{path.name}:1",
        id=f"flickr_soundnet-test-{ident}",
        split="test",
        image=(Place("Data", ident), Place("frames", ident)),
        audio=(Place("Data", ident), Place("audio", ident)),
        keys=(f"flickr:{ident}",),
        boxes=boxes,
        named=False,
        truth={"annotators": list(drawn.values())},
    )


def _box(element: ElementTree.Element, skips: Skips) -> Box:
    values = [child.text for child in element]
    if len(values) != 5:
        raise RowError("bbox has not five parts", f"{len(values)}: {values}"[:80])
    return labelled(LABEL, corners(values[1:], SIZE, SIZE, SLACK, noted=skips.noted))
