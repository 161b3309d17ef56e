"""Parts of the whole model that are its own: pooling of patches."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from meerkat_jax.meerkat import pool


def test_pooling_takes_the_mean_of_each_square_of_patches():
    rows, columns = np.mgrid[:6, :6]
    tokens = np.stack([rows // 2 * 10 + columns // 2, rows, columns], axis=-1).reshape(1, 36, 3)
    pooled = np.asarray(pool(jnp.asarray(tokens, jnp.float32), 2))
    assert pooled.shape == (1, 9, 3)
    np.testing.assert_array_equal(pooled[0, :, 0], [0, 1, 2, 10, 11, 12, 20, 21, 22])
    np.testing.assert_array_equal(pooled[0, :, 1:].reshape(3, 3, 2)[1, 2], [2.5, 4.5])
    np.testing.assert_array_equal(pool(jnp.asarray(tokens), 1), tokens)
