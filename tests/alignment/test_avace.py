"""AVACE: the map varies, learns, and moves into the box; coverage is exact; the loss reaches 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meerkat_jax.alignment.avace import AVACE, avace_loss, box_coverage, in_box_loss
from meerkat_jax.mini.initialisers import mimetic_init
from tests.tolerances import tolerance

B, GRID, A, DV, DA = 3, (4, 5), 7, 12, 10
V = GRID[0] * GRID[1]


def tokens(seed=0):
    rng = np.random.default_rng(seed)
    return jnp.float32(rng.normal(size=(B, V, DV))), jnp.float32(rng.normal(size=(B, A, DA)))


def built(**fields):
    model = AVACE(width=16, heads=4, **fields)
    return model, model.init(jax.random.key(0), *tokens())


def test_tokens_pass_unchanged_at_first_but_for_an_attention_embedding():
    model, variables = built(attention_embedding=False)
    out = model.apply(variables, *tokens())
    for name, source in zip(("image", "audio"), tokens(), strict=True):
        np.testing.assert_array_equal(out[name], source)
    model, variables = built(attention_embedding=True)
    out = model.apply(variables, *tokens())
    attentions = {"image": out["attention"], "audio": out["audio_weight"]}
    for (name, attention), source in zip(attentions.items(), tokens(), strict=True):
        peak = attention / attention.max(axis=1, keepdims=True)
        marked = source + peak[..., None] * variables["params"][f"{name}_attention_embedding"]
        np.testing.assert_allclose(out[name], marked, **tolerance("module"))


def test_map_is_over_patches_and_varies():
    model, variables = built()
    out = model.apply(variables, *tokens())
    assert out["map"].shape == (B, A, V) and out["attention"].shape == (B, V)
    np.testing.assert_allclose(out["map"].sum(-1), np.ones((B, A)), **tolerance("module"))
    np.testing.assert_allclose(out["attention"].sum(-1), np.ones(B), **tolerance("module"))
    np.testing.assert_allclose(out["audio_weight"].sum(-1), np.ones(B), **tolerance("module"))
    assert (out["attention"].std(axis=1) > 0.05 / V).all()  # the release's has exactly 0
    assert (out["map"].std(axis=1).max(axis=1) > 0.1 / V).all()  # and every sound has its own


def test_box_loss_reaches_the_map_and_what_is_upstream():
    model, variables = built()
    boxes = jnp.array([[[0.1, 0.1, 0.5, 0.6]]] * B)

    def loss(variables, image, audio):
        out = model.apply(variables, image, audio)
        return avace_loss(out["attention"], box_coverage(boxes, GRID))

    gradients, image, audio = jax.jit(jax.grad(loss, (0, 1, 2)))(variables, *tokens())
    parts = gradients["params"]
    for name in ("audio_q", "audio_k", "audio_score"):
        assert np.abs(parts[name]["kernel"]).max() > 1e-5, name
    for name in ("image_norm", "audio_norm"):
        assert np.abs(parts[name]["scale"]).max() > 1e-5, name
    assert np.abs(image).max() > 1e-5 and np.abs(audio).max() > 1e-5


@pytest.mark.parametrize("mark", [True, False])
def test_token_outputs_reach_the_output_projections(mark):
    model, variables = built(attention_embedding=mark)

    def loss(variables):
        out = model.apply(variables, *tokens())
        return jnp.sum(out["image"] ** 2) + jnp.sum(out["audio"] ** 2)

    parts = jax.jit(jax.grad(loss))(variables)["params"]
    for name in ("image_o", "audio_o"):
        assert np.abs(parts[name]["kernel"]).max() > 1e-3, name
    for name in ("image_attention_embedding", "audio_attention_embedding"):
        assert (name in parts) == mark
        assert not mark or np.abs(parts[name]).max() > 1e-3, name


def test_overfitting_one_sample_moves_the_attention_into_the_box():
    model, variables = built()
    image, audio = (x[:1] for x in tokens())
    coverage = box_coverage(jnp.array([[[0.4, 0.5, 0.8, 1.0]]]), GRID)  # 2 x 2 whole patches
    optimiser = optax.adam(2e-2)
    state = optimiser.init(variables)

    @jax.jit
    def step(variables, state):
        def loss(variables):
            attention = model.apply(variables, image, audio)["attention"]
            return avace_loss(attention, coverage), attention

        (_, attention), gradients = jax.value_and_grad(loss, has_aux=True)(variables)
        updates, state = optimiser.update(gradients, state)
        return optax.apply_updates(variables, updates), state, attention

    inside = []
    for _ in range(80):
        variables, state, attention = step(variables, state)
        inside.append(float(jnp.sum(attention * coverage)))
    assert inside[0] < 0.5 and inside[-1] > 0.95


def test_padding_tokens_change_nothing():
    model, variables = built()
    variables = jax.tree.map(lambda x: x + 0.1, variables)  # so that every output is in use
    image, audio = tokens()
    out = model.apply(variables, image, audio)
    more_image = jnp.concatenate([image, jnp.full((B, 2, DV), 3.0)], axis=1)
    more_audio = jnp.concatenate([audio, jnp.full((B, 4, DA), 3.0)], axis=1)
    padded = model.apply(
        variables,
        more_image,
        more_audio,
        jnp.arange(V + 2)[None].repeat(B, 0) < V,
        jnp.arange(A + 4)[None].repeat(B, 0) < A,
    )
    for name, length in (("image", V), ("audio", A), ("attention", V), ("audio_weight", A)):
        np.testing.assert_allclose(padded[name][:, :length], out[name], **tolerance("module"))
    assert np.all(np.array(padded["attention"][:, V:]) == 0)


def test_width_must_hold_whole_heads():
    with pytest.raises(ValueError, match="not a multiple of heads"):
        AVACE(width=10, heads=4).init(jax.random.key(0), *tokens())


def test_coverage_of_known_boxes():
    half = box_coverage(jnp.array([[[0.0, 0.0, 0.25, 0.5]]]), (2, 2))
    np.testing.assert_allclose(half, [[0.5, 0, 0, 0]], **tolerance("module"))
    twice = box_coverage(jnp.array([[[0, 0, 0.5, 0.5], [0.25, 0, 0.75, 0.5]]]), (2, 2))
    np.testing.assert_allclose(twice, [[1, 0.5, 0, 0]], **tolerance("module"))
    outside = box_coverage(jnp.array([[[-1.0, -1.0, 2.0, 2.0]]]), (2, 3))
    np.testing.assert_allclose(outside, np.ones((1, 6)), **tolerance("module"))


def test_coverage_counts_a_union_once_and_ignores_padding():
    rng = np.random.default_rng(3)
    fine = 240
    corners = np.sort(rng.integers(0, fine + 1, (6, 4, 2, 2)), axis=2)  # on the raster's lines
    boxes = (corners / fine).reshape(6, 4, 4)
    boxes[:, 3] = 0.3  # zero area
    middle = (np.arange(fine) + 0.5) / fine
    inside_x = (boxes[..., 0, None] < middle) & (middle < boxes[..., 2, None])
    inside_y = (boxes[..., 1, None] < middle) & (middle < boxes[..., 3, None])
    union = (inside_y[..., :, None] & inside_x[..., None, :]).any(1)
    h, w = GRID
    expected = union.reshape(6, h, fine // h, w, fine // w).mean((2, 4)).reshape(6, -1)
    coverage = jax.jit(box_coverage, static_argnums=1)(jnp.float32(boxes), GRID)
    np.testing.assert_allclose(coverage, expected, **tolerance("coverage"))
    assert np.all(np.array(box_coverage(jnp.zeros((2, 3, 4)), GRID)) == 0)


def test_in_box_loss_reaches_zero_and_its_maximum():
    coverage = box_coverage(jnp.array([[[0.05, 0.05, 0.1, 0.1]]]), GRID)  # a corner of one patch
    assert 0 < coverage[0, 0] < 0.1
    on_it, beside = jax.nn.one_hot(jnp.array([[0], [7]]), V)
    assert in_box_loss(on_it, coverage)[0] == 0
    np.testing.assert_allclose(in_box_loss(beside, coverage, 0.7, 0.2), [0.9], rtol=1e-6)
    uniform = in_box_loss(jnp.full((1, V), 1 / V), coverage)
    np.testing.assert_allclose(uniform, [1 - 1 / V], **tolerance("module"))


def test_fill_asks_the_map_to_cover_the_box():
    coverage = box_coverage(jnp.array([[[0.0, 0.0, 0.5, 0.5]]]), (4, 4))  # 2 x 2 whole patches
    spread = coverage / 4
    corner = jax.nn.one_hot(jnp.array([0]), 16)
    assert in_box_loss(spread, coverage)[0] == in_box_loss(corner, coverage)[0] == 0
    filled = in_box_loss(spread, coverage, kl_weight=1.0)
    np.testing.assert_allclose(filled, [0.0], **tolerance("module"))
    assert in_box_loss(corner, coverage, kl_weight=1.0)[0] > 1
    # where the softmax is far from the box, mass alone has next to no gradient
    scores = jnp.where(coverage > 0, -9.0, 0.0)

    def push(fill):
        def loss(scores):
            return in_box_loss(jax.nn.softmax(scores), coverage, kl_weight=fill)[0]

        return float(jnp.abs(jax.grad(loss)(scores)).max())

    assert push(0.0) < 0.01 < 0.1 < push(1.0)


def test_what_means_the_same_is_found_before_any_training():
    """Queries and keys start as one projection: a sound's token finds the patch that is like it."""
    model = AVACE(width=16, heads=1, similarity_init=mimetic_init(1.0))
    rng = np.random.default_rng(1)
    image = jnp.float32(rng.normal(size=(B, V, 16)))
    audio = image[:, 7][:, None] + 0.1 * jnp.float32(rng.normal(size=(B, A, 16)))
    variables = model.init(jax.random.key(0), image, audio)
    out = model.apply(variables, image, audio)
    assert (out["attention"].argmax(axis=1) == 7).all() and out["attention"][:, 7].min() > 0.5


def test_sounds_that_are_seen_weigh_most():
    """Two of the seven moments are like a patch: they, not the others, say where to look."""
    model = AVACE(width=48, heads=1, similarity_init=mimetic_init(1.0))
    rng = np.random.default_rng(4)
    image, audio = (jnp.float32(rng.normal(size=(B, n, 48))) for n in (V, A))
    audio = audio.at[:, 2:4].set(image[:, :2])
    out = model.apply(model.init(jax.random.key(0), image, audio), image, audio)
    assert (np.sort(out["audio_weight"].argsort(axis=1)[:, -2:], axis=1) == [2, 3]).all()


def test_places_are_told_but_not_compared():
    model = AVACE(width=16, heads=4)
    image, audio = tokens()
    variables = model.init(jax.random.key(0), image, audio)
    variables = jax.tree.map(lambda x: x + 0.1, variables)  # so that every output is in use
    places = jnp.float32(np.random.default_rng(2).normal(size=(V, DV)))
    plain = model.apply(variables, image, audio)
    placed = model.apply(variables, image, audio, image_positions=places)
    np.testing.assert_array_equal(placed["map"], plain["map"])
    np.testing.assert_allclose(
        placed["image"] - plain["image"], np.tile(places, (B, 1, 1)), **tolerance("module")
    )
    assert np.abs(placed["audio"] - plain["audio"]).max() > 1e-3


def test_samples_without_a_box_are_left_out():
    boxes = jnp.array([[[0.0, 0.0, 0.5, 0.5]], [[0.0, 0.0, 0.0, 0.0]]])
    coverage = box_coverage(boxes, GRID)
    attention = jax.nn.softmax(jnp.float32(np.random.default_rng(0).normal(size=(2, V))))
    expected = in_box_loss(attention, coverage)[0]
    np.testing.assert_allclose(avace_loss(attention, coverage), expected, rtol=1e-6)
    gradient = np.array(jax.grad(avace_loss)(attention, coverage))
    assert np.abs(gradient[0]).max() > 0 and np.all(gradient[1] == 0)
    nothing, gradient = jax.value_and_grad(avace_loss)(attention[1:], coverage[1:])
    assert nothing == 0 and np.all(np.array(gradient) == 0)
