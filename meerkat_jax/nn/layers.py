"""Layers that the towers and the language model share: Dense with LoRA, RMSNorm, attention.

LoRA (Hu et al. 2021, eq. 3) lives inside `Dense`, so a model is adapted by its configuration and
its tree keeps its shape: `kernel` and `bias` as published, `lora_a` and `lora_b` beside them.

Letters: B batch, S sequence, D width, H heads, K key-value heads, Q query places, R LoRA rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

LECUN = nn.initializers.lecun_normal()
NEGATIVE = -1e30  # finite, so that a row with nothing to attend to gives a mean and not a NaN


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What to adapt: `targets` name Dense layers ("q", "k", "v", "o", "gate", "up", "down")."""

    rank: int = 32
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] = ("q", "k", "v", "o")

    def for_layer(self, name: str) -> LoraConfig | None:
        """This config if the layer `name` is a target, otherwise None."""
        return self if name in self.targets else None


class Dense(nn.Module):
    """`x @ kernel + bias + alpha/R * dropout(x) @ lora_a @ lora_b`; lora_b starts at zero.

    float[..., I] -> float[..., features]. Parameters: kernel float[I, features], bias
    float[features], lora_a float[I, R], lora_b float[R, features]. A kernel may be int8 if there is
    kernel_scale float[1, features], too (parallel/quantise.py): int8 numbers are exact in any
    dtype, and scaling what comes out spares a scaled copy of the kernel.
    """

    features: int
    use_bias: bool = True
    lora: LoraConfig | None = None
    kernel_init: Callable = LECUN
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        """Apply to float[..., I]; dropout acts on the LoRA branch only, as in peft."""
        *lead, width = x.shape
        kernel = self.param("kernel", self.kernel_init, (width, self.features))
        x = x.reshape(-1, width).astype(self.dtype)  # XLA's CPU backend is slow on more dimensions
        y = x @ kernel.astype(self.dtype)
        if self.has_variable("params", "kernel_scale"):
            y = (y * self.get_variable("params", "kernel_scale")).astype(self.dtype)
        if self.use_bias:
            y += self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        if self.lora is not None:
            init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # peft's kaiming
            a = self.param("lora_a", init, (width, self.lora.rank)).astype(self.dtype)
            b = self.param("lora_b", nn.initializers.zeros, (self.lora.rank, self.features))
            z = nn.Dropout(self.lora.dropout)(x, deterministic=deterministic)
            y += (self.lora.alpha / self.lora.rank) * (z @ a @ b.astype(self.dtype))
        return y.reshape(*lead, self.features)


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), computed in float32. float[..., D] -> same."""

    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis and scale by the learned `scale` float[D]."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * scale).astype(self.dtype)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention; grouped queries when K < H (head h reads head h // (H/K)).

    q float[B, Q, H, D], k and v float[B, S, K, D], mask bool[B or 1, Q, S] (True: may attend) ->
    (values float[B, Q, H, D], weights float32[B, H, Q, S] that sum to 1 over S).
    """
    b, n, h, d = q.shape
    groups = k.shape[2]
    # one flat batch of matrices: fast on CPU, forwards and backwards
    q, k, v = (x.swapaxes(1, 2).reshape(b * groups, -1, d) for x in (q, k, v))
    scores = (q @ k.mT).astype(jnp.float32).reshape(b, h, n, -1) * d**-0.5
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1)
    values = weights.astype(v.dtype).reshape(b * groups, -1, k.shape[1]) @ v
    return values.reshape(b, h, n, d).swapaxes(1, 2), weights
