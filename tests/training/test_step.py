"""The optimizer and the schedules of the phases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.training.step import MUON_RMS, learning_rate, make_optimizer

ADAMW = {"optimizer": "adamw", "decay": "linear", "b2": 0.98, "weight_decay": 0.0, "clip_norm": 1e9}

PHASES = [
    {"steps": 10, "warmup": 2, "learning_rate": 1.0},
    {"steps": 20, "warmup": 4, "learning_rate": 0.5},
]


LINEAR = {"phases": PHASES, "decay": "linear"}


def test_each_phase_warms_up_and_falls_to_nothing():
    rate = learning_rate(LINEAR)
    assert [float(rate(step)) for step in (0, 2, 10, 14)] == pytest.approx([0, 1.0, 0, 0.5])
    falling = [float(rate(step)) for step in (6, 9, 22, 29)]
    assert falling == pytest.approx([0.5, 1 / 8, 0.25, 0.5 / 16])


def test_a_cosine_starts_and_ends_more_slowly_than_a_straight_line():
    rate, line = learning_rate(LINEAR | {"decay": "cosine"}), learning_rate(LINEAR)
    assert [float(rate(step)) for step in (0, 2, 6, 10, 14, 22)] == pytest.approx(
        [0, 1.0, 0.5, 0, 0.5, 0.25]
    )
    assert float(rate(3)) > float(line(3)) and float(rate(9)) < float(line(9))


def test_an_unknown_decay_is_an_error():
    with pytest.raises(UserError, match="config.decay 'step'.*linear"):
        make_optimizer(ADAMW | {"decay": "step", "phases": PHASES})


def muon_step(params, grads):
    config = ADAMW | {"optimizer": "muon", "phases": PHASES[1:]}
    optimizer = make_optimizer(config)
    state = optimizer.init(params)
    for _ in range(5):  # out of the warm-up
        updates, state = optimizer.update(grads, state, params)
    return updates


def test_muon_steps_along_all_directions_of_a_kernel_alike():
    """Of stacked layers, each layer by itself; whatever the sizes of the gradient's directions."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(3, n, n)))[0] for n in (8, 8))
    sizes = np.geomspace(1, 30, 8) * np.array([1, 10, 100])[:, None]
    grads = {"tower": {"kernel": jnp.float32(left * sizes[:, None] @ right)}}
    updates = muon_step({"tower": {"kernel": jnp.zeros((3, 8, 8))}}, grads)["tower"]["kernel"]
    for layer in np.asarray(updates):
        singular = np.linalg.svd(layer, compute_uv=False)
        assert singular.max() < 2 * singular.min()
        np.testing.assert_allclose(np.sqrt(np.mean(layer**2)), MUON_RMS * 0.5, rtol=0.2)


def test_muon_leaves_all_but_kernels_to_adamw():
    params = {
        "tower": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)},
        "head": {"embedding": jnp.ones((6, 4))},
    }
    grads = jax.tree.map(lambda x: jnp.arange(1.0, x.size + 1).reshape(x.shape), params)
    updates = muon_step(params, grads)
    for leaf in (updates["tower"]["bias"], updates["head"]["embedding"]):
        np.testing.assert_allclose(leaf, -0.5, rtol=0.05)  # Adam's step, the same for all numbers


def test_an_unknown_optimizer_is_named():
    with pytest.raises(UserError, match="sgd"):
        make_optimizer(ADAMW | {"optimizer": "sgd", "phases": PHASES})
