"""Answers of a decoder with its kernels in fewer bits, or its layers unstacked."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.api import Meerkat
from meerkat_jax.core.errors import UserError
from meerkat_jax.inference.engine import Engine
from tests.inference.made import fast_compilation, made, make_image, tone
from tests.training.test_quantise import restored

NAMES = ("q", "k", "v", "o", "gate", "up", "down")
ASKED = (make_image(0), (tone(440), 16000), "What makes this sound?")


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
    whole = Meerkat(few().assembly.with_sharding(None), restored(few().params), few().config)
    assert few().ask(*ASKED).text == whole.ask(*ASKED).text != ""


def test_other_bits_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="quantise is 'int4'; expected one of none, int8, nf4"):
        Meerkat.load(tmp_path / "nothing", quantise="int4")


@functools.cache
def unstack_layers(quantise: str = "none") -> Meerkat:
    return Meerkat.load(made().workdir, quantise, unstack_layers=True)


def test_each_layer_has_arrays_of_its_own():
    layers, whole = (
        params["llama"]["layers"] for params in (unstack_layers().params, made().params)
    )
    assert sorted(layers) == [str(i) for i in range(unstack_layers().assembly.model.llama.depth)]
    for number, layer in layers.items():
        own = jax.tree.map(operator.itemgetter(int(number)), whole)
        jax.tree.map(np.testing.assert_array_equal, layer, own)


def test_the_compiled_program_makes_no_stack_of_them():
    def text(model: Meerkat) -> str:
        llama = model.assembly.model.llama
        shapes = jnp.zeros((1, 1, llama.width)), jnp.zeros((1, 1), jnp.int32)
        call = jax.jit(lambda params, *x: llama.apply({"params": params}, *x)["hidden"])
        return call.lower(model.params["llama"], *shapes).compile().as_text()

    kernel = made().params["llama"]["layers"]["gate"]["kernel"]
    stack = f"f32[{','.join(map(str, kernel.shape))}]"
    assert stack in text(Meerkat.load(made().workdir))
    assert stack not in text(unstack_layers())


def test_answers_are_those_of_the_stack():
    model = Meerkat.load(made().workdir)
    assert unstack_layers().ask(*ASKED).text == model.ask(*ASKED).text != ""
    with Engine(unstack_layers(), slots=2) as engine:
        assert engine.ask(*ASKED).answer().text == model.ask(*ASKED).text


def test_int8_layers_lie_apart_too():
    layer = unstack_layers("int8").params["llama"]["layers"]["0"]
    assert layer["q"]["kernel"]["int8"].ndim == 2
    whole = Meerkat.load(made().workdir, "int8")
    assert unstack_layers("int8").ask(*ASKED).text == whole.ask(*ASKED).text != ""
