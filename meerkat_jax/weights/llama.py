"""The table of Llama: what a hub config means to our decoder, and where its tensors go.

Any `LlamaForCausalLM` is read, whatever its size: Llama-2 and 3, TinyLlama, SmolLM2. What a config
asks for that our decoder does not compute is refused by the name of its field. Defaults of absent
fields are those of transformers' LlamaConfig.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.models.llama import ROWS
from meerkat_jax.nn.rotary import RopeScaling
from meerkat_jax.weights.fields import ratio, require, require_multiple, size
from meerkat_jax.weights.source import Source, Tensor
from meerkat_jax.weights.table import LINEAR, SAME, Change, Row

PROJECTIONS = {  # our name -> the hub's, within a layer; LoRA may adapt each of them
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
LAYER = "model.layers.{i}."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
INNER = ("layers.", "embed_tokens.", "norm.", "rotary_emb.")  # begin the names of a LlamaModel
ADAPTER = "base_model.model."  # what peft puts before a name
SIZES = {  # the hub's field -> ours, the class default
    "vocab_size": ("pretrained", 32000),
    "hidden_size": ("width", 4096),
    "num_hidden_layers": ("depth", 32),
    "num_attention_heads": ("heads", 32),
    "intermediate_size": ("mlp_dim", 11008),
}
ONLY = {  # what our decoder computes; the first is the class default
    "hidden_act": ("silu", "swish"),  # two names of one function
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0.0,),
    "partial_rotary_factor": (1.0,),
    "quantization_config": (None,),
}
SCALINGS = ("default", "linear", "llama3")  # `rope_type`
LENGTH = "original_max_position_embeddings"


def fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A hub config as fields of `models.llama.Llama`, to be kept as JSON; see `as_module`.

    `where` begins the error. Raises UserError, by the name of the field, for what our decoder does
    not compute.
    """
    place = f"{where}: "
    require({"model_type": config.get("model_type")}, {"model_type": ("llama",)}, place)
    own = {name: value for name, value in config.items() if value is not None}
    require(own, ONLY, place)
    found = {ours: size(own, name, default, place) for name, (ours, default) in SIZES.items()}
    width, heads = found["width"], found["heads"]
    kv_heads = size(own, "num_key_value_heads", heads, place)
    require_multiple(place, "num_attention_heads", heads, "num_key_value_heads", kv_heads)
    if "head_dim" not in own:
        require_multiple(place, "hidden_size", width, "num_attention_heads", heads)
    head_dim = size(own, "head_dim", width // heads, place)
    require_multiple(place, "head_dim", head_dim, "a pair of features", 2)
    return found | {
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "norm_eps": float(ratio(own, "rms_norm_eps", 1e-6, place)),
        "tied": bool(own.get("tie_word_embeddings", False)),
        **_rope(own, place),
    }


def _rope(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """rope_theta and rope_scaling (fields of `RopeScaling`, or None) of a config without nulls.

    transformers 5 has them in `rope_parameters`, before it `rope_theta` was a field of its own and
    the rest `rope_scaling`, with `type` for `rope_type` in the oldest.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    own, inner = config.get(name, {}), f"{place}{name}."
    if not isinstance(own, Mapping):
        raise UserError(f"{place}{name} is {own!r}, expected an object of fields")
    own = {"rope_theta": config.get("rope_theta", 1e4), **own}
    own.setdefault("rope_type", own.get("type", "default"))
    if LENGTH in config:  # counts before that of the inner object
        own[LENGTH] = config[LENGTH]
    own.setdefault(LENGTH, config.get("max_position_embeddings", 2048))
    only = {"rope_type": SCALINGS, "partial_rotary_factor": (1.0,)}
    nested = {key: (None,) for key, value in own.items() if isinstance(value, Mapping)}
    require(own, only | nested, inner)  # one rotation for all layers
    scaling = None if own["rope_type"] == "default" else _scaling(own, inner)
    return {"rope_theta": float(ratio(own, "rope_theta", 1e4, inner)), "rope_scaling": scaling}


def _scaling(own: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Fields of `RopeScaling`; UserError if it refuses them or one is missing."""
    found = {"kind": own["rope_type"], "factor": float(ratio(own, "factor", None, place))}
    if found["kind"] == "llama3":
        found |= {
            "low": float(ratio(own, "low_freq_factor", None, place)),
            "high": float(ratio(own, "high_freq_factor", None, place)),
            "length": size(own, LENGTH, None, place),
        }
    try:
        RopeScaling(**found)
    except UserError as error:
        raise UserError(f"{place[:-1]}: {error}") from None
    return found


def as_module(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as they were kept -> arguments of `Llama`, by default without added tokens."""
    scaling = fields["rope_scaling"] and RopeScaling(**fields["rope_scaling"])
    return {"vocab_size": fields["pretrained"], **fields, "rope_scaling": scaling}


def rows(fields: Mapping[str, Any]) -> tuple[Row, ...]:
    """The table of the model, from `fields` as of this module's function."""
    pieces = fields["pretrained"]

    def frequencies() -> np.ndarray:  # as the files have them, without a RopeScaling
        width = fields["head_dim"]
        return fields["rope_theta"] ** (-np.arange(0, width, 2) / width)

    head = Row(HEAD, "lm_head/kernel", _filled(pieces, LINEAR))
    if fields["tied"]:
        head = Row(HEAD, None)  # some files repeat the embedding so
    return (
        Row(EMBEDDING, "embedding", _filled(pieces)),
        *(
            Row(f"{LAYER}{theirs}.weight", f"layers/{ours}/kernel", LINEAR)
            for ours, theirs in PROJECTIONS.items()
        ),
        Row(f"{LAYER}input_layernorm.weight", "layers/attention_norm/scale"),
        Row(f"{LAYER}post_attention_layernorm.weight", "layers/mlp_norm/scale"),
        Row("model.norm.weight", "norm/scale"),
        head,
        # Old files keep the turns of the rotary positions, which follow from the config.
        Row(f"{LAYER}self_attn.rotary_emb.inv_freq", None, computed=frequencies),
        Row("model.rotary_emb.inv_freq", None, computed=frequencies),
    )


def as_loaded(source: Source) -> Source:
    """The checkpoint as transformers 5 loads it, with a note where that is not what it says.

    `tie_word_embeddings` makes the embedding serve as the head. A file that has another head than
    that stays untied; one that has just one of the two uses it as both; names that all lack
    "model.", as a LlamaModel saved alone has them, get it.
    """
    tensors, config, notes = dict(source.tensors), dict(source.config), list(source.notes)
    if tensors and all(name.startswith(INNER) for name in tensors):
        tensors = {f"model.{name}": tensor for name, tensor in tensors.items()}
        notes.append("the model was saved without its head: names get 'model.' before them")
    if config.get("tie_word_embeddings") and HEAD in tensors:
        if EMBEDDING not in tensors:
            tensors[EMBEDDING] = tensors.pop(HEAD)
            notes.append(f"tie_word_embeddings is true: {HEAD} serves as {EMBEDDING} too")
        elif not _equal(tensors[HEAD], tensors[EMBEDDING]):
            config["tie_word_embeddings"] = False
            notes.append(
                f"tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}: the two stay "
                "apart, as in transformers"
            )
    return dataclasses.replace(source, tensors=tensors, config=config, notes=tuple(notes))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and np.array_equal(one.read(), other.read())


def adapter_rows(targets: Iterable[str]) -> tuple[Row, ...]:
    """The table of peft's LoRA tensors of the layers `targets`, keys of `PROJECTIONS`.

    Raises UserError for another target.
    """
    found = []
    for target in targets:
        if target not in PROJECTIONS:
            known = ", ".join(PROJECTIONS)
            raise UserError(f"LoRA target {target!r} is unknown; choose from {known}")
        for half in "ab":
            theirs = f"{ADAPTER}{LAYER}{PROJECTIONS[target]}.lora_{half.upper()}.weight"
            found.append(Row(theirs, f"layers/{target}/lora_{half}", LINEAR))
    return tuple(found)


def _filled(pieces: int, change: Change = SAME) -> Change:
    """Zeros below [W, D] up to a multiple of `ROWS`, and then `change`."""
    missing = -pieces % ROWS

    def filled(x: np.ndarray) -> np.ndarray:  # often no copy of what is the largest tensor
        return np.pad(x, ((0, missing), (0, 0))) if missing else x

    return Change(lambda x: change.forward(filled(x)), lambda x: change.back(x)[:pieces])
