"""Files with changed bytes, or cut anywhere: read, or refused by a UserError; never a traceback."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.open import open_source
from tests.weights import published, test_gguf

HEAD = 3000  # bytes from the start in which changes matter most


def safetensors(folder):
    published.clip(folder)
    return folder / "model.safetensors", folder, "clip"


def torch_zip(folder):
    published.clip(folder)
    (folder / "model.safetensors").unlink()
    state = {"a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)}
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin", folder, "clip"


def gguf(folder):
    file = folder / "m.gguf"
    test_gguf.write(file, test_gguf.model().state_dict(), test_gguf.QUANTISED.Q8_0)
    return file, file, "llama"


@pytest.mark.parametrize("make", [safetensors, torch_zip, gguf])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damage_is_survived(make, tmp_path):
    file, path, kind = make(tmp_path)
    whole = file.read_bytes()
    places = st.lists(st.tuples(st.integers(0, HEAD), st.integers(0, 255)), max_size=5)

    @settings(max_examples=100, deadline=None, database=None, derandomize=True)
    @given(places, st.integers(0, 2 * len(whole)))
    def check(changes, end):
        data = bytearray(whole)
        for place, value in changes:
            data[place % len(data)] = value
        file.write_bytes(data[:end])
        try:
            source = open_source(path, kind)
            arrays = {name: tensor.read() for name, tensor in source.tensors.items()}
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert all(arrays[n].shape == t.shape for n, t in source.tensors.items())

    check()
