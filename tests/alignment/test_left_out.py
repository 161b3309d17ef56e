"""What a loss leaves out has a gradient of exactly 0, whatever it holds; what it counts is told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.alignment.avace import AVACE, avace_loss
from meerkat_jax.alignment.avopt import AVOpT, masked_mean
from meerkat_jax.alignment.contrastive import multi_instance_contrastive_loss
from meerkat_jax.training.losses import alignment_terms, answer_loss, mask_hidden

B, V, A, D = 3, 4, 5, 6
WRONG = np.nan, np.inf, -np.inf
KEEP = jnp.array([True, True, False])


def tokens(count, seed=0):
    return jax.random.normal(jax.random.key(seed), (B, count, D))


def compare(loss, trained, inputs, spoil):
    """The loss and its gradients, all finite, are those that they are without spoiled values.

    loss(trained, inputs); spoil(wrong) -> inputs, of which what is not finite has gradient 0.
    """
    both = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, gradients = both(trained, inputs)
    assert np.isfinite(value) and any(np.any(leaf) for leaf in jax.tree.leaves(gradients))
    for spoiled in map(spoil, WRONG):
        value_, (same, less) = both(trained, spoiled)
        assert value == value_
        jax.tree.map(np.testing.assert_array_equal, same, gradients[0])
        for at, found, old in zip(
            *map(jax.tree.leaves, (spoiled, less, gradients[1])), strict=True
        ):
            np.testing.assert_array_equal(found, np.where(np.isfinite(at), old, 0))


@pytest.mark.parametrize("solver", ["sinkhorn", "kernel_scaling", "ipot"])
def test_an_unmatched_pair_of_avopt(solver):
    model = AVOpT(width=8, solver=solver, iterations=10)
    image, audio = tokens(V), tokens(A, 1)
    params = jax.jit(model.init)(jax.random.key(0), image, audio)

    def loss(params, sets):
        return masked_mean(model.apply(params, *sets)["loss_per_pair"], KEEP)

    compare(loss, params, (image, audio), lambda wrong: (image.at[2].set(wrong), audio))
    out = jax.jit(model.apply)(params, image, audio.at[2, 0, 0].set(jnp.nan))
    assert np.isnan(out["distance"][2]) and np.isfinite(out["distance"][:2]).all()


def test_tokens_without_mass():
    model = AVOpT(width=8, iterations=10)
    image, audio = tokens(V), tokens(A, 1)
    params = jax.jit(model.init)(jax.random.key(0), image, audio)
    mass = jnp.ones((B, V)).at[:, 3].set(0)

    def loss(params, sets):
        return masked_mean(model.apply(params, *sets, mass)["loss_per_pair"], KEEP)

    compare(loss, params, (image, audio), lambda wrong: (image.at[:, 3].set(wrong), audio))


def test_padding_of_avace():
    model = AVACE(width=8, heads=2)
    image, audio = tokens(V), tokens(A, 1)
    params = jax.jit(model.init)(jax.random.key(0), image, audio)
    params = jax.tree.map(lambda x: x + 0.1, params)
    valid = jnp.ones((B, A), bool).at[:, 4].set(False)

    def loss(params, sets):
        out = model.apply(params, *sets, audio_valid=valid)
        return out["image"].sum() + (out["attention"] ** 2).sum()

    compare(loss, params, (image, audio), lambda wrong: (image, audio.at[:, 4].set(wrong)))


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_a_pair_without_a_box(fill):
    attention = jax.nn.softmax(tokens(V)[..., 0])
    coverage = jnp.ones((B, V)).at[:, 0].set(0.5) * KEEP[:, None]

    def loss(scale, attention):
        return scale * avace_loss(attention, coverage, kl_weight=fill)

    compare(loss, 1.0, attention, lambda wrong: attention.at[2].set(wrong))


def test_the_terms_of_the_training_step():
    boxes = jnp.zeros((B, 1, 4)).at[:2, 0, 2:].set(0.5)
    box = {"inside_weight": 0.5, "outside_weight": 0.5, "kl_weight": 1.0}
    out = {"attention": jax.nn.softmax(tokens(V)[..., 0]), "distance": jnp.arange(3.0)}

    def loss(weight, out):
        terms = alignment_terms(out, {"boxes": boxes, "matched": KEEP}, (2, 2), box)
        return weight * terms["avopt"] + weight * terms["avace"]

    def spoil(wrong):
        return {name: value.at[2].set(wrong) for name, value in out.items()}

    compare(loss, 1.0, out, spoil)


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_padding_of_the_contrasts(form):
    valid = jnp.ones((B, V), bool).at[:, 1].set(False).at[0].set(False)
    image, names = tokens(V), tokens(A, 1)[0]
    present = jnp.eye(B, A, dtype=bool)

    def by_name(names, image):
        return multi_instance_contrastive_loss(image, names, present, 0.1, valid, form=form)["loss"]

    def spoil(wrong):
        return jnp.where(valid[..., None], image, wrong)

    compare(by_name, names, image, spoil)


def test_what_is_no_answer():
    hidden, head = tokens(A)[None], tokens(9, 1)[0].T
    loss_mask = jnp.ones((1, B, A)).at[..., 3:].set(0).at[0, 0].set(0)
    answers = jnp.zeros((1, B, A), int)

    def loss(head, hidden):
        return answer_loss(mask_hidden(hidden, loss_mask) @ head, answers, loss_mask)[0]

    compare(loss, head, hidden, lambda wrong: jnp.where(loss_mask[..., None] > 0, hidden, wrong))
