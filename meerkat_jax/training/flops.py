"""The FLOPs of a step, and model FLOPs utilisation (MFU).

Counted are the products of matrices (and convolutions) that the loss and its gradient need, and no
more. Per weight and token that is 2 forward, 2 for the gradient of the activations where something
below is trained, and 2 for that of the weight if it is trained: 6 for a trained weight, 4 for a
frozen one under LoRA, 2 in a frozen tower. So it is no `6 N`, which would flatter a run with a
frozen base by half. Attention's products count too, of causal attention the half below the
diagonal. What a step does beside that (computing again what was not stored, products that a mask
throws away, the optimizer, elementwise work) takes time and counts for nothing.

The count is read off the jaxpr of the step, so it holds for any config and phase, and takes no
second compilation. XLA's own count sees the body of a scan once, and counts what is computed again.
Scanned layers are all counted alike: the gradient of the first one's input, which nobody asks for
above a frozen embedding, is there too (of 32 layers under LoRA 0.5 %).

Source of the definition: Chowdhery et al. 2022, PaLM, appendix B, taken weight by weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import jax
from jax.extend import core
from jax.interpreters import partial_eval

# Dense bfloat16 FLOP/s of one device, as jax calls it, by the makers' data sheets.
PEAKS = {
    r"^TPU v4$": 275e12,
    r"^TPU v5 ?(lite|e)$": 197e12,
    r"^TPU v5p?$": 459e12,
    r"^TPU v6 ?(lite|e)$": 918e12,
    r"\bA100\b": 312e12,
    r"\bH100 80GB HBM3$": 989e12,  # SXM; the PCIe card is slower
    r"\bH200\b(?! NVL)": 989e12,
}
AGAIN = "rematted_computation"  # jax.checkpoint's name for recomputation
SCORES = re.compile(r"\bscores_(\d+)_of_(\d+)")  # nn/attention.py: so many are not masked
FUSED = re.compile(r"^dot_product_attention_(fwd|bwd)")  # cuDNN's, opaque to a jaxpr
FUSED_PRODUCTS = {"fwd": 2, "bwd": 4}  # scores and values; the gradients of queries, keys, values


def peak(kind: str) -> float | None:
    """FLOP/s of one device of this `device_kind` in bfloat16; None if it is not in the table."""
    return next((rate for pattern, rate in PEAKS.items() if re.search(pattern, kind)), None)


def describe(kind: str) -> str:
    """One line for people: what MFU is measured against on devices of this kind."""
    rate = peak(kind)
    if rate is None:
        return f"no peak rate of {kind!r} is known: rows of metrics tell tflops, but no mfu"
    return f"mfu is told against {rate / 1e12:.0f} TFLOP/s of a {kind} (dense bfloat16)"


def step_flops(traced: jax.stages.Traced) -> float:
    """FLOPs of one step over the whole batch, on all devices together.

    traced: `jax.jit(step).trace(...)` of training/step.py's `step -> (state, metrics)`. The metrics
    hold the loss and the gradient's norm, hence all that is to be counted; the new state is left
    out, and the optimizer's own products with it.
    """
    state, metrics = traced.out_info
    kept = [False] * len(jax.tree.leaves(state)) + [True] * len(jax.tree.leaves(metrics))
    return count(traced.jaxpr, kept)


def count(
    closed: core.ClosedJaxpr, kept: Sequence[bool] | None = None, again: bool = False
) -> float:
    """FLOPs of the products in a jaxpr that its outputs `kept` (default: all) depend on.

    again: all that is executed, recomputed products and masked scores too.
    """
    jaxpr = closed.jaxpr
    kept = [True] * len(jaxpr.outvars) if kept is None else list(kept)
    jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, kept)
    return _within(jaxpr, again)


def _within(jaxpr: core.Jaxpr, again: bool) -> float:
    return sum(_equation(eqn, again) for eqn in jaxpr.eqns)


def _equation(eqn: core.JaxprEqn, again: bool) -> float:
    """FLOPs of an equation with all that is inside it, as often as that runs."""
    scope = str(eqn.source_info.name_stack)
    if AGAIN in scope and not again:
        return 0.0
    name = eqn.primitive.name
    if name == "dot_general":
        found = _product(eqn)
    elif name == "conv_general_dilated":
        found = _convolution(eqn)
    elif fused := FUSED.search(name):
        found = _attention(eqn) * FUSED_PRODUCTS[fused[1]]
    else:
        inner = [_within(jaxpr, again) for jaxpr in core.jaxprs_in_params(eqn.params)]
        found = (max(inner, default=0.0) if name == "cond" else sum(inner)) * _times(eqn)
    masked = None if again else SCORES.search(scope)
    return found * int(masked[1]) / max(int(masked[2]), 1) if masked else found


def _times(eqn: core.JaxprEqn) -> int:
    """How often the inside of an equation runs. A `while` loop's, whose end no one knows, once."""
    params = eqn.params
    if eqn.primitive.name == "scan":
        return params["length"]
    if eqn.primitive.name == "shard_map":  # its inside is what one device does
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    if eqn.primitive.name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _product(eqn: core.JaxprEqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * depth


def _attention(eqn: core.JaxprEqn) -> float:
    """One product of queries [B, T, H, Dh] and keys [B, S, K, Dh] in a fused attention."""
    query, key = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    return 2.0 * math.prod(query) * key[1]


def _convolution(eqn: core.JaxprEqn) -> float:
    """A dilated input is the gradient of a strided convolution: the zeros between do not count."""
    kernel = eqn.invars[1].aval.shape
    features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    taps = math.prod(kernel) // features / math.prod(eqn.params["lhs_dilation"])
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * taps
