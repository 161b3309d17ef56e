"""A small VGG-SS tree in the published form: one JSON array on one line."""

from __future__ import annotations

import json
from pathlib import Path

BAD = -2.8823037615171176e16  # as it stands in the published file
ROWS = [
    {
        "file": "-2-wdcN5vOw_000017",
        "class": "female speech, woman speaking",
        "bbox": [[0.45, 0.190625, 0.584375, 0.47812499999999997]],
    },
    {"file": "_gEvCUcZ6w8_000030", "class": "police car (siren)", "bbox": [[0, 0, 1.0, 1]]},
    {
        "file": "ORaz32CQ29k_000002",
        "class": "coyote howling",
        "bbox": [[0.121875, 0.171875, 0.6, 0.853125], [0.765625, 0.275, 0.984375, 0.565625]],
    },
    {
        "file": "Db6Hjt0x28k_000056",
        "class": "Tom &amp; Jerry / [cartoon]",
        "bbox": [[0.384375, 0.859375, 0.696875, BAD], [0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 1.0, 1.0]],
    },
    {"file": "M1P1xla8rg0_000000", "class": "skidding", "bbox": [[0.26875, 1.0, 0.753125, 1.0]]},
    {"file": "ORaz32CQ29k_000012", "class": "dog baying", "bbox": [[0.25, 0.5, 0.75, 1.0]]},
    {"file": "ORaz32CQ29k_000012", "class": "dog baying", "bbox": [[0.25, 0.5, 0.75, 1.0]]},
    {"file": "ORaz32CQ29k_000012", "class": "dog baying", "bbox": [[0.0, 0.0, 0.125, 0.25]]},
    {
        "file": "manyboxes01_000001",
        "class": "duck",
        "bbox": [[0, 0, 1, n / 17] for n in range(1, 18)],
    },
]


def write(folder: Path) -> list[dict]:
    """Write the annotation file; tell which media belong to it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vggss.json").write_text(json.dumps(ROWS))
    return [
        stills("-2-wdcN5vOw_000017"),
        stills("_gEvCUcZ6w8_000030"),
        video("videos/ORaz32CQ29k.mp4", 22.0),
        video("clips/Db6Hjt0x28k_000056.mp4", 10.0),
    ]


def stills(file: str) -> dict:
    """A clip of which frame and sound are there."""
    media = {"image": f"frames/{file}.jpg", "audio": f"audio/{file}.wav"}
    return media | {"video": None, "seconds": 10.0}


def video(path: str, seconds: float) -> dict:
    """A clip, or what it was cut from, as a video."""
    return {"image": None, "audio": None, "video": path, "seconds": seconds}
