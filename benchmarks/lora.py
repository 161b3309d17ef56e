"""A LoRA training step of ours and of transformers + peft, at any size.

The same work on both sides: next-token cross-entropy over all tokens, no dropout, gradients of the
adapters alone, AdamW with torch's defaults. Adapters are float32; with a bfloat16 base ours
computes in bfloat16 and theirs under torch's autocast, as peft's own recipes do.

Letters: B batch, S sequence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import torch
import transformers

from meerkat_jax.core.trees import merge
from meerkat_jax.models.llama import Llama
from meerkat_jax.nn.dense import LoraConfig

RANK = 32
TARGETS = ("q", "k", "v", "o")
RATE, DECAY = 1e-4, 0.01
LORA = LoraConfig(rank=RANK, alpha=float(RANK), dropout=0.0, targets=TARGETS)
ADAPTED = "lora_[ab]$"


def logits(model: Llama, ids: jax.Array) -> jax.Array:
    """int[B, S] -> float32[B, S, C]; a method for `apply` and `init`."""
    places = jnp.arange(ids.shape[1])[None]
    return model.logits(model(model.embed(ids), places)["hidden"])


def our_step(model: Llama) -> tuple[Callable[[dict], dict], Callable]:
    """(`start(trainable) -> state`, `step(state, frozen, ids) -> (state, loss)`, state donated)."""
    optimizer = optax.adamw(RATE, b2=0.999, weight_decay=DECAY)

    def loss(trainable: dict, frozen: dict, ids: jax.Array) -> jax.Array:
        scores = model.apply({"params": merge(trainable, frozen)}, ids, method=logits)
        after = jnp.roll(ids, -1, axis=1)  # so that no copy of the logits without the last is made
        each = optax.softmax_cross_entropy_with_integer_labels(scores, after)
        return each[:, :-1].mean()

    def step(state: dict, frozen: dict, ids: jax.Array) -> tuple[dict, jax.Array]:
        value, grads = jax.value_and_grad(loss)(state["trainable"], frozen, ids)
        updates, opt = optimizer.update(grads, state["opt"], state["trainable"])
        return {"trainable": optax.apply_updates(state["trainable"], updates), "opt": opt}, value

    def start(trainable: dict) -> dict:
        return {"trainable": trainable, "opt": optimizer.init(trainable)}

    return start, jax.jit(step, donate_argnums=0)


class OurTraining:
    """Calls that go on training: each does one step on `ids` and returns the loss."""

    def __init__(self, step: Callable, state: dict, frozen: dict, ids: jax.Array):
        """`step` as `our_step` gives it, compiled or not; `state` is used up."""
        self.step, self.state, self.frozen, self.ids = step, state, frozen, ids

    def __call__(self) -> float:
        """One step, waited for."""
        self.state, loss = self.step(self.state, self.frozen, self.ids)
        return float(jax.block_until_ready((self.state, loss))[1])


def peer_model(
    sizes: Mapping[str, Any], device: str, narrow: bool
) -> transformers.LlamaForCausalLM:
    """transformers' model with random weights on `device`, bfloat16 if `narrow`, SDPA attention."""
    config = transformers.LlamaConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv_heads"],
        intermediate_size=sizes["mlp_dim"],
        rope_parameters={"rope_type": "default", "rope_theta": sizes.get("rope_theta", 1e4)},
        rms_norm_eps=1e-5,
        tie_word_embeddings=sizes.get("tied", False),
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    dtype = torch.bfloat16 if narrow else torch.float32
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return transformers.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def adapted(model: transformers.LlamaForCausalLM) -> peft.PeftModel:
    """The model with peft's adapters on q, k, v, o; they are float32, the rest is frozen."""
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        lora_dropout=0.0,
        target_modules=[f"{name}_proj" for name in TARGETS],
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config).train()


class TheirTraining:
    """As `OurTraining`, in torch."""

    def __init__(self, model: peft.PeftModel, ids: np.ndarray, narrow: bool):
        """`ids` int[B, S]; `narrow` computes under bfloat16 autocast."""
        self.model, self.device = model, next(model.parameters()).device
        self.ids = torch.tensor(np.asarray(ids), dtype=torch.long, device=self.device)
        self.narrow = narrow
        chosen = [p for p in model.parameters() if p.requires_grad]
        fused = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(chosen, lr=RATE, weight_decay=DECAY, fused=fused)

    def __call__(self) -> float:
        """One step, waited for."""
        kind = torch.autocast(self.device.type, torch.bfloat16)
        with kind if self.narrow else contextlib.nullcontext():
            loss = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item() if self.device.type == "cpu" else _waited(loss)


def _waited(loss: torch.Tensor) -> float:
    torch.cuda.synchronize()
    return loss.item()
