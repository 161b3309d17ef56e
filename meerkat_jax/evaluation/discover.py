"""Which benchmarks can be scored here: held-out splits of the run's data, and what is built.

compositions, augmentations, instances   of the mini data set
vggss, valor, ...                        the test split of a folder that data/build built
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from meerkat_jax.core.errors import UserError, nearest
from meerkat_jax.data import leaks
from meerkat_jax.data.split import Split, has_split

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


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a run was trained on, as far as it is here.

    folder: of its data set; None where some of its sources are not here. sources: the built folders
    that are. absent: names of those that are not, with which nothing can be compared.
    """

    folder: Path | None
    sources: tuple[Path, ...] = ()
    absent: tuple[str, ...] = ()


def trained_on(
    data: Mapping[str, Any],
    cache: Path,
    name: str | None,
    root: Path | None,
    open_folder: Callable[[Mapping[str, Any], Path, str | None], Path],
) -> Trained:
    """The data set `name` of a run whose config has `data`.

    open_folder: `meerkat_jax.from_config.open_folder`.
    Its sources are sought below `root`, if that is given, wherever they were when it was trained.
    UserError when the data set here is another, and without `root` when sources are not in place.
    """
    if data["kind"] != "avfit":
        return Trained(open_folder(data, cache, name))
    home = root or Path(data["root"]).expanduser()
    there = {source: (home / source / "manifest.json").is_file() for source in data["sources"]}
    absent = tuple(source for source, found in there.items() if not found)
    if absent and root is None:
        raise UserError(
            f"{', '.join(absent)}, on which the run was trained, is not in {home}, its data.root; "
            "name the folder of built sources here with --root"
        )
    places = tuple(home / source for source, found in there.items() if found)
    folder = None if absent else open_folder({**data, "root": str(home)}, cache, name)
    return Trained(folder, places, absent)


def find(trained: Trained, root: Path | None = None) -> dict[str, Benchmark]:
    """Benchmarks by name: of the data trained on, and of folders built below `root`."""
    folder = trained.folder
    minis = MINI if folder else ()
    known = {name: Benchmark(name, folder, name) for name in minis if has_split(folder, name)}
    places = list(trained.sources)
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
    known: dict[str, Benchmark], asked: Sequence[str], folder: Path | None, root: Path | None
) -> list[Benchmark]:
    """Those asked for by name, or all; UserError naming the nearest for one that is not there."""
    places = " or below ".join(str(place) for place in (folder, root) if place)
    if not known:
        raise UserError(f"{places}: no held-out split to score; name built folders with --root")
    if not asked or list(asked) == [ALL]:
        return list(known.values())
    for name in asked:
        if name not in known:
            raise UserError(
                f"benchmark {name!r} is not in {places}; did you mean "
                f"{nearest(name, known, 1)[0]!r}? (one of {', '.join(known)}, or {ALL})"
            )
    return [known[name] for name in dict.fromkeys(asked)]


def check_leaks(trained: Trained, benchmarks: Sequence[Benchmark]) -> None:
    """UserError when something of a benchmark is in what the run trained on.

    The mini data set has no keys, and shares nothing with published ones.
    """
    held = [one.folder for one in benchmarks if one.folder not in trained.sources]
    leaks.refuse(trained.sources, held)


def unseen(trained: Trained) -> str | None:
    """What cannot be said of the benchmarks, in a line."""
    if not trained.absent:
        return None
    return (
        "WARNING: no leaks were looked for between the benchmarks and "
        f"{', '.join(trained.absent)}, on which the run was trained: not built below --root"
    )
