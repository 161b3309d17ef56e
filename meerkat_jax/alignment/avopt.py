"""AVOpT: weak alignment of image and audio by optimal transport between their tokens.

Meerkat (arXiv 2407.01851, section 3.2) measures the Wasserstein distance between image patches and
audio patches with cosine cost and minimises it for matched pairs. Both sets pass through learned
projections to a common width, so that the distance has trainable weights even when both towers are
frozen.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from meerkat_jax.alignment.sinkhorn import transport
from meerkat_jax.nn.dense import Dense


def unit(x: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Scale the last axis to length 1, in float32 or wider; zero stays, with finite gradient."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + eps**2)


class AVOpT(nn.Module):
    """Transport distance of every pair; see `sinkhorn.transport` for all fields but these two.

    width: of the projections. cost_threshold: if above 0, costs are thresholded as in the authors'
    release (`above_threshold`).
    """

    width: int = 256
    epsilon: float = 0.02
    iterations: int = 50
    gradient: str = "plan"
    solver: str = "sinkhorn"
    beta: float = 0.5
    cost_threshold: float = 0.0

    @nn.compact
    def __call__(
        self,
        image_tokens: jax.Array,
        audio_tokens: jax.Array,
        image_mass: jax.Array | None = None,
        audio_mass: jax.Array | None = None,
        matched: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Compare image_tokens float[B, V, Dv] with audio_tokens float[B, A, Da].

        The masses float[B, V] and float[B, A] are zero on padding; default uniform. matched bool[B]
        are the pairs that set the cost threshold; default all. Returns
        image float[B, V, width] and audio float[B, A, width]: the projected unit vectors;
        cost_matrix float[B, V, A], 1 - cosine, in 0..2; and of `transport`: distance, cost, plan.
        loss_per_pair float[B] is the distance. It is NaN for a pair with tokens that are not
        finite, and its gradient exactly 0: a masked pair of that kind changes no parameter.
        """
        image_tokens, image_finite = finite_tokens(image_tokens, image_mass)
        audio_tokens, audio_finite = finite_tokens(audio_tokens, audio_mass)
        image = unit(Dense(self.width, name="image")(image_tokens))
        audio = unit(Dense(self.width, name="audio")(audio_tokens))
        cost_matrix = 1.0 - jnp.einsum("bvd,bad->bva", image, audio)
        cost = cost_matrix
        if self.cost_threshold:
            counted = tokens_of_pairs(cost, image_mass, audio_mass, matched)
            cost = above_threshold(cost, self.cost_threshold, counted)
        finite = (image_finite & audio_finite)[:, None, None]
        cost, cost_matrix = (jnp.where(finite, x, jnp.nan) for x in (cost, cost_matrix))
        out = transport(
            cost,
            image_mass,
            audio_mass,
            epsilon=self.epsilon,
            iterations=self.iterations,
            gradient=self.gradient,
            solver=self.solver,
            beta=self.beta,
        )
        return {
            **out,
            "loss_per_pair": out["distance"],
            "image": image,
            "audio": audio,
            "cost_matrix": cost_matrix,
        }


def tokens_of_pairs(
    cost: jax.Array,
    image_mass: jax.Array | None,
    audio_mass: jax.Array | None,
    matched: jax.Array | None,
) -> jax.Array:
    """bool[B, V, A]: finite costs float[B, V, A] of tokens with mass, of matched pairs."""
    counted = jnp.isfinite(cost)
    if image_mass is not None:
        counted &= image_mass[:, :, None] > 0
    if audio_mass is not None:
        counted &= audio_mass[:, None, :] > 0
    return counted if matched is None else counted & matched[:, None, None]


def above_threshold(cost: jax.Array, share: float, counted: jax.Array) -> jax.Array:
    """relu(cost - (low + share * (high - low))), low and high those of the batch.

    As in the authors' release (modeling.py, OT_dist: share .1): tokens that are already close cost
    nothing. low and high are those of `counted` bool[B, V, A], so that a masked pair does not
    change the others, over the rows of all devices, so that they do not depend on the mesh; with
    gradient accumulation they are those of one microbatch. They are constants to the gradient,
    unlike in the release, where separating the closest tokens lowers the loss.
    """
    fixed = jax.lax.stop_gradient(cost)
    low = jnp.min(jnp.where(counted, fixed, 2.0))
    high = jnp.max(jnp.where(counted, fixed, 0.0))
    return jax.nn.relu(cost - (low + share * (high - low)))


def finite_tokens(tokens: jax.Array, mass: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Replace tokens without mass, and whole sets that are not finite, by zeros.

    tokens float[B, N, D], mass float[B, N] or bool[B, N] -> float[B, N, D], and bool[B], whether
    the set was finite. A `where` behind the computation would give gradients of 0 * NaN = NaN, so
    the values are replaced before it.
    """
    if mass is not None:
        tokens = jnp.where(mass[..., None] > 0, tokens, 0)
    finite = jnp.all(jnp.isfinite(tokens), axis=(1, 2))
    return jnp.where(finite[:, None, None], tokens, 0), finite


def masked_mean(values: jax.Array, keep: jax.Array) -> jax.Array:
    """Mean of float[B] over keep bool[B]; 0 when nothing is kept, whatever the values left out."""
    return jnp.sum(jnp.where(keep, values, 0.0)) / jnp.maximum(jnp.sum(keep), 1)
