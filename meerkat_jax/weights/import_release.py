"""A model that the authors' code trained -> the part "meerkat" of a store.

Towers and language model of such a folder are converted as any others (weights/convert.py); here is
what no published model has: their connectors, the rows of the tokens that they added, their LoRA.
It is kept under our own paths, with what `config.model` must say to take it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.alignment.avace import AVACE
from meerkat_jax.alignment.avopt import AVOpT
from meerkat_jax.core.errors import construct, tuples
from meerkat_jax.core.trees import flatten
from meerkat_jax.meerkat import Meerkat
from meerkat_jax.models.connectors import AlignConfig
from meerkat_jax.nn.dense import LoraConfig
from meerkat_jax.weights import read_release

NAME = "meerkat"  # of the part


def import_release(
    folder: Path, towers: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, np.ndarray], tuple[Path, ...]]:
    """(what config.model must say, {path: leaf}, source files) of a folder of the release.

    towers: the Flax modules of its parts by kind, "clip", "clap" and "llama". Raises UserError for
    whatever of their tensors is unknown, missing or misshaped.
    """
    parts = read_release.read_release(folder)
    options = read_release.options(parts)
    leaves = read_release.leaves(parts, _shapes(towers, options))
    return options, leaves, parts["modules"].files


def _shapes(towers: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of each leaf of the whole model, by path."""
    clip, clap, llama = (towers[kind] for kind in ("clip", "clap", "llama"))
    if "llama" in options:
        lora = construct(LoraConfig, options["llama"]["lora"], "lora")
        llama = llama.clone(lora=lora)
    model = Meerkat(
        image_tower=clip,
        audio_tower=clap,
        llama=llama,
        avopt=AVOpT(),
        avace=AVACE(heads=1),
        prefix=((0,), "image", "audio"),
        connector=options["connector"],
        conv_align=construct(AlignConfig, tuples(options["conv_align"]), "conv_align"),
    )

    def init(key: jax.Array) -> dict:
        pixels = jnp.zeros((1, clip.image_size, clip.image_size, 3))
        mel = jnp.zeros((1, clap.frames, clap.mel_bins))
        return model.init(key, pixels, mel, jnp.zeros((1, 1, 4), jnp.int32))["params"]

    return {p: leaf.shape for p, leaf in flatten(jax.eval_shape(init, jax.random.key(0))).items()}
