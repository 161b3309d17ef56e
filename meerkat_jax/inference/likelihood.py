"""Log-likelihoods of given answers under the model.

One pass over question and answer gives every token's probability, where generation takes a turn
for each; prefixes are made and shared out as in sampling.py. What generation never writes (markers,
the padding of the vocabulary) has no share here either, so that the probabilities are those that it
draws from at temperature 1.

Letters: R rows, T tokens of a question with its answer, N of the answer; D, C as in
meerkat.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.build import Assembly
from meerkat_jax.inference.sampling import (
    Sampler,
    broadcast_prefix,
    bucket,
    decoder_inputs,
    padded,
    prefill_prefix,
    suppress_mask,
)
from meerkat_jax.meerkat import Meerkat
from meerkat_jax.nn.attention import NEGATIVE

STEP = 32  # T and N are rounded up to a multiple of it


class Scorer:
    """Log-likelihoods under the model of `sampler`.

    A call is padded to the largest sizes (R, T, N) of those before it, so that few programs are
    compiled: use one scorer for texts of like length.
    """

    def __init__(self, sampler: Sampler):
        """Programs are compiled at first use."""
        self.assembly, self.params = sampler.assembly, sampler.params
        self._suppress = suppress_mask(self.assembly.tokenizer)
        self._largest = (0, 0, 0)
        self._score = jax.jit(functools.partial(_score, self.assembly), static_argnums=0)

    def score(
        self,
        aligned: dict[str, jax.Array],
        pair_ids: Sequence[int],
        questions: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
    ) -> list[np.ndarray]:
        """Natural logarithms of probabilities float32[n], one array for each of R answers.

        The r-th is about pair `pair_ids[r]` of `aligned`: of each token of `answers[r]` the
        probability after `questions[r]` and the tokens before it (ids, as `Prompt.question_ids` and
        `Prompt.answer_ids` give them; the latter with the end token). Their sum is the answer's
        log-likelihood.
        """
        if not answers:
            return []
        texts = [[*q, *a] for q, a in zip(questions, answers, strict=True)]
        sizes = bucket(len(texts)), *(_up(max(map(len, some))) for some in (texts, answers))
        self._largest = tuple(map(max, self._largest, sizes))
        rows, length, most = self._largest
        tokens = np.full((rows, length), self.assembly.tokenizer.pad_id)
        for row, ids in enumerate(texts):
            tokens[row, : len(ids)] = ids
        found = self._score(
            most,
            self.params,
            decoder_inputs(aligned),
            {
                "pair_ids": padded(np.array(pair_ids, np.int32), rows),
                "tokens": tokens.astype(np.int32),
                "lengths": padded(np.array([*map(len, texts)], np.int32), rows),
                "begins": padded(np.array([*map(len, questions)], np.int32), rows),
            },
            self._suppress,
        )
        pairs = zip(np.asarray(found), answers, strict=False)
        return [values[: len(ids)] for values, ids in pairs]


def _up(count: int) -> int:
    return -(-count // STEP) * STEP


def _score(
    assembly: Assembly, most: int, params: dict, pairs: dict, rows: dict, suppress_mask: jax.Array
) -> jax.Array:
    """Log-probabilities float32[R, N] of the tokens from `begins` on, N = `most`.

    rows: tokens int32[R, T], lengths int32[R] of question and answer, begins int32[R] of the
    answer, owners int32[R]. Behind an answer's end they mean nothing.
    """
    model, tokens = assembly.model, rows["tokens"]
    count, length = tokens.shape

    def apply(*args, method):
        return model.apply({"params": params}, *args, method=method)

    cache = pairs["cache"] if "cache" in pairs else prefill_prefix(model, params, **pairs)
    cache = broadcast_prefix(cache, rows["pair_ids"], length)
    hidden = apply(tokens, rows["lengths"], cache, model.prefix_length, method=_hidden)
    places = jnp.minimum(rows["begins"][:, None] + jnp.arange(most), length - 1)
    before = jnp.take_along_axis(hidden, places[..., None] - 1, axis=1)
    wanted = jnp.take_along_axis(tokens, places, axis=1)

    def one(place):  # of all rows: logits of all places would be R x N x C
        logits = jnp.where(suppress_mask, NEGATIVE, apply(place[0], method="logits"))
        return jnp.take_along_axis(jax.nn.log_softmax(logits), place[1][:, None], axis=1)[:, 0]

    return jax.lax.map(one, (before.swapaxes(0, 1), wanted.T)).T


def _hidden(model: Meerkat, tokens, lengths, cache, prefix: int) -> jax.Array:
    """float[R, T, D] of tokens int32[R, T] behind the `prefix` slots that `cache` holds."""
    places = jnp.arange(tokens.shape[1])[None]
    positions, valid = jnp.broadcast_to(prefix + places, tokens.shape), places < lengths[:, None]
    row = model.llama.embed(tokens)
    return model.llama(row, positions, None, valid, cache, prefix)["hidden"]
