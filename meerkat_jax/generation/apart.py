"""A decoder whose layers lie apart, each with arrays of its own and compiled by itself.

A program that loops over a stack of layers first copies each layer out of it. For one more token a
copy costs as much as what is done with it: on a GPU, where products are fast, more than half of the
time (docs/results.md). A program without the loop takes longer to compile.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import jax

from meerkat_jax.models.llama import Llama


def taken_apart(llama: Llama, params: Mapping[str, Any]) -> tuple[Llama, dict[str, Any]]:
    """The decoder and its parameters with `layers` by number: float[L, ...] -> L of float[...].

    Until the caller lets go of `params` both are in memory.
    """
    layers = {
        str(number): jax.tree.map(operator.itemgetter(number), params["layers"])
        for number in range(llama.depth)
    }
    return llama.clone(apart=True), {**params, "layers": layers}
