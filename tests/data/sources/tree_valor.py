"""A small VALOR-32K tree in the published form: two JSON arrays."""

from __future__ import annotations

import json
from pathlib import Path

SHORT = "4O9rI-FpqLg_21.500_25.500"
TRAIN = [
    {"video_id": "-DSNfC2EJhU_20.000_30.000", "desc": 'He said "go", and off they went.'},
    {"video_id": "_mB-DrTf79o_130.000_140.000", "desc": " A man &amp; a  dog\nsang. "},
    {"video_id": SHORT, "desc": "Waves, wind / rain [loud]."},
    {"video_id": "-DSNfC2EJhU_20.000_30.000", "desc": "Somebody speaks."},
    {"video_id": "_mB-DrTf79o_130.000_140.000", "desc": "A man & a dog sang."},
]
TEST = [
    {
        "video_id": "HSDNx-wvj7Y_36.000_46.000",
        "desc": "Ein exposé, followed by a whale\uff0cand so on.",
    }
]


def write(folder: Path) -> list[dict]:
    """Write the annotation files; tell which media belong to them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(map(json.dumps, TRAIN))
    (folder / "desc_train.json").write_bytes(f"[\n{lines}\n]".encode("utf-8-sig"))
    text = json.dumps(TEST, ensure_ascii=False).replace("}, {", "},\r\n{")
    (folder / "desc_test.json").write_bytes((text + "\r\n\r\n").encode())
    stills = {"image": "frames/_mB-DrTf79o_130.000_140.000.jpg"}
    stills |= {"audio": "audio/_mB-DrTf79o_130.000_140.000.flac", "video": None, "seconds": 10.0}
    return [
        stills,
        video("-DSNfC2EJhU_20.000_30.000", 10.0),
        video(SHORT, 4.0),
        video("HSDNx-wvj7Y_36.000_46.000", 10.0),
    ]


def video(name: str, seconds: float) -> dict:
    """A clip that is there as a video."""
    return {"image": None, "audio": None, "video": f"videos/{name}.mp4", "seconds": seconds}
