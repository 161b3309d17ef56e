"""Answers with the decoder's kernels in fewer bits."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.api import Meerkat
from meerkat_jax.errors import UserError
from tests.generation.made import fast_compilation, made, picture, tone
from tests.training.test_quantise import restored

NAMES = ("q", "k", "v", "o", "gate", "up", "down")
ASKED = (picture(0), (tone(440), 16000), "What makes this sound?")


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


@functools.cache
def few() -> Meerkat:
    return Meerkat.load(made().workdir, quantise="int8")


def test_a_loaded_model_keeps_its_kernels_in_int8():
    layers, whole = (params["llama"]["layers"] for params in (few().params, made().params))
    assert all(layers[name]["kernel"]["int8"].dtype == jnp.int8 for name in NAMES)
    assert few().sampler.params is few().params
    back = restored(layers)
    for name in NAMES:  # half a step of the largest number of a column, at most
        off = np.abs(back[name]["kernel"] - whole[name]["kernel"]).max()
        assert 0 < off <= np.abs(whole[name]["kernel"]).max() / 253
    jax.tree.map(
        np.testing.assert_array_equal, few().params["image_tower"], made().params["image_tower"]
    )


@pytest.mark.slow
def test_a_model_in_int8_answers_as_its_restored_kernels_do():
    whole = Meerkat(few().assembly.laid(None), restored(few().params), few().config)
    assert few().ask(*ASKED).text == whole.ask(*ASKED).text != ""


def test_other_bits_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="quantise is 'int4'; expected one of none, int8, nf4"):
        Meerkat.load(tmp_path / "nothing", quantise="int4")
