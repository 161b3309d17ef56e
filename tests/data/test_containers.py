"""What strangers call a video: what is opened of it, and what it may cost."""

import base64
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.data import containers, isolated, media, video
from meerkat_jax.data.audio import count_seconds, load_audio
from meerkat_jax.data.sources.skips import RowError
from meerkat_jax.demo_page.limits import Limits
from meerkat_jax.demo_page.media import check_audio, read_audio_file, split_video
from meerkat_jax.generate import _fault
from meerkat_jax.serving.chat import read_chat
from tests.data.filming import RATE, film, grey, tone

EXPECTED = re.escape("expected MP4, MOV, M4A or 3GP, MKV or WebM, AVI")

SCRIPTS = {  # what makes FFmpeg open another file
    "playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n",
    "endless playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{0}\n",
    "concat": "ffconcat version 1.0\nfile '{0}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period>'
    "<AdaptationSet><Representation><BaseURL>{0}</BaseURL></Representation></AdaptationSet>"
    "</Period></MPD>",
    "session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "metadata": ";FFMETADATA1\ntitle={0}\n",
    "images": "{0}%03d.png\n",
    "lavfi": "movie={0}",
}


def test_one_function_opens_containers():
    root = Path(containers.__file__).parents[1]
    found = {path.name for path in root.rglob("*.py") if "av.open" in path.read_text()}
    assert found == {"containers.py"}


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    path = tmp_path_factory.mktemp("server") / "secret.ts"
    film(path, tone(1), 25)
    return path


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_script_that_names_another_file_is_refused(tmp_path, secret, kind):
    path = tmp_path / "a.mp4"
    path.write_text(SCRIPTS[kind].format(secret))
    for read in (
        lambda: video.load_frame(path, 0.0),
        lambda: video.load_channels(path, 0.0, 1.0),
        lambda: video.media_seconds(path, "video"),
    ):
        with pytest.raises(UserError, match=f"a.mp4: begins with b'.*{EXPECTED}"):
            read()
    with pytest.raises(RowError, match="a.mp4"):
        media.encode_image(str(path), 0.0)
    with pytest.raises(RowError, match="a.mp4"):
        media.encode_audio(str(path), 0.0, 1.0, 1.0)
    for source in (path, path.read_bytes()):
        with pytest.raises(UserError, match="expected WAV, FLAC"):
            load_audio(source, RATE, 1.0)


def test_the_demo_refuses_a_script_and_goes_on(tmp_path, secret):
    (tmp_path / "a.mp4").write_text(SCRIPTS["endless playlist"].format(secret))
    with pytest.raises(UserError, match=f"^a.mp4: begins with .*{EXPECTED}"):
        split_video(str(tmp_path / "a.mp4"), 1.0, Limits())
    film(tmp_path / "b.mp4", tone(1), 25)
    assert split_video(str(tmp_path / "b.mp4"), 1.0, Limits())[1]


def with_reference(data, path):
    """A MOV whose track lies, so it says, in the file at `path`: an alias in its `dref`."""
    path = str(path).encode()
    alias = bytes(10) + bytes(28) + bytes(12)
    alias += bytes([len(b"secret.ts")]) + b"secret.ts".ljust(63, b"\0") + bytes(16)
    alias += b"\0\0\0\0" + bytes(16) + b"\0\2" + len(path).to_bytes(2, "big") + path
    alias += bytes(len(path) % 2) + b"\xff\xff\0\0"
    entry = (len(alias) + 12).to_bytes(4, "big") + b"alis" + bytes(4) + alias
    old = data.rindex(b"dref") + 12  # version, number of entries, then the first
    size = int.from_bytes(data[old : old + 4], "big")
    made = bytearray(data[:old] + entry + data[old + size :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        at = data.rindex(name) - 4
        grown = int.from_bytes(data[at : at + 4], "big") + len(entry) - size
        made[at : at + 4] = grown.to_bytes(4, "big")
    return bytes(made)


def test_a_track_in_another_file_is_not_opened(tmp_path, secret):
    film(tmp_path / "a.mov", tone(1), audio="pcm_s16le")
    data = with_reference((tmp_path / "a.mov").read_bytes(), secret)
    (tmp_path / "b.mov").write_bytes(data)
    opens = {"enable_drefs": "1", "use_absolute_path": "1"}
    with av.open(str(tmp_path / "b.mov"), options=opens) as file:  # it would work
        stolen = next(file.decode(audio=0)).to_ndarray().tobytes()
        assert stolen[:100] in secret.read_bytes()
    with pytest.raises(UserError, match="b.mov: no audio can be decoded"):
        video.load_channels(tmp_path / "b.mov", 0.0, 1.0)
    with pytest.raises(UserError, match="b.mov: no audio can be decoded"):
        load_audio(tmp_path / "b.mov", RATE, 1.0)


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.mp4")
    start = time.monotonic()
    for path, kind in ((tmp_path / "a.mp4", "a FIFO"), (tmp_path, "a folder")):
        with pytest.raises(UserError, match=f"it is {kind}, not a file"):
            video.load_frame(path, 0.0)
        with pytest.raises(UserError, match=f"it is {kind}, not a file"):
            load_audio(path, RATE, 1.0)
        with pytest.raises(RowError, match=f"it is {kind}, not a file"):
            media.encode_image(str(path), 0.0)
    with pytest.raises(UserError, match="embedded null byte"):
        load_audio("a\0.wav", RATE, 1.0)
    assert time.monotonic() - start < 5


def test_content_decides_not_the_suffix(tmp_path):
    film(tmp_path / "a.mp4", tone(1), 25)
    film(tmp_path / "b.webm", tone(1), audio="libopus")
    os.rename(tmp_path / "a.mp4", tmp_path / "a.jpg")
    os.rename(tmp_path / "b.webm", tmp_path / "b.wav")
    Image.fromarray(grey(0)).save(tmp_path / "c.mp4", "JPEG")
    assert media.encode_image(str(tmp_path / "a.jpg"), 0.5)[0][:3] == b"\xff\xd8\xff"
    assert media.encode_image(str(tmp_path / "c.mp4"), 0.5)[0] == (tmp_path / "c.mp4").read_bytes()
    assert load_audio(tmp_path / "a.jpg", RATE, 1.0)[0].max() > 0.4
    assert load_audio(tmp_path / "b.wav", RATE, 1.0)[0].max() > 0.4


@pytest.mark.parametrize("kind", ["avif", "webp", "gif"])
def test_pictures_are_no_containers(tmp_path, kind):
    Image.fromarray(grey(0)).save(tmp_path / f"a.{kind}", kind)
    assert containers.detect_path(tmp_path / f"a.{kind}") is None


@pytest.mark.parametrize(
    ("name", "codec", "found"),
    [
        ("a.m4a", "aac", "mov"), ("a.3gp", "aac", "mov"), ("a.mka", "libopus", "matroska"),
        ("a.webm", "libopus", "matroska"), ("a.flv", "aac", "flv"), ("a.ts", "aac", "mpegts"),
        ("a.mpg", "mp2", "mpeg"), ("a.aac", "aac", "aac"), ("a.avi", "mp2", "avi"),
        ("a.wav", "pcm_s16le", None), ("a.mp3", "libmp3lame", None), ("a.ogg", "libopus", None),
        ("a.flac", "flac", None),
    ],
)  # fmt: skip
def test_sounds_of_all_kinds_are_taken(tmp_path, name, codec, found):
    path = tmp_path / name
    film(path, tone(2), audio=codec)
    assert containers.detect_path(path) == found
    wave, info = load_audio(path, RATE, 1.0, isolate=False)
    assert np.abs(wave[4800:-4800]).max() == pytest.approx(0.5, abs=0.02)
    assert info.truncated and info.seconds == pytest.approx(2.0, abs=0.08)


@pytest.mark.parametrize(("name", "codec"), [("a.m4a", "aac"), ("a.webm", "libopus")])
def test_every_door_takes_m4a_and_webm(tmp_path, name, codec):
    path = tmp_path / name
    film(path, np.stack([tone(2)] * 2), audio=codec)
    whole, _ = load_audio(path, RATE, 1.0, isolate=False)
    for source in (path, path.read_bytes()):  # api.ask, generate; serve, the demo
        np.testing.assert_array_equal(load_audio(source, RATE, 1.0)[0], whole)
    assert count_seconds(path.read_bytes()) == pytest.approx(2.0, abs=0.05)
    assert _fault(path, "audio") is None
    check_audio(str(path), Limits())
    with pytest.raises(UserError, match=f"{name}: 2.0 s long; at most 1 s"):
        check_audio(str(path), Limits(seconds=1))
    assert read_audio_file(path.read_bytes(), 1.0)[:4] == b"RIFF"
    assert media.encode_audio(str(path), 0.5, 1.0, 1.0)[0][:4] == b"fLaC"
    audio = {"data": base64.b64encode(path.read_bytes()).decode(), "format": name[2:]}
    content = [{"type": "input_audio", "input_audio": audio}, {"type": "text", "text": "What?"}]
    asked = {"model": "m", "messages": [{"role": "user", "content": content}]}
    assert read_chat(json.dumps(asked).encode(), "m").audio == path.read_bytes()


# ---- bounds ----


class Slow(io.BytesIO):
    """Ten reads a second."""

    def read(self, size=-1):
        time.sleep(0.1)
        return super().read(min(size, 512))


def test_a_slow_file_ends(tmp_path):
    film(tmp_path / "a.mkv", tone(20), 100, audio="pcm_s16le")
    slow = Slow((tmp_path / "a.mkv").read_bytes())
    start = time.monotonic()
    for read in (
        lambda: video.load_channels(slow, 15.0, 1.0, "slow", limit=0.5),
        lambda: video.load_frame(slow, 3.0, "slow", limit=0.5),
    ):
        with pytest.raises(UserError, match=r"slow: not decoded within 0.5 s"):
            read()
    assert time.monotonic() - start < 3


def test_a_child_that_takes_too_long_is_ended(tmp_path, monkeypatch):
    film(tmp_path / "a.m4a", tone(1))
    monkeypatch.setattr(isolated, "SECONDS", 0.02)
    with pytest.raises(UserError, match=r"a.m4a: not decoded within 0.02 s"):
        isolated.load_channels(tmp_path / "a.m4a", 0.0, 1.0)


def test_a_frame_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    film(tmp_path / "a.mp4", frames=2)
    monkeypatch.setattr(containers, "PIXELS", 10_000)
    with pytest.raises(UserError, match="a.mp4: frames of 128 x 96; expected at most 10000"):
        video.load_frame(tmp_path / "a.mp4", 0.0)


def test_samples_of_all_channels_are_bounded_before_they_are_laid_out(tmp_path, monkeypatch):
    film(tmp_path / "a.mkv", np.tile(tone(2), (6, 1)), audio="pcm_s16le", lost=(0.1, 1.9))
    path = str(tmp_path / "a.mkv")
    assert video.load_channels(path, 0.0, 1.0)[0].shape == (RATE, 6)
    monkeypatch.setattr(containers, "MAX_SAMPLES", 6 * RATE - 1)
    with pytest.raises(UserError, match="a.mkv: 288000 samples in 6 channels at 48000 Hz; expect"):
        video.load_channels(path, 0.0, 1.0)  # a few kilobytes, of which the rest would be silence


def test_what_states_more_than_the_memory_holds_is_a_fault_of_the_file(tmp_path):
    def short(file):
        raise MemoryError  # what FFmpeg's ENOMEM becomes

    film(tmp_path / "a.mp4", frames=2)
    with open(tmp_path / "a.mp4", "rb") as file, pytest.raises(UserError, match="more memory"):
        with containers.opened(file, "video", containers.Deadline(9, "a.mp4")) as opened:
            short(opened)


def child(code, file):
    """What a process writes that runs `code`, with the decoder's child at hand."""
    call = f"import resource, sys; from meerkat_jax.data import isolated\n{code}"
    ended = subprocess.run([sys.executable, "-c", call], stdin=file, capture_output=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_an_index_that_fills_the_memory_ends_the_child_alone(tmp_path):
    film(tmp_path / "a.m4a", tone(1))
    data = bytearray((tmp_path / "a.m4a").read_bytes())
    many = (60_000_000).to_bytes(4, "big")  # samples of one byte, all in one chunk: 2.2 GB
    for name, at in ((b"stsz", 12), (b"stsc", 16), (b"stts", 12)):
        place = data.index(name) + at
        data[place : place + 4] = many
    place = data.index(b"stsz") + 8
    data[place : place + 4] = b"\0\0\0\1"
    (tmp_path / "a.m4a").write_bytes(data)
    code = """
isolated.MEMORY = 1 << 30
sys.argv[1:] = ['["channels", "a.m4a", 0, 1]']
status = open("/proc/self/status")  # ru_maxrss begins with what the parent had
isolated.main()
print(status.read().split("VmHWM:")[1].split()[0])
"""
    with open(tmp_path / "a.m4a", "rb") as file:
        told, kilobytes = child(code, file).splitlines()
    assert json.loads(told)["error"].startswith("a.m4a: ") and int(kilobytes) < 400_000


def test_the_child_can_open_no_other_file(tmp_path):
    tries = """
isolated._confine()
for path in (sys.executable, "/dev/null"):
    try:
        open(path)
    except OSError as error:
        print(error.errno)
"""
    with open(sys.executable, "rb") as file:
        assert child(tries, file).split() == [b"24", b"24"]
