"""Do image and audio find each other? What AVOpT and AVACE make of one pair, as numbers.

The paper argues with three things: transport costs less for an image with its own sound than with
another (AVOpT), attention lies in the box of what sounds (AVACE), and a transport plan is no even
spread. Each is a pure function here, beside what chance or an even spread would give.

Letters: V image tokens in h rows and w columns, A audio tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import jax
import numpy as np

from meerkat_jax.alignment.avace import box_coverage
from meerkat_jax.data.example import Box

_coverage = jax.jit(box_coverage, static_argnums=1)


def coverage(boxes: Sequence[Box], grid: tuple[int, int]) -> np.ndarray:
    """float[h, w]: the share of each patch that the union of the boxes covers."""
    corners = [[[box.x0, box.y0, box.x1, box.y1] for box in boxes]]
    return np.asarray(_coverage(np.array(corners, np.float32), grid)).reshape(grid)


def mass_inside(attention: np.ndarray, boxes: Sequence[Box]) -> float:
    """Share of attention float[h, w] that lies in the boxes.

    A patch that they cover in part counts in that part, so even attention gives their share of the
    image's area exactly.
    """
    attention = np.asarray(attention, np.float64)
    return float((attention * coverage(boxes, attention.shape)).sum() / attention.sum())


def area(boxes: Sequence[Box], grid: tuple[int, int]) -> float:
    """The boxes' share of the image: what even attention puts in them."""
    return float(coverage(boxes, grid).mean())


def peak_inside(attention: np.ndarray, boxes: Sequence[Box]) -> float:
    """1 where the middle of the patch with most attention float[h, w] lies in a box, else 0.

    Of several patches with the same most, the share that does: even attention gives chance.
    """
    attention = np.asarray(attention)
    return float(middles_inside(boxes, attention.shape)[attention == attention.max()].mean())


def peak_chance(boxes: Sequence[Box], grid: tuple[int, int]) -> float:
    """Share of the patches whose middle lies in a box: what a patch drawn at random gives."""
    return float(middles_inside(boxes, grid).mean())


def middles_inside(boxes: Sequence[Box], grid: tuple[int, int]) -> np.ndarray:
    """bool[h, w]: whether the middle of each patch lies in any of the boxes."""
    y, x = np.meshgrid(*[(np.arange(n) + 0.5) / n for n in grid], indexing="ij")
    inside = [(b.x0 <= x) & (x <= b.x1) & (b.y0 <= y) & (y <= b.y1) for b in boxes]
    return np.any(inside, axis=0) if inside else np.zeros(grid, bool)


def entropy(plan: np.ndarray) -> float:
    """Entropy of a transport plan float[V, A] in nats.

    log(V A) for one that spreads evenly; at least log(max(V, A)) where masses are even, when each
    token of the larger side goes to one of the other.
    """
    mass = np.asarray(plan, np.float64)
    mass = mass[mass > 0] / mass.sum()
    return float(-(mass * np.log(mass)).sum())


def partners(
    seen: Sequence[Collection[str]], heard: Sequence[Collection[str]], seed: int = 0
) -> list[int | None]:
    """For each image the number of another pair's sound, in which nothing seen is heard.

    seen, heard: class names of n pairs. Drawn with `seed`; None where there is no such sound, or
    where it is not known what is seen.
    """
    order = np.random.default_rng(seed).permutation(len(heard))
    starts = np.random.default_rng([seed, 1]).integers(0, max(len(heard), 1), len(seen))
    found: list[int | None] = []
    for names, start in zip(seen, starts, strict=True):
        turns = (int(order[(start + k) % len(heard)]) for k in range(len(heard)))
        fits = (j for j in turns if heard[j] and not set(heard[j]) & set(names))
        found.append(next(fits, None) if names else None)
    return found
