"""MP3s that do not tell their length rightly are read to their end; nothing is lost unsaid."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from meerkat_jax.core.errors import UserError
from meerkat_jax.data import mp3
from meerkat_jax.data.audio import count_seconds, load_audio

RATE = 44_100
SECONDS = 12
DELAY = 576 / RATE  # of the encoder, which nothing tells any more where the first frame is gone


def wave(rate: int = RATE) -> np.ndarray:
    """A second of noise, costly to encode, and then a tone that swells: each second is its own."""
    t = np.arange(SECONDS * rate) / rate
    audio = 0.02 * t * np.sin(2 * np.pi * 440 * t)
    audio[:rate] = 0.1 * np.random.default_rng(0).standard_normal(rate)
    return audio.astype(np.float32)


def encode(samples: np.ndarray, rate: int = RATE, mode: str = "VARIABLE") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="MP3", bitrate_mode=mode, compression_level=0.2)
    return file.getvalue()


def headless(data: bytes) -> bytes:
    """Without the frame that tells how many there are."""
    return data[mp3._header(data[:4]).size :]


def id3(size: int) -> bytes:
    """A tag of `size` bytes, as one with an image of the cover."""
    return b"ID3\x04\0\0" + bytes(size >> shift & 127 for shift in (21, 14, 7, 0)) + bytes(size)


@pytest.mark.parametrize("rate", [48_000, 44_100, 32_000, 24_000, 16_000, 8_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_without_a_count_of_frames_it_is_read_whole(rate: int, channels: int) -> None:
    whole = encode(np.repeat(wave(rate)[:, None], channels, 1), rate)
    data = headless(whole)
    guessed = soundfile.info(io.BytesIO(data)).duration
    assert abs(guessed - SECONDS) > 5, "libsndfile guesses far off, or this tests nothing"
    expected, _ = load_audio(whole, rate, SECONDS)
    found, info = load_audio(data, rate, SECONDS + 1)
    assert info.seconds == pytest.approx(SECONDS, abs=0.2)
    assert count_seconds(data) == info.seconds
    np.testing.assert_allclose(found[576:][: len(expected) - 4000], expected[:-4000], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "seconds"),
    [
        (headless, SECONDS),
        (lambda data: headless(data) + b"TAG" + bytes(125), SECONDS),
        (lambda data: id3(300_000) + headless(data), SECONDS),
        (lambda data: id3(300_000) + data, SECONDS),
        (lambda data: data + data, 2 * SECONDS),  # joined: the first tells its own length
        (lambda data: data + id3(5_000) + data, 2 * SECONDS),
        (lambda data: headless(data) + headless(data), 2 * SECONDS),
        (lambda data: headless(data)[:30_000] + b"junk" * 99 + headless(data)[30_000:], SECONDS),
    ],
    ids=[
        "bare",
        "id3v1",
        "id3v2",
        "id3v2 and count",
        "joined",
        "joined id3",
        "joined bare",
        "junk",
    ],
)
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_whatever_stands_around_its_frames(change, seconds: float, mode: str) -> None:
    data = change(encode(wave(), mode=mode))
    assert count_seconds(data) == pytest.approx(seconds, abs=0.15)
    found, info = load_audio(data, RATE, seconds)
    assert info.seconds == pytest.approx(seconds, abs=0.15)
    level = [
        np.abs(found[RATE * at :][: RATE // 2]).max() for at in (SECONDS - 2, int(seconds) - 2)
    ]
    assert level == pytest.approx([0.02 * (SECONDS - 1.5)] * 2, rel=0.05), "heard to the end"


@pytest.mark.parametrize("start", [0.3, 1.5, 5.0, 9.0001])
@pytest.mark.parametrize("bare", [False, True])
def test_from_a_start_it_is_what_it_is_from_the_beginning(start: float, bare: bool) -> None:
    data = headless(encode(wave())) if bare else encode(wave())
    whole, _ = load_audio(data, RATE, SECONDS)
    part, _ = load_audio(data, RATE, 1.0, start=start)
    first = round(start * RATE)
    np.testing.assert_allclose(part, whole[first : first + RATE], atol=1e-6)


def test_cut_off_is_told_where_frames_tell_it() -> None:
    data = headless(encode(wave()))
    with pytest.raises(UserError, match="cut off after 12.0"):
        load_audio(data[:-50], RATE, 20.0)
    load_audio(data[:-50], RATE, 10.0)  # not within these
    with pytest.raises(UserError, match="cut off after"):
        load_audio(encode(wave())[:-5000], RATE, 20.0)


def test_another_sample_rate_on_the_way_is_refused() -> None:
    data = encode(wave()) + encode(wave(32_000), 32_000)
    with pytest.raises(UserError, match="both: the sample rate or the number of channels"):
        load_audio(data, RATE, 1.0, name="both")
    assert count_seconds(data) is None


def test_what_looks_like_tags_takes_no_memory() -> None:
    data = headless(encode(wave())) + b"Xing" * 500_000
    tracemalloc.start()
    again = mp3.counted(data, "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert again is not None and peak < 4 * len(data)


def test_one_that_tells_its_length_is_left_as_it_is() -> None:
    assert mp3.counted(encode(wave()), "") is None
    assert mp3.counted(id3(1000) + encode(wave(), mode="CONSTANT"), "") is None
    assert mp3.counted(b"\xff\xfb\x90\x00", "") is None and mp3.counted(bytes(99), "") is None


# --- the same of other formats -------------------------------------------------------------------


def written(kind: str, subtype: str | None = None) -> bytearray:
    file = io.BytesIO()
    soundfile.write(file, wave(48_000)[: 5 * 48_000], 48_000, format=kind, subtype=subtype)
    return bytearray(file.getvalue())


def wav_of(length: int) -> bytes:
    data = written("WAV")
    data[40:44] = struct.pack("<I", length)
    return bytes(data)


def endless_flac() -> bytes:
    data = written("FLAC")
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (wav_of(0), "says 0 bytes of sound, the file has 480044"),
        (wav_of(1000), "says 1000 bytes of sound"),
        (bytes(2 * written("OGG", "VORBIS")), "several OGG streams"),
        (bytes(2 * written("OGG", "OPUS")), "several OGG streams"),
        (endless_flac(), "does not say how long the audio is"),
    ],
    ids=["wav of 0", "wav of 1000", "vorbis", "opus", "flac"],
)
def test_what_would_be_lost_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_audio(data, 48_000, 10.0)


@pytest.mark.parametrize("tail", [b"LIST\x04\0\0\0abcd", b"TAG" + bytes(125), bytes(100)])
def test_what_may_follow_a_wav_is_not_sound(tail: bytes) -> None:
    assert load_audio(bytes(written("WAV") + tail), 48_000, 10.0)[1].seconds == 5.0
