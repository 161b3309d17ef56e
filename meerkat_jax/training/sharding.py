"""Where arrays live: the device mesh and the rules that lay parameters over it.

The mesh has three axes. `data` copies the weights and divides the batch; `fsdp` divides the batch
and the weights (ZeRO-3, Rajbhandari et al. 2020: each device keeps a slice and gathers a layer when
it is needed); `tensor` divides the weights within a layer (Shoeybi et al. 2019). One device is a
mesh of one, so there is one program.

A rule is (pattern, axes). The pattern is searched in the leaf's path and the first rule that is
found counts. Axes name the **last** dimensions of the leaf, so that one rule serves a layer and its
scanned stack: ("fsdp", "tensor") lays kernel [in, out] as (fsdp, tensor) and the stack
[L, in, out] as (None, fsdp, tensor). Optimizer state ends in the same paths as the parameters it
belongs to, and is laid out by the same rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from meerkat_jax.errors import UserError
from meerkat_jax.training import params as trees

AXES = ("data", "fsdp", "tensor")
SIZE_FLOOR = 2**20  # numbers; a smaller leaf may stay whole on each device, it costs < 4 MiB there

Rule = tuple[str, tuple[str | None, ...]]
RULES: tuple[Rule, ...] = (
    (r"lora_a$", ("fsdp", None)),
    (r"lora_b$", (None, "tensor")),
    # The layer that ends a block takes its input divided over `tensor`, as the layers before left
    # it, so that the block needs one sum over `tensor` and no gather.
    (r"(^|[/_])(o|down|fc2|outer)/kernel$", ("tensor", "fsdp")),
    (r"(^|/)(embedding|added)$", ("tensor", "fsdp")),
    (r"kernel$", ("fsdp", "tensor")),
    (r"(bias|scale|count)$", ()),
)


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence | None = None) -> Mesh:
    """Mesh with the axes data, fsdp, tensor over all devices (or `devices`).

    `shape` gives sizes by axis; absent axes are 1 and one of them may be -1 (takes the rest;
    default data=-1). Raises UserError naming the sizes if they do not multiply to the device count.
    """
    shape = {"data": -1} if shape is None else dict(shape)
    unknown = sorted(shape.keys() - set(AXES))
    if unknown:
        raise UserError(f"mesh axis {unknown[0]!r} is unknown; the axes are {', '.join(AXES)}")
    devices = jax.devices() if devices is None else list(devices)
    sizes = _fill([int(shape.get(axis, 1)) for axis in AXES], len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _fill(sizes: list[int], devices: int) -> tuple[int, ...]:
    """Replace -1 by what is left of `devices`; UserError unless the product is `devices`."""
    said = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"mesh {said}: sizes must be positive, and at most one of them -1")
    rest = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and devices % rest == 0:
        sizes = [devices // rest if size == -1 else size for size in sizes]
    if math.prod(sizes) != devices:
        raise UserError(
            f"mesh {said} does not multiply to the {devices} devices here; set one axis to -1"
        )
    return tuple(sizes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """First dimension (the batch) over data and fsdp; every other dimension whole."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(
    mesh: Mesh, shapes: Any, rules: Sequence[Rule] = RULES, size_floor: int = SIZE_FLOOR
) -> Any:
    """A NamedSharding for each leaf of `shapes` (arrays or ShapeDtypeStructs; any pytree).

    Raises UserError for a rule that puts one mesh axis on two dimensions or names an unknown one;
    and one that lists every leaf of `size_floor` numbers or more which no rule covers or whose
    dimension does not divide by its mesh axis (a smaller leaf keeps that dimension whole) and, for
    `rules` other than the default list, every rule that is the first match of no leaf.
    """
    _refuse_collisions(rules)
    errors: list[str] = []
    used: set[str] = set()

    def lay(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        small = math.prod(leaf.shape) < size_floor
        rule = next((rule for rule in rules if trees.found(rule[0], name)), None)
        if rule is None:
            if not small:
                errors.append(f"{name} {list(leaf.shape)}: no rule covers it")
            return replicated(mesh)
        used.add(rule[0])
        spec, problem = _spec(mesh, rule, leaf.shape)
        if problem and not small:
            errors.append(f"{name} {list(leaf.shape)}: {problem}")
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(lay, shapes)
    if rules is not RULES:
        errors += [f"rule {rule[0]!r} lays out no leaf" for rule in rules if rule[0] not in used]
    if errors:
        raise UserError(f"sharding over mesh {dict(mesh.shape)}: " + "; ".join(errors))
    return shardings


def _refuse_collisions(rules: Sequence[Rule]) -> None:
    """UserError for a rule that names an axis twice or an axis that is not there."""
    for pattern, axes in rules:
        named = [axis for axis in axes if axis is not None]
        if len(named) != len(set(named)) or set(named) - set(AXES):
            raise UserError(f"rule {pattern!r} -> {axes} may name each of {AXES} at most once")


def _spec(mesh: Mesh, rule: Rule, shape: tuple[int, ...]) -> tuple[PartitionSpec, str]:
    """(spec for a leaf of this shape, what is wrong with it or ""); bad dimensions stay whole."""
    axes = rule[1][max(0, len(rule[1]) - len(shape)) :]  # a vector takes the last axes
    axes = (None,) * (len(shape) - len(axes)) + tuple(axes)
    bad = [
        f"dimension {i} ({n}) does not divide by {axis}={mesh.shape[axis]}"
        for i, (n, axis) in enumerate(zip(shape, axes, strict=True))
        if axis is not None and n % mesh.shape[axis]
    ]
    good = [
        axis if axis is not None and n % mesh.shape[axis] == 0 and mesh.shape[axis] > 1 else None
        for n, axis in zip(shape, axes, strict=True)
    ]
    while good and good[-1] is None:
        good.pop()
    return PartitionSpec(*good), ", ".join(bad)


def table(shapes: Any, shardings: Any) -> str:
    """Path, type, layout and MiB per device of every leaf, largest first, and the sum."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    rows = []
    for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
        local = math.prod(sharding.shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize / 2**20
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rows.append((name, trees.render(leaf), str(tuple(sharding.spec)), local))
    rows.sort(key=lambda row: -row[3])
    rows.append(("all", "", "", sum(row[3] for row in rows)))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        + f"  {row[3]:10.3f} MiB per device"
        for row in rows
    )
