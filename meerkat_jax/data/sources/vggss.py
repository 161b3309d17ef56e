"""VGG-SS (Chen et al., CVPR 2021): boxes around what is heard in clips of VGGSound, for testing.

    vggss/
      vggss.json                        github.com/hche11/Localizing-Visual-Sounds-the-Hard-Way,
                                        folder metadata
      frames/<file>.*  audio/<file>.*   the annotated frame and the sound, as that repository's
                                        test code has them, or
      clips/<file>.*                    the ten seconds of VGGSound as a video, or
      videos/<YouTube id>.*             the whole video

The file is an array of 5,158 objects on one line:

    file    <YouTube id>_<start in seconds, six digits>; each comes once
    class   one of VGGSound's labels, as in "people belly laughing", "female speech, woman speaking"
    bbox    boxes [x0, y0, x1, y1] in 0..1 of width and height, mostly one, at most seven

Of its 5,941 boxes twelve have a corner of -2.9e16 and six have no area. They are faults; the
published evaluation paints nothing for them. Two images have no other box.

The annotated frame is the middle one of the ten seconds, by the paper; github.com/swimmiing/ACL-SSL
(VGGSS/README.md) says more exactly: the 125th at 25 frames a second. Not confirmed: whether frames
are counted from 0 or 1 there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import Box
from meerkat_jax.data.sources.boxes import corners
from meerkat_jax.data.sources.entry import Options, Place, Plan
from meerkat_jax.data.sources.grounding import Scene, entries, labelled, plain, usable
from meerkat_jax.data.sources.reading import json_items, member, require
from meerkat_jax.data.sources.skips import RowError, Skips

FILE = "vggss.json"
MIDDLE = 4.98  # seconds: amid the time for which the 125th frame of 25 a second is shown

_ID = re.compile(r"([A-Za-z0-9_-]{11})_([0-9]{6})")


def plan(folder: Path, options: Options) -> Plan:
    """One entry for each clip: where is what is heard?"""
    (path,) = require(folder, FILE)
    skips = Skips()
    return Plan(entries("vggss", _scenes(path, skips), options, skips), (path,), skips)


def _scenes(path: Path, skips: Skips) -> Iterator[Scene]:
    for line, key, row in json_items(path):
        if key:
            raise UserError(
                f"{path}:{line}: expected an array of objects, found the key {key[:40]!r}"
            )
        scene = None
        with skips.row(path, line):
            scene = _scene(row, f"{path.name}:{line}", skips)
        if scene:
            yield scene


def _scene(row: Any, where: str, skips: Skips) -> Scene:
    file = member(row, "file")
    parts = _ID.fullmatch(file) if isinstance(file, str) else None
    if not parts:
        raise RowError("file is not <YouTube id>_<six digits>", f"{str(file)[:80]!r}")
    label = plain(member(row, "class"))
    boxes = member(row, "bbox")
    if not isinstance(boxes, list):
        raise RowError("bbox is not a list of boxes", file)
    start = float(parts[2])

    def box(values: Any) -> Box:
        return labelled(label, corners(values, noted=skips.noted))

    return Scene(
        where=where,
        id=f"vggss-test-{file}",
        split="test",
        image=(
            Place("frames", file),
            Place("clips", file, MIDDLE),
            Place("videos", parts[1], start + MIDDLE),
        ),
        audio=(Place("audio", file), Place("clips", file), Place("videos", parts[1], start)),
        keys=(f"video:{parts[1]}",),
        boxes=usable(boxes, box, file, where, skips),
    )
