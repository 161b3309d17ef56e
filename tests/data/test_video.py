"""The clock, the loudness and the upright frames of containers."""

import math

import numpy as np
import pytest
import soundfile

from meerkat_jax.core.errors import UserError
from meerkat_jax.data import media, video
from meerkat_jax.data.audio import load_audio
from meerkat_jax.data.image import read_image
from tests.data.filming import FPS, RATE, film, heard_at, number_of, pulse, tone


def mono(path, seconds, start=0.0):
    wave, info = load_audio(path, RATE, seconds, start=start, isolate=False)
    return wave[: round(info.seconds * RATE)]


# ---- loudness ----

KINDS = {
    "a.m4a": {"audio": "aac"},
    "b.mp4": {"audio": "aac", "frames": 5},
    "c.mkv": {"audio": "pcm_f32le"},
    "d.mkv": {"audio": "flac"},
    "e.mov": {"audio": "pcm_s24le"},
    "f.webm": {"audio": "libopus"},
    "g.ts": {"audio": "aac", "frames": 5},
    "h.avi": {"audio": "pcm_s16le", "frames": 5},
    "i.mka": {"audio": "pcm_u8"},
}


@pytest.mark.parametrize("channels", [2, 6])
@pytest.mark.parametrize("name", KINDS)
def test_a_sound_is_as_loud_from_a_container_as_from_wav(tmp_path, name, channels):
    levels = [0.9, 0.5, 0.25, 0.0, 0.3, 0.1] if channels == 6 else [0.9, 0.9]
    wave = np.stack([tone(1.0, 440.0, level) for level in levels])
    soundfile.write(tmp_path / "a.wav", wave.T, RATE, "FLOAT")
    film(tmp_path / name, wave, **KINDS[name])
    power = [
        np.square(mono(tmp_path / file, 1.0)[4800:-9600].astype(float)).mean()
        for file in ("a.wav", name)
    ]
    assert abs(10 * math.log10(power[1] / power[0])) < 0.01


def test_a_loud_stereo_sine_is_not_clipped(tmp_path):
    film(tmp_path / "a.mkv", np.stack([tone(1.0, 440.0, 0.9)] * 2), audio="pcm_f32le")
    data, noted = media.encode_audio(str(tmp_path / "a.mkv"), 0.0, 1.0, 1.0)
    assert not noted
    (tmp_path / "a.flac").write_bytes(data)
    made, _ = soundfile.read(tmp_path / "a.flac")
    assert np.abs(made).max() == pytest.approx(0.9, abs=1e-3)


# ---- the common clock ----

FILES = {"a.mp4": {}, "a.mkv": {"audio": "pcm_s16le"}, "a.ts": {}, "a.flv": {"video": "flv"}}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("picture_at", "sound_at"), [(0, 1), (1, 0), (1, 1), (3, 3.5)])
def test_times_are_of_one_clock(tmp_path, name, picture_at, sound_at):
    film(tmp_path / name, pulse(0.5, 4), 100, picture_at, sound_at, **FILES[name])
    zero = min(picture_at, sound_at)
    due = sound_at - zero + 0.5
    within = 0.03  # an AAC encoder's delay, where the container cannot tell it
    assert abs(heard_at(mono(tmp_path / name, 8)) - due) < within
    for start in (0.2, due - 0.2):  # also where it is sought
        assert abs(heard_at(mono(tmp_path / name, 1.5, start)) + start - due) < within
    for at in (2.0, 3.5):
        number = number_of(video.load_frame(tmp_path / name, at))
        assert abs(number - (at + zero - picture_at) * FPS) <= 2.5


SOUGHT = {
    "a.mp4": {}, "a.mkv": {}, "a.webm": {"audio": "libopus", "video": "libvpx"}, "a.ts": {},
    "a.flv": {"video": "flv"}, "a.avi": {"audio": "mp2"}, "a.wmv": {"audio": "wmav2"}, "a.aac": {},
    "a.ogv": {"audio": "libopus", "video": "libvpx", "format": "ogg"},
    "one key frame.mp4": {"gop": 600, "video": "libx264"},
}  # fmt: skip


@pytest.mark.parametrize("name", SOUGHT)
def test_what_is_sought_is_found_where_reading_on_finds_it(tmp_path, name):
    frames = 0 if name == "a.aac" else 250
    film(tmp_path / name, pulse(8.0, 10), frames, **SOUGHT[name])
    due = heard_at(mono(tmp_path / name, 10))
    assert abs(due - 8.0) < 0.05  # a codec's delay, where the container cannot tell it
    assert abs(heard_at(mono(tmp_path / name, 2, 7.5)) + 7.5 - due) < 0.0015
    for at in (3.0, 7.02) if frames else ():
        number = number_of(video.load_frame(tmp_path / name, at))
        assert abs(number - at * FPS % 110) <= 3


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_missing_packets_are_silence_and_shift_nothing(tmp_path, name):
    codec = "libopus" if name == "a.webm" else "aac"
    film(tmp_path / name, pulse(3.0, 5) + pulse(0.5, 5), audio=codec, lost=(1.0, 2.0))
    assert abs(heard_at(mono(tmp_path / name, 5)) - 0.5) < 0.01
    for start in (0.9, 1.5, 2.5):  # before, in and behind the gap
        wave = mono(tmp_path / name, 3.0, start)
        assert abs(heard_at(wave) + start - 3.0) < 0.01
    assert not mono(tmp_path / name, 0.5, 1.3).any()


def test_a_sound_alone_begins_at_its_own_beginning(tmp_path):
    film(tmp_path / "a.mka", pulse(0.5, 2), sound_at=7.0, audio="pcm_s16le")
    assert abs(heard_at(mono(tmp_path / "a.mka", 2)) - 0.5) < 0.002


def test_times_before_zero_count(tmp_path):
    film(tmp_path / "a.mkv", pulse(1.5, 4), 100, -0.4, 0.0, audio="pcm_s16le", video="mpeg4")
    late = 0.4 if video.load_frame(tmp_path / "a.mkv", 0.0) is not None else 0
    assert abs(heard_at(mono(tmp_path / "a.mkv", 4)) - 1.5 - late) < 0.01
    assert abs(number_of(video.load_frame(tmp_path / "a.mkv", 2.0)) - 50) <= 1.5


def test_a_frame_before_the_first_one_is_refused(tmp_path):
    film(tmp_path / "a.mkv", tone(5), 50, picture_at=3.0)
    assert abs(number_of(video.load_frame(tmp_path / "a.mkv", 2.5))) < 1
    with pytest.raises(UserError, match=r"a.mkv: the first frame is at 3.00 s, not 0.5"):
        video.load_frame(tmp_path / "a.mkv", 0.5)


def test_time_stamps_that_wrap_are_taken_on(tmp_path):
    film(tmp_path / "a.ts", pulse(0.5, 2), 50)
    data = bytearray((tmp_path / "a.ts").read_bytes())
    for at in range(0, len(data), 188):  # all stamps, so that the clock wraps after .7 s
        start = data.find(b"\0\0\1", at, at + 188)
        if start < 0 or not data[at + 1] & 0x40 or not data[start + 7] & 0x80:
            continue
        both = data[start + 7] & 0x40
        for place in (start + 9, start + 14) if both else (start + 9,):
            data[place : place + 5] = shifted(data[place : place + 5], 2**33 - 63_000 - 126_000)
    assert abs(heard_at(mono(bytes(data), 2)) - 0.52) < 0.03


def shifted(stamp, by):
    """A time stamp of MPEG, 33 bits in 5 bytes, moved by so many ticks of 90 kHz."""
    value = (stamp[0] >> 1 & 7) << 30 | stamp[1] << 22 | (stamp[2] >> 1) << 15
    value = ((value | stamp[3] << 7 | stamp[4] >> 1) + by) % 2**33
    return bytes([
        stamp[0] & 0xF0 | (value >> 30) << 1 | 1, value >> 22 & 255, (value >> 15 & 127) << 1 | 1,
        value >> 7 & 255, (value & 127) << 1 | 1,
    ])  # fmt: skip


def test_a_length_that_is_not_stated_is_found(tmp_path):
    film(tmp_path / "a.webm", tone(2), audio="libopus", format="webm")
    data = (tmp_path / "a.webm").read_bytes()
    at = data.index(b"\x44\x89\x88")  # the duration, a float of 8 bytes: made a void element
    void = data[:at] + b"\xec\x89" + bytes(9) + data[at + 11 :]
    assert video.media_seconds(void, "audio") == pytest.approx(2.0, abs=0.02)
    _, info = load_audio(void, RATE, 1.0)
    assert info.seconds == pytest.approx(2.0, abs=0.02) and info.truncated


def test_a_video_that_is_cut_off_says_so(tmp_path):
    film(tmp_path / "a.mp4", tone(4))
    film(tmp_path / "b.mp4", tone(4))
    data = (tmp_path / "a.mp4").read_bytes()
    at = data.index(b"moov") - 4
    half = data.index(b"mdat") + 4000  # the media after their index, and half of them gone
    moov = data[at:]
    kept = data[: data.index(b"mdat") - 4]
    stco = moov.index(b"stco") + 12
    first = int.from_bytes(moov[stco : stco + 4], "big") + len(moov)
    assert moov[stco - 4 : stco] == b"\0\0\0\1"
    moov = moov[:stco] + first.to_bytes(4, "big") + moov[stco + 4 :]
    cut = kept + moov + data[data.index(b"mdat") - 4 : half]
    with pytest.raises(UserError, match=r"cut off after|damaged"):
        video.load_channels(cut, 0.0, 10.0)


# ---- upright ----


def corners(number):
    """An image that no turn or mirror takes to itself, uint8[64, 96, 3]."""
    image = np.full((64, 96, 3), 40, np.uint8)
    image[:32, :48] = 230, 40, 40
    image[:32, 48:] = 40, 230, 40
    image[32:, :48] = 40, 40, 230
    return image


TURNS = {  # EXIF's orientation of the same transformation: a, b, c, d of the display matrix
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNS)
def test_a_frame_is_turned_and_mirrored_as_its_display_matrix_says(tmp_path, orientation):
    from PIL import Image

    a, b, c, d = (value << 16 for value in TURNS[orientation])
    film(tmp_path / "a.mp4", frames=5, drawn=corners, matrix=(a, b, 0, c, d, 0, 0, 0, 1 << 30))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(corners(0)).save(tmp_path / "a.png", exif=exif)
    expected = np.asarray(read_image(tmp_path / "a.png")).astype(int)
    got = video.load_frame(tmp_path / "a.mp4", 0.1)
    assert got.shape == expected.shape
    assert np.abs(got - expected).mean() < 8


def test_a_slanted_frame_is_refused(tmp_path):
    matrix = (46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30)
    film(tmp_path / "a.mp4", frames=5, drawn=corners, matrix=matrix)
    with pytest.raises(UserError, match="a.mp4: its display matrix .* multiples of 90"):
        video.load_frame(tmp_path / "a.mp4", 0.1)
