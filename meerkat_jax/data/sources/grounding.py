"""What the sources of images with boxes around what is heard have in common.

A row of such a data set becomes a `Scene`: an image, a sound, and boxes. Scenes of one id are
about the same image and audio, so their boxes are the answer to one question. A box that cannot
be used is a fault of its own and takes no other box of its image with it: maps of the truth are
sums or unions of boxes, and the evaluation codes of these data sets paint nothing for such a box.
"""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from meerkat_jax.data.example import Box
from meerkat_jax.data.sources import asking
from meerkat_jax.data.sources.boxes import written
from meerkat_jax.data.sources.entry import Entry, Options, Place, generator
from meerkat_jax.data.sources.reading import words
from meerkat_jax.data.sources.skips import RowError, Skips

MOST_BOXES = 16

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Scene:
    """One row: `where` it stands, and the fields of its entry. `truth` is added to the question's.

    named: whether the boxes' labels are class names. Boxes are of images as they are stored: the
    published codes open them with Pillow's Image.open, which applies no EXIF turn.
    """

    where: str
    id: str
    split: str
    image: tuple[Place, ...]
    audio: tuple[Place, ...]
    keys: tuple[str, ...]
    boxes: tuple[Box, ...]
    named: bool = True
    seconds: float = 0.0
    sizes: tuple[tuple[float, float], ...] = ()
    truth: dict[str, Any] = dataclasses.field(default_factory=dict)


def entries(source: str, scenes: Iterable[Scene], options: Options, skips: Skips) -> list[Entry]:
    """An entry for each id, with the boxes of all its scenes."""
    found: dict[str, Scene] = {}
    for scene in scenes:
        first = found.setdefault(scene.id, scene)
        new = tuple(box for box in scene.boxes if box not in first.boxes)
        if new:
            found[scene.id] = dataclasses.replace(first, boxes=first.boxes + new)
        elif first is not scene:
            skips.drop("row twice")
    return [_entry(source, scene, options) for scene in found.values() if _few(scene, skips)]


def _few(scene: Scene, skips: Skips) -> bool:
    if len(scene.boxes) > MOST_BOXES:
        skips.add(scene.where, f"more than {MOST_BOXES} boxes", f"{len(scene.boxes)}: {scene.id}")
    return len(scene.boxes) <= MOST_BOXES


def _entry(source: str, scene: Scene, options: Options) -> Entry:
    rng = generator(options.seed, source, scene.id)
    question = asking.arig(rng, scene.split, scene.boxes)
    question = dataclasses.replace(question, truth=question.truth | scene.truth)
    names = tuple(dict.fromkeys(box.label for box in scene.boxes)) if scene.named else ()
    return Entry(
        id=scene.id,
        split=scene.split,
        image=scene.image,
        audio=scene.audio,
        questions=(question,),
        keys=scene.keys,
        image_labels=names,
        audio_labels=names,
        boxes=scene.boxes,
        seconds=scene.seconds,
        stored=True,
        sizes=scene.sizes,
    )


def plain(value: Any, what: str = "class") -> str:
    """A class name in lower case, as a box's label can have it; RowError otherwise."""
    text = words(value, what).lower().translate(_PLAIN)
    if not text.isprintable():
        raise RowError(f"{what} has control characters", f"{text[:80]!r}")
    if not any(map(str.isalpha, text)):
        raise RowError(f"{what} has no words", f"{text[:80]!r}")
    return words(text, what)


_PLAIN = str.maketrans("_[]", "   ")


def labelled(label: str, corners: Sequence[float]) -> Box:
    """A box that reads back as what it is; RowError otherwise ("1, 2" is no label)."""
    return written(Box(label, *corners))


def usable(
    items: Iterable[Item], read: Callable[[Item], Box], ident: str, where: str, skips: Skips
) -> tuple[Box, ...]:
    """`read` of each item; those that are Bad are faults, and the row is when no other is left."""
    boxes, bads = [], []
    for item in items:
        try:
            boxes.append(read(item))
        except RowError as bad:
            bads.append(RowError(bad.reason, f"{ident}: {bad.detail}"))
    if not boxes:
        raise bads[0] if bads else RowError("no box", ident)
    for bad in bads:
        skips.add(where, bad.reason, bad.detail)
    return tuple(dict.fromkeys(boxes))


def xml_root(path: Path) -> ElementTree.Element:
    """The outermost element of a file; RowError when it is missing or no XML.

    One file is one image here, so a broken one is one fault. No other file is ever opened, and
    the parser refuses entities that would grow without bound.
    """
    try:
        return ElementTree.fromstring(path.read_bytes())
    except OSError as error:
        raise RowError(
            "annotation file cannot be read", f"{path.name} ({error.strerror})"
        ) from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise RowError("annotation file is not XML", f"{path.name} ({error})") from None
