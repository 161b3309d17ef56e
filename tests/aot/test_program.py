"""Collectives as programs really compile, on simulated devices in a process of its own."""

import os
import subprocess
import sys

import pytest

from meerkat_jax.aot.program import Collective, collectives

PROGRAM = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from meerkat_jax.aot.program import collectives, memory
mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
at = lambda *spec: NamedSharding(mesh, P(*spec))
w = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=at(None, "d"))
x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=at("d"))

def run(w, x):
    def layer(x, w):
        w = jax.lax.with_sharding_constraint(w, at())
        return jax.lax.with_sharding_constraint(jnp.tanh(x @ w), at("d")), None
    return jax.lax.scan(layer, x, w)[0].sum()

compiled = jax.jit(run).lower(w, x).compile()
found = {c.kind: (c.calls, c.bytes) for c in collectives(compiled.as_text())}
assert found["all-gather"] == (5, 5 * 64 * 64 * 4), found  # each layer whole, five times
assert found["all-reduce"] == (1, 4), found
assert set(found) == {"all-gather", "all-reduce"}, found
needs = memory(compiled, planned=False)
assert needs["arguments"] == (5 * 64 * 64 + 8 * 64) * 4 // 4, needs  # a quarter of each
assert needs["peak"] >= needs["arguments"] + 64 * 64 * 4, needs  # and a whole layer
"""


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=os.environ | flags, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# As the TPU's compiler writes them: started and done apart, one within a loop within a loop.
TPU = """
HloModule step

%inner (p: f32[8]) -> f32[8] {
  %ag = (bf16[4,128]{1,0}, bf16[16,128]{1,0}) all-gather-start(%p), dimensions={0}
  %d = bf16[16,128]{1,0} all-gather-done(%ag)
}

%outer (p: f32[8]) -> f32[8] {
  %w = f32[8] while(%p), condition=%c, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  %r = (f32[10]{0}, s8[16]{0}) all-reduce(%a, %b), to_apply=%add
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = f32[8] while(%p), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"2"}}
  %cp = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p)
}
"""


# And a loop whose count stands in its condition alone.
UNSAID = """
%body (p: f32[8]) -> f32[8] {
  %ar = f32[8]{0} all-reduce(%p), to_apply=%add
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %n = s32[]{:T(128)} constant(7)
  %less = pred[]{:T(512)} compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%p), condition=%condition, body=%body, metadata={op_name="while"}
}
"""


def test_a_loop_is_counted_by_its_condition():
    assert collectives(UNSAID) == [Collective("all-reduce", 7, 7 * 32)]


def test_started_collectives_and_nested_loops():
    assert collectives(TPU) == [
        Collective("all-gather", 6, 6 * 16 * 128 * 2),
        Collective("all-reduce", 2, 2 * (40 + 16)),
        Collective("collective-permute", 1, 32),
    ]


@pytest.mark.parametrize("text", ["", "HloModule nothing\n"])
def test_a_text_without_a_program_has_none(text):
    assert collectives(text) == []
