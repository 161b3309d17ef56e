"""A model laid out for answers: its decoder in fewer bits, and on a CPU its layers apart.

One token of one row reads every weight once, so it takes as long as that. In a stack of layers,
which training scans, each layer is copied out first, and a product of one row then runs on one
core. Layers that are arrays of their own are read where they lie, and kernels cut into blocks
(`layers.cut`) by all cores; prompts, many rows at once, take the kernels as they were. It costs
the memory of the layers once more, and time to compile every layer by itself. Values stay as they
are; float32 sums run in another order.

Kernels in int8 or nf4 (training/quantise.py) become whole again within the layer that uses them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from meerkat_jax.assemble import Assembly
from meerkat_jax.models.layers import BLOCK, cut
from meerkat_jax.models.llama import Llama
from meerkat_jax.training.params import flatten, unflatten
from meerkat_jax.training.quantise import check_kind, quantise_tree
from meerkat_jax.training.sharding import Placement, make_mesh


def lay_out(
    assembly: Assembly, params: Mapping[str, Any], quantise: str = "none"
) -> tuple[Assembly, dict[str, Any]]:
    """The model and its parameters as they answer here.

    quantise: "none", "int8" or "nf4"; UserError for another one, and where nf4 does not fit.
    """
    llama, own = lay_out_decoder(assembly.model.llama, params["llama"], quantise)
    model = assembly.model.clone(llama=llama)
    return dataclasses.replace(assembly, model=model), {**params, "llama": own}


def lay_out_decoder(
    llama: Llama, params: Mapping[str, Any], quantise: str = "none"
) -> tuple[Llama, dict[str, Any]]:
    """`lay_out` of the language model by itself."""
    check_kind(quantise)
    if quantise != "none":
        params = quantise_tree({"llama": params}, quantise)["llama"]
        here = make_mesh({"data": 1}, jax.local_devices()[:1])
        llama = llama.clone(placement=Placement(here))
    return apart(llama, params) if jax.default_backend() == "cpu" else (llama, dict(params))


def apart(llama: Llama, params: Mapping[str, Any]) -> tuple[Llama, dict[str, Any]]:
    """The decoder that takes its layers apart, and its parameters so.

    Each leaf of the layers becomes L arrays. Beside kernels float[I, O] come "blocks" float[O /
    BLOCK, I, BLOCK] where O is a multiple of BLOCK.
    """
    if llama.apart:
        return llama, dict(params)
    layers = {}
    for path, stack in flatten(params["layers"]).items():
        layers[path] = tuple(stack)
        if path.endswith("/kernel") and stack.shape[-1] % BLOCK == 0:
            layers[path.removesuffix("kernel") + "blocks"] = tuple(map(_cut, layers[path]))
    return llama.clone(apart=True), {**params, "layers": unflatten(layers)}


_cut = jax.jit(cut)
