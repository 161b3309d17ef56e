"""OpenImages, AudioSet and VGGSound as they are published, small and with their awkward rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path

LISTS = Path(__file__).with_name("lists")
PERSON_PARTS = {"/m/02p0tk3": "Human body", "/m/04hgtk": "Human head", "/m/0dzct": "Human face"}
BOXES = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,"
    "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
CLICKS = ",".join(f"{axis}Click{n}{axis}" for axis in "XY" for n in (1, 2, 3, 4))
IDS = {
    "dog": "/m/0bt9lr", "cat": "/m/01yrx", "guitar": "/m/0342h", "violin": "/m/07y_7",
    "car": "/m/0k4j", "person": "/m/01g317", "table": "/m/04bcr3",
}  # fmt: skip
NODES = {
    "dog": "/m/0bt9lr", "bark": "/m/05tny_", "cat": "/m/01yrx", "animal": "/m/0jbk",
    "guitar": "/m/0342h", "violin": "/m/07y_7", "car": "/m/0k4j", "speech": "/m/09x0r",
    "squeak": "/m/07q6cd_", "door": "/m/02dgv", "pant": "/t/dd00141",
}  # fmt: skip
PER_CLASS = {"train": 6, "test": 3}  # pictures, and clips
CLASSES = ("dog", "cat", "guitar", "violin", "car")


def read(name):
    with open(LISTS / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def box(image, thing, corners="0.1,0.6,0.2,0.7", flags="0,0,0,0,0", more=""):
    """A row of boxes; corners are XMin, XMax, YMin, YMax."""
    return f"{image},xclick,{IDS[thing]},1,{corners},{flags}{more}"


def images(split):
    """(id, class) of the plain pictures of a split, each with one box."""
    return [
        (f"{'ab'[split == 'test']}{number:02d}{kind:013x}", name)
        for kind, name in enumerate(CLASSES)
        for number in range(PER_CLASS[split])
    ]


def clips(split):
    """(YouTube id, start in seconds, class) of the plain clips of a split."""
    return [
        (f"{'-_'[split == 'test']}{name:_<7}{number:03d}"[:11], 30.0 + number, name)
        for name in CLASSES
        for number in range(PER_CLASS[split])
    ]


def write(folder):
    """All three below `folder`; gives the media that they need."""
    return [*openimages(folder), *audioset(folder), *vggsound(folder)]


def openimages(folder):
    home = folder / "openimages"
    home.mkdir(parents=True, exist_ok=True)
    rows = [f"{row['id']},{_quoted(row['name'])}" for row in read("openimages.csv")]
    rows += [f"{mid},{name}" for mid, name in PERSON_PARTS.items()] + ["/m/04bcr3,Table"]
    (home / "class-descriptions-boxable.csv").write_bytes("\r\n".join(rows).encode())
    train = [BOXES + "," + CLICKS]
    clicks = "," + ",".join(["0.5"] * 8)
    train += [box(image, name, more=clicks) for image, name in images("train")]
    train += [
        box("ff00000000000001", "dog", more=clicks),  # a dog, a cat beside it, and a table
        box("ff00000000000001", "cat", "0.0,0.3,0.5,1.0", more=clicks),  # on the border
        box("ff00000000000001", "table", more=clicks),
        box("ff00000000000001", "dog", more=clicks),  # twice
        box("ff00000000000002", "dog", flags="0,0,1,0,0", more=clicks),  # a group
        box("ff00000000000003", "dog", flags="0,0,0,1,0", more=clicks),  # a drawing
        box("ff00000000000004", "person", more=clicks),  # a general class alone
        box("ff00000000000005", "car", "0.2,0.4,0.2,0.4", flags="-1,-1,-1,-1,-1", more=clicks),
        box("ff00000000000005", "car", "0.5,0.9,0.2,0.4", flags="-1,-1,-1,-1,-1", more=clicks),
    ]
    path = home / "oidv6-train-annotations-bbox.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(train).encode() + b"\n\n")
    test = [BOXES] + [box(image, name) for image, name in images("test")]
    (home / "test-annotations-bbox.csv").write_bytes("\r\n".join(test).encode())
    wanted = [("train", image) for image, _ in images("train")]
    wanted += [("train", f"ff0000000000000{n}") for n in (1, 5)]
    wanted += [("test", image) for image, _ in images("test")]
    return [{"image": f"openimages/{split}/{image}.jpg"} for split, image in wanted]


def _quoted(name):
    return f'"{name}"' if "," in name else name


def ontology():
    """ontology.json of the nodes of `lists/audioset.csv`."""
    return [
        {
            "id": row["id"], "name": row["name"], "description": "", "citation_uri": "",
            "positive_examples": [], "child_ids": row["children"].split(),
            "restrictions": row["restrictions"].split(),
        }
        for row in read("audioset.csv")
    ]  # fmt: skip


def audioset(folder):
    home = folder / "audioset"
    home.mkdir(parents=True, exist_ok=True)
    (home / "ontology.json").write_text(json.dumps(ontology(), indent=2))
    head = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=9\n"
    head += "# YTID, start_seconds, end_seconds, positive_labels\n"
    wanted = []
    for name, split in (("unbalanced_train_segments.csv", "train"), ("eval_segments.csv", "test")):
        rows = [
            f'{video}, {start:.3f}, {start + 10:.3f}, "{_labels(kind)}"'
            for video, start, kind in clips(split)
        ]
        rows.append(f'--general{name[0]}_, 0.000, 10.000, "{NODES["animal"]}"')
        (home / name).write_text(head + "\n".join(rows) + "\n")
        wanted += [
            {"audio": f"audioset/clips/{v}.wav", "seconds": 10.0} for v, _, _ in clips(split)
        ]
    for name, split in (
        ("audioset_train_strong.tsv", "train"),
        ("audioset_eval_strong.tsv", "test"),
    ):
        rows = ["segment_id\tstart_time_seconds\tend_time_seconds\tlabel"]
        for number, (video, start, kind) in enumerate(clips(split)):
            ident = f"{video}_{round(start * 1000)}"
            begin = number % 4
            rows.append(f"{ident}\t{begin:.3f}\t{begin + 2.5:.3f}\t{NODES[kind]}")
            rows.append(f"{ident}\t{begin + 2.25:.3f}\t{begin + 3:.3f}\t{NODES[kind]}")
            if kind == "dog":
                rows.append(f"{ident}\t9.000\t9.500\t{NODES['pant']}")
                rows.append(f"{ident}\t8.000\t8.010\t{NODES['dog']}")  # too short to be told
                rows.append(f"{ident}\t9.980\t10.200\t{NODES['dog']}")  # likewise, in the clip
        (home / name).write_text("\n".join(rows) + "\n")
    return wanted


def _labels(kind):
    more = {"dog": f",{NODES['bark']},{NODES['animal']}", "cat": f",{NODES['animal']}"}
    return NODES[kind] + more.get(kind, "")


def vggsound(folder):
    home = folder / "vggsound"
    home.mkdir(parents=True, exist_ok=True)
    labels = {
        "dog": "dog barking", "cat": "cat meowing", "guitar": "playing acoustic guitar",
        "violin": '"playing violin, fiddle"', "car": "car passing by",
    }  # fmt: skip
    rows = [
        f"{video},{start:.0f},{labels[kind]},{split}"
        for split in PER_CLASS
        for video, start, kind in clips(split)
    ]
    rows.append("--waterfal_,30,waterfall burbling,train")
    (home / "vggsound.csv").write_text("\n".join(rows))
    return [
        {"audio": f"vggsound/clips/{video}_{round(start):06d}.flac", "seconds": 10.0}
        for split in PER_CLASS
        for video, start, _ in clips(split)
    ]
