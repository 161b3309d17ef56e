"""A decoder that answers with its kernels in fewer bits: int8 or nf4 (training/quantise.py).

int8 numbers are multiplied as they are; of nf4 one layer's kernels are whole at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from meerkat_jax.models.llama import Llama
from meerkat_jax.training.quantise import check_kind, quantise_tree
from meerkat_jax.training.sharding import Placement, make_mesh


def in_fewer_bits(
    llama: Llama, params: Mapping[str, Any], kind: str
) -> tuple[Llama, dict[str, Any]]:
    """The decoder and its parameters with kernels as `kind`: "int8", "nf4", or "none" as they are.

    UserError for another kind, and for nf4 where inputs are no whole tiles.
    """
    check_kind(kind)
    if kind == "none":
        return llama, dict(params)
    here = make_mesh({"data": 1}, jax.local_devices()[:1])
    few = quantise_tree({"llama": params}, kind)["llama"]
    return llama.clone(placement=Placement(here)), few
