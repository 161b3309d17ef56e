"""Contrastive alignment of token sets with class names.

`multi_instance_contrastive_loss` aligns tokens with class names without locations: the tokens of
one sample are the bag of multiple-instance learning.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from meerkat_jax.alignment.avopt import masked_mean, unit
from meerkat_jax.core.errors import UserError
from meerkat_jax.nn.attention import NEGATIVE


def pool_scores(cosine: jax.Array, valid: jax.Array | None, sharpness: float) -> jax.Array:
    """Smooth maximum over tokens: log(mean(exp(sharpness * cosine))) / sharpness.

    cosine float[B, N, C], valid bool[B, N] -> float[B, C] between the mean (sharpness to 0) and the
    maximum (sharpness to infinity) of the valid tokens; 0 where no token is valid.
    """
    if valid is None:
        valid = jnp.ones(cosine.shape[:2], bool)
    masked = jnp.where(valid[..., None], sharpness * cosine, NEGATIVE)
    count = jnp.sum(valid, axis=1)[:, None]
    pooled = (jax.nn.logsumexp(masked, axis=1) - jnp.log(jnp.maximum(count, 1))) / sharpness
    return jnp.where(count > 0, pooled, 0.0)


def multi_instance_contrastive_loss(
    tokens: jax.Array,
    names: jax.Array,
    present: jax.Array,
    temperature: float | jax.Array,
    valid: jax.Array | None = None,
    *,
    sharpness: float = 10.0,
    form: str = "softmax",
    bias: float | jax.Array = 0.0,
) -> dict[str, jax.Array]:
    """Contrast the tokens of each sample with the embeddings of all class names.

    Args:
      tokens: float[B, N, D].
      names: float[C, D], one embedding per class.
      present: bool[B, C], the classes that the sample holds.
      temperature: above 0; scores are divided by it.
      valid: bool[B, N], False on padding tokens.
      sharpness: of the pooling over tokens, see `pool_scores`.
      form: "softmax": cross-entropy of each present class against all absent ones, mean over the
        present (sample, class) places; a sample with nothing present is left out. "sigmoid": every
        (sample, class) is a binary classification, summed over classes and averaged over
        samples (Zhai et al. 2023, equation 1); a sample with nothing present has only negatives.
      bias: added to the logits of "sigmoid".

    Returns:
      loss float[]; scores float[B, C], pooled cosines in -1..1. A sample without a valid token is
      left out of the loss and scores 0.

    Raises:
      UserError: an unknown form.
    """
    if valid is not None:
        tokens = jnp.where(valid[..., None], tokens, 0)  # or their NaN would be in the gradient
    cosine = jnp.einsum("bnd,cd->bnc", unit(tokens), unit(names))
    scores = pool_scores(cosine, valid, sharpness)
    usable = jnp.ones(len(scores), bool) if valid is None else jnp.any(valid, axis=1)
    logits = scores / temperature
    if form == "softmax":
        absent = jax.nn.logsumexp(jnp.where(present, NEGATIVE, logits), axis=1, keepdims=True)
        loss = masked_mean(jax.nn.softplus(absent - logits), present & usable[:, None])
    elif form == "sigmoid":
        per_class = jax.nn.softplus(jnp.where(present, -1.0, 1.0) * (logits + bias))
        loss = masked_mean(per_class.sum(axis=1), usable)
    else:
        raise UserError(f'form {form!r} is unknown; choose "softmax" or "sigmoid"')
    return {"loss": loss, "scores": scores}
