"""AVSBench, single source (Zhou et al., ECCV 2022): masks of what is heard in clips of VGGSound.

    avsbench/                                          named Single-source by its authors
      s4_meta_data.csv
      s4_data/gt_masks/<split>/<category>/<name>/<name>_<n>.png
      s4_data/visual_frames/<split>/<category>/<name>/<name>_<n>.png
      s4_data/audio_wav/<split>/<category>/<name>.wav
      s4_data/raw_videos/<split>/<category>/<name>.mp4  for what is missing of the two above

Got by the form that github.com/OpenNLPLab/AVSBench names. The table has a row for each of 4,932
clips of five seconds: name (the YouTube id), the start, category (one of 23, as in
playing_acoustic_guitar, horse_clip-clop), split: train (3,452), val (740) or test (740). Not
confirmed: what the start's column is called; it is not needed.

A frame is taken every second, n from 1 to 5, at 15/16 of it. Of training clips the first has a
mask, of test clips each has. A mask is white where the source is, 224 x 224 as the frames, and is
cut at half grey, as by that repository's loader.

The box of an entry is the tight one of its whole mask. There is one source by design, pieces of a
mask are most often one thing with something before it, and the authors of Meerkat, too, have one
box for each frame. The sound is that of the whole clip, for every frame of it: published
evaluations (github.com/swimmiing/ACL-SSL) do the same, and a second alone is too little to tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.sources.entry import Options, Place, Plan
from meerkat_jax.data.sources.grounding import Scene, entries, labelled, plain
from meerkat_jax.data.sources.reading import name, require, table
from meerkat_jax.data.sources.skips import RowError, Skips

FILE = "s4_meta_data.csv"
COLUMNS = ("name", "category", "split")
MASKS = "s4_data/gt_masks"
FRAMES = {"train": (1,), "test": (1, 2, 3, 4, 5)}  # that have masks
SHOWN = 15 / 16  # of its second, where a frame is taken
MOST_PIXELS = 4096 * 4096


class Clip(NamedTuple):
    """A row of the table."""

    name: str
    category: str
    split: str

    def below(self, kind: str) -> str:
        """The folder with what there is of `kind` for its split and category."""
        return f"s4_data/{kind}/{self.split}/{self.category}"


def plan(folder: Path, options: Options) -> Plan:
    """One entry for each frame that has a mask: where is what is heard?"""
    (path,) = require(folder, FILE)
    folder = Path(folder)
    if not (folder / MASKS).is_dir():
        raise UserError(f"{folder}: no folder {MASKS}; expected the layout in docs/data.md")
    skips = Skips()
    masks: list[Path] = []
    found = entries("avsbench", _scenes(folder, path, masks, skips), options, skips)
    return Plan(found, (path, *masks), skips)


def _scenes(folder: Path, path: Path, masks: list[Path], skips: Skips) -> Iterator[Scene]:
    seen: set[Clip] = set()
    for line, row in table(path, skips, COLUMNS):
        clip = None
        with skips.row(path, line):
            clip = _clip(row)
        if clip in seen:
            skips.drop("row twice")
        elif clip and clip.split == "val":
            skips.drop("validation split")
        elif clip:
            seen.add(clip)
            yield from _frames(folder, clip, f"{path.name}:{line}", masks, skips)


def _clip(row: list[str]) -> Clip:
    clip = Clip(*(name(value, what) for value, what in zip(row, COLUMNS, strict=True)))
    if clip.split not in (*FRAMES, "val"):
        raise RowError("split is not train, val or test", f"{clip.split[:40]!r}")
    return clip


def _frames(
    folder: Path, clip: Clip, where: str, masks: list[Path], skips: Skips
) -> Iterator[Scene]:
    for number in FRAMES[clip.split]:
        frame = f"{clip.name}_{number}"
        path = folder / clip.below("gt_masks") / clip.name / f"{frame}.png"
        try:
            box = labelled(plain(clip.category, "category"), mask_box(path))
        except RowError as bad:
            skips.add(where, bad.reason, bad.detail)
            continue
        masks.append(path)
        shown = number - 1 + SHOWN
        yield Scene(
            where=where,
            id=f"avsbench-{clip.split}-{clip.category}-{frame}",
            split=clip.split,
            image=(
                Place(clip.below("visual_frames"), frame),
                Place(clip.below("raw_videos"), clip.name, shown),
            ),
            audio=tuple(Place(clip.below(kind), clip.name) for kind in ("audio_wav", "raw_videos")),
            keys=(f"video:{clip.name}",),
            boxes=(box,),
            seconds=number - 1.0,  # its second has begun: many sounds end a little before the fifth
        )


def mask_box(path: Path) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 in 0..1 of the tight box around a mask; Bad without one."""
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise RowError("mask is too large", f"{path.name}: {image.width} x {image.height}")
            mask = np.asarray(image.convert("L")) >= 128
    except (RowError, MemoryError):
        raise
    except FileNotFoundError:
        raise RowError("no mask", path.name) from None
    except Exception as error:  # Pillow raises nearly anything for a broken file
        raise RowError("mask cannot be read", f"{path.name} ({error})"[:160]) from None
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise RowError("mask is empty", path.name)
    height, width = mask.shape
    x0, x1 = columns[0] / width, (columns[-1] + 1) / width
    return float(x0), float(rows[0] / height), float(x1), float((rows[-1] + 1) / height)
