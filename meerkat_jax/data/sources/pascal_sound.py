"""PASCAL Sound: images of PASCAL VOC, each with a sound of a thing that it shows, for testing.

    pascal_sound/
      pairs.csv                     which image goes with which sound: made by you, see below
      Annotations/<image>.xml     of host.robots.ox.ac.uk/pascal/VOC, as unpacked from there
      JPEGImages/<image>.*
      sounds/<sound>.*              sounds, or videos

NOT CONFIRMED, and more than in other sources: Meerkat's paper tests on 560 examples of a set of
this name, but no page, paper or repository was found that has it or tells its files. The authors'
code (github.com/schowdhury671/meerkat) reads them from files of its own, pascal_train.json and
pascal_val.json, that are not published. So this is the nearest that can be made of what is: boxes
from VOC, and a table that says what belongs together. Scores on it compare with the paper's only if
the table is the authors' own.

pairs.csv has the columns image, sound and class, in any order: names of files without folder and
suffix, and the class of VOC that is heard. A line is `2008_000008,-0SdAVK79lg_000030,horse`. Lines
with the same image and audio are one question. A sound that is named as a clip of VGGSound or as
a video of YouTube is known to be from there when examples of other sets are kept apart.

An XML file is VOC's: `size` with width and height; `object`, each with name (the class), pose,
truncated, difficult, and `bndbox` with xmin, ymin, xmax, ymax in any order, sometimes with
fractions, in pixels of which the first is 1 and the last still belongs to the thing. Boxes of parts
of a person (`part`) are not meant; things that are marked as difficult are.
"""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

from meerkat_jax.data.example import Box
from meerkat_jax.data.sources.boxes import corners
from meerkat_jax.data.sources.entry import Options, Place, Plan
from meerkat_jax.data.sources.grounding import Scene, entries, labelled, plain, usable, xml_root
from meerkat_jax.data.sources.reading import name, number, require, table
from meerkat_jax.data.sources.skips import RowError, Skips

FILE = "pairs.csv"
COLUMNS = ("image", "audio", "class")
CORNERS = ("xmin", "ymin", "xmax", "ymax")
SLACK = 1.0  # pixels

_YOUTUBE = re.compile(r"([A-Za-z0-9_-]{11})(_[0-9]{6})?")

Root = ElementTree.Element


def plan(folder: Path, options: Options) -> Plan:
    """One entry for each image and audio: where is what is heard?"""
    (path,) = require(folder, FILE)
    skips = Skips()
    files: dict[Path, None] = {path: None}

    @functools.cache
    def read(image: str) -> Root:
        file = path.parent / "Annotations" / f"{image}.xml"
        root = xml_root(file)
        files[file] = None
        return root

    found = entries("pascal_sound", _scenes(path, read, skips), options, skips)
    return Plan(found, tuple(files), skips)


def _scenes(path: Path, read: Callable[[str], Root], skips: Skips) -> Iterator[Scene]:
    for line, row in table(path, skips, COLUMNS):
        scene = None
        with skips.row(path, line):
            scene = _scene(row, read, f"{path.name}:{line}", skips)
        if scene:
            yield scene


def _scene(row: list[str], read: Callable[[str], Root], where: str, skips: Skips) -> Scene:
    image, audio = (name(value, what) for value, what in zip(row[:2], COLUMNS, strict=False))
    label = plain(row[2])
    root = read(image)
    width, height = (number(root.findtext(f"size/{side}"), side, 1) for side in ("width", "height"))
    objects = [one for one in root.iterfind("object") if _class(one) == label]
    if not objects:
        raise RowError("class is not in the image", f"{label[:40]!r} in {image}.xml")

    def box(one: ElementTree.Element) -> Box:
        x0, y0, x1, y1 = (number(one.findtext(f"bndbox/{key}"), key) for key in CORNERS)
        values = [x0 - 1, y0 - 1, x1, y1]
        return labelled(label, corners(values, width, height, SLACK, noted=skips.noted))

    youtube = _YOUTUBE.fullmatch(audio)
    return Scene(
        where=where,
        id=f"pascal_sound-test-{image}-{audio}",
        split="test",
        image=(Place("JPEGImages", image),),
        audio=(Place("sounds", audio),),
        keys=(f"image:{image}", f"video:{youtube[1]}" if youtube else f"pascal_sound:{audio}"),
        boxes=usable(objects, box, image, where, skips),
        sizes=((width, height),),
    )


def _class(element: ElementTree.Element) -> str:
    try:
        return plain(element.findtext("name"))
    except RowError:
        return ""
