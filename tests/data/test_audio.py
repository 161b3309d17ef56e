"""Sounds of every ordinary kind decode right; the log-mel equals CLAP's published extractor."""

from __future__ import annotations

import functools
import io
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from transformers import ClapFeatureExtractor

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.audio import FLOOR, LogMel, load_audio
from tests.tolerances import tolerance

RATE = 16_000


def tone(seconds: float, rate: int = RATE, hertz: float = 440.0) -> np.ndarray:
    """A sine of amplitude 0.5, float32[seconds * rate]."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("f")


def encode(
    wave: np.ndarray, rate: int = RATE, kind: str = "WAV", subtype: str | None = None
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "subtype", "error"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "PCM_U8", 1e-2),
        ("WAV", "FLOAT", 0.0),
        ("WAV", "ULAW", 2e-2),
        ("FLAC", "PCM_16", 1e-4),
        ("AIFF", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 5e-2),
        ("MP3", None, 5e-2),
    ],
)
def test_formats(kind: str, subtype: str | None, error: float, tmp_path: Path) -> None:
    data = encode(tone(1.0), RATE, kind, subtype)
    path = tmp_path / "sound"
    path.write_bytes(data)
    wave, info = load_audio(path, RATE, 1.0)
    assert wave.shape == (RATE,)
    assert wave.dtype == np.float32
    middle = slice(2000, -2000)  # lossy codecs ring at the ends
    assert np.abs(wave - tone(1.0))[middle].max() <= error
    assert (info.seconds, info.sample_rate, info.channels) == (1.0, RATE, 1)
    assert not info.truncated
    assert not info.silent
    np.testing.assert_array_equal(load_audio(data, RATE, 1.0)[0], wave)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("target", [16_000, 48_000])
def test_resampling_keeps_pitch_and_length(rate: int, target: int) -> None:
    wave, info = load_audio(encode(tone(1.0, rate), rate, subtype="FLOAT"), target, 1.0)
    assert info.sample_rate == rate
    assert len(wave) == target
    middle = slice(target // 10, -target // 10)
    assert np.abs(wave - tone(1.0, target))[middle].max() < 2e-4


def test_resampling_removes_what_the_rate_cannot_hold() -> None:
    wave, info = load_audio(encode(tone(1.0, 48_000, hertz=12_000), 48_000), RATE, 1.0)
    assert np.abs(wave[500:-500]).max() < 1e-3  # 12 kHz would come back as 4 kHz
    assert not info.truncated


def test_stereo_is_averaged() -> None:
    left, right = tone(0.5), tone(0.5, hertz=1000)
    wave, info = load_audio(encode(np.stack([left, right], 1), subtype="FLOAT"), RATE, 0.5)
    np.testing.assert_allclose(wave, (left + right) / 2, **tolerance("module"))
    assert info.channels == 2


def test_short_is_followed_by_silence() -> None:
    wave, info = load_audio(encode(tone(0.3), subtype="FLOAT"), RATE, 1.0)
    np.testing.assert_array_equal(wave[:4800], tone(0.3))
    assert not wave[4800:].any()
    assert (info.seconds, info.truncated) == (0.3, False)


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.6, 1.0])
def test_repeat_is_claps_repeatpad(seconds: float) -> None:
    clip = tone(seconds)
    wave, _ = load_audio(encode(clip, subtype="FLOAT"), RATE, 1.0, pad="repeat")
    times = int(RATE / len(clip))
    expected = np.concatenate([np.tile(clip, times), np.zeros(RATE - times * len(clip), "f")])
    np.testing.assert_array_equal(wave, expected)
    extractor = reference(RATE, 512, 160, 50, 8000.0, "htk", seconds=1)
    theirs = extractor(clip, sampling_rate=RATE, padding="repeatpad")["input_features"][0][0]
    ours = LogMel(RATE, 512, 160, fmax=8000.0).exact(wave[None])[0]
    np.testing.assert_allclose(ours, theirs, **tolerance("log mel float64"))


@pytest.mark.parametrize("rate", [RATE, 44_100])
def test_long_is_cut_to_its_beginning_and_says_so(rate: int) -> None:
    whole = np.concatenate([tone(1.0, rate), tone(2.5, rate, hertz=2000)])
    wave, info = load_audio(encode(whole, rate, subtype="FLOAT"), RATE, 1.0)
    assert len(wave) == RATE
    assert (info.seconds, info.truncated) == (3.5, True)
    error = np.abs(wave - tone(1.0))
    assert error[200:-200].max() < 2e-4


def test_no_edge_where_it_was_cut() -> None:
    data = encode(tone(3.0, 44_100), 44_100, subtype="FLOAT")
    wave, _ = load_audio(data, RATE, 1.0)
    assert np.abs(wave - tone(1.0))[200:].max() < 2e-4


@pytest.mark.parametrize(
    ("wave", "silent"),
    [
        (np.zeros(RATE, "f"), True),
        (np.full(RATE, 0.25, "f"), True),  # an offset is not audio
        (tone(1.0) * 1e-5, True),
        (tone(1.0) * 1e-3, False),
        (np.stack([tone(1.0), -tone(1.0)], 1), False),  # the loudest alone is heard
        (np.concatenate([np.zeros(2 * RATE, "f"), tone(1.0)]), True),  # sounds after the cut
    ],
)
def test_silence_is_reported(wave: np.ndarray, silent: bool) -> None:
    got, info = load_audio(encode(wave, subtype="FLOAT"), RATE, 1.0)
    assert got.shape == (RATE,)
    assert info.silent is silent


def with_lengths(length: int) -> bytes:
    """A WAV as programs that write to a pipe leave it: lengths that nobody knew."""
    data = bytearray(encode(tone(0.5)))
    data[4:8] = data[40:44] = struct.pack("<I", length)
    return bytes(data)


@pytest.mark.parametrize("length", [0x7FFFF000, 0xFFFFFFFF])
def test_a_streamed_wav_is_whole(length: int) -> None:
    _, info = load_audio(with_lengths(length), RATE, 1.0)
    assert info.seconds == 0.5


def spoiled(value: float) -> bytes:
    wave = tone(0.5)
    wave[100] = value
    return encode(wave, subtype="FLOAT")


def cut(kind: str, subtype: str | None = None) -> bytes:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * 48_000)
    data = encode(noise, 48_000, kind, subtype)
    return data[: len(data) * 7 // 10]


BAD = {
    "empty": (b"", "empty"),
    "text": (b"not audio at all, " * 100, "not audio"),
    "one byte": (b"R", "not audio"),
    "image": (b"\x89PNG\r\n\x1a\n" + bytes(200), "not audio"),
    "no samples": (encode(np.zeros(0, "f")), "no samples"),
    "nan": (spoiled(np.nan), "not finite"),
    "infinite": (spoiled(np.inf), "not finite"),
    "absurd": (spoiled(1e30), "about -1 to 1"),
    "cut wav": (cut("WAV"), "cut off after 2.10 s"),
    "cut 8 bit wav": (cut("WAV", "PCM_U8"), "cut off after 2.10 s"),
    "cut aiff": (cut("AIFF"), "cut off after 2.10 s"),
    "cut mp3": (cut("MP3"), "cut off"),
    "cut opus": (cut("OGG", "OPUS"), "cut off"),
    "cut flac": (cut("FLAC"), "get the file again"),
    "cut vorbis": (cut("OGG", "VORBIS"), "get the file again"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_error_that_names_it(case: str, tmp_path: Path) -> None:
    data, message = BAD[case]
    path = tmp_path / "walk.wav"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        load_audio(path, RATE, 10.0)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="row 7"):
        load_audio(data, RATE, 10.0, name="row 7")


@pytest.mark.parametrize("name", ["nowhere.wav", "."])
def test_a_path_that_cannot_be_opened(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot open.*check the path"):
        load_audio(tmp_path / name, RATE, 1.0)


def test_headerless_samples_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.raw"  # a name that makes libsndfile ask for a sample rate
    path.write_bytes(bytes(1000))
    with pytest.raises(UserError, match="not audio"):
        load_audio(path, RATE, 1.0)


def test_unknown_pad() -> None:
    with pytest.raises(UserError, match="'zero' or 'repeat'"):
        load_audio(encode(tone(0.1)), RATE, 1.0, pad="loop")


# --- the spectrogram -----------------------------------------------------------------------------

SETTINGS = {  # rate, n_fft, hop, fmin, fmax
    "published": (48_000, 1024, 480, 50.0, 14_000.0),
    "mini": (16_000, 512, 160, 50.0, 8_000.0),
}


@functools.cache
def reference(
    rate: int, n_fft: int, hop: int, fmin: float, fmax: float, variant: str, seconds: int = 10
) -> ClapFeatureExtractor:
    return ClapFeatureExtractor(
        sampling_rate=rate,
        fft_window_size=n_fft,
        hop_length=hop,
        frequency_min=fmin,
        frequency_max=fmax,
        max_length_s=seconds,
        truncation="fusion" if variant == "htk" else "rand_trunc",
    )


def signals(rate: int) -> dict[str, np.ndarray]:
    """Ten seconds each: what is easy, what has nothing, and what has quiet bands beside loud."""
    t = np.arange(10 * rate) / rate
    noise = np.random.default_rng(0).standard_normal(t.size)
    return {
        "tone": 0.5 * np.sin(2 * np.pi * 1000 * t),
        "odd tone": 0.9 * np.sin(2 * np.pi * 3333.3 * t),
        "noise": 0.1 * noise,
        "whisper": 1e-4 * noise,
        "silence": np.zeros_like(t),
        "chirp": 0.5 * np.sin(2 * np.pi * (100 * t + 300 * t * t)),
        "click": (np.arange(t.size) == t.size // 3).astype(float),
    }


@functools.cache
def spectra(setting: str, variant: str) -> tuple[LogMel, np.ndarray, np.ndarray]:
    """Ours, float32[signals, samples], and the reference's dB [signals, F, 64]."""
    rate, n_fft, hop, fmin, fmax = SETTINGS[setting]
    waves = np.stack(list(signals(rate).values())).astype(np.float32)
    extract = reference(*SETTINGS[setting], variant)
    expected = []
    for wave in waves:
        out = extract(wave, sampling_rate=rate)
        # The fused extractor marks a random row of a batch as longer when none is: of one clip,
        # this one. It is no longer, and its four spectrograms are one and the same.
        assert out["is_longer"] == [[variant == "htk"]]
        assert all((view == out["input_features"][0][0]).all() for view in out["input_features"][0])
        expected.append(out["input_features"][0][0])
    return LogMel(rate, n_fft, hop, 64, fmin, fmax, variant), waves, np.stack(expected)


every = pytest.mark.parametrize(
    ("setting", "variant"), [(s, v) for s in SETTINGS for v in ("htk", "slaney")]
)


@every
def test_float64_equals_claps_extractor(setting: str, variant: str) -> None:
    log_mel, waves, expected = spectra(setting, variant)
    assert expected.shape[1:] == (1001, 64) == (log_mel.frames(waves.shape[1]), 64)
    np.testing.assert_allclose(log_mel.exact(waves), expected, **tolerance("log mel float64"))


def assert_near(got: np.ndarray, expected: np.ndarray) -> None:
    """Equal in dB where a band is not far below the frame's strongest, and in power everywhere."""
    strongest = expected.max(axis=-1, keepdims=True)
    loud = expected > strongest - 80
    np.testing.assert_allclose(got[loud], expected[loud], **tolerance("log mel"))
    parts = (10 ** ((x - strongest) / 10) for x in (got, expected))
    np.testing.assert_allclose(*parts, **tolerance("mel power"))


@every
@pytest.mark.parametrize("way", ["jitted", "matmul"])
def test_device_equals_claps_extractor(setting: str, variant: str, way: str) -> None:
    log_mel, waves, expected = spectra(setting, variant)
    if way == "jitted":
        got = log_mel(waves)
    else:  # what a TPU runs
        half = log_mel.n_fft // 2
        padded = jnp.pad(waves, ((0, 0), (half, half)), mode="reflect")
        got = 10 * jnp.log10(jnp.maximum(log_mel.mel_by_matmul(padded), FLOOR))
    assert got.dtype == jnp.float32
    assert_near(np.asarray(got), expected)


def test_silence_is_the_floor() -> None:
    assert np.asarray(LogMel()(np.zeros((1, 48_000), "f"))).max() == pytest.approx(-100, abs=1e-4)


@pytest.mark.parametrize("samples", [1_000, 4_800, 12_345, 48_001])
def test_any_length(samples: int) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, (2, samples)).astype(np.float32)
    log_mel = LogMel()
    expected = log_mel.exact(wave)
    assert expected.shape == (2, log_mel.frames(samples), 64)
    assert_near(np.asarray(log_mel(wave)), expected)
    padded = np.pad(wave, ((0, 0), (512, 512)), mode="reflect")
    assert_near(10 * np.log10(np.maximum(log_mel.mel_by_matmul(padded), FLOOR)), expected)


def test_a_tone_is_heard_at_its_pitch_and_time() -> None:
    wave = np.zeros(5 * RATE, "f")
    wave[2 * RATE : 3 * RATE] = tone(1.0, hertz=1000)
    log_mel = LogMel(RATE, 512, 160, fmax=8000.0)
    mel = np.asarray(log_mel(wave[None]))[0]
    loud = np.flatnonzero(mel.max(axis=1) > 0) * 160 / RATE
    assert (loud[0], loud[-1]) == pytest.approx((2.0, 3.0), abs=0.02)
    band = log_mel.filters()[:, mel[250].argmax()]
    assert abs(band.argmax() * RATE / 512 - 1000) < 2 * RATE / 512


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "bark"}, "'htk' or 'slaney'"),
        ({"sample_rate": 16_000}, "<= 8000"),
        ({"fmin": 20_000.0}, "fmin < fmax"),
    ],
)
def test_settings_without_a_spectrogram_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LogMel(**fields)
