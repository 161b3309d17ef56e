"""What decoding an image or audio may cost; a large image is reduced without a difference."""

from __future__ import annotations

import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.data import containers, image
from meerkat_jax.data.audio import load_audio
from meerkat_jax.data.image import ORIENTATION, load_image, read_image, read_size
from tests.conftest import ROOT, cli_environment
from tests.data.test_image import encode, header_of

SIZE = 32


def tiff_of_tile(side: int) -> bytes:
    """A TIFF of 16 by 16 pixels that claims to be one tile of `side` by `side`."""
    tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 0, 325: 8}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header_of(39_000_000, 1), "39000000 by 1 pixels; expected sides of at most 65535"),
        (header_of(1, 39_000_000), "1 by 39000000 pixels"),
        (header_of(1001, 10), "at most 100 to 1"),
        (tiff_of_tile(24_000), "over 80 million pixels"),
    ],
)
def test_what_its_header_says_is_too_much_is_not_decoded(data, message, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was decoded"))
    for read in (lambda: load_image(data, SIZE), lambda: read_image(data)):
        with pytest.raises(UserError, match=message):
            read()


def test_the_decoder_counts_too():
    """A WebP is held several times while it is decoded."""
    data = encode(Image.new("L", (6400, 6400)), "WEBP", quality=0, method=0)
    with pytest.raises(UserError, match="WEBP takes 655 MB; expected at most 640"):
        load_image(data, SIZE)


def waves(width: int, height: int, bands: int = 3) -> np.ndarray:
    """Something smooth to look at, uint8[height, width, bands], with an edge in it."""
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    pixels = np.stack([np.sin(x + i) * np.cos(y * (1 + i)) for i in range(bands)], -1)
    pixels[height // 3 :, : width // 4] *= -1
    return (127.5 + 127 * pixels).astype(np.uint8)


@pytest.mark.parametrize("tag", [1, 3, 6, 7])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_large_picture_is_that_of_one_step(kind, tag, monkeypatch):
    """1,207 by 901 is no multiple of anything; strips of a few rows."""
    monkeypatch.setattr(image, "STRIP", 10_000)
    exif = Image.Exif()
    exif[ORIENTATION] = tag
    data = encode(Image.fromarray(waves(1207, 901)), kind, quality=95, exif=exif)
    whole = read_image(data)
    assert read_size(data) == whole.size == ((901, 1207) if tag > 4 else (1207, 901))
    expected = np.asarray(whole.resize((SIZE, SIZE), Image.Resampling.BICUBIC), int)
    error = np.abs(load_image(data, SIZE).astype(int) - expected)
    assert error.max() <= 4 and error.mean() < 0.5
    shown = read_image(data, longest=40)
    assert shown.size == ((30, 40) if tag > 4 else (40, 30))
    expected = np.asarray(whole.resize(shown.size, Image.Resampling.BICUBIC), int)
    assert np.abs(np.asarray(shown, int) - expected).max() <= 4


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "I;16", "CMYK", "1"])
def test_strips_are_converted_as_the_whole_is(mode, monkeypatch):
    colours = Image.fromarray(waves(500, 333, 4), "RGBA")
    if mode == "I;16":
        written = Image.fromarray(np.asarray(colours.convert("L")).astype(np.uint16) * 257)
    else:
        written = colours.convert("RGB").convert(mode) if mode in "CMYK 1 P" else colours
        written = written.convert(mode)
    data = encode(written, "TIFF" if mode == "CMYK" else "PNG")
    expected = load_image(data, 500)
    whole = np.asarray(read_image(data))
    monkeypatch.setattr(image, "STRIP", 2000)
    np.testing.assert_array_equal(load_image(data, 500), expected)
    np.testing.assert_array_equal(np.asarray(read_image(data)), whole)
    small = Image.fromarray(whole).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    assert np.abs(load_image(data, SIZE).astype(int) - np.asarray(small, int)).max() <= 6


def test_memory_of_decoding_is_that_of_the_pixels(tmp_path):
    """16 million pixels of each kind: 32 or 64 MB, which conversions used to multiply by 12."""
    deep = Image.fromarray(np.zeros((4000, 4000), np.uint16))
    encode_to = {"deep": deep, "palette": Image.new("P", (4000, 4000)),
                 "clear": Image.new("RGBA", (4000, 4000))}  # fmt: skip
    for name, written in encode_to.items():
        clear = {} if name == "clear" else {"transparency": 0}
        written.save(tmp_path / f"{name}.png", compress_level=1, **clear)
    code = """if True:
        import sys
        from meerkat_jax.data.image import load_image
        load_image(sys.argv[1], 224)  # what is loaded once
        for path in sys.argv[1:]:
            load_image(path, 224)
            # Not ru_maxrss, which begins with what the parent had.
            print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) // 1024)
    """
    Image.new("RGBA", (300, 300)).save(tmp_path / "small.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("small", *encode_to)]
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], cwd=ROOT, env=cli_environment(tmp_path),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    small, *peaks = map(int, done.stdout.split())
    assert max(peaks) - small < 130, done.stdout  # MiB


def test_many_channels_are_counted_before_they_are_decoded(monkeypatch):
    file = io.BytesIO()
    soundfile.write(file, np.zeros((8000, 100)), 8000, format="OGG", subtype="VORBIS")
    assert load_audio(file.getvalue(), 8000, 1.0)[1].channels == 100
    monkeypatch.setattr(containers, "MAX_SAMPLES", 799_999)
    with pytest.raises(UserError, match="800000 samples in 100 channels at 8000 Hz; expected"):
        load_audio(file.getvalue(), 8000, 1.0)
    load_audio(file.getvalue(), 8000, 0.5)


def test_a_picture_file_may_be_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(image, "MAX_FILE", 100)
    path = tmp_path / "a.bmp"
    file = io.BytesIO()
    Image.new("L", (20, 20)).save(file, "BMP")
    path.write_bytes(file.getvalue())
    with pytest.raises(UserError, match="a.bmp: .* bytes; expected at most 100"):
        load_image(path, SIZE)


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "JPEG", "WEBP"])
def test_size_by_header_is_that_of_the_decoded_image(kind):
    turned = Image.Exif()
    turned[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (40, 20)).save(out, kind, exif=turned)
    assert read_size(out.getvalue()) == read_image(out.getvalue()).size == (20, 40)
