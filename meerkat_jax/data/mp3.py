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

import struct
from collections.abc import Iterator
from typing import NamedTuple

from meerkat_jax.errors import UserError

# kbit/s by the index in a frame's header, of MPEG-1 and of MPEG-2 and 2.5.
RATES_1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
RATES_2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
HERTZ = (44_100, 48_000, 32_000)  # of MPEG-1; half of it in MPEG-2, a quarter in 2.5
SAME = 0xFFFE0C00  # bits of a frame's header that do not change: sync, version, layer, sample rate
MONO = 0xC0
XING_RATE = 0x90  # index 9: 128 or 80 kbit/s, a frame with room for the count at any sample rate
SURE = 3  # frames in a row that are no chance
VBRI_AT = 36  # bytes from its frame's beginning


class Frame(NamedTuple):
    """A frame's header: its size in bytes, samples of each channel, and where a Xing tag may be."""

    size: int
    samples: int
    tag_at: int


class Counted(NamedTuple):
    """A file anew, and whether its last frame is cut off."""

    data: bytes
    cut_off: bool


def counted(data: bytes, name: str) -> Counted | None:
    """An MP3 with its frames counted; None if its own statement is there and not too small.

    Raises UserError when the sample rate or the number of channels changes on the way.
    """
    places = list(_frames(data, name))
    if not places:
        return None
    (at, first), stated = places[0], None
    runs: list[list[int]] = []  # begins and ends of frames that lie one behind the other
    count, cut_off = 0, False
    for at, frame in places:
        told = _stated(data, at, frame)
        if told is not None:
            stated = told if stated is None else stated
            continue
        if at + frame.size > len(data):
            cut_off = True
            break
        if runs and runs[-1][1] == at:
            runs[-1][1] = at + frame.size
        else:
            runs.append([at, at + frame.size])
        count += 1
    if not count or (stated is not None and count <= stated + 1):  # some count their own frame
        return None
    parts = [_xing(data, places[0][0], first, count), *(data[a:b] for a, b in runs)]
    return Counted(b"".join(parts), cut_off)


def _frames(data: bytes, name: str) -> Iterator[tuple[int, Frame]]:
    """(where it begins, frame) of each; what lies between is passed over."""
    at, kind, mono = 0, None, None
    while True:
        at = _after_tag(data, at)
        frame = _frame(data, at)
        if frame is None or (kind is not None and _kind(data, at) != kind):
            at = _next_row(data, at + (frame is None))
            if at < 0:
                return
            frame = _frame(data, at)
        found = _kind(data, at), data[at + 3] & MONO == MONO
        if (kind, mono) not in ((None, None), found):
            raise UserError(
                f"{name}: the sample rate or the number of channels of the MP3 changes on the way; "
                "convert it to WAV"
            )
        kind, mono = found
        yield at, frame
        at += frame.size


def _kind(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big") & SAME


def _next_row(data: bytes, at: int) -> int:
    """Where the next `SURE` frames of one kind begin that lie one behind the other; -1: nowhere."""
    while (at := data.find(b"\xff", at)) >= 0:
        place = at
        for _ in range(SURE):
            frame = _frame(data, place)
            if frame is None or _kind(data, place) != _kind(data, at):
                break
            place += frame.size
        else:
            return at
        at += 1
    return -1


def _frame(data: bytes, at: int) -> Frame | None:
    """The frame whose header begins at `at`; None if none does."""
    if len(data) < at + 4:
        return None
    _, second, third, fourth = data[at : at + 4]
    version = second >> 3 & 3  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    rate, hertz = third >> 4, third >> 2 & 3
    layer_3 = data[at] == 0xFF and second & 0xE6 == 0xE2
    if not layer_3 or version == 1 or rate in (0, 15) or hertz == 3:
        return None
    one = version == 3
    sampled = HERTZ[hertz] >> {3: 0, 2: 1, 0: 2}[version]
    kilobits = (RATES_1 if one else RATES_2)[rate - 1]
    size = (144 if one else 72) * 1000 * kilobits // sampled + (third >> 1 & 1)
    mono = fourth & MONO == MONO
    side = (17 if mono else 32) if one else (9 if mono else 17)  # bytes before the sound
    return Frame(size, 1152 if one else 576, 4 + side)


def _stated(data: bytes, at: int, frame: Frame) -> int | None:
    """How many frames a frame says there are; None if it is of sound."""
    for place in (at + frame.tag_at, at + frame.tag_at + 2):  # behind a checksum, if there is one
        if data[place : place + 4] in (b"Xing", b"Info"):
            flags, count = struct.unpack(">II", data[place + 4 : place + 12].ljust(8, b"\0"))
            return count if flags & 1 else 0
    if data[at + VBRI_AT : at + VBRI_AT + 4] == b"VBRI":
        return int.from_bytes(data[at + VBRI_AT + 14 : at + VBRI_AT + 18], "big")
    return None


def _xing(data: bytes, at: int, like: Frame, count: int) -> bytes:
    """A frame without sound that says how many frames follow, of the kind of the one at `at`."""
    header = bytearray(data[at : at + 4])
    header[1] |= 1  # no checksum
    header[2] = XING_RATE | header[2] & 0x0C  # no padding
    size = _frame(bytes(header), 0).size
    tag = b"Xing" + struct.pack(">II", 1, count)
    return (bytes(header).ljust(like.tag_at, b"\0") + tag).ljust(size, b"\0")


def _after_tag(data: bytes, at: int) -> int:
    """Where an ID3v2 tag that begins at `at` ends; `at` if none does."""
    head = data[at : at + 10]
    if head[:3] != b"ID3" or len(head) < 10 or max(head[6:]) > 127:
        return at
    size = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    return at + 10 + size + (10 if head[5] & 0x10 else 0)
