"""Pictures: decode any ordinary file to the tower's square uint8, and normalise on the device.

The picture is squashed, not cropped: a centre crop would move every box, whose corners are
fractions of the picture's width and height (Meerkat's release squashes too). Pixels travel as uint8
and become CLIP's floats on the device, which is a quarter of the traffic.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from meerkat_jax.errors import UserError

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures, red green blue
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PIXELS = 80_000_000  # 240 MB decoded
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
SWAPPING = {UPRIGHT[tag] for tag in (5, 6, 7, 8)}  # those that swap width and height
BACK = {  # the other turns undo themselves
    Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
    Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
}
# Pillow warns about what MAX_PIXELS refuses with an error anyway.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def load_image(source: str | os.PathLike | bytes, size: int, name: str | None = None) -> np.ndarray:
    """Decode a picture (path or encoded bytes) to uint8[size, size, 3], squashed bicubically.

    Turned upright by its EXIF tag; transparency is laid over white; 16-bit grey is scaled to 8; of
    an animation the first frame. `name` is what errors call it (default: the path). Raises
    UserError when the file is missing, empty, not a picture, broken, or has more than MAX_PIXELS.
    """
    picture = read_image(source, name)
    if picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(picture)


def read_image(source: str | os.PathLike | bytes, name: str | None = None) -> Image.Image:
    """Decode a picture as `load_image` does, at its own size: upright, RGB."""
    return read_turned(source, name)[0]


def read_turned(
    source: str | os.PathLike | bytes, name: str | None = None
) -> tuple[Image.Image, Image.Transpose | None]:
    """`read_image`, and how what is stored was turned to be upright; None for not at all."""
    if name is None:
        name = "picture" if isinstance(source, bytes) else os.fspath(source)
    with _opened(source, name) as file:
        return _decode(file, name)


def turned_back(picture: Image.Image, turn: Image.Transpose) -> Image.Image:
    """The picture as it is stored, of an upright one and how it was turned."""
    return picture.transpose(BACK.get(turn, turn))


def count_pixels(source: str | os.PathLike | bytes) -> int | None:
    """Width times height by the header, nothing decoded; None for what `read_image` refuses."""
    try:
        with _opened(source, "") as file, Image.open(file, formats=FORMATS) as picture:
            return picture.width * picture.height
    except Exception:  # of any of Pillow's types; reading it tells what is wrong
        return None


@jax.jit
def normalise_pixels(pixels: jax.Array) -> jax.Array:
    """uint8[B, H, W, 3] -> float32[B, H, W, 3], CLIP's mean 0 and variance 1 per colour."""
    x = jnp.asarray(pixels, jnp.float32) / 255
    return (x - jnp.array(MEAN, jnp.float32)) / jnp.array(STD, jnp.float32)


def _opened(source: str | os.PathLike | bytes, name: str) -> contextlib.AbstractContextManager:
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
    except OSError as error:
        raise UserError(f"{name}: cannot open ({error.strerror}); check the path") from None
    if not file.read(1):
        file.close()
        raise UserError(f"{name}: the picture is empty (0 bytes); get the file again")
    file.seek(0)
    return file


def _decode(file: io.IOBase, name: str) -> tuple[Image.Image, Image.Transpose | None]:
    try:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            turn = _turn(picture)
            picture.load()
            # Of a TIFF Pillow has done it by now, and tells no turn any more.
            upright = picture if turn != _turn(picture) else _upright(picture, turn)
            return _rgb(upright), turn
    except Image.UnidentifiedImageError:
        raise UserError(
            f"{name}: not a picture; expected {', '.join(FORMATS)}: convert it to PNG or JPEG"
        ) from None
    except Image.DecompressionBombError:
        raise UserError(
            f"{name}: over {MAX_PIXELS // 10**6} million pixels, which is too many; make it smaller"
        ) from None
    except Exception as error:  # Pillow's decoders raise a dozen types on broken files
        raise UserError(
            f"{name}: the picture cannot be decoded ({error}); it is probably cut off or damaged: "
            "get the file again or save it anew as PNG or JPEG"
        ) from None


def _turn(picture: Image.Image) -> Image.Transpose | None:
    try:
        return UPRIGHT.get(picture.getexif().get(ORIENTATION))
    except Exception:  # damaged EXIF around sound pixels
        return None


def _upright(picture: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey, in Pillow's several spellings
        values = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
        picture = Image.fromarray((values / 257).round().astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("pixels are floating-point numbers of unknown range")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy it
