"""The answer loss with soft targets for numbers, and what each phase reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.training.losses import (
    answer_loss,
    answer_positions,
    naming_terms,
    needs,
    number_soft_targets,
)
from tests.tolerances import tolerance

C = 12
SHARP = {"image": 100.0, "audio": 100.0}
COORDINATES = np.full(C, np.nan, np.float32)
COORDINATES[2:9] = np.linspace(0, 1, 7)  # tokens 2 to 8 are the numbers 0, 1/6, ... 1
VALUES = {"coordinate/x0": COORDINATES, "seconds/start": np.full(C, np.nan, np.float32)}


def loss(logits, answers, spread):
    shape = (1, 1, len(answers))
    value, right = answer_loss(
        jnp.asarray(logits).reshape(*shape, C),
        jnp.asarray(answers).reshape(shape),
        jnp.ones(shape),
        jax.tree.map(jnp.asarray, spread),
    )
    return float(value), float(right)


def test_words_have_plain_cross_entropy():
    logits = np.random.default_rng(0).normal(size=(2, C)).astype(np.float32)
    spread = number_soft_targets(VALUES, coordinate=0.2, seconds=0.1, weight=3.0)
    answers = [0, 10]
    plain = -jax.nn.log_softmax(logits)[np.arange(2), np.array(answers)].sum()
    for table in (spread, None):
        np.testing.assert_allclose(loss(logits, answers, table)[0], plain, **tolerance("module"))


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_a_number_said_as_its_soft_target_costs_nothing_and_others_more(weight):
    spread = number_soft_targets(VALUES, coordinate=0.2, seconds=0.1, weight=weight)
    perfect = np.log(np.maximum(spread.table[5] / weight, 1e-30))
    assert loss(perfect, [5], spread) == (pytest.approx(0.0, abs=1e-4), 1.0)
    shifted = np.log(np.maximum(spread.table[6] / weight, 1e-30))
    far = np.log(np.maximum(spread.table[8] / weight, 1e-30))
    assert 0.01 < loss(shifted, [5], spread)[0] < loss(far, [5], spread)[0]


def test_the_weight_of_numbers_multiplies_their_loss_alone():
    logits = np.random.default_rng(1).normal(size=(1, C)).astype(np.float32)
    one, four = (number_soft_targets(VALUES, 0.2, 0.1, weight=w) for w in (1.0, 4.0))
    assert loss(logits, [4], four)[0] == pytest.approx(4 * loss(logits, [4], one)[0], rel=1e-4)
    assert loss(logits, [0], four)[0] == pytest.approx(loss(logits, [0], one)[0], rel=1e-5)


def test_the_places_of_a_box_share_nothing():
    other = np.full(C, np.nan, np.float32)
    other[9:11] = 0.5, 0.6  # near the numbers 3/6 and 4/6 of the first place
    spread = number_soft_targets(VALUES | {"coordinate/y0": other}, coordinate=0.2, seconds=0.1)
    assert not spread.table[2:9, 9:11].any() and spread.table[9, 10] > 0.1


def test_no_numbers_no_soft_targets():
    nothing = {"coordinate/x0": np.full(C, np.nan), "seconds/start": np.full(C, np.nan)}
    assert number_soft_targets(nothing, 0.2, 0.1) is None
    assert number_soft_targets(VALUES, 0.0, 0.0) is None


def test_what_the_terms_read():
    def read(*terms):
        return {what for what, needed in needs(terms).items() if needed}

    assert read("language") == {"needs_text"}
    assert read("image_names") == {"needs_image"}
    assert read("image_names", "avace") == {"needs_image", "needs_audio"}
    assert read("answer") == {"needs_image", "needs_audio", "needs_text"}


def test_answers_are_predicted_from_the_token_before_each_of_theirs():
    """Two answers in one run, and a run with none."""
    loss_mask = jnp.zeros((1, 2, 9)).at[0, 0, jnp.array([2, 3, 7])].set(1.0)
    places, wanted = answer_positions(loss_mask, 4)
    assert places[0, 0, :3].tolist() == [1, 2, 6] and wanted[0, 0].tolist() == [1, 1, 1, 0]
    assert not wanted[0, 1].any()


def name_losses(tokens, seen, sharpness=SHARP):
    """Both losses of names of one pair; the names are alike in their first feature."""
    names = jnp.concatenate([2 * jnp.ones((4, 1)), jnp.eye(4)], axis=1)
    out = {"image_alone": tokens[None], "audio_alone": tokens[None]}
    batch = {"image_labels": jnp.asarray([seen]), "audio_labels": jnp.asarray([seen])}
    terms = naming_terms(out, names, batch, temperature=0.05, threshold=0.9, sharpness=sharpness)
    return float(terms["image_names"]), float(terms["audio_names"])


def test_tokens_of_things_are_like_their_names_and_all_others_unlike_any():
    """A token beside the things that has what names have in common is a mistake too."""
    thing = jnp.array([2.0, 0.0, 1.0, 0.0, 0.0])
    elsewhere = jnp.array([-1.0, 0.1, 0.1, 0.1, 0.1])
    some_thing = jnp.array([2.0, 0.5, 0.5, 0.5, 0.5])
    right, too = name_losses(jnp.stack([thing, elsewhere]), [1, -1])
    assert right == too and right < 0.7
    assert name_losses(jnp.stack([thing, some_thing]), [1, -1])[0] > right + 1
    assert name_losses(jnp.stack([thing, elsewhere]), [2, -1])[0] > right + 2
    # where nothing is, all that is said is too much
    assert name_losses(jnp.stack([elsewhere, elsewhere]), [-1, -1])[0] < 0.1
    assert name_losses(jnp.stack([thing, elsewhere]), [-1, -1])[0] > right + 1


def test_with_less_sharpness_more_tokens_have_to_say_a_name():
    thing = jnp.array([2.0, 0.0, 1.0, 0.0, 0.0])
    elsewhere = jnp.array([-1.0, 0.1, 0.1, 0.1, 0.1])
    sharpness = {"image": 50.0, "audio": 20.0}
    one, four = (
        name_losses(jnp.stack([thing] * n + [elsewhere] * (16 - n)), [1, -1], sharpness)
        for n in (1, 4)
    )
    assert one[1] - four[1] > 2 * (one[0] - four[0]) > 0
