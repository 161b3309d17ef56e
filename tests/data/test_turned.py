"""An image with an EXIF turn and the boxes on it never part, whatever their source."""

from __future__ import annotations

import importlib
import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from meerkat_jax.data import media
from meerkat_jax.data.sources.entry import Options
from meerkat_jax.data.sources.registry import find
from meerkat_jax.data.sources.skips import RowError
from meerkat_jax.data.split import open_split
from tests.data.sources.built import build
from tests.data.sources.fill import RATE, audio

STORED = media.AS_STORED
UPRIGHT = media.UPRIGHT


def draw(path, boxes, size=(320, 240), turn=6, upright=False) -> None:
    """White where `boxes` are, black elsewhere, of `size` as it is stored with an EXIF turn.

    Boxes are of what is stored, or of what is `upright`.
    """
    shown = size[::-1] if upright and turn in (5, 6, 7, 8) else size
    pixels = np.zeros((shown[1], shown[0], 3), np.uint8)
    for box in boxes:
        x0, x1 = round(box.x0 * shown[0]), round(box.x1 * shown[0])
        y0, y1 = round(box.y0 * shown[1]), round(box.y1 * shown[1])
        pixels[y0:y1, x0:x1] = 255
    image = Image.fromarray(pixels)
    if upright and turn != 1:
        image = image.transpose(INVERSE[turn])
    exif = Image.Exif()
    exif[0x0112] = turn
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, exif=exif)


INVERSE = {  # what is stored, of what is upright, by the tag
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def whiteness(data: bytes, boxes) -> tuple[float, float]:
    """Mean brightness of a JPEG within `boxes` and outside, without the edges."""
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif().get(0x0112, 1) == 1, "what is stored has no turn any more"
        grey = np.asarray(image.convert("L"), float)
    inside = np.zeros(grey.shape, bool)
    height, width = grey.shape
    for box in boxes:
        x0, x1 = round(box.x0 * width), round(box.x1 * width)
        y0, y1 = round(box.y0 * height), round(box.y1 * height)
        inside[y0:y1, x0:x1] = True
    return grey[inside].mean(), grey[~inside].mean() if not inside.all() else 0.0


BOXED = {
    "openimages_vggsound": "pairs",
    "vggss": "vggss",
    "avsbench": "avsbench",
    "flickr_soundnet": "flickr_soundnet",
    "pascal_sound": "pascal_sound",
    "avfit": "avfit",
}


@pytest.mark.parametrize("source", BOXED)
@pytest.mark.parametrize("turn", [3, 6])
def test_boxes_of_published_sources_are_of_what_is_stored(source: str, turn: int, tmp_path) -> None:
    importlib.import_module(f"tests.data.sources.tree_{BOXED[source]}").write(tmp_path)
    plan = find(source)(tmp_path, Options())
    boxed = [entry for entry in plan.entries if entry.boxes]
    assert boxed
    for entry in boxed[:8]:
        place = entry.image[0]
        path = tmp_path / place.folder / f"{place.name}{place.suffix or '.png'}"
        size = tuple(map(int, entry.sizes[0])) if entry.sizes else (320, 240)
        draw(path, entry.boxes, size, turn)
        data, noted = media.encode_image(str(path), 0.0, entry.stored, entry.sizes)
        inside, outside = whiteness(data, entry.boxes)
        assert noted == (STORED,)
        assert inside > 220, entry.id
        assert outside < 35, entry.id


BOX = ["dog", 0.1, 0.2, 0.5, 0.9]
STORED_SIZE, UPRIGHT_SIZE = [320, 240], [240, 320]


def pixels(size: list[int]) -> dict:
    corners = [corner * size[n % 2] for n, corner in enumerate(BOX[1:])]
    return {"boxes": [["dog", *corners]], "pixels": True, "size": size}


ROWS = {  # what is told of the boxes -> the turn, whether they are of what is upright
    "fractions": ({"boxes": [BOX]}, 6, True),
    "of the stored": (pixels(STORED_SIZE), 6, False),
    "of the stored, smaller": (pixels([160, 120]), 8, False),
    "of the upright": (pixels(UPRIGHT_SIZE), 6, True),
    "of the upright, mirrored": (pixels(UPRIGHT_SIZE), 5, True),
    "upside down": (pixels(STORED_SIZE), 3, True),  # a size tells nothing of it
    "no turn": (pixels(STORED_SIZE), 1, False),
}


def test_own_data_is_upright_unless_its_size_says_otherwise(tmp_path) -> None:
    lines = []
    for name, (told, _, _) in ROWS.items():
        asked = {"task": "arig", **told}
        lines.append({"id": name, "image": f"{name}.png", "audio": "a.wav", "questions": [asked]})
    swapped = {"task": "arig", **pixels(UPRIGHT_SIZE)}
    lines.append({"id": "lost", "image": "lost.png", "audio": "a.wav", "questions": [swapped]})
    both = [{"task": "arig", **pixels(STORED_SIZE)}, {"task": "arig", **pixels(UPRIGHT_SIZE)}]
    lines.append({"id": "both", "image": "both.png", "audio": "a.wav", "questions": both})
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    soundfile.write(tmp_path / "a.wav", audio("a.wav", 1.0), RATE)
    plan = find("jsonl")(tmp_path, Options())
    boxes = {entry.id.removeprefix("jsonl-train-"): entry.boxes for entry in plan.entries}
    for name, (_, turn, upright) in ROWS.items():
        draw(tmp_path / f"{name}.png", boxes[name], (320, 240), turn, upright)
    draw(tmp_path / "lost.png", boxes["lost"], (320, 240), 1)
    draw(tmp_path / "both.png", boxes["both"], (320, 240), 6)
    manifest = build("jsonl", tmp_path, tmp_path / "out")
    assert manifest["noted"] == {UPRIGHT: 4, STORED: 2}
    assert manifest["skipped"]["examples"] == {
        "boxes are of the image with its sides swapped": 1,
        "boxes are of images with other sides": 1,
    }
    found = {
        one.id.removeprefix("jsonl-train-"): one for one in open_split(tmp_path / "out", "train")
    }
    assert found.keys() == ROWS.keys()
    for name, example in found.items():
        inside, outside = whiteness(example.image, example.boxes)
        assert inside > 220 and outside < 35, name


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("turn", [*INVERSE])
def test_every_turn_of_every_format_is_undone(kind: str, turn: int, tmp_path) -> None:
    rng = np.random.default_rng(turn)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    image = small.resize((320, 240), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / f"a.{kind}"
    image.save(path, exif=exif)
    data, noted = media.encode_image(str(path), 0.0, stored=True)
    assert noted == (STORED,)
    with Image.open(io.BytesIO(data)) as made:
        assert made.size == image.size
        centres = made.resize((8, 6), Image.Resampling.BOX)
    assert np.abs(np.asarray(centres, int) - np.asarray(small, int)).mean() < 12


def test_sides_that_are_swapped_though_nothing_was_turned_are_refused(tmp_path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (320, 240)).save(path)
    with pytest.raises(RowError, match="sides swapped"):
        media.encode_image(str(path), 0.0, sizes=((240.0, 320.0),))
    assert media.encode_image(str(path), 0.0, sizes=((640.0, 480.0),))[1] == ()


def test_silence_that_claims_a_sound_is_counted(tmp_path) -> None:
    rows = {
        "audio_labels": {
            "audio_labels": ["dog"],
            "questions": [{"task": "avc", "captions": ["A dog."]}],
        },
        "where": {"questions": [{"task": "arig", "boxes": [BOX]}]},
        "when": {"questions": [{"task": "igatl", "segments": [["dog", 0.1, 0.5]]}]},
        "no claim": {"questions": [{"task": "avc", "captions": ["Nothing is heard."]}]},
    }
    lines = [{"id": k, "image": "a.png", "audio": "a.wav", **row} for k, row in rows.items()]
    (tmp_path / "annotations.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Image.new("RGB", (32, 24)).save(tmp_path / "a.png")
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    manifest = build("jsonl", tmp_path, tmp_path / "out", max_skipped=0.8)
    reason = "sound is silent, but something is said to be heard"
    assert manifest["skipped"]["examples"] == {reason: 3}
    assert manifest["noted"] == {"the audio is silent": 1} and manifest["counts"] == {"train": 1}
    with pytest.raises(Exception, match=f"3 of 4 examples cannot be used .{reason}: 3"):
        build("jsonl", tmp_path, tmp_path / "again", max_skipped=0.01)
