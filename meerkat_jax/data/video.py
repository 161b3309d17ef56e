"""Video files: the frame that is shown at a time, and the sound from a time on.

Times are the stream's own time stamps, counted from its first frame, so a variable frame rate does
not matter; a frame that the file says to turn is turned. PyAV (FFmpeg's libraries) reads; it is
needed for nothing else and loaded when the first video is met.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from meerkat_jax.errors import UserError

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".3gp", ".mpg", ".ts")
SOUND_SUFFIXES = (".m4a", ".aac", ".wma", ".mka")  # sounds that libsndfile does not read
LATE = 1.0  # seconds that a time may lie behind the last frame and still show it
SEEK_BACK = 1.0  # seconds before the wanted time at which sound is sought


def load_frame(path: str | os.PathLike, at: float) -> Image.Image:
    """The frame shown at `at` seconds, RGB, upright.

    UserError when the file is no video, is damaged there, or ends before.
    """
    with _opened(path, "video") as (container, stream):
        base = float(stream.time_base)
        first = (stream.start_time or 0) * base
        found = None
        for again in (False, True):  # what cannot be sought is read from its beginning
            if not again:
                container.seek(max(0, int((first + at) / base)), stream=stream, backward=True)
            else:
                container.seek(0)
            found, last = _frame_before(container, stream, first + at)
            if found is not None:
                break
        if found is None:
            raise UserError(f"{path}: no frame at {at:g} s; the video is damaged, or ends before")
        if last and first + at - found.time > LATE:
            raise UserError(
                f"{path}: the last frame is at {found.time - first:.2f} s, not {at:g} s"
            )
        picture = found.to_image()
        turn = round(getattr(found, "rotation", 0) or 0) % 360
        return picture.rotate(turn, expand=True) if turn else picture


def video_seconds(path: str | os.PathLike) -> float:
    """How long the video is; UserError when the file is no video or does not say."""
    with _opened(path, "video") as (container, stream):
        if container.duration:
            return container.duration / 1e6  # it counts in microseconds
        if stream.duration:
            return float(stream.duration * stream.time_base)
    raise UserError(f"{path}: the video does not say how long it is; save it anew as MP4")


def _frame_before(container: Any, stream: Any, time: float) -> tuple[Any, bool]:
    """The last frame that begins at or before `time`, and whether no other follows."""
    found = None
    for frame in container.decode(stream):
        if frame.time is None:
            continue
        if frame.time > time + 1e-6:
            early = found is None and frame.time <= time + LATE  # the first one may be late
            return (frame if early else found), False
        found = frame
    return found, True


def load_sound(path: str | os.PathLike, start: float, seconds: float, rate: int) -> np.ndarray:
    """Mono float32[n] at `rate` Hz from `start` on, at most `seconds` of it.

    UserError when the file has no sound, is damaged there, or ends before.
    """
    import av

    with _opened(path, "audio") as (container, stream):
        base = float(stream.time_base)
        first = (stream.start_time or 0) * base
        container.seek(max(0, int((first + start - SEEK_BACK) / base)), stream=stream)
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        begin, parts, count = None, [], 0
        wanted = round(seconds * rate)
        for frame in container.decode(stream):
            if begin is None:
                begin = (frame.time or 0.0) - first
                skip = round((start - begin) * rate)
            for piece in resampler.resample(frame):
                parts.append(piece.to_ndarray()[0])
                count += parts[-1].size
            if count - skip >= wanted:
                break
        else:
            for piece in resampler.resample(None) if begin is not None else ():
                parts.append(piece.to_ndarray()[0])
    if begin is None:
        raise UserError(f"{path}: no sound at {start:g} s; the file is damaged, or ends before")
    wave = np.concatenate(parts)
    if skip < 0:  # the sound begins later than the picture
        wave, skip = np.concatenate([np.zeros(-skip, np.float32), wave]), 0
    wave = wave[skip : skip + wanted]
    if not len(wave):
        raise UserError(f"{path}: the sound ends before {start:g} s")
    return np.ascontiguousarray(wave, np.float32)


class _opened:
    """The container and its first stream of a kind; what FFmpeg says of damage as a UserError."""

    def __init__(self, path: str | os.PathLike, kind: str) -> None:
        self.path, self.kind = path, kind

    def __enter__(self) -> tuple[Any, Any]:
        try:
            import av
        except ImportError:
            raise UserError(
                f"{self.path}: reading videos needs PyAV; pip install 'meerkat_jax[data]'"
            ) from None
        try:
            self.container = av.open(os.fspath(self.path))
        except (OSError, ValueError) as error:  # FFmpeg's errors are one or the other
            raise UserError(f"{self.path}: cannot be opened ({_said(error)})") from None
        streams = getattr(self.container.streams, self.kind)
        if not streams:
            self.container.close()
            what = "sound" if self.kind == "audio" else "picture"
            raise UserError(f"{self.path}: the file has no {what}")
        return self.container, streams[0]

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.container.close()
        if isinstance(error, OSError) or (kind and kind.__module__.startswith("av")):
            raise UserError(f"{self.path}: damaged ({_said(error)}); get it again") from None


def _said(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
