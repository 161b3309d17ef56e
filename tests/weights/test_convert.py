"""Checkpoints of the hub become a store that computes the same, or one clear error and no store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.convert import convert, inspect
from meerkat_jax.weights.store import Store
from meerkat_jax.weights.verify import verify
from tests.weights import published

ROOT = Path(__file__).parents[2]
KINDS = ("clip", "clap", "llama")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small checkpoint of each kind, not to be changed by a test."""
    home = tmp_path_factory.mktemp("published")
    for kind in KINDS:
        getattr(published, kind)(home / kind)
    return {kind: home / kind for kind in KINDS}


@pytest.fixture(scope="module")
def store(folders, tmp_path_factory):
    lines: list[str] = []
    made = convert(folders, tmp_path_factory.mktemp("out") / "store", say=lines.append)
    (made.folder.parent / "said.txt").write_text("\n".join(lines))
    return made


def test_every_module_computes_what_torch_does(store, folders):
    found = verify(store, folders, say=lambda line: None)
    assert {row.module.split(":")[0] for row in found} == {"image_tower", "audio_tower", "llama"}
    assert len(found) == 6 + 7 + 6
    for row in found:
        assert row.size > 0.01, row  # outputs of zeros would agree, too
        assert row.largest <= 1e-4 * max(row.size, 1.0), row


def test_a_wrong_number_shows_in_its_module_and_in_what_follows(store, folders, tmp_path):
    wrong = Store.open(store.folder)
    read = wrong.read

    def changed(path):
        value = np.array(read(path))
        if path == "llama/layers/v/kernel":
            value[1] *= 1.01
        return value

    wrong.read = changed
    rows = verify(wrong, {"llama": folders["llama"]}, say=lambda line: None)
    errors = {row.module.removeprefix("llama: "): row.largest for row in rows}
    assert errors["layer 1"] > 1e-3 and errors["logits"] > 1e-3
    assert errors["layer 0"] < 1e-4 and errors["layer 2"] < 1e-4


def test_what_is_said_names_parts_sizes_and_the_hash(store):
    said = (store.folder.parent / "said.txt").read_text()
    assert "image_tower: clip of" in said and "audio_tower: clap of" in said
    assert "tensors 30/30" in said  # progress of the language model
    assert store.hash[:16] in said


def test_source_files_are_hashed_and_named(store, folders):
    told = store.parts["llama"]["source"]["files"]
    shards = sorted(path.name for path in folders["llama"].glob("*.safetensors"))
    assert len(shards) > 1 and set(shards) <= set(told)
    assert all(len(digest) == 64 for digest in told.values())


def test_dtype_is_chosen_or_kept(folders, tmp_path):
    half = tmp_path / "half"
    model = published.llama(half, torch.bfloat16)
    kept = convert({"llama": half}, tmp_path / "kept", say=lambda line: None)
    wide = convert({"llama": half}, tmp_path / "wide", "float32", say=lambda line: None)
    want = model.model.layers[2].mlp.up_proj.weight.detach().float().numpy().T
    for made, kind in ((kept, "bfloat16"), (wide, "float32")):
        leaf = made.read("llama/layers/up/kernel")
        assert str(leaf.dtype) == kind
        np.testing.assert_array_equal(leaf[2].astype(np.float32), want)


def test_inspect_prints_source_and_target_side_by_side(folders):
    lines: list[str] = []
    inspect(folders, lines.append)
    text = "\n".join(lines)
    assert "model.layers.1.self_attn.q_proj.weight" in text
    assert "->  llama/layers/q/kernel[1]  float32[32, 32]" in text
    assert any(line.startswith("text_model.") and "(not needed)" in line for line in lines)


def cut(folder: Path) -> None:
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])


def unlink(folder: Path) -> None:
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def of_another_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "mistral"}))


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, "model-00001-of"),
        (unlink, "model-00002-of"),
        (of_another_type, "mistral"),
        (empty, "config.json"),
    ],
)
def test_a_bad_source_is_one_error_and_leaves_nothing(tmp_path, harm, message):
    published.llama(tmp_path / "llama")
    harm(tmp_path / "llama")
    with pytest.raises(UserError, match=message):
        convert({"llama": tmp_path / "llama"}, tmp_path / "store", say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


def test_a_folder_of_another_kind_is_refused(folders, tmp_path):
    with pytest.raises(UserError, match="clap"):
        convert({"llama": folders["clap"]}, tmp_path / "store", say=lambda line: None)


def cli(*flags: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/convert_weights.py", *map(str, flags)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_door_converts_and_verifies(folders, tmp_path):
    flags = [f"--{kind}={folder}" for kind, folder in folders.items()]
    done = cli(*flags, f"--out={tmp_path / 'store'}", "--verify", "--dtype=float32")
    assert done.returncode == 0, done.stderr
    assert "llama: logits" in done.stdout and "--config.base=" in done.stdout
    Store.open(tmp_path / "store").check()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--llama=/nowhere", "--out=x"], "/nowhere"),
        (["--out=x"], "give --clip=DIR"),
        (["--llama=x"], "missing --out"),
        (["--export=peft", "--out=x"], "missing --checkpoint"),
        (["--dtype=int3"], "dtype"),
    ],
)
def test_a_mistake_at_the_door_is_one_line(flags, message, tmp_path):
    done = cli(*flags)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
