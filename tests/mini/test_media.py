"""Media of the mini data set: the resource reader, fetching packages, real and procedural media."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.mini import classes, media, packages, procedural, rcc
from meerkat_jax.mini.thing import LONGEST_AUDIO, LOUDNESS, PEAK

RATE = 16000


# ---- resource files ----


def write_rcc(files: dict[str, bytes], version: int = 3, packed: bool = False, flags: int = 0):
    """A resource file of one folder "things" with these files, as Qt's rcc lays it out."""
    names, payloads, nodes = b"", b"", []

    def name(text: str) -> int:
        nonlocal names
        at = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return at

    nodes.append(struct.pack(">IHII", 0, 2, 1, 1))
    nodes.append(struct.pack(">IHII", name("things"), 2, len(files), 2))
    for path, plain in files.items():
        body = struct.pack(">I", len(plain)) + zlib.compress(plain) if packed else plain
        nodes.append(struct.pack(">IHHHI", name(path), flags | packed, 0, 0, len(payloads)))
        payloads += struct.pack(">I", len(body)) + body
    stamp = b"" if version == 1 else bytes(8)
    tree = b"".join(node + stamp for node in nodes)
    header = 20 if version < 3 else 24
    offsets = (header, header + len(tree) + len(names), header + len(tree))
    start = b"qres" + struct.pack(">4I", version, *offsets)
    return start + (bytes(4) if version == 3 else b"") + tree + names + payloads


FILES = {
    "dog.ogg": b"woof" * 50,
    "empty": b"",
    "\N{GREEK SMALL LETTER ALPHA}.png": bytes(range(256)),
}


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_rcc_gives_back_what_was_written(tmp_path, version, packed):
    path = tmp_path / "made.rcc"
    path.write_bytes(write_rcc(FILES, version, packed))
    resources = rcc.read_rcc(path)
    assert dict(resources) == {f"things/{name}": plain for name, plain in FILES.items()}
    assert "things/cat" not in resources and len(resources) == len(FILES)


def read_all(data: bytes) -> dict[str, bytes]:
    return dict(rcc.Resources(data, "damaged.rcc"))


@pytest.mark.parametrize("packed", [False, True])
def test_rcc_cut_short_is_a_user_error(packed):
    whole = write_rcc(FILES, packed=packed)
    for size in range(len(whole)):
        with pytest.raises(UserError, match=r"damaged\.rcc: not a whole Qt resource file"):
            read_all(whole[:size])


@given(st.data())
def test_rcc_with_flipped_bytes_reads_or_is_a_user_error(data):
    broken = bytearray(write_rcc(FILES, packed=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_all(bytes(broken))
    except UserError as error:
        assert "damaged.rcc" in str(error)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends at 0 bytes"),
        (b"PNG!" + write_rcc(FILES)[4:], "starts with b'PNG!'"),
        (write_rcc(FILES)[:4] + struct.pack(">I", 9) + write_rcc(FILES)[8:], "version 9"),
        (write_rcc(FILES, flags=4), "packed with zstd"),
        # the root's only child is the root
        (
            b"qres" + struct.pack(">5I", 3, 24, 24, 24, 0) + struct.pack(">IHIIQ", 0, 2, 1, 0, 0),
            "occurs twice",
        ),
    ],
)
def test_rcc_damage_is_named(data, message):
    with pytest.raises(UserError, match=message):
        read_all(data)


def test_rcc_does_not_inflate_beyond_the_claim():
    bomb = write_rcc({"bomb": bytes(1 << 20)}, packed=True)
    liar = bomb.replace(struct.pack(">I", 1 << 20), struct.pack(">I", 100), 1)
    with pytest.raises(UserError, match="unpacks to 101 bytes instead of 100"):
        read_all(liar)


def test_rcc_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"none\.rcc: cannot be read"):
        rcc.read_rcc(tmp_path / "none.rcc")


# ---- packages ----


def fake_tool(folder, name: str, script: str) -> None:
    """A stand-in for a tool of the system that misbehaves as the real one may."""
    folder.mkdir(exist_ok=True)
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)


def test_fetch_without_apt_gives_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    path, reason = packages.fetch_package("some-package", tmp_path / "cache")
    assert path is None and "no apt-get" in reason and "some-package" in reason
    assert not (tmp_path / "cache").exists()


def test_fetch_without_network_gives_a_reason(tmp_path, monkeypatch):
    fake_tool(tmp_path / "bin", "apt-get", "echo 'E: Could not resolve host' >&2; exit 100")
    fake_tool(tmp_path / "bin", "dpkg", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    path, reason = packages.fetch_package("some-package", tmp_path / "cache")
    assert path is None and "Could not resolve host" in reason
    assert list((tmp_path / "cache").iterdir()) == []


def test_fetch_does_not_wait_for_a_tool_that_hangs(tmp_path, monkeypatch):
    # the grandchild inherits the output, as apt's download methods do
    fake_tool(tmp_path / "bin", "apt-get", "/bin/sleep 5 & exec /bin/sleep 5")
    fake_tool(tmp_path / "bin", "dpkg", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(packages, "_DOWNLOAD_SECONDS", 0.2)
    monkeypatch.setattr(packages, "_UPDATE_SECONDS", 0.2)
    start = time.monotonic()
    path, reason = packages.fetch_package("some-package", tmp_path / "cache")
    assert path is None and "did not end within" in reason and time.monotonic() - start < 4


def test_fetch_with_an_unusable_cache_says_why(tmp_path):
    (tmp_path / "file").write_text("in the way")
    path, reason = packages.fetch_package("some-package", tmp_path / "file" / "cache")
    assert path is None and reason
    (tmp_path / "link").symlink_to(tmp_path / "gone")  # a cache to mend: not passed over
    with pytest.raises(UserError, match="link: expected a folder, found"):
        packages.fetch_package("link", tmp_path)


needs_dpkg = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None or shutil.which("apt-get") is None, reason="no dpkg or apt"
)


@pytest.fixture
def offline_apt(tmp_path, monkeypatch):
    """apt-get that hands out a package made here; dpkg is the real one."""
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: tiny\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    )
    (tree / "usr/share/tiny").mkdir(parents=True)
    (tree / "usr/share/tiny/file").write_text("content")
    tree.chmod(0o755)
    (tree / "DEBIAN").chmod(0o755)
    deb = tmp_path / "tiny_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(tree), str(deb)], check=True, capture_output=True)
    fake_tool(tmp_path / "bin", "apt-get", f"cp {deb} .")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return deb


@needs_dpkg
def test_fetch_unpacks_once(tmp_path, monkeypatch, offline_apt):
    cache = tmp_path / "cache"
    path, _ = packages.fetch_package("tiny", cache)
    assert (path / "usr/share/tiny/file").read_text() == "content"
    assert [entry.name for entry in cache.iterdir()] == ["tiny"]
    monkeypatch.setenv("PATH", "")
    assert packages.fetch_package("tiny", cache).path == path


@needs_dpkg
def test_fetch_of_a_broken_package_leaves_nothing(tmp_path, offline_apt):
    offline_apt.write_bytes(offline_apt.read_bytes()[:-60])
    path, reason = packages.fetch_package("tiny", tmp_path / "cache")
    assert path is None and "dpkg" in reason
    assert list((tmp_path / "cache").iterdir()) == []


@needs_dpkg
def test_killed_unpack_leaves_nothing_that_looks_whole(tmp_path, monkeypatch, offline_apt):
    cache, begun = tmp_path / "cache", tmp_path / "begun"
    real = shutil.which("dpkg")
    fake_tool(tmp_path / "bin", "dpkg", f'{real} "$@"; touch {begun}; exec sleep 5')
    code = f"from meerkat_jax.mini import packages as p; p.fetch_package('tiny', {str(cache)!r})"
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.wait()
    assert begun.exists() and not (cache / "tiny").exists()
    (tmp_path / "bin/dpkg").unlink()
    left = list(cache.iterdir())
    assert left  # the killed run's work folder, swept once it is old
    for folder in left:
        os.utime(folder, (0, 0))
    assert packages.fetch_package("tiny", cache).path == cache / "tiny"
    assert [entry.name for entry in cache.iterdir()] == ["tiny"]


# ---- preparing ----


def encode(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_picture_is_cropped_to_what_is_opaque_and_shrunk():
    canvas = np.zeros((600, 700, 4), np.uint8)
    canvas[100:500, 50:650] = (200, 10, 10, 255)
    canvas[:50, :50] = (0, 255, 0, 10)  # too faint to count
    image = media.prepare_image(encode(Image.fromarray(canvas)), "made")
    assert image.shape == (133, 200, 4) and image.dtype == np.uint8
    np.testing.assert_array_equal(image[60, 100], (200, 10, 10, 255))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_picture_of_any_mode_becomes_rgba(mode):
    image = media.prepare_image(encode(Image.new("RGB", (20, 10), "white").convert(mode)), "m")
    assert image.shape == (10, 20, 4) and (image == 255).all()


def test_picture_edges_do_not_take_up_hidden_colours():
    canvas = np.zeros((400, 400, 4), np.uint8)
    canvas[..., 1] = 255  # transparent green
    canvas[100:301, 100:301] = (255, 0, 0, 255)
    canvas[0, 0, 3] = canvas[-1, -1, 3] = 255  # keeps the whole canvas
    image = media.prepare_image(encode(Image.fromarray(canvas)), "made")
    edge = image[40:160, 40:160][image[40:160, 40:160, 3] > 64]
    assert edge[:, 1].max() < 20


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"no picture", "not an image"), (encode(Image.new("RGBA", (9, 9))), "transparent")],
)
def test_bad_picture_is_a_user_error(data, message):
    with pytest.raises(UserError, match=f"thing.png.*{message}"):
        media.prepare_image(data, "thing.png")


def wav(audio: np.ndarray, rate: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, audio, rate, format="WAV")
    return out.getvalue()


def tone(seconds: float, rate: int, loudness: float = 0.3) -> np.ndarray:
    return loudness * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 96000])
@pytest.mark.parametrize("loudness", [0.003, 0.9])
def test_sound_is_trimmed_and_of_one_loudness(rate, loudness):
    quiet = np.zeros(round(0.5 * rate))
    stereo = np.stack([np.concatenate([quiet, tone(1.0, rate, loudness), quiet])] * 2, axis=1)
    audio = media.prepare_audio(wav(stereo, rate), RATE, "made")
    assert audio.dtype == np.float32 and abs(len(audio) / RATE - 1.0) < 0.03
    assert np.sqrt(np.mean(audio**2)) == pytest.approx(LOUDNESS, rel=0.03)
    assert abs(audio[0]) < 1e-3 and abs(audio[-1]) < 1e-3


def test_sound_is_cut_at_four_seconds_and_its_peak_limited():
    clicks = np.zeros(6 * RATE)
    clicks[:: RATE // 4] = 1.0
    audio = media.prepare_audio(wav(clicks, RATE), RATE, "made")
    assert len(audio) <= LONGEST_AUDIO * RATE and np.abs(audio).max() <= PEAK + 1e-6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no sound", "not a sound"),
        (wav(np.zeros(1000), RATE), "silent"),
        (wav(np.zeros(0), RATE), "silent"),
    ],
)
def test_bad_sound_is_a_user_error(data, message):
    with pytest.raises(UserError, match=f"thing.ogg.*{message}"):
        media.prepare_audio(data, RATE, "thing.ogg")


# ---- whole sets ----


def log_mel_profile(audio: np.ndarray) -> np.ndarray:
    """Mean and spread over time of a coarse log-mel spectrum, float[64]."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, 512)[::256] * np.hanning(512)
    power = np.abs(np.fft.rfft(frames)) ** 2
    edges = np.unique(np.geomspace(2, 257, 33).astype(int))
    bands = np.add.reduceat(power, edges[:-1], axis=1)
    bands = np.log(bands / bands.max() + 1e-6)
    return np.concatenate([bands.mean(0), bands.std(0)])


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels).convert("RGBa").resize((16, 16))
    return np.asarray(image, np.float64).ravel()


def least_distance(rows: list[np.ndarray]) -> float:
    table = np.stack(rows)
    distance = np.sqrt(((table[:, None] - table[None]) ** 2).mean(-1))
    return distance[~np.eye(len(rows), dtype=bool)].min()


def check_whole(made: media.MediaSet) -> None:
    assert len(made.classes) >= 40
    assert len({m.image.tobytes() for m in made.media.values()}) == len(made.media)
    for name in made.classes:
        assert name.isalpha() and name.islower()
    for (name, instance), thing in made.media.items():
        assert (thing.name, thing.instance) == (name, instance) and name in made.classes
        assert thing.image.dtype == np.uint8 and thing.image.shape[2] == 4
        assert 90 <= max(thing.image.shape[:2]) <= media.LONGEST_SIDE
        assert thing.audio.dtype == np.float32 and np.isfinite(thing.audio).all()
        assert 0.3 <= len(thing.audio) / made.sample_rate <= LONGEST_AUDIO
        assert 0.03 < np.sqrt(np.mean(thing.audio**2)) < 0.13
        assert np.abs(thing.audio).max() <= PEAK + 1e-6
    assert all(instance != "a" for _, instance in made.others())
    first = [made.media[name, "a"] for name in made.classes]
    assert least_distance([log_mel_profile(m.audio) for m in first]) > 0.3
    assert least_distance([thumbnail(m.image) for m in first]) > 20


def test_procedural_media_are_whole_and_distinct():
    made = media.load_media("procedural", RATE)
    check_whole(made)
    assert len(made.others()) == len(made.classes)


def test_procedural_media_are_the_same_every_time_and_quick():
    start = time.process_time()
    once = procedural.make_media(RATE)
    assert time.process_time() - start < 4
    again = procedural.make_media(RATE)
    assert once.keys() == again.keys()
    for key, thing in once.items():
        np.testing.assert_array_equal(thing.image, again[key].image)
        np.testing.assert_array_equal(thing.audio, again[key].audio)


@pytest.mark.parametrize("rate", [8000, 48000])
def test_procedural_sounds_at_other_rates(rate):
    for timbre in range(len(procedural.TIMBRES)):
        audio = procedural.play(timbre, 5, rate, np.random.default_rng(0))
        assert 0.6 * rate < len(audio) < 2.5 * rate and np.isfinite(audio).all()


def test_auto_without_packages_says_so_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    made = media.load_media("auto", RATE, tmp_path / "cache", said.append)
    assert "procedural" in made.notes
    assert "no apt-get" in said[-1] and "procedural" in said[-1]


def test_real_without_packages_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no real media.*no apt-get"):
        media.load_media("real", RATE, tmp_path / "cache")


def test_unknown_kind_is_a_user_error():
    with pytest.raises(UserError, match="media kind 'reel'"):
        media.load_media("reel", RATE)


def test_damaged_cache_names_file_and_remedy(tmp_path):
    (tmp_path / classes.STAMPS).mkdir()
    with pytest.raises(UserError, match=r"bear\.png: cannot be read.*delete"):
        media.load_media("real", RATE, tmp_path)


@pytest.fixture(scope="module")
def real() -> media.MediaSet:
    """The real media, when their package can be had."""
    fetched = packages.fetch_package(classes.STAMPS)
    if fetched.path is None:
        pytest.skip(f"no real media: {fetched.reason}")
    return media.load_media("real", RATE)


def test_real_media_are_whole_and_distinct(real):
    check_whole(real)
    assert real.classes == tuple(classes.CUTOUTS)


def test_real_cutouts_have_transparency_and_photographs_none(real):
    for (name, instance), thing in real.media.items():
        share = (thing.image[..., 3] > 127).mean()
        assert (share == 1.0) if instance == "b" else (0.1 < share < 0.95), (name, share)


def test_real_other_instances_are_other_media(real):
    for name, instance in real.others():
        first, other = real.media[name, "a"], real.media[name, instance]
        assert np.sqrt(((thumbnail(first.image) - thumbnail(other.image)) ** 2).mean()) > 20
        assert (log_mel_profile(first.audio) - log_mel_profile(other.audio)).std() > 0.2


def test_real_media_do_without_the_second_package(real, tmp_path, monkeypatch):
    stamps = packages.fetch_package(classes.STAMPS).path
    (tmp_path / classes.STAMPS).symlink_to(stamps)
    monkeypatch.setenv("PATH", "")
    said: list[str] = []
    made = media.load_media("auto", RATE, tmp_path, said.append)
    assert made.classes == real.classes and {key[1] for key in made.media} == {"a", "c"}
    assert "no held-out photographs" in said[-1] and "no apt-get" in said[-1]
