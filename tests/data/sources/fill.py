"""Pictures, sounds and videos for the trees of annotation files, made of real media.

The media are those of the mini data set: photographs and recordings where their packages are in the
cache already (`make demo` puts them there), shapes and timbres otherwise: a test downloads nothing.
What is told of a medium is its path and how long it must be.
"""

from __future__ import annotations

import functools
import hashlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from meerkat_jax.core.files import default_cache
from meerkat_jax.mini import classes
from meerkat_jax.mini.media import load_media

RATE = 48_000
FRAMES = 8  # a second


@functools.cache
def real():
    """Things of the mini data set, with sound at `RATE`."""
    there = all((default_cache() / name).is_dir() for name in (classes.STAMPS, classes.GCOMPRIS))
    return tuple(load_media("real" if there else "procedural", RATE).media.values())


def thing(path):
    """One of them, always the same for one path."""
    number = int(hashlib.sha256(str(path).encode()).hexdigest(), 16)
    return real()[number % len(real())]


def image(path, size=(320, 240)):
    """A scene of one thing, uint8[H, W, 3]."""
    scene = Image.new("RGB", size, (90, 140, 110))
    cut = Image.fromarray(thing(path).image)
    scene.paste(cut, (size[0] // 4, size[1] // 5), cut)
    return scene


def audio(path, seconds):
    """Its sound over and over, float32[n]."""
    wave = thing(path).audio
    return np.resize(wave, round(seconds * RATE))


def fill(folder: Path, wanted) -> None:
    """Write the media that a tree's `write` tells of."""
    for one in wanted:
        seconds = one.get("seconds") or 10.0
        if one.get("image"):
            path = folder / one["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            image(path.name).save(path)
        if one.get("audio"):
            path = folder / one["audio"]
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, audio(path.name, seconds), RATE)
        if one.get("video"):
            path = folder / one["video"]
            path.parent.mkdir(parents=True, exist_ok=True)
            video(path, seconds)


def video(path, seconds, audio_clips=True, frames=None):
    """MPEG-4 and AAC. `frames`, times in seconds: a variable rate; frame i has a red of 20 i."""
    import av

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        spoken = file.add_stream("aac", rate=RATE, layout="mono") if audio_clips else None
        times = frames if frames is not None else np.arange(0, seconds, 1 / FRAMES)
        still = image(Path(path).name, (160, 120))
        for number, time in enumerate(times):
            flat = Image.new("RGB", (160, 120), (20 * number % 256, 60, 60))
            frame = av.VideoFrame.from_image(flat if frames is not None else still)
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        if spoken:
            wave = audio(Path(path).name, seconds).astype(np.float32)
            for start in range(0, len(wave), 1024):
                piece = wave[None, start : start + 1024]
                heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece), "fltp", "mono")
                heard.sample_rate, heard.pts = RATE, start
                file.mux(spoken.encode(heard))
            file.mux(spoken.encode())
