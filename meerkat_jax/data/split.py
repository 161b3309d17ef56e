"""Records on disk: the splits of a built folder, their parts, and those of a mixture of folders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import grain
import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.example import from_bytes
from meerkat_jax.data.lengths import Lengths, joined, measure
from meerkat_jax.data.order import BOXED, MATCHED
from meerkat_jax.data.prompt import Prompt

TRAITS = {"matched": MATCHED, "boxed": BOXED}  # parts of every built split


class Part:
    """Some records of a source, by their indices in it."""

    def __init__(self, source, indices: Sequence[int]) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> bytes:
        return self.source[int(self.indices[index])]


@dataclasses.dataclass(frozen=True)
class Split:
    """What is read of a folder: "train", or "train/matched", of that split the part `matched`.

    repeats: how often examples of a mixture's sources come, by name, those not named not at all;
    None as the mixture says.
    """

    folder: Path
    name: str
    repeats: Mapping[str, float] | None = None

    def open(self) -> grain.MapDataset:
        """The records by index, as Example; of a mixture those of all its sources.

        Raises UserError when the folder has no such split or part, or no such source.
        """
        parts = [open_one(place, self.name) for place, _ in self.sources()]
        return parts[0] if len(parts) == 1 else grain.MapDataset.concatenate(parts)

    def sources(self) -> list[tuple[Path, float]]:
        """Folders that have records of it, and how often these come, in the order of `open`."""
        given = self._given()
        found = [(place, often) for place, often in given if often and _holds(place, self.name)]
        if not found:
            for place, repeats in given:
                if repeats:
                    open_one(place, self.name)  # says what it lacks
            raise UserError(f"{self.folder}: all of its sources have 0 repeats")
        return found

    def _given(self) -> list[tuple[Path, float]]:
        folder = Path(self.folder)
        there = (folder / "manifest.json").is_file()
        named = read_manifest(folder).get("sources") if there else None
        given = [(Path(place), repeats) for place, repeats in named or [(folder, 1.0)]]
        if self.repeats is None:
            return given
        names = [place.name for place, _ in given]
        for name in self.repeats:
            if name not in names:
                raise UserError(f"sources: {name!r} is none of the mixture's {', '.join(names)}")
        return [(place, self.repeats.get(place.name, 0.0)) for place, _ in given]

    def has_texts(self) -> bool:
        """Whether the questions lie apart from the records, so that they can be measured."""
        return all((place / "texts").is_dir() for place, _ in self.sources())

    def lengths(self, prompt: Prompt, cache: Path) -> Lengths:
        """How many tokens the questions of these records take, in the order of `open`."""
        name, _, part = self.name.partition("/")
        found = []
        for place, _ in self.sources():
            whole = measure(place, name, prompt, cache)
            found.append(whole.of(read_part(place, name, part)) if part else whole)
        return joined(found)

    def strata(self) -> np.ndarray | None:
        """MATCHED | BOXED (data/order.py) of each record, uint8[n], in the order of `open`.

        None where questions do not lie apart from the records: nothing is known then. Raises
        UserError for a folder that was built before such parts were written.
        """
        if not self.has_texts():
            return None
        name, _, part = self.name.partition("/")
        found = []
        for place, _ in self.sources():
            whole = np.zeros(len(open_one(place, name)), np.uint8)
            for trait, bit in TRAITS.items():
                if not _part_file(place, name, trait).is_file():
                    raise UserError(
                        f"{place}: split {name!r} has no part {trait!r}, an earlier version built "
                        "it; build it again with --overwrite (docs/data.md)"
                    )
                whole[read_part(place, name, trait)] |= bit
            found.append(whole[read_part(place, name, part)] if part else whole)
        return np.concatenate(found)


def open_split(folder: Path, split: str) -> grain.MapDataset:
    """The records of one split by index; see `Split`."""
    return Split(folder, split).open()


def has_split(folder: Path, split: str) -> bool:
    """Whether the folder, or any source of a mixture, has records of a split."""
    try:
        return bool(Split(folder, split).sources())
    except UserError:
        return False


def _files(folder: Path, name: str) -> list[str]:
    return sorted(str(path) for path in Path(folder).glob(f"{name}-*.array_record"))


def _holds(folder: Path, split: str) -> bool:
    """Whether a built folder has a split, or a part of it, without opening its files."""
    name, _, part = split.partition("/")
    path = _part_file(folder, name, part)
    filled = not part or (path.is_file() and len(np.load(path, mmap_mode="r")) > 0)
    return bool(_files(folder, name)) and filled


def open_one(folder: Path, split: str) -> grain.MapDataset:
    """The records of one split of a built folder."""
    name, _, part = split.partition("/")
    paths = _files(folder, name)
    if not paths:
        have = sorted({p.name.split("-")[0] for p in Path(folder).glob("*.array_record")})
        raise UserError(f"{folder}: no split {name!r}; it holds {', '.join(have) or 'no records'}")
    source = grain.sources.ArrayRecordDataSource(paths)
    if part:
        rows = read_part(folder, name, part)
        if not len(rows):
            raise UserError(f"{folder}: no record of split {name!r} is in its part {part!r}")
        source = Part(source, rows)
    return grain.MapDataset.source(source).map(from_bytes)


def write_part(folder: Path, split: str, part: str, rows: Sequence[int]) -> None:
    """Keep which records of a split are in a part of it, by number, as `parts/<split>-<part>.npy`.

    A phase of training can read the part alone, as "<split>/<part>".
    """
    (Path(folder) / "parts").mkdir(exist_ok=True)
    np.save(_part_file(folder, split, part), np.array(sorted(rows), np.int64))


def _part_file(folder: Path, split: str, part: str) -> Path:
    return Path(folder) / "parts" / f"{split}-{part}.npy"


def read_part(folder: Path, split: str, part: str) -> np.ndarray:
    """The numbers int64[n] of the records in a part; UserError naming the parts for another."""
    try:
        return np.load(_part_file(folder, split, part))
    except OSError:
        there = Path(folder).glob(f"parts/{split}-*.npy")
        parts = sorted(path.stem.removeprefix(f"{split}-") for path in there)
        raise UserError(
            f"{folder}: split {split!r} has no part {part!r}; it has {', '.join(parts) or 'none'}"
        ) from None


def read_manifest(folder: Path) -> dict:
    """manifest.json of a built data set; UserError when the folder is not one."""
    path = Path(folder) / "manifest.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a built data set ({error}); build it first") from error
