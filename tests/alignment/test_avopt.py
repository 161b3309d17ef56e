"""AVOpT: its loss reaches trainable weights and tells matched pairs from shuffled ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meerkat_jax.alignment.avopt import AVOpT, above_threshold, masked_mean, unit
from meerkat_jax.alignment.sinkhorn import transport
from tests.tolerances import tolerance

B, V, A, DV, DA = 8, 9, 6, 12, 10


def tokens(seed=0, batch=B):
    """Pairs that share a hidden mix of 3 of 12 codes, seen through two unrelated linear maps."""
    fixed = np.random.default_rng(99)
    codes = fixed.normal(size=(12, 6))
    to_image, to_audio = fixed.normal(size=(6, DV)), fixed.normal(size=(6, DA))
    rng = np.random.default_rng(seed)
    mix = np.stack([rng.choice(12, 3, replace=False) for _ in range(batch)])
    image, audio = codes[np.repeat(mix, V // 3, 1)], codes[np.repeat(mix, A // 3, 1)]
    image = image @ to_image + 0.1 * rng.normal(size=(batch, V, DV))
    audio = audio @ to_audio + 0.1 * rng.normal(size=(batch, A, DA))
    return jnp.float32(image), jnp.float32(audio)


def built(**fields):
    model = AVOpT(width=8, **fields)
    return model, model.init(jax.random.key(0), *tokens())


@pytest.mark.parametrize(
    "fields", [{}, {"solver": "ipot"}, {"gradient": "implicit", "epsilon": 0.1}]
)
def test_loss_changes_the_projections_and_what_is_upstream(fields):
    model, variables = built(**fields)
    matched = jnp.arange(B) < 5

    def loss(variables, image, audio):
        return masked_mean(model.apply(variables, image, audio)["loss_per_pair"], matched)

    gradients, image, audio = jax.jit(jax.grad(loss, (0, 1, 2)))(variables, *tokens())
    assert set(gradients["params"]) == {"image", "audio"}
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6
    for upstream in (image, audio):
        size = np.abs(upstream).max(axis=(1, 2))
        assert (size[:5] > 1e-6).all() and (size[5:] == 0).all()


def test_no_matched_pair_gives_zero_and_zero_gradient():
    model, variables = built()

    def loss(variables):
        return masked_mean(model.apply(variables, *tokens())["loss_per_pair"], jnp.zeros(B, bool))

    value, gradients = jax.jit(jax.value_and_grad(loss))(variables)
    assert value == 0
    assert all(np.all(np.array(leaf) == 0) for leaf in jax.tree.leaves(gradients))


def test_masked_mean_ignores_what_is_left_out():
    values = jnp.array([1.0, jnp.nan, 3.0])
    assert masked_mean(values, jnp.array([True, False, True])) == 2


def test_outputs_are_named_and_in_range():
    model, variables = built()
    out = model.apply(variables, *tokens())
    assert out["plan"].shape == out["cost_matrix"].shape == (B, V, A)
    assert out["distance"].shape == out["loss_per_pair"].shape == out["cost"].shape == (B,)
    assert 0 <= out["cost_matrix"].min() and out["cost_matrix"].max() <= 2
    np.testing.assert_allclose(out["plan"].sum((1, 2)), np.ones(B), **tolerance("marginal"))


def test_padding_tokens_change_nothing():
    model, variables = built()
    image, audio = tokens()
    out = model.apply(variables, image, audio)
    mass = jnp.pad(jnp.ones((B, V)), ((0, 0), (0, 2)))
    padded = jnp.concatenate([image, jnp.full((B, 2, DV), 5.0)], axis=1)
    np.testing.assert_allclose(
        model.apply(variables, padded, audio, mass)["distance"],
        out["distance"],
        **tolerance("module"),
    )


def test_unit_of_zero_is_zero_with_finite_gradient():
    assert np.all(np.array(unit(jnp.zeros((2, 3)))) == 0)
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros((2, 3)))).all()


def test_training_brings_matched_pairs_below_shuffled_ones():
    model, variables = built(epsilon=0.05)
    held_out = tokens(seed=1, batch=32)

    def gap(variables):
        image, audio = held_out
        matched = model.apply(variables, image, audio)["distance"]
        shuffled = model.apply(variables, image, jnp.roll(audio, 1, axis=0))["distance"]
        return float((matched - shuffled).mean()), float((matched < shuffled).mean())

    optimiser = optax.adam(1e-2)
    state = optimiser.init(variables)

    @jax.jit
    def step(variables, state):
        def loss(variables):
            return masked_mean(
                model.apply(variables, *tokens(2, 64))["loss_per_pair"], jnp.ones(64, bool)
            )

        updates, state = optimiser.update(jax.grad(loss)(variables), state)
        return optax.apply_updates(variables, updates), state

    before, _ = gap(variables)
    for _ in range(40):
        variables, state = step(variables, state)
    after, share = gap(variables)
    assert after < before - 0.05 and after < 0 and share > 0.8


# ---- the release's threshold of costs ----


def thresholded(cost, share):
    return np.maximum(cost - (cost.min() + share * (cost.max() - cost.min())), 0)


@pytest.mark.parametrize("solver", ["sinkhorn", "ipot"])
def test_costs_are_cut_off_where_the_release_cuts_them(solver):
    """modeling.py, OT_dist: relu(C - (min + .1 (max - min))), min and max of the whole batch."""
    model, variables = built(solver=solver, cost_threshold=0.1)
    out = model.apply(variables, *tokens())
    plain = np.array(out["cost_matrix"])
    wanted = transport(jnp.asarray(thresholded(plain, 0.1)), solver=solver)
    np.testing.assert_allclose(out["distance"], wanted["distance"], **tolerance("module"))
    off = AVOpT(width=8, solver=solver).apply(variables, *tokens())
    np.testing.assert_array_equal(off["cost_matrix"], plain)
    assert (out["distance"] < off["distance"]).all()


def test_pairs_and_tokens_left_out_move_no_threshold():
    model, variables = built(cost_threshold=0.1)
    image, audio = tokens()
    matched = jnp.arange(B) < 5
    mass = jnp.ones((B, V)).at[:, -2:].set(0)

    def distances(image, audio, keep=slice(0, 5)):
        return model.apply(variables, image, audio, mass, matched=matched)["distance"][keep]

    wanted = distances(image, audio)
    other = image.at[5:].set(-image[5:]).at[:, -2:].set(3.0)
    np.testing.assert_allclose(distances(other, audio), wanted, **tolerance("module"))
    alone = model.apply(variables, image[:5], audio[:5], mass[:5])["distance"]
    np.testing.assert_allclose(alone, wanted, **tolerance("module"))
    none = model.apply(variables, image, audio, mass, matched=jnp.zeros(B, bool))
    assert np.isfinite(none["distance"]).all()


def test_the_threshold_is_a_constant_to_the_gradient():
    """Through min and max, apart from each other would be nearer for the nearest tokens."""
    cost = jax.random.uniform(jax.random.key(0), (2, 5, 4), maxval=2.0)
    every = jnp.ones(cost.shape, bool)
    gradient = jax.grad(lambda cost: above_threshold(cost, 0.1, every).sum())(cost)
    low, high = float(cost.min()), float(cost.max())
    np.testing.assert_array_equal(gradient, cost > low + 0.1 * (high - low))
    hidden = cost.at[1].set(jnp.nan)  # as of a pair whose tokens are not finite
    found = above_threshold(hidden, 0.1, jnp.isfinite(hidden))
    np.testing.assert_allclose(found[0], thresholded(np.array(cost[0]), 0.1), atol=1e-6)
