"""One rule for channels and loudness: the build stores what `generate` hears of the same file."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import soundfile

from meerkat_jax.data import media
from meerkat_jax.data.audio import limit_peak, load_audio, mix_to_mono
from meerkat_jax.data.sources.skips import RowError

SECONDS = 2.0
CANCEL = "the audio's channels cancel each other: the loudest alone is heard"
LOUD = "the audio is above full scale: divided by its peak"
SILENT = "the audio is silent"
STEP = 1 / 32768


def tone(rate: int = 48_000, peak: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    t = np.arange(round(SECONDS * rate)) / rate
    return (peak * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def square(rate: int) -> np.ndarray:
    """At full scale from edge to edge: what overshoots most when it is resampled."""
    return np.sign(tone(rate, hertz=997)).astype(np.float32)


def channels(*waves: np.ndarray) -> np.ndarray:
    return np.stack(waves, 1)


# name: samples, rate, subtype, peak that is heard, what is noted of it
AUDIO_FORMATS = {
    "mono": (tone(), 48_000, "PCM_16", 0.5, ()),
    "stereo in phase": (channels(tone(), tone()), 48_000, "PCM_16", 0.5, ()),
    "stereo inverse": (channels(tone(), -tone()), 48_000, "PCM_16", 0.5, (CANCEL,)),
    "nearly inverse": (channels(0.9 * tone(), -tone()), 48_000, "FLOAT", 0.5, (CANCEL,)),
    "inverse on an offset": (channels(0.2 + tone(), 0.2 - tone()), 48_000, "FLOAT", 0.7, (CANCEL,)),
    "one of two": (channels(tone(), 0 * tone()), 48_000, "FLOAT", 0.25, ()),
    "5.1, the centre alone": (
        channels(*(tone() * (n == 2) for n in range(6))), 48_000, "FLOAT", 0.5 / 6, (),
    ),
    "one of sixteen": (
        channels(*(tone() * (n == 9) for n in range(16))), 48_000, "FLOAT", 0.5 / 16, (),
    ),
    "float beyond 1": (tone(peak=1.5), 48_000, "FLOAT", 1.0, (LOUD,)),
    "float of int16's range": (tone(peak=16_384), 48_000, "FLOAT", 1.0, (LOUD,)),
    "inverse, int16's range": (
        channels(tone(peak=9_000), -tone(peak=9_000)), 48_000, "FLOAT", 1.0, (CANCEL, LOUD),
    ),
    "beyond 1 in one": (channels(tone(peak=1.5), 0 * tone()), 48_000, "FLOAT", 0.75, ()),
    "quiet": (tone(peak=2e-3), 48_000, "FLOAT", 2e-3, ()),
    "silent": (0 * tone(), 48_000, "PCM_16", 0.0, (SILENT,)),
    "all but silent": (tone(peak=5e-5), 48_000, "FLOAT", 5e-5, (SILENT,)),
    "44.1 kHz at full scale": (tone(44_100, 1.0), 44_100, "PCM_16", 1.0, None),
    "44.1 kHz square": (square(44_100), 44_100, "PCM_16", 1.0, (LOUD,)),
}  # fmt: skip


def write(path, name: str):
    samples, rate, subtype, *_ = AUDIO_FORMATS[name]
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


@pytest.mark.parametrize("name", AUDIO_FORMATS)
def test_the_build_stores_what_generate_hears(name: str, tmp_path) -> None:
    *_, peak, noted = AUDIO_FORMATS[name]
    path = write(tmp_path / "a.wav", name)
    heard, info = load_audio(path, media.RATE, SECONDS)
    stored, told = media.encode_audio(str(path), 0.0, SECONDS, SECONDS)
    built, again = load_audio(stored, media.RATE, SECONDS)
    assert np.abs(built - heard).max() <= STEP
    assert np.abs(heard).max() == pytest.approx(peak, abs=2e-3 if peak > 0.01 else 1e-6)
    assert not again.kinds, "what is stored is heard as it is"
    assert again.silent == info.silent
    if noted is not None:
        assert told == noted
        assert info.kinds + ((SILENT,) if info.silent else ()) == noted


def test_nothing_is_clipped(tmp_path) -> None:
    for name in ("float of int16's range", "44.1 kHz square", "float beyond 1"):
        path = write(tmp_path / "a.wav", name)
        stored, _ = media.encode_audio(str(path), 0.0, SECONDS, SECONDS)
        samples, _ = soundfile.read(io.BytesIO(stored), dtype="int16")
        exact, _ = load_audio(path, media.RATE, SECONDS)
        assert np.abs(samples / 32768 - exact).max() <= STEP, name
        assert (np.abs(samples.astype(int)) >= 32767).mean() < 0.02, name


def test_the_gain_is_noted_in_decibels(tmp_path) -> None:
    _, info = load_audio(write(tmp_path / "a.wav", "float of int16's range"), 48_000, SECONDS)
    assert info.gain == pytest.approx(-20 * math.log10(16_384), abs=1e-3)
    assert info.notes == (f"{LOUD} (-84.3 dB)",)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_an_overshoot_of_resampling_is_small_at_any_rate(rate: int, tmp_path) -> None:
    """The gain is of the samples of the file, not of the rate that is asked for."""
    path = tmp_path / "a.wav"
    soundfile.write(path, 7 * square(44_100), 44_100, subtype="FLOAT")
    heard, info = load_audio(path, rate, SECONDS)
    assert np.abs(heard).max() == 1.0
    assert -20 * math.log10(7) - 3 < info.gain < -20 * math.log10(7)


def test_mean_and_peak_of_arrays() -> None:
    mono, cancelled = mix_to_mono(channels(tone(), 3 * tone()))
    assert not cancelled
    np.testing.assert_allclose(mono, 2 * tone(), atol=1e-6)
    mono, cancelled = mix_to_mono(channels(tone(), -1.05 * tone(), 0 * tone()))
    assert cancelled
    np.testing.assert_array_equal(mono, (-1.05 * tone()))
    same, gain = limit_peak(tone(peak=1.0))
    assert gain == 0.0 and same.max() == tone(peak=1.0).max()
    assert limit_peak(np.zeros(0, np.float32))[1] == 0.0


def test_silence_that_claims_a_sound_is_a_fault(tmp_path) -> None:
    for name in ("silent", "all but silent"):
        path = write(tmp_path / "a.wav", name)
        with pytest.raises(RowError, match="sound is silent, but something is said to be heard"):
            media.encode_audio(str(path), 0.0, SECONDS, SECONDS, claimed=True)
    quiet = write(tmp_path / "b.wav", "quiet")
    assert media.encode_audio(str(quiet), 0.0, SECONDS, SECONDS, claimed=True)[1] == ()
