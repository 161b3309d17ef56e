"""A work directory as training leaves it, but untrained: random weights, procedural media."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import soundfile
from PIL import Image

from meerkat_jax.api import Meerkat
from meerkat_jax.build import Assembly
from meerkat_jax.core import config as configs
from meerkat_jax.core.trees import flatten, merge, split, unflatten
from meerkat_jax.core.workdir import write_config
from meerkat_jax.data.dataset import DataSet
from meerkat_jax.from_config import build_model, open_data
from meerkat_jax.weights.checkpoints import Checkpoints
from tests.tiny import get_config

STEP = 7
_FOLDERS: list[tempfile.TemporaryDirectory] = []  # gone when the tests end


@dataclasses.dataclass(frozen=True, eq=False)
class Made:
    """The folder, the cache of its data, and the parameters that were written."""

    workdir: Path
    cache: Path
    data: DataSet
    params: dict


@functools.cache
def made() -> Made:
    """Made once per process."""
    folder = tempfile.TemporaryDirectory()
    _FOLDERS.append(folder)
    cache, workdir = Path(folder.name, "cache"), Path(folder.name, "run")
    config = configs.to_json(get_config())
    data = open_data(config["data"], cache)
    workdir.mkdir()
    write_config(workdir, config)
    data.tokenizer.save(workdir)
    assembly = build_model(config, data.tokenizer)
    params = invented(assembly, config, data.classes)
    save(workdir, params, config["trainable"], data)
    return Made(workdir, cache, data, params)


def invented(assembly: Assembly, config: dict, classes: tuple[str, ...]) -> dict:
    """Weights so large that answers differ from image to image and from word to word.

    The frozen ones, which a checkpoint does not hold, are those of the config's seed.
    """

    def fresh():
        return split(assembly.init(jax.random.key(config["seed"]), classes), config["trainable"])

    rng, flat = np.random.default_rng(1), flatten(jax.eval_shape(fresh)["trainable"])
    made = {
        path: rng.normal(path.endswith("scale"), 0.5, leaf.shape).astype(leaf.dtype)
        for path, leaf in flat.items()
    }
    frozen = jax.jit(lambda: fresh()["frozen"])()  # the compiler drops the rest
    return merge(unflatten(made), frozen)


def save(workdir: Path, params: dict, trainable, data: DataSet, **meta) -> None:
    """A checkpoint like those of train.py."""
    base = {"tokenizer": data.tokenizer.sha256, "data": data.folder.name}
    meta = base | {"classes": list(data.classes)} | meta
    state = {"trainable": split(params, trainable)["trainable"]}
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(STEP, state, {}, meta, wait=True)


@functools.cache
def model() -> Meerkat:
    """Loaded once per process, so that programs are compiled once."""
    return Meerkat.load(made().workdir)


@contextlib.contextmanager
def fast_compilation() -> Iterator[None]:
    """Programs are compiled in a third of the time within, and run slower."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def make_image(seed: int, side: int = 48) -> Image.Image:
    """Coloured squares."""
    squares = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(squares).resize((side, side), Image.Resampling.NEAREST)


def write_media(folder: Path) -> None:
    """Two images and two sounds: 0.png, 1.png, 0.wav, 1.wav."""
    for i in range(2):
        make_image(i + 3, 96).save(folder / f"{i}.png")
        soundfile.write(folder / f"{i}.wav", tone(440 * (i + 1)), 16000)


def png(seed: int) -> bytes:
    """`image` as a file."""
    file = io.BytesIO()
    make_image(seed).save(file, "PNG")
    return file.getvalue()


def tone(hertz: float, seconds: float = 2.0, rate: int = 16000) -> np.ndarray:
    """float32[samples]."""
    return 0.3 * np.sin(
        2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate, dtype="float32"
    )


def wav(samples: np.ndarray, rate: int = 16000, subtype: str = "PCM_16") -> bytes:
    """Samples as a file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, subtype, format="WAV")
    return file.getvalue()
