"""The loss: one dictionary of named terms, summed once with their weights, each logged.

    L = L_CE + w_OT * L_OT + w_AC * L_AC  (paper, section 3.4)

Optional terms stand in for pretraining where a part has none: "image_names" and "audio_names", a
contrastive loss of tokens against class names, for that of CLIP and CLAP; "language", the answers
without image and audio, for that of the language model.

A term is a sum over its own items divided by their number in the whole batch, so that accumulating
over microbatches gives the numbers of the undivided batch.

Letters: B pairs, R packs of T tokens, A of them answers, V image tokens, C vocabulary, N boxes,
M names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.alignment.avace import box_coverage, in_box_loss
from meerkat_jax.alignment.contrastive import multi_instance_contrastive_loss
from meerkat_jax.core.errors import UserError

TERMS = ("language", "answer", "avopt", "avace", "image_names", "audio_names")


def needs(terms: Iterable[str]) -> dict[str, bool]:
    """Which of image, audio and text these terms read."""
    terms = set(terms)
    return {
        "needs_image": terms != {"language"},
        "needs_audio": bool(terms - {"language", "image_names"}),
        "needs_text": bool(terms & {"language", "answer"}),
    }


class SoftTargets(NamedTuple):
    """The target distribution for each correct token i in 0..C-1.

    `table` float32[C, C]: row i distributes `weight[i]` over the tokens; `weight` float32[C];
    `neg_entropy` float32[C]: minus the weighted cross-entropy of a prediction that equals row i.
    """

    table: np.ndarray | jax.Array
    weight: np.ndarray | jax.Array
    neg_entropy: np.ndarray | jax.Array


def number_soft_targets(
    values: dict[str, np.ndarray],
    coordinate: float = 0.0,
    seconds: float = 0.0,
    weight: float = 1.0,
) -> SoftTargets | None:
    """Soft targets for tokens that are numbers.

    A number's neighbours on its scale get a Gaussian share of width `coordinate` (of the image) or
    `seconds`: 0.314 for 0.315 is a smaller fault than 0.900. Their rows sum to `weight`, what a
    number counts beside a word. Other rows are one-hot. `values` float[C] by "kind/place" are the
    numbers that tokens stand for, NaN elsewhere: each place of a box has tokens of its own. None
    when both widths are 0 or no token is a number (a tokenizer that spells numbers in digits).
    """
    widths = {"coordinate": coordinate, "seconds": seconds}
    count = len(next(iter(values.values())))
    if not any(np.any(~np.isnan(v)) and widths[k.split("/")[0]] > 0 for k, v in values.items()):
        return None  # before the table is made: a published vocabulary's would not fit the memory
    table = np.eye(count, dtype=np.float32)
    for key, value in values.items():
        places, width = np.flatnonzero(~np.isnan(value)), widths[key.split("/")[0]]
        if width > 0 and len(places):
            gap = (value[places][:, None] - value[places][None]) / width
            share = np.exp(-0.5 * gap * gap)
            table[np.ix_(places, places)] = weight * share / share.sum(axis=1, keepdims=True)
    weights = table.sum(axis=1)
    shares = table.astype(np.float64) / weights[:, None]
    neg_entropy = -weights * (shares * np.log(np.maximum(shares, 1e-30))).sum(axis=1)
    return SoftTargets(table, weights, neg_entropy.astype(np.float32))


def counts(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """How many items each term has in the batch, at least 1."""
    boxed = (batch["boxes"][..., 2] > batch["boxes"][..., 0]).any(axis=1)
    items = {
        "language": batch["loss_mask"][:, :, 1:].sum(),
        "answer": batch["loss_mask"][:, :, 1:].sum(),
        "avopt": batch["matched"].sum(),
        "avace": boxed.sum(),
        "image_names": jnp.asarray(len(batch["image_labels"])),
        "audio_names": jnp.asarray(len(batch["audio_labels"])),
    }
    return {name: jnp.maximum(value, 1).astype(jnp.float32) for name, value in items.items()}


def answer_positions(loss_mask: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The positions at which answer tokens are predicted, so that only those get logits.

    loss_mask float[B, R, T], 1 on the at most `count` <= T answer tokens of a pack -> positions
    int[B, R, count] of the token before each, in order, and their mask float[B, R, count].
    """
    follows = jnp.pad(loss_mask[..., 1:], [(0, 0)] * (loss_mask.ndim - 1) + [(0, 1)])
    positions = jnp.argsort(-follows, axis=-1, stable=True)[..., :count]
    mask = jnp.take_along_axis(follows, positions, axis=-1)
    return jnp.minimum(positions, loss_mask.shape[-1] - 2), mask  # no token follows the last


def answer_loss(
    logits, answers, loss_mask, soft_targets: SoftTargets | None = None
) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy of the answer tokens, end tokens included, and how many are correct.

    With soft targets their entropy is subtracted, so that a perfect answer has loss 0.

    logits float[B, R, A, C], answers int[B, R, A], loss_mask float[B, R, A] (1 on answer tokens).
    """
    log_mass = jax.nn.logsumexp(logits, axis=-1)
    if soft_targets is None:
        picked = jnp.take_along_axis(logits, answers[..., None], axis=-1)[..., 0]
    else:
        picked = jnp.einsum("bqtc,bqtc->bqt", logits, jnp.take(soft_targets.table, answers, axis=0))
        picked += jnp.take(soft_targets.neg_entropy, answers)
        log_mass *= jnp.take(soft_targets.weight, answers)
    correct = (logits.argmax(-1) == answers) * loss_mask
    return jnp.where(loss_mask > 0, (log_mass - picked) * loss_mask, 0).sum(), correct.sum()


def mask_hidden(hidden: jax.Array, loss_mask: jax.Array) -> jax.Array:
    """hidden float[B, R, A, D] with zeros where loss_mask float[B, R, A] is 0.

    The gradient through masked positions is then exactly 0, whatever their values.
    """
    return jnp.where(loss_mask[..., None] > 0, hidden, 0)


def sum_pieces(function: Callable, pieces: int, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`function(*arrays)` summed over `pieces` equal pieces of axis 2, one in memory at a time.

    The float32 logits of a large vocabulary then never exist for all answer tokens at once; each
    piece is recomputed for its gradient. Raises UserError if the axis does not divide.
    """
    if pieces == 1:
        return function(*arrays)
    count = arrays[0].shape[2]
    if count % pieces:
        raise UserError(
            f"config.loss_pieces is {pieces}, which does not divide data.max_target_tokens {count}"
        )

    def split(x: jax.Array) -> jax.Array:
        # [B, R, A, ...] -> [pieces, B, R, A / pieces, ...]
        return jnp.moveaxis(x.reshape(*x.shape[:2], pieces, -1, *x.shape[3:]), 2, 0)

    def add(total, piece):
        return jax.tree.map(jnp.add, total, jax.checkpoint(function)(*piece)), None

    start = (jnp.zeros(()), jnp.zeros(()))
    return jax.lax.scan(add, start, tuple(map(split, arrays)))[0]


def present(indices: jax.Array, classes: int) -> jax.Array:
    """int[B, M] class indices, -1 padding -> bool[B, classes]."""
    return (indices[..., None] == jnp.arange(classes)).any(axis=1)


def total(terms: dict[str, jax.Array], weights: dict[str, float]) -> jax.Array:
    """The weighted sum of the named terms; UserError when names and weights differ."""
    if set(terms) != set(weights):
        raise UserError(f"loss terms {sorted(terms)} but weights for {sorted(weights)}")
    return sum(weights[name] * value for name, value in terms.items())


def alignment_terms(out, batch, grid, weights: Mapping[str, float]) -> dict[str, jax.Array]:
    """Sums of AVOpT's distance over matched pairs and of AVACE's in-box loss over boxed ones.

    `weights` are those of `in_box_loss`.
    """
    coverage = box_coverage(batch["boxes"], grid)
    boxed = (coverage > 0).any(axis=-1)
    outside = in_box_loss(out["attention"], coverage, **weights)
    return {
        "avopt": jnp.where(batch["matched"], out["distance"], 0.0).sum(),
        "avace": jnp.where(boxed, outside, 0.0).sum(),
    }


def naming_terms(
    out, class_names, batch, temperature: float, threshold: float, sharpness: Mapping[str, float]
) -> dict[str, jax.Array]:
    """Sums over the pairs of the contrastive loss of image tokens, and of audio tokens, with names.

    class_names float[N, D]: for a class of the pair's labels some token reaches a cosine above
    `threshold` with its name, whichever token it is; for other classes all tokens stay below. A
    lower `sharpness` of the pooling over tokens ("image", "audio") makes more tokens necessary.
    """
    form = {"form": "sigmoid", "bias": -threshold / temperature}
    terms = {}
    for kind, key in (("image", "image_labels"), ("audio", "audio_labels")):
        here = present(batch[key], len(class_names))
        # Before AVACE, behind which image tokens would carry the audio labels.
        tokens = out[f"{kind}_alone"]
        result = multi_instance_contrastive_loss(
            tokens, class_names, here, temperature, sharpness=sharpness[kind], **form
        )
        terms[f"{kind}_names"] = result["loss"] * len(here)
    return terms
