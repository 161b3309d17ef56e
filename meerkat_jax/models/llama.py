"""The Llama decoder (Touvron et al. 2023): RMSNorm, rotary positions, SwiGLU, grouped queries.

Parameters keep the published names and values: `layers` holds q, k, v, o, gate, up, down of all
layers, stacked on a leading axis L by `nn.scan`. A checkpoint's vocabulary stays as published; what
is added to it has rows of its own (`Llama.pretrained`).

Several questions share one prefix of image and audio tokens, and generation extends a cache
(nn/attention.py).

Letters: B batch, S sequence or cache slots, D width, H heads, K key-value heads, Dh head width,
L layers, C vocabulary, W published pieces.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict
from jax.ad_checkpoint import checkpoint_name

from meerkat_jax.core.errors import UserError
from meerkat_jax.nn.attention import (
    ATTENTION,
    NEGATIVE,
    Layout,
    attend_fused,
    attend_layout,
    attend_row,
)
from meerkat_jax.nn.dense import LECUN, Dense, LoraConfig
from meerkat_jax.nn.norms import RMSNorm
from meerkat_jax.nn.rotary import RopeScaling, rotary, rotate

REMAT = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
    "weights": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "qkvo": jax.checkpoint_policies.save_only_these_names("q", "k", "v", "o"),
    "products": jax.checkpoint_policies.save_only_these_names("q", "k", "v", "o", "gate", "up"),
}

ROWS = 64  # a published table is filled up to a multiple of it, to be divided over devices

Cache = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Mode:
    """The static arguments of `Llama.__call__`."""

    layout: Layout | None = None
    deterministic: bool = True
    keep_layers: bool = False


class Placement(Protocol):
    """Sharding and dequantisation of arrays at their use (parallel/placement.py)."""

    def gather_layer(self, params: dict, dtype: jnp.dtype) -> dict:
        """Parameters of one `Block`, gathered over fsdp and dequantised to `dtype`."""

    def gather_params(self, params: dict) -> dict:
        """All other parameters, gathered."""

    def constrain_batch(self, x: jax.Array) -> jax.Array:
        """An activation [B, ...] with the batch's sharding."""


def init_cache(model: Llama, batch: int, slots: int) -> Cache:
    """An empty cache: k and v float[L, B, K, S, Dh], valid bool[B, S]."""
    shape = (model.depth, batch, model.kv_heads, slots, model.head_width)
    empty = {name: jnp.zeros(shape, model.dtype) for name in ("k", "v")}  # each its own memory
    return empty | {"valid": jnp.zeros((batch, slots), bool)}


class Block(nn.Module):
    """One layer: x + attention(norm(x)), then x + SwiGLU(norm(x)) (Shazeer 2020, eq. 6)."""

    heads: int
    kv_heads: int
    head_width: int
    mlp_dim: int
    norm_eps: float
    lora: LoraConfig | None
    dtype: jnp.dtype
    placement: Placement | None = None
    attention: str = "plain"
    kernel_inits: FrozenDict = FrozenDict()

    def dense(self, name: str, x: jax.Array, features: int, deterministic: bool) -> jax.Array:
        """The bias-free Dense `name`, adapted if LoRA targets it; its output can be saved."""
        lora = self.lora.for_layer(name) if self.lora else None
        init = self.kernel_inits.get(name, LECUN)
        layer = Dense(
            features, use_bias=False, lora=lora, kernel_init=init, dtype=self.dtype, name=name
        )
        return checkpoint_name(layer(x, deterministic=deterministic), name)

    @nn.compact
    def __call__(self, x, row, past, mode: Mode):
        """x float[B, S, D], row = dict of cosine, sine, valid, segment_ids, cached; past = (k, v).

        Returns (x, outputs): outputs has k and v float[B, K, S, Dh] of these tokens if there is a
        past, and x when the mode keeps layers.
        """
        if self.placement is not None:
            x = self.placement.constrain_batch(x)
        b, s, width = x.shape
        head = self.head_width
        dense = functools.partial(self.dense, deterministic=mode.deterministic)

        y = RMSNorm(self.norm_eps, self.dtype, name="attention_norm")(x)
        # [B, S, D] -> [B, S, H, Dh], [B, S, K, Dh]
        q = dense("q", y, self.heads * head).reshape(b, s, self.heads, head)
        k = dense("k", y, self.kv_heads * head).reshape(b, s, self.kv_heads, head)
        v = dense("v", y, self.kv_heads * head).reshape(b, s, self.kv_heads, head)
        scale = head**-0.5  # of the scores, applied where it rounds once
        q = rotate(q, row["cosine"] * scale, row["sine"] * scale)
        k = rotate(k, row["cosine"], row["sine"])
        # [B, S, H, Dh] -> [B, K, S, G, Dh], G = H / K queries per key-value head
        q = q.reshape(b, s, self.kv_heads, -1, head).transpose(0, 2, 1, 3, 4)
        # [B, S, K, Dh] -> [B, K, S, Dh]
        k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)  # batched products run faster
        if self.attention == "cudnn" and past is None:
            y = attend_fused(q, k, v, mode.layout, row["valid"], row["segment_ids"])
        elif mode.layout is not None:
            y = attend_layout(q, k, v, mode.layout, row["valid"], row["segment_ids"])
        else:
            y = attend_row(q, k, v, row["valid"], past and (*past, row["cached"]))
        # [B, K, S, G, Dh] -> [B, S, H * Dh]
        y = y.astype(self.dtype).transpose(0, 2, 1, 3, 4).reshape(b, s, -1)
        x = x + dense("o", y, width)

        y = RMSNorm(self.norm_eps, self.dtype, name="mlp_norm")(x)
        gate = nn.silu(dense("gate", y, self.mlp_dim))
        x = x + dense("down", gate * dense("up", y, self.mlp_dim), width)
        outputs = {"k": k, "v": v} if past is not None else {}
        return x, outputs | {"x": x} if mode.keep_layers else outputs


class Llama(nn.Module):
    """The decoder over embeddings, so that image and audio tokens can stand among text tokens.

    `head_dim` None means width / heads, `embed_std` None width**-0.5; `remat` is "none" or a key of
    `REMAT`, `attention` one of `ATTENTION`; `tied` logits reuse the embedding. Parameters are
    float32, computation is in `dtype`, logits are float32.

    `pretrained` is W, the pieces of a checkpoint's vocabulary (0: there is no checkpoint, and the
    embedding is one table of C rows). With it the tables `embedding` and of the head hold those
    pieces, filled up to a multiple of `ROWS`, and can stay frozen; tokens from W on, which occur
    in inputs only, have the rows `added` float[C - W, D].

    With `unstack_layers` the layers' parameters are separate trees, `layers/0` and so on, and the
    scan is unrolled (inference/decoder_weights.py).

    A `placement` and `unstack_layers` are for models that have parameters, not for making them.
    """

    vocab_size: int = 32000
    width: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int = 32
    head_dim: int | None = None
    mlp_dim: int = 11008
    rope_theta: float = 1e4
    norm_eps: float = 1e-5
    tied: bool = False
    remat: str = "none"
    lora: LoraConfig | None = None
    dtype: jnp.dtype = jnp.float32
    embed_std: float | None = None
    pretrained: int = 0
    rope_scaling: RopeScaling | None = None
    placement: Placement | None = None
    attention: str = "plain"
    unstack_layers: bool = False
    kernel_inits: FrozenDict = FrozenDict()

    def setup(self):
        """Build the scanned layers; raises UserError on sizes that do not divide."""
        self._check()
        std = self.width**-0.5 if self.embed_std is None else self.embed_std
        init = nn.initializers.normal(std)
        self.embedding = self.param("embedding", init, (self.table_rows, self.width))
        if self.added_rows:
            self.added = self.param("added", init, (self.added_rows, self.width))
        block = Block
        if self.placement is not None:  # within remat: what is made there is made again
            gather_layer = functools.partial(_gather_layer, self.placement, self.dtype)
            block = nn.map_variables(block, "params", trans_in_fn=gather_layer)
        if self.remat != "none":
            policy = REMAT[self.remat]
            block = nn.remat(block, policy=policy, prevent_cse=False, static_argnums=(4,))
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0, nn.broadcast),
            length=self.depth,
            unroll=self.depth if self.unstack_layers else 1,
        )
        if self.unstack_layers:
            stack = nn.map_variables(stack, "params", trans_in_fn=_stacked)
        self.layers = stack(
            self.heads,
            self.kv_heads,
            self.head_width,
            self.mlp_dim,
            self.norm_eps,
            self.lora,
            self.dtype,
            self.placement,
            self.attention,
            self.kernel_inits,
        )
        self.norm = RMSNorm(self.norm_eps, self.dtype)
        if not self.tied:
            self.lm_head = Dense(self.table_rows, use_bias=False, dtype=self.dtype)

    @property
    def head_width(self) -> int:
        """Dh: `head_dim`, or what is left of the width for each head."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def table_rows(self) -> int:
        """Rows of `embedding`, and columns of the head."""
        return self.pretrained + -self.pretrained % ROWS if self.pretrained else self.vocab_size

    @property
    def added_rows(self) -> int:
        """Rows of `added`; there is no such leaf without any."""
        return self.vocab_size - self.pretrained if self.pretrained else 0

    def _check(self) -> None:
        whole = self.head_dim is not None or self.width % self.heads == 0
        even = self.head_width > 0 and self.head_width % 2 == 0  # RoPE turns pairs of features
        if not (whole and even) or self.heads % self.kv_heads:
            raise UserError(
                f"llama: width {self.width}, heads {self.heads}, kv_heads {self.kv_heads}, "
                f"head_dim {self.head_dim}: head_dim (if None, width / heads) must be a multiple "
                "of 2 above 0, and heads one of kv_heads; change one of them"
            )
        if not 0 <= self.pretrained <= self.vocab_size:
            raise UserError(
                f"llama: the checkpoint has {self.pretrained} pieces, the tokenizer "
                f"{self.vocab_size}; use the checkpoint's own tokenizer"
            )
        if self.attention not in ATTENTION:
            raise UserError(
                f"llama: attention {self.attention!r} is unknown; choose one of {ATTENTION}"
            )
        if self.attention == "cudnn" and self.dtype == jnp.float32:
            raise UserError('llama: attention "cudnn" computes in bfloat16; set dtype to it')
        if self.remat != "none" and self.remat not in REMAT:
            known = ", ".join(["none", *REMAT])
            raise UserError(f"llama: remat {self.remat!r} is unknown; choose one of {known}")

    def embed(self, ids: jax.Array) -> jax.Array:
        """int[...] token ids in 0..C-1 -> float[..., D]."""
        if not self.added_rows:
            return jnp.take(self.embedding, ids, axis=0).astype(self.dtype)
        own = ids - self.pretrained
        published = jnp.take(self.embedding, jnp.minimum(ids, self.pretrained - 1), axis=0)
        added = jnp.take(self.added, jnp.maximum(own, 0), axis=0)
        return jnp.where(own[..., None] < 0, published, added).astype(self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float[..., D] after the final norm -> float32[..., C]; NEGATIVE for added tokens."""
        if self.tied:
            table = self.embedding.astype(self.dtype)
            logits = jnp.einsum("...d,cd->...c", hidden, table, preferred_element_type=jnp.float32)
        else:
            logits = self.lm_head(hidden).astype(jnp.float32)
        if not self.pretrained:
            return logits
        missing = [(0, 0)] * (logits.ndim - 1) + [(0, max(self.vocab_size - self.table_rows, 0))]
        logits = jnp.pad(logits, missing)[..., : self.vocab_size]
        return jnp.where(jnp.arange(self.vocab_size) < self.pretrained, logits, NEGATIVE)

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        layout: Layout | None = None,
        valid: jax.Array | None = None,
        cache: Cache | None = None,
        slot: jax.Array | int = 0,
        segment_ids: jax.Array | None = None,
        deterministic: bool = True,
        keep_layers: bool = False,
    ) -> dict[str, jax.Array | Cache]:
        """Run the stack causally, or under `layout`, or after the tokens of `cache`.

        x float[B, S, D]; positions int[B or 1, S], free of the slots; valid bool[B, S], False for
        padding that nobody may attend to; segment_ids int[B, R, T] go with a layout. With a
        cache the S tokens take the slots from `slot` on, none of which may be valid before, and
        attend to all valid slots and, causally, to one another.

        Returns hidden float[B, S, D] (after the final norm), stream float[B, S, D] (before it),
        with a cache the updated `cache`, with keep_layers `layers` float[L, B, S, D]. LoRA drops
        out when `deterministic` is False, and then needs the rng "dropout". Raises UserError when
        the layout or the cache does not fit the tokens.
        """
        cosine, sine = rotary(positions, self.head_width, self.rope_theta, self.rope_scaling)
        row = {
            "cosine": cosine,
            "sine": sine,
            "valid": valid,
            "segment_ids": segment_ids,
            "cached": None,
        }
        past = None
        _check_call(x, layout, cache, slot)
        if cache is not None:
            row["cached"] = cache["valid"]
            past = (cache["k"], cache["v"])
        mode = Mode(layout, deterministic, keep_layers)
        stream, new = self.layers(x.astype(self.dtype), row, past, mode)
        out = {"hidden": self.norm(stream), "stream": stream}
        if cache is not None:
            out["cache"] = _write(cache, new, valid, slot)
        if keep_layers:
            out["layers"] = new["x"]
        return out


def _gather_layer(placement: Placement, dtype: jnp.dtype, variables: dict) -> dict:
    return {"params": placement.gather_layer(variables["params"], dtype)}


def _stacked(variables: dict) -> dict:
    """Stack the layers for the unrolled scan; the compiler removes the stack and its slices."""
    layers = variables["params"]
    each = [layers[str(number)] for number in range(len(layers))]
    return {"params": jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)}


def _check_call(x, layout, cache, slot) -> None:
    if layout is not None and layout.size != x.shape[1]:
        raise UserError(f"llama: {layout} is for {layout.size} tokens, the row has {x.shape[1]}")
    if layout is not None and cache is not None:
        raise UserError("llama: a layout and a cache exclude each other; pass one of them")
    if cache is not None:
        slots = cache["valid"].shape[1]
        start = slot if isinstance(slot, int) else 0
        if start + x.shape[1] > slots:
            raise UserError(
                f"llama: {x.shape[1]} tokens at slot {start} do not fit a cache of {slots} slots; "
                "make it longer"
            )


def _write(cache: Cache, new: dict[str, jax.Array], valid: jax.Array | None, slot) -> Cache:
    def put(old: jax.Array, value: jax.Array, axis: int) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(old, value.astype(old.dtype), slot, axis)

    if valid is None:
        _, batch, _, tokens, _ = new["k"].shape
        valid = jnp.ones((batch, tokens), bool)
    return {
        "k": put(cache["k"], new["k"], 3),
        "v": put(cache["v"], new["v"], 3),
        "valid": put(cache["valid"], valid, 1),
    }
