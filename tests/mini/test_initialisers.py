"""Where the parameters of the mini model start: positions, numbers, names, queries and keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.meerkat import NormAndPosition
from meerkat_jax.mini.initialisers import (
    grid_embedding,
    mimetic_init,
    name_rows,
    number_rows,
    place_rows,
    sincos_embedding,
    token_positions,
)
from tests.tolerances import tolerance


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_near_numbers_are_alike_and_far_ones_are_not():
    rows = sincos_embedding(np.linspace(0, 1, 101), 64, 16)
    assert rows.shape == (101, 64)
    np.testing.assert_allclose((rows**2).mean(), 1.0, atol=0.05)
    for i in (0, 30, 90):
        assert cosine(rows[i], rows[i + 1]) > 0.9
        assert cosine(rows[i], rows[(i + 50) % 101]) < 0.4


def test_places_tell_row_from_column():
    grid = grid_embedding((4, 8), 32).reshape(4, 8, 32)
    assert np.array_equal(grid[1, :, :16], np.tile(grid[1, 0, :16], (8, 1)))  # the row's half
    assert np.array_equal(grid[:, 3, 16:], np.tile(grid[0, 3, 16:], (4, 1)))
    flat = grid.reshape(-1, 32)
    gaps = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + np.eye(32)
    assert gaps.min() > 0.1


def test_places_are_seen_beside_tokens_of_any_size():
    tokens = jax.random.normal(jax.random.key(0), (2, 12, 16))
    module = NormAndPosition((3, 4), position_init=token_positions)
    variables = module.init(jax.random.key(1), tokens)
    for size in (0.01, 1.0, 100.0):
        normed, places = module.apply(variables, size * tokens)
        assert places.shape == tokens.shape[1:]
        assert 0.5 < float(jnp.std(places) / jnp.std(normed)) < 2


def test_word_vectors_of_near_numbers_start_alike():
    table = jax.random.normal(jax.random.key(0), (250, 64)) * 0.1
    coordinate, seconds = np.full(250, np.nan), np.full(250, np.nan)
    coordinate[5:106], seconds[120:221] = np.linspace(0, 1, 101), np.linspace(0, 10, 101)
    values = {"coordinate/x0": coordinate, "seconds/start": seconds}
    rows = np.asarray(number_rows(table, values, {"coordinate": (8, 8), "seconds": (2, 10)}))
    words = np.isnan(coordinate) & np.isnan(seconds)
    assert np.array_equal(rows[words], np.asarray(table)[words])
    for start in (5, 120):
        near, far = rows[start + 41], rows[start + 90]
        assert cosine(rows[start + 40], near) > 0.9 > 0.7 > cosine(rows[start + 40], far)
    # 0.4 of the picture is not 4 seconds
    assert cosine(rows[5 + 40], rows[120 + 40]) < 0.7
    assert 0.7 < rows[5:106].std() / rows[words].std() < 1.4


def test_seen_and_heard_tokens_start_apart():
    """Two token sets on one grid: what all places of a set share is another row for each."""
    tokens = jnp.zeros((1, 12, 64))
    seen, heard = (
        NormAndPosition((3, 4), position_init=token_positions).init(jax.random.key(n), tokens)[
            "params"
        ]["position_embedding"]
        for n in (1, 2)
    )
    np.testing.assert_allclose(seen - seen.mean(0), heard - heard.mean(0), atol=1e-5)
    assert cosine(seen.mean(0), heard.mean(0)) < 0.7


def test_names_begin_alike_and_yet_apart():
    table = jax.random.normal(jax.random.key(0), (40, 256)) / 16
    common = jax.random.normal(jax.random.key(1), (256,))
    rows = np.asarray(name_rows(table, [3, 5, 8], common))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    alike = unit @ unit.T
    assert alike[np.ix_([3, 5, 8], [3, 5, 8])].min() > 0.6
    others = np.delete(np.arange(40), [3, 5, 8])
    assert np.abs(alike[3, others]).max() < 0.4
    np.testing.assert_array_equal(rows[others], table[others])
    own = rows[[3, 5, 8]] - rows[[3, 5, 8]].mean(axis=0)  # what tells them apart
    assert np.linalg.matrix_rank(own) == 2


@pytest.mark.parametrize("place, axis", [("x0", 1), ("x1", 1), ("y0", 0), ("y1", 0)])
def test_a_number_starts_like_the_places_that_it_names(place, axis):
    """Rows of a picture's places for y, columns for x: a token reads off where it looks."""
    table = jax.random.normal(jax.random.key(0), (30, 64)) * 0.1
    value = np.full(30, np.nan)
    value[5:26] = np.linspace(0, 1, 21)
    rows = np.asarray(number_rows(table, {f"coordinate/{place}": value}, {"coordinate": (8, 8)}))
    places = np.asarray(grid_embedding((8, 8), 64)).reshape(8, 8, 64)
    along = np.moveaxis(places, axis, 0).mean(1)  # of a row or a column, whatever the other is
    found = np.argmax((along - along.mean(0)) @ rows[5:26].T, axis=1)
    np.testing.assert_allclose(value[5:26][found], (np.arange(8) + 0.5) / 8, atol=0.06)


def test_a_place_in_words_starts_like_the_tokens_there():
    table = jax.random.normal(jax.random.key(0), (30, 64)) * 0.1
    ids = [[[3 * column + row] for row in range(3)] for column in range(3)]
    ids[2][2] = [8, 9]  # of two tokens: left as it is
    rows = np.asarray(place_rows(table, ids, (6, 6)))
    np.testing.assert_array_equal(rows[8:], table[8:])
    places = np.asarray(grid_embedding((6, 6), 64))
    own = rows[:8] - rows[:8].mean(0)
    for column, row in [(0, 0), (1, 1), (2, 0), (0, 2)]:
        nearest = int(np.argmax((places - places.mean(0)) @ own[3 * column + row]))
        assert (nearest % 6 // 2, nearest // 6 // 2) == (column, row)


def test_projections_that_start_the_same_compare_and_pass_on():
    """Queries against keys, and values put out, are the identity times the gain."""
    key, shape = jax.random.key(5), (12, 12)
    query, keys = mimetic_init(0.3)(key, shape), mimetic_init(0.3)(jax.random.key(6), shape)
    np.testing.assert_allclose(query @ keys.T, 0.3 * np.eye(12), **tolerance("module"))
    value, out = mimetic_init(0.5, 1)(key, (12, 8)), mimetic_init(0.5, 1, back=True)(key, (8, 12))
    np.testing.assert_allclose(value, out.T)
    assert np.linalg.matrix_rank(value @ out) == 8
    assert np.abs(query[:, :8] - value).max() > 0.1  # what is compared is not what is passed on
