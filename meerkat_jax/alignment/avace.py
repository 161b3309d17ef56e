"""AVACE: image and audio tokens exchange a cross-attention map, which is confined to object boxes.

Meerkat (arXiv 2407.01851, section 3.3). The map is a softmax over the image patches with the audio
tokens as queries, so it localises each audio token in the image. (A softmax over the audio keys,
averaged over those same keys, would be the same constant for every patch and could not learn.) The
output projections are initialised to zero, so that both token sets pass unchanged at first.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from meerkat_jax.alignment.avopt import masked_mean
from meerkat_jax.nn.attention import NEGATIVE
from meerkat_jax.nn.dense import LECUN, Dense
from meerkat_jax.nn.norms import RMSNorm


class AVACE(nn.Module):
    """Two-way cross-attention with pre-norm and residual, `heads` heads over an inner `width`.

    The map for the box loss is a weighted mean over the audio tokens, many of which are silence or
    background. The weight of a token is a softmax over the log-sum-exp of its scores plus a learned
    score. With `attention_embedding` both token sets also receive their own attention, scaled to a
    peak of 1, times a learned vector, from which the language model reads location and time.
    `similarity_init` initialises the query and key projections.
    """

    width: int = 256
    heads: int = 4
    attention_embedding: bool = False
    similarity_init: Callable = LECUN

    @nn.compact
    def __call__(
        self,
        image_tokens: jax.Array,
        audio_tokens: jax.Array,
        image_valid: jax.Array | None = None,
        audio_valid: jax.Array | None = None,
        image_positions: jax.Array | float = 0.0,
        audio_positions: jax.Array | float = 0.0,
    ) -> dict[str, jax.Array]:
        """Exchange image_tokens float[B, V, Dv] and audio_tokens float[B, A, Da].

        image_valid bool[B, V] and audio_valid bool[B, A] are False on padding, whose tokens are
        replaced by zeros. image_positions float[V, Dv] and audio_positions float[A, Da] are added
        to the values and to the residual stream, not to queries and keys: the location of an object
        does not depend on its class.

        Returns:
            image float[B, V, Dv], audio float[B, A, Da]; map float32[B, A, V], sums to 1 over V;
            audio_weight float32[B, A], sums to 1; attention float32[B, V], their product, sums
            to 1.
        """
        if image_valid is not None:
            image_tokens = jnp.where(image_valid[..., None], image_tokens, 0)
        if audio_valid is not None:
            audio_tokens = jnp.where(audio_valid[..., None], audio_tokens, 0)
        image_norm, audio_norm = RMSNorm(name="image_norm"), RMSNorm(name="audio_norm")
        image, audio = image_norm(image_tokens), audio_norm(audio_tokens)
        image_tokens, audio_tokens = image_tokens + image_positions, audio_tokens + audio_positions
        values = audio_norm(audio_tokens)
        to_image, _ = self._cross("image", image, audio, values, audio_valid)
        values = image_norm(image_tokens)
        to_audio, scores = self._cross("audio", audio, image, values, image_valid)
        # [B, H, A, V] -> [B, A, V]
        map_ = jax.nn.softmax(scores, axis=-1).mean(axis=1)
        score = Dense(1, name="audio_score")(audio)[..., 0].astype(jnp.float32)
        score += jax.nn.logsumexp(scores, axis=-1).mean(axis=1)
        if audio_valid is not None:
            score = jnp.where(audio_valid, score, NEGATIVE)
        audio_weight = jax.nn.softmax(score, axis=-1)
        attention = jnp.einsum("ba,bav->bv", audio_weight, map_)
        if self.attention_embedding:
            to_image += self._embed_attention("image", attention, to_image)
            to_audio += self._embed_attention("audio", audio_weight, to_audio)
        return {
            "image": image_tokens + to_image.astype(image_tokens.dtype),
            "audio": audio_tokens + to_audio.astype(audio_tokens.dtype),
            "map": map_,
            "audio_weight": audio_weight,
            "attention": attention,
        }

    def _cross(self, name, queries, keys, values, valid):
        """Cross-attention -> (output of the shape of `queries`, scores).

        Scores float32[B, H, Q, S], before the softmax over S.
        """
        if self.width % self.heads:
            raise ValueError(f"AVACE width {self.width} is not a multiple of heads {self.heads}")

        def split(x, part, init):
            x = Dense(self.width, use_bias=False, kernel_init=init, name=f"{name}_{part}")(x)
            # [B, N, width] -> [B, N, H, Dh]
            return x.reshape(*x.shape[:2], self.heads, -1)

        q, k = (split(x, part, self.similarity_init) for x, part in ((queries, "q"), (keys, "k")))
        scores = jnp.einsum("bqhd,bshd->bhqs", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        if valid is not None:
            scores = jnp.where(valid[:, None, None, :], scores, NEGATIVE)
        values = split(values, "v", LECUN)
        weights = jax.nn.softmax(scores, axis=-1).astype(values.dtype)
        values = jnp.einsum("bhqs,bshd->bqhd", weights, values)
        # [B, Q, H, Dh] -> [B, Q, width]
        values = values.reshape(*values.shape[:2], self.width)
        out = Dense(queries.shape[-1], kernel_init=nn.initializers.zeros, name=f"{name}_o")
        return out(values), scores

    def _embed_attention(self, name, attention, like):
        """float[B, N] attention times a learned vector: float[B, N, D] like `like`."""
        # Twice the size of tokens: the model learns to use a small vector late.
        vector = self.param(
            f"{name}_attention_embedding", nn.initializers.normal(2.0), like.shape[-1:]
        )
        peak = attention / attention.max(axis=-1, keepdims=True)
        return (peak[..., None] * vector).astype(like.dtype)


def box_coverage(boxes: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Share of every patch that the union of the boxes covers, exactly.

    boxes float[B, N, 4] as (x0, y0, x1, y1) in 0..1, zero-area boxes are padding; grid (h, w) ->
    float[B, h * w] in 0..1, row by row. The box edges and the patch edges together cut the image
    into cells that are each wholly inside or outside every box and in one patch.
    """
    height, width = grid
    boxes = jnp.clip(boxes, 0.0, 1.0)
    x, columns = _cells(boxes[..., 0::2], width)
    y, rows = _cells(boxes[..., 1::2], height)
    in_x = (boxes[:, None, :, 0] < x[..., None]) & (x[..., None] < boxes[:, None, :, 2])
    in_y = (boxes[:, None, :, 1] < y[..., None]) & (y[..., None] < boxes[:, None, :, 3])
    union = jnp.any(in_y[:, :, None] & in_x[:, None, :], axis=-1).astype(boxes.dtype)
    coverage = jnp.einsum("byh,byx,bxw->bhw", rows, union, columns) * (height * width)
    # [B, h, w] -> [B, V]
    return jnp.clip(coverage, 0.0, 1.0).reshape(boxes.shape[0], height * width)


def _cells(edges, count):
    """Cells of one axis: edges float[B, N, 2] -> (middles float[B, X], lengths float[B, X, count]).

    A cell's length stands in the column of the patch that holds it, with zeros elsewhere.
    """
    batch = edges.shape[0]
    lines = jnp.broadcast_to(
        jnp.linspace(0.0, 1.0, count + 1, dtype=edges.dtype), (batch, count + 1)
    )
    cuts = jnp.sort(jnp.concatenate([edges.reshape(batch, -1), lines], axis=1), axis=1)
    middles = (cuts[:, 1:] + cuts[:, :-1]) / 2
    patch = jnp.floor(middles * count).astype(jnp.int32)
    return middles, jnp.diff(cuts)[..., None] * jax.nn.one_hot(patch, count, dtype=edges.dtype)


def in_box_loss(
    attention: jax.Array,
    coverage: jax.Array,
    inside_weight: float = 0.5,
    outside_weight: float = 0.5,
    kl_weight: float = 0.0,
) -> jax.Array:
    """`inside_weight * (1 - mass inside) + outside_weight * (mass outside)` of each sample.

    attention float[B, V], at least 0; coverage float[B, V] in 0..1 -> float[B]. A box may cover no
    patch wholly, so coverage is divided by that of the sample's best-covered patch: with
    m = coverage / max(coverage), mass inside is sum(attention * m) and mass outside is
    sum(attention * (1 - m)). The loss of an attention that sums to 1 is 0 at the least: when all of
    it is on best-covered patches.

    With `kl_weight` (not in the paper) KL(m / sum(m) || attention) is added: the map must fill the
    box, and the gradient does not vanish where the softmax is flat, far from the box.

    A sample without a box gets the maximum, with gradient 0 whatever its attention; use
    `avace_loss` to leave it out.
    """
    best = coverage.max(axis=-1, keepdims=True)
    attention = jnp.where(best > 0, attention, 1 / attention.shape[-1])
    member = coverage / jnp.where(best > 0, best, 1.0)
    mass_inside = jnp.sum(attention * member, axis=-1)
    mass_outside = jnp.sum(attention * (1.0 - member), axis=-1)
    loss = inside_weight * (1.0 - mass_inside) + outside_weight * mass_outside
    if not kl_weight:
        return loss
    target = member / jnp.maximum(member.sum(axis=-1, keepdims=True), 1e-9)
    ratio = jnp.log(jnp.maximum(target, 1e-9)) - jnp.log(attention + 1e-9)
    return loss + kl_weight * jnp.sum(target * ratio, axis=-1)


def avace_loss(attention: jax.Array, coverage: jax.Array, **parts: float) -> jax.Array:
    """Mean `in_box_loss` over the samples with a box; 0 with zero gradient if there is none."""
    return masked_mean(in_box_loss(attention, coverage, **parts), jnp.any(coverage > 0, axis=-1))
