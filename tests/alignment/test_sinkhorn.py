"""The transport solvers: distance against exact EMD, marginals, gradients, padding."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest

from meerkat_jax.alignment.sinkhorn import SOLVERS, round_to_marginals, transport
from meerkat_jax.core.errors import UserError
from tests.tolerances import tolerance

V, A = 17, 29
solve = jax.jit(transport, static_argnames=("epsilon", "iterations", "gradient", "solver", "beta"))


def unit_vectors(rng, kind, count, centres):
    """float[count, 8]: random directions, or tight clusters of unequal size."""
    x = rng.normal(size=(count, 8))
    if kind == "clustered":
        x = centres[rng.integers(len(centres), size=count)] + 0.1 * x
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def problem(kind, batch=3, seed=0):
    """Cost [B, V, A] and masses with one zero each."""
    rng = np.random.default_rng(seed)
    cost = []
    for _ in range(batch):
        centres = rng.normal(size=(4, 8))
        cost.append(1 - unit_vectors(rng, kind, V, centres) @ unit_vectors(rng, kind, A, centres).T)
    a, b = rng.uniform(0.5, 1.5, (batch, V)), rng.uniform(0.5, 1.5, (batch, A))
    a[:, 4], b[:, 28] = 0, 0
    return np.array(cost), a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)


def exact(cost, a, b):
    return np.array([ot.emd2(*each) for each in zip(a, b, cost, strict=True)])


@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_distance_is_that_of_exact_emd(kind, solver):
    problem_ = problem(kind)
    out = solve(*problem_, epsilon=0.01, iterations=400, solver=solver)
    np.testing.assert_allclose(out["distance"], exact(*problem_), **tolerance(f"emd_{kind}"))


@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_default_setting_is_near_and_never_below(kind):
    problem_ = problem(kind)
    distance, truth = np.array(solve(*problem_)["distance"]), exact(*problem_)
    assert np.all(distance >= truth - 1e-5)
    np.testing.assert_allclose(distance, truth, **tolerance(f"emd_default_{kind}"))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("iterations", [10, 50])
def test_plan_meets_its_marginals_even_when_unconverged(solver, iterations):
    cost, a, b = problem("clustered")
    plan = np.array(solve(cost, a, b, solver=solver, iterations=iterations)["plan"])
    assert plan.min() >= 0
    np.testing.assert_allclose(plan.sum(2), a, **tolerance("marginal"))
    np.testing.assert_allclose(plan.sum(1), b, **tolerance("marginal"))


def test_rounding_keeps_a_feasible_plan():
    _, a, b = problem("random")
    plan = a[:, :, None] * b[:, None, :]
    np.testing.assert_allclose(round_to_marginals(plan, a, b), plan, **tolerance("marginal"))


def test_masses_default_to_uniform_and_need_no_norm():
    cost, _, _ = problem("random")
    out = solve(cost)["plan"]
    scaled = solve(cost, np.full((3, V), 7.0), np.full((3, A), 0.1))["plan"]
    np.testing.assert_allclose(out, scaled, **tolerance("marginal"))
    np.testing.assert_allclose(out.sum(2), np.full((3, V), 1 / V), **tolerance("marginal"))


@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_mass_padding_changes_nothing(solver):
    cost, a, b = problem("random")

    def run(cost, a, b):
        def total(c):
            out = transport(c, a, b, solver=solver)
            return out["cost"].sum(), out

        (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.array(cost))
        return out, gradient

    out, gradient = run(cost, a, b)
    more = np.pad(cost, ((0, 0), (0, 3), (0, 6)), constant_values=0.01)  # a tempting price
    padded, padded_gradient = run(more, np.pad(a, ((0, 0), (0, 3))), np.pad(b, ((0, 0), (0, 6))))
    for name in ("distance", "cost"):
        np.testing.assert_allclose(padded[name], out[name], **tolerance("module"))
    np.testing.assert_allclose(padded["plan"][:, :V, :A], out["plan"], **tolerance("module"))
    assert np.all(np.array(padded["plan"][:, V:]) == 0)
    np.testing.assert_allclose(padded_gradient[:, :V, :A], gradient, **tolerance("module"))
    assert np.all(np.array(padded_gradient[:, :, A:]) == 0)


def directional(kind, name, gradient, epsilon=0.1, step=1e-5, **settings):
    """(slope by central differences, slope by the gradient) of out[name], in float64."""
    with jax.enable_x64(True):
        cost, a, b = (jnp.array(x) for x in problem(kind))
        along = jnp.array(np.random.default_rng(1).normal(size=cost.shape))

        def total(c):
            out = transport(
                c, a, b, epsilon=epsilon, iterations=300, gradient=gradient, scale=jnp.ones(3),
                **settings,
            )  # fmt: skip
            return out[name].sum()

        total_ = jax.jit(total)
        slope = (total_(cost + step * along) - total_(cost - step * along)) / (2 * step)
        return float(slope), float(jnp.sum(jax.jit(jax.grad(total))(cost) * along))


@pytest.mark.parametrize("solver", ["sinkhorn", "kernel_scaling"])
@pytest.mark.parametrize("kind", ["random", "clustered"])
def test_plan_gradient_is_that_of_the_regularised_cost(kind, solver):
    measured, claimed = directional(kind, "cost", "plan", solver=solver)
    np.testing.assert_allclose(claimed, measured, **tolerance("finite_difference"))


@pytest.mark.parametrize("name", ["distance", "cost"])
def test_implicit_gradient_is_that_of_the_value_itself(name):
    measured, claimed = directional("random", name, "implicit")
    np.testing.assert_allclose(claimed, measured, **tolerance("finite_difference"))


def cost_gradient(problem_, gradient, **settings):
    cost, a, b = problem_

    def total(c):
        return transport(c, a, b, gradient=gradient, **settings)["cost"].sum()

    return np.array(jax.jit(jax.grad(total))(jnp.array(cost)))


def test_implicit_and_plan_gradient_agree_when_converged():
    settings = {"epsilon": 0.2, "iterations": 200}
    plan = cost_gradient(problem("random"), "plan", **settings)
    implicit = cost_gradient(problem("random"), "implicit", **settings)
    # epsilon follows the mean cost, detached in both; zero-mass places carry no plan to compare
    place = plan > 0
    np.testing.assert_allclose(implicit[place], plan[place], **tolerance("implicit"))


@pytest.mark.parametrize("kind", ["random", "clustered"])
@pytest.mark.parametrize("epsilon", [0.003, 0.02])
def test_scaling_ends_where_sinkhorn_ends(kind, epsilon):
    """Converged, though the kernel of the small epsilon alone is 0 in float32."""
    how = {"epsilon": epsilon, "iterations": 1000}
    ours = solve(*problem(kind), solver="kernel_scaling", **how)
    otts = solve(*problem(kind), solver="sinkhorn", **how)
    for name in ("distance", "cost"):
        np.testing.assert_allclose(ours[name], otts[name], **tolerance("solvers"))


def test_scaling_is_finite_with_tiny_masses_and_one_token():
    cost, a, b = problem("clustered")
    b[:, :5] = 1e-12
    for part in (cost, a, b), (cost[:, :1], a[:, :1], b):
        out = solve(*part, solver="kernel_scaling", epsilon=0.001)
        assert all(np.isfinite(x).all() for x in out.values())


@pytest.mark.parametrize("gradient", ["plan", "implicit"])
def test_gradient_is_finite_on_clustered_costs_at_the_default_setting(gradient):
    assert np.isfinite(cost_gradient(problem("clustered"), gradient)).all()


def test_equal_token_sets_are_at_distance_zero():
    value, gradient = jax.jit(jax.value_and_grad(lambda c: transport(c)["distance"].sum()))(
        jnp.zeros((2, 5, 7))
    )
    assert value == 0
    np.testing.assert_allclose(gradient, np.full((2, 5, 7), 1 / 35), **tolerance("module"))


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_iteration_count_is_fixed(solver):
    text = str(jax.make_jaxpr(lambda c: transport(c, solver=solver))(jnp.ones((2, V, A))))
    assert "scan[" in text and "while[" not in text


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"gradient": "unrolled"}, "unrolled"),
        ({"solver": "emd"}, "emd"),
        ({"solver": "ipot", "gradient": "implicit"}, "ipot.*implicit"),
        ({"solver": "kernel_scaling", "gradient": "implicit"}, "scaling.*implicit"),
        ({"solver": "kernel_scaling", "iterations": 55}, "55.*multiple of 10"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"iterations": 0}, "iterations"),
    ],
)
def test_bad_settings_are_named(settings, word):
    with pytest.raises(UserError, match=word):
        transport(jnp.ones((1, 2, 2)), **settings)
