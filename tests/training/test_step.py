"""The optimizer's two groups and the schedules of the phases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.errors import UserError
from meerkat_jax.training.step import learning_rate, make_optimizer

PHASES = [
    {"steps": 10, "warmup": 2, "learning_rate": 1.0},
    {"steps": 20, "warmup": 4, "learning_rate": 0.5, "slow_rate": 0.05},
]


def test_each_phase_warms_up_and_decays_to_a_tenth():
    rate = learning_rate(PHASES)
    assert [float(rate(step)) for step in (0, 2, 10, 14)] == pytest.approx([0, 1.0, 0, 0.5])
    assert float(rate(9)) < 0.2 and float(rate(29)) == pytest.approx(0.05, rel=0.2)


def test_a_phase_without_a_slow_rate_trains_all_alike():
    rest, slow = learning_rate(PHASES), learning_rate(PHASES, "slow_rate")
    assert float(slow(2)) == float(rest(2)) == 1.0
    assert float(slow(14)) == pytest.approx(float(rest(14)) / 10)


def test_slow_paths_move_by_their_own_rate():
    config = {"phases": PHASES[1:], "slow": ["tower/"], "weight_decay": 0.0, "clip_norm": 1e9}
    optimizer = make_optimizer(config)
    params = {"tower": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.ones((2, 2))}}
    state = optimizer.init(params)
    for _ in range(5):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    np.testing.assert_allclose(
        updates["tower"]["kernel"], updates["head"]["kernel"] / 10, rtol=1e-5
    )


def test_a_slow_pattern_that_matches_nothing_is_an_error():
    config = {"phases": PHASES, "slow": ["towr"], "weight_decay": 0.0, "clip_norm": 1.0}
    with pytest.raises(UserError, match="towr"):
        make_optimizer(config).init({"tower": {"kernel": jnp.ones((2, 2))}})
