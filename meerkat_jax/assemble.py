"""A resolved configuration and a tokenizer -> the model and what stands before it.

Doors build the same model from the same words here, whether they train, evaluate or answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.alignment.avace import AVACE
from meerkat_jax.alignment.avopt import AVOpT
from meerkat_jax.data.audio import LogMel
from meerkat_jax.data.image import normalise_pixels
from meerkat_jax.data.instructions import PLACES, at_place
from meerkat_jax.data.pipeline import Shapes
from meerkat_jax.data.prompt import Prompt, make_prompt
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.errors import construct, tuples
from meerkat_jax.models.clap import ClapAudio
from meerkat_jax.models.clip import ClipVision
from meerkat_jax.models.connectors import AlignConfig
from meerkat_jax.models.layers import LoraConfig, axis_waves, waves
from meerkat_jax.models.llama import Llama, Placement
from meerkat_jax.models.meerkat import Meerkat
from meerkat_jax.models.rotary import RopeScaling

ALIKE = 2.0  # what names have in common, in lengths of what is their own


@dataclasses.dataclass(frozen=True)
class Assembly:
    """The model with its tokenizer, prompt, log-mel and static shapes."""

    model: Meerkat
    tokenizer: Tokenizer
    prompt: Prompt
    logmel: LogMel
    shapes: Shapes
    placement: Placement | None = None

    def laid(self, placement: Placement | None) -> Assembly:
        """The same model, its arrays where `placement` (training/sharding.py) wants them.

        For parameters that are there; `init` is for the model without.
        """
        llama = self.model.llama.clone(placement=placement)
        return dataclasses.replace(self, model=self.model.clone(llama=llama), placement=placement)

    def used(self, params: dict) -> dict:
        """Parameters as the model takes them; the decoder collects its layers one by one."""
        if self.placement is None:
            return params
        layers = params["llama"]["layers"]
        rest = {name: leaf for name, leaf in params["llama"].items() if name != "layers"}
        whole = self.placement.whole(params | {"llama": rest})
        return whole | {"llama": whole["llama"] | {"layers": layers}}

    def inputs(self, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """On the device: image uint8[B, H, W, 3] and audio float[B, samples] -> pixels, mel.

        A batch whose sounds were left out, float[B, 0], hears silence.
        """
        audio = batch["audio"]
        if audio.shape[1] == 0:
            samples = round(self.shapes.seconds * self.shapes.sample_rate)
            audio = jnp.zeros((len(audio), samples), audio.dtype)
        return normalise_pixels(batch["image"]), self.logmel(audio)

    def sense(self, params: dict, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        """What the towers make of a batch: image and audio tokens as of `Meerkat.sense`."""
        tokens = self.model.apply({"params": params}, *self.inputs(batch), method="sense")
        return jax.tree.map(self.placement.rows, tokens) if self.placement else tokens

    def init(self, key: jax.Array, classes: Sequence[str] = ()) -> dict:
        """Fresh parameters, a plain nested dict.

        The word vectors of `classes`, the names of what can be seen and heard, start as `name_rows`
        says; without them only shapes are right.
        """
        words = sorted({i for name in classes for i in self.tokenizer.encode(name)})
        places = [[self.tokenizer.encode(at_place(p)) for p in column] for column in PLACES]
        side, samples = self.shapes.image_size, round(self.shapes.seconds * self.shapes.sample_rate)
        batch = {
            "image": np.zeros((1, side, side, 3), np.uint8),
            "audio": np.zeros((1, samples), np.float32),
        }

        def fresh(key):
            tokens = jnp.zeros((1, 1, 4), jnp.int32)
            params = self.model.init(key, *self.inputs(batch), tokens)["params"]
            values = self.tokenizer.token_values()
            table = number_rows(params["llama"]["embedding"], values, self.model.grids)
            table = place_rows(table, places, self.model.image_grid)
            common = jax.random.normal(jax.random.fold_in(key, 1), table.shape[1:])
            params["llama"]["embedding"] = name_rows(table, words, common)
            return params

        return jax.jit(fresh)(key)


def number_rows(
    table: jax.Array, values: dict[str, np.ndarray], grids: dict[str, tuple[int, int]]
) -> jax.Array:
    """Start the word vectors of numbers as waves of their values, at the size of the others.

    The waves are those of the places (`layers.grid_waves`) in the picture or in the sound: a number
    is like the tokens that it points to, and what is read at a place is near the number to say.

    table float[C, D]; values float[C] by "kind/place" as of `Tokenizer.token_values`; grids (rows,
    columns) by kind as of `Meerkat.grids`. A thousand coordinates met one by one would each take
    long to learn. What a checkpoint brings replaces them; a tokenizer that spells numbers in digits
    has none.
    """
    scale = jnp.sqrt(jnp.mean(table**2))
    for name, number in values.items():
        rows = np.flatnonzero(~np.isnan(number))
        if not len(rows):
            continue
        kind, place = name.split("/")
        axis = 0 if place.startswith("y") else 1
        places = number[rows] / number[rows].max()
        # waves along one axis fill half of the features
        start = axis_waves(places, grids[kind], axis, table.shape[1]) * 2**0.5
        # the first row tells one kind of number from another
        table = table.at[rows].set((start * scale + table[rows[0]]) * 0.5**0.5)
    return table


def place_rows(
    table: jax.Array, places: Sequence[Sequence[list[int]]], grid: tuple[int, int]
) -> jax.Array:
    """Start the word vectors of places in the picture ("on the left") as waves of their middles.

    As numbers do: what is written then attends to the tokens that it points to.

    table float[C, D]; places, the token ids of each place by column and row, of which those of
    several tokens are left as they are; grid (rows, columns) of the image tokens.
    """
    middles = (np.arange(len(places)) + 0.5) / len(places)
    across, down = (axis_waves(middles, grid, axis, table.shape[1]) for axis in (1, 0))
    found = [
        (ids[0], x + y)
        for column, x in zip(places, across, strict=True)
        for ids, y in zip(column, down, strict=True)
        if len(ids) == 1
    ]
    if not found:
        return table
    rows, start = map(np.array, zip(*found, strict=True))
    scale = jnp.sqrt(jnp.mean(table**2))
    # the first row tells places from numbers
    return table.at[rows].set((start * scale + table[rows[0]]) * 0.5**0.5)


def name_rows(table: jax.Array, words: Sequence[int], common: jax.Array) -> jax.Array:
    """Start the word vectors of class names with much in common.

    Names then attend to names from the beginning, not to the many tokens of picture and sound, and
    "is this name already written?" is learned behind a picture as quickly as without one. Half of
    what is their own are waves of their place in `words`: without, some runs never learn it.

    table float[C, D]; words, rows of it, each once; common float[D] of unit variance.
    """
    if not words:
        return table
    rows, count = jnp.asarray(words), len(words)
    scale = jnp.sqrt(jnp.mean(table**2))
    order = waves((np.arange(count) + 0.5) / count, table.shape[1], 4) * scale
    own = (table[rows] + order) * 0.5**0.5
    return table.at[rows].set(own + ALIKE * scale * common)


def assemble(config: Mapping, tokenizer: Tokenizer) -> Assembly:
    """Build the model that `config` (data, model, prompt) describes."""
    parts, data = config["model"], config["data"]
    prompt = make_prompt(tokenizer, config["prompt"])
    llama = dict(parts["llama"]) | {
        "vocab_size": tokenizer.padded_vocab_size,
        "lora": _maybe(LoraConfig, parts["llama"], "lora"),
        "rope_scaling": _maybe(RopeScaling, parts["llama"], "rope_scaling"),
    }
    model = Meerkat(
        image_tower=construct(ClipVision, parts["image"], "model.image"),
        audio_tower=construct(ClapAudio, tuples(parts["audio"]), "model.audio"),
        llama=construct(Llama, llama, "model.llama"),
        avopt=construct(AVOpT, parts["avopt"], "model.avopt"),
        avace=construct(AVACE, parts["avace"], "model.avace"),
        prefix=prompt.prefix,
        connector=parts["connector"],
        image_pool=parts.get("image_pool", 1),
        conv_align=construct(AlignConfig, tuples(parts.get("conv_align", {})), "model.conv_align"),
        words=tokenizer.vocab_size,
    )
    shapes = Shapes(
        image_size=parts["image"]["image_size"],
        sample_rate=data["sample_rate"],
        seconds=data["seconds"],
        runs=data["runs"],
        length=data["length"],
        room=data["room"],
        answer=data["answer"],
        boxes=data.get("boxes", 4),
        names=data.get("names", 4),
        lengths=tuple(data.get("lengths", ())),
    )
    logmel = construct(LogMel, {"sample_rate": data["sample_rate"], **parts["mel"]}, "model.mel")
    return Assembly(model, tokenizer, prompt, logmel, shapes)


def _maybe(kind: Callable, llama: Mapping, key: str) -> Any:
    """What the language model's section says under `key`, as a `kind`; None if nothing."""
    own = llama.get(key)
    return construct(kind, tuples(own), f"model.llama.{key}") if own else None
