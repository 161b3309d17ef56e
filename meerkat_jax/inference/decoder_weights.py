"""Decoder weights at inference: quantised kernels, unstacked layers.

Quantised (parallel/quantise.py): int8 kernels enter the products as they are; nf4 kernels are
dequantised one layer at a time.

Unstacked: a program that scans over stacked layers first copies each layer out of the stack. When
one token is decoded, that copy costs as much as the products; on a GPU it is more than half of the
time (docs/results.md). Separate arrays need no copy, but each layer is compiled by itself.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import jax

from meerkat_jax.models.llama import Llama
from meerkat_jax.parallel.placement import Placement, make_mesh
from meerkat_jax.parallel.quantise import check_kind, quantise_tree


def prepare_decoder(
    llama: Llama, params: Mapping[str, Any], quantise: str = "none", unstack_layers: bool = False
) -> tuple[Llama, dict[str, Any]]:
    """The decoder and its parameters, kernels quantised to "int8" or "nf4" ("none": unchanged).

    With `unstack_layers`, `layers` are numbered trees: float[L, ...] -> L of float[...]. `params`
    stay in memory until the caller drops them. UserError for another kind, and for nf4 where the
    inputs are no multiple of a tile.
    """
    check_kind(quantise)
    params = dict(params)
    if quantise != "none":
        mesh = make_mesh({"data": 1}, jax.local_devices()[:1])
        llama = llama.clone(placement=Placement(mesh))
        params = quantise_tree({"llama": params}, quantise)["llama"]
    if unstack_layers:
        layers = params["layers"]
        separate = [jax.tree.map(operator.itemgetter(i), layers) for i in range(llama.depth)]
        llama = llama.clone(unstack_layers=True)
        params["layers"] = {str(number): layer for number, layer in enumerate(separate)}
    return llama, params
