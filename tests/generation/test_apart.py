"""A decoder laid out for answers says what it said, and nothing is copied to say it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.api import Meerkat
from meerkat_jax.errors import UserError
from meerkat_jax.generation.apart import apart, lay_out_decoder
from meerkat_jax.generation.sampling import extend_text
from meerkat_jax.models.layers import LoraConfig
from meerkat_jax.models.llama import Llama, init_cache
from meerkat_jax.training.params import flatten
from meerkat_jax.training.quantise import restore_tree
from tests.generation.made import fast_compilation, made, picture, tone
from tests.tolerances import tolerance

# 44 is no multiple of a block: `gate` and `up` have kernels alone.
SIZES = {"vocab_size": 61, "width": 64, "depth": 3, "heads": 4, "kv_heads": 2, "mlp_dim": 44}
ROWS, SLOTS = 2, 12


@pytest.fixture(scope="module", autouse=True)
def quick():
    with fast_compilation():
        yield


@functools.cache
def decoder() -> tuple[Llama, dict]:
    """A decoder with LoRA that does something."""
    llama = Llama(**SIZES, lora=LoraConfig(rank=3, targets=("q", "down")))
    inputs = (jnp.zeros((1, 2), jnp.int32), jnp.arange(2)[None], None, init_cache(llama, 1, 2), 0)
    shapes = jax.eval_shape(
        lambda: llama.init(jax.random.key(0), *inputs, jnp.zeros(1, jnp.int32), method=extend_text)
    )
    rng = np.random.default_rng(0)
    fill = lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape, np.float32))  # noqa: E731
    return llama, jax.tree.map(fill, shapes["params"])


def said(llama: Llama, params: dict) -> tuple[np.ndarray, jax.stages.Compiled]:
    """Logits of two calls with one cache: 9 tokens (18 rows of products), then one; the program."""

    def run(params, tokens):
        cache, found, slot = init_cache(llama, ROWS, SLOTS), [], 0
        for some in (tokens[:, :9], tokens[:, 9:]):
            places = slot + jnp.arange(some.shape[1])[None]
            last = jnp.full(ROWS, some.shape[1] - 1)
            logits, cache = llama.apply(
                {"params": params}, some, places, None, cache, slot, last, method=extend_text
            )
            found, slot = [*found, logits], slot + some.shape[1]
        return jnp.stack(found)

    tokens = np.random.default_rng(1).integers(0, 61, (ROWS, 10), np.int32)
    program = jax.jit(run).lower(params, tokens).compile()
    return np.asarray(program(params, tokens)), program


def test_layers_apart_say_the_same_and_are_never_stacked_again():
    stacked, (llama, params) = decoder(), apart(*decoder())
    mine = {path.removeprefix("layers/") for path in flatten(params)}
    assert {"q/blocks", "q/kernel", "gate/kernel", "q/lora_a", "mlp_norm/scale"} <= mine
    assert "gate/blocks" not in mine
    blocks = params["layers"]["q"]["blocks"]
    assert len(blocks) == 3 and blocks[0].shape == (2, 64, 32)
    expected, before = said(*stacked)
    found, program = said(llama, params)
    np.testing.assert_allclose(found, expected, **tolerance("stack"))
    stacks = ("f32[3,64,64]", "f32[3,64,44]", "f32[3,2,64,32]")
    assert stacks[0] in before.as_text() and stacks[1] in before.as_text()
    assert not any(stack in program.as_text() for stack in stacks)
    assert apart(llama, params)[0] is llama  # once is enough


def test_a_quantised_decoder_says_what_its_restored_kernels_say():
    llama, params = decoder()
    few, parts = lay_out_decoder(llama, params, "int8")
    assert parts["layers"]["gate"]["kernel"]["int8"][0].dtype == jnp.int8
    stacked = jax.tree.map(jnp.stack, parts, is_leaf=lambda leaf: isinstance(leaf, tuple))
    expected, _ = said(llama, restore_tree(stacked, jnp.float32))
    np.testing.assert_allclose(said(few, parts)[0], expected, **tolerance("stack"))
    assert np.abs(expected - said(llama, params)[0]).max() > 1e-3  # it was not for nothing


@functools.cache
def few() -> Meerkat:
    return Meerkat.load(made().workdir, quantise="int8")


def test_a_model_is_loaded_in_int8():
    assert few().sampler.params is few().params
    names = ("q", "k", "v", "o", "gate", "up", "down")
    kernels = [few().params["llama"]["layers"][name]["kernel"] for name in names]
    assert all(kernel["int8"][0].dtype == jnp.int8 for kernel in kernels)


@pytest.mark.slow
def test_a_model_in_int8_answers():
    assert few().ask(picture(0), (tone(440), 16000), "What makes this sound?").text


def test_other_bits_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match="quantise is 'int4'; expected one of none, int8, nf4"):
        Meerkat.load(tmp_path / "nothing", quantise="int4")
