"""From trees of annotation files and media to records: every source, kills, and what is refused."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import time

import msgpack
import numpy as np
import pytest
import soundfile
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.data import leaks, media, video
from meerkat_jax.data.build import shards, validate
from meerkat_jax.data.sources.entry import Options
from meerkat_jax.data.sources.registry import SOURCES, find
from meerkat_jax.data.split import open_split, read_manifest
from tests.conftest import ROOT, cli_environment
from tests.data.sources.built import build, write_tree
from tests.data.sources.fill import RATE, audio, fill, image
from tests.data.sources.fill import video as write_video


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    return tmp_path_factory.mktemp("trees")


@pytest.fixture(scope="module")
def whole(trees, tmp_path_factory):
    """A built folder, not to be changed by a test."""
    out = tmp_path_factory.mktemp("whole") / "out"
    build("openimages_audioset", write_tree("openimages_audioset", trees), out)
    return out


def records(folder):
    found = []
    for split in ("train", "test"):
        if (folder / "keys" / f"{split}.npy").exists():
            found += list(open_split(folder, split))
    return found


def content(folder):
    """Bytes of all files but those that say when or where."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- every source ----


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_becomes_records(source, trees, tmp_path):
    tree = write_tree(source, trees)
    manifest = build(source, tree, tmp_path / "out")
    entries = {entry.id: entry for entry in find(source)(tree, Options()).entries}
    found = records(tmp_path / "out")
    assert len(found) == sum(manifest["counts"].values()) > 0
    lost = sum(manifest["skipped"]["examples"].values())
    leaking = sum(n for why, n in manifest["dropped"].items() if why.startswith("also in"))
    assert len(found) == len(entries) - lost - leaking
    for example in found:
        entry = entries[example.id]
        assert (example.source, example.split) == (source, entry.split)
        assert example.questions == entry.questions
        with Image.open(io.BytesIO(example.image)) as still:
            assert still.format == "JPEG" and max(still.size) <= 512
        info = soundfile.info(io.BytesIO(example.audio))
        assert (info.samplerate, info.channels) == (RATE, 1) and 0 < info.duration <= 10.0
        assert info.duration >= entry.seconds - media.SHORT


def test_texts_and_parts_are_those_of_the_records(whole):
    for split in ("train", "test"):
        examples = list(open_split(whole, split))
        grounded = list(open_split(whole, f"{split}/arig"))
        assert [e.id for e in grounded] == [
            e.id for e in examples if any(q.task == "arig" for q in e.questions)
        ]
    paths = sorted((whole / "texts").glob("train-*"))
    reader = shards.array_record_module.ArrayRecordReader(str(paths[0]))
    texts = [msgpack.unpackb(row) for row in reader.read_all()]
    asked = [[q.instruction for q in e.questions] for e in open_split(whole, "train")]
    assert [[row[2] for row in rows] for rows in texts] == asked[: len(texts)]


def test_a_part_that_is_not_there_is_named(whole):
    with pytest.raises(UserError, match="no part 'avc'; it has arig, avfact1, .*boxed, matched"):
        open_split(whole, "train/avc")


# ---- kills, and the same again ----


def test_any_number_of_workers_gives_the_same_bytes(whole, trees, tmp_path):
    build("openimages_audioset", write_tree("openimages_audioset", trees), tmp_path / "two", 2)
    assert content(tmp_path / "two") == content(whole)


def test_what_was_lost_is_made_again(trees, tmp_path):
    tree, out = write_tree("openimages_audioset", trees), tmp_path / "out"
    build("openimages_audioset", tree, out, shard=8)
    before = content(out)
    assert len(list((out / "shards").iterdir())) > 5
    (out / "manifest.json").unlink()
    (out / "shards" / "00003.json").unlink()  # killed before its report was there
    (out / "train-00009-of-00012.partial").write_bytes(b"half")
    said = []
    build("openimages_audioset", tree, out, shard=8, say=said.append)
    assert content(out) == before
    assert any(line.startswith("going on: 11 of 12") for line in said)


@pytest.mark.slow
def test_a_build_that_is_killed_ends_with_the_same_bytes(trees, tmp_path):
    tree = write_tree("openimages_vggsound", trees)
    command = [
        sys.executable, "-m", "meerkat_jax.data.build", "openimages_vggsound",
        f"--source_dir={tree}", "--workers=2", "--shard=4",
    ]  # fmt: skip
    env = cli_environment("unused")
    subprocess.run([*command, f"--out={tmp_path / 'whole'}"], cwd=ROOT, env=env, check=True)
    for wait in (4.0, 5.0, 5.5, 6.0):
        run = subprocess.Popen([*command, f"--out={tmp_path / 'killed'}"], cwd=ROOT, env=env)
        time.sleep(wait)
        run.kill()
        run.wait()
    subprocess.run([*command, f"--out={tmp_path / 'killed'}"], cwd=ROOT, env=env, check=True)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


# ---- what is refused ----


def test_another_build_is_not_gone_on_with(whole, trees):
    with pytest.raises(UserError, match="holds a build with other options"):
        build("openimages_audioset", trees / "pairs", whole, options=Options(seed=1))


def test_a_folder_of_something_else_is_left_alone(trees, tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="no build of ours"):
        build("openimages_audioset", write_tree("openimages_audioset", trees), tmp_path)


def test_a_changed_annotation_file_is_another_build(trees, tmp_path):
    shutil.copytree(write_tree("valor", trees), tmp_path / "tree")
    build("valor", tmp_path / "tree", tmp_path / "out")
    path = next(path for path in (tmp_path / "tree").rglob("*.json"))
    path.write_text(path.read_text() + "\n")
    with pytest.raises(UserError, match="holds a build with other files"):
        build("valor", tmp_path / "tree", tmp_path / "out")


def test_missing_media_are_found_before_anything_is_encoded(trees, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(write_tree("openimages_audioset", trees), tree)
    shutil.rmtree(tree / "openimages" / "train")
    with pytest.raises(UserError, match=r"image is not there: \d+.*--max_skipped=0.5"):
        build("openimages_audioset", tree, tmp_path / "out", max_skipped=0.5)
    assert not list((tmp_path / "out").glob("*.array_record"))


def test_a_build_that_was_refused_lists_its_faults_and_can_be_mended(trees, tmp_path):
    tree, out = tmp_path / "tree", tmp_path / "out"
    shutil.copytree(write_tree("valor", trees), tree)
    path = next(path for path in tree.rglob("*.json") if "train" in path.name)
    whole = path.read_text()
    path.write_text(whole.replace('"desc"', '"desk"'))
    with pytest.raises(UserError, match=r"all are in .*skipped\.jsonl"):
        build("valor", tree, out, max_skipped=0.0)
    told = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert any(row["where"].startswith(path.name) for row in told)
    path.write_text(whole)
    for stale in ("train-00000-of-00009", "texts/train-00000-of-00009"):  # of a kill before that
        (out / stale).parent.mkdir(exist_ok=True)
        (out / f"{stale}.array_record").write_bytes(b"half")
    assert build("valor", tree, out)["counts"] == build("valor", tree, tmp_path / "new")["counts"]
    assert not list(out.rglob("*-of-00009.array_record"))


def test_other_media_after_a_kill_are_another_build(trees, tmp_path):
    """Shards are counted over what is there: going on would lose or double examples."""
    tree, out = tmp_path / "tree", tmp_path / "out"
    shutil.copytree(write_tree("openimages_strong", trees), tree)
    build("openimages_strong", tree, out, shard=16)
    for path in (out / "manifest.json", out / "shards" / "00001.json"):
        path.unlink()
    next((tree / "openimages" / "train").rglob("*.jpg")).unlink()
    with pytest.raises(UserError, match="holds a build with other media"):
        build("openimages_strong", tree, out, shard=16)


def test_nothing_left_is_no_build(trees, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(write_tree("valor", trees), tree)
    for path in tree.rglob("*"):
        if path.is_file() and path.suffix != ".json":
            path.unlink()
    with pytest.raises(UserError, match=r"none is left: .* is not there"):
        build("valor", tree, tmp_path / "out", max_skipped=1.0)


@pytest.mark.parametrize(
    ("name", "spoil", "reason"),
    [
        ("audio/clip.wav", lambda data: data[:2000], "sound cannot be read"),
        ("audio/clip.wav", lambda data: b"not audio", "sound cannot be read"),
        ("images/still.jpg", lambda data: data[:900], "image cannot be read"),
        ("images/still.jpg", lambda data: b"", "image cannot be read"),
    ],
)
def test_damaged_media_are_skipped_counted_and_told(tmp_path, name, spoil, reason):
    rows = []
    for stem in ("clip", "still", "good"):
        wanted = {"image": f"images/{stem}.jpg", "audio": f"audio/{stem}.wav", "seconds": 2.0}
        fill(tmp_path / "tree", [wanted])
        rows.append(
            {
                "image": wanted["image"], "audio": wanted["audio"],
                "questions": [{"task": "avc", "captions": [f"A {stem}."]}],
            }
        )  # fmt: skip
    (tmp_path / "tree" / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = tmp_path / "tree" / name
    path.write_bytes(spoil(path.read_bytes()))
    manifest = build("jsonl", tmp_path / "tree", tmp_path / "out")
    assert manifest["skipped"]["examples"] == {reason: 1} and manifest["counts"] == {"train": 2}
    (skip,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert name.split("/")[1] in json.loads(skip)["found"]
    with pytest.raises(UserError, match=reason):
        build("jsonl", tmp_path / "tree", tmp_path / "strict", max_skipped=0.01)


def test_a_sound_that_ends_before_its_annotation_is_skipped(tmp_path):
    fill(tmp_path / "tree", [{"image": "a.jpg", "audio": "a.wav", "seconds": 3.0}])
    row = {"image": "a.jpg", "audio": "a.wav"}
    row["questions"] = [{"task": "igatl", "segments": [["dog", 1.0, 5.0]]}]
    (tmp_path / "tree" / "annotations.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match="sound is shorter than its annotation.*3.00 s"):
        build("jsonl", tmp_path / "tree", tmp_path / "out")


def test_a_clip_that_ends_before_the_times_of_its_questions_is_skipped(trees, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(write_tree("openimages_strong", trees), tree)
    for path in (tree / "audioset" / "clips").glob("*.wav"):
        wave, rate = soundfile.read(path)
        soundfile.write(path, wave[: 2 * rate], rate)
    with pytest.raises(UserError, match="sound is shorter than its annotation: "):
        build("openimages_strong", tree, tmp_path / "out")


def test_a_full_disk_is_named_and_what_was_made_stays(trees, tmp_path, monkeypatch):
    tree, out = write_tree("valor", trees), tmp_path / "out"
    monkeypatch.setattr(shards, "ROOM", 1 << 60)
    plan = find("valor")(tree, Options())
    media_index = media.MediaIndex(tree)
    found = validate.survey(plan, media_index, [], None, lambda line: None)
    for folder in ("shards", "texts"):
        (out / folder).mkdir(parents=True)
    whole = shards.Shards(plan, media_index, found, out, "valor", 10.0, shards.Settings())
    (job,) = whole.jobs()
    with pytest.raises(OSError, match="No space left on device.*array_record"):
        shards.make_shard(job, out, "flac")
    assert not list(out.glob("*.array_record"))


def test_a_wrong_folder_and_an_unknown_source_are_refused(tmp_path):
    with pytest.raises(UserError, match="no vggss.json.*docs/data.md"):
        find("vggss")(tmp_path, Options())
    with pytest.raises(UserError, match="did you mean 'valor'"):
        find("valour")


# ---- leaks ----


def own(folder, ids, split, group):
    """A tree of own data whose media have these groups."""
    rows = []
    for ident in ids:
        fill(folder, [{"image": f"{ident}.jpg", "audio": f"{ident}.wav", "seconds": 1.0}])
        rows.append(
            {
                "id": ident, "split": split, "image": f"{ident}.jpg", "audio": f"{ident}.wav",
                "group": group(ident), "questions": [{"task": "avc", "captions": ["A thing."]}],
            }
        )  # fmt: skip
    (folder / "annotations.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_leaks_between_folders_are_refused_and_can_be_left_out(tmp_path):
    group = lambda ident: f"video-{ident[-1]}"  # noqa: E731
    test = own(tmp_path / "a", ["a1", "a2"], "test", group)
    train = own(tmp_path / "b", ["b2", "b3"], "train", group)
    build("jsonl", test, tmp_path / "test")
    build("jsonl", train, tmp_path / "leaky")
    with pytest.raises(UserError, match="video-2.*--exclude="):
        leaks.refuse([tmp_path / "test", tmp_path / "leaky"])
    manifest = build("jsonl", train, tmp_path / "clean", exclude=[tmp_path / "test"])
    assert manifest["counts"] == {"train": 1}
    assert manifest["dropped"]["also in the test split of test"] == 1
    leaks.refuse([tmp_path / "test", tmp_path / "clean"])


def test_a_share_of_leaks_is_told_at_once_and_refused_unless_it_is_allowed(tmp_path):
    """Lines of one recording in both splits: six of eight of training."""
    tree = own(tmp_path / "tree", ["t1", "t2", "t3"], "test", lambda ident: f"film-{ident[-1]}")
    rows = (tree / "annotations.jsonl").read_text()
    own(tree, [f"{k}{n}" for k in "ab" for n in "1235"], "train", lambda ident: f"film-{ident[-1]}")
    with open(tree / "annotations.jsonl", "a") as file:
        file.write("\n" + rows)
    said, told = [], r"6 of 8 training examples \(75.0%\) are left out.*also in the test split: 6"
    with pytest.raises(UserError, match=told + ".*--max_leaking=0.01"):
        build("jsonl", tree, tmp_path / "out", max_skipped=0.01, say=said.append)
    assert not [*(tmp_path / "out").glob("*.array_record")]
    manifest = build(
        "jsonl", tree, tmp_path / "out", max_skipped=0.01, max_leaking=0.8, say=said.append
    )
    assert manifest["counts"] == {"train": 2, "test": 3}
    warned = next(n for n, line in enumerate(said) if re.search("WARNING: " + told, line))
    assert warned < next(n for n, line in enumerate(said) if line.startswith("examples "))


# ---- media ----


def test_a_frame_of_a_variable_rate_is_the_one_that_is_shown(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, 4.0, frames=[0.0, 0.1, 1.5, 1.6, 3.0])
    for at, number in ((0.0, 0), (0.05, 0), (0.2, 1), (1.49, 1), (1.55, 2), (2.9, 3), (3.4, 4)):
        red = np.asarray(video.load_frame(path, at))[..., 0].mean()
        assert abs(red - 20 * number) < 8, (at, number, red)
    with pytest.raises(UserError, match="last frame is at 3.00 s"):
        video.load_frame(path, 4.5)


def test_the_sound_of_a_video_begins_where_it_is_asked_for(tmp_path):
    path = tmp_path / "v.mp4"
    write_video(path, 6.0)
    true = audio("v.mp4", 6.0)
    wave, rate, count = video.load_channels(path, 2.0, 3.0)
    assert wave.shape == (3 * RATE, 1) and (rate, count) == (RATE, 6 * RATE)
    wave = wave[:, 0]
    level = [np.corrcoef(wave[4800:-4800], true[2 * RATE + 4800 + lag :][: len(wave) - 9600])[0, 1]
             for lag in range(-1024, 1025, 32)]  # fmt: skip
    assert max(level) > 0.9
    assert len(video.load_channels(path, 4.5, 3.0)[0]) == pytest.approx(1.5 * RATE, abs=4096)
    with pytest.raises(UserError, match="before 9 s"):
        video.load_channels(path, 9.0, 3.0)


def test_a_video_without_sound_says_so(tmp_path):
    write_video(tmp_path / "v.mp4", 1.0, audio_clips=False)
    with pytest.raises(UserError, match="no audio"):
        video.load_channels(tmp_path / "v.mp4", 0, 1)
    (tmp_path / "w.mp4").write_bytes(b"nothing")
    with pytest.raises(UserError, match="w.mp4"):
        video.load_frame(tmp_path / "w.mp4", 0)


def test_a_long_sound_is_cut_from_its_time_on_and_made_mono(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE * 4, 3)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, RATE)
    data, _ = media.encode_audio(str(tmp_path / "a.wav"), 1.5, 2.0, 2.0)
    made, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == RATE and made.shape == (2 * RATE,)
    expected = wave[round(1.5 * RATE) :][: 2 * RATE].mean(axis=1)
    np.testing.assert_allclose(made, expected, atol=2 / 32768)


def test_a_small_upright_jpeg_is_kept_as_it_is_and_a_large_one_made_smaller(tmp_path):
    image("p").save(tmp_path / "p.jpg", quality=70)
    kept, _ = media.encode_image(str(tmp_path / "p.jpg"), 0)
    assert kept == (tmp_path / "p.jpg").read_bytes()
    image("p", (1024, 300)).save(tmp_path / "q.png")
    with Image.open(io.BytesIO(media.encode_image(str(tmp_path / "q.png"), 0)[0])) as made:
        assert made.size == (512, 150)


def test_ready_stills_come_before_videos_and_folders_below_are_searched(tmp_path):
    for name in ("frames/x/1.jpg", "videos/1.mp4", "videos/2.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"-")
    media_index = media.MediaIndex(tmp_path)
    places = lambda n: (media.Place("frames", n), media.Place("videos", n, 5.0))  # noqa: E731
    assert media.find_image(media_index, places("1")) == (f"{tmp_path}/frames/x/1.jpg", 0.0)
    assert media.find_image(media_index, places("2")) == (f"{tmp_path}/videos/2.mp4", 5.0)
    assert media.find_image(media_index, places("3")) is None
    for name in ("own/1.jpg", "own/1.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"-")
    named = [media.Place("own", "1", 2.0, ".mp4")]  # beside a still of the same name
    assert media.find_image(media_index, named) == (f"{tmp_path}/own/1.mp4", 2.0)
    assert media.find_image(media_index, [media.Place("own", "1", 2.0, ".png")]) is None
    assert media.find_audio(media_index, places("1")) == (f"{tmp_path}/videos/1.mp4", 5.0)


# ---- the command ----


def cli(*flags):
    return subprocess.run(
        [sys.executable, "-m", "meerkat_jax.data.build", *map(str, flags)],
        cwd=ROOT, env=cli_environment("unused"), capture_output=True, text=True,
    )  # fmt: skip


def test_the_door_builds_says_what_it_did_and_goes_on(trees, tmp_path):
    flags = ["avqa", f"--source_dir={write_tree('avqa', trees)}", f"--out={tmp_path / 'out'}"]
    done = cli(*flags, "--workers=1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"train: \d+ examples", done.stdout) and "next: python -m" in done.stdout
    before = content(tmp_path / "out")
    assert cli(*flags).returncode == 0 and content(tmp_path / "out") == before
    assert read_manifest(tmp_path / "out")["source"] == "avqa"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["missing SOURCE", "--source_dir"]),
        (["avqua", "--source_dir=x", "--out=y"], ["did you mean 'avqa'"]),
        (["avqa", "--source_dir=nowhere", "--out=y"], ["nowhere", "docs/data.md"]),
    ],
)
def test_the_door_refuses_in_one_line(flags, words):
    done = cli(*flags)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr
