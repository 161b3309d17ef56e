"""Hub folders: every file format gives the model's own bits; what is broken is named, in one list.

Also the plain torch files that the other readers share.
"""

import json
import re
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.open import open_source
from tests.weights import published
from tests.weights.checks import assert_same, refusal

MODELS = {"clip": published.clip, "clap": published.clap, "llama": published.llama}
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def as_bins(folder, state, count):
    """Replace a folder's weights by torch files, with an index if there are several."""
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    if count == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    names = list(state)
    placed = {}
    for i in range(count):
        file = f"pytorch_model-{i + 1:05}-of-{count:05}.bin"
        torch.save({name: state[name] for name in names[i::count]}, folder / file)
        placed |= dict.fromkeys(names[i::count], file)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def header(entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


# ---- what is there ----


@pytest.mark.parametrize("kind", MODELS)
def test_safetensors(kind, tmp_path):
    model = MODELS[kind](tmp_path)
    source = open_source(tmp_path, kind)
    assert_same(source, model.state_dict())
    assert source.config == json.loads((tmp_path / "config.json").read_text())
    assert {file.suffix for file in source.files} == {".safetensors"}
    assert (len(source.files) > 1) == (kind == "llama")  # published.llama makes shards


@pytest.mark.parametrize("count", [1, 3])
def test_torch_files(count, tmp_path):
    state = published.llama(tmp_path, torch.bfloat16).state_dict()
    as_bins(tmp_path, state, count)
    source = open_source(tmp_path, "llama")
    assert_same(source, state)
    assert len(source.files) == count
    assert {tensor.dtype for tensor in source.tensors.values()} == {BFLOAT16}


def test_each_tensor_keeps_its_own_dtype(tmp_path):
    state = published.llama(tmp_path).state_dict()
    state["model.norm.weight"] = state["model.norm.weight"].half()
    state["lm_head.weight"] = state["lm_head.weight"].bfloat16()
    as_bins(tmp_path, state, 1)
    assert_same(open_source(tmp_path, "llama"), state)


def test_files_of_old_torch(tmp_path):
    state = published.clip(tmp_path).state_dict()
    as_bins(tmp_path, state, 1)
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=False)
    assert file.read_bytes()[:2] != b"PK"
    assert_same(open_source(tmp_path, "clip"), state)


def test_a_single_pt_file(tmp_path):
    state = published.clip(tmp_path).state_dict()
    (tmp_path / "model.safetensors").unlink()
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "tuned.pt")
    assert_same(open_source(tmp_path, "clip"), state)


def test_safetensors_come_before_torch_files(tmp_path):
    model = published.clip(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert_same(open_source(tmp_path, "clip"), model.state_dict())


@pytest.mark.parametrize("zipped", [True, False])
def test_parameters_and_views_are_read(zipped, tmp_path):
    published.clip(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    whole = torch.arange(12.0).reshape(3, 4)
    state = {
        "view": whole.T,
        "part": whole[1:, ::2],
        "same": whole[:1].expand(5, 4),
        "none": whole[:0],
        "parameter": torch.nn.Parameter(whole),
        "scalar": torch.tensor(2),
    }
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    assert_same(open_source(tmp_path, "clip"), state)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_reading_a_tensor_takes_no_more_than_it(name, tmp_path):
    published.clip(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    size = 2**20
    if name.endswith(".bin"):
        state = {f"t{i}": torch.full((256, 1024), float(i)) for i in range(8)}
        torch.save(state, tmp_path / name)
    else:
        entry = {"dtype": "F32", "shape": [256, 1024]}
        entries = {f"t{i}": entry | {"data_offsets": [i * size, i * size + size]} for i in range(8)}
        data = np.arange(8, dtype=np.float32).repeat(size // 4).tobytes()
        (tmp_path / name).write_bytes(header(entries) + data)
    tracemalloc.start()
    source = open_source(tmp_path, "clip")
    assert (source.tensors["t5"].read() == 5).all()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * size


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no /proc on this system")
def test_no_file_stays_open_or_mapped(tmp_path):
    state = published.clip(tmp_path).state_dict()
    as_bins(tmp_path, state, 1)
    source = open_source(tmp_path, "clip")
    arrays = [tensor.read() for tensor in source.tensors.values()]
    assert arrays and str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert not [f for f in Path("/proc/self/fd").iterdir() if str(tmp_path) in str(f.resolve())]


# ---- what is broken ----


def test_wrong_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    text = refusal(tmp_path, "clip")
    assert str(tmp_path) in text and "found notes.txt" in text and "expected" in text
    assert "config.json" in text
    assert "there is nothing" in refusal(tmp_path / "absent", "llama")
    assert "it is a file notes.txt" in refusal(tmp_path / "notes.txt", "llama")


def test_cache_of_the_hub(tmp_path):
    (tmp_path / "snapshots" / "abc").mkdir(parents=True)
    assert "snapshots/*" in refusal(tmp_path, "llama")


@pytest.mark.parametrize(("there", "asked"), [("clap", "clip"), ("clip", "llama")])
def test_wrong_model_type(there, asked, tmp_path):
    MODELS[there](tmp_path)
    text = refusal(tmp_path, asked)
    assert f"config.json: model_type is '{there}', expected '{asked}'" in text


def test_no_weights_beside_the_config(tmp_path):
    published.clip(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert re.search(r"no weights .*expected one of model.safetensors", refusal(tmp_path, "clip"))


@pytest.mark.parametrize("keep", [4, 100, -1])
def test_safetensors_cut_short(keep, tmp_path):
    published.clip(tmp_path)
    file = tmp_path / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:keep])
    text = refusal(tmp_path, "clip")
    assert "model.safetensors" in text and "download it again" in text
    if keep == -1:
        assert f"has {size - 1} bytes, its header says {size}" in text


@pytest.mark.parametrize("keep", [2, 1000, -1])
@pytest.mark.parametrize("zipped", [True, False])
def test_torch_file_cut_short(keep, zipped, tmp_path):
    state = published.clip(tmp_path).state_dict()
    as_bins(tmp_path, state, 1)
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[:keep])
    assert "pytorch_model.bin cannot be read by torch" in refusal(tmp_path, "clip")


def test_torch_file_that_would_run_code(tmp_path):
    state = published.clip(tmp_path).state_dict()
    as_bins(tmp_path, state | {"extra": Path("x")}, 1)  # a class that is no tensor
    text = refusal(tmp_path, "clip")
    assert "pytorch_model.bin" in text and "weights-only" in text


def test_values_that_are_no_tensors(tmp_path):
    state = published.clip(tmp_path).state_dict()
    as_bins(tmp_path, state | {"step": 3, "odd": torch.zeros(2, dtype=torch.complex64)}, 1)
    text = refusal(tmp_path, "clip")
    assert "step is a int, expected a tensor" in text and "odd has dtype complex64" in text


def test_pointer_of_git_lfs(tmp_path):
    published.clip(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "model.safetensors is a Git LFS pointer" in refusal(tmp_path, "clip")


def test_all_problems_of_shards_in_one_error(tmp_path):
    published.llama(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    placed = json.loads(index.read_text())
    shards = sorted(set(placed["weight_map"].values()))
    assert len(shards) >= 4
    (tmp_path / shards[0]).unlink()
    (tmp_path / shards[1]).write_bytes(b"")
    (tmp_path / shards[2]).write_bytes((tmp_path / shards[2]).read_bytes()[:-8])
    moved = next(name for name, file in placed["weight_map"].items() if file == shards[3])
    placed["weight_map"][moved + "_new"] = placed["weight_map"].pop(moved)
    index.write_text(json.dumps(placed))
    (tmp_path / f"{shards[0]}.incomplete").write_bytes(b"x")
    text = refusal(tmp_path, "llama")
    assert f"{shards[0]} is missing" in text
    assert f"{shards[1]} is empty" in text
    assert re.search(rf"{shards[2]} has \d+ bytes, its header says \d+", text)
    assert f"{shards[3]} has no tensor {moved}_new, which {index.name} places there" in text
    assert f"{shards[3]} has tensor {moved}, which {index.name} does not place there" in text
    assert f"{shards[0]}.incomplete is a download that has not ended" in text
    assert ": 6 problems: " in text


def test_unfinished_download_of_the_hub_client(tmp_path):
    published.clip(tmp_path)
    inner = tmp_path / ".cache" / "huggingface" / "download"
    inner.mkdir(parents=True)
    (inner / "x.abc.incomplete").write_bytes(b"x")
    assert "x.abc.incomplete is a download that has not ended" in refusal(tmp_path, "clip")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weight_map": {}}', '{"weight_map": 3}'])
def test_broken_index(text, tmp_path):
    published.llama(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json" in refusal(tmp_path, "llama")


def test_index_that_leads_out_of_the_folder(tmp_path):
    published.llama(tmp_path)
    index = {"weight_map": {"a": "../other/model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "../other/model.safetensors, expected a file of the same" in refusal(tmp_path, "llama")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}, "dtype F8_E4M3, expected"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}, "4 bytes for"),
        ({"dtype": "F32", "shape": [1]}, "no readable safetensors header"),
        (3, "no readable safetensors header"),
    ],
)
def test_headers_that_lie(entry, said, tmp_path):
    published.clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(header({"odd": entry}) + b"\0" * 4)
    assert said in refusal(tmp_path, "clip")


def test_file_that_shrinks_after_opening(tmp_path):
    published.clip(tmp_path)
    source = open_source(tmp_path, "clip")
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(UserError, match="model.safetensors ended early"):
        [tensor.read() for tensor in source.tensors.values()]
