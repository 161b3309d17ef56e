"""What the two foreign layouts of Llama, Meta's own and GGUF's, have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Query or key rows from Meta's order of rotary pairs to the hub's, one head after another.

    Meta rotates neighbours (0 with 1, 2 with 3), the hub the halves of a head (0 with Dh/2), which
    is the same model with its rows in another order. float[heads * Dh, ...] -> same shape.
    Source: Su et al. 2021, eq. 34, and the two layouts' published weights.
    """
    pairs = rows.reshape(heads, len(rows) // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows.shape))


def hub_name(name: str, block: str, names: Mapping[str, str]) -> str | None:
    """The hub's name of a tensor, None if `names` does not know it.

    "layers.3.attention.wq.weight" with block "layers" and {"attention.wq": "self_attn.q_proj"}
    gives "model.layers.3.self_attn.q_proj.weight".
    """
    stem, _, kind = name.rpartition(".")
    found = re.fullmatch(rf"{block}\.(\d+)\.(.+)", stem)
    target = names.get(found[2] if found else stem)
    if target is None or kind not in ("weight", "bias"):
        return None
    return f"model.layers.{found[1]}.{target}.{kind}" if found else f"{target}.{kind}"


def llama_config(tensors: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """The hub's config.json of a Llama with these `tensors` (by hub name) and `fields`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": any(name.endswith("q_proj.bias") for name in tensors),
        "mlp_bias": any(name.endswith("gate_proj.bias") for name in tensors),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        **fields,
    }
