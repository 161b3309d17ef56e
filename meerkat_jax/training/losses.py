"""The loss: one dictionary of named terms, summed once with their weights, each logged.

    L = L_CE + w_OT * L_OT + w_AC * L_AC  (paper, section 3.4)

Optional terms stand in for pretraining where a part has none: "image_names" and "audio_names", a
contrastive loss of tokens against class names, for that of CLIP and CLAP; "language", the answers
without image and audio, for that of the language model.

A term is a sum over its own items divided by their number in the whole batch, so that accumulating
over microbatches gives the numbers of the undivided batch.

Letters: B pairs, R runs of T tokens, A of them answers, V image tokens, C vocabulary, N boxes,
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
    """What of an example these terms read: its picture, its sound, its questions."""
    terms = set(terms)
    return {
        "look": terms != {"language"},
        "listen": bool(terms - {"language", "image_names"}),
        "ask": bool(terms & {"language", "answer"}),
    }


class SoftTargets(NamedTuple):
    """What to answer where token i is right, for i in 0..C-1.

    `table` float32[C, C]: row i shares out `weight[i]` over the tokens; `weight` float32[C];
    `least` float32[C]: the weighted cross-entropy that remains when the answer is exactly row i.
    """

    table: np.ndarray | jax.Array
    weight: np.ndarray | jax.Array
    least: np.ndarray | jax.Array


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
    least = -weights * (shares * np.log(np.maximum(shares, 1e-30))).sum(axis=1)
    return SoftTargets(table, weights, least.astype(np.float32))


def counts(batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """How many items each term has in the batch, at least 1."""
    boxed = (batch["boxes"][..., 2] > batch["boxes"][..., 0]).any(axis=1)
    items = {
        "language": batch["targets"][:, :, 1:].sum(),
        "answer": batch["targets"][:, :, 1:].sum(),
        "avopt": batch["matched"].sum(),
        "avace": boxed.sum(),
        "image_names": jnp.asarray(len(batch["seen"])),
        "audio_names": jnp.asarray(len(batch["heard"])),
    }
    return {name: jnp.maximum(value, 1).astype(jnp.float32) for name, value in items.items()}


def answer_places(targets: jax.Array, room: int) -> tuple[jax.Array, jax.Array]:
    """Where the answers are predicted, so that logits are made there only.

    targets float[B, R, T], 1 on the at most `room` <= T answer tokens of a run -> places
    int[B, R, room], of the token before each, in order, and float[B, R, room], 1 for such a place.
    """
    follows = jnp.pad(targets[..., 1:], [(0, 0)] * (targets.ndim - 1) + [(0, 1)])
    places = jnp.argsort(-follows, axis=-1, stable=True)[..., :room]
    counted = jnp.take_along_axis(follows, places, axis=-1)
    return jnp.minimum(places, targets.shape[-1] - 2), counted  # after the last there is no token


def answer_loss(
    logits, answers, targets, soft_targets: SoftTargets | None = None
) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy of the answer tokens, the end token among them, and how many are right.

    With soft targets, what exceeds the least that they allow: a perfect answer has 0.

    logits float[B, R, A, C], answers int[B, R, A], targets float[B, R, A] (1 on what is to be
    answered), soft_targets those of numbers, if any.
    """
    log_mass = jax.nn.logsumexp(logits, axis=-1)
    if soft_targets is None:
        picked = jnp.take_along_axis(logits, answers[..., None], axis=-1)[..., 0]
    else:
        picked = jnp.einsum("bqtc,bqtc->bqt", logits, jnp.take(soft_targets.table, answers, axis=0))
        picked += jnp.take(soft_targets.least, answers)
        log_mass *= jnp.take(soft_targets.weight, answers)
    right = (logits.argmax(-1) == answers) * targets
    return jnp.where(targets > 0, (log_mass - picked) * targets, 0).sum(), right.sum()


def counted(hidden: jax.Array, targets: jax.Array) -> jax.Array:
    """hidden float[B, R, A, D] with zeros where targets float[B, R, A] is 0.

    Whatever stood at a place that does not count, the gradient through it is then exactly 0.
    """
    return jnp.where(targets[..., None] > 0, hidden, 0)


def by_pieces(said: Callable, pieces: int, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`said(*arrays)` as a sum over `pieces` equal pieces of axis 2, one in memory at a time.

    float32 logits of a large vocabulary need not exist for all answer tokens at once: those of a
    piece are made, and made again for its gradient. Raises UserError if the axis does not divide.
    """
    if pieces == 1:
        return said(*arrays)
    room = arrays[0].shape[2]
    if room % pieces:
        raise UserError(f"config.loss_pieces is {pieces}, which does not divide data.room {room}")

    def cut(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(*x.shape[:2], pieces, -1, *x.shape[3:]), 2, 0)

    def add(found, piece):
        return jax.tree.map(jnp.add, found, jax.checkpoint(said)(*piece)), None

    start = (jnp.zeros(()), jnp.zeros(()))
    return jax.lax.scan(add, start, tuple(map(cut, arrays)))[0]


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


def name_terms(
    out, names, batch, temperature: float, threshold: float, sharpness: Mapping[str, float]
) -> dict[str, jax.Array]:
    """Sums over the pairs of the contrast of image and of audio tokens with all names.

    names float[N, D]: what is seen or heard pulls some token to its name, wherever the token is, to
    a cosine above `threshold`; all other names stay below it at all tokens. Names have most of
    their vector in common where they start so, and tokens of things then differ from all else by
    that.
    `sharpness` of the pooling over tokens ("image" and "audio"): the less, the more tokens have to
    say a name before its threshold is reached.
    """
    form = {"form": "sigmoid", "bias": -threshold / temperature}
    terms = {}
    for kind, key in (("image", "seen"), ("audio", "heard")):
        here = present(batch[key], len(names))
        # not the tokens behind AVACE: what is heard would give away what is seen
        tokens = out[f"{kind}_alone"]
        result = multi_instance_contrastive_loss(
            tokens, names, here, temperature, sharpness=sharpness[kind], **form
        )
        terms[f"{kind}_names"] = result["loss"] * len(here)
    return terms
