"""A whole step laid over every shape of mesh, on eight simulated devices."""

import json
import os
import subprocess
import sys

import pytest

from meerkat_jax.parallel.placement import COLLECTIVES
from tests.conftest import ROOT
from tests.tolerances import tolerance

SHAPES = [(2, 2, 2)]
MORE = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (4, 1, 2), (1, 4, 2), (1, 1, 2)]


@pytest.mark.parametrize(
    "shape", [*SHAPES, *(pytest.param(shape, marks=pytest.mark.slow) for shape in MORE)]
)
def test_a_step_is_that_of_one_device_and_moves_what_the_design_names(shape):
    size = shape[0] * shape[1] * shape[2]
    flags = f"--xla_force_host_platform_device_count={size} --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.eight", *map(str, shape)],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert max(found["metrics"].values()) < tolerance("sharded")["rtol"], found
    assert found["parameters"] < tolerance("sharded")["atol"], found
    named = {"data": shape[0], "fsdp": shape[1], "tensor": shape[2]}
    allowed = set().union(*(COLLECTIVES[axis] for axis, size in named.items() if size > 1))
    assert set(found["collectives"]) <= allowed, found
    if shape[1] > 1:  # every layer's weights, forwards and backwards
        assert found["collectives"]["all-gather"] >= 2 * 2 * 7, found
