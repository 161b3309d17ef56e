"""CLAP's audio tower as published: the hub's config and tensor names -> models/clap.py.

Source: transformers' ClapConfig and ClapModel, of which the hub's laion/clap-htsat-fused, -unfused
and laion/larger_clap_* are checkpoints. The text tower and both projections are dropped on purpose:
Meerkat reads the tower's tokens.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from meerkat_jax.core.errors import UserError
from meerkat_jax.models.swin import relative_index
from meerkat_jax.weights.fields import ratio, require, require_multiple, section, size, sizes
from meerkat_jax.weights.table import CONV, LINEAR, Change, Row, dense, norm

SIZES = {  # the hub's field -> ours, the class default
    "spec_size": ("spec_size", 256),
    "num_mel_bins": ("mel_bins", 64),
    "patch_embeds_hidden_size": ("width", 96),
    "window_size": ("window_size", 8),
    "aff_block_r": ("gate_ratio", 4),
}
ONLY = {
    "hidden_act": ("gelu",),
    "layer_norm_eps": (1e-5,),
    "patch_embed_input_channels": (1,),
    "flatten_patch_embeds": (True,),
    "enable_patch_layer_norm": (True,),
    "qkv_bias": (True,),
    "enable_fusion": (False, True),
    "fusion_type": (None, "aff_2d"),
}
POINT = Change(  # a convolution over single places, [out, in, 1, 1], as a product
    lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None]
)
ENCODER = "audio_model.audio_encoder."
BLOCK = "layers.{s}.blocks.{b}."
DENSE = {  # published name of a product with bias, below ENCODER -> ours, its change
    "patch_embed.proj": ("patch_embed/projection", CONV),
    "patch_embed.mel_conv2d": ("patch_embed/local_projection", CONV),
    "patch_embed.fusion_model.local_att.0": ("patch_embed/fusion/local_in", POINT),
    "patch_embed.fusion_model.local_att.3": ("patch_embed/fusion/local_out", POINT),
    "patch_embed.fusion_model.global_att.1": ("patch_embed/fusion/pooled_in", POINT),
    "patch_embed.fusion_model.global_att.4": ("patch_embed/fusion/pooled_out", POINT),
    BLOCK + "attention.self.query": ("stage_{s}/block_{b}/attention/q", LINEAR),
    BLOCK + "attention.self.key": ("stage_{s}/block_{b}/attention/k", LINEAR),
    BLOCK + "attention.self.value": ("stage_{s}/block_{b}/attention/v", LINEAR),
    BLOCK + "attention.output.dense": ("stage_{s}/block_{b}/attention/o", LINEAR),
    BLOCK + "intermediate.dense": ("stage_{s}/block_{b}/up", LINEAR),
    BLOCK + "output.dense": ("stage_{s}/block_{b}/down", LINEAR),
}
BATCH_NORMS = {
    "batch_norm": "mel_norm",
    "patch_embed.fusion_model.local_att.1": "patch_embed/fusion/local_in_norm",
    "patch_embed.fusion_model.local_att.4": "patch_embed/fusion/local_out_norm",
    "patch_embed.fusion_model.global_att.2": "patch_embed/fusion/pooled_in_norm",
    "patch_embed.fusion_model.global_att.5": "patch_embed/fusion/pooled_out_norm",
}
NORMS = {
    "norm": "norm",
    "patch_embed.norm": "patch_embed/norm",
    "layers.{s}.downsample.norm": "merge_{s}/norm",
    BLOCK + "layernorm_before": "stage_{s}/block_{b}/norm1",
    BLOCK + "layernorm_after": "stage_{s}/block_{b}/norm2",
}
DROPPED = (
    "audio_projection.*",
    "text_model.*",
    "text_projection.*",
    "logit_scale_a",
    "logit_scale_t",
)


def fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of `ClapAudio` for a hub config; `where` begins the error.

    config: that of a whole CLAP (a section audio_config) or of its audio tower alone.
    Raises UserError, by the name of the field, for what `ClapAudio` does not compute.
    """
    own, place = section(config, "clap", "clap_audio_model", ("audio_config",), where)
    require(own, ONLY, place)
    found: dict[str, Any] = {
        ours: size(own, name, default, place) for name, (ours, default) in SIZES.items()
    }
    found["patch_size"] = _square(own, "patch_size", place)
    if _square(own, "patch_stride", place) != found["patch_size"]:
        raise UserError(
            f"{place}patch_stride is {own.get('patch_stride', 4)}, supported: "
            f"patch_size, which is {found['patch_size']}"
        )
    found["depths"] = sizes(own, "depths", (2, 2, 6, 2), place)
    found["heads"] = sizes(own, "num_attention_heads", (4, 8, 16, 32), place)
    found["mlp_ratio"] = ratio(own, "mlp_ratio", 4.0, place)
    found["fused"] = bool(own.get("enable_fusion", False))
    _require_grids(found, place)
    return found


def _square(config: Mapping[str, Any], name: str, place: str) -> int:
    """A field that is a number, or twice the same one."""
    value = config.get(name, 4)
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        value = value[0]
    return size({name: value}, name, 4, place)


def _require_grids(found: Mapping[str, Any], place: str) -> None:
    """UserError unless the stages' widths fit their heads, and their grids the windows."""
    heads, stages = found["heads"], len(found["depths"])
    if len(heads) != stages:
        raise UserError(
            f"{place}num_attention_heads is {list(heads)}, expected {stages} numbers as in depths"
        )
    width, spec, bins = found["width"], found["spec_size"], found["mel_bins"]
    for stage, count in enumerate(heads):
        scaled = f"patch_embeds_hidden_size * {2**stage}"
        which = f"num_attention_heads[{stage}]"
        require_multiple(place, scaled, width * 2**stage, which, count)
    patch = found["patch_size"] * 2 ** (stages - 1)  # in the last stage
    require_multiple(place, "spec_size", spec, "num_mel_bins", bins)
    require_multiple(place, "num_mel_bins", bins, "the last stage's patch", patch)
    window = found["window_size"] * patch
    require_multiple(place, "spec_size", spec, "the last stage's window", window)


def rows(fields: Mapping[str, Any]) -> tuple[Row, ...]:
    """The table between the hub's names and the leaves of `ClapAudio(**fields)`.

    One table serves all sizes, and towers with and without fusion.
    """
    found = [
        Row("layers.{s}.downsample.reduction.weight", "merge_{s}/reduction/kernel", LINEAR),
        Row(
            BLOCK + "attention.self.relative_position_bias_table",
            "stage_{s}/block_{b}/attention/relative_bias",
        ),
    ]
    for theirs, (ours, change) in DENSE.items():
        found += dense(theirs, ours, change)
    for theirs, ours in (NORMS | BATCH_NORMS).items():
        found += norm(theirs, ours)
    for theirs, ours in BATCH_NORMS.items():
        found += [
            Row(f"{theirs}.running_mean", f"{ours}/bn_mean"),
            Row(f"{theirs}.running_var", f"{ours}/bn_var"),
            Row(f"{theirs}.num_batches_tracked", None),
        ]
    index = functools.partial(relative_index, fields["window_size"])
    name = BLOCK + "attention.self.relative_position_index"
    found.append(Row(name, None, computed=index, loaded=True))
    found = [dataclasses.replace(row, source=ENCODER + row.source) for row in found]
    return (*found, *(Row(name, None) for name in DROPPED))
