"""Which benchmarks can be scored here: held-out splits of the run's data, and what is built.

compositions, augmentations, instances   of the mini data set
vggss, valor, ...                        the test split of a folder that data/build.py built
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from meerkat_jax.data import leaks
from meerkat_jax.data.split import Split, has_split, read_manifest
from meerkat_jax.errors import UserError, nearest

MINI = ("compositions", "augmentations", "instances")
TEST = "test"
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What it is called, and the split of a folder that it is."""

    name: str
    folder: Path
    split: str

    def records(self):
        """Its examples by index."""
        return Split(self.folder, self.split).open()


def find(folder: Path, root: Path | None = None) -> dict[str, Benchmark]:
    """Benchmarks by name: of the run's data in `folder`, and of folders built below `root`."""
    known = {name: Benchmark(name, folder, name) for name in MINI if has_split(folder, name)}
    places = [Path(place) for place, _ in read_manifest(folder).get("sources", ())]
    if root is not None:
        built = sorted(path.parent for path in Path(root).glob("*/manifest.json"))
        if not built:
            raise UserError(f"--root={root}: nothing is built there; see docs/data.md")
        places += [place for place in built if place.name not in {one.name for one in places}]
    for place in places:
        if has_split(place, TEST):
            known[place.name] = Benchmark(place.name, place, TEST)
    return known


def choose(
    known: dict[str, Benchmark], asked: Sequence[str], folder: Path, root: Path | None
) -> list[Benchmark]:
    """Those asked for by name, or all; UserError naming the nearest for one that is not there."""
    if not known:
        raise UserError(f"{folder}: no held-out split to score; name built folders with --root")
    if not asked or list(asked) == [ALL]:
        return list(known.values())
    for name in asked:
        if name not in known:
            places = f"{folder} or below {root}" if root else str(folder)
            raise UserError(
                f"benchmark {name!r} is not in {places}; did you mean "
                f"{nearest(name, known, 1)[0]!r}? (one of {', '.join(known)}, or {ALL})"
            )
    return [known[name] for name in dict.fromkeys(asked)]


def refuse_leaks(folder: Path, benchmarks: Sequence[Benchmark]) -> None:
    """UserError when something of a benchmark is in what the run trained on.

    The mini data set has no keys, and shares nothing with published ones.
    """
    trained = [Path(place) for place, _ in read_manifest(folder).get("sources", ())]
    leaks.refuse(trained, [one.folder for one in benchmarks if one.folder not in trained])
