"""How long an MP3 is, counted frame by frame, because its own statement may be missing or wrong.

An MP3 is a row of frames and has no header of the whole. An encoder may put a frame without sound
in front that tells how many follow ("Xing" or "Info", Fraunhofer's is "VBRI"). Without it decoders
guess the length from the first frame's bit rate and the size of the file, and libsndfile reads no
further than its guess; files that were joined tell the length of the first. `counted` gives such a
file anew: a Xing frame with the true count in front, the frames, and nothing else.

Frames as of ISO/IEC 11172-3 and 13818-3, layer III alone; the Xing frame as of LAME's documentation
(gabriel.mp3-tech.org/mp3infotag.html); ID3v2 as of id3.org/id3v2.4.0-structure.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

from meerkat_jax.core.errors import UserError

# kbit/s by the index in a frame's header, of MPEG-1 and of MPEG-2 and 2.5.
RATES_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
RATES_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
HERTZ = (44_100, 48_000, 32_000)  # of MPEG-1; half of it in MPEG-2, a quarter in 2.5
SAME = 0xFFFE0C00  # bits of a frame's header that do not change: sync, version, layer, sample rate
MONO = 0xC0
XING_RATE = 0x90  # index 9: 128 or 80 kbit/s, a frame with room for the count at any sample rate
SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")  # how a frame of layer III begins
TAGS = re.compile(rb"Xing|Info|VBRI")
SURE = 3  # frames in a row that are no chance
JUNK = 1 << 18  # bytes of a file that are no frames and are searched through
VBRI_AT = 36  # bytes from its frame's beginning


class Frame(NamedTuple):
    """A frame's header: what does not change in a file, its bytes, and where a Xing tag may be."""

    kind: tuple[int, bool]  # sync, version, layer and sample rate; one channel
    size: int
    tag_at: int


class Counted(NamedTuple):
    """A file anew, and whether its last frame is cut off."""

    data: bytes
    cut_off: bool


def counted(data: bytes, name: str) -> Counted | None:
    """An MP3 with its frames counted; None if its own statement is there and not too small.

    Raises UserError when the sample rate or the number of channels changes on the way.
    """
    tagged = TAGS.search(data) is not None
    runs: list[list[int]] = []  # begins and ends of frames that lie one behind the other
    first = stated = None
    count, cut_off = 0, False
    for at, frame in _frames(data, name):
        first = first or (at, frame)
        told = _stated(data, at, frame) if tagged else None
        if told is not None:
            stated = told if stated is None else stated
        elif at + frame.size > len(data):
            cut_off = True
        else:
            count += 1
            if runs and runs[-1][1] == at:
                runs[-1][1] += frame.size
            else:
                runs.append([at, at + frame.size])
    if not count or (stated is not None and count <= stated + 1):  # some count their own frame
        return None
    parts = [_xing(data, *first, count), *(data[begin:end] for begin, end in runs)]
    return Counted(b"".join(parts), cut_off)


def _frames(data: bytes, name: str) -> Iterator[tuple[int, Frame]]:
    """(where it begins, frame) of each; up to `JUNK` bytes that are none are passed over."""
    at, kind, junk = 0, None, JUNK
    while True:
        frame = _header(data[at : at + 4])
        if frame is None or frame.kind != kind:  # tags, junk, the first frame, or another kind
            begin = _after_tag(data, at)
            at = _next_row(data, begin, begin + junk)
            if at < 0:
                return
            junk -= at - begin
            frame = _header(data[at : at + 4])
            if kind not in (None, frame.kind):
                raise UserError(
                    f"{name}: the sample rate or the number of channels of the MP3 changes on the "
                    "way; convert it to WAV"
                )
            kind = frame.kind
        yield at, frame
        at += frame.size


def _next_row(data: bytes, at: int, limit: int) -> int:
    """Where, before `limit`, the next frame begins that others of its kind follow; -1: nowhere."""
    for found in SYNC.finditer(data, at, limit + 2):
        place, row = found.start(), []
        while len(row) < SURE and (frame := _header(data[place : place + 4])):
            row.append(frame.kind)
            place += frame.size
        if len(set(row)) == 1 and (len(row) == SURE or place >= len(data)):
            return found.start()
    return -1


@functools.lru_cache(1024)
def _header(head: bytes) -> Frame | None:
    """The frame that begins with these four bytes; None if none does."""
    if len(head) < 4:
        return None
    begin, second, third, fourth = head
    version = second >> 3 & 3  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    rate, hertz = third >> 4, third >> 2 & 3
    layer_3 = begin == 0xFF and second & 0xE6 == 0xE2
    if not layer_3 or version == 1 or rate in (0, 15) or hertz == 3:
        return None
    one, mono = version == 3, fourth & MONO == MONO
    sampled = HERTZ[hertz] >> {3: 0, 2: 1, 0: 2}[version]
    kilobits = (RATES_1 if one else RATES_2)[rate - 1]
    size = (144 if one else 72) * 1000 * kilobits // sampled + (third >> 1 & 1)
    side = (17 if mono else 32) if one else (9 if mono else 17)  # bytes before the audio
    return Frame((int.from_bytes(head, "big") & SAME, mono), size, 4 + side)


def _stated(data: bytes, at: int, frame: Frame) -> int | None:
    """How many frames a frame says there are; None if it is of sound."""
    for place in (at + frame.tag_at, at + frame.tag_at + 2):  # behind a checksum, if there is one
        if TAGS.match(data, place):
            flags, count = struct.unpack(">II", data[place + 4 : place + 12].ljust(8, b"\0"))
            return count if flags & 1 else 0
    if TAGS.match(data, at + VBRI_AT):
        return int.from_bytes(data[at + VBRI_AT + 14 : at + VBRI_AT + 18], "big")
    return None


def _xing(data: bytes, at: int, like: Frame, count: int) -> bytes:
    """A frame without sound that says how many frames follow, of the kind of the one at `at`."""
    header = bytearray(data[at : at + 4])
    header[1] |= 1  # no checksum
    header[2] = XING_RATE | header[2] & 0x0C  # no padding
    tag = b"Xing" + struct.pack(">II", 1, count)
    return (bytes(header).ljust(like.tag_at, b"\0") + tag).ljust(_header(bytes(header)).size, b"\0")


def _after_tag(data: bytes, at: int) -> int:
    """Where an ID3v2 tag that begins at `at` ends; `at` if none does."""
    head = data[at : at + 10]
    if head[:3] != b"ID3" or len(head) < 10 or max(head[6:]) > 127:
        return at
    size = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    return at + 10 + size + (10 if head[5] & 0x10 else 0)
