"""A small AVFIT tree in the layout of the authors' release."""

from __future__ import annotations

import json
from pathlib import Path

ASK = "Which object makes the sound? Give its category and box."
DOG = "openimages_000a1b2c3d4e5f60#Dog#-bcdefghij_"


def row(data_set: str, question: str, answer, dim=None, category=None) -> dict:
    """A row with its keys in the published order."""
    return {
        "dataset": data_set,
        "question": question,
        "answer": answer,
        "dim": dim or [640, 480],
        "class_category": category,
    }


FACT = "multimodal_factchecking_type"
PAIR = "000a1b2c3d4e5f60#Dog#-bcdefghij_"
TREE: dict[str, dict[str, list]] = {
    "avsbench/avsbench_train.json": {
        "avsbench_-0zyxwvut9s_5_10": [
            row("avsbench", ASK, "[64, 320, 0, 480]", category="dog barking"),
            row("avsbench", ASK, "(320, 641, 120, 240)", category="male, speech"),
            row("avsbench", ASK, "[64, 320, 0, 480]", category="dog barking"),  # twice
            row("avsbench", ASK, "[64, 64, 0, 480]", category="dog barking"),  # no area
        ],
    },
    "openimages/openimages_train.json": {
        DOG: [row("openimages", "Where is it?", "[0.1, 0.5, 0.25, 1.0]", category="Dog")],
        "openimages_00000000000000ab#Bus$Coach#ABCDEFGHIJK": [
            row("openimages", "", [0.0, 0.5, 6e-05, 0.75])
        ],
    },
    "vggsound/vggsound_train.json": {
        "openimages_vggsound_000a1b2c3d4e5f60#Dog#-bcdefghij__000030": [
            row("openimages", "Where is it?", "[0.1, 0.5, 0.25, 1.0]", category="Dog")
        ],
    },
    "vggss/vggss_test.json": {
        "vggss__1234567890_000010": [row("vggss", ASK, "[0.1, 0.2, 0.3, 1.004]", category="cat")],
    },
    "soundnet/soundnet_test.json": {
        "soundnet_4242": [row("soundnet", ASK, "[0, 12, 50, 100]", [100, 200], "object")],
    },
    "pascal/pascal_test.json": {
        "2008_000123": [row("pascal", ASK, "[0, 50, 20, 200]", [100, 200], "dog")],
    },
    "audioset_temporal/audioset_temporal_train.json": {
        f"audioset_temporal_{PAIR}": [
            row("audioset_strong", "When is it heard?", "[<Dog>, 1.2, 3.4] and [<Dog>, 5, 6.5]"),
        ],
    },
    f"{FACT}1/{FACT}1_train.json": {
        f"{FACT}1_{PAIR}": [
            row(FACT, "Does [0.1,0.2,0.3,0.4] bark? True or False?", "False. A cat is in the box."),
        ],
    },
    f"{FACT}2/{FACT}2_train.json": {
        f"{FACT}2_{PAIR}": [row(FACT, "Is it seen? True or False?", "True")],
    },
    f"{FACT}3/{FACT}3_train.json": {
        f"{FACT}3_{PAIR}": [row(FACT, "From 1 to 2?", "It barks, so the claim is: True.")],
    },
    f"{FACT}4/{FACT}4_train.json": {
        f"{FACT}4_{PAIR}": [row(FACT, "At 2 to 3?", "No, it is not true that it barks then")],
    },
    "music_avqa/music_avqa_train.json": {
        "music_avqa_00000093#1": [row("music_avqa", "How many sound?", "two")],
        "music_avqa_00000093#2": [row("music_avqa", "Is the cello heard?", "yes")],
    },
    "avqa/avqa_train.json": {
        "avqa_-HG3Omg_89c_000030": [row("avqa", "What is seen &amp; heard?", "dog")],
    },
    "valor/valor_train.json": {
        "valor_00yaCdeFgHi_10_20": [
            row("valor", "Describe the video.", "A dog barks."),
            row("valor", "Describe the video.", "A dog is barking at a cat."),
        ],
    },
}
INFERENCE = [
    {
        "image": "None",
        "video": "data/llp/frames/llp_-1qE9mLfpDM_30_40",
        "audio": "data/llp/audios/llp_-1qE9mLfpDM_30_40.mp4.wav",
        "instruction": "When is the speech heard?",
        "response": "[<Speech>, 0.0, 4.0]",
    },
    {
        "image": "None",
        "video": "None",
        "audio": "None",
        "instruction": "Give three tips for staying healthy.",
        "response": "Sleep.",
    },
]


def dumped(items: dict[str, list]) -> str:
    """A `_train` file as the authors' json_dump writes it."""
    return json.dumps({key: {"data": rows} for key, rows in items.items()}, indent=2)


def write(folder: Path) -> list[dict]:
    """Write the annotation files; tell which media belong to them."""
    for name, items in TREE.items():
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / name).write_text(dumped(items))
    path = folder / "data/avqa/avqa_train.json"
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-8-sig"))
    path = folder / "data/llp/llp_val_inference.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"data": INFERENCE}, indent=2))
    stills = "data/openimages/frames"
    return [
        _media(f"{stills}/000a1b2c3d4e5f60.jpg", "data/audioset_sreyan/audios/-bcdefghij_.wav"),
        _media(f"{stills}/00000000000000ab.jpg", "data/audioset_sreyan/audios/ABCDEFGHIJK.wav"),
        _media(f"{stills}/000a1b2c3d4e5f60.jpg", "data/audioset_temporal/audios/-bcdefghij_.wav"),
        _media(f"{stills}/000a1b2c3d4e5f60.jpg", "data/vggsound/audios/-bcdefghij__000030.wav"),
        *(
            _media(f"data/{one}/frames/{key}.mp4_0.jpg", f"data/{one}/audios/{key}.mp4.wav")
            for one, key in (
                ("avsbench", "avsbench_-0zyxwvut9s_5_10"),
                ("vggss", "vggss__1234567890_000010"),
                ("soundnet", "soundnet_4242"),
                ("pascal", "2008_000123"),
                ("music_avqa", "music_avqa_00000093"),
                ("avqa", "avqa_-HG3Omg_89c_000030"),
                ("valor", "valor_00yaCdeFgHi_10_20"),
                ("llp", "llp_-1qE9mLfpDM_30_40"),
            )
        ),
    ]


def _media(image: str, audio: str) -> dict:
    return {"image": image, "audio": audio, "video": None, "seconds": 10.0}
