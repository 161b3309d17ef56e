"""Images and audio clips to begin with, composed when the page starts: none is part of the project.

A model of the mini data set gets scenes of its own things, of which it has seen no such scene. Any
other model, and one whose media are not in the cache, gets shapes and timbres made by our code.
Nothing is fetched.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import soundfile

from meerkat_jax.data.example import Example
from meerkat_jax.mini import classes as table
from meerkat_jax.mini.build import MiniConfig, instances, scene
from meerkat_jax.mini.media import load_media
from meerkat_jax.mini.templates import instruction
from meerkat_jax.mini.thing import MediaSet

SEED = 20_000  # of scenes that no data set of a usual seed holds
KINDS: tuple[tuple[str, str, Callable[[Example], bool]], ...] = (
    (
        "two things, one sounds",
        "arig",
        lambda e: (len(e.image_labels), len(e.audio_labels)) == (2, 1),
    ),
    ("two sounds, one seen", "igatl", lambda e: len(e.audio_labels) == 2 and len(e.boxes) == 1),
    ("heard, not seen", "avfact2", lambda e: not e.matched and len(e.audio_labels) == 1),
)


@dataclasses.dataclass(frozen=True)
class Sample:
    """An image and an audio clip on disk, what they show, and a question that fits."""

    title: str
    image: Path
    audio: Path
    question: str


def compose_samples(
    folder: Path, config: Mapping[str, Any], cache: Path
) -> tuple[list[Sample], str]:
    """One sample of each of `KINDS` in `folder`, and a line on where their media come from."""
    media = _media(config, cache)
    wanted = config["data"].get("mini", {}) if config["data"].get("kind") == "mini" else {}
    mini = MiniConfig(seed=SEED, classes=wanted.get("classes", MiniConfig.classes))
    things = instances(mini, media, "compositions")
    samples, index = [], 0
    for number, (title, task, fits) in enumerate(KINDS):
        while not fits(example := scene(mini, things, "compositions", index)):
            index += 1
        index += 1
        image, audio = folder / f"example{number}.jpg", folder / f"example{number}.wav"
        image.write_bytes(example.image)
        wave, rate = soundfile.read(io.BytesIO(example.audio))
        soundfile.write(audio, wave, rate, "PCM_16")  # which every browser plays, as mu-law is not
        samples.append(Sample(title, image, audio, instruction(task, "train", 0)))
    return samples, media.notes


def _media(config: Mapping[str, Any], cache: Path) -> MediaSet:
    data = config["data"]
    kind = data["mini"].get("media", "auto") if data.get("kind") == "mini" else "procedural"
    here = all((cache / package).is_dir() for package in (table.STAMPS, table.GCOMPRIS))
    if kind == "procedural" or not here:
        return load_media("procedural")
    return load_media("real", cache_dir=cache)
