"""What the tests of all readers check: bits, and the one error of opening."""

import pytest
import torch

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights.open import open_source


def bits(value):
    """A torch or numpy array as bytes, with its shape and the name of its dtype."""
    if isinstance(value, torch.Tensor):
        name = str(value.dtype).removeprefix("torch.")
        raw = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return tuple(value.shape), name, raw
    return value.shape, value.dtype.name, value.tobytes()


def assert_same(source, state):
    """Every tensor of a source is that of a state dict, bit for bit, as announced."""
    assert set(source.tensors) == set(state)
    for name, tensor in source.tensors.items():
        value = tensor.read()
        assert (value.shape, value.dtype) == (tensor.shape, tensor.dtype), name
        assert bits(value) == bits(state[name]), name


def refusal(path, kind):
    """The one error of opening."""
    with pytest.raises(UserError) as caught:
        open_source(path, kind)
    return str(caught.value)


def neighbours(rows, heads):
    """The hub's rows with the two halves of each head interleaved: pairs are neighbours."""
    width = len(rows) // heads
    order = [h * width + i // 2 + i % 2 * (width // 2) for h in range(heads) for i in range(width)]
    return rows[torch.tensor(order)]
