"""The language model as transformers' LlamaForCausalLM, LoRA merged into its weights.

Merging is W + alpha/r * A B, in float32. Tokens that were added to a published vocabulary become
rows of the embedding. Ours are never said, they have no logits; torch's need some: their rows of
the head are the mean of the published rows, so their logit is the mean of the others. It is never
the largest, and such a token is less likely than one in V (Jensen's inequality). generation_config
leaves them out besides. A head that was tied to the embedding is therefore written by itself.

Letters: L layers, D width, V published pieces, M added tokens.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.progress import Progress
from meerkat_jax.core.trees import compare
from meerkat_jax.models.llama import Llama
from meerkat_jax.nn.rotary import RopeScaling
from meerkat_jax.weights import table
from meerkat_jax.weights.adapters import ADDED, HALVES, is_lora, shapes
from meerkat_jax.weights.llama import rows
from meerkat_jax.weights.store import Writer, check_space

SHARD = 5_000_000_000  # bytes of a file at most, as the hub splits them
DTYPES = ("float32", "float16", "bfloat16")
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# What a base's config says of itself and is not so any more, or is said in another way here.
FORGOTTEN = ("_name_or_path", "transformers_version", "dtype", "auto_map", "rope_parameters")

Tensors = dict[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]]


def write_hf(
    folder: Path,
    model: Llama,
    leaves: Mapping[str, Any],
    ids: Mapping[str, int],
    dtype: Any = None,
    published: Mapping[str, Any] | None = None,
    shard: int = SHARD,
    say: Callable[[str], object] = print,
) -> None:
    """Write a decoder in the hub's layout into `folder`, with one tensor in memory at a time.

    leaves: all of the decoder, by path. ids: of the tokens "bos", "eos" and "pad", where
    there are such.
    dtype: that of the embedding by default. published: the hub config of its base, if it has one.
    shard: the most bytes of a file. Raises UserError for leaves that are missing, unknown or of
    another shape, for another dtype, for numbers beyond its range, and for a full disk.
    """
    tensors = merged(model, leaves)
    dtype = np.dtype(leaves["embedding"].dtype if dtype is None else dtype)
    if dtype.name not in DTYPES:
        raise UserError(f"--dtype={dtype.name} is none for a model; use one of {', '.join(DTYPES)}")
    _write(folder, tensors, dtype, shard, say)
    config = hub_config(model, ids, dtype, published, tied=HEAD not in tensors)
    _dump(folder / "config.json", config)
    generation = {f"{name}_token_id": number for name, number in ids.items()}
    if model.added_rows:
        generation["suppress_tokens"] = list(range(model.pretrained, model.vocab_size))
    _dump(folder / "generation_config.json", generation)


def merged(model: Llama, leaves: Mapping[str, Any]) -> Tensors:
    """{hub name: (shape, function that makes the tensor)} of all leaves of a decoder, by path."""
    wanted = shapes(model)
    found = {path: str(tuple(np.shape(leaf))) for path, leaf in leaves.items()}
    if wrong := compare({path: str(tuple(shape)) for path, shape in wanted.items()}, found):
        raise UserError(f"the language model does not fit its config: {'; '.join(wrong[:5])}")
    own = {path: shape for path, shape in wanted.items() if path != ADDED and not is_lora(path)}
    lines = rows({"pretrained": model.pretrained or model.vocab_size, "tied": model.tied})
    pieces, _ = table.pieces_of(lines, own)
    make = functools.partial(_make, leaves, model.lora.alpha / model.lora.rank if model.lora else 0)
    tensors = {p.source: (_shape(p, own), functools.partial(make, p)) for p in pieces}
    return _extended(tensors, leaves[ADDED]) if model.added_rows else tensors


def _make(leaves: Mapping[str, Any], scale: float, piece: table.Piece) -> np.ndarray:
    """A tensor of the base, with its LoRA merged in if it has one."""

    def part(path: str) -> np.ndarray:
        return np.asarray(leaves[path] if piece.index is None else leaves[path][piece.index])

    weight = part(piece.target)
    halves = [f"{piece.target.rpartition('/')[0]}/{half}" for half in HALVES]
    if halves[0] in leaves:
        a, b = (part(path).astype(np.float32) for path in halves)
        weight = weight.astype(np.float32) + scale * (a @ b)
    return piece.change.back(weight)


def _shape(piece: table.Piece, shapes_: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of the published tensor of a piece."""
    shape = shapes_[piece.target][0 if piece.index is None else 1 :]
    return piece.change.back(np.broadcast_to(np.int8(0), shape)).shape  # takes no memory


def _extended(tensors: Tensors, added: Any) -> Tensors:
    """The tensors with rows for added float[M, D] tokens, read but not said."""
    (pieces, width), embed = tensors[EMBED]
    _, head = tensors.get(HEAD, tensors[EMBED])
    shape = (pieces + len(added), width)

    def read() -> np.ndarray:
        return np.concatenate([embed().astype(np.float32), np.asarray(added, np.float32)])

    def said() -> np.ndarray:
        known = head().astype(np.float32)
        mean = np.broadcast_to(known.mean(0), added.shape)
        return np.concatenate([known, mean])

    return tensors | {EMBED: (shape, read), HEAD: (shape, said)}


def _write(folder: Path, tensors: Tensors, dtype: np.dtype, most: int, say: Callable) -> None:
    """The tensors as model.safetensors, or as shards with an index."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, _) in tensors.items()}
    check_space(folder, sum(sizes.values()))
    groups, done = split(sizes, most), 0
    progress = Progress("model: tensors", len(tensors), say=say)
    places = {}
    for number, names in enumerate(groups, 1):
        file = "model.safetensors"
        if len(groups) > 1:
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        kinds = {name: (tensors[name][0], dtype) for name in names}
        writer = Writer(folder / file, kinds, {"format": "pt"})
        for name in names:
            writer.put(name, tensors[name][1]())
            done += 1
            progress.report(done)
        writer.close()
        places |= dict.fromkeys(names, file)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        _dump(folder / "model.safetensors.index.json", index)


def split(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    """Names in groups of at most `most` bytes (a larger tensor has its own), layer after layer."""

    def place(name: str) -> list[str]:
        return [part.zfill(6) if part.isdigit() else part for part in name.split(".")]

    groups: list[list[str]] = [[]]
    room = most
    for name in sorted(sizes, key=place):
        if sizes[name] > room and groups[-1]:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= sizes[name]
    return groups


def hub_config(
    model: Llama,
    ids: Mapping[str, int],
    dtype: np.dtype,
    published: Mapping[str, Any] | None,
    tied: bool,
) -> dict[str, Any]:
    """The config.json: what the base's says besides, with the sizes of the decoder.

    Names as before transformers 5, which all versions read.
    """
    kept = {k: v for k, v in (published or {}).items() if k not in FORGOTTEN}
    return {"max_position_embeddings": 4096, "hidden_act": "silu"} | kept | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_width,
        "intermediate_size": model.mlp_dim,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": _rope_scaling(model.rope_scaling),
        "tie_word_embeddings": tied,
        "torch_dtype": dtype.name,
        **{f"{name}_token_id": ids.get(name) for name in ("bos", "eos", "pad")},
    }  # fmt: skip


def _rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    said = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        said |= {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}
        said |= {"original_max_position_embeddings": scaling.length}
    return said


def _dump(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n")
