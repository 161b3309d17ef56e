"""Which things the mini data set knows, and where their pictures and sounds lie in Debian packages.

Chosen by looking and measuring: photographs only, a sound that the thing itself makes, no two with
near-equal mean log-mel spectra or looks (so no badger beside beaver, ram beside goat, cello beside
violin), at least 0.5 s of sound but for the pig, at least 90 pixels on the longer side.

Instance "a" is the cut-out of `tuxpaint-stamps-default`; "b" a photograph (no transparency) and a
recording of `gcompris-qt-data`; "c" another cut-out and sound of the stamps package.
"""

from __future__ import annotations

from typing import NamedTuple

STAMPS = "tuxpaint-stamps-default"
GCOMPRIS = "gcompris-qt-data"
STAMPS_FOLDER = "usr/share/tuxpaint/stamps"
GCOMPRIS_FOLDER = "usr/share/gcompris-qt/rcc"

# name -> path in the stamps folder; the picture adds .png, the sound .ogg
CUTOUTS: dict[str, str] = {
    "bear": "animals/mammals/bears/bear",
    "bison": "animals/mammals/bovines/bison",
    "camel": "animals/mammals/camel/camel",
    "camera": "hobbies/camera_35mm",
    "chimp": "animals/mammals/apes/chimp",
    "cow": "animals/mammals/bovines/cow_white",
    "crow": "animals/birds/crow",
    "cuckoo": "animals/birds/cuckoo",
    "cymbal": "hobbies/music/percussion/cymbal_crash",
    "deer": "animals/mammals/deer/deer",
    "dog": "animals/mammals/dogs/dog",
    "dolphin": "animals/mammals/aquatic/dolphin",
    "donkey": "animals/mammals/equines/donkey",
    "drum": "hobbies/music/percussion/drum_tomtom_floor",
    "duck": "animals/birds/duck",
    "elephant": "animals/mammals/elephant",
    "ferret": "animals/mammals/ferret",
    "firetruck": "vehicles/emergency/firetruck",
    "fox": "animals/mammals/dogs/fox",
    "frog": "animals/amphibians/frog",
    "goat": "animals/mammals/bovines/goat",
    "grasshopper": "animals/insects/grasshopper",
    "hen": "animals/birds/hen",
    "heron": "animals/birds/heron_greatblue_flying",
    "hornet": "animals/insects/hornet",
    "horse": "animals/mammals/equines/horse",
    "koala": "animals/marsupials/koala",
    "lark": "animals/birds/lark",
    "lion": "animals/mammals/cats/lion",
    "mouse": "animals/mammals/rodents/mouse",
    "orca": "animals/mammals/aquatic/orca",
    "owl": "animals/birds/owl",
    "penguin": "animals/birds/penguin",
    "pig": "animals/mammals/pig",
    "rooster": "animals/birds/rooster",
    "saw": "household/tools/saw",
    "seagull": "animals/birds/seagull",
    "sealion": "animals/mammals/aquatic/sea_lion",
    "sheep": "animals/mammals/bovines/sheep",
    "squirrel": "animals/mammals/rodents/squirrel",
    "tiger": "animals/mammals/cats/tiger",
    "toilet": "household/toilet",
    "toucan": "animals/birds/tucan",
    "turkey": "animals/birds/turkey",
    "violin": "hobbies/music/string/violin",
    "vulture": "animals/birds/vulture",
    "whale": "animals/mammals/aquatic/whale",
    "zebra": "animals/mammals/equines/zebra",
}

# other individuals in the same package
MORE_CUTOUTS: dict[str, str] = {
    "cow": "animals/mammals/bovines/cow",
    "duck": "animals/birds/drake",
    "pig": "animals/mammals/pig_golden",
    "sheep": "animals/mammals/bovines/sheep_lamb",
}


class Photo(NamedTuple):
    """A photograph and a recording inside one resource file; `crop` is (x0, y0, x1, y1) in 0..1."""

    image: str
    audio: str
    crop: tuple[float, float, float, float]


PHOTO_RESOURCES = "explore_farm_animals.rcc"
PHOTO_FOLDER = "gcompris/src/activities/explore_farm_animals/resource/animals"

# crops drawn by hand around the animal, which is all a box can mean on an opaque photograph
PHOTOS: dict[str, Photo] = {
    "cow": Photo("cow.webp", "cow.ogg", (0.21, 0.38, 0.93, 0.86)),
    "dog": Photo("dog.webp", "dog.ogg", (0.15, 0.05, 0.95, 0.98)),
    "duck": Photo("duck.webp", "duck.ogg", (0.13, 0.10, 0.92, 0.95)),
    "hen": Photo("chicken.webp", "chickens.ogg", (0.36, 0.04, 0.64, 0.78)),
    "horse": Photo("horse.webp", "horse.ogg", (0.13, 0.25, 0.50, 0.86)),
    "owl": Photo("owl.webp", "owl.ogg", (0.48, 0.20, 0.84, 0.98)),
    "pig": Photo("pig.webp", "pig.ogg", (0.10, 0.20, 0.75, 0.82)),
    "sheep": Photo("sheep.webp", "sheep.ogg", (0.17, 0.05, 0.72, 0.96)),
}
