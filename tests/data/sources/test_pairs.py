"""OpenImages joined with AudioSet and VGGSound: what is paired, and what is claimed of it."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.sources import pairs
from meerkat_jax.data.sources.classes import Ontology, read_classes
from meerkat_jax.data.sources.entry import Options
from meerkat_jax.data.text import check_response, parse_boxes
from meerkat_jax.data.verdict import parse_verdict
from tests.data.sources import tree_pairs
from tests.data.sources.tree_pairs import NODES, box

FUZZ = int(os.environ.get("MEERKAT_FUZZ", 30))
PLANS = {
    "openimages_audioset": pairs.plan_audioset,
    "openimages_strong": pairs.plan_strong,
    "openimages_vggsound": pairs.plan_vggsound,
}
each_source = pytest.mark.parametrize("source", PLANS)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    tree_pairs.write(folder)
    return folder


@pytest.fixture(scope="module")
def plans(tree):
    return {source: plan(tree, Options()) for source, plan in PLANS.items()}


@pytest.fixture
def entries(plans, source):
    return list(plans[source].entries)


def questions(entries):
    return [(entry, question) for entry in entries for question in entry.questions]


def truth_of(ident):
    """Class of a clip, by its place in the tree."""
    return {
        video: kind for split in tree_pairs.PER_CLASS for video, _, kind in tree_pairs.clips(split)
    }[ident]


# ---- what is paired ----


@each_source
def test_every_picture_is_used_once_for_each_of_its_classes(entries):
    used = Counter((e.image[0].name, e.image_labels, e.split) for e in entries if e.matched)
    for split in ("train", "test"):
        for image, name in tree_pairs.images(split):
            assert used[image, (name,), split] == 1


@each_source
def test_matched_pairs_share_a_class_and_mismatched_ones_none(entries):
    for entry in entries:
        video = entry.keys[1].removeprefix("video:")
        assert entry.audio_labels == (truth_of(video),)
        assert entry.matched == bool(set(entry.image_labels) & set(entry.audio_labels))
        assert bool(entry.boxes) == entry.matched


@each_source
def test_no_picture_and_no_video_is_in_two_splits(entries):
    splits = defaultdict(set)
    for entry in entries:
        for key in entry.keys:
            splits[key].add(entry.split)
    assert all(len(found) == 1 for found in splits.values())


@each_source
def test_ids_are_unique_and_the_plan_the_same_again(entries, source, tree):
    assert len({entry.id for entry in entries}) == len(entries)
    assert list(PLANS[source](tree, Options()).entries) == entries


def test_another_seed_gives_other_pairs(plans, tree):
    other = list(pairs.plan_audioset(tree, Options(seed=1)).entries)
    assert {e.id for e in other} != {e.id for e in plans["openimages_audioset"].entries}


def test_groups_and_drawings_are_seen_but_not_asked_for(plans):
    for plan in plans.values():
        images = {entry.image[0].name for entry in plan.entries}
        assert "ff00000000000001" in images and "ff00000000000005" in images
        assert not images & {f"ff0000000000000{n}" for n in (2, 3, 4)}


def test_all_boxes_of_a_class_are_asked_for_the_largest_first(plans):
    (entry,) = (
        e
        for e in plans["openimages_audioset"].entries
        if e.image[0].name == "ff00000000000005" and e.matched
    )
    grounding = entry.questions[0]
    assert grounding.task == "arig"
    corners = [(b.label, round(b.x0, 3), round(b.x1, 3)) for b in grounding.boxes]
    assert corners == [("car", 0.5, 0.9), ("car", 0.2, 0.4)]
    assert entry.boxes == grounding.boxes


def test_a_cap_holds_for_each_class_and_split(tree):
    plan = pairs.plan_audioset(tree, Options(cap=2))
    found = Counter((e.split, e.audio_labels) for e in plan.entries if e.matched)
    assert max(found.values()) == 2 and plan.skips.dropped["class over its cap"] > 0


def test_where_the_media_may_lie(plans):
    entry = plans["openimages_strong"].entries[0]
    video = entry.keys[1].removeprefix("video:")
    cut, named, whole = entry.audio
    assert (cut.folder, cut.name, cut.at) == ("audioset/clips", video, 0)
    assert named.name.startswith(f"{video}_3") and named.name.endswith("000")
    assert whole.folder == "audioset/videos" and 30 <= whole.at < 40
    entry = plans["openimages_vggsound"].entries[0]
    assert entry.audio[0].name[-7:-2] == "_0000"


# ---- what is claimed ----


@each_source
def test_true_and_false_are_as_frequent_for_each_class_type_and_split(entries):
    found = Counter()
    for entry, question in questions(entries):
        if question.task.startswith("avfact"):
            about = entry.id.rsplit("-", 1)[1]
            found[entry.split, question.task, about, question.truth["answer"]] += 1
    kinds = {key[:3] for key in found}
    assert len(kinds) == 2 * 2 * len(tree_pairs.CLASSES)
    assert all(found[*kind, True] == found[*kind, False] > 0 for kind in kinds)


@each_source
def test_every_kind_of_negative_occurs_where_it_can(entries, source):
    found = {q.truth.get("negative") for _, q in questions(entries)} - {None}
    wanted = {"class", "sibling"} | ({"interval"} if source.endswith("strong") else set())
    assert wanted <= found <= wanted | {"box"}


@each_source
def test_siblings_are_of_one_family(entries):
    family = {one.label: one.family for one in read_classes()}
    for entry, question in questions(entries):
        if question.truth.get("negative") in ("class", "sibling"):
            same = family[entry.id.rsplit("-", 1)[1]] == family[entry.audio_labels[0]]
            assert same == (question.truth["negative"] == "sibling")


@each_source
def test_every_answer_reads_back(entries):
    for entry, question in questions(entries):
        if question.task.startswith("avfact"):
            assert parse_verdict(question.response) == question.truth["answer"]
            boxes = parse_boxes(question.instruction).items
            assert len(boxes) == (question.task in ("avfact1", "avfact3"))
        else:
            check_response(question)
        assert entry.matched or question.truth["answer"] is False


def test_claimed_times_hold_the_sound_or_keep_away_from_it(plans):
    checked = Counter()
    for entry, question in questions(plans["openimages_strong"].entries):
        if "interval" not in question.truth:
            continue
        start, end = question.truth["interval"]
        assert 0 <= start < end <= 10 and end - start >= 0.9
        if not entry.matched:
            continue
        (grounding,) = (q for q in entry.questions if q.task == "igatl")
        shared = sum(max(0.0, min(end, s.end) - max(start, s.start)) for s in grounding.segments)
        if question.truth["answer"]:
            assert shared >= 0.1
        elif question.truth["negative"] == "interval":
            assert shared == 0.0 and question.response.endswith("in that time: False.")
        checked[question.truth["answer"]] += 1
    assert checked[True] and checked[False]


def test_segments_are_merged_and_short_events_left_out(plans):
    for entry in plans["openimages_strong"].entries:
        for question in entry.questions:
            if question.task == "igatl":
                spans = [(s.start, s.end) for s in question.segments if s.end < 8]
                assert len(spans) == 1 and spans[0][1] - spans[0][0] == 3.0
                late = [s for s in question.segments if s.end > 8]
                assert [(s.start, s.end) for s in late] == [(9.0, 9.5)] * (
                    entry.audio_labels == ("dog",)
                )
    assert plans["openimages_strong"].skips.dropped["event under 0.1 s"] == 18


def test_a_box_of_another_thing_makes_a_false_claim(tmp_path):
    tree_pairs.write(tmp_path)
    path = tmp_path / "openimages" / "test-annotations-bbox.csv"
    rows = [box(f"c{n}", name, corners) for n in range(60)
            for name, corners in (("dog", "0,0.5,0,0.5"), ("cat", "0.5,1,0.5,1"))]  # fmt: skip
    path.write_text("\n".join([tree_pairs.BOXES, *rows]))
    found = 0
    for entry, question in questions(pairs.plan_audioset(tmp_path, Options()).entries):
        if question.truth.get("negative") == "box":
            (asked,) = parse_boxes(question.instruction).items
            silent = "cat" if entry.audio_labels == ("dog",) else "dog"
            assert asked.x0 == (0.5 if silent == "cat" else 0) and silent in question.response
            assert entry.matched and question.truth["answer"] is False
            found += 1
    assert found >= 10


# ---- the ontology ----


@pytest.fixture(scope="module")
def judge(tree):
    labels = [one.label for one in read_classes()]
    ontology = Ontology(tree / "audioset" / "ontology.json", read_classes())

    def judged(*names):
        found = ontology.judge([NODES[name] for name in names])
        return [{labels[i] for i in range(len(labels)) if bits >> i & 1} for bits in found]

    return judged


def test_a_label_below_a_node_is_heard_as_its_class(judge):
    heard, maybe = judge("bark")
    assert heard == maybe == {"dog"}


def test_a_general_label_rules_nothing_below_it_out(judge):
    heard, maybe = judge("animal")
    assert not heard and {"dog", "cat", "owl"} <= maybe and "car" not in maybe


def test_a_general_label_beside_a_fine_one_says_nothing_more(judge):
    assert judge("animal", "cat") == [{"cat"}, {"cat"}]


def test_a_label_below_several_nodes_is_a_perhaps(judge):
    heard, maybe = judge("squeak", "dog")
    assert heard == {"dog"} and "door" in maybe


# ---- rows that cannot be used ----


def spoil(tree, tmp_path, name, change):
    """A copy of the tree with one file changed."""
    for path in tree.rglob("*.*"):
        target = tmp_path / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(change(path.read_bytes()) if path.name == name else path.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (box("a1", "dog", "0.5,0.5,0.2,0.7"), "box without an area"),
        (box("a1", "dog", "0.5,1.7,0.2,0.7"), "box outside the image"),
        (box("a1", "dog", "0.5,x,0.2,0.7"), "box corner is not a number"),
        (box("a1", "dog", "0.5,nan,0.2,0.7"), "box corner is out of range"),
        (box("a1", "dog", flags="0,0,7,0,0"), "flag is not 0, 1 or -1"),
        (box("../a1", "dog"), "ImageID is no name of a file"),
        (box("a1", "dog", "0.6,0.1,0.2,0.7"), "corners out of order"),
        (box("a1", "dog", "0.1,0.1002,0.2,0.7"), "nothing is left of it in three decimals"),
        (box("a1", "dog").replace("/m/0bt9lr", "/m/none"), "unknown class"),
        ("a1,xclick", "wrong number of fields"),
        ('a1,"xclick,/m/0bt9lr,1,0,1,0,1,0,0,0,0,0', "a quote is left open or stands amid a field"),
        (box(tree_pairs.images("train")[0][0], "dog"), "image in two splits"),
    ],
)
def test_bad_boxes_are_counted_and_cost_no_other(tree, tmp_path, plans, row, reason):
    name = "test-annotations-bbox.csv"
    folder = spoil(tree, tmp_path, name, lambda data: data + f"\n{row}\n".encode())
    plan = pairs.plan_audioset(folder, Options())
    (fault,) = plan.skips.faults
    line = 2 + len(tree_pairs.images("test"))
    assert (fault.where, fault.reason) == (f"{name}:{line}", reason)
    assert list(plan.entries) == list(plans["openimages_audioset"].entries)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("-abc, 0.0, 10.0", "wrong number of fields"),
        ('-abc, 10.0, 0.0, "/m/0bt9lr"', "time ends before it begins"),
        ('-abc, 0.0, 10.0, "/m/none"', "label is not in the ontology"),
        ('-abc, 0.0, 10.0, "/m/0bt9lr', "a quote is left open or stands amid a field"),
        ('../abc, 0.0, 10.0, "/m/0bt9lr"', "YouTube id is no name of a file"),
        ('_dog____000, 30.000, 40.000, "/m/0k4j"', "clip twice with other labels"),
        ('-dog____000, 30.000, 40.000, "/m/0bt9lr"', "clip in two splits"),
    ],
)
def test_bad_clips_are_counted_and_cost_no_other(tree, tmp_path, plans, row, reason):
    folder = spoil(tree, tmp_path, "eval_segments.csv", lambda data: data + f"{row}\n".encode())
    plan = pairs.plan_audioset(folder, Options())
    (fault,) = plan.skips.faults
    assert fault.reason == reason and fault.where.startswith("eval_segments.csv:")
    assert list(plan.entries) == list(plans["openimages_audioset"].entries)


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("test-annotations-bbox.csv", b"LabelName", b"Label", ["bbox.csv:1", "LabelName"]),
        ("class-descriptions-boxable.csv", b"/m/0bt9lr", b"/m/xx", ["boxable.csv:1", "/m/0bt9lr"]),
        ("ontology.json", b'"/m/0bt9lr"', b'"/m/xx"', ["ontology.json:1", "/m/0bt9lr"]),
        ("ontology.json", b"[\n", b"[,\n", ["ontology.json:1"]),
        ("audioset_eval_strong.tsv", b"label", b"mid", ["strong.tsv:1", "label"]),
        ("eval_segments.csv", b"_dog", b"\xff", ["eval_segments.csv:4", "UTF-8"]),
    ],
)
def test_a_wrong_file_is_refused_by_file_and_line(tree, tmp_path, name, old, new, words):
    folder = spoil(tree, tmp_path, name, lambda data: data.replace(old, new))
    plan = PLANS["openimages_strong" if "strong" in name else "openimages_audioset"]
    with pytest.raises(UserError) as refused:
        plan(folder, Options())
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize(
    "name", ["ontology.json", "class-descriptions-boxable.csv", "vggsound.csv"]
)
def test_a_missing_file_is_named(tree, tmp_path, name):
    folder = spoil(tree, tmp_path, name, lambda data: data)
    next(folder.rglob(name)).unlink()
    plan = PLANS["openimages_vggsound" if "vgg" in name else "openimages_audioset"]
    with pytest.raises(UserError, match=name.split(".")[0]):
        plan(folder, Options())


# ---- whatever stands in a file ----

FILES = {
    "oidv6-train-annotations-bbox.csv": "openimages_audioset",
    "class-descriptions-boxable.csv": "openimages_audioset",
    "unbalanced_train_segments.csv": "openimages_audioset",
    "audioset_train_strong.tsv": "openimages_strong",
    "ontology.json": "openimages_audioset",
    "vggsound.csv": "openimages_vggsound",
}
PIECES = [
    b"\x00",
    b'"',
    b",",
    b"\n",
    b"\r\n",
    b"\t",
    b"nan",
    b"-1",
    b"1e999",
    b"\xff",
    "é".encode(),
]
PIECES += [b"[", b"]", b"{", b"null", b"/m/0bt9lr", b"_30000", b"../", b"#"]


@pytest.fixture(scope="module")
def copies(tree, tmp_path_factory):
    """Trees that a fuzzer may write into, one file each."""
    return {name: spoil(tree, tmp_path_factory.mktemp("f"), name, bytes) for name in FILES}


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=FUZZ, deadline=None)
@given(data=st.data())
def test_no_file_ends_in_anything_but_a_plan_or_a_named_line(copies, tree, name, data):
    whole = next(tree.rglob(name)).read_bytes()
    path = next(copies[name].rglob(name))
    at = data.draw(st.integers(0, len(whole)))
    cut = data.draw(st.integers(0, 12))
    piece = data.draw(st.sampled_from(PIECES) | st.binary(max_size=6))
    path.write_bytes(whole[:at] + piece + whole[at + cut :])
    try:
        plan = PLANS[FILES[name]](copies[name], Options())
    except UserError as error:
        assert name in str(error) and (f"{name}:" in str(error))
        return
    where = {fault.where.split(":")[0] for fault in plan.skips.faults}
    if name == "class-descriptions-boxable.csv":  # rows of a class that it no longer has
        where -= {fault.where.split(":")[0] for fault in plan.skips.faults
                  if fault.reason == "unknown class"}  # fmt: skip
    assert where <= {name}
    for index in range(0, len(plan.entries), 7):
        assert plan.entries[index].questions
    if name.endswith("bbox.csv") and b"\n" in whole[:at]:  # another header: all rows are faults
        _lost_no_good_box(plan, whole, at, cut, piece)


def _lost_no_good_box(plan, whole, at, cut, piece):
    """Images whose rows were not touched are still there."""
    first, last = whole.count(b"\n", 0, at), whole.count(b"\n", 0, at + cut)
    lines = whole.decode("utf-8-sig").split("\n")
    touched = {line.split(",")[0] for line in lines[first : last + 1]}
    untouched = {
        image
        for image, _ in tree_pairs.images("train")
        if image not in touched and image.encode() not in piece
    }
    assert untouched <= {entry.image[0].name for entry in plan.entries}


def test_what_is_written_is_json(plans):
    for plan in plans.values():
        json.dumps([vars(q)["truth"] for e in plan.entries for q in e.questions])
