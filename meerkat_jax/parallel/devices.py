"""Checks before any JAX computation: the requested platform has devices.

And numbers as they are meant here: float32 and bfloat16, as each part says. With JAX_ENABLE_X64
whatever is not told its type becomes float64, at twice the memory and a fraction of the speed.
"""

from __future__ import annotations

import os

import jax

from meerkat_jax.core.errors import UserError


def check_x64() -> None:
    """UserError when JAX computes in 64 bits."""
    if jax.config.jax_enable_x64:
        raise UserError(
            "JAX_ENABLE_X64 (jax_enable_x64) is on, and would compute in float64 what is meant for "
            "float32; unset it"
        )


def find_devices() -> list[jax.Device]:
    """`jax.devices()`, which starts them; UserError where there are none of what was asked for.

    With several processes, after they have joined (parallel/hosts.py).
    """
    check_x64()
    try:
        return jax.devices()
    except Exception as error:  # of many kinds, an AssertionError among them
        asked = jax.config.jax_platforms or "any"
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        given = "JAX_PLATFORMS" if "JAX_PLATFORMS" in os.environ else "jax_platforms"
        raise UserError(
            f"{given}={asked}: JAX finds no such device here ({reason}); install "
            f"meerkat_jax[cuda12], [cuda13] or [tpu] for it, or set {given}=cpu"
        ) from None
