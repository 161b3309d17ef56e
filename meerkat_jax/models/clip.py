"""CLIP's image tower (Radford et al. 2021): patch tokens for the language model.

A pre-norm vision transformer with a class token, a norm before the first layer, and quick-GELU.
Meerkat (section 3.1, and its release) reads the patch tokens of the last layer, without the norm
that CLIP applies to the class token, and passes them through CLIP's own visual projection.
One parameter leaf per tensor of the published checkpoint; the layers are stacked on a leading axis
and run under one scan, so that compile time does not grow with depth.

Letters: B batch, V patch tokens, D width, H heads, L layers, P patch size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from meerkat_jax.core.errors import UserError
from meerkat_jax.nn.attention import attend
from meerkat_jax.nn.dense import LECUN, Dense

EPS = 1e-5
REMAT = {  # what a layer saves for the backward pass beside its input
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "weights": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "dots": jax.checkpoint_policies.dots_saveable,
}


def quick_gelu(x: jax.Array) -> jax.Array:
    """`x * sigmoid(1.702 x)`, the approximation that CLIP was trained with."""
    return x * jax.nn.sigmoid(1.702 * x)


def patchify(pixels: jax.Array, size: int) -> jax.Array:
    """float[B, H, W, C] -> float[B, V, size * size * C]: patches row by row, each (y, x, C) flat.

    A convolution whose stride is its kernel is this and one matrix product, which is faster.
    """
    b, h, w, c = pixels.shape
    # [B, H, W, C] -> [B, H / P, W / P, P, P, C] -> [B, V, P * P * C]
    x = pixels.reshape(b, h // size, size, w // size, size, c).swapaxes(2, 3)
    return x.reshape(b, (h // size) * (w // size), size * size * c)


def _norm(name: str, dtype: jnp.dtype) -> nn.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, cancels on CLIP's few very large activations.
    return nn.LayerNorm(epsilon=EPS, use_fast_variance=False, dtype=dtype, name=name)


class ClipLayer(nn.Module):
    """One pre-norm transformer layer; a scan body: (x float[B, 1 + V, D], None) -> (same, None)."""

    heads: int
    mlp_dim: int
    dtype: jnp.dtype = jnp.float32
    residual_init: Callable = LECUN

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """Self-attention and MLP, each with its residual."""
        b, s, d = x.shape
        y = _norm("layer_norm1", self.dtype)(x)
        # [B, S, D] -> [B, S, H, D / H]
        q, k, v = (
            Dense(d, dtype=self.dtype, name=name)(y).reshape(b, s, self.heads, -1) for name in "qkv"
        )
        values, _ = attend(q, k, v)
        residual = functools.partial(Dense, d, kernel_init=self.residual_init, dtype=self.dtype)
        # [B, S, H, D / H] -> [B, S, D]
        x += residual(name="o")(values.reshape(b, s, d))
        y = _norm("layer_norm2", self.dtype)(x)
        y = quick_gelu(Dense(self.mlp_dim, dtype=self.dtype, name="fc1")(y))
        return x + residual(name="fc2")(y), None


class ClipVision(nn.Module):
    """The image tower.

    remat: "none" saves all for the backward pass; "full" layer inputs only, "weights" also products
    with weights, "dots" also attention's products.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    projection_dim: int = 512
    remat: str = "none"
    dtype: jnp.dtype = jnp.float32
    residual_init: Callable = LECUN
    position_init: Callable = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, pixels: jax.Array) -> dict[str, jax.Array]:
        """Normalised pixels float[B, image_size, image_size, 3] -> named features.

        tokens float[B, V, projection_dim], row by row, V = (image_size / patch_size)^2;
        class_token float[B, D], the class token behind CLIP's last norm;
        embedding float[B, projection_dim], CLIP's own image embedding, not normalised;
        hidden float[B, 1 + V, D], the last layer's output, class token first;
        embedded float[B, 1 + V, D], the first layer's input.

        Raises UserError when the fields or the shape of the pixels do not fit together.
        """
        self._check(pixels.shape)
        x = Dense(self.width, use_bias=False, dtype=self.dtype, name="patch_embedding")(
            patchify(pixels, self.patch_size)
        )
        small = nn.initializers.normal(0.02)
        cls = self.param("class_embedding", small, (self.width,)).astype(self.dtype)
        positions = self.param(
            "position_embedding", self.position_init, (x.shape[1] + 1, self.width)
        )
        # [B, V, D] -> [B, 1 + V, D]
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], axis=1)
        embedded = _norm("pre_layernorm", self.dtype)(x + positions.astype(self.dtype))
        hidden, _ = self._layers()(embedded, None)
        project = Dense(
            self.projection_dim, use_bias=False, dtype=self.dtype, name="visual_projection"
        )
        class_token = _norm("post_layernorm", self.dtype)(hidden[:, 0])
        return {
            "tokens": project(hidden[:, 1:]),
            "class_token": class_token,
            "embedding": project(class_token),
            "hidden": hidden,
            "embedded": embedded,
        }

    def _layers(self) -> nn.Module:
        layer = ClipLayer
        if self.remat != "none":
            layer = nn.remat(layer, policy=REMAT[self.remat], prevent_cse=False)
        stack = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        return stack(self.heads, self.mlp_dim, self.dtype, self.residual_init, name="layers")

    def _check(self, shape: tuple[int, ...]) -> None:
        if self.remat not in REMAT:
            raise UserError(f"clip remat is {self.remat!r}; use one of {', '.join(REMAT)}")
        if self.image_size % self.patch_size:
            raise UserError(
                f"clip image_size {self.image_size} is not a multiple of patch_size "
                f"{self.patch_size}; use {self.image_size // self.patch_size * self.patch_size}"
            )
        if self.width % self.heads:
            raise UserError(
                f"clip width {self.width} is not a multiple of heads {self.heads}; "
                "change either so that it is"
            )
        expected = (self.image_size, self.image_size, 3)
        if shape[1:] != expected:
            raise UserError(
                f"clip pixels have shape {shape}; expected [B, *{expected}]: "
                f"load images at size {self.image_size} or set image_size to theirs"
            )
