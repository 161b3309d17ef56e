"""CLIP's image tower as published: the hub's config and tensor names -> models/clip.py.

Source: transformers' CLIPConfig, CLIPModel and CLIPVisionModelWithProjection, of which the hub's
openai/clip-vit-* are checkpoints. The text tower is dropped on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.models.clap import cubic_taps
from meerkat_jax.models.clip import EPS
from meerkat_jax.weights.fields import require, require_multiple, section, size
from meerkat_jax.weights.table import LINEAR, Change, Row, dense, norm

SIZES = {  # the hub's field -> ours, the class default
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 32),
    "hidden_size": ("width", 768),
    "num_hidden_layers": ("depth", 12),
    "num_attention_heads": ("heads", 12),
    "intermediate_size": ("mlp_dim", 3072),
}
ONLY = {"hidden_act": ("quick_gelu",), "layer_norm_eps": (EPS,), "num_channels": (3,)}

LAYER = "vision_model.encoder.layers.{i}."
DENSE = {  # published name of a product with bias in a layer -> ours
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.out_proj": "o",
    "mlp.fc1": "fc1",
    "mlp.fc2": "fc2",
}
NORMS = {
    "vision_model.pre_layrnorm": "pre_layernorm",  # misspelt in the checkpoints
    "vision_model.post_layernorm": "post_layernorm",
    LAYER + "layer_norm1": "layers/layer_norm1",
    LAYER + "layer_norm2": "layers/layer_norm2",
}
DROPPED = (
    "text_model.*",
    "text_projection.weight",
    "logit_scale",
)


def fields(config: Mapping[str, Any], where: str) -> dict[str, int]:
    """Fields of `ClipVision` for a hub config; `where` begins the error.

    config: that of a whole CLIP (a section vision_config) or of its image tower alone.
    Raises UserError, by the name of the field, for what `ClipVision` does not compute.
    """
    # Old configs repeat the section as vision_config_dict, which then counts.
    names = ("vision_config_dict", "vision_config")
    own, place = section(config, "clip", "clip_vision_model", names, where)
    require(own, ONLY, place)
    found = {ours: size(own, name, default, place) for name, (ours, default) in SIZES.items()}
    found["projection_dim"] = size(config, "projection_dim", 512, f"{where}: ")
    for whole, part in (("image_size", "patch_size"), ("hidden_size", "num_attention_heads")):
        ours = (found[SIZES[whole][0]], found[SIZES[part][0]])
        require_multiple(place, whole, ours[0], part, ours[1])
    return found


def rows(fields: Mapping[str, Any]) -> tuple[Row, ...]:
    """The table between the hub's names and the leaves of `ClipVision(**fields)`."""
    side = fields["patch_size"]
    patches = Change(  # a convolution [D, C, P, P] as the product of a flat patch, [P * P * C, D]
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
        lambda x: x.reshape(side, side, -1, x.shape[1]).transpose(3, 2, 0, 1),
    )
    embeddings = "vision_model.embeddings."
    found = [
        Row(embeddings + "patch_embedding.weight", "patch_embedding/kernel", patches),
        Row(embeddings + "class_embedding", "class_embedding"),
        Row(embeddings + "position_embedding.weight", "position_embedding"),
        Row("visual_projection.weight", "visual_projection/kernel", LINEAR),
    ]
    for theirs, ours in NORMS.items():
        found += norm(theirs, ours)
    for theirs, ours in DENSE.items():
        found += dense(LAYER + theirs, f"layers/{ours}")
    places = 1 + (fields["image_size"] // side) ** 2
    found.append(Row(embeddings + "position_ids", None, computed=lambda: np.arange(places)))
    return (*found, *(Row(name, None) for name in DROPPED))


def resize_positions(table: np.ndarray, side: int) -> np.ndarray:
    """Places of a grid of `side` x `side` patches, bicubic between those of the table.

    float[1 + G^2, D] -> float[1 + side^2, D] of the same dtype; row 0, the class token's, stays.
    As transformers' interpolate_pos_encoding: middles of patches aligned, no smoothing.
    Raises UserError if the patches of the table are no square.
    """
    grid = round((len(table) - 1) ** 0.5)
    if 1 + grid * grid != len(table):
        raise UserError(f"position table has {len(table)} rows, expected 1 + a square")
    if side == grid:
        return table
    middles = (np.arange(side, dtype=np.float32) + 0.5) * np.float32(grid / side) - 0.5
    places, weights = cubic_taps(middles, grid)
    along = np.zeros((side, grid), np.float32)  # the interpolation along one axis as a matrix
    np.add.at(along, (np.arange(side), places), weights)
    patches = table[1:].astype(np.float32).reshape(grid, grid, -1)
    patches = np.einsum("yr,xc,rcd->yxd", along, along, patches, optimize=True)
    return np.concatenate([table[:1], patches.reshape(side * side, -1).astype(table.dtype)])
