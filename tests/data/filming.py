"""Videos and sounds in containers, of images and samples whose places in time are known."""

from fractions import Fraction

import av
import numpy as np

RATE = 48_000
FPS = 25
MILLI = Fraction(1, 1000)
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 6: "5.1"}


def tone(seconds, hertz=440.0, peak=0.5, rate=RATE):
    """A sine, float32[n]."""
    return (peak * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("f")


def pulse(at, seconds, rate=RATE):
    """Silence, with a tone for .25 s from `at` on, float32[n]."""
    wave = tone(seconds, 1000.0, rate=rate)
    time = np.arange(len(wave)) / rate
    return np.where((time >= at) & (time < at + 0.25), wave, 0).astype("f")


def heard_at(wave, rate=RATE):
    """When something is heard first, in seconds."""
    return np.flatnonzero(np.abs(wave) > 0.2)[0] / rate


def grey(number):
    """The image of a frame, uint8[96, 128, 3]: its number shows in its brightness."""
    return np.full((96, 128, 3), 16 + 2 * (number % 110), np.uint8)


def number_of(image):
    """Of a `grey` frame, from its pixels."""
    return (image.mean() - 16) / 2


def film(
    path,
    wave=None,
    frames=0,
    picture_at=0.0,
    sound_at=0.0,
    audio="aac",
    video="mpeg4",
    rate=RATE,
    lost=(),
    drawn=grey,
    matrix=None,
    gop=12,
    format=None,
):
    """Write `frames` images and `wave`, float32[n] or [channels, n], each from a time on.

    `lost`: two times in seconds of the sound, between which its packets are left out. `drawn`
    gives the image of a number, `matrix` is the display matrix.
    """
    with av.open(str(path), "w", format=format) as file:
        if frames:
            size = drawn(0).shape
            shown = file.add_stream(video, rate=FPS)
            shown.height, shown.width, shown.pix_fmt = size[0], size[1], "yuv420p"
            shown.time_base = shown.codec_context.time_base = MILLI
            shown.codec_context.gop_size, shown.codec_context.bit_rate = gop, 2_000_000
            if matrix is not None:
                shown.set_display_matrix(matrix)
        if wave is not None:
            wave = np.atleast_2d(wave)
            layout = LAYOUTS[len(wave)]
            spoken = file.add_stream(audio, rate=rate, layout=layout)
            spoken.codec_context.bit_rate = 192_000 * len(wave)
        packets = []
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(drawn(number), "rgb24")
            frame.pts, frame.time_base = round((picture_at + number / FPS) * 1000), MILLI
            packets += shown.encode(frame)
        packets += shown.encode() if frames else []
        if wave is None:
            file.mux(packets)
            return
        resampler = av.AudioResampler(format=spoken.format, layout=layout, rate=rate)
        size = spoken.codec_context.frame_size or 1024
        heard = []
        for start in range(0, wave.shape[1], size):
            piece = np.ascontiguousarray(wave[:, start : start + size], np.float32)
            frame = av.AudioFrame.from_ndarray(piece, "fltp", layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            (frame,) = resampler.resample(frame)
            frame.pts = start + round(sound_at * rate)
            heard += spoken.encode(frame)
        for packet in [*heard, *spoken.encode()]:
            time = float(packet.pts * packet.time_base) - sound_at
            if not (lost and lost[0] <= time < lost[1]):
                packets.append(packet)
        file.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
