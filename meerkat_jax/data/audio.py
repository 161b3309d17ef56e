"""Sounds: decode any ordinary file to mono at one rate and length, and CLAP's log-mel spectrogram.

`load_audio` runs on the host, `LogMel` on the device, so only samples travel. The spectrogram is
the one that CLAP's audio tower was trained on (Wu et al. 2023, and the published settings).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
import soxr

from meerkat_jax.data.local_file import open_local
from meerkat_jax.errors import UserError

FLOOR = 1e-10  # of mel power; -100 dB
SILENCE = 1e-4  # peak around the mean: -80 dB of full scale, three steps of 16 bits
LOUDEST = 1e6  # full scale is 1; beyond this the numbers are not sound, and their power overflows
MARGIN = 0.1  # seconds read past the cut, so that the resampler's edge is not heard
RATES = (1_000, 768_000)
MAX_SAMPLES = 64 << 20  # of all channels, decoded at a time: 256 MiB; a small file may state more
UNKNOWN = 2**40  # libsndfile states an impossible number of frames when it does not know it

# How a file that was cut off shows. libsndfile's log compares a chunk with what is left of the
# file; programs that write to a pipe state STREAMED bytes or more, because they cannot know.
SHORT_CHUNK = re.compile(r"(?:data|SSND) *: (\d+) \(should be (\d+)\)")
STREAMED = 0x7FFFF000
OGG_PAGE = 65_307  # the largest, in bytes
OGG_LAST = 4  # flag of a stream's last page


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What doors should tell the user: of the source, and what was done to it."""

    seconds: float  # of the source from the start asked for, before cutting or padding
    sample_rate: int  # of the source, Hz
    channels: int
    truncated: bool  # longer than asked for: only the beginning is heard
    silent: bool  # what is heard has no signal


def load_audio(
    source: str | os.PathLike | bytes,
    sample_rate: int,
    seconds: float,
    pad: str = "zero",
    name: str | None = None,
    start: float = 0.0,
) -> tuple[np.ndarray, AudioInfo]:
    """Decode a sound (path or encoded bytes) to float32[seconds * sample_rate], mono, about -1..1.

    Channels are averaged, other rates resampled (soxr, high quality). What is before `start`, in
    seconds, is left out, and a longer sound is cut to its beginning. A shorter one is padded:
    "zero" by silence; "repeat" as CLAP was trained, by whole repetitions and then silence, which
    makes the sound occur at times when it did not, hence not the default. `name` is what errors
    call it (default: the path). Raises UserError when the file is missing, empty, not a sound, cut
    off within these seconds (where its format can tell), or holds numbers that are not finite.
    """
    if pad not in ("zero", "repeat"):
        raise UserError(f"pad is {pad!r}; use 'zero' or 'repeat'")
    if name is None:
        name = "sound" if isinstance(source, bytes) else os.fspath(source)
    with _opened(source, name) as file:
        wave, rate, frames = _decode(file, start, seconds + MARGIN, name)
    mono = wave[:, 0] if wave.shape[1] == 1 else wave.mean(axis=1)
    if not _peak(mono) <= LOUDEST:  # not a number is neither
        raise UserError(
            f"{name}: samples are not finite or beyond {LOUDEST:g}; expected about -1 to 1: "
            "export the sound anew"
        )
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
    samples = round(seconds * sample_rate)
    mono = _fit(mono, samples, pad)
    info = AudioInfo(
        seconds=max(0.0, frames / rate - start),
        sample_rate=rate,
        channels=wave.shape[1],
        truncated=round((frames / rate - start) * sample_rate) > samples,
        silent=bool(_peak(mono, mono.mean()) < SILENCE),
    )
    return mono, info


def count_seconds(source: str | os.PathLike | bytes) -> float | None:
    """The length by the header, nothing decoded; None for what `load_audio` refuses."""
    try:
        with _opened(source, "") as file:
            return soundfile.info(file).duration
    except (UserError, soundfile.SoundFileError, TypeError):  # reading it tells what is wrong
        return None


def _fit(mono: np.ndarray, samples: int, pad: str) -> np.ndarray:
    mono = mono[:samples]
    if pad == "repeat" and 0 < len(mono) < samples:
        mono = np.tile(mono, samples // len(mono))
    if len(mono) < samples:
        mono = np.pad(mono, (0, samples - len(mono)))
    return mono.astype(np.float32, copy=False)


def _peak(mono: np.ndarray, mean: float = 0.0) -> float:
    """The largest distance from `mean`, without a copy; NaN if a sample is."""
    return max(mono.max() - mean, mean - mono.min())


def _opened(source: str | os.PathLike | bytes, name: str) -> contextlib.AbstractContextManager:
    file = io.BytesIO(source) if isinstance(source, bytes) else open_local(source, name)
    if not file.read(1):
        file.close()
        raise UserError(f"{name}: the sound is empty (0 bytes); get the file again")
    file.seek(0)
    return file


def _decode(
    file: io.IOBase, start: float, seconds: float, name: str
) -> tuple[np.ndarray, int, int]:
    """`seconds` from `start`, float32[n, channels], the rate, and the frames of the whole sound."""
    try:
        with soundfile.SoundFile(file) as sound:
            rate, frames, report = sound.samplerate, sound.frames, sound.extra_info
            if not RATES[0] <= rate <= RATES[1] or frames >= UNKNOWN:
                raise UserError(
                    f"{name}: the header says {rate} Hz and {frames} frames, which no sound has; "
                    "convert it to WAV at 48000 Hz"
                )
            first = round(start * rate)
            if first and first >= frames:
                raise UserError(
                    f"{name}: the sound ends after {frames / rate:.2f} s, before {start:g} s"
                )
            if first:
                sound.seek(first)
            wanted, left = math.ceil(seconds * rate), frames - first
            if (samples := min(left, wanted) * sound.channels) > MAX_SAMPLES:
                raise UserError(
                    f"{name}: {samples} samples in {sound.channels} channels at {rate} Hz; "
                    f"expected at most {MAX_SAMPLES}: mix the channels, or resample to 48000 Hz"
                )
            wave = sound.read(min(left, wanted), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:
        reason = getattr(error, "error_string", error)
        raise UserError(
            f"{name}: not a sound that can be decoded ({reason}); expected WAV, FLAC, OGG or MP3: "
            "convert it, or get the file again"
        ) from None
    if len(wave) == 0:
        raise UserError(f"{name}: the sound has no samples; get the file again")
    if len(wave) < min(left, wanted) or (left < wanted and _cut_off(file, report)):
        raise UserError(
            f"{name}: the sound is cut off after {start + len(wave) / rate:.2f} s; "
            "get the file again"
        )
    return wave, rate, frames


def _cut_off(file: io.IOBase, report: str) -> bool:
    """Whether the file ends before the sound does, which libsndfile passes over in silence."""
    chunk = SHORT_CHUNK.search(report)  # WAV and its kin
    if chunk:
        stated, found = int(chunk[1]), int(chunk[2])
        return found < stated < STREAMED
    file.seek(0)
    if file.read(4) != b"OggS":
        return False
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - OGG_PAGE))
    last_page = file.read().rpartition(b"OggS")[2]
    return len(last_page) < 2 or not last_page[1] & OGG_LAST


def _to_mel(hertz: float, variant: str) -> float:
    if variant == "htk":
        return 2595 * math.log10(1 + hertz / 700)
    linear = 3 * hertz / 200  # Slaney: linear up to 1 kHz (mel 15), logarithmic above
    return linear if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _to_hertz(mel: np.ndarray, variant: str) -> np.ndarray:
    if variant == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return np.where(mel < 15, 200 * mel / 3, 1000 * 6.4 ** ((mel - 15) / 27))


def _matmul(power: jax.Array, filters: np.ndarray) -> jax.Array:
    # A TPU would otherwise multiply in bfloat16, an error of about 0.01 dB.
    return jnp.matmul(power, filters.astype(np.float32), precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class LogMel:
    """CLAP's log-mel spectrogram; the defaults are the published ones, at 48 kHz.

    `variant`: "htk" (triangles of height 1; the fused checkpoint) or "slaney" (triangles of equal
    area; the unfused one). Periodic Hann window, centred frames with reflected edges, power,
    10 log10(max(mel, 1e-10)) dB, so silence is -100.
    """

    sample_rate: int = 48_000
    n_fft: int = 1024
    hop: int = 480
    mels: int = 64
    fmin: float = 50.0
    fmax: float = 14_000.0
    variant: str = "htk"

    def __post_init__(self) -> None:
        """Refuse settings that have no spectrogram."""
        if self.variant not in ("htk", "slaney"):
            raise UserError(f"mel variant is {self.variant!r}; use 'htk' or 'slaney'")
        if not 0 <= self.fmin < self.fmax <= self.sample_rate / 2:
            raise UserError(
                f"mel fmin {self.fmin} and fmax {self.fmax} Hz do not fit sample_rate "
                f"{self.sample_rate}; expected 0 <= fmin < fmax <= {self.sample_rate / 2}"
            )

    def frames(self, samples: int) -> int:
        """F, the number of frames of so many samples."""
        return 1 + samples // self.hop

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, audio: jax.Array) -> jax.Array:
        """float32[B, samples] -> float32[B, F, mels] in dB, on the device.

        A float32 Fourier transform leaves noise of about 1e-14 of a frame's strongest bin's power,
        so bins more than 80 dB below may differ from `exact`; all others do by under 0.01 dB.
        """
        half = self.n_fft // 2
        x = jnp.pad(audio, ((0, 0), (half, half)), mode="reflect")
        mel = jax.lax.platform_dependent(x, tpu=self.mel_by_matmul, default=self.mel_by_fft)
        return 10 * jnp.log10(jnp.maximum(mel, FLOOR))

    def mel_by_fft(self, x: jax.Array) -> jax.Array:
        """Mel power float32[B, F, mels] of samples that are already padded, by FFT."""
        starts = np.arange(self.frames(x.shape[1] - self.n_fft)) * self.hop
        frames = x[:, starts[:, None] + np.arange(self.n_fft)]
        spectrum = jnp.fft.rfft(frames * self._window().astype(np.float32))
        return _matmul(spectrum.real**2 + spectrum.imag**2, self.filters())

    def mel_by_matmul(self, x: jax.Array) -> jax.Array:
        """The same by matrix products only, as a convolution over blocks of `hop` samples.

        By the TPU compiler's estimate 0.3 of the FFT's cycles there, and no frames in memory;
        on CPU it takes twice the FFT's time.
        """
        frames = self.frames(x.shape[1] - self.n_fft)
        width = -(-self.n_fft // self.hop)  # of a frame, in blocks
        extra = (frames + width - 1) * self.hop - x.shape[1]  # below zero: samples left over
        blocks = jax.lax.pad(x, np.float32(0), ((0, 0, 0), (0, extra, 0)))
        filters = self.filters()
        heard = filters.any(axis=1)
        angles = np.outer(np.arange(self.n_fft), np.flatnonzero(heard)) * (2 * np.pi / self.n_fft)
        waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * self._window()[:, None]
        waves = np.pad(waves, ((0, width * self.hop - self.n_fft), (0, 0)))
        parts = jax.lax.conv_general_dilated(
            blocks.reshape(x.shape[0], -1, self.hop),
            waves.reshape(width, self.hop, -1).astype(np.float32),
            window_strides=(1,),
            padding="VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
            precision=jax.lax.Precision.HIGHEST,
        )
        real, imaginary = jnp.split(parts, 2, axis=-1)
        return _matmul(real**2 + imaginary**2, filters[heard])

    def exact(self, audio: np.ndarray) -> np.ndarray:
        """The same in float64 on the host: [B, samples] -> float64[B, F, mels] in dB."""
        half = self.n_fft // 2
        x = np.pad(np.asarray(audio, np.float64), ((0, 0), (half, half)), mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(x, self.n_fft, axis=1)[:, :: self.hop]
        power = np.abs(np.fft.rfft(frames * self._window())) ** 2
        return 10 * np.log10(np.maximum(power @ self.filters(), FLOOR))

    def filters(self) -> np.ndarray:
        """The triangles, float64[n_fft // 2 + 1, mels]."""
        ends = (_to_mel(f, self.variant) for f in (self.fmin, self.fmax))
        corners = _to_hertz(np.linspace(*ends, self.mels + 2), self.variant)
        low, peak, high = corners[:-2], corners[1:-1], corners[2:]
        bins = np.linspace(0, self.sample_rate / 2, self.n_fft // 2 + 1)[:, None]
        triangles = np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak))
        height = 2 / (high - low) if self.variant == "slaney" else 1.0
        return np.maximum(triangles, 0) * height

    def _window(self) -> np.ndarray:
        return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.n_fft) / self.n_fft)
