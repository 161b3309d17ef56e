"""What containers hold: the frame that is shown at a time, and the audio from a time on.

Times are those of the file's common clock (`containers.Opened`), by the time stamps of frames and
samples: a variable frame rate, an audio clip that begins later than the image, and packets that are
missing do not shift anything. A frame that the file says to turn or to mirror is upright.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.containers import (
    CHANNELS,
    SECONDS,
    Damaged,
    Deadline,
    Opened,
    Source,
    as_file,
    check_samples,
    name_of,
    opened,
)

SUFFIXES = (
    ".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".3gp", ".mpg", ".ts", ".wmv", ".ogv"
)  # fmt: skip
AUDIO_SUFFIXES = (".m4a", ".aac", ".wma", ".mka")  # sounds that libsndfile does not read
LATE = 1.0  # seconds that a time may lie behind the last frame, or before the first, and show it
SEEK_BACK = 1.0  # seconds before the wanted time at which sound is sought
JITTER = 0.02  # seconds by which rounded time stamps may differ from where an audio clip goes on
LOST = 0.5  # seconds by which an audio clip may end before its stated end and not be cut off


def load_frame(
    source: Source, at: float, name: str | None = None, limit: float = SECONDS
) -> np.ndarray:
    """The frame shown at `at` seconds, uint8[H, W, 3], RGB, upright.

    `limit`: seconds that this may take. UserError when the file is no video, is damaged there, or
    ends before.
    """

    def read(file: Opened, sought: bool) -> np.ndarray | None:
        found, last, first = None, True, None
        for frame, time in file.frames():
            if time is None or (sought and found is None and not frame.key_frame):
                continue
            first = time if first is None else first
            if time > at + 1e-6:
                last = False
                if found is None and not sought and time <= at + LATE:
                    found = frame, time
                break
            found = frame, time
        if found is None and sought:
            return None
        if found is None and first is not None:
            raise UserError(
                f"{file.deadline.name}: the first frame is at {first:.2f} s, not {at:g}"
            )
        if found is None:
            raise UserError(f"{file.deadline.name}: no frame can be decoded; save it anew as MP4")
        if last and at - found[1] > LATE:
            raise UserError(
                f"{file.deadline.name}: the last frame is at {found[1]:.2f} s, not {at:g} s"
            )
        return _upright(found[0], file.deadline.name)

    return _sought(source, "video", at, name, limit, read)


def load_channels(
    source: Source, start: float, seconds: float, name: str | None = None, limit: float = SECONDS
) -> tuple[np.ndarray, int, int]:
    """`seconds` from `start` on, float32[n, channels], the rate, and the samples of all.

    Samples lie where their time stamps say; between them is silence. The samples of all count from
    the common clock's zero, as `start` does. `limit`: seconds that this may take. UserError when
    the file has no audio, is damaged or cut off there, ends before, or states too many samples.
    """

    def read(file: Opened, sought: bool) -> tuple[np.ndarray, int, int] | None:
        track, over = None, True
        for frame, time in file.frames():
            if track is None:
                if time is None:
                    continue
                if sought and time > start:  # landed too late, or begins later
                    return None
                track = _Track(frame, start, seconds, file.deadline.name)
            track.add(frame, time)
            if track.position >= len(track.wave):
                over = False
                break
        if track is None and sought:
            return None
        if track is None:
            raise UserError(f"{file.deadline.name}: no audio can be decoded; save it anew")
        return track.finish(file, over)

    return _sought(source, "audio", start - SEEK_BACK, name, limit, read)


def media_seconds(
    source: Source, kind: str, name: str | None = None, limit: float = SECONDS
) -> float:
    """When the first stream of a kind ("video" or "audio") ends; UserError when there is none.

    By the header, or where it does not say (a browser's recording) by the packets.
    """
    name = name or name_of(source)
    with as_file(source, name) as raw, opened(raw, kind, Deadline(limit, name)) as file:
        return _seconds(file)


def _seconds(file: Opened) -> float:
    stated = file.seconds()
    if stated is not None:
        return stated
    timed = [p for p in file.packets() if p.pts is not None]
    ends = (float((p.pts + (p.duration or 0)) * p.time_base) for p in timed)
    return max(ends, default=file.zero) - file.zero


def _sought(
    source: Source,
    kind: str,
    time: float,
    name: str | None,
    limit: float,
    read: Callable[[Opened, bool], Any],
) -> Any:
    """`read` after a seek to `time`, or from the beginning where that gave nothing."""
    name = name or name_of(source)
    deadline = Deadline(limit, name)
    with as_file(source, name) as raw:
        if time > 0:
            try:
                with opened(raw, kind, deadline) as file:
                    file.seek(time)
                    found = read(file, True)
                if found is not None:
                    return found
            except Damaged:  # the beginning of a GOP may be missing where the seek landed
                deadline.check()
        with opened(raw, kind, deadline) as file:
            return read(file, False)


def _upright(frame: Any, name: str) -> np.ndarray:
    """uint8[H, W, 3], RGB, under the display matrix, which may turn and mirror."""
    pixels = frame.to_ndarray(format="rgb24")
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return pixels
    # It takes the row (x, y, 1) of the image to that of the display, y downwards.
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(data), np.int32)[:5])
    straight, turned = min(abs(a), abs(d)), min(abs(b), abs(c))
    if max(straight, turned) == 0:  # no transformation at all
        return pixels
    if max(abs(b), abs(c)) * 50 < straight:
        x, y = a, d
    elif max(abs(a), abs(d)) * 50 < turned:
        pixels, x, y = pixels.swapaxes(0, 1), c, b  # [H, W, 3] -> [W, H, 3]
    else:
        raise UserError(
            f"{name}: its display matrix {[v / 2**16 for v in (a, b, c, d)]} is no turn by "
            "multiples of 90 degrees; save it anew"
        )
    return np.ascontiguousarray(pixels[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1])


class _Track:
    """Samples float32[n, channels] from a time on, in which frames are laid."""

    def __init__(self, frame: Any, start: float, seconds: float, name: str) -> None:
        self.rate, self.channels = frame.sample_rate, frame.layout.nb_channels
        self.start, self.name = start, name
        if not 1_000 <= self.rate <= 768_000 or not 1 <= self.channels <= CHANNELS:
            raise UserError(
                f"{name}: {self.channels} channels at {self.rate} Hz; expected at most {CHANNELS} "
                "channels at 1,000 to 768,000 Hz"
            )
        count = math.ceil(seconds * self.rate)
        check_samples(count, self.channels, self.rate, name)
        self.wave = np.zeros((count, self.channels), np.float32)
        self.position = self.end = None  # where the next frame goes on, and the last sample

    def add(self, frame: Any, time: float | None) -> None:
        """Lay a frame where its time stamp says; the later one stays where two overlap."""
        if (frame.sample_rate, frame.layout.nb_channels) != (self.rate, self.channels):
            raise UserError(
                f"{self.name}: the audio changes from {self.channels} channels at {self.rate} Hz "
                f"to {frame.layout.nb_channels} at {frame.sample_rate}; save it anew"
            )
        data = _samples(frame)
        at = self.position if time is None else round((time - self.start) * self.rate)
        if self.position is not None and abs(at - self.position) <= JITTER * self.rate:
            at = self.position
        begin, end = max(0, at), min(len(self.wave), at + len(data))
        if begin < end:
            self.wave[begin:end] = data[begin - at : end - at]
        self.position = at + len(data)
        self.end = max(self.position, self.position if self.end is None else self.end)

    def finish(self, file: Opened, over: bool) -> tuple[np.ndarray, int, int]:
        """What `load_channels` gives; `over`: the stream has no more frames."""
        ended = self.start + self.end / self.rate
        if not over:
            return self.wave, self.rate, round(max(_seconds(file), ended) * self.rate)
        stream = file.stream
        if (
            stream.duration
            and file.container.format.name != "aac"
            and (  # AAC only guesses
                file.seconds() - ended > LOST
            )
        ):
            raise UserError(
                f"{self.name}: the audio is cut off after {ended:.2f} s of {file.seconds():.2f} s; "
                "get the file again"
            )
        if self.end <= 0:
            raise UserError(
                f"{self.name}: the audio ends after {ended:.2f} s, before {self.start:g} s"
            )
        return self.wave[: self.end], self.rate, round(ended * self.rate)


def _samples(frame: Any) -> np.ndarray:
    """float32[n, channels], full scale 1, of any sample format."""
    data = frame.to_ndarray()  # [channels, n], or [1, n * channels]
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    if data.dtype.kind == "f":
        return data.T.astype(np.float32)
    half = 2.0 ** (8 * data.dtype.itemsize - 1)
    return ((data.T - (half if data.dtype.kind == "u" else 0)) / half).astype(np.float32)
