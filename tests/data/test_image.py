"""Images of every ordinary kind decode to the right pixels, broken ones to one clear error."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.image import MAX_PIXELS, ORIENTATION, load_image, normalise_pixels
from tests.tolerances import tolerance

SIZE = 32
RED, GREEN, BLUE, GREY = (200, 30, 40), (20, 180, 60), (10, 60, 220), (128, 128, 128)


def quarters(side: int = SIZE) -> np.ndarray:
    """Four plain quarters, uint8[side, side, 3]: red, green, blue, grey from the top left."""
    colours = np.array([[RED, GREEN], [BLUE, GREY]], np.uint8)
    return np.kron(colours, np.ones((side // 2, side // 2, 1), np.uint8))


def encode(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def header_of(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, with next to nothing behind it."""
    data = bytearray(encode(np.zeros((4, 4), np.uint8)))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "PPM"])
def test_lossless_formats_are_exact_and_a_path_equals_its_bytes(kind: str, tmp_path: Path) -> None:
    data = encode(quarters(), kind)
    path = tmp_path / "image"
    path.write_bytes(data)
    pixels = load_image(path, SIZE)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, quarters())
    np.testing.assert_array_equal(load_image(data, SIZE), pixels)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_are_near(kind: str) -> None:
    pixels = load_image(encode(quarters(), kind, quality=95), SIZE).astype(int)
    assert np.abs(pixels - quarters())[4:12, 4:12].max() < 8  # away from the edges


@pytest.mark.parametrize("shape", [(20, 90), (90, 20), (1, 1), (300, 200)])
def test_any_shape_is_squashed_whole(shape: tuple[int, int]) -> None:
    height, width = shape
    ramp = np.linspace(0, 255, width).round().astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (height, width, 3))
    pixels = load_image(encode(np.ascontiguousarray(image)), SIZE)
    assert pixels.shape == (SIZE, SIZE, 3)
    if width > 1:
        places = (np.arange(SIZE) + 0.5) / SIZE * width - 0.5  # both ends are kept: no crop
        expected = np.interp(places, np.arange(width), ramp)
        assert np.abs(pixels[SIZE // 2, :, 0] - expected).max() < 6


def luminance(rgb: tuple[int, int, int]) -> int:
    return round(0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2])


@pytest.mark.parametrize(
    ("mode", "kind"),
    [(mode, "TIFF") for mode in ("L", "1", "P", "CMYK", "I;16", "I")]
    + [(mode, "PNG") for mode in ("L", "1", "P", "I;16")],
)
def test_modes(mode: str, kind: str) -> None:
    colour = Image.fromarray(quarters())
    grey = np.asarray(colour.convert("L"))
    deep = grey.astype(np.int32) * 257  # 16 bits whose high byte is the 8 bits
    image = {
        "P": colour.quantize(4),
        "I;16": Image.fromarray(deep.astype(np.uint16)),
        "I": Image.fromarray(deep),
    }.get(mode) or colour.convert(mode)
    expected = {
        "1": np.asarray(colour.convert("1").convert("RGB")),
        "P": quarters(),
        "CMYK": quarters(),
    }.get(mode, np.repeat(grey[..., None], 3, axis=-1))
    data = encode(image, kind)
    assert Image.open(io.BytesIO(data)).mode == mode
    assert np.abs(load_image(data, SIZE).astype(int) - expected).max() <= 1


def test_grey_weighs_the_colours() -> None:
    pixels = load_image(encode(Image.fromarray(quarters()).convert("L")), SIZE)
    assert abs(int(pixels[0, 0, 1]) - luminance(RED)) <= 1


def test_cmyk_jpeg_is_not_inverted() -> None:
    data = encode(Image.fromarray(quarters()).convert("CMYK"), "JPEG", quality=95)
    pixels = load_image(data, SIZE).astype(int)
    assert np.abs(pixels - quarters())[4:12, 4:12].max() < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette"])
def test_what_is_transparent_is_white(mode: str) -> None:
    pixels = np.zeros((SIZE, SIZE, 4), np.uint8)  # black, and transparent on the left
    pixels[:, SIZE // 2 :, 3] = 255
    image = Image.fromarray(pixels)
    if mode == "palette":
        indices = Image.fromarray((pixels[..., 3] > 0).astype(np.uint8)).convert("P")
        indices.putpalette([255, 0, 0, 0, 0, 0])
        data = encode(indices, transparency=0)
    else:
        data = encode(image.convert(mode))
    got = load_image(data, SIZE)
    assert (got[:, : SIZE // 2] == 255).all()
    assert (got[:, SIZE // 2 :] == 0).all()


def test_half_transparent_is_mixed_with_white() -> None:
    data = encode(np.full((SIZE, SIZE, 4), (200, 0, 0, 128), np.uint8))
    got = load_image(data, SIZE)[0, 0].astype(int)
    assert np.abs(got - (227, 127, 127)).max() <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_rotation(tag: int, kind: str) -> None:
    # Where the tag says the stored first row and first column are seen.
    turned = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x, -1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x),
    }[tag]
    exif = Image.Exif()
    exif[ORIENTATION] = tag
    data = encode(quarters(), kind, exif=exif)
    error = np.abs(load_image(data, SIZE).astype(int) - turned(quarters()))
    assert error[4:12, 4:12].max() < 8


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_matter() -> None:
    data = encode(quarters(), "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff\xff")
    np.testing.assert_array_equal(load_image(data, SIZE), quarters())


def test_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(np.full((SIZE, SIZE, 3), c, np.uint8)) for c in (RED, BLUE)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data, SIZE)[5, 5].tolist() == list(RED)


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
BAD = {
    "empty": (b"", "empty"),
    "text": (b"not an image at all, " * 50, "not an image"),
    "one byte": (b"\x89", "not an image"),
    "sound": (b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(100), "not an image"),
    "postscript": (encode(NOISE, "EPS"), "not an image"),
    "floating point": (encode(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "floating"),
    "bomb": (header_of(60_000, 60_000), "million pixels"),
    "just too large": (header_of(10_000, MAX_PIXELS // 10_000 + 1), "million pixels"),
    **{
        f"half a {kind}": (encode(NOISE, kind)[: len(encode(NOISE, kind)) // 2], "cut off")
        for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
    },
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_error_that_names_it(case: str, tmp_path: Path) -> None:
    data, message = BAD[case]
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        load_image(path, SIZE)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="row 7"):
        load_image(data, SIZE, name="row 7")


@pytest.mark.parametrize("name", ["nowhere.png", "."])
def test_a_path_that_cannot_be_opened(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot open.*check the path"):
        load_image(tmp_path / name, SIZE)


def test_normalise_equals_clip() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    theirs = CLIPImageProcessorPil()([Image.fromarray(p) for p in pixels], return_tensors="np")
    expected = np.asarray(theirs["pixel_values"]).transpose(0, 2, 3, 1)
    got = np.asarray(normalise_pixels(pixels))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, **tolerance("pixels"))
