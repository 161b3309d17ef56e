"""All the work in a traced program, products or not: FLOPs, and bytes read and written.

Unlike meerkat_jax/training/flops.py, which counts what the mathematics needs, this counts what the
program says: every elementwise number as one FLOP, every operation's operands and results as bytes,
as if nothing were fused and nothing stayed in a cache. Of a program of products that is near the
truth, of a chain of elementwise operations many times too much. A loop whose end is not known when
it is traced is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval

PRODUCTS = ("dot_general", "conv_general_dilated")
VIEWS = {"reshape", "broadcast_in_dim", "squeeze", "expand_dims", "stop_gradient", "iota", "copy"}
MOVES = {"transpose", "slice", "concatenate", "pad", "gather", "dynamic_slice", "rev", "select_n",
         "dynamic_update_slice", "convert_element_type", "split"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Work:
    """What a program does: operations on numbers, and bytes that these read and write."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.flops * times, self.bytes * times)


def count(function: Callable, *arguments: Any) -> Work:
    """The work of `function(*arguments)`; shapes do for arguments."""
    return of(jax.jit(function).trace(*arguments).jaxpr)


def of(closed: core.ClosedJaxpr, products_only: bool = False) -> Work:
    """The work of a jaxpr without what nobody reads; `products_only`: that of products alone."""
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return _within(jaxpr, products_only)


def _within(jaxpr: core.Jaxpr, products_only: bool) -> Work:
    return sum((_equation(eqn, products_only) for eqn in jaxpr.eqns), Work())


def _equation(eqn: core.JaxprEqn, products_only: bool) -> Work:
    name = eqn.primitive.name
    inner = [_within(jaxpr, products_only) for jaxpr in core.jaxprs_in_params(eqn.params)]
    if name == "while":
        raise ValueError("a loop whose end is not known: its work cannot be counted")
    if name == "scan":
        return sum(inner, Work()) * eqn.params["length"]
    if name == "cond":
        return max(inner, key=lambda work: work.flops)
    if inner and not name.startswith("reduce"):
        return sum(inner, Work())
    if name in VIEWS or products_only and name not in PRODUCTS:
        return Work()
    moved = sum(_bytes(var) for var in (*eqn.invars, *eqn.outvars))
    if name in PRODUCTS:
        depth = _product_depth(eqn)
        return Work(2.0 * _size(eqn.outvars[0]) * depth, moved)
    numbers = 0 if name in MOVES else max(map(_size, (*eqn.invars, *eqn.outvars)), default=0)
    return Work(float(numbers), moved)


def _product_depth(eqn: core.JaxprEqn) -> float:
    if eqn.primitive.name == "dot_general":
        (axes, _), _ = eqn.params["dimension_numbers"]
        return math.prod(eqn.invars[0].aval.shape[axis] for axis in axes)
    kernel = eqn.invars[1].aval.shape
    return math.prod(kernel) / kernel[eqn.params["dimension_numbers"].rhs_spec[0]]


def _size(var: Any) -> int:
    return math.prod(getattr(var.aval, "shape", ()))


def _bytes(var: Any) -> int:
    """Of keys and the like, which have no size in bytes, none."""
    return _size(var) * getattr(getattr(var.aval, "dtype", None), "itemsize", 0)
