"""Containers of video and audio: which are opened, how, and what FFmpeg may do with one.

FFmpeg would choose its demuxer by itself, and some of them (playlists, scripts, image sequences)
open whatever other files or addresses the given one names. Here the first bytes decide against
`FORMATS`, and FFmpeg gets that demuxer, an open file instead of a name, and no way to open another.
Whoever decodes a stranger's file does so in `isolated`, since a few kilobytes can state an index
that fills the memory. PyAV (FFmpeg's libraries) is loaded when the first container is met.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.local_file import open_local

Source = str | os.PathLike | bytes | BinaryIO

FORMATS = {  # FFmpeg's demuxer: what users call it
    "mov": "MP4, MOV, M4A or 3GP",
    "matroska": "MKV or WebM",
    "avi": "AVI",
    "flv": "FLV",
    "mpegts": "MPEG-TS",
    "mpeg": "MPEG-PS",
    "asf": "WMV or WMA",
    "ogg": "OGV",
    "aac": "AAC",
}
HEAD = 4096  # bytes that decide
STILLS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1")  # brands of MP4 that are images
ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # that a MOV begins with
OGG_VIDEO = (
    b"\x80theora",
    b"OVP80",
    b"fishead\0",
    b"BBCD\0",
)  # libsndfile reads an Ogg without them

SECONDS = 120.0  # that a file may take, by the clock on the wall
PIXELS = 8192 * 4320  # of a frame
CHANNELS = 32
MAX_SAMPLES = 64 << 20  # of all channels, decoded at a time: 256 MiB; a small file may state more
WRAP = 2**33 / 90_000  # seconds after which MPEG-TS and PS begin to count anew
OPTIONS = {
    "protocol_whitelist": "none",
    "enable_drefs": "0",  # tracks of a MOV that lie in another file
    "max_streams": "64",
    "max_pixels": str(PIXELS),
}


def detect(file: BinaryIO) -> str | None:
    """The demuxer of FORMATS for what the file begins with, or None; the file is at 0 again."""
    file.seek(0)
    head = file.read(HEAD)
    if head[:3] == b"ID3" and len(head) >= 10:  # may lie before AAC
        size = sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(head[6:10]))
        file.seek(10 + size)
        head = file.read(HEAD)
        found = "aac" if _is_adts(head) else None
    else:
        found = _detect(head)
    file.seek(0)
    return found


def detect_path(path: str | os.PathLike) -> str | None:
    """`detect` of a path; UserError when it cannot be opened."""
    with open_local(path) as file:
        return detect(file)


def _detect(head: bytes) -> str | None:
    if head[4:8] in ATOMS:
        return None if head[4:8] == b"ftyp" and head[8:12] in STILLS else "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    if head[:4] == b"FLV\x01":
        return "flv"
    if head[:4] == b"\0\0\1\xba":
        return "mpeg"
    if head[:8] == b"\x30\x26\xb2\x75\x8e\x66\xcf\x11":
        return "asf"
    if head[:4] == b"OggS" and any(codec in head for codec in OGG_VIDEO):
        return "ogg"
    packets = ((0, 188), (4, 192), (0, 204))  # offset and size: plain, M2TS, with parity
    if any(head[first::size][:5] == b"G" * 5 for first, size in packets):
        return "mpegts"
    return "aac" if _is_adts(head) else None


def _is_adts(head: bytes) -> bool:
    """Two AAC frames in a row: the layer's two bits are 0, where MP3 has others."""

    def frame(at: int) -> bool:
        return (
            head[at : at + 1] == b"\xff" and head[at + 1 : at + 2] and head[at + 1] & 0xF6 == 0xF0
        )

    if len(head) < 7 or not frame(0):
        return False
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return size >= 7 and (size + 2 > len(head) or bool(frame(size)))


class Damaged(UserError):
    """FFmpeg cannot read on; from another place it might."""


class Deadline:
    """Seconds on the wall within which a file has to be done with."""

    def __init__(self, seconds: float, name: str) -> None:
        self.name, self.seconds = name, seconds
        self.end = time.monotonic() + seconds

    def check(self) -> None:
        """Raises UserError when they are over."""
        if time.monotonic() > self.end:
            raise UserError(late(self.name, self.seconds))


def late(name: str, seconds: float) -> str:
    """What is said of a file that takes too long."""
    return f"{name}: not decoded within {seconds:g} s; cut it, or save it anew as MP4"


class _Timed:
    """A file for FFmpeg, which ends whatever reads it when the time is over."""

    def __init__(self, file: BinaryIO, deadline: Deadline) -> None:
        self._file, self._deadline = file, deadline
        self.name, self.seek, self.tell = "", file.seek, file.tell

    def read(self, size: int) -> bytes:
        self._deadline.check()
        return self._file.read(size)


class Opened:
    """One stream of an open container, and the common clock.

    Times count from the earliest start among the images and audio clips of the file, as in players.
    """

    def __init__(self, container: Any, kind: str, deadline: Deadline) -> None:
        """`kind` is "video" or "audio"."""
        self.container, self.deadline = container, deadline
        streams = [s for s in (*container.streams.video, *container.streams.audio) if not _cover(s)]
        wanted = [stream for stream in streams if stream.type == kind]
        if not wanted:
            what = "audio" if kind == "audio" else "image"
            raise UserError(f"{deadline.name}: the file has no {what}")
        self.stream = wanted[0]
        if self.stream.codec_context is None:
            raise UserError(f"{deadline.name}: its {kind} codec is not known; save it anew as MP4")
        starts = [s.start_time * s.time_base for s in streams if s.start_time is not None]
        self.zero = float(min(starts, default=0))
        context = self.stream.codec_context
        if kind == "video" and context.width * context.height > PIXELS:
            raise UserError(
                f"{deadline.name}: frames of {context.width} x {context.height}; expected at most "
                f"{PIXELS} pixels"
            )
        context.options = {"max_pixels": OPTIONS["max_pixels"]}
        context.thread_count = 1  # others decode beside this

    def seconds(self) -> float | None:
        """The end of the stream, or of the file, on the common clock; None if it is not stated."""
        stream = self.stream
        if stream.duration:
            return float((stream.start_time or 0) + stream.duration) * self._base() - self.zero
        if self.container.duration:
            start = self.container.start_time or 0
            return (start + self.container.duration) / 1e6 - self.zero
        return None

    def seek(self, seconds: float) -> None:
        """Go to the last key frame before a time on the common clock."""
        offset = int((seconds + self.zero) / self._base() // 1)
        self.container.seek(offset, stream=self.stream, backward=True)

    def packets(self) -> Iterator[Any]:
        """Of the stream, within the deadline."""
        for packet in self.container.demux(self.stream):
            self.deadline.check()
            yield packet

    def frames(self) -> Iterator[tuple[Any, float | None]]:
        """Decoded frames, within the deadline, and their times on the common clock."""
        wraps = self.container.format.name.startswith("mpeg")
        for packet in self.packets():
            for frame in packet.decode():
                time = frame.time
                if time is not None:
                    time -= self.zero + (WRAP if wraps and time > WRAP / 2 else 0)
                yield frame, time

    def _base(self) -> float:
        return float(self.stream.time_base)


def _cover(stream: Any) -> bool:
    """Whether it is the image on the cover of an audio clip."""
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)


@contextlib.contextmanager
def opened(file: BinaryIO, kind: str, deadline: Deadline) -> Iterator[Opened]:
    """The first stream of a kind, "video" or "audio", in the file; its errors are UserErrors.

    Raises UserError when the container is none of FORMATS, has no such stream, or is damaged.
    """
    name = deadline.name
    demuxer = detect(file)
    if demuxer is None:
        begin = file.read(8)
        raise UserError(
            f"{name}: begins with {begin!r}, which no container that is read does; expected "
            f"{', '.join(FORMATS.values())}: convert it, or get the file again"
        )
    try:
        import av
    except ImportError:
        raise UserError(
            f"{name}: reading videos needs PyAV; pip install 'meerkat_jax[data]'"
        ) from None

    def refuse(*_: Any) -> None:
        raise UserError(f"{name}: names another file; no container may")

    try:
        with av.open(
            _Timed(file, deadline), format=demuxer, options=OPTIONS, io_open=refuse,
            metadata_errors="replace",
        ) as container:  # fmt: skip
            yield Opened(container, kind, deadline)
    except UserError:
        raise
    except MemoryError:  # what a damaged index states, mostly
        raise UserError(
            f"{name}: takes more memory to decode than there is; save it anew"
        ) from None
    except (av.FFmpegError, OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise Damaged(
            f"{name}: damaged, or no {FORMATS[demuxer]} inside ({said}); get it again"
        ) from None


def check_samples(count: int, channels: int, rate: int, name: str) -> None:
    """UserError for more samples than MAX_SAMPLES, of all channels."""
    if (samples := count * channels) > MAX_SAMPLES:
        raise UserError(
            f"{name}: {samples} samples in {channels} channels at {rate} Hz; expected at most "
            f"{MAX_SAMPLES}: mix the channels, or resample to 48000 Hz"
        )


def as_file(source: Source, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
    """The source as an open file; one that is given open is not closed."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        return open_local(source, name)
    return contextlib.nullcontext(source)


def name_of(source: Source) -> str:
    """What errors call a source that has no other name."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else "the file"
