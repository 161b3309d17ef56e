"""Runs of the commands in processes of their own, on procedural media, at the size of `tiny.py`."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "tiny.py"


# Files of minutes go first: begun last, one of them keeps one worker busy while the others wait.
LONG = ("test_resume.py", "test_train.py", "test_training.py", "test_placement.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)  # stable: else the order that it was


def cli_environment(cache):
    """Variables of a command's process: its cache, one device, and compilation in seconds."""
    # Without optimisation a program is compiled in a third of the time, and runs slower.
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "MEERKAT_CACHE": str(cache),
        "JAX_COMPILATION_CACHE_DIR": "",
    }


def free_port():
    """A port of this machine that nobody listens on."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """The cache folder of all runs of a test session: rendered data and compiled programs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def cli(cache):
    """`cli("train", "--workdir=...", ...)` -> the finished process, with its output as text."""

    def run(name, *flags):
        return subprocess.run(
            [sys.executable, "-m", f"meerkat_jax.{name}", *map(str, flags)],
            cwd=ROOT, env=cli_environment(cache), capture_output=True, text=True,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def train(cli):
    """`train(workdir, *flags)`: the train command with the tiny config."""
    return lambda workdir, *flags: cli("train", f"--config={TINY}", f"--workdir={workdir}", *flags)


@pytest.fixture(scope="session")
def finished(train, tmp_path_factory):
    """The work directory of a whole tiny run, not to be changed by a test."""
    workdir = tmp_path_factory.mktemp("finished")
    done = train(workdir)
    assert done.returncode == 0, done.stderr
    (workdir / "output.txt").write_text(done.stdout)
    return workdir
