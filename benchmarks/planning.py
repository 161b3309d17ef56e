"""Planning AVFIT at its true size: annotation files of as many rows as the published ones.

    python -m benchmarks.planning --images=1743042 --clips=2000000 [--json]

Writes files in the published layout into a temporary folder (about 1.4 GB for the true size): eight
boxes an image of random classes, and clips with one to four labels of the table of classes. Then
reads and joins them as data/build does, without media, and says time, peak memory, examples, and
how long it takes to write the questions of a thousand of them.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from meerkat_jax.data.sources.classes import read_classes
from meerkat_jax.data.sources.entry import Options
from meerkat_jax.data.sources.pairs import plan_audioset

flags.DEFINE_integer("images", 1_743_042, "Images with boxes.")
flags.DEFINE_integer("clips", 2_000_000, "Clips of AudioSet.")
flags.DEFINE_integer("cap", 10_000, "Most examples of a class.")
flags.DEFINE_bool("json", False, "Print one JSON object.")
FLAGS = flags.FLAGS
BOXES = 8  # of an image, as many as OpenImages has on average
OTHERS = 300  # classes that make no sound


def main(_: list[str]) -> None:
    """Write, plan, tell."""
    with tempfile.TemporaryDirectory() as home:
        root, rng = Path(home), np.random.default_rng(0)
        write_images(root / "openimages", FLAGS.images, rng)
        write_clips(root / "audioset", FLAGS.clips, rng)
        begun = time.perf_counter()
        plan = plan_audioset(root, Options(cap=FLAGS.cap))
        planned = time.perf_counter() - begun
        begun = time.perf_counter()
        for index in range(0, len(plan.entries), max(1, len(plan.entries) // 1000)):
            _ = plan.entries[index]
        asked = time.perf_counter() - begun
    found = {
        "images": FLAGS.images,
        "boxes": FLAGS.images * BOXES,
        "clips": FLAGS.clips,
        "examples": len(plan.entries),
        "seconds": round(planned, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "ms_an_example": round(asked, 3),
    }
    print(json.dumps(found) if FLAGS.json else "\n".join(f"{k}: {v}" for k, v in found.items()))


def write_images(folder: Path, count: int, rng: np.random.Generator) -> None:
    """OpenImages' class list and training boxes."""
    folder.mkdir(parents=True)
    ours = {mid: name for one in read_classes() for mid, name in one.openimages.items()}
    general = {mid: name for one in read_classes() for mid, name in one.general.items()}
    others = {f"/m/other{n}": f"Other {n}" for n in range(OTHERS)}
    rows = [f'{mid},"{name}"' for mid, name in (ours | general | others).items()]
    (folder / "class-descriptions-boxable.csv").write_text("\n".join(rows))
    names = np.array([*ours, *others])
    with open(folder / "train-annotations-bbox.csv", "w") as file:
        file.write(
            "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
            "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
        )
        for start in range(0, count, 10_000):
            rows = min(10_000, count - start) * BOXES
            labels = names[rng.integers(len(names), size=rows)]
            low, size = rng.random((rows, 2)) * 0.6, rng.random((rows, 2)) * 0.3 + 0.05
            high = low + size
            file.writelines(
                f"{start + row // BOXES:016x},xclick,{labels[row]},1,{low[row, 0]:.6f},"
                f"{high[row, 0]:.6f},{low[row, 1]:.6f},{high[row, 1]:.6f},0,0,0,0,0\n"
                for row in range(rows)
            )


def write_clips(folder: Path, count: int, rng: np.random.Generator) -> None:
    """A flat ontology of the table's nodes, and AudioSet's training clips."""
    folder.mkdir(parents=True)
    nodes = {mid: name for one in read_classes() for mid, name in one.audioset.items()}
    ontology = [{"id": mid, "name": name, "child_ids": []} for mid, name in nodes.items()]
    (folder / "ontology.json").write_text(json.dumps(ontology))
    mids = np.array([*nodes])
    with open(folder / "unbalanced_train_segments.csv", "w") as file:
        file.write("# Segments csv\n# num_ytids\n# YTID, start_seconds, end_seconds, labels\n")
        for number, labels in enumerate(rng.integers(1, 5, size=count)):
            said = ",".join(mids[rng.integers(len(mids), size=labels)])
            file.write(f'{number:011x}, 30.000, 40.000, "{said}"\n')


if __name__ == "__main__":
    app.run(main)
