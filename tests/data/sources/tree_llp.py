"""A small LLP tree in the published form: tabs, a header, whole seconds."""

from __future__ import annotations

from pathlib import Path

TEST = [
    "-YdbENYcIyE_23_33\tBaby_cry_infant_cry",
    "KSRjje7GH44_60_70\tBlender,Frying_(food),Speech",
    "AKVyIQoSyBA_131.8_141.8\tMotorcycle,Violin_fiddle",  # a start with a decimal
    "_-silent__x_0_10\tDog,Speech",  # heard and seen at different times
    "17iGUal2M5w_10_20\tSinging",  # heard only
    "KSRjje7GH44_60_70\tBlender,Frying_(food),Speech",  # twice
]
AUDIO = [
    "-YdbENYcIyE_23_33\t0\t4\tBaby_cry_infant_cry",
    "4O9rI-FpqLg_10_20\t0\t10\tCheering",  # of validation
    "KSRjje7GH44_60_70\t8\t10\tBlender",
    "KSRjje7GH44_60_70\t0\t8\tSpeech",
    "KSRjje7GH44_60_70\t2\t9\tFrying_(food)",
    "KSRjje7GH44_60_70\t8\t10\tBlender",  # twice
    "AKVyIQoSyBA_131.8_141.8\t0\t3\tMotorcycle",
    "AKVyIQoSyBA_131.8_141.8\t2\t5\tMotorcycle",  # overlaps
    "AKVyIQoSyBA_131.8_141.8\t7\t10\tMotorcycle",
    "AKVyIQoSyBA_131.8_141.8\t4\t6\tViolin_fiddle",
    "_-silent__x_0_10\t0\t5\tDog",
    "17iGUal2M5w_10_20\t0\t10\tSinging",
]
VISUAL = [
    "-YdbENYcIyE_23_33\t0\t10\tBaby_cry_infant_cry",
    "KSRjje7GH44_60_70\t0\t10\tBlender",
    "KSRjje7GH44_60_70\t5\t7\tFrying_(food)",
    "4O9rI-FpqLg_10_20\t0\t10\tCheering",
    "AKVyIQoSyBA_131.8_141.8\t1\t9\tMotorcycle",
    "AKVyIQoSyBA_131.8_141.8\t5\t6\tViolin_fiddle",
    "_-silent__x_0_10\t5\t10\tDog",
    "_-silent__x_0_10\t0\t10\tSpeech",
]


def write(folder: Path) -> list[dict]:
    """Write the annotation files; tell which media belong to them."""
    folder.mkdir(parents=True, exist_ok=True)
    events = "filename\tonset\toffset\tevent_labels"
    text = "\n".join(["filename\tevent_labels", *TEST, "", ""])
    (folder / "AVVP_test_pd.csv").write_bytes(text.encode("utf-8-sig"))
    (folder / "AVVP_eval_audio.csv").write_bytes("\r\n".join([events, *AUDIO, ""]).encode())
    (folder / "AVVP_eval_visual.csv").write_bytes("\n".join([events, *VISUAL]).encode())
    stills = {"image": "frames/KSRjje7GH44_60_70.jpg", "audio": "audio/KSRjje7GH44.wav"}
    return [
        {"image": None, "audio": None, "video": "videos/-YdbENYcIyE.mp4", "seconds": 10.0},
        stills | {"video": None, "seconds": 10.0},
        {
            "image": None,
            "audio": None,
            "video": "videos/AKVyIQoSyBA_131.8_141.8.mp4",
            "seconds": 10.0,
        },
    ]
