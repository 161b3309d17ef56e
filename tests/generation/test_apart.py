"""Answers of a decoder whose layers lie apart."""

from __future__ import annotations

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.api import Meerkat
from meerkat_jax.generation.engine import Engine
from tests.generation.made import fast_compilation, made, picture, tone

ASKED = (picture(0), (tone(440), 16000), "What makes this sound?")


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


@functools.cache
def apart(quantise: str = "none") -> Meerkat:
    return Meerkat.load(made().workdir, quantise, apart=True)


def test_each_layer_has_arrays_of_its_own():
    layers, whole = (params["llama"]["layers"] for params in (apart().params, made().params))
    assert sorted(layers) == [str(i) for i in range(apart().assembly.model.llama.depth)]
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
    assert stack not in text(apart())


def test_answers_are_those_of_the_stack():
    model = Meerkat.load(made().workdir)
    assert apart().ask(*ASKED).text == model.ask(*ASKED).text != ""
    with Engine(apart(), slots=2) as engine:
        assert engine.ask(*ASKED).answer().text == model.ask(*ASKED).text


def test_int8_layers_lie_apart_too():
    layer = apart("int8").params["llama"]["layers"]["0"]
    assert layer["q"]["kernel"]["int8"].ndim == 2
    whole = Meerkat.load(made().workdir, "int8")
    assert apart("int8").ask(*ASKED).text == whole.ask(*ASKED).text != ""
