"""Images and audio clips of single things, ready to be composed into scenes.

Real media are cut-out photographs with a recording each (see `classes`); where they cannot be had,
`procedural` makes shapes and timbres. Both come out alike: the image cropped to what is opaque,
the sound mono, trimmed, of one loudness.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import soxr
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import default_cache
from meerkat_jax.mini import classes as table
from meerkat_jax.mini.packages import Fetched, fetch_package
from meerkat_jax.mini.procedural import make_media
from meerkat_jax.mini.rcc import read_rcc
from meerkat_jax.mini.thing import Media, MediaSet, finish_audio

LONGEST_SIDE = 200  # pixels
_OPAQUE = 32  # of 255: below belongs to the background


def load_media(
    kind: str = "auto",
    sample_rate: int = 16000,
    cache_dir: str | Path | None = None,
    say: Callable[[str], None] = print,
) -> MediaSet:
    """Load the media of the mini data set.

    kind: "real", "procedural", or "auto" (real where they can be had; `say` is told otherwise).
    Raises UserError for another kind, for a cache to mend, and for "real" where they cannot be had.
    """
    if kind == "procedural":
        return _procedural(sample_rate)
    if kind not in ("real", "auto"):
        raise UserError(f"media kind {kind!r}: expected one of real, procedural, auto")
    stamps = _fetch(table.STAMPS, cache_dir, say)
    if stamps.path is not None:
        return _real(stamps.path, sample_rate, cache_dir, say)
    if kind == "real":
        raise UserError(f"no real media: {stamps.reason}; use kind procedural, or mend this")
    say(f"no real media ({stamps.reason}): using procedural shapes and sounds instead")
    return _procedural(sample_rate)


def _fetch(package: str, cache_dir: str | Path | None, say: Callable[[str], None]) -> Fetched:
    cache = Path(cache_dir) if cache_dir is not None else default_cache()
    if not (cache / package).is_dir():
        say(f"fetching the Debian package {package} into {cache} (once)")
    return fetch_package(package, cache)


def _procedural(sample_rate: int) -> MediaSet:
    made = make_media(sample_rate)
    names = tuple(name for name, instance in made if instance == "a")
    return MediaSet(names, made, sample_rate, "procedural shapes and timbres made by our code")


def _real(
    stamps: Path, sample_rate: int, cache_dir: str | Path | None, say: Callable[[str], None]
) -> MediaSet:
    """Cut-outs, and the photographs of the second package where that can be had."""
    media: dict[tuple[str, str], Media] = {}
    for instance, paths in (("a", table.CUTOUTS), ("c", table.MORE_CUTOUTS)):
        for name, path in paths.items():
            stem = stamps / table.STAMPS_FOLDER / path
            image, audio = stem.with_suffix(".png"), stem.with_suffix(".ogg")
            media[name, instance] = Media(
                name,
                prepare_image(_bytes(image), str(image)),
                prepare_audio(_bytes(audio), sample_rate, str(audio)),
                instance,
            )
    notes = f"{table.STAMPS}: cut-out photographs and recordings (a; c: other individuals)"
    second = _fetch(table.GCOMPRIS, cache_dir, say)
    try:  # the demo goes without the second package: it only adds held-out instances
        if second.path is None:
            raise UserError(second.reason)
        media.update(_photographs(second.path, sample_rate))
        notes += f"; {table.GCOMPRIS}: photographs with their background, and recordings (b)"
    except UserError as error:
        say(f"no held-out photographs (instances b): {error}")
    return MediaSet(tuple(table.CUTOUTS), media, sample_rate, notes)


def _photographs(package: Path, sample_rate: int) -> dict[tuple[str, str], Media]:
    resources = read_rcc(package / table.GCOMPRIS_FOLDER / table.PHOTO_RESOURCES)
    media = {}
    for name, photo in table.PHOTOS.items():
        paths = [f"{table.PHOTO_FOLDER}/{file}" for file in (photo.image, photo.audio)]
        for path in paths:
            if path not in resources:
                raise UserError(f"{table.PHOTO_RESOURCES} lacks {path}; another package version?")
        image = prepare_image(resources[paths[0]], paths[0], photo.crop)
        audio = prepare_audio(resources[paths[1]], sample_rate, paths[1])
        media[name, "b"] = Media(name, image, audio, "b")
    return media


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); delete the cache folder of its package "
            "and load the media again"
        ) from error


def prepare_image(
    data: bytes, source: str, crop: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Decode to uint8[height, width, 4], cropped to what is opaque, at most 200 pixels long.

    crop: (x0, y0, x1, y1) in 0..1, applied first. UserError when the image cannot be decoded or
    nothing of it is opaque.
    """
    try:
        image = Image.open(io.BytesIO(data)).convert("RGBA")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{source}: not an image ({error}); fetch its package again") from error
    if crop is not None:
        width, height = image.size
        image = image.crop((crop[0] * width, crop[1] * height, crop[2] * width, crop[3] * height))
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha >= _OPAQUE)).getbbox()
    if box is None:
        raise UserError(f"{source}: the image is transparent everywhere")
    image = image.crop(box)
    shrink = LONGEST_SIDE / max(image.size)
    if shrink < 1:
        size = tuple(max(1, round(side * shrink)) for side in image.size)
        # premultiplied, so that hidden colours of the background do not bleed into the edge
        image = image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA")
    return np.asarray(image)


def prepare_audio(data: bytes, sample_rate: int, source: str) -> np.ndarray:
    """Decode to float32[samples]: mono, trimmed, at most 4 s, one loudness, faded at both ends.

    UserError when the sound cannot be decoded or is silent.
    """
    try:
        audio, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise UserError(f"{source}: not a sound ({error}); fetch its package again") from error
    mono = audio.mean(axis=1)
    if not mono.size or not np.abs(mono).max() > 0:
        raise UserError(f"{source}: the sound is silent")
    return finish_audio(soxr.resample(mono, rate, sample_rate), sample_rate)
