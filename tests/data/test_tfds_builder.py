"""The sources through TensorFlow Datasets: the records of our own build, and the same refusals."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import io
import json
import sys

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.data import media, tfds_builder
from meerkat_jax.data.build import validate
from meerkat_jax.data.sources.entry import Options, Plan
from meerkat_jax.data.sources.registry import SOURCES, find
from meerkat_jax.data.split import open_split
from meerkat_jax.data.tfds_builder import AvfitConfig
from tests.conftest import ROOT
from tests.data.sources.built import SPOILED, build, write_tree
from tests.data.sources.fill import fill

RAW = {"image": tfds.decode.SkipDecoding()}


def prepared(tree, folder, file_format="array_record", **fields):
    """A builder whose records are made of a tree."""
    config = AvfitConfig(name="tried", **({"source": "jsonl", "workers": 1} | fields))
    builder = tfds.builder("meerkat_avfit", config=config, data_dir=folder, file_format=file_format)
    manual = tfds.download.DownloadConfig(manual_dir=str(tree))
    builder.download_and_prepare(download_config=manual)
    return builder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(our built folder, its manifest, TFDS's builder) of one tree, in several shards."""
    home = tmp_path_factory.mktemp("both")
    tree = write_tree("jsonl", home)
    gone = {"image": "gone.jpg", "audio": "gone.wav"}
    gone["questions"] = [{"task": "avc", "captions": ["A thing."]}]
    with open(tree / "annotations.jsonl", "a") as file:
        file.write(f"\n{json.dumps(gone)}\n[]\n")
    manifest = build("jsonl", tree, home / "ours")
    builder = prepared(tree, home / "tfds", max_skipped=SPOILED, shard=3, cap=0)
    return home / "ours", manifest, builder


def said(value):
    """Text as TFDS gives it."""
    return value.encode()


def corners(boxes):
    rows = [[box.x0, box.y0, box.x1, box.y1] for box in boxes]
    return np.array(rows, np.float32).reshape(-1, 4)


def assert_same(record, example):
    for field in ("id", "source", "split"):
        assert record[field] == said(getattr(example, field))
    assert (record["image"], record["audio"]) == (example.image, example.audio)
    assert record["matched"] == example.matched
    for field in ("image_labels", "audio_labels"):
        assert list(record[field]) == list(map(said, getattr(example, field)))
    assert list(record["boxes"]["label"]) == [said(box.label) for box in example.boxes]
    np.testing.assert_array_equal(record["boxes"]["corners"], corners(example.boxes))
    asked = record["questions"]
    assert len(asked["task"]) == len(example.questions)
    for number, question in enumerate(example.questions):
        for field in ("task", "instruction", "response"):
            assert asked[field][number] == said(getattr(question, field))
        assert json.loads(asked["truth"][number]) == question.truth
        boxes, segments = record["question_boxes"], record["question_segments"]
        mine = np.flatnonzero(np.array(boxes["question"]) == number)
        assert [boxes["label"][i] for i in mine] == [said(box.label) for box in question.boxes]
        np.testing.assert_array_equal(boxes["corners"][mine], corners(question.boxes))
        mine = np.flatnonzero(np.array(segments["question"]) == number)
        assert [segments["label"][i] for i in mine] == [said(s.label) for s in question.segments]
        times = np.array([[s.start, s.end] for s in question.segments], np.float32)
        np.testing.assert_array_equal(segments["times"][mine], times.reshape(-1, 2))


# ---- what is made ----


def test_records_are_those_of_our_own_build(both):
    folder, manifest, builder = both
    counts = {split: info.num_examples for split, info in builder.info.splits.items()}
    assert counts == manifest["counts"] and set(counts) == {"train", "test"}
    assert builder.info.splits["train"].num_shards == -(-counts["train"] // 3)
    told = set()
    for split in counts:
        records = builder.as_data_source(split=split, decoders=RAW)
        examples = list(open_split(folder, split))
        assert len(records) == len(examples)
        for record, example in zip(records, examples, strict=True):
            assert_same(record, example)
            told |= {f"matched {example.matched}"} | {"boxes" for _ in example.boxes}
            told |= {"asked boxes" for q in example.questions for _ in q.boxes}
            told |= {"segments" for q in example.questions for _ in q.segments}
    assert told == {"matched True", "matched False", "boxes", "asked boxes", "segments"}


def test_what_was_left_out_is_told_as_in_a_built_folder(both):
    folder, manifest, builder = both
    again = tfds.builder_from_directory(builder.data_dir)  # as read back from its files
    assert all(manifest["skipped"].values()), "a row and an example are left out"
    for key in ("source", "files", "options", "skipped", "dropped", "noted"):
        assert again.info.metadata[key] == json.loads(json.dumps(manifest[key]))
    ours, theirs = (path / "skipped.jsonl" for path in (folder, builder.data_path))
    assert theirs.read_bytes() == ours.read_bytes()


def test_grain_reads_them_with_the_picture_as_an_array(both):
    folder, _, builder = both
    records = grain.MapDataset.source(builder.as_data_source(split="train"))
    examples = {example.id: example for example in open_split(folder, "train")}
    batch = list(records.shuffle(seed=1).map(lambda record: (record["id"], record["image"])))
    assert sorted(ident.decode() for ident, _ in batch) == sorted(examples)
    for ident, image in batch:
        with Image.open(io.BytesIO(examples[ident.decode()].image)) as still:
            np.testing.assert_array_equal(image, np.asarray(still))


def test_every_source_has_a_config_with_the_defaults_of_the_command():
    tree = ast.parse((ROOT / "meerkat_jax" / "data" / "build" / "__main__.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) > 2]
    flags = {ast.literal_eval(c.args[0]): c.args[1] for c in calls if "DEFINE" in ast.dump(c.func)}
    assert list(tfds_builder.MeerkatAvfit.builder_configs) == list(SOURCES)
    for name, config in tfds_builder.MeerkatAvfit.builder_configs.items():
        assert config.source == name and config.description
        for flag in set(flags) - {"source_dir", "out", "overwrite"}:
            default = ast.literal_eval(flags[flag])
            assert getattr(config, flag) == (tuple(default) if flag == "exclude" else default)


# ---- what is left out and refused ----


def own(folder, idents, spoiled=(), split="train", suffix=""):
    """A tree of own data; the media of one ident are of one group."""
    rows = []
    for ident in idents:
        name = f"{ident}{suffix}"
        fill(folder, [{"image": f"{name}.jpg", "audio": f"{name}.wav", "seconds": 1.0}])
        if ident in spoiled:
            (folder / f"{name}.wav").write_bytes(b"not audio")
        row = {"id": name, "split": split, "image": f"{name}.jpg", "audio": f"{name}.wav"}
        row |= {"group": ident, "questions": [{"task": "avc", "captions": ["A thing."]}]}
        rows.append(row)
    (folder / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def idents(builder, split="train"):
    found = [record["id"].decode() for record in builder.as_data_source(split=split)]
    return [ident.removeprefix(f"jsonl-{split}-") for ident in found]


def test_damaged_media_are_left_out_up_to_max_skipped(tmp_path):
    tree = own(tmp_path / "tree", ["a", "b", "c", "d"], spoiled=["b", "c"])
    builder = prepared(tree, tmp_path / "tfds", max_skipped=0.5, shard=1, workers=2)
    assert idents(builder) == ["a", "d"]  # the shards of the others hold nothing
    skipped = builder.info.metadata["skipped"]["examples"]
    assert skipped == {"sound cannot be read": 2}
    told = r"2 of 4 examples .*sound cannot be read: 2.*jsonl-train-b .*b\.wav.*max_skipped=0.25"
    with pytest.raises(UserError, match=told):
        prepared(tree, tmp_path / "strict", max_skipped=0.25)
    assert not list((tmp_path / "strict").glob("meerkat_avfit/tried/1.*"))


def test_a_split_of_nothing_is_not_there(tmp_path):
    tree = own(tmp_path / "tree", ["a", "b"])
    own(tmp_path / "tree" / "more", ["c"], spoiled=["c"], split="test")
    row = json.loads((tree / "more" / "annotations.jsonl").read_text())
    row |= {"image": "more/c.jpg", "audio": "more/c.wav"}
    with open(tree / "annotations.jsonl", "a") as file:
        file.write("\n" + json.dumps(row))
    builder = prepared(tree, tmp_path / "tfds", max_skipped=0.5)
    assert list(builder.as_data_source()) == ["train"] and idents(builder) == ["a", "b"]
    assert not list(builder.data_path.glob("*-test*"))


def test_what_an_excluded_folder_tests_is_left_out(tmp_path):
    tested = own(tmp_path / "a", ["one", "two"], split="test", suffix="-of-a")
    build("jsonl", tested, tmp_path / "tested")
    tree = own(tmp_path / "b", ["two", "three"])
    builder = prepared(tree, tmp_path / "tfds", exclude=(tmp_path / "tested",), max_leaking=1.0)
    assert idents(builder) == ["three"]
    assert builder.info.metadata["dropped"]["also in the test split of tested"] == 1
    with pytest.raises(UserError, match="manifest.json"):
        prepared(tree, tmp_path / "other", exclude=(tmp_path / "nowhere",))


def test_two_examples_of_one_id_are_refused(tmp_path):
    plan = find("jsonl")(own(tmp_path, ["a"]), Options())
    twice = Plan(list(plan.entries) * 2, plan.files, plan.skips)
    with pytest.raises(UserError, match="two examples have the id .jsonl-train-a'"):
        validate.look_through(twice, media.MediaIndex(tmp_path), 0.0, (), None, lambda line: None)


def test_a_wrong_manual_dir_says_what_was_expected(tmp_path):
    with pytest.raises(UserError, match=r"nowhere .*vggss: expected vggss\.json.*docs/data\.md"):
        prepared(tmp_path / "nowhere", tmp_path, source="vggss")
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"wrong: no vggss\.json.*docs/data\.md"):
        prepared(tmp_path / "wrong", tmp_path, source="vggss")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"source": "vgss"}, "did you mean 'vggss'"),
        ({"audio": "mp3"}, "audio='mp3': expected flac or opus"),
        ({"shard": 0}, "shard=0: expected at least 1"),
        ({"exclude": "avfit/vggss"}, "exclude='avfit/vggss': expected a list of folders"),
    ],
)
def test_a_wrong_value_of_a_config_is_named(fields, words):
    with pytest.raises(UserError, match=words):
        AvfitConfig(**({"name": "tried", "source": "vggss"} | fields))


def test_a_format_that_needs_tensorflow_is_refused_without_it(tmp_path):
    if importlib.util.find_spec("tensorflow"):
        pytest.skip("TensorFlow is installed")
    with pytest.raises(UserError, match='tfrecord.*file_format="array_record"'):
        prepared(own(tmp_path / "tree", ["a"]), tmp_path, file_format=None)


@pytest.mark.parametrize("missing", ["tensorflow_datasets", "importlib_resources"])
def test_without_tfds_the_extra_is_named(missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "meerkat_jax.data.tfds_builder")
    with pytest.raises(ImportError, match=rf"{missing}.*pip install 'meerkat_jax\[tfds\]'"):
        importlib.import_module("meerkat_jax.data.tfds_builder")
