"""Sharding: the device mesh and the rules that assign parameters to its axes.

The mesh has three axes. `data` copies the weights and divides the batch; `fsdp` divides the batch
and the weights (ZeRO-3, Rajbhandari et al. 2020: each device keeps a slice and gathers a layer when
it is needed); `tensor` divides the weights within a layer (Shoeybi et al. 2019). One device is a
mesh of one, so there is one program.

A rule is (pattern, axes). The pattern is searched in the leaf's path and the first rule that is
found counts. Axes name the **last** dimensions of the leaf, so that one rule serves a layer and its
scanned stack: ("fsdp", "tensor") lays kernel [in, out] as (fsdp, tensor) and the stack
[L, in, out] as (None, fsdp, tensor). Optimizer state ends in the same paths as the parameters it
belongs to, and is laid out by the same rules.

The compiler, told of inputs alone, divides the activations by features and sums them after every
product. So `Placement` says the rest: tokens stay where their example is, and a layer's weights are
collected over `fsdp`, within the layer, forwards and backwards, in the bits that they are kept in.
A step may then hold these collectives and no others (`COLLECTIVES`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from meerkat_jax.core import trees as trees
from meerkat_jax.core.errors import UserError
from meerkat_jax.parallel.quantise import dequantise_tree

AXES = ("data", "fsdp", "tensor")
SIZE_FLOOR = 2**20  # elements; a smaller leaf may be replicated, which costs < 4 MiB per device

Rule = tuple[str, tuple[str | None, ...]]
KERNEL = "kernel(/int8|/nf4)?$"
HEAD = "lm_head/kernel$"
RULES: tuple[Rule, ...] = (
    (r"lora_a$", ("fsdp", None)),
    (r"lora_b$", (None, "tensor")),
    # The last layer of a block takes its input sharded over `tensor`, as the layers before it
    # leave it, so that the block needs one sum over `tensor` and no gather.
    (rf"(^|[/_])(o|down|fc2|outer)/{KERNEL}", ("tensor", "fsdp")),
    (r"(^|/)(embedding|added)$", ("tensor", "fsdp")),
    (KERNEL, ("fsdp", "tensor")),
    (r"(bias|scale|count)$", ()),
)


# What a division over an axis may make devices exchange in a training step.
COLLECTIVES = {
    "data": {"all-reduce", "all-gather"},
    "fsdp": {"all-reduce", "all-gather"},
    "tensor": {"all-reduce", "all-gather", "collective-permute"},
}


def make_mesh(shape: Mapping[str, int] | None = None, devices: Sequence | None = None) -> Mesh:
    """Mesh with the axes data, fsdp, tensor over all devices (or `devices`).

    Several TPU slices, which a slow network joins, divide `data` alone: weights are collected
    within a slice, and only gradients cross.

    `shape` gives sizes by axis; absent axes are 1 and one of them may be -1 (takes the rest;
    default data=-1). Raises UserError naming the sizes if they do not multiply to the device count,
    or `data` is no multiple of the slices.
    """
    shape = {"data": -1} if shape is None else dict(shape)
    unknown = sorted(shape.keys() - set(AXES))
    if unknown:
        raise UserError(f"mesh axis {unknown[0]!r} is unknown; the axes are {', '.join(AXES)}")
    devices = jax.devices() if devices is None else list(devices)
    sizes = _fill([int(shape.get(axis, 1)) for axis in AXES], len(devices))
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
    data, *within = sizes
    if data % slices and devices[0].platform != "tpu":  # hosts of GPUs, which may share weights
        return Mesh(mesh_utils.create_device_mesh(sizes, devices), AXES, axis_types=types)
    if data % slices:
        raise UserError(
            f"mesh data={data} does not divide over {slices} slices; weights are not divided "
            f"between slices, so set data to a multiple of {slices}"
        )
    inner, outer = (data // slices, *within), (slices, 1, 1)
    laid = mesh_utils.create_hybrid_device_mesh(inner, outer, devices)
    return Mesh(laid, AXES, axis_types=types)


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


def placed(leaf: jax.ShapeDtypeStruct, place: NamedSharding) -> jax.ShapeDtypeStruct:
    """The leaf with its place on the mesh."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


@dataclasses.dataclass(frozen=True)
class Placement:
    """The shardings of arrays at their use; `Llama.placement` and the training step apply them.

    A mesh of one device changes nothing.
    """

    mesh: Mesh
    rules: tuple[Rule, ...] = RULES

    def gather_layer(self, params: Mapping[str, Any], dtype: Any) -> dict:
        """A layer's parameters as it uses them: collected over fsdp, nf4 ones restored."""
        return dequantise_tree(self._collected(params, ".", "fsdp"), dtype)

    def gather_params(self, params: Mapping[str, Any]) -> Any:
        """All other parameters: whole, but the columns of the head, which are over `tensor`."""
        return self._collected(self._collected(params, HEAD, "fsdp"), f"^(?!.*{HEAD})", *AXES)

    def _collected(self, params: Mapping[str, Any], pattern: str, *axes: str) -> Any:
        """The leaves that the pattern finds, no longer divided over `axes`."""

        def collect(path: tuple, leaf: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if not trees.found(pattern, name):
                return leaf
            rule = _first(self.rules, name) or ("", ())
            left = tuple(None if axis in axes else axis for axis in rule[1])
            spec, _ = _spec(self.mesh, (rule[0], left), leaf.shape)
            return self._at(leaf, NamedSharding(self.mesh, spec))

        return jax.tree_util.tree_map_with_path(collect, params)

    def constrain_batch(self, x: jax.Array) -> jax.Array:
        """An activation [B, ...] with its batch over data and fsdp, and whole otherwise."""
        return self._at(x, batch_sharding(self.mesh))

    def _at(self, x: jax.Array, sharding: NamedSharding) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, sharding) if self.mesh.size > 1 else x


def placement(mesh: Mesh, config: Mapping[str, Any]) -> Placement | None:
    """For several devices or quantised kernels; None where there is nothing to do."""
    return Placement(mesh) if mesh.size > 1 or config["quantise"] != "none" else None


def _first(rules: Sequence[Rule], name: str) -> Rule | None:
    """The rule that lays out the leaf of this name."""
    return next((rule for rule in rules if trees.found(rule[0], name)), None)


def param_shardings(
    mesh: Mesh, shapes: Any, rules: Sequence[Rule] = RULES, size_floor: int = SIZE_FLOOR
) -> Any:
    """A NamedSharding for each leaf of `shapes` (arrays or ShapeDtypeStructs; any pytree).

    Raises UserError for a rule that puts one mesh axis on two dimensions or names an unknown one;
    and one that lists every leaf of `size_floor` numbers or more which no rule covers or whose
    dimension does not divide by its mesh axis (a smaller leaf keeps that dimension whole) and, for
    `rules` other than the default list, every rule that is the first match of no leaf.
    """
    _check_collisions(rules)
    errors: list[str] = []
    used: set[str] = set()

    def lay(path: tuple, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        small = math.prod(leaf.shape) < size_floor
        rule = _first(rules, name)
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


def _check_collisions(rules: Sequence[Rule]) -> None:
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
