"""Attention: of the towers (`attend`), and of the decoder with a shared prefix and a cache.

"plain" attention is a sum over *parts* of the keys (Milakov & Gimelshein 2018): a shared prefix,
cached slots, the new tokens. Several questions share one prefix (`Layout`) and generation extends
a cache without ever forming the S x S matrix of scores. "cudnn" is NVIDIA's fused attention (Dao et
al. 2022) under one S x S mask; attention to a cache is always plain.

Scope names (`SCORES`) state how many scores a mask leaves, for the FLOP count of training/flops.py.

Letters: B batch, S sequence or cache slots, K key-value heads, G queries per key-value head, Dh
head width, P prefix tokens, N packs of T tokens.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from meerkat_jax.core.errors import UserError

NEGATIVE = -1e30  # finite, so that a row with nothing to attend to gives a mean and not a NaN
ATTENTION = ("plain", "cudnn")
SCORES = "scores_{}_of_{}"  # scope name: unmasked scores of all scores

Part = tuple[jax.Array, jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Layout:
    """A row of S = prefix + num_packs * pack_length tokens: a prefix, then packs of questions.

    Prefix tokens attend causally to the prefix; a question's tokens attend to the whole prefix and
    causally to themselves, never to another question. The question of each token is given by
    segment_ids int[B, num_packs, pack_length], as for Layout(2, 2, 3), two questions in pack 0:

        segment_ids           [[0 0 1]  [2 2 2]]
        positions    0 1       2 3 2     2 3 4
    """

    prefix: int
    num_packs: int
    pack_length: int

    @property
    def size(self) -> int:
        """Tokens in the row, S."""
        return self.prefix + self.num_packs * self.pack_length

    def positions(self, segment_ids: jax.Array) -> jax.Array:
        """int32[B, S]: each question continues from the prefix."""
        first = segment_ids[..., 1:] != segment_ids[..., :-1]
        first = jnp.pad(first, ((0, 0), (0, 0), (1, 0)), constant_values=True)
        offset = jnp.arange(self.pack_length, dtype=jnp.int32)
        start = jax.lax.cummax(jnp.where(first, offset, 0), axis=2)
        # [B, N, T] -> [B, N * T]
        own = self.prefix + (offset - start).reshape(len(segment_ids), -1)
        before = jnp.broadcast_to(jnp.arange(self.prefix), (len(segment_ids), self.prefix))
        return jnp.concatenate([before, own], axis=1)

    def mask(self, segment_ids: jax.Array) -> jax.Array:
        """bool[B, S, S], True where the token of the row may attend to that of the column."""
        pack = jnp.repeat(jnp.arange(self.num_packs), self.pack_length)
        # [B, N, T] -> [B, P + N * T], -2 and pack -1 for the prefix
        own = segment_ids.reshape(len(segment_ids), -1)
        own = jnp.pad(own, ((0, 0), (self.prefix, 0)), constant_values=-2)
        pack = jnp.pad(pack, (self.prefix, 0), constant_values=-1)
        same = (own[:, :, None] == own[:, None]) & (pack[:, None] == pack)
        return ((pack == -1) | same) & jnp.tri(self.size, dtype=bool)


def attend_part(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> Part:
    """Unnormalised attention to one part of the keys, to be joined by `merge`.

    q float[B, K, N, T, G, Dh] (already scaled; N packs of T tokens, G queries per key-value head),
    k and v float[B, K, S, Dh] (shared by the N) or float[B, K, N, S, Dh]; mask bool that broadcasts
    to [B, K, N, T, G, S] -> peak, mass float32[B, K, N, T, G], total float32[B, K, N, T, G, Dh].
    """
    keys = "bksd" if k.ndim == 4 else "bknsd"
    scores = jnp.einsum(f"bkntgd,{keys}->bkntgs", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, NEGATIVE)
    peak = jax.lax.stop_gradient(scores.max(-1))  # it cancels in `merge`
    weights = jnp.exp(scores - peak[..., None])
    total = jnp.einsum(
        f"bkntgs,{keys}->bkntgd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return peak, weights.sum(-1), total


def merge(parts: list[Part]) -> jax.Array:
    """Join parts under one softmax -> float32[B, K, N, T, G, Dh]."""
    highest = functools.reduce(jnp.maximum, [peak for peak, _, _ in parts])
    scales = [jnp.exp(peak - highest) for peak, _, _ in parts]
    mass = sum(scale * m for scale, (_, m, _) in zip(scales, parts, strict=True))
    shares = [(scale / mass)[..., None] for scale in scales]
    return sum(share * total for share, (_, _, total) in zip(shares, parts, strict=True))


def causal(length: int, valid: jax.Array | None, segment_ids: jax.Array | None = None) -> jax.Array:
    """bool[1 or B, 1, 1 or N, T, 1, T] from valid bool[B, N, T] and segment_ids int[B, N, T]."""
    mask = jnp.tril(jnp.ones((length, length), bool))[:, None, :]
    if valid is not None:
        # [B, N, T] -> [B, 1, N, 1, 1, T]
        mask = mask & valid[:, None, :, None, None, :]
    if segment_ids is not None:
        # [B, N, T, T] -> [B, 1, N, T, 1, T]
        same = segment_ids[:, :, :, None] == segment_ids[:, :, None, :]
        mask = mask & same[:, None, :, :, None, :]
    return mask


def attend_row(q, k, v, valid=None, past=None) -> jax.Array:
    """Causal attention within the row, and to all of `past` = (k, v, valid bool[B, S]).

    q float[B, K, T, G, Dh], k and v float[B, K, T, Dh], valid bool[B, T] -> float32 like q.
    """
    mask = causal(q.shape[2], None if valid is None else valid[:, None])
    with _causal_scope(q.shape[2]):
        # [B, K, T, G, Dh] -> [B, K, 1, T, G, Dh]
        parts = [attend_part(q[:, :, None], k, v, mask)]
    if past is not None:
        # [B, S] -> [B, 1, 1, 1, 1, S]
        cached = past[2][:, None, None, None, None, :]
        parts.append(attend_part(q[:, :, None], past[0], past[1], cached))
    return merge(parts)[:, :, 0]


def attend_layout(q, k, v, layout: Layout, valid=None, segment_ids=None) -> jax.Array:
    """Attention under `layout` in two blocks, P x P and N x T x (P + T); shapes of `attend_row`."""
    prefix, rest = slice(layout.prefix), slice(layout.prefix, None)
    packs = (layout.num_packs, layout.pack_length)
    pq, pk, pv = (x[:, :, prefix] for x in (q, k, v))
    # [B, K, N * T, ...] -> [B, K, N, T, ...]
    qq, qk, qv = (x[:, :, rest].reshape(*x.shape[:2], *packs, *x.shape[3:]) for x in (q, k, v))
    p_valid = q_valid = shared = None
    if valid is not None:
        p_valid, q_valid = valid[:, prefix], valid[:, rest].reshape(-1, *packs)
        shared = p_valid[:, None, None, None, None, :]
    with _causal_scope(layout.pack_length):
        own = attend_part(qq, qk, qv, causal(layout.pack_length, q_valid, segment_ids))
    # [B, K, N, T, G, Dh] -> [B, K, N * T, G, Dh]
    second = merge([attend_part(qq, pk, pv, shared), own]).reshape(q[:, :, rest].shape)
    return jnp.concatenate([attend_row(pq, pk, pv, p_valid), second], axis=2)


def attend_fused(
    q,
    k,
    v,
    layout: Layout | None = None,
    valid=None,
    segment_ids=None,
    implementation: str = "cudnn",
) -> jax.Array:
    """`attend_row` or `attend_layout` in one kernel; the same shapes, in q's dtype.

    Raises UserError where there is no GPU.
    """
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        raise UserError(
            f'llama: attention "cudnn" needs an NVIDIA GPU, this is a {jax.default_backend()}; '
            'set model.llama.attention to "plain"'
        )
    b, kv_heads, size, each, head = q.shape
    mask, needed = None, _below_diagonal(size)
    if layout is not None:
        tokens = layout.num_packs * layout.pack_length
        needed = _below_diagonal(layout.prefix) + tokens * layout.prefix
        needed += layout.num_packs * _below_diagonal(layout.pack_length)
        if segment_ids is None:
            segment_ids = jnp.zeros((b, layout.num_packs, layout.pack_length), jnp.int32)
        mask = layout.mask(segment_ids)[:, None]
    elif valid is not None:
        mask = jnp.tri(size, dtype=bool)[None, None]
    if valid is not None:
        mask = mask & valid[:, None, None, :]
    with jax.named_scope(SCORES.format(needed, size * size)):
        y = jax.nn.dot_product_attention(
            # [B, K, S, G, Dh] -> [B, S, K * G, Dh]
            q.transpose(0, 2, 1, 3, 4).reshape(b, size, kv_heads * each, head),
            # [B, K, S, Dh] -> [B, S, K, Dh]
            k.swapaxes(1, 2),
            v.swapaxes(1, 2),
            mask=mask,
            is_causal=mask is None,
            scale=1.0,
            implementation=implementation,
        )
    # [B, S, K * G, Dh] -> [B, K, S, G, Dh]
    return y.reshape(b, size, kv_heads, each, head).transpose(0, 2, 1, 3, 4)


def _below_diagonal(size: int) -> int:
    """Entries of a square at and below its diagonal."""
    return size * (size + 1) // 2


def _causal_scope(size: int):
    return jax.named_scope(SCORES.format(_below_diagonal(size), size * size))


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Scaled dot-product attention; grouped queries when K < H (head h reads head h // (H/K)).

    q float[B, Q, H, D], k and v float[B, S, K, D], mask bool[B or 1, Q, S] (True: may attend) ->
    (values float[B, Q, H, D], weights float32[B, H, Q, S] that sum to 1 over S).
    """
    b, n, h, d = q.shape
    groups = k.shape[2]
    # One batch of matrices is fast on CPUs, forwards and backwards.
    # [B, Q, H, Dh] -> [B * K, G * Q, Dh], [B, S, K, Dh] -> [B * K, S, Dh]
    q, k, v = (x.swapaxes(1, 2).reshape(b * groups, -1, d) for x in (q, k, v))
    # [B * K, G * Q, S] -> [B, H, Q, S]
    scores = (q @ k.mT).astype(jnp.float32).reshape(b, h, n, -1) * d**-0.5
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, NEGATIVE)
    weights = jax.nn.softmax(scores, axis=-1)
    values = weights.astype(v.dtype).reshape(b * groups, -1, k.shape[1]) @ v
    # [B * K, G * Q, Dh] -> [B, Q, H, Dh]
    return values.reshape(b, h, n, d).swapaxes(1, 2), weights
