"""Which things of OpenImages go with which sounds: the reviewed table `classes.csv`.

A row joins boxable classes of OpenImages with nodes of the AudioSet ontology, whose children are
meant too, and with classes of VGGSound. `family` is a node of the ontology above the row's own:
rows of one family are siblings, from which hard negatives are drawn (a cello for a violin).
`general` are classes of OpenImages whose boxes may show the row's thing without naming it.

A clip is *heard* to hold a class when one of its labels is a node of the row, or lies below and
nowhere else: the ontology is no tree, and Squeak, which is below Door and below other things, makes
no door. A clip *may* hold it when it is heard, when a label lies below the row and elsewhere, and
when a label is so general that the row lies below it: "Animal" alone may be a dog. Labels that only
repeat what a finer label says ("Animal" beside "Cat") are not general.

The names and ids come from the AudioSet ontology (Google, CC BY-SA 4.0), the OpenImages class list
(Google, CC BY 4.0) and VGGSound (Chen et al., CC BY 4.0).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.sources.reading import json_items, member, table, words
from meerkat_jax.data.sources.skips import RowError, Skips

TABLE = Path(__file__).with_name("classes.csv")


@dataclasses.dataclass(frozen=True)
class Class:
    """A row: our label, its family, and what the data sets call it: ids, or names (VGGSound)."""

    label: str
    family: str
    openimages: dict[str, str]  # id -> display name
    general: dict[str, str]
    audioset: dict[str, str]
    vggsound: tuple[str, ...]


@functools.cache
def read_classes(path: Path = TABLE) -> tuple[Class, ...]:
    """All rows of the table, in its order; a class's number is its place."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(
        Class(
            row["label"],
            row["family"],
            _named(row["openimages"]),
            _named(row["general"]),
            _named(row["audioset"]),
            tuple(filter(None, (name.strip() for name in row["vggsound"].split(";")))),
        )
        for row in rows
    )


def _named(cell: str) -> dict[str, str]:
    """Read "/m/0bt9lr Dog;/m/01yrx Cat" as {"/m/0bt9lr": "Dog", "/m/01yrx": "Cat"}."""
    pairs = (entry.strip().partition(" ") for entry in cell.split(";") if entry.strip())
    return {mid: display for mid, _, display in pairs}


def check_ids(path: Path, known: Collection[str], wanted: Iterable[Mapping[str, str]]) -> None:
    """UserError unless the ids `known`, as read from `path`, are all of those `wanted`.

    Names are not compared: OpenImages has published three wordings of the same ids.
    """
    lacking = [
        f"{mid} ({name})" for names in wanted for mid, name in names.items() if mid not in known
    ]
    if lacking:
        raise UserError(
            f"{path}:1: {len(lacking)} classes of {TABLE.name} are not in it: "
            f"{', '.join(lacking[:3])}; another version of the file?"
        )


def read_display_names(path: Path, skips: Skips) -> dict[str, str]:
    """Id -> name of a file of two columns, as OpenImages has it; V7's begins with a header."""
    found = {}
    for number, (mid, display) in table(path, skips, ("id", "name"), header=False):
        if (mid, display) != ("LabelName", "DisplayName"):
            with skips.row(path, number):
                found[mid.strip()] = words(display, "class name")
    return found


class Ontology:
    """The AudioSet ontology (ontology.json of github.com/audioset/ontology) and our classes in it.

    Class numbers are bits of plain integers here.
    """

    def __init__(self, path: Path, classes: Sequence[Class]) -> None:
        self.names: dict[str, str] = {}
        self.children: dict[str, list[str]] = {}
        skips = Skips()
        for number, _, value in json_items(path):
            with skips.row(path, number):
                mid = words(member(value, "id"), "id")
                self.names[mid] = words(member(value, "name"), "name")
                below = member(value, "child_ids")
                if not isinstance(below, list):
                    raise RowError("child_ids is not an array", f"{mid}")
                self.children[mid] = [words(child, "child id") for child in below]
        if skips.faults:
            first = skips.faults[0]
            raise UserError(f"{path.parent / first.where}: {first.reason} {first.detail}")
        check_ids(path, self.names, (one.audioset for one in classes))
        self.below = {mid: self._descend(mid) for mid in self.names}
        self.holds = dict.fromkeys(self.names, 0)  # classes that a label says are heard
        self.partly = dict.fromkeys(self.names, 0)  # classes that it lies below, and elsewhere
        self.above = dict.fromkeys(self.names, 0)  # classes that lie below it
        for bit, one in enumerate(classes):
            inside = self._inside(one.audioset)
            beside = set().union(*(self.below[node] for node in one.audioset)) - inside
            over = {mid for mid in self.names if self.below[mid] & one.audioset.keys()} - inside
            for found, mids in ((self.holds, inside), (self.partly, beside), (self.above, over)):
                for mid in mids:
                    found[mid] |= 1 << bit

    def _inside(self, nodes: Iterable[str]) -> set[str]:
        """`nodes`, and what lies below them and nowhere else."""
        parents: dict[str, set[str]] = {mid: set() for mid in self.names}
        for mid, children in self.children.items():
            for child in children:
                parents.setdefault(child, set()).add(mid)
        found, grown = set(nodes), True
        while grown:
            new = {child for mid in found for child in self.children.get(mid, ())} - found
            new = {child for child in new if parents[child] <= found and child in self.names}
            found, grown = found | new, bool(new)
        return found

    def _descend(self, mid: str) -> frozenset[str]:
        """All nodes below `mid`."""
        found, new = set(), {mid}
        while new:
            new = {child for one in new for child in self.children.get(one, ())} - found
            new &= self.names.keys()
            found |= new
        return frozenset(found)

    def judge(self, labels: Sequence[str]) -> tuple[int, int]:
        """(heard, may be heard) of a clip with these labels, as bits of classes."""
        heard = maybe = 0
        for label in labels:
            heard |= self.holds[label]
            maybe |= self.partly[label]
            if not any(other in self.below[label] for other in labels):
                maybe |= self.above[label]
        return heard, heard | maybe
