"""The shared layers against torch's, and LoRA's arithmetic."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from meerkat_jax.nn.attention import attend
from meerkat_jax.nn.dense import Dense, LoraConfig
from meerkat_jax.nn.norms import RMSNorm
from tests.tolerances import tolerance


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Random float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_is_a_linear_layer(use_bias):
    theirs = torch.nn.Linear(7, 5, bias=use_bias)
    params = {"kernel": theirs.weight.detach().numpy().T}
    if use_bias:
        params["bias"] = theirs.bias.detach().numpy()
    x = normal(2, 3, 7)
    ours = Dense(5, use_bias=use_bias).apply({"params": params}, x)
    np.testing.assert_allclose(
        ours, theirs(torch.tensor(x)).detach().numpy(), **tolerance("module")
    )


def test_lora_adds_the_scaled_product():
    x, kernel, a, b = normal(4, 6), normal(6, 5), normal(6, 2, seed=1), normal(2, 5, seed=2)
    layer = Dense(5, use_bias=False, lora=LoraConfig(rank=2, alpha=6.0))
    ours = layer.apply({"params": {"kernel": kernel, "lora_a": a, "lora_b": b}}, x)
    np.testing.assert_allclose(ours, x @ (kernel + 3.0 * a @ b), **tolerance("module"))


def test_lora_starts_at_zero_with_peft_spread():
    layer = Dense(300, lora=LoraConfig(rank=64))
    params = layer.init(jax.random.key(0), jnp.zeros((1, 400)))["params"]
    assert not params["lora_b"].any()
    limit = 400**-0.5  # kaiming uniform with a = sqrt(5) over the fan-in
    assert 0.99 * limit < np.abs(params["lora_a"]).max() <= limit
    assert np.std(params["lora_a"]) == pytest.approx(limit / 3**0.5, rel=0.02)


def test_dropout_touches_only_the_lora_branch():
    layer = Dense(5, lora=LoraConfig(rank=2, alpha=2.0, dropout=0.5))
    params = {"kernel": normal(6, 5), "bias": normal(5), "lora_a": normal(6, 2)}
    x, rngs = normal(2000, 6), {"dropout": jax.random.key(1)}

    def outputs(b):
        variables = {"params": params | {"lora_b": b}}
        return layer.apply(variables, x), layer.apply(variables, x, False, rngs=rngs)

    still, dropped = outputs(np.zeros((2, 5), np.float32))
    np.testing.assert_array_equal(still, dropped)
    still, dropped = outputs(normal(2, 5, seed=3))
    assert np.abs(still - dropped).max() > 0.1
    np.testing.assert_allclose(still.mean(0), dropped.mean(0), atol=0.3)  # it keeps the mean


@pytest.mark.parametrize("name", ["q", "o"])
def test_lora_targets(name):
    lora = LoraConfig(targets=("q", "v"))
    assert (lora.for_layer(name) is lora) == (name == "q")


def test_rms_norm_equals_transformers():
    theirs, x = LlamaRMSNorm(12, eps=1e-2), normal(3, 12)
    scale = normal(12, seed=1)
    theirs.weight.data = torch.tensor(scale)
    ours = RMSNorm(1e-2).apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(
        ours, theirs(torch.tensor(x)).detach().numpy(), **tolerance("module")
    )


def test_rms_norm_is_computed_wide():
    """Squares of 300 overflow float16 but not the norm."""
    x = jnp.full((1, 8), 300.0, jnp.float16)
    layer = RMSNorm(dtype=jnp.float16)
    ours = layer.apply({"params": {"scale": jnp.ones(8)}}, x)
    assert ours.dtype == jnp.float16
    np.testing.assert_allclose(ours, 1.0, rtol=1e-3)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_attend_equals_torch(heads, masked):
    h, groups = heads
    q, k, v = (
        normal(2, 17, h, 8),
        normal(2, 29, groups, 8, seed=1),
        normal(2, 29, groups, 8, seed=2),
    )
    mask = np.random.default_rng(3).random((2, 17, 29)) < 0.6 if masked else None
    values, weights = attend(q, k, v, mask)
    gold = torch.nn.functional.scaled_dot_product_attention(
        *(torch.tensor(x).transpose(1, 2) for x in (q, k, v)),
        attn_mask=torch.tensor(mask)[:, None] if masked else None,
        enable_gqa=True,
    ).transpose(1, 2)
    np.testing.assert_allclose(values, gold.numpy(), **tolerance("module"))
    assert weights.shape == (2, h, 17, 29)
    np.testing.assert_allclose(weights.sum(-1), 1.0, **tolerance("module"))
    if masked:
        assert not weights[np.broadcast_to(~mask[:, None], weights.shape)].any()
    spread = np.repeat(v, h // groups, axis=2)
    np.testing.assert_allclose(
        np.einsum("bhqs,bshd->bqhd", weights, spread), values, **tolerance("module")
    )


def test_attend_with_nothing_to_see_is_the_mean():
    q, k, v = normal(1, 2, 1, 4), normal(1, 3, 1, 4), normal(1, 3, 1, 4)
    mask = np.array([[[True, False, False], [False, False, False]]])
    values, _ = attend(q, k, v, mask)
    np.testing.assert_allclose(values[0, 0], v[0, 0], **tolerance("module"))
    np.testing.assert_allclose(values[0, 1], v[0].mean(0), **tolerance("module"))
    grad = jax.grad(lambda q: attend(q, k, v, mask)[0].sum())(q)
    assert np.isfinite(grad).all()
