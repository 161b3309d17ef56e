"""How a decoder is kept while it answers: its kernels in fewer bits, its layers apart.

Fewer bits (parallel/quantise.py): int8 numbers are multiplied as they are; of nf4 one layer's
kernels are whole at a time.

Apart: a program that loops over a stack of layers first copies each layer out of it. For one more
token a copy costs as much as what is done with it: on a GPU, where products are fast, more than
half of the time (docs/results.md). Layers with arrays of their own are read where they lie; each
is compiled by itself, which takes longer.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import jax

from meerkat_jax.models.llama import Llama
from meerkat_jax.parallel.placement import Placement, make_mesh
from meerkat_jax.parallel.quantise import check_kind, quantise_tree


def stored(
    llama: Llama, params: Mapping[str, Any], quantise: str = "none", apart: bool = False
) -> tuple[Llama, dict[str, Any]]:
    """The decoder and its parameters with kernels as `quantise`, "int8", "nf4" or "none": as given.

    With `apart`, `layers` are numbered trees: float[L, ...] -> L of float[...]. Until the caller
    lets go of `params`, they are in memory, too. UserError for another kind, and for nf4 where
    inputs are no whole tiles.
    """
    check_kind(quantise)
    params = dict(params)
    if quantise != "none":
        here = make_mesh({"data": 1}, jax.local_devices()[:1])
        llama = llama.clone(placement=Placement(here))
        params = quantise_tree({"llama": params}, quantise)["llama"]
    if apart:
        layers = params["layers"]
        each = [jax.tree.map(operator.itemgetter(i), layers) for i in range(llama.depth)]
        llama = llama.clone(apart=True)
        params["layers"] = {str(number): layer for number, layer in enumerate(each)}
    return llama, params
