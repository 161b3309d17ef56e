"""Rotary positions (Su et al. 2021, eq. 34), and how published models stretch them.

Feature i is paired with i + Dh/2, as the published weights expect, and pair i turns by
position * theta^(-2i/Dh). A model that was trained on longer texts than its predecessor has slower
turns (`RopeScaling`).

Letters: B batch, S sequence, H heads, Dh head width.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from meerkat_jax.core.errors import UserError

SCALINGS = ("linear", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """By what rule which pairs turn slower; raises UserError on values that make no sense.

    "linear" divides every frequency by `factor` (Chen et al. 2023, section 2.3). "llama3" (Llama
    3.1, Dubey et al. 2024) divides those that turn less than `low` times in `length` tokens, the
    length of text before the stretch, leaves those that turn more than `high` times, and goes from
    one to the other in proportion to the turns.
    """

    kind: str
    factor: float
    low: float = 1.0
    high: float = 4.0
    length: int = 8192

    def __post_init__(self):
        """Check the values."""
        if self.kind not in SCALINGS:
            known = ", ".join(SCALINGS)
            raise UserError(f"rope_scaling: kind {self.kind!r} is unknown; choose one of {known}")
        if not (self.factor >= 1 and 0 < self.low < self.high and self.length > 0):
            raise UserError(
                f"{self}: factor must be 1 or more, low above 0 and below high, length above 0"
            )

    def __call__(self, frequency: jax.Array) -> jax.Array:
        """Scale float[Dh/2], radians from a token to the next."""
        if self.kind == "linear":
            return frequency / self.factor
        turns = self.length * frequency / (2 * math.pi)
        kept = jnp.clip((turns - self.low) / (self.high - self.low), 0.0, 1.0)
        return frequency * (kept + (1.0 - kept) / self.factor)


def rotary(
    positions: jax.Array, width: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine float32[B, S, 1, width/2] of int[B, S] positions (1: for the heads)."""
    frequency = theta ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    if scaling is not None:
        frequency = scaling(frequency)
    angle = positions[..., None, None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Turn each pair (i, i + Dh/2) of float[B, S, H, Dh] by its position's angle."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cosine - b * sine, b * cosine + a * sine], -1).astype(x.dtype)
