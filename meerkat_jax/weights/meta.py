"""Llama in Meta's own layout: params.json and consolidated.00.pth, consolidated.01.pth, ...

The files are the shards of tensor parallelism: each holds a part of every matrix, cut along its
rows or its columns as the layer was parallel. Query and key rows lie in another order of rotary
pairs than on the hub (`layouts.halves`).

Sources: github meta-llama/llama, llama/model.py (which layers are parallel how, the width of the
feed-forward layer); github meta-llama/llama-models (params.json of Llama 3).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meerkat_jax.core.errors import sample
from meerkat_jax.weights.files import AGAIN, read_json, refuse, tensors_of
from meerkat_jax.weights.layouts import halves, hub_name, llama_config
from meerkat_jax.weights.source import Source, Tensor

PARAMS = "params.json"
NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
BY_ROWS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
BY_COLUMNS = ("o_proj", "down_proj")
FREQUENCIES = ("rope.freqs", "model.rotary_emb.inv_freq")  # Meta's name, the hub's
REQUIRED = ("dim", "n_layers", "n_heads", "norm_eps")
KNOWN = {
    *REQUIRED, "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "rope_theta",
    "use_scaled_rope", "rope_scaling_factor", "high_freq_factor", "max_batch_size", "max_seq_len",
}  # fmt: skip
MAY_BE_OTHER = {"vocab_size", "n_kv_heads", "ffn_dim_multiplier", "use_scaled_rope"}


def read_meta(folder: Path, wrong: list[str]) -> Source:
    """The checkpoint of a folder, unread, under the hub's names.

    Raises UserError with all that is wrong: params that are missing or not known, shards that are
    missing or cut short or differ in what they hold, tensors that are no Llama's.
    """
    params = read_json(folder / PARAMS, wrong)
    if params:
        wrong += [f"{PARAMS} has no {key}" for key in REQUIRED if key not in params]
        wrong += [f"{PARAMS}: {key} is not supported" for key in sorted(set(params) - KNOWN)]
        wrong += [
            f"{PARAMS}: {key} is {params[key]!r}, expected a number above 0"
            for key in sorted(KNOWN & set(params) - MAY_BE_OTHER)
            if not isinstance(params[key], int | float) or not params[key] > 0
        ]
    files = sorted(folder.glob("consolidated.*.pth"))
    wrong += _gaps(files)
    shards = [tensors_of(file, wrong) for file in files]
    refuse(folder, wrong)
    tensors = _joined(params, files, shards, wrong)
    refuse(folder, wrong)
    return Source(folder, _config(params, tensors), tensors, tuple(files))


def _gaps(files: Sequence[Path]) -> list[str]:
    names = [file.name for file in files]
    last = int(re.sub(r"\D", "", names[-1]) or 0) if names else 0
    expected = [f"consolidated.{i:02}.pth" for i in range(last + 1)]
    return [f"{name} is missing; {AGAIN}" for name in expected if name not in names]


def _joined(params, files, shards, wrong: list[str]) -> dict[str, Tensor]:
    """{hub name: tensor} of all shards together."""
    for file, shard in zip(files, shards, strict=True):
        for has, lacks, names in (
            (file, files[0], sorted(set(shard) - set(shards[0]))),
            (files[0], file, sorted(set(shards[0]) - set(shard))),
        ):
            if names:
                wrong.append(f"{has.name} has tensor {sample(names)}, {lacks.name} has not")
    found, unknown = {}, []
    for name in shards[0]:
        target = hub_name(name, "layers", NAMES)
        if target is not None and all(name in shard for shard in shards):
            found[target] = _join(target, [shard[name] for shard in shards], params)
        elif name == FREQUENCIES[0]:
            found[FREQUENCIES[1]] = shards[0][name]
        elif target is None:
            unknown.append(name)
    if unknown:
        told = f"tensor {sample(unknown)} of {files[0].name} is unknown, no part of a Llama"
        wrong.append(told)
    return found if wrong else _whole(params, files, found, wrong)


def _whole(params, files, found: dict[str, Tensor], wrong: list[str]) -> dict[str, Tensor]:
    """`found`, if it has as many rows as params.json says: else a last shard may be missing."""
    query = found.get("model.layers.0.self_attn.q_proj.weight")
    if query is not None and query.shape[0] != params["dim"]:
        held = query.shape[0] / len(files)
        wrong.append(
            f"{len(files)} files consolidated.*.pth hold {query.shape[0]} query rows, "
            f"{PARAMS} says dim {params['dim']}: expected {params['dim'] / held:g} files; {AGAIN}"
        )
    table = found.get("model.embed_tokens.weight")
    stated = params.get("vocab_size", -1)
    if table is None:
        wrong.append(f"{files[0].name} has no tensor tok_embeddings.weight")
    elif not wrong and stated > 0 and table.shape[0] != stated:
        wrong.append(f"{PARAMS}: vocab_size is {stated}, tok_embeddings has {table.shape[0]} rows")
    if not wrong:
        wrong += [
            f"{name} has {tensor.shape[0]} rows, {PARAMS} says {heads} heads"
            for name, tensor in found.items()
            if (heads := _turned(name, params)) is not None and tensor.shape[0] % (2 * heads)
        ]
    return found


def _join(target: str, parts: Sequence[Tensor], params: Mapping[str, Any]) -> Tensor:
    layer = target.split(".")[-2]
    axis = 0 if layer in BY_ROWS else 1 if layer in BY_COLUMNS else None
    if layer == "embed_tokens":  # Llama 1 and 2 cut its width, Llama 3 its vocabulary
        axis = 0 if parts[0].shape[1] == params["dim"] else 1
    shape = list(parts[0].shape)
    if axis is None:  # the same in every file
        parts = parts[:1]
    else:
        shape[axis] = sum(part.shape[axis] for part in parts)
    read = functools.partial(_read, parts, axis, _turned(target, params))
    return Tensor(tuple(shape), parts[0].dtype, parts[0].file, read)


def _turned(target: str, params: Mapping[str, Any]) -> int | None:
    """How many heads a tensor has, if its rows are turned by positions."""
    layer = target.split(".")[-2]
    return {"q_proj": params["n_heads"], "k_proj": _kv_heads(params)}.get(layer)


def _read(parts: Sequence[Tensor], axis: int | None, heads: int | None) -> np.ndarray:
    if axis is None:
        return parts[0].read()
    whole = np.concatenate([part.read() for part in parts], axis)
    return whole if heads is None else halves(whole, heads)


# ---- params.json -> config.json ----


def _kv_heads(params: Mapping[str, Any]) -> int:
    return params.get("n_kv_heads") or params["n_heads"]


def _config(params: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    scaled = bool(params.get("use_scaled_rope"))
    return llama_config(
        tensors,
        vocab_size=tensors["model.embed_tokens.weight"].shape[0],  # params.json of Llama 2: -1
        hidden_size=params["dim"],
        intermediate_size=feed_forward(params),
        num_hidden_layers=params["n_layers"],
        num_attention_heads=params["n_heads"],
        num_key_value_heads=_kv_heads(params),
        head_dim=params["dim"] // params["n_heads"],
        rms_norm_eps=params["norm_eps"],
        rope_theta=params.get("rope_theta", 10000.0),
        rope_scaling=_scaling(params) if scaled else None,
        # Not in params.json, and nothing that is computed depends on it: Llama 2's, Llama 3.1's.
        max_position_embeddings=131072 if scaled else 4096,
    )


def feed_forward(params: Mapping[str, Any]) -> int:
    """Width of the feed-forward layer: 8/3 of `dim`, stretched, up to a multiple."""
    width = int(2 * 4 * params["dim"] / 3)
    if params.get("ffn_dim_multiplier"):
        width = int(params["ffn_dim_multiplier"] * width)
    multiple = params.get("multiple_of", 256)
    return -(-width // multiple) * multiple


def _scaling(params: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3's stretched rotary positions; params.json mostly says no more than that they are.

    The factor is 8 for Llama 3.1 and 3.3 (dim 4096 and more), 32 for 3.2 (1B: 2048, 3B: 3072).
    """
    return {
        "rope_type": "llama3",
        "factor": params.get("rope_scaling_factor") or (8.0 if params["dim"] >= 4096 else 32.0),
        "low_freq_factor": 1.0,
        "high_freq_factor": params.get("high_freq_factor") or 4.0,
        "original_max_position_embeddings": 8192,
    }
