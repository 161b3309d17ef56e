"""Where parameters start when nothing is published for them: initialisers of the mini model.

Modules start by plain published rules (LeCun normal, normal with 0.02). A model of 2 M parameters
that learns in minutes wants more: small residual branches, attention that begins by similarity,
positions and numbers as sines, so that near ones look alike. `INITIALISERS` goes to `build`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from meerkat_jax.build import Assembly
from meerkat_jax.mini.templates import PLACES, at_place
from meerkat_jax.mini.tokenizer import token_values

ALIKE = 2.0  # what names have in common, in lengths of what is their own

# What a residual branch adds starts at a tenth of the usual size, so that at first tokens keep what
# they are (the published models shrink their branches, too): models that start from nothing learn
# in a third of the steps (NOTES.md).
small_residual_init = nn.initializers.variance_scaling(0.01, "fan_in", "truncated_normal")


def sincos_embedding(places: np.ndarray, width: int, finest: float) -> np.ndarray:
    """Numbers in 0..1 as sines and cosines, so that near numbers look alike.

    float[N] -> float32[N, width] of mean square 1, from half a wave to `finest` waves over 0..1.
    """
    turns = np.geomspace(0.5, max(finest, 0.5), -(-width // 2))
    angle = 2 * np.pi * np.asarray(places)[:, None] * turns
    pairs = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)[:, :width]
    return np.sqrt(2.0) * pairs.astype(np.float32)


def axis_embedding(places: np.ndarray, grid: tuple[int, int], axis: int, width: int) -> np.ndarray:
    """Places in 0..1 along an axis of a grid (0: down the rows, 1: across the columns) as waves.

    float[N] -> float32[N, width]: one half of the width is for either axis, the other half is 0.
    """
    half = width // 2
    own = slice(half, None) if axis else slice(half)
    features = np.zeros((len(places), width), np.float32)
    features[:, own] = sincos_embedding(places, (half, width - half)[axis], grid[axis] / 2)
    return features


def grid_embedding(grid: tuple[int, int], width: int) -> np.ndarray:
    """Where the learned places start: float[rows * columns, width], near places alike."""
    rows, columns = (
        axis_embedding((np.arange(count) + 0.5) / count, grid, axis, width)
        for axis, count in enumerate(grid)
    )
    return np.repeat(rows, len(columns), axis=0) + np.tile(columns, (len(rows), 1))


def mimetic_init(gain: float, which: int = 0, back: bool = False) -> Callable:
    """An initializer that gives orthogonal projection number `which`, whatever the key.

    float[D, H * Dh], or with `back` that turned round, float[H * Dh, D]. Queries and keys that
    begin alike score tokens by their likeness, times `gain`; a value and an output projection back
    pass on what they meet, times `gain`. Attention that starts so needs not find out first that
    tokens of one meaning belong together. (With fewer key-value heads than heads the shapes differ,
    and so do the projections.) Source: Trockman & Kolter, Mimetic initialization of self-attention
    layers (arXiv 2305.09828).
    """

    def init(_: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        shape = shape[::-1] if back else shape
        start = nn.initializers.orthogonal(gain**0.5)(jax.random.key(which), shape, dtype)
        return start.T if back else start

    return init


def image_positions(_: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    """CLIP's positions float[1 + V, D]: sines not much smaller than patches; 0 for the class token.

    Small random rows beside patches of 20 times their size stay unheard for thousands of steps.
    """
    side = math.isqrt(shape[0] - 1)
    rows = 0.3 * grid_embedding((side, side), shape[1])
    return jnp.concatenate([jnp.zeros((1, shape[1])), rows]).astype(dtype)


def token_positions(key: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    """Positions float[rows, columns, D] of the tokens of a grid.

    Sines, and one row for all, by which image and audio tokens of one name differ.
    """
    return grid_embedding(shape[:2], shape[2]).reshape(shape) + jax.random.normal(key, shape[2:])


# Arguments of the modules, by their section of the config.
INITIALISERS = {
    "image": {"residual_init": small_residual_init, "position_init": image_positions},
    "audio": {"residual_init": small_residual_init},
    "avace": {"similarity_init": mimetic_init(1.0)},
    "llama": {
        "kernel_inits": FrozenDict(
            {
                "q": mimetic_init(0.9),
                "k": mimetic_init(0.9),
                "v": mimetic_init(0.3, 1),
                "o": mimetic_init(0.3, 1, back=True),
                "down": small_residual_init,
            }
        )
    },
    "model": {"position_init": token_positions},
}


def start_embedding(assembly: Assembly, params: dict, key: jax.Array, classes: Sequence[str]):
    """Fresh `params` whose word vectors of numbers, places and class names start as said below."""
    words = sorted({i for name in classes for i in assembly.tokenizer.encode(name)})
    places = [[assembly.tokenizer.encode(at_place(p)) for p in column] for column in PLACES]
    table = params["llama"]["embedding"]
    table = number_rows(table, token_values(assembly.tokenizer), assembly.model.grids)
    table = place_rows(table, places, assembly.model.image_grid)
    common = jax.random.normal(jax.random.fold_in(key, 1), table.shape[1:])
    embedding = name_rows(table, words, common)
    return params | {"llama": params["llama"] | {"embedding": embedding}}


def number_rows(
    table: jax.Array, values: dict[str, np.ndarray], grids: dict[str, tuple[int, int]]
) -> jax.Array:
    """Start the word vectors of numbers as waves of their values, at the size of the others.

    The waves are those of the places (`grid_embedding`) in the image or in the sound: a number
    is like the tokens that it points to, and what is read at a place is near the number to say.

    table float[C, D]; values float[C] by "kind/place" as of `token_values`; grids (rows,
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
        start = axis_embedding(places, grids[kind], axis, table.shape[1]) * 2**0.5
        # the first row tells one kind of number from another
        table = table.at[rows].set((start * scale + table[rows[0]]) * 0.5**0.5)
    return table


def place_rows(
    table: jax.Array, places: Sequence[Sequence[list[int]]], grid: tuple[int, int]
) -> jax.Array:
    """Start the word vectors of places in the image ("on the left") as waves of their middles.

    As numbers do: what is written then attends to the tokens that it points to.

    table float[C, D]; places, the token ids of each place by column and row, of which those of
    several tokens are left as they are; grid (rows, columns) of the image tokens.
    """
    middles = (np.arange(len(places)) + 0.5) / len(places)
    across, down = (axis_embedding(middles, grid, axis, table.shape[1]) for axis in (1, 0))
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

    Names then attend to names from the beginning, not to the many tokens of image and audio, and
    "is this name already written?" is learned behind an image as quickly as without one. Half of
    what is their own are waves of their place in `words`: without, some runs never learn it.

    table float[C, D]; words, rows of it, each once; common float[D] of unit variance.
    """
    if not words:
        return table
    rows, count = jnp.asarray(words), len(words)
    scale = jnp.sqrt(jnp.mean(table**2))
    order = sincos_embedding((np.arange(count) + 0.5) / count, table.shape[1], 4) * scale
    own = (table[rows] + order) * 0.5**0.5
    return table.at[rows].set(own + ALIKE * scale * common)
