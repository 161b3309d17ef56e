"""A small file of a user's own annotations."""

from __future__ import annotations

import json
from pathlib import Path

PIXELS = {"pixels": True, "size": [640, 480]}
DOG = ["dog", 0.1, 0.25, 0.5, 1.0]
LEAST = {
    "image": "dogs/1.jpg",
    "audio": "dogs/1.wav",
    "questions": [{"task": "arig", "boxes": [DOG]}],
}
FULL = {
    "id": "-film a/12",
    "split": "test",
    "group": "film a",
    "image": "films/-a b.x.mp4",
    "image_at": 2.5,
    "audio": "films/-a b.x.mp4",
    "audio_at": 1,
    "image_labels": ["dog", "cat, black"],
    "audio_labels": ["dog"],
    "matched": False,
    "boxes": [["cat, black", 64, 0, 640, 480]],
    **PIXELS,
    "questions": [
        {"task": "arig", "boxes": [['say "a/b"', 64, 48, 320, 480]], **PIXELS},
        {"task": "igatl", "segments": [["dog", 0.5, 2.0], ["dog", 3, 4.25]]},
        {"task": "avfact1", "boxes": [DOG], "answer": True},
        {"task": "avfact2", "answer": False, "response": "I hear nothing: False."},
        {"task": "avfact3", "boxes": [DOG], "segments": [["dog", 4, 5]], "answer": False},
        {"task": "avfact4", "segments": [["dog", 4, 5]], "answer": True},
        {"task": "avfact4", "instruction": "Dogs?\nTrue or False?", "answer": True},
        {"task": "avqa", "instruction": "How many dogs bark?", "answer": 1},
        {"task": "avqa", "instruction": "Is it a dog?", "answer": True, "response": "Yes, it is."},
        {"task": "avqa", "instruction": "What is it?", "response": "a dog"},
        {"task": "avc", "captions": ["A dog barks at a cat.", "A barking dog."]},
        {"task": "avc", "instruction": "Caption?", "response": "A dog é."},
    ],
}  # fmt: skip
PLAIN = {
    "image": "2.png",
    "audio": "dogs/1.wav",
    "questions": [{"task": "avfact2", "answer": True}],
}
ROWS = [LEAST, FULL, PLAIN, LEAST]  # the last is twice


def write(folder: Path) -> list[dict]:
    """Write the annotation file; tell which media belong to it."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    text = "\r\n".join([*lines[:2], "", *lines[2:], "", ""])
    (folder / "annotations.jsonl").write_bytes(text.encode("utf-8-sig"))
    audio = "dogs/1.wav"
    return [
        {"image": "dogs/1.jpg", "audio": audio, "video": None, "seconds": 10.0},
        {"image": None, "audio": None, "video": "films/-a b.x.mp4", "seconds": 11.0},
        {"image": "2.png", "audio": audio, "video": None, "seconds": 10.0},
    ]
