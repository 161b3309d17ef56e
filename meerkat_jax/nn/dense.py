"""The linear layer of all models, with LoRA inside.

LoRA (Hu et al. 2021, eq. 3) lives inside `Dense`, so a model is adapted by its configuration and
its tree keeps its shape: `kernel` and `bias` as published, `lora_a` and `lora_b` beside them.

Letters: I input width, R LoRA rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

LECUN = nn.initializers.lecun_normal()


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
    dtype, and scaling the output avoids a dequantised copy of the kernel.
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
        # [..., I] -> [N, I]: XLA's CPU backend is slow on more dimensions
        x = x.reshape(-1, width).astype(self.dtype)
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
        # [N, features] -> [..., features]
        return y.reshape(*lead, self.features)
