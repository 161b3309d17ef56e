"""AVOpT's transport beside the release's: time and distance, in turns on the CPU.

    python -m benchmarks.sinkhorn --out=sinkhorn.json

Ours is `alignment.sinkhorn.transport` as AVOpT of `experiments/avfit.py:7b` calls it (entropic
Sinkhorn by scaling, plan rounded to its marginals and detached). Theirs is what the authors'
release does: the inexact proximal point method (Xie et al. 2020, algorithm 1) of 30 iterations with
beta 0.5 and one inner step, written in torch, the gradient taken through all iterations. Both get
the same cost, 1 - cosine of 32 pairs of token sets, with uniform masses. How far each is from exact
optimal transport (POT's network simplex, on --exact of the pairs) is told for two kinds of tokens:
random directions, and tight clusters, which patches of an image resemble and which are the harder
case.

Letters: B pairs, V image tokens, A audio tokens.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

from benchmarks import measure, towers
from experiments.avfit import get_config
from meerkat_jax.alignment.sinkhorn import round_to_marginals, transport

SIZES = {"real": (32, 196, (64, 512)), "tiny": (2, 9, (4, 16))}  # B, V and each A
KINDS = ("random", "clustered")
DIRECTIONS = 64  # features of a token
CLUSTERS, WITHIN = 8, 0.1  # clusters of a set, and how far tokens lie from their middles
BETA, ITERATIONS = 0.5, 30  # the release's
AVOPT = get_config("7b").model.avopt.to_dict()
OURS = {name: AVOPT[name] for name in ("solver", "epsilon", "iterations")}


def costs(kind: str, pairs: int, image: int, audio: int, seed: int = 0) -> np.ndarray:
    """1 - cosine between two sets of tokens, float32[B, V, A]; clusters are common to both."""
    rng = np.random.default_rng(seed)

    def tokens(count: int, middles: np.ndarray) -> np.ndarray:
        x = rng.standard_normal((count, DIRECTIONS))
        if kind == "clustered":
            x = middles[rng.integers(CLUSTERS, size=count)] + WITHIN * x
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    made = []
    for _ in range(pairs):
        middles = rng.standard_normal((CLUSTERS, DIRECTIONS))
        made.append(1 - tokens(image, middles) @ tokens(audio, middles).T)
    return np.maximum(np.array(made, np.float32), 0)


@jax.jit
def our_distance(cost: jax.Array) -> jax.Array:
    """float32[B, V, A] -> float32[B]."""
    return transport(cost, **OURS)["distance"]


our_gradient = jax.jit(jax.value_and_grad(lambda cost: our_distance(cost).sum()))


def their_distance(cost: torch.Tensor) -> torch.Tensor:
    """float32[B, V, A] -> float32[B]."""
    return (their_plan(cost) * cost).sum((1, 2))


def their_plan(cost: torch.Tensor) -> torch.Tensor:
    """float32[B, V, A] -> float32[B, V, A], by IPOT with uniform masses.

    Each step is one of Sinkhorn's on the kernel exp(-cost / beta) times the plan before it.
    """
    _, rows, columns = cost.shape
    kernel = torch.exp(-cost / BETA)
    plan = torch.ones_like(cost)
    right = torch.full((len(cost), columns, 1), 1 / columns)
    for _ in range(ITERATIONS):
        product = kernel * plan
        left = 1 / (rows * torch.bmm(product, right))
        right = 1 / (columns * torch.bmm(product.transpose(1, 2), left))
        plan = left * product * right.transpose(1, 2)
    return plan


def their_gradient(cost: torch.Tensor) -> torch.Tensor:
    """The gradient of the summed distance, float32[B, V, A], through every iteration."""
    cost = cost.detach().requires_grad_()
    their_distance(cost).sum().backward()
    return cost.grad


def errors(image: int, audio: int, exact: int) -> dict[str, float]:
    """{"random ours": ..., ...}: mean |distance - exact| / exact of both sides on both kinds.

    "ours, largest" is that of the worst of the pairs.

    Their plan misses its marginals, by which its distance can be too low as well as too high; what
    the same plan costs when it is rounded to them, as ours is, is "theirs rounded".
    """
    import ot

    found = {}
    for kind in KINDS:
        cost = costs(kind, exact, image, audio, seed=1)
        masses = np.full(image, 1 / image), np.full(audio, 1 / audio)
        truth = np.array([ot.emd2(*masses, each.astype(np.float64)) for each in cost])
        with torch.no_grad():
            plan = their_plan(torch.tensor(cost)).numpy()
        rounded = np.asarray(round_to_marginals(jnp.asarray(plan), *masses))
        for side, distance in (
            ("ours", np.asarray(our_distance(cost))),
            ("theirs", (plan * cost).sum((1, 2))),
            ("theirs rounded", (rounded * cost).sum((1, 2))),
        ):
            error = np.abs(distance / truth - 1)
            found[f"{kind} {side}"] = float(error.mean())
            if side == "ours":
                found[f"{kind} ours, largest"] = float(error.max())
    return found


def pair(image: int, audio: int, pairs: int, gradient: bool, agreement: dict) -> measure.Pair:
    """Both sides on random costs (the work does not depend on them)."""
    cost = costs("random", pairs, image, audio)
    ours, theirs = jnp.asarray(cost), torch.tensor(cost)
    mine = our_gradient if gradient else our_distance

    def peer() -> Any:
        if gradient:
            return their_gradient(theirs)
        with torch.no_grad():
            return their_distance(theirs)

    return measure.Pair(
        ours=lambda: jax.block_until_ready(mine(ours)),
        theirs=peer,
        agreement=agreement,
        facts={"pairs": pairs, "image": image, "audio": audio, "gradient": gradient},
    )


def cases(size: str, exact: int) -> dict[str, Callable[[], measure.Pair]]:
    """{case: function that makes its pair}, forward and with its gradient at each size."""
    pairs, image, lengths = SIZES[size]
    error = functools.cache(errors)
    return {
        f"{image} x {audio}, {'forward and gradient' if gradient else 'forward'}": (
            lambda audio=audio, gradient=gradient: pair(
                image, audio, pairs, gradient, error(image, audio, exact)
            )
        )
        for audio in lengths
        for gradient in (False, True)
    }


def run(
    size: str = "real",
    repeats: int = 10,
    threads: int = 2,
    exact: int = 4,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Measure every case -> the report, {"setting", "cases"}; `say` prints a line of each."""
    towers.prepare("cpu", "float32", threads)
    report = {"setting": measure.setting("CPU", threads), "repeats": repeats, "cases": {}}
    for name, make in cases(size, exact).items():
        report["cases"][name] = measure.in_turns(make(), repeats)
        say(measure.table(report).splitlines()[-1])
    return report


def main(_: list[str]) -> None:
    """Read the flags, measure, write."""
    given = flags.FLAGS
    report = run(given.size, given.repeats, given.threads, given.exact)
    if given.out:
        Path(given.out).write_text(json.dumps(report, indent=1) + "\n")
    print("\n" + measure.table(report), flush=True)


if __name__ == "__main__":
    flags.DEFINE_enum("size", "real", ["real", "tiny"], "AVOpT's sizes, or tiny ones for tests.")
    flags.DEFINE_integer("repeats", 10, "Pairs of calls that are timed.", lower_bound=1)
    flags.DEFINE_integer("threads", 2, "Cores of either side.", lower_bound=1)
    flags.DEFINE_integer("exact", 4, "Problems of a kind that are solved exactly.", lower_bound=1)
    flags.DEFINE_string("out", None, "Where the JSON goes; default: nowhere.")
    app.run(main)
