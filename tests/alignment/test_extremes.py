"""The transport solvers at the edges: finite, near exact EMD, and nothing from what is left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meerkat_jax.alignment.sinkhorn import SOLVERS, transport
from tests.alignment.made import KINDS, batch, exact
from tests.tolerances import tolerance

SETTINGS = {
    "default": {},
    "7b": {"epsilon": 0.003, "iterations": 100},
    "implicit": {"gradient": "implicit"},
}
WAYS = [(s, how) for s in SOLVERS for how in SETTINGS if s == "sinkhorn" or how != "implicit"]
SHAPE = (16, 6)


@functools.cache
def solver(solver, how):
    """(cost, masses) -> (everything, gradient of all distances and costs); compiled by shape."""

    def total(cost, a, b):
        out = transport(cost, a, b, solver=solver, **SETTINGS[how])
        return jnp.sum(out["distance"] + out["cost"]), out

    def run(cost, a, b):
        (_, out), gradient = jax.value_and_grad(total, has_aux=True)(cost, a, b)
        return jax.tree.map(np.asarray, out | {"gradient": gradient.astype(jnp.float32)})

    compiled = jax.jit(jax.value_and_grad(total, has_aux=True))

    def run(cost, a, b):
        (_, out), gradient = compiled(cost, a, b)
        return jax.tree.map(np.asarray, out | {"gradient": gradient.astype(jnp.float32)})

    return run


def assert_finite(out):
    for name, value in out.items():
        assert np.isfinite(value).all(), name


@pytest.mark.parametrize(("name", "how"), WAYS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=len(KINDS), max_size=len(KINDS)),
    scale=st.floats(-7, 7),
    seed=st.integers(0, 2**30),
)
def test_finite_whatever_the_problem(name, how, kinds, scale, seed):
    cost, a, b = batch(kinds, *SHAPE, seed)
    out = solver(name, how)(cost * np.float32(10**scale), a, b)
    assert_finite(out)
    assert (out["plan"] >= 0).all()
    np.testing.assert_allclose(out["plan"].sum(2), a, **tolerance("marginal"))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(spread=st.floats(0, 12), seed=st.integers(0, 2**30))
@pytest.mark.parametrize("name", SOLVERS)
def test_finite_over_many_orders_of_cost_and_mass(name, spread, seed):
    rng = np.random.default_rng(seed)
    size = (len(KINDS), *SHAPE)
    cost, a, b = (10 ** (spread * rng.uniform(-1, 1, n)) for n in (size, size[:2], size[::2]))
    assert_finite(solver(name, "7b")(*map(np.float32, (cost, a, b))))


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_bfloat16_is_finite_and_near(name, how):
    cost, a, b = batch(KINDS, *SHAPE)
    cost = jnp.asarray(cost, jnp.bfloat16)
    out = solver(name, how)(cost, a, b)
    assert_finite(out)
    if how == "7b" and name != "ipot":
        near(out["distance"], np.float64(cost.astype(jnp.float32)), a, b)


def near(distance, cost, a, b, kinds=KINDS, share="emd"):
    """Within 1 % of exact EMD, but for clusters."""
    truth = exact(cost, a, b)
    each = np.array([kind != "clustered" for kind in kinds])
    np.testing.assert_allclose(distance[each], truth[each], **tolerance(share))


@pytest.mark.parametrize("name", ["sinkhorn", "scaling"])
@pytest.mark.parametrize("seed", range(0, 100, 20))
def test_within_a_hundredth_of_exact_emd_at_the_7b_settings(name, seed):
    problem = batch(KINDS, *SHAPE, seed)
    near(solver(name, "7b")(*problem)["distance"], *problem)


@pytest.mark.parametrize("name", ["sinkhorn", "scaling", "ipot"])
@pytest.mark.parametrize("seed", range(0, 100, 20))
def test_default(name, seed):
    problem = batch(KINDS, *SHAPE, seed)
    near(solver(name, "default")(*problem)["distance"], *problem)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_outlier_of_the_issue(name):
    cost = np.full((1, 196, 64), 0.01, np.float32)
    cost[0, 0, 0] = 0.5
    out = solver(name, "7b")(cost, np.ones((1, 196)), np.ones((1, 64)))
    assert_finite(out)
    a, b = np.ones((1, 196)), np.ones((1, 64))
    near(out["distance"], cost, a, b, ["outlier"])


@pytest.mark.parametrize(("name", "how"), WAYS)
@pytest.mark.parametrize("shape", [(1, 6), (16, 1), (1, 1)])
def test_one_token_leaves_no_choice(name, how, shape):
    cost, a, b = batch(KINDS, *shape)
    out = solver(name, how)(cost, a, b)
    assert_finite(out)
    np.testing.assert_allclose(out["distance"], exact(cost, a, b), **tolerance("emd"))
