"""Images: decode any ordinary file to the tower's square uint8, and normalise on the device.

The image is squashed, not cropped: a centre crop would move every box, whose corners are
fractions of the image's width and height (Meerkat's release squashes too). Pixels travel as uint8
and become CLIP's floats on the device, which is a quarter of the traffic.

What an image may cost is told by its header, before anything is decoded: pixels, sides, and the
memory of its decoder. An image much larger than what is asked for is decoded at a fraction of its
size where the format can (JPEG), and made smaller strip by strip before it is converted.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import threading
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.local_file import open_local

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images, red green blue
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PIXELS = 80_000_000
# Of a side: the most that JPEG can state. A resampler's weights take 32 bytes for each pixel of it.
MAX_SIDE = 65_535
MAX_ASPECT = 100  # a longer side to the shorter one; drawn 640 pixels wide, the most is 41 million
# Memory at the peak of decoding, per pixel, measured with Pillow 12: a WebP is held four times. All
# else needs 4 bytes, or 2 with 16 bits of grey; 8 stands for a progressive JPEG's coefficients.
DECODER_BYTES = {"WEBP": 16, "AVIF": 10}
OTHER_BYTES = 8
MAX_BYTES = MAX_PIXELS * OTHER_BYTES
MAX_FILE = 512 << 20  # bytes of an encoded image; MAX_PIXELS in three times 16 bits, not packed
# How much larger than its target an image stays until the last, bicubic step: from 3 on the result
# is "almost the same" as without the steps before (Pillow, `reducing_gap`).
GAP = 3
STRIP = 1 << 20  # pixels that are converted at a time
LARGE = 8_000_000  # pixels; images beyond are decoded one at a time, or threads would add up
# Only formats that Pillow decodes itself: EPS, for one, would start Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = {UPRIGHT[tag] for tag in (5, 6, 7, 8)}  # width and height change places
BACK = {  # the other turns undo themselves
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
}
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF
_large = threading.Lock()
# Pillow warns about what MAX_PIXELS refuses with an error anyway.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def load_image(source: str | os.PathLike | bytes, size: int, name: str | None = None) -> np.ndarray:
    """Decode an image (path or encoded bytes) to uint8[size, size, 3], squashed bicubically.

    Turned upright by its EXIF tag; transparency is laid over white; 16-bit grey is scaled to 8; of
    an animation the first frame. An image of more than 6 times `size` on both sides is averaged to
    at least 3 times `size` first. `name` is what errors call it (default: the path). Raises
    UserError when the file is missing, not a file, empty, not an image, broken, or beyond
    MAX_PIXELS, MAX_SIDE, MAX_ASPECT, MAX_BYTES or MAX_FILE.
    """
    return np.array(_read(source, name, lambda _: (size, size))[0])


def read_image(
    source: str | os.PathLike | bytes, name: str | None = None, longest: int | None = None
) -> Image.Image:
    """Decode an image as `load_image` does, in its own proportions: upright, RGB.

    At its own size, or with its longer side at most `longest` pixels.
    """

    def fit(size: tuple[int, int]) -> tuple[int, int]:
        scale = min(1.0, longest / max(size)) if longest else 1.0
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    return _read(source, name, fit)[0]


def read_turned(
    source: str | os.PathLike | bytes, name: str | None = None
) -> tuple[Image.Image, Image.Transpose | None]:
    """`read_image`, and how what is stored was turned to be upright; None for not at all."""
    return _read(source, name, lambda size: size)


def turned_back(image: Image.Image, turn: Image.Transpose) -> Image.Image:
    """The image as it is stored, of an upright one and how it was turned."""
    return image.transpose(BACK.get(turn, turn))


def read_size(source: str | os.PathLike | bytes) -> tuple[int, int] | None:
    """Width and height, upright, by the header, nothing decoded.

    None for what is no image; `read_image` tells what is wrong with it.
    """
    try:
        with _opened(source, "") as file, Image.open(file, formats=FORMATS) as image:
            swapped = _turn(image) in SIDEWAYS and image.format != "TIFF"  # Pillow turns it
            return image.size[::-1] if swapped else image.size
    except Exception:  # of any of Pillow's types
        return None


@jax.jit
def normalise_pixels(pixels: jax.Array) -> jax.Array:
    """uint8[B, H, W, 3] -> float32[B, H, W, 3], CLIP's mean 0 and variance 1 per colour."""
    x = jnp.asarray(pixels, jnp.float32) / 255
    return (x - jnp.array(MEAN, jnp.float32)) / jnp.array(STD, jnp.float32)


def _opened(source: str | os.PathLike | bytes, name: str) -> contextlib.AbstractContextManager:
    file = io.BytesIO(source) if isinstance(source, bytes) else open_local(source, name, MAX_FILE)
    if not file.read(1):
        file.close()
        raise UserError(f"{name}: the image is empty (0 bytes); get the file again")
    file.seek(0)
    return file


def _read(
    source: str | os.PathLike | bytes,
    name: str | None,
    fit: Callable[[tuple[int, int]], tuple[int, int]],
) -> tuple[Image.Image, Image.Transpose | None]:
    """The image, upright and RGB, at the size that `fit` makes of its own, and how it was turned.

    `fit` is given the size before the turn, but of a TIFF, which Pillow turns, that behind it.
    """
    if name is None:
        name = "image" if isinstance(source, bytes) else os.fspath(source)
    with _opened(source, name) as file:
        return _decode(file, name, fit)


def _decode(
    file: io.IOBase, name: str, fit: Callable[[tuple[int, int]], tuple[int, int]]
) -> tuple[Image.Image, Image.Transpose | None]:
    try:
        with Image.open(file, formats=FORMATS) as image:
            _check_cost(image, name)
            target, pixels = fit(image.size), math.prod(image.size)
            draft = image.draft(None, (GAP * target[0], GAP * target[1]))
            # (left, top, right, bottom) of the whole; the last pixels of a draft may be part ones.
            box = draft[1] if draft else (0, 0, *image.size)
            with _large if pixels > LARGE else contextlib.nullcontext():
                turn = _turn(image)
                image.load()  # Pillow turns a TIFF, which then tells no turn any more
                return _upright(_resized(image, target, box[2:]), _turn(image)), turn
    except UserError:
        raise
    except Image.DecompressionBombError:  # Pillow's own bound, of pixels in the header
        raise _too_many(name) from None
    except Image.UnidentifiedImageError:
        raise UserError(
            f"{name}: not an image; expected {', '.join(FORMATS)}: convert it to PNG or JPEG"
        ) from None
    except Exception as error:  # Pillow's decoders raise a dozen types on broken files
        raise UserError(
            f"{name}: the image cannot be decoded ({error}); it is probably cut off or damaged: "
            "get the file again or save it anew as PNG or JPEG"
        ) from None


def _check_cost(image: Image.Image, name: str) -> None:
    """UserError for an image whose header states more than is decoded here."""
    width, height = image.size
    # A TIFF's tile is held whole, however little of it the image shows.
    tile = image.tag_v2 if image.format == "TIFF" else {}
    pixels = max(width * height, tile.get(TILE_WIDTH, 1) * tile.get(TILE_LENGTH, 1))
    if pixels > MAX_PIXELS:
        raise _too_many(name)
    if max(width, height) > min(MAX_SIDE, MAX_ASPECT * min(width, height)):
        raise UserError(
            f"{name}: {width} by {height} pixels; expected sides of at most {MAX_SIDE}, and of at "
            f"most {MAX_ASPECT} to 1: cut it"
        )
    needed = pixels * DECODER_BYTES.get(image.format, OTHER_BYTES)
    if needed > MAX_BYTES:
        raise UserError(
            f"{name}: decoding {width} by {height} pixels of {image.format} takes "
            f"{needed / 1e6:.0f} MB; expected at most {MAX_BYTES / 1e6:.0f}: make it smaller, or "
            "save it as JPEG"
        )


def _too_many(name: str) -> UserError:
    most = MAX_PIXELS // 10**6
    return UserError(f"{name}: over {most} million pixels, which is too many; make it smaller")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns it upright; None when it is, or does not say."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION))
    except Exception:  # damaged EXIF around sound pixels
        return None


def _upright(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def _resized(
    image: Image.Image, target: tuple[int, int], whole: tuple[float, float]
) -> Image.Image:
    """RGB of size `target`; of the loaded image's width and height, `whole` is the image."""
    factors = tuple(max(1, int(whole[i] / GAP / target[i])) for i in (0, 1))
    ready = image.mode == "RGB" and not image.has_transparency_data and factors == (1, 1)
    small = image if ready else _reduced(image, factors)
    if target == small.size == whole:
        return small
    box = (0, 0, whole[0] / factors[0], whole[1] / factors[1])
    return small.resize(target, Image.Resampling.BICUBIC, box)


def _reduced(image: Image.Image, factors: tuple[int, int]) -> Image.Image:
    """RGB, each side averaged by its factor: a strip at a time, as conversions take many copies."""
    width, height = image.size
    small = Image.new("RGB", (math.ceil(width / factors[0]), math.ceil(height / factors[1])))
    rows = max(1, STRIP // (width * factors[1])) * factors[1]
    for top in range(0, height, rows):
        strip = _rgb(image.crop((0, top, width, min(top + rows, height))))
        small.paste(strip.reduce(factors), (0, top // factors[1]))
    return small


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, in Pillow's several spellings
        values = np.clip(np.asarray(image), 0, 65535).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers of unknown range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it
