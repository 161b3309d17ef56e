"""The preflight command; TPUs where their compiler is installed, else what it says is missing."""

import importlib.util
import json
import re

import pytest

from meerkat_jax.aot.topology import check_slice, devices_of
from meerkat_jax.core.errors import UserError
from tests.conftest import TINY

HAS_TPU = importlib.util.find_spec("libtpu") is not None


@pytest.fixture
def preflight(cli):
    def run(*flags):
        return cli("preflight", f"--config={TINY}", *flags)

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
    assert sizes["peak"] == sizes["weights"] + max(
        sizes["answer: more"], sizes["encode_and_align: more"]
    )


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


def test_sizes_that_only_a_store_knows_are_asked_for(cli):
    done = cli("preflight", f"--config={TINY}:small", "--topology=cpu:1", "--config.base=/none")
    assert done.returncode == 2 and "only it knows the sizes" in done.stderr, done.stderr


def test_a_store_that_is_not_whole_is_no_store_that_is_absent(cli, tmp_path):
    done = cli("preflight", f"--config={TINY}:small", "--topology=cpu:1",
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


@pytest.mark.parametrize(
    ("topology", "told"),
    [
        ("v6e:1000x1000", "v6e has 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
        ("v5e:3x5", "v5e has 1x1, 2x2"),
        ("v5e:16x32", "v5e has 1x1, 2x2"),
        ("v5e:2x2x1", "v5e has 1x1, 2x2"),
        ("v6e:4x2", "v6e has 1x1, 2x2"),
        ("v5p:2x2", "v5p has 2x2x1, 2x2x2, 2x2x4, 2x4x4, and three rising multiples of 4"),
        ("v5p:16x24x24", "at most 6144 chips"),
        ("v5p:8x4x4", "three rising multiples of 4"),
        ("v5p:0x4x4", "three rising multiples of 4"),
        ("v4:16x16x20", "at most 4096 chips"),
        ("v4:4x4x6", "v4 has 2x2x1"),
        ("cpu:5000", "at most 1024 simulated devices"),
    ],
)
def test_a_slice_that_does_not_exist_is_refused_naming_those_that_do(topology, told):
    """Whether or not the TPU's compiler is here."""
    with pytest.raises(UserError, match=f"--topology={topology}: .*{re.escape(told)}"):
        devices_of(topology)


def test_slices_that_google_lists_are_taken():
    for kind, shapes in {
        "v5e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
        "v6e": "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16",
        "v4": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x8x8 8x8x8 8x8x12 8x8x16 8x16x16",
        "v5p": "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x20 8x8x16 12x12x36 4x8x188 16x16x24",
    }.items():
        for shape in shapes.split():
            check_slice(kind, shape)


def test_a_value_that_asks_for_other_keys_is_refused_before_anything_compiles(preflight):
    done = preflight("--topology=cpu:1", "--config.data.kind=avfit")
    assert done.returncode == 2 and "needs config.data.root" in done.stderr, done.stderr
