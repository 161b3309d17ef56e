"""What a GGUF file says beside its tensors: the model's settings and its tokenizer.

Source: github ggml-org/ggml, docs/gguf.md (keys and their defaults); Dubey et al. 2024 and
nn/rotary.py (the rotary factors of Llama 3).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.files import read_bytes
from meerkat_jax.weights.gguf_file import Head
from meerkat_jax.weights.layouts import llama_config
from meerkat_jax.weights.source import Tensor

FACTORS = "rope_freqs.weight"  # Llama 3's stretched rotary positions, one divisor per pair


def heads(values: Mapping[str, Any]) -> tuple[int, int]:
    """How many heads queries and keys have."""
    query = values["llama.attention.head_count"]
    return query, values.get("llama.attention.head_count_kv", query)


def hub_config(file: Path, head: Head, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The hub's config.json; `tensors` by hub name. UserError for other rotary positions."""
    values = {key.removeprefix("llama."): value for key, value in head.values.items()}
    query, key = heads(head.values)
    width = values.get("attention.key_length", values["embedding_length"] // query)
    turned = values.get("rope.dimension_count", width)
    if turned != width:
        raise UserError(
            f"{file}: llama.rope.dimension_count is {turned}, expected the width of a head, {width}"
        )
    theta = _decimal(values.get("rope.freq_base", 10000.0))
    tokens = {
        f"{name}_token_id": values.get(f"tokenizer.ggml.{long}_token_id")
        for name, long in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return llama_config(
        tensors,
        vocab_size=tensors["model.embed_tokens.weight"].shape[0],
        hidden_size=values["embedding_length"],
        intermediate_size=values["feed_forward_length"],
        num_hidden_layers=values["block_count"],
        num_attention_heads=query,
        num_key_value_heads=key,
        head_dim=width,
        rms_norm_eps=_decimal(values["attention.layer_norm_rms_epsilon"]),
        rope_theta=theta,
        rope_scaling=_scaling(file, head, width, theta),
        max_position_embeddings=values.get("context_length", 4096),
        **tokens,
    )


def _decimal(value: float) -> float:
    """The short decimal that a float32 was made of: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _scaling(file: Path, head: Head, width: int, theta: float) -> dict[str, Any] | None:
    """The hub's rope_scaling, from the values or from the factors of Llama 3."""
    values = head.values
    kind = values.get("llama.rope.scaling.type", "none")
    if kind != "none":
        return {"rope_type": kind, "factor": values.get("llama.rope.scaling.factor")}
    if FACTORS not in head.tensors:
        return None
    entry = head.tensors[FACTORS]
    factors = read_bytes(file, np.dtype("<f4"), entry.shape, entry.offset)
    rule = {
        "rope_type": "llama3",
        "factor": float(f"{factors.max():.5g}"),  # a quotient of float32s may be 8.000001
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if not np.allclose(factors, _llama3(rule, width, theta), rtol=1e-3):
        raise UserError(
            f"{file}: tensor {FACTORS} does not follow Llama 3's rule with factor "
            f"{rule['factor']:g}, frequencies 1 to 4, length 8192; other rules are not supported"
        )
    return rule


def _llama3(rule: Mapping[str, Any], width: int, theta: float) -> np.ndarray:
    """By what each pair turns slower, float[width/2] (Dubey et al. 2024; nn/rotary.py)."""
    turns = rule["original_max_position_embeddings"] / (2 * math.pi)
    turns = turns * theta ** (-np.arange(0, width, 2) / width)
    low, high = rule["low_freq_factor"], rule["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / (kept + (1.0 - kept) / rule["factor"])


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokenizer of a file, as its metadata has it.

    kind: "llama" (sentencepiece: `scores`) or "gpt2" (BPE on bytes: `merges`, "left right" each);
    pre: the name of the rule that splits text before BPE, as in "smollm" or "llama-bpe";
    types: GGML's: 1 normal, 2 unknown, 3 control, 4 added by a user, 5 unused, 6 a byte.
    """

    kind: str
    pre: str | None
    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...]
    bos: int | None
    eos: int | None
    unknown: int | None
    pad: int | None
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    chat_template: str | None


def vocabulary(file: Path, values: Mapping[str, Any]) -> Vocabulary:
    """The tokenizer of a file with these `values`; UserError when it has none."""
    named = functools.partial(_named, values)
    if named("tokens") is None or named("model") is None:
        raise UserError(f"{file} has no tokenizer: no tokenizer.ggml.tokens; use the original's")
    pieces = tuple(named("tokens"))
    sentences = named("model") == "llama"
    return Vocabulary(
        kind=named("model"),
        pre=named("pre"),
        pieces=pieces,
        scores=tuple(named("scores", ())),
        types=tuple(named("token_type", (1,) * len(pieces))),
        merges=tuple(named("merges", ())),
        bos=named("bos_token_id"),
        eos=named("eos_token_id"),
        unknown=named("unknown_token_id"),
        pad=named("padding_token_id"),
        add_bos=named("add_bos_token", sentences),  # llama.cpp's own defaults
        add_eos=named("add_eos_token", False),
        add_space_prefix=named("add_space_prefix", sentences),
        chat_template=values.get("tokenizer.chat_template"),
    )


def _named(values: Mapping[str, Any], name: str, default: Any = None) -> Any:
    return values.get(f"tokenizer.ggml.{name}", default)
