"""Rendering the mini data set: whole or not there, and the same for every number of workers."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import alone
from meerkat_jax.data.split import open_split, read_manifest
from meerkat_jax.data.text import check_response
from meerkat_jax.mini import build as builder
from meerkat_jax.mini import compose
from meerkat_jax.mini.build import MiniConfig, build, choose_classes, instances, scene
from meerkat_jax.mini.media import load_media

ROOT = Path(__file__).parents[2]


def procedural(**counts: int) -> MiniConfig:
    """So many scenes of the splits that are named, none of the others."""
    return MiniConfig("procedural", classes=8, **dict.fromkeys(compose.SPLITS, 0) | counts)


CONFIG = procedural(train=30, compositions=12, augmentations=6, instances=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A whole data set in several files for a split, made by two workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "SHARD", 7)
        return build(CONFIG, tmp_path_factory.mktemp("cache"), workers=2)


@pytest.fixture(scope="module")
def media():
    return load_media("procedural", CONFIG.sample_rate)


def test_every_split_has_its_scenes_in_order(folder):
    assert len(list(folder.glob("train-*-of-00005.array_record"))) == 5
    for split in compose.SPLITS:
        records = list(open_split(folder, split))
        wanted = [f"mini-{split}-{index:06d}" for index in range(getattr(CONFIG, split))]
        assert [example.id for example in records] == wanted
        assert {example.split for example in records} == {split}


def test_a_record_is_the_scene_of_its_index(folder, media):
    """So neither the number of workers nor of files matters."""
    for split in compose.SPLITS:
        parts = instances(CONFIG, media, split)
        for index, example in enumerate(open_split(folder, split)):
            assert example == scene(CONFIG, parts, split, index)


def test_one_worker_and_one_file_give_the_same(folder, tmp_path):
    single = build(CONFIG, tmp_path, workers=1)
    assert single.name == folder.name
    assert read_manifest(single) == read_manifest(folder)
    for split in compose.SPLITS:
        assert list(open_split(single, split)) == list(open_split(folder, split))


def test_examples_are_whole(folder):
    for split in compose.SPLITS:
        for example in open_split(folder, split):
            assert example.matched == bool(set(example.image_labels) & set(example.audio_labels))
            assert {box.label for box in example.boxes} == set(example.image_labels) & set(
                example.audio_labels
            )
            for question in example.questions:
                check_response(question)


def test_the_parts_of_a_split(folder):
    for split in compose.SPLITS:
        examples = list(open_split(folder, split))
        matched = [
            example for example in examples if set(example.image_labels) & set(example.audio_labels)
        ]
        assert list(open_split(folder, f"{split}/matched")) == matched
        crowded = [example for example in examples if len(example.image_labels) in (2, 3)]
        assert list(open_split(folder, f"{split}/crowded")) == crowded
    with pytest.raises(UserError, match="split 'train' has no part 'odd'; it has crowded, matched"):
        open_split(folder, "train/odd")


def test_no_scene_occurs_in_two_splits(folder):
    images = [example.image for split in compose.SPLITS for example in open_split(folder, split)]
    assert len(set(images)) == len(images)


def test_new_instances_are_other_media_of_known_classes(media):
    known, other = instances(CONFIG, media, "train"), instances(CONFIG, media, "instances")
    assert 4 <= len(other) and set(other) <= set(known)
    for name, part in other.items():
        assert part.image.tobytes() != known[name].image.tobytes()
        assert part.audio.tobytes() != known[name].audio.tobytes()


def test_the_manifest_counts_what_is_there(folder):
    manifest = read_manifest(folder)
    assert manifest["config"] == dataclasses.asdict(CONFIG)
    assert len(manifest["classes"]) == CONFIG.classes
    shares = manifest["shares"]["train"]
    records = list(open_split(folder, "train"))
    assert shares["scenes"] == len(records)
    assert shares["matched"] == sum(example.matched for example in records)
    asked = sum(count for key, count in shares.items() if key.startswith("questions/"))
    assert asked == sum(len(example.questions) for example in records)


def test_a_second_build_reuses_the_folder_and_other_settings_do_not(folder, capsys):
    before = folder.stat().st_mtime_ns
    assert build(CONFIG, folder.parent) == folder
    assert "reusing" in capsys.readouterr().out and folder.stat().st_mtime_ns == before
    fewer = procedural(train=2, compositions=2)
    other = build(fewer, folder.parent, workers=1)
    assert other != folder
    splits = {path.name.split("-")[0] for path in other.glob("*.array_record")}
    assert splits == {"train", "compositions"}


@pytest.mark.parametrize("count", [3, 49])
def test_a_number_of_classes_that_there_is_not(media, count):
    with pytest.raises(UserError, match=rf"classes={count}: expected 4 to 48"):
        choose_classes(media, count)


# ---- what a stopped build leaves ----

BUILD = """
import sys
from tests.mini.test_build import build, procedural
if __name__ == "__main__":
    build(procedural(train=100000), sys.argv[1], workers=1)
"""


def test_a_killed_build_leaves_nothing_that_looks_whole(tmp_path):
    script = tmp_path / "render.py"
    script.write_text(BUILD)
    command = [sys.executable, script, tmp_path / "cache"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment) as process:
        try:
            wait_for(lambda: list(tmp_path.glob("cache/*.partial/train-*")), process)
        finally:
            process.kill()
    (partial,) = tmp_path.glob("cache/*.partial")
    wait_for(lambda: unchanged(partial))  # its worker ends too, and writes no more
    assert not list(tmp_path.glob("cache/*/manifest.json"))
    with pytest.raises(UserError, match="not a built data set"):
        read_manifest(partial)

    begun = time.monotonic()
    with alone(partial.with_suffix("")):  # the lock went with the process
        assert time.monotonic() - begun < 1


def unchanged(folder: Path) -> bool:
    """Whether nothing in the folder grew for half a second."""
    sizes = [[path.stat().st_size for path in sorted(folder.iterdir())]]
    time.sleep(0.5)
    sizes.append([path.stat().st_size for path in sorted(folder.iterdir())])
    return sizes[0] == sizes[1]


def wait_for(condition, process=None, seconds=300.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        assert process is None or process.poll() is None, "the process ended by itself"
        time.sleep(0.05)


def test_what_a_killed_run_left_is_removed(tmp_path):
    config = procedural(train=2)
    folder = build(config, tmp_path, workers=1)
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir()
    (partial / "train-00000-of-00001.array_record").write_bytes(b"half")
    (folder / "manifest.json").unlink()  # a folder that is not whole is made anew
    assert build(config, tmp_path, workers=1) == folder
    assert len(list(open_split(folder, "train"))) == 2
    assert not partial.exists()


def test_a_worker_that_is_killed_is_one_clear_error(tmp_path):
    config = procedural(train=100000)

    def kill() -> None:
        wait_for(lambda: list(tmp_path.glob("*.partial/*")))  # it is at work
        for child in multiprocessing.active_children():
            child.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match="ended from outside .out of memory.*run the same command"):
        build(config, tmp_path, workers=1)
    killer.join()
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_two_runs_at_once_take_turns(tmp_path, capsys):
    """The second enters only when the first has left."""
    inside = []

    def second() -> None:
        with alone(tmp_path / "set"):
            inside.append("second")

    with alone(tmp_path / "set"):
        other = threading.Thread(target=second)
        other.start()
        other.join(0.3)
        assert other.is_alive() and not inside
    other.join(10)
    assert inside == ["second"]
    assert "waiting for another run" in capsys.readouterr().out


def test_the_manifest_is_written_last(tmp_path, monkeypatch):
    """If it cannot be written, there is no folder."""

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    config = procedural(train=2)
    with pytest.raises(OSError, match="No space"):
        build(config, tmp_path, workers=1)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
