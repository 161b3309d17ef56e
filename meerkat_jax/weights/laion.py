"""LAION's own CLAP checkpoints: one .pt file of a whole training state.

Its audio branch is HTSAT under other names than the hub's and with query, key and value in one
matrix; width, depth and heads are read off the shapes. Dropped: the text branch, the layers for
sound classes, the spectrogram's constants and all masks and tables that a model computes itself.

Source: github LAION-AI/CLAP, clap_module/htsat.py and feature_fusion.py (names and constants).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meerkat_jax.weights.files import refuse, tensors_of
from meerkat_jax.weights.source import Source, Tensor

BRANCH, ENCODER = "audio_branch.", "audio_model.audio_encoder."
RENAMED = (  # parts of names, between dots
    ("bn0", "batch_norm"),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("attn.proj", "attention.output.dense"),
    ("attn", "attention.self"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)
PROJECTION = {"audio_projection.0.": "linear1.", "audio_projection.2.": "linear2."}
DROPPED = ("spectrogram_extractor.", "logmel_extractor.", "tscam_conv.", "head.")
BLOCK = "layers.{}.blocks.{}."


def read_laion(file: Path, wrong: list[str]) -> Source:
    """The audio tower and its projection, unread, under the names of the hub's ClapModel.

    Raises UserError with all that is wrong: a broken file, another kind of audio branch, a way of
    fusing long clips other than that of the published checkpoints.
    """
    state = tensors_of(file, wrong)
    refuse(file, wrong)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    audio = {
        name.removeprefix(BRANCH): tensor
        for name, tensor in state.items()
        if name.startswith(BRANCH)
    }
    _check(audio, wrong)
    refuse(file, wrong)
    tensors: dict[str, Tensor] = {}
    for name, tensor in audio.items():
        if not name.startswith(DROPPED) and not name.endswith(".attn_mask"):
            tensors |= _renamed(name, tensor)
    for old, new in PROJECTION.items():
        for name in (name for name in state if name.startswith(old)):
            tensors["audio_projection." + new + name.removeprefix(old)] = state[name]
    return Source(file, _config(audio, state), tensors, (file,))


def _check(audio: Mapping[str, Tensor], wrong: list[str]) -> None:
    if "patch_embed.proj.weight" not in audio:
        found = ", ".join(sorted(audio)[:3]) or "none"
        wrong.append(
            f"no tensor {BRANCH}patch_embed.proj.weight, expected LAION's CLAP with an HTSAT audio "
            f"branch; tensors of {BRANCH}*: {found}"
        )
    fused = [name for name in audio if "fusion_model." in name or "mel_conv" in name]
    for name in fused:
        iterated = "local_att2" in name or "global_att2" in name
        if not name.startswith("patch_embed.") or iterated:
            wrong.append(f"tensor {BRANCH}{name}: of the ways to fuse only aff_2d is supported")
    if fused and "patch_embed.fusion_model.local_att.0.weight" not in audio:
        wrong.append(f"no tensor {BRANCH}patch_embed.fusion_model.*, expected those of aff_2d")


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """{hub name: tensor} of one tensor, or of the three that are joined in it."""
    for old, new in RENAMED:
        name = re.sub(rf"(?<=\.){re.escape(old)}(?=\.)|^{re.escape(old)}(?=\.)", new, name)
    if ".qkv." not in name:
        return {ENCODER + name: tensor}
    third = tensor.shape[0] // 3
    return {
        ENCODER + name.replace(".qkv.", f".{part}."): dataclasses.replace(
            tensor,
            shape=(third, *tensor.shape[1:]),
            read=functools.partial(_rows, tensor.read, i * third, third),
        )
        for i, part in enumerate(("query", "key", "value"))
    }


def _rows(read: Callable[[], np.ndarray], first: int, count: int) -> np.ndarray:
    return read()[first : first + count].copy()


def _config(audio: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The hub's config.json. What no shape tells is what all of LAION's models have."""
    width, channels, *patch = audio["patch_embed.proj.weight"].shape
    stages = 1 + max(int(name.split(".")[1]) for name in audio if name.startswith("layers."))
    tables = [
        audio[BLOCK.format(i, 0) + "attn.relative_position_bias_table"].shape for i in range(stages)
    ]
    fused = "patch_embed.fusion_model.local_att.0.weight" in audio
    projection = state.get("audio_projection.2.weight")
    projected = projection.shape[0] if projection is not None else 512
    tower = {
        "model_type": "clap_audio_model",
        "patch_embeds_hidden_size": width,
        "patch_embed_input_channels": channels,
        "hidden_size": width * 2 ** (stages - 1),
        "depths": [_depth(audio, i) for i in range(stages)],
        "num_hidden_layers": stages,
        "num_attention_heads": [heads for _, heads in tables],
        "window_size": (math.isqrt(tables[0][0]) + 1) // 2,  # a table has (2w - 1) squared rows
        "mlp_ratio": audio[BLOCK.format(0, 0) + "mlp.fc1.weight"].shape[0] / width,
        "num_mel_bins": audio["bn0.weight"].shape[0],
        "enable_fusion": fused,
        "fusion_type": "aff_2d" if fused else None,
        "aff_block_r": _squeeze(audio) if fused else 4,
        "qkv_bias": BLOCK.format(0, 0) + "attn.qkv.bias" in audio,
        "patch_size": patch[0],
        "patch_stride": [4, 4],
        "spec_size": 256,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "enable_patch_layer_norm": True,
        "flatten_patch_embeds": True,
        "projection_dim": projected,
        "projection_hidden_act": "relu",
    }
    return {"model_type": "clap", "projection_dim": projected, "audio_config": tower}


def _depth(audio: Mapping[str, Tensor], stage: int) -> int:
    return sum(re.fullmatch(rf"layers\.{stage}\.blocks\.\d+\.norm1\.weight", n) is not None
               for n in audio)  # fmt: skip


def _squeeze(audio: Mapping[str, Tensor]) -> int:
    """By what the fusion's attention is narrower than the patches."""
    narrow, wide = audio["patch_embed.fusion_model.local_att.0.weight"].shape[:2]
    return wide // narrow
