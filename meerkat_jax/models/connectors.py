"""Connectors: from a tower's tokens to the language model's embedding space.

`linear` (the paper's) and `mlp` keep the token sequence. `conv_align` is that of the
authors' release: a convolution along the tokens shortens the sequence, a linear layer maps it to
the language model's width, and each token is then replaced by what it attends to in the language
model's table of word embeddings, without a residual. The attention is that of torch's
`MultiheadAttention` with `add_bias_kv` and `add_zero_attn`; the release drops out a tenth of its
weights in training, which is left out here: it would draw a number for every token, head and word.

Letters: B pairs, N tokens of a tower, I their width, M output tokens, D width of the
language model, W words, H heads.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.core.errors import UserError
from meerkat_jax.nn.dense import Dense

CONNECTORS = ("linear", "mlp", "conv_align")


@dataclasses.dataclass(frozen=True)
class AlignConfig:
    """Sizes of `conv_align`; the defaults are the release's, for 196 and 64 tokens, 4096 wide.

    `image` and `audio` hold the convolution's kernel and stride, in tokens.
    """

    image: tuple[int, int] = (6, 2)
    audio: tuple[int, int] = (12, 9)
    heads: int = 256

    def __post_init__(self):
        """Check the values; UserError names the field."""
        for name in ("image", "audio"):
            window = getattr(self, name)
            whole = isinstance(window, tuple) and len(window) == 2
            if not whole or not all(type(size) is int and size > 0 for size in window):
                raise UserError(
                    f"model.conv_align.{name} is {window!r}; expected a kernel and a stride, "
                    "as (6, 2)"
                )
        if type(self.heads) is not int or self.heads < 1:
            raise UserError(f"model.conv_align.heads is {self.heads!r}; expected a number above 0")


def output_length(count: int, kernel: int, stride: int) -> int:
    """The number of output tokens of the convolution; UserError if `count` is below `kernel`."""
    if kernel > count:
        raise UserError(
            f"connector conv_align: a kernel of {kernel} tokens does not fit {count} of them; "
            "lower model.conv_align.image or .audio"
        )
    return (count - kernel) // stride + 1


class Connector(nn.Module):
    """Tower tokens to the language model's width: float[B, N, I] -> float[B, N, width]."""

    width: int
    kind: str = "linear"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """One linear layer, or two with a GELU between (`mlp`)."""
        if self.kind not in CONNECTORS:
            raise UserError(f"connector {self.kind!r} is unknown; choose from {CONNECTORS}")
        if self.kind == "mlp":
            tokens = nn.gelu(Dense(self.width, dtype=self.dtype, name="inner")(tokens))
        return Dense(self.width, dtype=self.dtype, name="outer")(tokens)


class ConvAlign(nn.Module):
    """The release's connector: float[B, N, I] -> float[B, M, width], M = (N - kernel)/stride + 1.

    Parameters: `conv` [kernel * I, I] (the convolution's kernel, its taps one after another),
    `linear` [I, D], `q`, `k`, `v`, `o` [D, D], all with a bias, and `bias_k`, `bias_v` [D], one
    more word. Head h owns features h * D/H to (h + 1) * D/H - 1.
    """

    width: int
    kernel: int
    stride: int
    heads: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, table: jax.Array) -> jax.Array:
        """Tokens float[B, N, I] and word vectors float[W, D]; UserError on sizes that don't fit."""
        if self.width % self.heads:
            raise UserError(
                f"model.conv_align.heads is {self.heads}, which does not divide the language "
                f"model's width {self.width}; use a divisor"
            )

        def dense(name, x, width=self.width):
            return Dense(width, dtype=self.dtype, name=name)(x)

        batch, _, width = tokens.shape
        x = dense("linear", dense("conv", windows(tokens, self.kernel, self.stride), width))
        small = nn.initializers.normal(self.width**-0.5)
        more = {name: self.param(f"bias_{name}", small, (self.width,)) for name in "kv"}
        # [W + 2, D]: the table, the learned `bias` row, and a row of zeros (add_zero_attn)
        keys, values = (
            jnp.pad(
                jnp.concatenate([dense(name, table), more[name][None].astype(self.dtype)]),
                ((0, 1), (0, 0)),
            )
            for name in "kv"
        )
        queries = dense("q", x).reshape(-1, self.width)
        attended = attend_table(
            *(y.reshape(len(y), self.heads, -1) for y in (queries, keys, values))
        )
        return dense("o", attended.reshape(batch, -1, self.width))


def windows(tokens: jax.Array, kernel: int, stride: int) -> jax.Array:
    """Receptive fields: float[B, N, I] -> float[B, M, kernel * I]; UserError if M < 1."""
    batch, count, _ = tokens.shape
    starts = stride * np.arange(output_length(count, kernel, stride))[:, None]
    # [B, N, I] -> [B, M, kernel, I] -> [B, M, kernel * I]
    return tokens[:, starts + np.arange(kernel)].reshape(batch, len(starts), -1)


def attend_table(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of few queries to many shared keys: float[N, H, Dh], twice float[W, H, Dh].

    Returns float[N, H, Dh]. One head at a time, forwards and backwards: the scores of all heads to
    a table of 32,000 words are 3 GB per pair.
    """

    @jax.checkpoint
    def head(parts):
        q, k, v = parts
        scores = jnp.einsum("nd,wd->nw", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1)
        return weights.astype(v.dtype) @ v

    return jax.lax.map(head, tuple(x.swapaxes(0, 1) for x in (q, k, v))).swapaxes(0, 1)
