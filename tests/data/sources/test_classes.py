"""The table of classes: its form, and that it names what the published lists name.

`lists/` holds extracts of those lists; its README says from where.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from meerkat_jax.data.example import Box
from meerkat_jax.data.sources.classes import TABLE
from meerkat_jax.data.text import parse_boxes, write_box

LISTS = Path(__file__).with_name("lists")
COLUMNS = ["label", "family", "openimages", "general", "audioset", "vggsound"]
PARTS = {"/m/02p0tk3", "/m/04hgtk", "/m/0dzct"}  # of a person: body, head and face
LABEL = re.compile(r"[a-z0-9]+(?:[ -][a-z0-9]+)*")
OPENIMAGES_ID = re.compile(r"/m/0[0-9a-z_]+")
AUDIOSET_ID = re.compile(r"/(?:m/0|g/1|t/dd)[0-9a-z_]+")


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pairs(cell):
    """'/m/01yrx Cat;/m/0bt9lr Dog' -> [('/m/01yrx', 'Cat'), ('/m/0bt9lr', 'Dog')]."""
    return [tuple(entry.split(" ", 1)) for entry in names(cell)]


def names(cell):
    return cell.split(";") if cell else []


def above(parents, node):
    """All ids over `node`."""
    found, new = set(), [node]
    while new:
        new = [up for one in new for up in parents.get(one, ()) if up not in found]
        found.update(new)
    return found


ROWS = read(TABLE)
OPENIMAGES = {row["id"]: row for row in read(LISTS / "openimages.csv")}
AUDIOSET = {row["id"]: row for row in read(LISTS / "audioset.csv")}
VGGSOUND = {row["name"] for row in read(LISTS / "vggsound.csv")}
PICTURES_ABOVE = {mid: row["parents"].split() for mid, row in OPENIMAGES.items()}
SOUNDS_ABOVE: dict[str, list[str]] = {mid: [] for mid in AUDIOSET}
for parent, one in AUDIOSET.items():
    for child in one["children"].split():
        SOUNDS_ABOVE[child].append(parent)

each_row = pytest.mark.parametrize("row", ROWS, ids=[row["label"] for row in ROWS])


def test_has_the_columns_and_nothing_beside_them():
    lines = TABLE.read_text(encoding="utf-8").split("\n")
    assert lines[0].split(",") == COLUMNS
    assert lines[-1] == "" and all(line == line.strip() for line in lines)
    assert all(None not in row and None not in row.values() for row in ROWS)


def test_has_the_classes_that_it_is_for():
    labels = {row["label"] for row in ROWS}
    assert len(ROWS) >= 80
    assert {"dog", "man", "guitar", "train", "chainsaw", "toilet", "alarm clock", "gun"} <= labels


@pytest.mark.parametrize("column", ["label", "openimages", "audioset", "vggsound"])
def test_nothing_is_in_two_rows(column):
    found = [entry for row in ROWS for entry in names(row[column])]
    assert sorted(found) == sorted(set(found))


@each_row
def test_form(row):
    assert LABEL.fullmatch(row["label"])
    assert all(OPENIMAGES_ID.fullmatch(mid) and name for mid, name in pairs(row["openimages"]))
    assert all(AUDIOSET_ID.fullmatch(mid) and name for mid, name in pairs(row["audioset"]))
    for cell in row.values():
        assert all(entry and entry == entry.strip() for entry in names(cell))


@each_row
def test_general_classes_are_those_above_and_parts_of_persons(row):
    own = {mid for mid, _ in pairs(row["openimages"])}
    over = set().union(*(above(PICTURES_ABOVE, mid) for mid in own)) - own
    parts = PARTS if row["label"] in ("man", "woman", "child") else set()
    assert {mid for mid, _ in pairs(row["general"])} == over | parts


@each_row
def test_label_can_be_written_and_read_back(row):
    box = Box(row["label"], 0.125, 0.25, 0.5, 0.75)
    assert parse_boxes(f"It is {write_box(box)}.").items == (box,)


@each_row
def test_names_are_those_of_the_lists(row):
    assert all(OPENIMAGES[mid]["name"] == name for mid, name in pairs(row["openimages"]))
    assert all(AUDIOSET[mid]["name"] == name for mid, name in pairs(row["audioset"]))
    assert VGGSOUND.issuperset(names(row["vggsound"]))


@each_row
def test_nodes_are_ones_that_clips_were_labelled_with(row):
    assert not any(AUDIOSET[mid]["restrictions"] for mid, _ in pairs(row["audioset"]))


@each_row
def test_family_is_above_every_node(row):
    for mid, _ in pairs(row["audioset"]):
        assert row["family"] in {AUDIOSET[up]["name"] for up in above(SOUNDS_ABOVE, mid)}


@pytest.mark.parametrize(
    ("column", "parents"),
    [("openimages", PICTURES_ABOVE), ("audioset", SOUNDS_ABOVE)],
    ids=["openimages", "audioset"],
)
def test_no_row_is_above_another(column, parents):
    owner = {mid: row["label"] for row in ROWS for mid, _ in pairs(row[column])}
    clashes = [
        (label, owner[up])
        for mid, label in owner.items()
        for up in above(parents, mid)
        if owner.get(up, label) != label
    ]
    assert not clashes


def test_extracts_hold_all_below_the_nodes_and_no_more_than_is_needed():
    used = {mid for row in ROWS for mid, _ in pairs(row["audioset"])}
    needed = {mid for mid in AUDIOSET if used & (above(SOUNDS_ABOVE, mid) | {mid})}
    needed |= {up for mid in used for up in above(SOUNDS_ABOVE, mid)}
    assert needed == set(AUDIOSET) == set(SOUNDS_ABOVE)
    assert VGGSOUND == {name for row in ROWS for name in names(row["vggsound"])}
    shown = {mid for row in ROWS for mid, _ in pairs(row["openimages"])}
    assert set(OPENIMAGES) == shown.union(*(above(PICTURES_ABOVE, mid) for mid in shown))
