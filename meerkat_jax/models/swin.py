"""Swin stages: attention in windows, in shifted windows, and patch merging (Liu et al. 2021).

HTSAT (Chen et al. 2022), the audio tower of CLAP, is built of them. Relative-position indices and
shift masks depend on sizes alone, so they are numpy constants of the compiled program. The blocks
of a stage are a Python loop and not a scan: plain and shifted blocks alternate, so they are not the
same function, and all published stages but one hold a single such pair.

Letters: B batch, h and w the token grid, W windows, T tokens of a window, H heads, D width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.nn.dense import LECUN, Dense

SHIFT_PENALTY = -100.0  # added to scores across a seam, the published value


def split_windows(x: jax.Array, window: int) -> jax.Array:
    """Cut a grid into square windows, row by row: [B, h, w, D] -> [B, W, T = window^2, D]."""
    b, h, w, d = x.shape
    # [B, h, w, D] -> [B, h / window, w / window, window, window, D]
    x = x.reshape(b, h // window, window, w // window, window, d).swapaxes(2, 3)
    return x.reshape(b, -1, window * window, d)


def join_windows(x: jax.Array, height: int, width: int) -> jax.Array:
    """Undo `split_windows`: [B, W, T, D] -> [B, height, width, D]."""
    b, _, tokens, d = x.shape
    window = int(tokens**0.5)
    # [B, W, T, D] -> [B, h / window, window, w / window, window, D]
    x = x.reshape(b, height // window, width // window, window, window, d).swapaxes(2, 3)
    return x.reshape(b, height, width, d)


@functools.cache
def relative_index(window: int) -> np.ndarray:
    """int[T, T]: the row of the bias table, of (2 window - 1)^2, for the offset of two tokens."""
    row, column = np.divmod(np.arange(window * window), window)
    down = row[:, None] - row[None] + window - 1
    right = column[:, None] - column[None] + window - 1
    return down * (2 * window - 1) + right


@functools.cache
def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """float32[W, T, T]: 0 where two tokens of a window were neighbours before the cyclic shift."""

    def bands(size: int) -> np.ndarray:
        position = np.arange(size)
        return (position >= size - window).astype(int) + (position >= size - shift)

    region = 3 * bands(height)[:, None] + bands(width)[None]
    region = split_windows(region[None, :, :, None], window)[0, :, :, 0]
    separate = region[:, :, None] != region[:, None, :]
    return np.where(separate, SHIFT_PENALTY, 0.0).astype(np.float32)


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU through erf; `nn.gelu` goes through erfc, whose gradient is slow on CPU."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def layer_norm(name: str, eps: float, dtype: jnp.dtype) -> nn.LayerNorm:
    """LayerNorm with the two-pass variance, which keeps its digits when the mean is large."""
    return nn.LayerNorm(epsilon=eps, use_fast_variance=False, dtype=dtype, name=name)


class WindowAttention(nn.Module):
    """Self-attention within each window, with a learned bias per head and offset (eq. 4).

    float[B, W, T, D] -> float[B, W, T, D]. `mask` float[W, T, T] is added to the scores.
    """

    heads: int
    window: int
    dtype: jnp.dtype = jnp.float32
    residual_init: Callable = LECUN

    @nn.compact
    def __call__(self, x: jax.Array, mask: np.ndarray | None = None) -> jax.Array:
        """Attend within the windows of float[B, W, T, D]."""
        b, w, t, d = x.shape
        q, k, v = (self._heads(name, x) for name in ("q", "k", "v"))
        rows = (2 * self.window - 1) ** 2
        table = self.param(
            "relative_bias", nn.initializers.truncated_normal(0.02), (rows, self.heads)
        )
        # [T * T, H] -> [1, H, T, T]
        bias = table[relative_index(self.window).reshape(-1)].T.reshape(1, self.heads, t, t)
        if mask is not None:
            bias = bias + mask[:, None]
        scale = (d // self.heads) ** -0.5
        scores = (scale * (q @ k.mT)).astype(jnp.float32)
        # [B * W * H, T, T] -> [B, W, H, T, T]
        scores = scores.reshape(b, w, self.heads, t, t) + bias
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        values = weights.reshape(-1, t, t) @ v
        # [B * W * H, T, D / H] -> [B, W, T, D]
        values = values.reshape(b, w, self.heads, t, -1).swapaxes(2, 3).reshape(b, w, t, d)
        return Dense(d, kernel_init=self.residual_init, dtype=self.dtype, name="o")(values)

    def _heads(self, name: str, x: jax.Array) -> jax.Array:
        """float[B, W, T, D] to float[B * W * H, T, D / H]: one flat batch is fast on CPU."""
        b, w, t, d = x.shape
        x = Dense(d, dtype=self.dtype, name=name)(x)
        return x.reshape(b * w, t, self.heads, -1).swapaxes(1, 2).reshape(b * w * self.heads, t, -1)


class SwinBlock(nn.Module):
    """Pre-norm window attention and MLP (eq. 3); `shift` rolls the grid under the windows."""

    heads: int
    window: int
    shift: int = 0
    mlp_ratio: float = 4.0
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    residual_init: Callable = LECUN

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[B, h, w, D] -> float[B, h, w, D]."""
        _, h, w, d = x.shape
        shift = (self.shift, self.shift)
        y = layer_norm("norm1", self.eps, self.dtype)(x)
        mask = None
        if self.shift:
            y = jnp.roll(y, (-self.shift, -self.shift), axis=(1, 2))
            mask = shift_mask(h, w, self.window, self.shift)
        y = split_windows(y, self.window)
        y = WindowAttention(
            self.heads, self.window, self.dtype, self.residual_init, name="attention"
        )(y, mask)
        y = join_windows(y, h, w)
        x = x + (jnp.roll(y, shift, axis=(1, 2)) if self.shift else y)
        y = layer_norm("norm2", self.eps, self.dtype)(x)
        y = Dense(int(self.mlp_ratio * d), dtype=self.dtype, name="up")(y)
        return x + Dense(d, kernel_init=self.residual_init, dtype=self.dtype, name="down")(gelu(y))


class PatchMerging(nn.Module):
    """Halve the grid and double the width: 2 x 2 tokens side by side, normed, projected.

    float[B, h, w, D] -> float[B, h/2, w/2, 2D]. The four are concatenated column by column
    (top left, bottom left, top right, bottom right), as the published weights expect.
    """

    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Merge float[B, h, w, D] with h and w even."""
        b, h, w, d = x.shape
        # [B, h, w, D] -> [B, h/2, w/2, column, row, D] -> [B, h/2, w/2, 4D]
        x = x.reshape(b, h // 2, 2, w // 2, 2, d).transpose(0, 1, 3, 4, 2, 5)
        x = x.reshape(b, h // 2, w // 2, 4 * d)
        x = layer_norm("norm", self.eps, self.dtype)(x)
        return Dense(2 * d, use_bias=False, dtype=self.dtype, name="reduction")(x)


class SwinStage(nn.Module):
    """`depth` blocks, every second one shifted by half a window.

    A grid no larger than the window is a single window, and is then never shifted.
    """

    depth: int
    heads: int
    window: int
    mlp_ratio: float = 4.0
    eps: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    residual_init: Callable = LECUN

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[B, h, w, D] -> float[B, h, w, D]; h and w multiples of the window, or smaller."""
        side = min(x.shape[1:3])
        window = min(self.window, side)
        shift = window // 2 if side > self.window else 0
        for i in range(self.depth):
            block = SwinBlock(
                self.heads,
                window,
                shift * (i % 2),
                self.mlp_ratio,
                self.eps,
                self.dtype,
                self.residual_init,
                name=f"block_{i}",
            )
            x = block(x)
        return x
