"""Checkpoints: bitwise restore, real kills in a save, damage, other meshes, foreign folders."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.checkpoints import Checkpoints, _sum

META = {"config": {"lr": 0.1, "targets": ("q", "v")}, "lora": {"rank": 32}, "base": "abc"}


def make_state(seed):
    """A state with every kind of leaf: float32, bfloat16, int, bool, typed key, empty nodes."""
    a, b = jax.random.split(jax.random.key(seed))
    params = {"llama": {"q": {"lora_a": jax.random.normal(a, (3, 64, 32))}}, "bias": jnp.ones(4)}
    special = jnp.array([np.nan, -0.0, np.inf, 1e-45, seed], jnp.float32)
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1)).init(params)
    return {
        "trainable": params,
        "opt": opt,
        "step": jnp.int32(seed),
        "key": b,
        "extra": [
            special,
            jnp.array([True, False]),
            jnp.bfloat16(seed),
            jax.random.bits(b, (4000,)),
        ],
    }


def bits(tree):
    """The bytes of every leaf."""
    plain = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(plain)]


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def save(folder, *steps, keep=2):
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, make_state(step), {"examples": 8 * step}, META)


def restore(folder, **kwargs):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.restore(abstract(make_state(0)), **kwargs)


def damage(folder, item, how):
    """Flip one bit amid an item's data (its largest file), cut that file, or remove the item."""
    data_files = "metadata" if item in ("data", "meta") else "**/d/*"
    path = max((folder / item).glob(data_files), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif how == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        shutil.rmtree(folder / item)


def test_restores_the_newest_bit_for_bit(tmp_path):
    save(tmp_path, 10, 20, 30)
    state, data, meta = restore(tmp_path, expect={"lora": {"rank": 32}, "config": META["config"]})
    assert bits(state) == bits(make_state(30))
    assert jax.tree.structure(state) == jax.tree.structure(make_state(30))
    assert data == {"examples": 240}
    assert meta["step"] == 30 and meta["config"] == {"lr": 0.1, "targets": ["q", "v"]}
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.isdigit()) == ["20", "30"]


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0 - 7, tree), donate_argnums=0)
    big = {"w": jax.random.normal(jax.random.key(0), (512, 1024))}
    before = bits(big)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"trainable": big}, {}, {})
        for _ in range(3):
            big = step(big)
        jax.block_until_ready(big)
        params, _ = checkpoints.restore_params(abstract(big))
    assert bits(params) == before


def test_inference_reads_parameters_without_the_optimizer(tmp_path):
    save(tmp_path, 10)
    shutil.rmtree(tmp_path / "10" / "opt")
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        params, meta = checkpoints.restore_params(abstract(make_state(0)["trainable"]))
        assert checkpoints.read_meta() == meta
    assert bits(params) == bits(make_state(10)["trainable"])
    assert meta["lora"] == {"rank": 32}


def test_a_step_is_saved_once(tmp_path):
    save(tmp_path, 10)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 10
        assert not checkpoints.save(10, make_state(99), {}, META)
        state, _, _ = checkpoints.restore(abstract(make_state(0)))
    assert bits(state) == bits(make_state(10))


@pytest.mark.parametrize("item", ["trainable", "opt", "data", "meta"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_newest_step_gives_the_one_before(tmp_path, capsys, item, how):
    save(tmp_path, 10, 20)
    damage(tmp_path / "20", item, how)
    state, data, _ = restore(tmp_path)
    assert bits(state) == bits(make_state(10)) and data == {"examples": 80}
    assert re.search(r"WARNING: checkpoint \S+/20 is damaged", capsys.readouterr().err)
    save(tmp_path, 20)  # the number is free again, and what was damaged is kept aside
    assert bits(restore(tmp_path)[0]) == bits(make_state(20))
    assert (tmp_path / "damaged-20").is_dir()


def test_every_step_damaged_is_an_error_that_changes_nothing(tmp_path):
    save(tmp_path, 10, 20)
    for step in ("10", "20"):
        damage(tmp_path / step, "opt", "flip")
    with pytest.raises(UserError, match=rf"no checkpoint in {tmp_path}.*20, 10.*--overwrite"):
        restore(tmp_path)
    assert {"10", "20"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s["trainable"]["llama"]["q"].update(lora_a=jnp.ones((3, 64, 5))),
         r"lora_a: expected float32\[3,64,5\], found float32\[3,64,32\]"),
        (lambda s: s["trainable"].update(bias=jnp.ones(4, jnp.bfloat16)),
         r"bias: expected bfloat16\[4\], found float32\[4\]"),
        (lambda s: s["trainable"].update(new=jnp.ones(4)),
         r"trainable/new: expected float32\[4\], found nothing"),
        (lambda s: s.pop("key"), r"opt/key: expected nothing, found key<fry>\[\]"),
    ],
)  # fmt: skip
def test_another_tree_is_refused_naming_both(tmp_path, change, message):
    save(tmp_path, 10)
    state = make_state(0)
    change(state)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore(abstract(state))


@pytest.mark.parametrize(
    "expect, message",
    [
        ({"lora": {"rank": 16}}, "lora.rank: expected 16, found 32"),
        ({"config": {"lr": 0.1, "targets": ["q"]}}, r'targets: expected \["q"\], found \["q", "v"'),
        ({"tokenizer": "f00"}, 'tokenizer: expected "f00", found nothing'),
    ],
)
def test_another_config_is_refused_naming_both(tmp_path, expect, message):
    save(tmp_path, 10)
    with pytest.raises(UserError, match=message):
        restore(tmp_path, expect=expect)


def test_nothing_trainable_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="trainable"):
        checkpoints.save(1, {"trainable": {}}, {}, META)


def test_foreign_and_absent_folders_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="notes.txt"):
        Checkpoints(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        Checkpoints(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="is not there"):
        Checkpoints(tmp_path / "nothing", read_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_orbax_checkpoint_of_others_is_refused(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(3, args=ocp.args.StandardSave({"w": jnp.ones(2)}))
    with pytest.raises(UserError, match=r"no checkpoint.*3; it has no item 'meta'"):
        restore(tmp_path)


def test_an_empty_folder_has_no_latest(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(UserError, match="holds no checkpoint"):
            checkpoints.restore(abstract(make_state(0)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint32", "bool"])
def test_the_sum_sees_every_bit_and_every_exchange(dtype):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 2, (3, 17)) if dtype == "bool" else rng.integers(-9, 9, (3, 17))
    x = np.asarray(raw, jnp.dtype(dtype))
    sums = {int(_sum(x))}
    for _ in range(20):
        other = bytearray(x.tobytes())
        bit = 0 if dtype == "bool" else rng.integers(8)
        other[rng.integers(len(other))] ^= 1 << bit
        changed = np.frombuffer(bytes(other), x.dtype).reshape(x.shape)
        assert int(_sum(changed)) not in sums
    if dtype == "float32":
        assert int(_sum(np.ascontiguousarray(x[::-1]))) not in sums


CHILD = """
import sys
from tests.training.test_checkpoints import META, make_state
from meerkat_jax.weights.checkpoints import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range((checkpoints.latest() or 0) + 1, 10_000):
        checkpoints.save(step, make_state(step), {"examples": 8 * step}, META)
        print(step, flush=True)
"""


def test_killed_in_a_save_the_step_before_restores(tmp_path):
    """SIGKILL at different moments of a save, in a loop that does nothing but save."""
    folder, newest, inside = tmp_path / "c", 0, 0
    for delay in (0, 0.01, 0.03):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder)],
            stdout=subprocess.PIPE,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        begun = [int(child.stdout.readline()) for _ in range(3)][-1]
        while not list(folder.glob("*tmp*")):
            assert child.poll() is None
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.wait()
        begun = max([begun, *map(int, child.stdout.read().split())])
        inside += bool(list(folder.glob("*tmp*")))
        state, data, meta = restore(folder)
        step = int(state["step"])
        # Save n waits for the end of save n - 1, and may not have been printed yet.
        assert begun - 1 <= step <= begun + 1 and step > newest
        assert meta["step"] == step and data == {"examples": 8 * step}
        assert bits(state) == bits(make_state(step))
        newest = step
    assert inside, "no kill fell into a save"
    assert not [path for path in folder.iterdir() if "tmp" in path.name or "damaged" in path.name]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB, if this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(place)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("noticed", ["save", "wait", "close"])
def test_a_full_disk_is_told_and_costs_only_what_it_had_no_room_for(small_disk, noticed):
    """A real one. The save fails in the background; the next call that could know it tells."""
    folder = small_disk / "checkpoints"
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, make_state(1), {"examples": 8}, META, wait=True)
    rng = np.random.default_rng(0)
    (small_disk / "other").write_bytes(rng.bytes(shutil.disk_usage(small_disk).free - (64 << 10)))
    message = rf"{folder} could not be written: No space left on device; the last good one, step 1"
    with pytest.raises(UserError, match=message):
        checkpoints.save(2, make_state(2), {"examples": 16}, META)
        if noticed == "save":
            checkpoints.save(3, make_state(3), {"examples": 24}, META)
        elif noticed == "wait":
            checkpoints.wait()
        else:
            checkpoints.close()
    state, data, _ = restore(folder)
    assert bits(state) == bits(make_state(1)) and data == {"examples": 8}
    (small_disk / "other").unlink()
    save(folder, 2)  # with room again
    assert bits(restore(folder)[0]) == bits(make_state(2))


MESHES = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding
from tests.training.test_checkpoints import META, abstract, bits, make_state
from meerkat_jax.parallel import placement
from meerkat_jax.weights.checkpoints import Checkpoints

def laid(state, **shape):
    mesh = placement.make_mesh(shape)
    rules = placement.param_shardings(mesh, state)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                        abstract(state), rules), rules

assert jax.device_count() == 8
state = make_state(5)
_, rules = laid(state, fsdp=4, tensor=2)
spread = jax.device_put(state, rules)
lora_a = spread["trainable"]["llama"]["q"]["lora_a"]
assert lora_a.addressable_shards[0].data.shape == (3, 16, 32)
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(5, spread, {}, META, wait=True)
for shape in (dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(fsdp=8), dict(tensor=8)):
    want, rules = laid(state, **shape)
    with Checkpoints(sys.argv[1]) as checkpoints:
        found, _, _ = checkpoints.restore(want)
    assert bits(found) == bits(state), shape
    jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim) or 1 / 0, found, rules)
"""


def test_restores_onto_another_mesh_and_onto_one_device(tmp_path):
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, "-c", MESHES, str(tmp_path)], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert bits(restore(tmp_path)[0]) == bits(make_state(5))


def test_a_step_that_is_set_aside_is_kept_but_not_taken(tmp_path):
    save(tmp_path, 1, 2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.set_aside(2)
        checkpoints.set_aside(7)  # a step that was never saved
        assert checkpoints.latest() == 1
        assert checkpoints.restore(abstract(make_state(0)))[2]["step"] == 1
        assert checkpoints.save(2, make_state(2), {}, META, wait=True)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "damaged-2"}
