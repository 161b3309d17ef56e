"""What every command asks of JAX at its start: devices of the platform, and numbers of 32 bits."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest

from meerkat_jax.api import Meerkat
from meerkat_jax.core.errors import UserError
from meerkat_jax.parallel.devices import find_devices
from meerkat_jax.parallel.hosts import initialize
from tests.conftest import ROOT, TINY, cli_environment

WORKDIR = "--workdir={}/run"
COMMANDS = {
    "train": ["-m", "meerkat_jax.train", f"--config={TINY}", WORKDIR],
    "evaluate": ["-m", "meerkat_jax.evaluate", WORKDIR],
    "generate": ["-m", "meerkat_jax.generate", "--checkpoint={}/run", "--prompt=x"],
    "serve": ["-m", "meerkat_jax.serve", "--checkpoint={}/run"],
    "demo": ["-m", "meerkat_jax.demo", "--checkpoint={}/run"],
    "preflight": ["-m", "meerkat_jax.preflight", f"--config={TINY}", "--topology=gpu"],
    "convert_weights": ["tools/convert_weights.py", "--export=peft", "--checkpoint={}/run"],
}
SLOW = [name for name in COMMANDS if name not in ("train", "generate")]


@pytest.mark.parametrize(
    "name",
    ["train", "generate", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_a_platform_that_is_not_here_is_one_line(name, tmp_path):
    if any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("there is a GPU here")
    command = [word.format(tmp_path) for word in COMMANDS[name]]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=cli_environment(tmp_path) | {"JAX_PLATFORMS": "cuda"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "JAX_PLATFORMS=cuda: JAX finds no such device here" in said[0]
    assert "Traceback" not in done.stderr and not os.listdir(tmp_path)


def test_float64_is_refused():
    jax.config.update("jax_enable_x64", True)
    try:
        for ask in (
            find_devices,
            lambda: initialize(None, None, None, 1),
            lambda: Meerkat.load("x"),
        ):
            with pytest.raises(UserError, match="JAX_ENABLE_X64.*float64.*unset it"):
                ask()
    finally:
        jax.config.update("jax_enable_x64", False)
    assert find_devices() == jax.devices()
