"""Which image and which sound AVFIT's keys and paths name; `avfit.py` tells their forms."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from meerkat_jax.data.sources.avfit_answers import SETS
from meerkat_jax.data.sources.entry import Place
from meerkat_jax.data.sources.reading import member, name, shown, words
from meerkat_jax.data.sources.skips import RowError

# Folders of the sounds of pairs.
AUDIO_FOLDERS = {
    "audioset_sreyan": ("audios", "unbalanced_train"),
    "audioset_temporal": ("audios",),
    "vggsound": ("audios", "train"),
}
# Data sets whose videos are named by their id on YouTube.
YOUTUBE = ("avsbench", "vggss", "llp", "avqa", "valor")
# What ids of others are ids of, in the words of the sources that share them.
OTHERS = {"soundnet": "flickr", "pascal": "image", "music_avqa": "music_avqa"}

_YOUTUBE_ID = re.compile(r"([A-Za-z0-9_-]{11})(_[0-9]+(\.[0-9]+)?)*")


class Media(NamedTuple):
    """An image and a sound: what to call the two, where they may lie, what no split may share."""

    name: str
    image: tuple[Place, ...]
    audio: tuple[Place, ...]
    keys: tuple[str, ...]


def of_key(root: str, folder: str, key: str) -> tuple[str, Media, str]:
    """(data set, media, label or "") of a key in the file of data set `folder`."""
    known = [one for one in SETS if key.startswith(f"{one}_")]
    data_set = max(known, key=len, default="pascal" if folder == "pascal" else "")
    if key.startswith("openimages_vggsound_"):
        data_set = "vggsound"
    if not data_set:
        raise RowError("key of an unknown form", f"{key[:80]!r}, expected <data set>_<id>")
    audio_set = SETS[data_set].audio_set
    if not audio_set:
        return data_set, _video(root, data_set, key.split("#")[0]), ""
    parts = key.split("#")
    if len(parts) != 3:
        raise RowError(
            "key of an unknown form", f"{key[:80]!r}, expected <...>_<image>#<label>#<id>"
        )
    if "openimages_" in key and audio_set == "audioset_temporal":
        audio_set = "audioset_sreyan"  # as the authors' loader looks it up
    image = parts[0].rsplit("_", 1)[-1]
    return data_set, _pair(root, image, audio_set, parts[2]), parts[1].replace("$", "/")


def of_paths(root: str, data_set: str, row: Any) -> Media:
    """The media of a row of an inference file of `data_set`."""
    image, video, audio = (words(member(row, key), key) for key in ("image", "video", "audio"))
    if audio == "None" or image == video == "None":
        raise RowError("no image or no sound", f"image {image!r}, video {video!r}, audio {audio!r}")
    shown, still = _parts(image if video == "None" else video)
    if video == "None":
        still = still.rsplit(".", 1)[0].removesuffix(".mp4_0")
    heard, stem = _parts(audio)
    stem = stem.removesuffix(".wav").removesuffix(".mp4")
    if shown == "openimages" and heard in AUDIO_FOLDERS:
        return _pair(root, still, heard, stem)
    if shown == heard == data_set and still == stem:
        return _video(root, data_set, still)
    raise RowError("image and audio do not belong together", f"{video[:60]!r}, {audio[:60]!r}")


def _parts(path: str) -> tuple[str, str]:
    """Data set and name of a medium, whatever the folder that the data sets are in."""
    parts = path.split("/")
    if len(parts) < 3:
        raise RowError("path is not <data set>/<folder>/<name>", shown(path))
    return parts[-3], parts[-1]


def _video(root: str, data_set: str, stem: str) -> Media:
    """A still and the sound of one video, looked for with and without the data set in front."""
    ident = name(stem.removeprefix(f"{data_set}_"), "id of a video")
    stems = (f"{data_set}_{ident}", ident)
    frames, audios = f"{root}{data_set}/frames", f"{root}{data_set}/audios"
    found = _YOUTUBE_ID.fullmatch(ident) if data_set in YOUTUBE else None
    return Media(
        f"{data_set}_{ident}",
        tuple(Place(frames, one + end) for one in stems for end in (".mp4_0", "")),
        tuple(Place(audios, one + end) for one in stems for end in (".mp4", "")),
        (f"video:{found[1]}" if found else f"{OTHERS.get(data_set, data_set)}:{ident}",),
    )


def _pair(root: str, image: str, audio_set: str, ident: str) -> Media:
    """An image of Open Images and the sound of a video."""
    image, ident = name(image, "id of an image"), name(ident, "id of a sound")
    found = _YOUTUBE_ID.fullmatch(ident)
    # Clips of AudioSet have the same names in both of its folders.
    folders = [
        audio_set,
        *(one for one in AUDIO_FOLDERS if "audioset" in one and "audioset" in audio_set),
    ]
    return Media(
        f"{image}-{audio_set}-{ident}",
        (Place(f"{root}openimages/frames", image),),
        tuple(
            Place(f"{root}{one}/{folder}", ident)
            for one in dict.fromkeys(folders)
            for folder in AUDIO_FOLDERS[one]
        ),
        (f"image:{image}", f"video:{found[1]}" if found else f"{audio_set}:{ident}"),
    )
