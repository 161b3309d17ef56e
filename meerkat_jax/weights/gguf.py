"""Llama-family models in GGUF, llama.cpp's file format: weights, config, tokenizer in one file.

Plain types (F32, F16, BF16) are read as they are; quantised ones become float32 through the `gguf`
package, whose numbers are llama.cpp's. Query and key rows lie in Meta's order of rotary pairs, as
in Meta's own files.

Source: github ggml-org/ggml, docs/gguf.md (names); ggml-org/llama.cpp, convert_hf_to_gguf.py (what
is permuted).
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from meerkat_jax.core.errors import UserError, sample
from meerkat_jax.weights.files import AGAIN, read_bytes, refuse, unusable
from meerkat_jax.weights.gguf_file import Entry, Head, read_head
from meerkat_jax.weights.gguf_values import FACTORS, heads, hub_config
from meerkat_jax.weights.layouts import halves, hub_name
from meerkat_jax.weights.source import Source, Tensor

ARCHITECTURE = "llama"
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 30: np.dtype(ml_dtypes.bfloat16)}
REQUIRED = (
    "block_count", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)  # fmt: skip


def read_gguf(file: Path, wrong: list[str]) -> Source:
    """The model of a file, unread, under the hub's names.

    Raises UserError with all that is wrong: a file that is cut short, another architecture, a
    tensor that is no Llama's, a quantisation that the `gguf` package does not know.
    """
    head = _head(file, wrong)
    tensors: dict[str, Tensor] = {}
    unknown = []
    for name, entry in head.tensors.items():
        target = hub_name(name, "blk", NAMES)
        if target is not None:
            tensors[target] = _tensor(file, target, entry, head, wrong)
        elif name != FACTORS:
            unknown.append(name)
    if unknown:
        wrong.append(f"tensor {sample(unknown)} is unknown, no part of a Llama")
    _check_size(file, head, wrong)
    refuse(file, wrong)
    return Source(file, hub_config(file, head, tensors), tensors, (file,), native=True)


def _head(file: Path, wrong: list[str]) -> Head:
    if (reason := unusable(file)) is not None:
        wrong.append(reason)
        refuse(file, wrong)
    try:
        head = read_head(file)
    except ValueError as error:
        wrong.append(f"{file.name} cannot be read as GGUF: {error}; {AGAIN}")
        refuse(file, wrong)
    values = head.values
    found = values.get("general.architecture")
    if found != ARCHITECTURE:
        wrong.append(f"general.architecture is {found!r}, expected {ARCHITECTURE!r}")
    else:
        wrong += [f"no value {ARCHITECTURE}.{k}" for k in REQUIRED if f"llama.{k}" not in values]
        if "token_embd.weight" not in head.tensors:
            wrong.append("no tensor token_embd.weight")
    if values.get("llama.expert_count"):
        wrong.append(f"llama.expert_count is {values['llama.expert_count']}, expected no experts")
    if values.get("split.count", 1) > 1:
        wrong.append("split.count: the model goes over several files; join them to one first")
    refuse(file, wrong)
    return head


def _check_size(file: Path, head: Head, wrong: list[str]) -> None:
    size = file.stat().st_size
    ends = [e.offset + _layout(file, e)[1] for e in head.tensors.values() if _known(file, e)]
    if ends and max(ends) > size:
        wrong.append(f"{file.name} has {size} bytes, its header says {max(ends)}; {AGAIN}")


# ---- tensors ----


def _tensor(file: Path, target: str, entry: Entry, head: Head, wrong: list[str]) -> Tensor:
    if not _known(file, entry):
        wrong.append(f"{target} has GGML's type {entry.kind}, which the gguf package cannot read")
    layer = target.split(".")[-2]
    query, key = heads(head.values)
    turned = {"q_proj": query, "k_proj": key}.get(layer)
    if turned is not None and (turned < 1 or entry.shape[0] % (2 * turned)):
        wrong.append(f"{target} {list(entry.shape)} is not made of the rows of {turned} heads")
    read = functools.partial(_read, file, entry, turned)
    return Tensor(entry.shape, PLAIN.get(entry.kind, np.dtype(np.float32)), file, read)


def _read(file: Path, entry: Entry, turned: int | None) -> np.ndarray:
    if entry.kind in PLAIN:
        value = read_bytes(file, PLAIN[entry.kind], entry.shape, entry.offset)
    else:
        gguf = _package(file)
        shape, _ = _layout(file, entry)
        data = read_bytes(file, np.dtype(np.uint8), shape, entry.offset)
        value = gguf.dequantize(data, gguf.GGMLQuantizationType(entry.kind))
    return value if turned is None else halves(value, turned)


def _layout(file: Path, entry: Entry) -> tuple[tuple[int, ...], int]:
    """(shape in bytes, count of bytes) of a tensor in the file."""
    if entry.kind in PLAIN:
        block, size = 1, PLAIN[entry.kind].itemsize
    else:
        gguf = _package(file)
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(entry.kind)]
    shape = (*entry.shape[:-1], entry.shape[-1] // block * size)
    return shape, math.prod(shape)


def _known(file: Path, entry: Entry) -> bool:
    """Whether numbers can be made of a tensor's type."""
    if entry.kind in PLAIN:
        return True
    gguf = _package(file)
    try:
        kind = gguf.GGMLQuantizationType(entry.kind)
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):
        return False
    return entry.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0


def _package(file: Path) -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError(
            f"{file}: its weights are quantised, and the package gguf is not installed; "
            "pip install gguf"
        ) from None
    return gguf
