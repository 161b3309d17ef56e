"""Sounds: decode any ordinary file to mono at one rate and length, and CLAP's log-mel spectrogram.

`load_audio` runs on the host, `LogMel` on the device, so only samples travel. The spectrogram is
the one that CLAP's audio tower was trained on (Wu et al. 2023, and the published settings).

One rule for loudness on every path, from files, videos and arrays (docs/data.md, Loudness): the
mean over channels (`mix_to_mono`), divided by its peak where that is above full scale
(`limit_peak`); never clipped, never made louder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import os
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
import soxr

from meerkat_jax.core.errors import UserError
from meerkat_jax.data import containers, isolated, mp3, video

FLOOR = 1e-10  # of mel power; -100 dB
SILENCE = 1e-4  # peak around the mean: -80 dB of full scale, three steps of 16 bits
LOUDEST = 1e6  # full scale is 1; beyond this the numbers are not sound, and their power overflows
CANCELLED = 0.01  # of power: 20 dB that a mean over channels lies below what it should have
MARGIN = 0.1  # seconds read past the cut, so that the resampler's edge is not heard
# Seconds read before `start`: a frame of MP3 needs bits of up to nine before it.
WARM_UP = 0.5
RATES = (1_000, 768_000)
UNKNOWN = 2**40  # frames: libsndfile states an impossible number when it does not know it

# How a file that was cut off shows. libsndfile's log compares a chunk with what is left of the
# file; programs that write to a pipe state STREAMED bytes or more, because they cannot know.
SHORT_CHUNK = re.compile(r"(?:data|SSND) *: (\d+) \(should be (\d+)\)")
STREAMED = 0x7FFFF000
# The other way round: the file goes on, but not with what may follow the audio in its format.
LONG_FILE = re.compile(
    r"Length : (\d+)\n.*(?:data|SSND) : (\d+)\n.*Unknown chunk marker", re.DOTALL
)
OGG_PAGE = 65_307  # the largest, in bytes
OGG_FIRST, OGG_LAST = 2, 4  # flags of a stream's first and last page


@dataclasses.dataclass(frozen=True)
class AudioInfo:
    """What commands should tell the user: of the source, and what was done to it."""

    seconds: float  # of the source from the start asked for, before cutting or padding
    sample_rate: int  # of the source, Hz
    channels: int
    truncated: bool  # longer than asked for: only the beginning is heard
    silent: bool  # what is heard has no signal
    cancelled: bool = (
        False  # the mean over channels had next to nothing: the loudest alone is heard
    )
    gain: float = 0.0  # dB, below 0 where the peak was above full scale

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the audio's channels and loudness, for people."""
        quieter = f"{ABOVE_FULL_SCALE} ({self.gain:.1f} dB)"
        return (*((CHANNELS_CANCEL,) if self.cancelled else ()), *((quieter,) if self.gain else ()))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The same in words that are alike for all sounds, to be counted."""
        return (
            *((CHANNELS_CANCEL,) if self.cancelled else ()),
            *((ABOVE_FULL_SCALE,) if self.gain else ()),
        )


CHANNELS_CANCEL = "the audio's channels cancel each other: the loudest alone is heard"
ABOVE_FULL_SCALE = "the audio is above full scale: divided by its peak"


def load_audio(
    source: str | os.PathLike | bytes,
    sample_rate: int,
    seconds: float,
    pad: str = "zero",
    name: str | None = None,
    start: float = 0.0,
    isolate: bool = True,
) -> tuple[np.ndarray, AudioInfo]:
    """Decode audio (path or encoded bytes) to float32[seconds * sample_rate], mono, about -1..1.

    WAV, FLAC, OGG, MP3 and their kin, or the sound of a container of `containers.FORMATS` (M4A,
    WebM, a video), by content; that in a process of its own unless `isolate` is off.

    Channels and loudness as the module's docstring tells, other rates resampled (soxr, high
    quality). What is before `start`, in seconds, is left out, and a longer sound is cut to its
    beginning. A shorter one is padded: "zero" by silence; "repeat" as CLAP was trained, by whole
    repetitions and then silence, which makes the audio occur at times when it did not, hence not
    the default. `name` is what errors call it (default: the path). Raises UserError when the file
    is missing, empty, not audio, cut off within these seconds (where its format can tell), longer
    than it says, or holds numbers that are not finite.
    """
    if pad not in ("zero", "repeat"):
        raise UserError(f"pad is {pad!r}; use 'zero' or 'repeat'")
    if name is None:
        name = "sound" if isinstance(source, bytes) else os.fspath(source)
    with _opened(source, name) as file:
        decode = _decode
        if containers.detect(file):
            decode = (isolated if isolate else video).load_channels
        wave, rate, frames = decode(file, start, seconds + MARGIN, name)
    if not all(_peak(channel) <= LOUDEST for channel in wave.T):  # not a number is neither
        raise UserError(
            f"{name}: samples are not finite or beyond {LOUDEST:g}; expected about -1 to 1: "
            "export the audio anew"
        )
    mono, cancelled = mix_to_mono(wave)
    # At the file's own rate, so that the loudness does not depend on the rate that is asked for.
    mono, gain = limit_peak(mono)
    if rate != sample_rate:
        mono, more = limit_peak(soxr.resample(mono, rate, sample_rate))  # which overshoots
        gain += more
    samples = round(seconds * sample_rate)
    mono = _fit(mono, samples, pad)
    info = AudioInfo(
        seconds=max(0.0, frames / rate - start),
        sample_rate=rate,
        channels=wave.shape[1],
        truncated=round((frames / rate - start) * sample_rate) > samples,
        silent=is_silent(mono),
        cancelled=cancelled,
        gain=gain,
    )
    return mono, info


def mix_to_mono(wave: np.ndarray) -> tuple[np.ndarray, bool]:
    """float32[n, channels] -> the mean over channels float32[n], and whether they cancel.

    They do when the mean has less than a hundredth (20 dB) of the power that channels with nothing
    in common would leave of it; then the loudest of them alone is given.
    """
    if wave.shape[1] == 1:
        return wave[:, 0], False
    mono = wave.mean(axis=1)
    powers = wave.var(axis=0)  # about the mean: an offset is not audio
    cancelled = mono.var() < CANCELLED * powers.sum() / wave.shape[1] ** 2
    return (wave[:, powers.argmax()], True) if cancelled else (mono, False)


def limit_peak(mono: np.ndarray) -> tuple[np.ndarray, float]:
    """Audio float32[n] divided by its peak if that is above 1, and the gain in dB (0 if not)."""
    peak = _peak(mono) if len(mono) else 0.0
    if peak <= 1:
        return mono, 0.0
    return mono / peak, -20 * math.log10(peak)


def is_silent(mono: np.ndarray) -> bool:
    """Whether audio float32[n] has no signal: less than -80 dB of full scale around its mean."""
    return not len(mono) or bool(_peak(mono, mono.mean()) < SILENCE)


def count_seconds(source: str | os.PathLike | bytes) -> float | None:
    """The length by the header (of MP3, the frames' headers), nothing decoded.

    None for what `load_audio` refuses.
    """
    try:
        with _opened(source, "") as file:
            if containers.detect(file):
                return isolated.media_seconds(file, "audio")
            with _audio(file, "") as (audio, _):
                return audio.frames / audio.samplerate if audio.frames < UNKNOWN else None
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
    file = containers.as_file(source, name)
    if not file.read(1):
        file.close()
        raise UserError(f"{name}: the audio is empty (0 bytes); get the file again")
    file.seek(0)
    return file


@contextlib.contextmanager
def _audio(file: io.IOBase, name: str) -> Iterator[tuple[soundfile.SoundFile, bool]]:
    """The audio in a file, and whether an MP3 is known to be cut off.

    Of an MP3 that does not tell its length rightly the frames are counted (`mp3.py`).
    """
    with soundfile.SoundFile(file) as audio:
        if audio.subtype != "MPEG_LAYER_III":
            yield audio, False
            return
    file.seek(0)
    data = file.read()
    anew = mp3.counted(data, name)
    with soundfile.SoundFile(io.BytesIO(anew.data if anew else data)) as audio:
        yield audio, bool(anew and anew.cut_off)


def _decode(
    file: io.IOBase, start: float, seconds: float, name: str
) -> tuple[np.ndarray, int, int]:
    """`seconds` from `start`, float32[n, channels], the rate, and the frames of the whole sound."""
    try:
        with _audio(file, name) as (audio, cut_off):
            rate, frames, report = audio.samplerate, audio.frames, audio.extra_info
            _check_header(file, rate, frames, report, name)
            first = round(start * rate)
            if first and first >= frames:
                raise UserError(
                    f"{name}: the audio ends after {frames / rate:.2f} s, before {start:g} s"
                )
            before = min(first, round(WARM_UP * rate))
            if first > before:
                audio.seek(first - before)
            wanted, left = math.ceil(seconds * rate), frames - first
            count = before + min(left, wanted)
            containers.check_samples(count, audio.channels, rate, name)
            wave = audio.read(count, dtype="float32", always_2d=True)[before:]
    except (soundfile.SoundFileError, TypeError) as error:
        reason = getattr(error, "error_string", error)
        raise UserError(
            f"{name}: not audio that can be decoded ({reason}); expected WAV, FLAC, OGG, MP3, "
            "M4A or WebM: convert it, or get the file again"
        ) from None
    if len(wave) == 0:
        raise UserError(f"{name}: the audio has no samples; get the file again")
    cut_off = cut_off or _cut_off(file, report)
    if len(wave) < min(left, wanted) or (left < wanted and cut_off):
        raise UserError(
            f"{name}: the audio is cut off after {start + len(wave) / rate:.2f} s; "
            "get the file again"
        )
    return wave, rate, frames


def _check_header(file: io.IOBase, rate: int, frames: int, report: str, name: str) -> None:
    """UserError for a header that is wrong about the audio, or would lose a part of it unsaid."""
    if not RATES[0] <= rate <= RATES[1]:
        raise UserError(
            f"{name}: the header says {rate} Hz, which no audio has; convert it to WAV at 48000 Hz"
        )
    if frames >= UNKNOWN:  # libsndfile would end in an error, not at the end of the audio
        raise UserError(
            f"{name}: the header does not say how long the audio is, as of FLAC written to a pipe; "
            "convert it to WAV, or to FLAC in a file"
        )
    longer = LONG_FILE.search(report)
    if longer and int(longer[2]) < int(longer[1]) / 2:
        raise UserError(
            f"{name}: the header says {longer[2]} bytes of sound, the file has {longer[1]}: "
            "probably a recording that was not ended; convert it with a program that mends it"
        )
    if _chained(file):
        raise UserError(
            f"{name}: several OGG streams one behind the other, of which only the first would be "
            "heard; convert it to WAV"
        )


def _cut_off(file: io.IOBase, report: str) -> bool:
    """Whether the file ends before the audio does, which libsndfile passes over in silence."""
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


def _chained(file: io.IOBase) -> bool:
    """Whether another OGG stream begins when one has begun already."""
    at, begun, position = 0, False, file.tell()
    while True:
        file.seek(at)
        # capture pattern, version, flags, five numbers, and how many sizes follow
        page = file.read(27)
        if len(page) < 27 or page[:4] != b"OggS":
            break
        first = bool(page[5] & OGG_FIRST)
        if first and begun:
            break
        begun = begun or not first
        at += 27 + page[26] + sum(file.read(page[26]))
    file.seek(position)
    return len(page) == 27 and page[:4] == b"OggS"


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
