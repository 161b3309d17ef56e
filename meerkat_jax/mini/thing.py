"""One thing that a scene is composed of: its image and its sound, of one loudness."""

from __future__ import annotations

import dataclasses

import numpy as np

_FRAME, _FADE = 0.01, 0.005  # seconds

LONGEST_AUDIO = 4.0  # seconds


LOUDNESS = 0.1  # RMS of the sounding frames


PEAK = 0.9


_QUIET = 0.02  # of the loudest frame's RMS, -34 dB: below is silence


@dataclasses.dataclass(frozen=True)
class Media:
    """One thing: image uint8[height, width, 4] (RGBA), sound float32[samples] in -1..1."""

    name: str
    image: np.ndarray
    audio: np.ndarray
    instance: str = "a"


@dataclasses.dataclass(frozen=True)
class MediaSet:
    """All things by (name, instance); every class has instance "a"."""

    classes: tuple[str, ...]
    media: dict[tuple[str, str], Media]
    sample_rate: int
    notes: str

    def others(self) -> tuple[tuple[str, str], ...]:
        """Keys of the instances beside "a": what a model trained on "a" has never met."""
        return tuple(key for key in self.media if key[1] != "a")


def finish_audio(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Trim, cut, normalise and fade float[samples] that is not silent; gives float32[samples]."""
    audio = _trim(audio, sample_rate)
    audio = _trim(audio[: round(LONGEST_AUDIO * sample_rate)], sample_rate)
    level = _frame_rms(audio, sample_rate)
    loud = level[level >= _QUIET * level.max()]
    gain = min(LOUDNESS / np.sqrt(np.mean(loud**2)), PEAK / np.abs(audio).max())
    fade = np.linspace(0.0, 1.0, min(round(_FADE * sample_rate), len(audio) // 2))
    envelope = np.ones(len(audio))
    envelope[: len(fade)], envelope[len(audio) - len(fade) :] = fade, fade[::-1]
    return (audio * gain * envelope).astype(np.float32)


def _trim(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Cut the silence before the first and behind the last sounding frame."""
    level = _frame_rms(audio, sample_rate)
    sounding = np.flatnonzero(level >= _QUIET * level.max())
    frame = round(_FRAME * sample_rate)
    return audio[sounding[0] * frame : (sounding[-1] + 1) * frame]


def _frame_rms(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """RMS of frames of 10 ms without overlap; the last one is padded with zeros."""
    frame = round(_FRAME * sample_rate)
    padded = np.pad(np.asarray(audio, np.float64), (0, -len(audio) % frame))
    return np.sqrt(np.mean(padded.reshape(-1, frame) ** 2, axis=1))
