"""The store on disk: what is written is what is read, whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from meerkat_jax.core.errors import UserError
from meerkat_jax.parallel.placement import make_mesh
from meerkat_jax.weights import store as stores
from meerkat_jax.weights.store import FILE, Store, Writer, staged, write_record

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LEAVES = {
    "llama/layers/q/kernel": ((3, 4, 6), BFLOAT16),
    "llama/norm/scale": ((5,), np.dtype(np.float32)),
    "llama/count": ((), np.dtype(np.int64)),
}


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {path: rng.normal(size=shape).astype(kind) for path, (shape, kind) in LEAVES.items()}
    return made | {"llama/count": np.array(7)}


def write(out):
    """A store whose stacked leaf is filled backwards, a slice at a time."""
    with staged(out) as folder:
        writer = Writer(folder / "llama.safetensors", LEAVES)
        for path, value in values().items():
            if value.ndim == 3:
                for i in reversed(range(len(value))):
                    writer.put(path, value[i].T.copy().T, i)
            else:
                writer.put(path, value)
        write_record(folder, [writer], {"llama": {"config": {"width": 4}}}, [])
    return Store.open(out)


def test_every_bit_comes_back(tmp_path):
    store = write(tmp_path / "store")
    for path, value in values().items():
        np.testing.assert_array_equal(store.read(path), value)
        assert store.read(path).dtype == value.dtype
    store.check()


def test_the_file_is_plain_safetensors(tmp_path):
    write(tmp_path / "store")
    found = load_file(tmp_path / "store" / "llama.safetensors")
    assert found.keys() == LEAVES.keys()
    for path, value in values().items():
        np.testing.assert_array_equal(found[path], value)


def test_a_leaf_is_placed_in_parts_and_in_another_dtype(tmp_path):
    store = write(tmp_path / "store")
    mesh = make_mesh({"data": 1})
    sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    placed = store.place("llama/layers/q/kernel", sharding, "float32")
    assert placed.dtype == np.float32 and placed.sharding == sharding
    np.testing.assert_array_equal(placed, values()["llama/layers/q/kernel"].astype(np.float32))


def test_the_hash_is_of_numbers_and_configs_alone(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b")
    assert first.hash == second.hash
    second.record["parts"]["llama"]["config"]["width"] = 5
    assert first.hash != second.hash


def test_an_interrupted_conversion_leaves_nothing(tmp_path):
    for stop in (KeyboardInterrupt, RuntimeError):
        with pytest.raises(stop), staged(tmp_path / "store") as folder:
            Writer(folder / "llama.safetensors", LEAVES)
            raise stop
    assert not list(tmp_path.iterdir())


def test_what_a_killed_conversion_left_is_no_store_and_is_cleared(tmp_path):
    left = tmp_path / ".store.partial"
    left.mkdir()
    (left / "llama.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="no store of converted weights"):
        Store.open(left)
    write(tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_folder_that_is_there_is_never_overwritten(tmp_path):
    (tmp_path / "store").mkdir()
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "store")


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    usage = stores.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(stores.shutil, "disk_usage", lambda _: usage._replace(free=10))
    with pytest.raises(UserError, match="GiB are free"):
        write(tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_meanwhile(tmp_path):
    with pytest.raises(UserError, match="cannot be written: No space left"):
        with staged(tmp_path / "store") as folder:
            writer = Writer(folder / "llama.safetensors", LEAVES)
            writer._open.close()
            writer._open = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
            writer.put("llama/norm/scale", np.zeros(5, np.float32))
    assert not list(tmp_path.iterdir())


def test_a_number_that_float16_cannot_hold_is_not_made_infinite(tmp_path):
    with staged(tmp_path / "store") as folder:
        writer = Writer(folder / "a.safetensors", {"scale": ((2,), np.dtype(np.float16))})
        writer.put("scale", np.array([1.0, 2.0], np.float32))
        with pytest.raises(UserError, match="scale: 70000 is beyond the range of float16"):
            writer.put("scale", np.array([1.0, 70000.0], np.float32))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / FILE).write_text("{"), "cannot be read"),
        (lambda folder: (folder / FILE).write_text('{"format": "other"}'), "format 'other'"),
        (lambda folder: (folder / FILE).unlink(), "no store of converted weights"),
        (lambda folder: (folder / "llama.safetensors").unlink(), "missing, expected"),
        (lambda folder: (folder / "llama.safetensors").write_bytes(b"12"), "2 bytes, expected"),
    ],
)
def test_a_damaged_store_is_named(tmp_path, harm, message):
    write(tmp_path / "store")
    harm(tmp_path / "store")
    with pytest.raises(UserError, match=message):
        Store.open(tmp_path / "store")


def test_a_flipped_byte_is_found_by_check(tmp_path):
    store = write(tmp_path / "store")
    file = tmp_path / "store" / "llama.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="is not what was written"):
        store.check()


def test_the_record_is_json_that_tells_of_each_leaf(tmp_path):
    write(tmp_path / "store")
    record = json.loads((tmp_path / "store" / FILE).read_text())
    assert record["leaves"]["llama/norm/scale"]["shape"] == [5]
    assert record["leaves"]["llama/layers/q/kernel"]["dtype"] == "BF16"


EIGHT = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from meerkat_jax.parallel.placement import make_mesh
from meerkat_jax.weights.store import Store

store = Store.open(sys.argv[1])
whole = store.read("llama/layers/q/kernel")
for sizes, spec in (
    ({"fsdp": 4, "tensor": 2}, (None, "fsdp", "tensor")),
    ({"data": 8}, ()),
    ({"fsdp": 2, "tensor": 2, "data": 2}, (None, "tensor", "fsdp")),
):
    placed = store.place(
        "llama/layers/q/kernel", NamedSharding(make_mesh(sizes), PartitionSpec(*spec))
    )
    assert len(placed.addressable_shards) == 8
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index])
print("whole")
"""


def test_a_leaf_goes_onto_any_mesh_of_eight_devices(tmp_path):
    store = write(tmp_path / "store")
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, str(store.folder)],
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "whole", done.stderr
