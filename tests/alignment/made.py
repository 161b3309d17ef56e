"""Transport problems of the kinds that training meets, and those at their edges, by seed."""

import numpy as np
import ot

FEATURES = 8
KINDS = (
    "random", "clustered", "equal", "nothing", "near", "outlier", "far token", "duplicates",
    "shared duplicates", "zero mass",
)  # fmt: skip


def problem(kind, image, audio, seed):
    """(cost float32[V, A], its masses float32[V] and float32[A], which sum to 1)."""
    rng = np.random.default_rng(seed)
    a, b = np.ones(image), np.ones(audio)
    if kind == "zero mass":
        a, b = rng.random(image) * (rng.random(image) < 0.6), rng.random(audio)
        a[rng.integers(image)] = 1
        b *= rng.random(audio) < 0.6
        b[rng.integers(audio)] = 1
    cost = _cost(kind, image, audio, rng)
    return np.float32(cost), np.float32(a / a.sum()), np.float32(b / b.sum())


def batch(kinds, image, audio, seed=0):
    """Problems of these kinds side by side: cost float32[B, V, A], masses."""
    made = [problem(kind, image, audio, seed + i) for i, kind in enumerate(kinds)]
    return tuple(map(np.stack, zip(*made, strict=True)))


def exact(cost, a, b):
    """Exact transport distance of each problem, float64[B], by POT's network simplex."""
    wide = [[np.asarray(x, np.float64) for x in each] for each in zip(a, b, cost, strict=True)]
    return np.array([ot.emd2(a / a.sum(), b / b.sum(), c) for a, b, c in wide])


def _cost(kind, image, audio, rng):
    if kind in ("equal", "nothing"):
        return np.full((image, audio), rng.uniform(0.1, 2) if kind == "equal" else 0.0)
    if kind == "outlier":
        cost = np.full((image, audio), 0.01)
        cost[rng.integers(image), rng.integers(audio)] = 0.5
        return cost
    x, y = rng.normal(size=(image, FEATURES)), rng.normal(size=(audio, FEATURES))
    middles = rng.normal(size=(4, FEATURES))
    if kind == "clustered":
        x = middles[rng.integers(4, size=image)] + 0.1 * x
        y = middles[rng.integers(4, size=audio)] + 0.1 * y
    elif kind in ("near", "far token"):  # a collapse, and one with a token that stayed away
        x, y = middles[0] + 0.01 * x, middles[0] + 0.01 * y
        if kind == "far token":
            x[rng.integers(image)] = -middles[0]
    elif kind == "duplicates":
        x, y = x[rng.integers(-(-image // 4), size=image)], y[rng.integers(2, size=audio) % audio]
    elif kind == "shared duplicates":
        x, y = middles[rng.integers(3, size=image)], middles[rng.integers(3, size=audio)]
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    return np.maximum(1 - x @ y.T, 0)
