"""The contrasts, against references written with loops, and what they teach."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meerkat_jax.alignment.contrastive import (
    multi_instance_contrastive_loss,
    pool_scores,
)
from meerkat_jax.core.errors import UserError
from tests.tolerances import tolerance

B, N, D, C = 5, 6, 8, 7
TEMPERATURE = 0.2


def sample(seed=0):
    rng = np.random.default_rng(seed)
    tokens, names = rng.normal(size=(B, N, D)), rng.normal(size=(C, D))
    present = rng.random((B, C)) < 0.4
    present[0], present[1] = False, True  # nothing present; nothing absent
    return np.float32(tokens), np.float32(names), present


def normalised(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference_scores(tokens, names, sharpness=10.0):
    cosine = normalised(tokens) @ normalised(names).T
    return np.log(np.exp(sharpness * cosine).mean(1)) / sharpness


def test_softmax_is_each_present_class_against_all_absent_ones():
    tokens, names, present = sample()
    scores = reference_scores(tokens, names)
    losses = []
    for row, here in zip(np.exp(scores / TEMPERATURE), present, strict=True):
        losses += [-np.log(row[c] / (row[c] + row[~here].sum())) for c in np.flatnonzero(here)]
    out = multi_instance_contrastive_loss(tokens, names, present, TEMPERATURE)
    np.testing.assert_allclose(out["scores"], scores, **tolerance("module"))
    np.testing.assert_allclose(out["loss"], np.mean(losses), **tolerance("module"))


def test_sigmoid_asks_every_class_of_every_sample():
    tokens, names, present = sample()
    logits = reference_scores(tokens, names) / TEMPERATURE - 2.0
    right = np.where(present, 1, -1) * logits
    expected = np.log1p(np.exp(-right)).sum(1).mean()
    out = multi_instance_contrastive_loss(
        tokens, names, present, TEMPERATURE, form="sigmoid", bias=-2.0
    )
    np.testing.assert_allclose(out["loss"], expected, **tolerance("module"))


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_batch_with_nothing_present(form):
    tokens, names, present = sample()

    def loss(tokens):
        return multi_instance_contrastive_loss(
            tokens, names, present & False, TEMPERATURE, form=form
        )["loss"]

    value, gradient = jax.value_and_grad(loss)(jnp.array(tokens))
    assert np.isfinite(gradient).all()
    assert (value == 0) == (np.abs(gradient).max() == 0) == (form == "softmax")


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_padding_tokens_and_samples_without_any_token_are_left_out(form):
    tokens, names, present = sample()
    plain = multi_instance_contrastive_loss(tokens, names, present, TEMPERATURE, form=form)
    more = np.concatenate([tokens, np.full((B, 3, D), 4.0, np.float32)], axis=1)
    more = np.concatenate([more, more[:1]])
    valid = np.zeros((B + 1, N + 3), bool)
    valid[:B, :N] = True
    present = np.concatenate([present, present[2:3]])

    def run(tokens):
        out = multi_instance_contrastive_loss(tokens, names, present, TEMPERATURE, valid, form=form)
        return out["loss"], out["scores"]

    (loss, scores), gradient = jax.value_and_grad(run, has_aux=True)(jnp.array(more))
    np.testing.assert_allclose(loss, plain["loss"], **tolerance("module"))
    np.testing.assert_allclose(scores[:B], plain["scores"], **tolerance("module"))
    assert np.isfinite(gradient).all() and np.all(np.array(gradient)[~valid] == 0)


def test_pooling_lies_between_mean_and_maximum():
    cosine = jnp.array(np.random.default_rng(0).uniform(-1, 1, (2, N, C)))
    np.testing.assert_allclose(pool_scores(cosine, None, 1e-3), cosine.mean(1), atol=1e-3)
    np.testing.assert_allclose(pool_scores(cosine, None, 1e4), cosine.max(1), atol=1e-3)


def test_unknown_form_is_named():
    tokens, names, present = sample()
    with pytest.raises(UserError, match="triplet"):
        multi_instance_contrastive_loss(tokens, names, present, TEMPERATURE, form="triplet")


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_training_finds_the_classes_without_being_told_which_token(form):
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(C, 16))
    classes = np.stack([rng.choice(C, 2, replace=False) for _ in range(64)])
    x = rng.normal(size=(64, N, 16))
    for place in range(2):
        x[np.arange(64), rng.integers(place * 3, place * 3 + 3, 64)] = looks[classes[:, place]]
    x = jnp.float32(x + 0.1 * rng.normal(size=x.shape))
    present = jax.nn.one_hot(classes, C).sum(1) > 0
    params = {
        "tower": jnp.float32(0.3 * rng.normal(size=(16, D))),
        "names": jnp.float32(rng.normal(size=(C, D))),
        "log_scale": jnp.log(10.0),  # temperature and bias are learned, as SigLIP does
        "bias": jnp.float32(-10.0),
    }
    optimiser = optax.adam(3e-2)
    state = optimiser.init(params)

    def loss(params):
        out = multi_instance_contrastive_loss(
            x @ params["tower"],
            params["names"],
            present,
            jnp.exp(-params["log_scale"]),
            form=form,
            bias=params["bias"],
        )
        return out["loss"], out["scores"]

    @jax.jit
    def step(params, state):
        (_, scores), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimiser.update(gradients, state)
        return optax.apply_updates(params, updates), state, scores, gradients

    params, state, scores, first = step(params, state)
    used = ("log_scale",) if form == "softmax" else ("log_scale", "bias")
    assert all(abs(first[name]) > 1e-6 for name in used)
    for _ in range(100):
        params, state, scores, _ = step(params, state)
    top = np.argsort(-np.array(scores), axis=1)[:, :2]
    assert np.mean(np.sort(top, 1) == np.sort(classes, 1)) > 0.9
