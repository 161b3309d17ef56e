"""A small AVQA tree in the published form: two JSON arrays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def row(number: int, video: str, question: str, choices: list, answer: Any, kind: str) -> dict:
    """One row with its keys in the published order."""
    return {
        "id": number,
        "video_name": video,
        "video_id": 158 + number,
        "question_text": question,
        "multi_choice": choices,
        "answer": answer,
        "question_relation": ("Both", "View", "Sound")[number % 3],
        "question_type": kind,
    }


BOATS = ["motorboat", "Yacht consignment", "Sailboat set sail", "Consignment car"]
CARS = ["Car", "motorcycle", "siren, horn", "gun fire"]
TRAIN = [
    row(183, "-HG3Omg_89c_000030", "What happened in the video?", BOATS, 1, "Happening"),
    row(184, "_HIPq7T3eF-_000011", "What is the main source of sound?", CARS, 2, "Come From"),
    row(185, "-HG3Omg_89c_000030", 'Why is it "loud"', ["a &amp; b", "wind"], 0, "Why"),
    row(183, "-HG3Omg_89c_000030", "What happened in the video?", BOATS, 1, "Happening"),
]
TEST = [
    row(191, "0012y1s1bJI_000350", " What is next? ", ["a", None, "b", "c"], 2, "Before Next"),
    row(192, "001MzJlnyqc_000020", "What is it used for?", ["1/2", "2", "3", "4"], "0", "Used For"),
]


def write(folder: Path) -> list[dict]:
    """Write the annotation files; tell which media belong to them."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(map(json.dumps, TRAIN))
    (folder / "train_qa.json").write_bytes(f"[\r\n{lines}\r\n]\r\n".encode("utf-8-sig"))
    lines = ",\n".join(map(json.dumps, TEST))
    (folder / "val_qa.json").write_bytes(f"[{lines}]".encode())
    stills = {"image": "frames/_HIPq7T3eF-_000011.png", "audio": "audio/_HIPq7T3eF-_000011.wav"}
    return [
        {"image": None, "audio": None, "video": "videos/-HG3Omg_89c_000030.mp4", "seconds": 10.0},
        stills | {"video": None, "seconds": 10.0},
        {"image": None, "audio": None, "video": "videos/0012y1s1bJI_000350.mp4", "seconds": 10.0},
        {"image": None, "audio": None, "video": "videos/001MzJlnyqc_000020.mp4", "seconds": 10.0},
    ]
