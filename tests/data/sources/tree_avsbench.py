"""A small AVSBench single-source tree: the table and masks, in the published folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

TABLE = (
    "name,start,category,split\r\n"
    "-d9u2CymIxc,0,helicopter,train\r\n"
    "_G3-4D-Mxoo,5,horse_clip-clop,test\r\n"
    "0d9u2CymIxc,0,playing_ukulele,val\r\n"
    "2fIX-p9h_q0,0,playing_ukulele,train\r\n"
    "2fIX-p9h_q0,0,playing_ukulele,train\r\n"
    "nosplit0001,0,playing_ukulele,valid\r\n"
    "../nofolder,0,playing_ukulele,train\r\n"
    "nocategory1,0,,train\r\n"
    "fewfields01,0\r\n"
    "nomask00001,0,dog_barking,train\r\n"
    "emptymask01,0,dog_barking,train\r\n"
    "brokenmask1,0,dog_barking,train"
)


def write(folder: Path) -> list[dict]:
    """Write table and masks; tell which media belong to them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "s4_meta_data.csv").write_bytes(TABLE.encode("utf-8-sig"))
    mask(folder, "train/helicopter/-d9u2CymIxc", 1, [(10, 20, 30, 60)])
    for number in range(1, 6):
        mask(folder, "test/horse_clip-clop/_G3-4D-Mxoo", number, [(0, 0, number * 40, 224)])
    mask(folder, "train/playing_ukulele/2fIX-p9h_q0", 1, [(0, 0, 8, 8), (100, 200, 224, 224)])
    mask(folder, "train/dog_barking/emptymask01", 1, [])
    broken = mask(folder, "train/dog_barking/brokenmask1", 1, [(0, 0, 9, 9)])
    broken.write_bytes(broken.read_bytes()[:60])
    train = "s4_data/raw_videos/train/helicopter/-d9u2CymIxc.mp4"
    return [
        {"image": None, "audio": None, "video": train, "seconds": 5.0},
        *(stills("test/horse_clip-clop", "_G3-4D-Mxoo", number) for number in range(1, 6)),
        stills("train/playing_ukulele", "2fIX-p9h_q0", 1),
    ]


def stills(below: str, name: str, number: int) -> dict:
    """A frame and the sound of its clip."""
    image = f"s4_data/visual_frames/{below}/{name}/{name}_{number}.png"
    audio = f"s4_data/audio_wav/{below}/{name}.wav"
    return {"image": image, "audio": audio, "video": None, "seconds": 5.0}


def mask(folder: Path, clip: str, number: int, boxes: list, mode: str = "L") -> Path:
    """Write a mask that is white in `boxes` of x0, y0, x1, y1 pixels."""
    pixels = np.zeros((224, 224), np.uint8)
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = 255
    path = folder / "s4_data/gt_masks" / clip / f"{Path(clip).name}_{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path)
    return path
