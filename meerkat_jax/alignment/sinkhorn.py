"""Batched optimal transport between two token sets: entropic Sinkhorn, or IPOT.

Sinkhorn (Cuturi 2013) solves min_P <P, C> + epsilon KL(P | a b^T) over plans P with marginals a and
b. Epsilon is a share of the mean cost and is annealed geometrically from 1.0 (Schmitzer 2019), in
the log domain, over a fixed number of iterations: an adaptive stop would run a vmapped batch to its
slowest member and put a collective into the loop condition. An unconverged plan misses a marginal
and can then cost less than the true distance, so a plan is first rounded to its marginals
(Altschuler et al. 2017, algorithm 2).

"sinkhorn" is OTT-JAX's. "kernel_scaling" iterates on the kernel exp(-C / epsilon) itself and takes
the potentials into it whenever epsilon falls (Schmitzer 2019, section 3): an iteration is two
products of a matrix and a vector instead of an exponential for every entry of the plan, so that a
smaller epsilon is reached in less time (docs/results.md). "ipot" (Xie et al. 2020, algorithm 1) is
what the authors' release of Meerkat uses; it is here for comparison.

Gradients with respect to the cost: "plan" detaches the whole plan, which by the envelope theorem is
the exact gradient of the regularised cost at convergence. "implicit" differentiates the plan itself
through OTT-JAX's implicit function theorem; where costs or masses of one problem differ by many
orders of magnitude (up to 24 were tried), its linear solver may end with an error.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from meerkat_jax.core.errors import UserError

GRADIENTS = ("plan", "implicit")
SOLVERS = ("sinkhorn", "kernel_scaling", "ipot")
ANNEALED = 0.5  # share of the iterations that anneal; the rest settle at the final epsilon
MOMENTUM = 1.5  # over-relaxation (Thibault et al. 2021); about halves the error on clustered costs
STAGE = 10  # iterations of "kernel_scaling" at one value of epsilon
SCALING_ANNEALED, SCALING_MOMENTUM = 0.7, 1.8  # measured: best for 100 iterations to 0.003
SCALING_EXCESS = 2.0  # above it an over-relaxed step of 1.8 may lead away from the optimum
LOG_RANGE = (-80.0, 40.0)  # of a kernel's entries: sums of products of three stay in float32
SMALLEST_SCALE = 1e-6  # of the mean cost: float32's 1 - cosine is rounded by a tenth of that
SMALLEST_MASS = 1e-30  # of a plan's entry that counts in the entropy: 1 / x must not overflow
IMPLICIT_MASS = 1e-7  # implicit differentiation divides by the masses, so none may be zero
IMPLICIT_RIDGE = 1e-6  # the dual Hessian, of unit diagonal, is singular: potentials may shift


def transport(
    cost: jax.Array,
    image_mass: jax.Array | None = None,
    audio_mass: jax.Array | None = None,
    *,
    epsilon: float = 0.02,
    iterations: int = 50,
    gradient: str = "plan",
    solver: str = "sinkhorn",
    beta: float = 0.5,
    scale: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Solve B transport problems at once.

    Args:
      cost: float[B, V, A], at least 0; computed in float32 or wider. What it says of tokens
        without mass is not read.
      image_mass: float[B, V], at least 0, zero on padding; normalised here; default uniform.
        A set whose masses are all zero has nothing to carry: plan, distance and cost are 0.
      audio_mass: float[B, A], likewise.
      epsilon: final regularisation of Sinkhorn, a share of the mean cost.
      iterations: how many, exactly; for "kernel_scaling" a multiple of ten.
      gradient: "plan" or "implicit" (see the module's text; "implicit" for "sinkhorn" only).
      solver: "sinkhorn", "kernel_scaling" or "ipot" (see the module's text).
      beta: proximal step of "ipot", in units of the cost (the release: 0.5).
      scale: float[B], the unit of epsilon; default the mean cost under the masses, detached.

    A problem whose cost is not finite has a distance and cost of NaN, the plan a b^T and a gradient
    of exactly 0: left out of a loss, it does not get into the gradient.

    Returns:
      distance float[B]: <P, C> of the rounded plan P; with gradient="plan" its gradient is P.
      cost float[B]: the regularised cost <P, C> + epsilon KL(P | a b^T); for "ipot" the distance.
      plan float[B, V, A]: P, whose marginals are the masses.

    Raises:
      UserError: an unknown gradient or solver, or a combination that does not exist.
    """
    _check(epsilon, iterations, gradient, solver)
    cost = cost.astype(jnp.promote_types(cost.dtype, jnp.float32))
    a, some_a = _normalised(image_mass, cost.shape[:2], cost.dtype)
    b, some_b = _normalised(audio_mass, (cost.shape[0], cost.shape[2]), cost.dtype)
    full = some_a & some_b
    carried = (a > 0)[:, :, None] & (b > 0)[:, None, :] & full[:, None, None]
    finite = jnp.all(jnp.isfinite(cost) | ~carried, axis=(1, 2))
    cost = jnp.where(carried & finite[:, None, None], cost, 0)  # before all: 0 * NaN is NaN
    if scale is None:
        scale = jnp.maximum(jnp.einsum("bva,bv,ba->b", cost, a, b), SMALLEST_SCALE)
    width = epsilon * jax.lax.stop_gradient(scale)
    fixed = cost if gradient == "implicit" else jax.lax.stop_gradient(cost)
    if solver == "ipot":
        width = jnp.zeros_like(width)
        plan = jax.vmap(functools.partial(_ipot, beta=beta, iterations=iterations))(fixed, a, b)
    elif solver == "kernel_scaling":
        solve = functools.partial(_scaling, epsilon=epsilon, iterations=iterations)
        plan = jax.vmap(solve)(fixed, a, b, width)
    else:
        solve = functools.partial(
            _sinkhorn, epsilon=epsilon, iterations=iterations, implicit=gradient == "implicit"
        )
        plan = jax.vmap(solve)(fixed, a, b, width)
    # The correction is detached: min(1, a/r) has its kink where the plan has converged.
    plan += jax.lax.stop_gradient(round_to_marginals(plan, a, b) - plan)
    plan = jnp.where(full[:, None, None], plan, 0)
    distance = jnp.where(finite, jnp.einsum("bva,bva->b", plan, cost), jnp.nan)
    divergence = _divergence(plan, a[:, :, None] * b[:, None, :])
    return {"distance": distance, "cost": distance + width * divergence, "plan": plan}


def round_to_marginals(plan: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """The nearby plan with exact marginals (Altschuler et al. 2017, algorithm 2).

    plan float[..., V, A], a float[..., V], b float[..., A] -> float[..., V, A].
    """
    rows = plan.sum(-1)
    plan = plan * jnp.minimum(1, a / jnp.where(rows > 0, rows, 1))[..., None]
    columns = plan.sum(-2)
    plan = plan * jnp.minimum(1, b / jnp.where(columns > 0, columns, 1))[..., None, :]
    missing_a, missing_b = jnp.maximum(a - plan.sum(-1), 0), jnp.maximum(b - plan.sum(-2), 0)
    total = missing_a.sum(-1)[..., None, None]
    correction = missing_a[..., None] * missing_b[..., None, :]
    return plan + correction / jnp.where(total > 0, total, 1)


def _sinkhorn(cost, a, b, width, *, epsilon, iterations, implicit):
    """One problem: cost float[V, A], masses a and b, final epsilon `width` float[] -> plan."""
    # Imported here: they take 1.5 s, of every command that is opened.
    import lineax
    from ott.geometry import epsilon_scheduler, geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import acceleration, implicit_differentiation
    from ott.solvers.linear import sinkhorn as ott_sinkhorn

    if implicit:
        a, b = _floored(a), _floored(b)
    start = max(1.0 / epsilon, 1.0)
    decay = start ** (-1.0 / max(1, round(ANNEALED * iterations)))
    schedule = epsilon_scheduler.Epsilon(width, init=start, decay=decay)
    problem = linear_problem.LinearProblem(geometry.Geometry(cost, epsilon=schedule), a, b)
    system = {  # dense: conjugate gradients, OTT's default, do not converge on clustered costs
        "nonsym_solver": lambda rtol, atol: lineax.LU(),
        "ridge_identity": IMPLICIT_RIDGE,
        "ridge_kernel": IMPLICIT_RIDGE,
    }
    solve = ott_sinkhorn.Sinkhorn(
        threshold=-1.0,  # never met: the count is fixed
        min_iterations=iterations,
        max_iterations=iterations,
        inner_iterations=iterations,
        momentum=acceleration.Momentum(value=MOMENTUM),
        implicit_diff=implicit_differentiation.ImplicitDiff(solver_kwargs=system)
        if implicit
        else None,
        use_danskin=True,
    )
    out = solve(problem)
    # No converged entry is beyond the range; an unconverged one would be infinite.
    return jnp.exp(jnp.minimum((out.f[:, None] + out.g[None, :] - cost) / width, LOG_RANGE[1]))


def _scaling(cost, a, b, width, *, epsilon, iterations):
    """As `_sinkhorn`, by scaling the kernel in stages of falling epsilon.

    Every stage starts from scalings of 1, as the potentials are within its kernel; so they stay in
    float32's range down to a small epsilon. Zero masses weigh nothing in any sum. An over-relaxed
    step raises the dual objective for certain unless a token has far too little mass: there the
    excess is bounded, or a token far from all others would be thrown about by ever larger steps. A
    stage ends with a plain step, which stills what oscillates.
    """
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    stages = iterations // STAGE
    ratios = np.ones(stages)
    annealed = max(1, round(SCALING_ANNEALED * stages))
    ratios[:annealed] = np.geomspace(1.0, max(1.0 / epsilon, 1.0), annealed)[::-1]
    excess = np.full(STAGE, SCALING_MOMENTUM - 1)
    excess[-1] = 0
    # Every token has a price of 0, however far it is from all: at any epsilon its sum is above 0.
    cost -= jnp.where(b > 0, cost, jnp.inf).min(axis=1, keepdims=True)
    cost -= jnp.where(a[:, None] > 0, cost, jnp.inf).min(axis=0, keepdims=True)

    def kernel(f, g, width):
        return jnp.exp(jnp.clip((f[:, None] + g[None, :] - cost) / width, *LOG_RANGE))

    def relaxed(scaling, total, excess):
        ratio = 1 / (scaling * total)
        return scaling * ratio * jnp.minimum(ratio, SCALING_EXCESS) ** excess

    def stage(potentials, ratio):
        f, g = potentials
        scaled = kernel(f, g, ratio * width)

        def step(scalings, excess):
            u, v = scalings
            u = relaxed(u, product(scaled, b * v), excess)
            v = relaxed(v, product(a * u, scaled), excess)
            return (u, v), None

        ones = jnp.ones_like(a), jnp.ones_like(b)
        (u, v), _ = jax.lax.scan(step, ones, jnp.asarray(excess, cost.dtype))
        new = f + ratio * width * jnp.log(u), g + ratio * width * jnp.log(v)
        # A problem that left the range all the same stays where it was.
        inside = jnp.isfinite(new[0]).all() & jnp.isfinite(new[1]).all()
        return jax.tree.map(functools.partial(jnp.where, inside), new, potentials), None

    zeros = jnp.zeros_like(a), jnp.zeros_like(b)
    (f, g), _ = jax.lax.scan(stage, zeros, jnp.asarray(ratios, cost.dtype))
    return a[:, None] * kernel(f, g, width) * b[None, :]


def _ipot(cost, a, b, *, beta, iterations):
    """One problem by the inexact proximal point method, one inner step, in the log domain."""
    log_a, log_b = jnp.log(a), jnp.log(b)  # -inf on padding
    finite_a, finite_b = a > 0, b > 0

    def step(carry, _):
        log_plan, v = carry
        kernel = log_plan - cost / beta
        u = jnp.where(finite_a, log_a - jax.nn.logsumexp(kernel + v[None, :], axis=1), -jnp.inf)
        v = jnp.where(finite_b, log_b - jax.nn.logsumexp(kernel + u[:, None], axis=0), -jnp.inf)
        return (u[:, None] + kernel + v[None, :], v), None

    inside = finite_a[:, None] & finite_b[None, :]
    log_plan = jnp.where(inside, 0.0, -jnp.inf).astype(cost.dtype)
    v = jnp.where(finite_b, 0.0, -jnp.inf).astype(cost.dtype)
    (log_plan, _), _ = jax.lax.scan(step, (log_plan, v), length=iterations)
    return jnp.exp(log_plan)


def _divergence(plan, outer):
    """KL(plan | outer) of each problem, with finite gradient where either is zero."""
    both = (plan > SMALLEST_MASS) & (outer > 0)
    ratio = jnp.where(both, plan, 1) / jnp.where(both, outer, 1)
    return jnp.sum(plan * jnp.log(ratio), axis=(1, 2))


def _normalised(mass, shape, dtype):
    """Masses that sum to 1, and bool[B]: is there any? Where there is none they are uniform."""
    mass = jnp.ones(shape, dtype) if mass is None else mass.astype(dtype)
    some = jnp.any(mass > 0, axis=-1)
    mass = jnp.where(some[:, None], mass, 1)
    return jax.lax.stop_gradient(mass / mass.sum(-1, keepdims=True)), some


def _floored(mass):
    mass = jnp.maximum(mass, IMPLICIT_MASS)
    return mass / mass.sum()


def _check(epsilon, iterations, gradient, solver):
    if gradient not in GRADIENTS:
        raise UserError(f"gradient {gradient!r} is unknown; choose one of {GRADIENTS}")
    if solver not in SOLVERS:
        raise UserError(f"solver {solver!r} is unknown; choose one of {SOLVERS}")
    if solver != "sinkhorn" and gradient == "implicit":
        raise UserError(f'solver "{solver}" has no implicit gradient; use gradient "plan"')
    if epsilon <= 0 or iterations < 1:
        raise UserError(
            f"epsilon {epsilon} and iterations {iterations} must be above 0 (try 0.02 and 50)"
        )
    if solver == "kernel_scaling" and iterations % STAGE:
        raise UserError(
            f'solver "kernel_scaling": iterations {iterations} is no multiple of {STAGE}'
        )
