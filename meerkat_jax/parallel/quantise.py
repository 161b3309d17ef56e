"""A frozen decoder in fewer bits: int8 with a scale per output, or nf4 with one per 128 inputs.

The kernels of the decoder's layers are nearly all of a large model, and no gradient changes them.
A quantised kernel is two leaves in the place of one, `kernel/int8` or `kernel/nf4` and
`kernel/scale`; they are laid out, gathered and scanned like any other. In the layer that uses it
(`parallel/placement.py`) nf4 becomes a kernel again, so one layer is whole at a time; int8 is
multiplied as it is, and what comes out is scaled.

Sources: Dettmers et al. 2022 (arXiv 2208.07339, int8 by absolute maximum), Dettmers et al. 2023
(arXiv 2305.14314, section 3: the levels of nf4 are quantiles of a normal distribution).

Letters: I inputs, O outputs, T tiles of `TILE` inputs; leading axes (layers) are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten, unflatten

KINDS = ("none", "int8", "nf4")
NAMES = ("q", "k", "v", "o", "gate", "up", "down")
KERNELS = re.compile(rf"^llama/layers/({'|'.join(NAMES)})/kernel$")
PART = re.compile(r"/kernel/(int8|nf4|scale)$")
TILE = 128
FARTHEST = 0.9677083  # the outermost quantile of nf4, as its authors chose it


def nf4_levels() -> np.ndarray:
    """The 16 numbers of nf4, float32[16] from -1 to 1 in order; one of them is 0."""
    with jax.ensure_compile_time_eval():
        above = ndtri(jnp.linspace(FARTHEST, 0.5, 9)[:-1])
        below = -ndtri(jnp.linspace(FARTHEST, 0.5, 8)[:-1])
        levels = np.sort(np.concatenate([above, below, np.zeros(1)]))
    return (levels / levels.max()).astype(np.float32)


def check_kind(kind: str, name: str = "quantise") -> None:
    """UserError unless `kind` is one of `KINDS`; `name` is what the user calls it."""
    if kind not in KINDS:
        raise UserError(f"{name} is {kind!r}; expected one of {', '.join(KINDS)}")


def quantise(kernel: jax.Array, kind: str) -> dict[str, jax.Array]:
    """A kernel float[..., I, O] as two leaves.

    {"int8": int8[..., I, O], "scale": float32[..., 1, O]} or {"nf4": uint8[..., I / 2, O], "scale":
    float32[..., I / TILE, O]}. Two numbers of nf4 share a byte: those of a tile's first half lie in
    its lower four bits. Raises UserError for an unknown kind, and for inputs that are no whole
    tiles.
    """
    *lead, inputs, outputs = kernel.shape
    wide = kernel.astype(jnp.float32)
    if kind == "int8":
        scale = jnp.abs(wide).max(axis=-2, keepdims=True) / 127
        numbers = jnp.round(wide / jnp.where(scale > 0, scale, 1))
        return {"int8": numbers.astype(jnp.int8), "scale": scale}
    check_kind(kind, "config.quantise")
    if inputs % TILE:
        raise UserError(f"nf4: a kernel of {inputs} inputs is no whole tiles of {TILE}; use int8")
    tiles = wide.reshape(*lead, inputs // TILE, TILE, outputs)
    scale = jnp.abs(tiles).max(axis=-2, keepdims=True)
    levels = nf4_levels()
    between = (levels[1:] + levels[:-1]) / 2
    codes = jnp.searchsorted(between, tiles / jnp.where(scale > 0, scale, 1)).astype(jnp.uint8)
    low, high = jnp.split(codes, 2, axis=-2)
    packed = (low | (high << 4)).reshape(*lead, inputs // 2, outputs)
    return {"nf4": packed, "scale": scale[..., 0, :]}


def restore(parts: Mapping[str, jax.Array], dtype: Any) -> jax.Array:
    """What `quantise` gave -> the kernel, float[..., I, O] in `dtype`."""
    scale = parts["scale"]
    if "int8" in parts:
        return parts["int8"].astype(dtype) * scale.astype(dtype)
    packed = parts["nf4"]
    *lead, half, outputs = packed.shape
    tiles = packed.reshape(*lead, half // (TILE // 2), TILE // 2, outputs)
    codes = jnp.concatenate([tiles & 15, tiles >> 4], axis=-2)
    numbers = _look_up(codes, dtype) * scale[..., None, :].astype(dtype)
    return numbers.reshape(*lead, 2 * half, outputs)


def _look_up(codes: jax.Array, dtype: Any) -> jax.Array:
    """The level of each code 0..15, by four rounds of choosing: a gather is slow on a TPU."""
    found = [jnp.asarray(level, dtype) for level in nf4_levels()]
    for bit in range(4):
        odd = (codes >> bit) & 1 == 1
        found = [jnp.where(odd, *two) for two in zip(found[1::2], found[::2], strict=True)]
    return found[0]


def quantise_tree(frozen: Mapping[str, Any], kind: str) -> dict:
    """A frozen tree with the decoder's kernels quantised; as it is for "none".

    Raises UserError when they are not all frozen.
    """
    if kind == "none":
        return dict(frozen)
    flat = flatten(frozen)
    kernels = [path for path in flat if KERNELS.search(path)]
    if len(kernels) < len(NAMES):
        raise UserError(
            f"config.quantise is {kind!r}, but config.trainable trains kernels of the language "
            "model, which must be whole then; train adapters only, or use 'none'"
        )
    return unflatten({**flat, **{path: quantise(flat[path], kind) for path in kernels}})


def dequantise_tree(tree: Mapping[str, Any], dtype: Any) -> dict:
    """A tree as `Dense` takes it: nf4 kernels restored, int8 ones with their scales beside them."""

    def visit(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        kernel = node.get("kernel")
        if not isinstance(kernel, Mapping):
            return {name: visit(child) for name, child in node.items()}
        if "int8" in kernel:
            return {**node, "kernel": kernel["int8"], "kernel_scale": kernel["scale"]}
        return {**node, "kernel": restore(kernel, dtype)}

    return visit(tree)


def source(path: str) -> str:
    """Path of the kernel that the leaf `path` is a part of; `path` itself if it is of none."""
    return PART.sub("/kernel", path)


def reader(view: np.ndarray, name: str, kind: str) -> Callable[[tuple[slice, ...]], np.ndarray]:
    """`part(index)` of the leaf `name` of what `quantise(view, kind)` gives; view float[L, I, O].

    Layer by layer and the outputs asked for alone, so that nobody holds more than a layer.
    """
    cpu = jax.local_devices(backend="cpu")[0]

    def part(index: tuple[slice, ...]) -> np.ndarray:
        layers, rows, outputs = index
        with jax.default_device(cpu):
            found = [
                np.asarray(quantise(jnp.asarray(view[i][:, outputs]), kind)[name])[rows]
                for i in range(*layers.indices(len(view)))
            ]
        return np.stack(found)

    return part
