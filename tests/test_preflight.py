"""The preflight door; TPUs where their compiler is installed, else that it says what is missing."""

import importlib.util
import json

import pytest

from tests.conftest import TINY

HAS_TPU = importlib.util.find_spec("libtpu") is not None


@pytest.fixture
def preflight(door):
    def run(*flags):
        return door("preflight", f"--config={TINY}", *flags)

    return run


@pytest.mark.slow
def test_two_devices_as_json(preflight):
    done = preflight("--topology=cpu:2", "--config.mesh.fsdp=2", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["fits"] and told["devices"] == 2 and told["batch"] == 2
    assert told["mesh"] == {"data": 1, "fsdp": 2, "tensor": 1}
    sizes = told["gib"]
    held = sum(sizes[name] for name in ("frozen weights", "trained weights", "optimizer", "batch"))
    assert 0 < held < sizes["peak"]
    assert told["collectives"]["all-gather"]["gb"] > 0
    assert 0 < told["tflop"]["needed"] <= told["tflop"]["executed"]


def test_answers_take_one_device_and_the_weights(preflight):
    done = preflight("--topology=cpu:2", "--answers", "--batch=3", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["fits"] and told["devices"] == 1 and told["batch"] == 3
    sizes = told["gib"]
    assert 0 < sizes["cache"] < sizes["answer: more"]  # which the program makes itself
    assert sizes["peak"] == sizes["weights"] + max(sizes["answer: more"], sizes["perceive: more"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5e"], "--topology=v5e: expected v4, v5e"),
        (["--topology=cpu:2", "--batch=3"], "batch 3 does not divide over the mesh"),
        (["--topology=cpu:2", "--phase=9"], "--phase=9: the config has 3 phases"),
        (["--topology=cpu:2", "--config.mesh.tensor=3"], "does not multiply to the 2 devices"),
    ],
)
def test_a_mistake_is_one_line(preflight, flags, message):
    done = preflight(*flags)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_sizes_that_only_a_store_knows_are_asked_for(door):
    done = door("preflight", f"--config={TINY}:small", "--topology=cpu:1", "--config.base=/none")
    assert done.returncode == 2 and "only it knows the sizes" in done.stderr, done.stderr


def test_a_store_that_is_not_whole_is_no_store_that_is_absent(door, tmp_path):
    done = door("preflight", f"--config={TINY}:small", "--topology=cpu:1",
                f"--config.base={tmp_path}")  # fmt: skip
    assert done.returncode == 2 and "is no store of converted weights" in done.stderr, done.stderr


@pytest.mark.skipif(HAS_TPU, reason="libtpu is installed")
def test_a_tpu_without_its_compiler_is_one_line(preflight):
    done = preflight("--topology=v5e:1x1")
    assert done.returncode == 2 and "pip install 'meerkat_jax[tpu]'" in done.stderr, done.stderr


@pytest.mark.skipif(not HAS_TPU, reason="libtpu is not installed (pip install '.[tpu]')")
@pytest.mark.parametrize(("topology", "chips"), [("v5e:1x1", 1), ("v4:2x2x1", 4), ("v5e:2x2:2", 8)])
def test_a_tpu_that_is_not_here(preflight, topology, chips):
    done = preflight(f"--topology={topology}", "--batch=8", "--quick", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["devices"] == chips
    assert told["fits"] and told["memory_gib"] > 15
    assert 0 < told["mfu"] < 1 and told["step_seconds"] == max(told["seconds"].values())


@pytest.mark.skipif(not HAS_TPU, reason="libtpu is not installed (pip install '.[tpu]')")
def test_a_slice_that_does_not_exist_is_refused(preflight):
    done = preflight("--topology=v5e:3x5")
    assert done.returncode == 2 and "there is no such slice" in done.stderr, done.stderr
