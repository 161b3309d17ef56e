"""Meshes and layouts, on eight simulated devices in a process of their own."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten
from meerkat_jax.parallel import placement


def eight(data=1, fsdp=1, tensor=1):
    """A mesh of devices that need not be there."""
    return AbstractMesh((data, fsdp, tensor), placement.AXES, axis_types=(AxisType.Auto,) * 3)


def shaped(**leaves):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}


def specs(mesh, tree, **kwargs):
    laid = placement.param_shardings(mesh, tree, **kwargs)
    return {path: tuple(leaf.spec) for path, leaf in flatten(laid).items()}


@pytest.mark.parametrize(
    "sizes, devices, result",
    [
        ([-1, 1, 1], 1, (1, 1, 1)),
        ([-1, 2, 2], 8, (2, 2, 2)),
        ([1, -1, 1], 6, (1, 6, 1)),
        ([2, 2, 2], 8, (2, 2, 2)),
    ],
)
def test_minus_one_takes_the_rest(sizes, devices, result):
    assert placement._fill(sizes, devices) == result


@pytest.mark.parametrize(
    "sizes", [[3, 1, 1], [-1, 3, 1], [2, 2, 1], [-1, -1, 1], [0, 8, 1], [-2] * 3]
)
def test_sizes_that_do_not_fit_are_named(sizes):
    with pytest.raises(UserError, match=f"data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]}"):
        placement._fill(sizes, 8)


def test_an_unknown_axis_is_named():
    with pytest.raises(UserError, match="'model' is unknown.*data, fsdp, tensor"):
        placement.make_mesh({"model": 2})


@dataclasses.dataclass(frozen=True)
class Chip:
    """A TPU chip that need not be there."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "chip"
    process_index: int = 0


def chips(slices, each, platform="cpu"):
    return [Chip(i, i // each, platform) for i in range(slices * each)]


def test_slices_divide_the_data_axis_alone():
    mesh = placement.make_mesh({"data": -1, "fsdp": 2}, chips(2, 4))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    for row, devices in enumerate(mesh.devices):  # one place on `data` is within one slice
        assert {device.slice_index for device in devices.flat} == {row // 2}


def test_weights_are_not_divided_between_slices():
    with pytest.raises(UserError, match="data=1 does not divide over 2 slices"):
        placement.make_mesh({"fsdp": -1, "data": 1}, chips(2, 4, "tpu"))


def test_weights_may_be_divided_between_hosts_of_gpus():
    mesh = placement.make_mesh({"fsdp": -1, "data": 1}, chips(2, 4))
    assert dict(mesh.shape) == {"data": 1, "fsdp": 8, "tensor": 1}


def test_one_device_is_a_mesh_of_one():
    mesh = placement.make_mesh({"data": -1}, devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert placement.batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    assert specs(mesh, {"q": shaped(kernel=(7, 5))}) == {"q/kernel": ()}


def test_rules_name_the_last_dimensions():
    layer = {
        "q": shaped(kernel=(64, 32), bias=(32,), lora_a=(64, 4), lora_b=(4, 32)),
        "o": shaped(kernel=(32, 64)),
        "embed": shaped(embedding=(128, 64)),
    }
    stack = jax.tree.map(lambda x: jax.ShapeDtypeStruct((6, *x.shape), x.dtype), layer)
    expected = {
        "q/kernel": ("fsdp", "tensor"),
        "q/bias": (),
        "q/lora_a": ("fsdp",),
        "q/lora_b": (None, "tensor"),
        "o/kernel": ("tensor", "fsdp"),
        "embed/embedding": ("tensor", "fsdp"),
    }
    assert specs(eight(2, 2, 2), layer) == expected
    stacked = {path: (None, *spec) if spec else () for path, spec in expected.items()}
    assert specs(eight(2, 2, 2), stack) == stacked


def test_a_small_leaf_that_does_not_divide_stays_whole_in_that_dimension():
    tree = {"q": shaped(kernel=(64, 33))}
    assert specs(eight(1, 4, 2), tree) == {"q/kernel": ("fsdp",)}
    with pytest.raises(UserError, match=r"q/kernel \[64, 33\]: dimension 1 \(33\).*tensor=2"):
        placement.param_shardings(eight(1, 4, 2), tree, size_floor=1000)


def test_every_large_leaf_must_be_covered_and_all_errors_come_at_once():
    tree = shaped(table=(2048, 1024), mark=(8,), kernel=(2049, 1024))
    with pytest.raises(UserError, match=r"kernel \[2049, 1024\].*fsdp=4.*table.*no rule covers"):
        placement.param_shardings(eight(1, 4, 2), tree)
    assert specs(eight(1, 4, 2), shaped(mark=(8,))) == {"mark": ()}


@pytest.mark.parametrize(
    "rules, message",
    [
        ([("kernel$", ("fsdp", "fsdp"))], "at most once"),
        ([("kernel$", ("model",))], "at most once"),
        ([("kernel$", ("fsdp",)), ("q/kernel$", ())], r"'q/kernel\$' lays out no leaf"),
        ([("kernel$", ("fsdp",)), ("colonel$", ())], r"'colonel\$' lays out no leaf"),
        ([("kernel(", ())], "not a regular expression"),
    ],
)
def test_faulty_rules_are_named(rules, message):
    with pytest.raises(UserError, match=message):
        placement.param_shardings(eight(8), {"q": shaped(kernel=(8, 8))}, rules=rules)


def test_optimizer_state_lies_as_its_parameters():
    import optax

    params = {"q": shaped(kernel=(64, 32))}
    state = jax.eval_shape(optax.adamw(0.1).init, params)
    laid = placement.param_shardings(eight(2, 2, 2), state)
    assert tuple(laid[0].mu["q"]["kernel"].spec) == ("fsdp", "tensor")
    assert tuple(laid[0].count.spec) == ()


def test_table_gives_bytes_per_device():
    tree = {"q": shaped(kernel=(1024, 512), bias=(512,))}
    laid = placement.param_shardings(eight(2, 2, 2), tree)
    first, second, last = placement.table(tree, laid).split("\n")
    assert first.split()[:2] == ["q/kernel", "float32[1024,512]"]
    assert "0.500 MiB" in first and "q/bias" in second and "0.502 MiB" in last


EIGHT = """
import chex, jax, jax.numpy as jnp
from meerkat_jax.parallel import placement
x = jax.random.normal(jax.random.key(0), (16, 64))
w = jax.random.normal(jax.random.key(1), (64, 32))
loss = lambda params, x: jnp.mean(jnp.tanh(x @ params["q"]["kernel"]) ** 2)
want = jax.value_and_grad(loss)({"q": {"kernel": w}}, x)
for shape in ({"data": -1}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
    mesh = placement.make_mesh(shape)
    params = {"q": {"kernel": w}}
    laid = placement.param_shardings(mesh, params)
    batch = jax.device_put(x, placement.batch_sharding(mesh))
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    assert batch.addressable_shards[0].data.shape == (16 // parts, 64)
    step = jax.jit(jax.value_and_grad(loss), out_shardings=(placement.replicated(mesh), laid))
    got = step(jax.device_put(params, laid), batch)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
    assert got[1]["q"]["kernel"].sharding.is_equivalent_to(laid["q"]["kernel"], 2)
"""


def test_sharded_equals_unsharded_on_eight_devices():
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", EIGHT], env=os.environ | flags, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
