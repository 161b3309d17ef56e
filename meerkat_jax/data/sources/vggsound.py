"""VGGSound: sounds of one class each, for joining with images (`pairs.py`).

    vggsound/
      vggsound.csv                      www.robots.ox.ac.uk/~vgg/data/vggsound
      clips/<YouTube id>_<start, six digits>.*    ten seconds each, sound or video, in any folders
                                                  below
      videos/<YouTube id>.*             whole videos, from which the ten seconds are cut

A row without header: YouTube id, start in seconds, label, split (train or test), as in
`---g-f_I2yQ,1,people marching,test`; labels with a comma are quoted.
"""

from __future__ import annotations

from pathlib import Path

from meerkat_jax.data.sources.audio_clips import SPLITS, AudioClips, AudioRows
from meerkat_jax.data.sources.classes import Class
from meerkat_jax.data.sources.entry import Place
from meerkat_jax.data.sources.reading import name, number, require, table, words
from meerkat_jax.data.sources.skips import RowError, Skips

FILE = "vggsound.csv"
COLUMNS = ("YouTube id", "start", "label", "split")


def places(video: str, start: float) -> tuple[Place, ...]:
    """Where a clip may lie: cut out already, or within the whole video."""
    cut = Place("vggsound/clips", f"{video}_{round(start):06d}")
    return cut, Place("vggsound/videos", video, start)


def read_weak(folder: Path, classes: tuple[Class, ...], skips: Skips) -> AudioClips:
    """All clips in which one of `classes` is heard."""
    (path,) = require(folder, FILE)
    holds: dict[str, int] = {}
    for bit, one in enumerate(classes):
        for label in one.vggsound:
            holds[label.lower()] = holds.get(label.lower(), 0) | 1 << bit
    rows = AudioRows()
    for line, row in table(path, skips, COLUMNS, header=False):
        with skips.row(path, line):
            ident, start, label, split = (field.strip() for field in row)
            if split not in SPLITS:
                raise RowError("split is not train or test", f"{split[:40]!r}")
            label = words(label, "label").lower()
            start = number(start, "start", 0)
            heard = holds.get(label, 0)
            rows.add(name(ident, "YouTube id"), start, split, label, heard, heard, skips)
    return rows.gathered(len(classes))
