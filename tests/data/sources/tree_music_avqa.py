"""A small MUSIC-AVQA tree in the published form: two JSON arrays, indented."""

from __future__ import annotations

import json
from pathlib import Path


def row(video: str, number: int, kind: list, question: str, values: list, answer: str) -> dict:
    """One row with its keys in the published order."""
    return {
        "video_id": video,
        "question_id": number,
        "type": json.dumps(kind),
        "question_content": question,
        "templ_values": json.dumps(values),
        "question_deleted": 0,
        "anser": answer,
    }


LOUDER = "Is the <Object> on the <LR> louder than the <Object> on the <LR>?"
PLAYING = "Is the <Object> in the video always playing?"
FOUR = ["acoustic_guitar", "left", "piano", "right"]
TRAIN = [
    row("00000093", 12, ["Audio", "Counting"], "How many instruments were heard?", [], "one"),
    row("00000153", 28, ["Audio-Visual", "Existential"], PLAYING, ["electric_bass"], "no"),
    row("va00003871", 29, ["Audio-Visual", "Existential"], PLAYING, ["cello"], "yes"),
    row("00000093", 35, ["Audio-Visual", "Comparative"], LOUDER, FOUR, "yes"),
    row("00000153", 28, ["Audio-Visual", "Existential"], PLAYING, ["electric_bass"], "no"),
]
TEST = [
    row(
        "00000288",
        11,
        ["Visual", "Location"],
        "What kind of instrument is the <LRer> instrument? ",
        ["left"],
        "acoustic_guitar",
    ),
    row(
        "00000301",
        12,
        ["Audio-Visual", "Counting"],
        "How many sounding <Object> in the video\uff1f",
        ["violin"],
        "more than ten",
    ),
    row("eva00001194", 29, ["Audio-Visual", "Existential"], PLAYING, ["cello"], "yes"),
]


def write(folder: Path) -> list[dict]:
    """Write the annotation files; tell which media belong to them."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(TRAIN, indent=2).replace("\n", "\r\n")
    (folder / "avqa-train.json").write_bytes(text.encode("utf-8-sig"))
    text = json.dumps(TEST, indent=2, ensure_ascii=False) + "\n\n"
    (folder / "avqa-test.json").write_bytes(text.encode())
    stills = {"image": "frames/00000153.jpg", "audio": "audio/00000153.wav", "video": None}
    videos = [f"videos/{name}.mp4" for name in ("00000093", "00000288", "00000301")]
    media = [{"image": None, "audio": None, "video": name, "seconds": 60.0} for name in videos]
    return [*media, stills | {"seconds": 60.0}]
