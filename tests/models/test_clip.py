"""CLIP's image tower against transformers' CLIPVisionModelWithProjection with random weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten
from meerkat_jax.models.clip import REMAT, ClipVision, patchify
from tests.tolerances import tolerance
from tests.weights.towers import as_numpy, converted, randomise, shapes

SETUPS = {
    "small": {
        **{"image_size": 48, "patch_size": 8, "width": 32, "depth": 2, "heads": 2},
        **{"mlp_dim": 64, "projection_dim": 24},
    },
    "mini": {
        **{"image_size": 128, "patch_size": 16, "width": 128, "depth": 4, "heads": 4},
        **{"mlp_dim": 512, "projection_dim": 128},
    },
    # Published widths and token grid, 2 layers of the 12 to save seconds.
    "published": {"depth": 2},
}


@functools.cache
def reference(setup: str) -> CLIPVisionModelWithProjection:
    """A torch tower with every parameter random, so that no tensor can be left out unseen."""
    ours = ClipVision(**SETUPS[setup])
    config = CLIPVisionConfig(
        image_size=ours.image_size,
        patch_size=ours.patch_size,
        hidden_size=ours.width,
        num_hidden_layers=ours.depth,
        num_attention_heads=ours.heads,
        intermediate_size=ours.mlp_dim,
        projection_dim=ours.projection_dim,
        attn_implementation="eager",
    )
    return randomise(CLIPVisionModelWithProjection(config))


@functools.cache
def our_params(setup: str) -> dict:
    """That tower's state as our parameter tree."""
    theirs = reference(setup)
    state = as_numpy(theirs.state_dict())
    return converted(ClipVision(**SETUPS[setup]), theirs.config.to_dict(), state)


def pixels_for(model: ClipVision, batch: int = 2) -> np.ndarray:
    shape = (batch, model.image_size, model.image_size, 3)
    return np.random.default_rng(1).standard_normal(shape, np.float32)


@pytest.mark.parametrize("setup", SETUPS)
def test_equals_the_published_tower(setup: str) -> None:
    theirs = reference(setup)
    model = ClipVision(**SETUPS[setup])
    pixels = pixels_for(model)
    got = jax.jit(model.apply)(our_params(setup), pixels)
    with torch.no_grad():
        out = theirs.vision_model(torch.from_numpy(pixels.transpose(0, 3, 1, 2)))
        tokens = theirs.visual_projection(out.last_hidden_state[:, 1:])
        embedding = theirs.visual_projection(out.pooler_output)
    np.testing.assert_allclose(got["hidden"], out.last_hidden_state, **tolerance("stack"))
    np.testing.assert_allclose(got["tokens"], tokens, **tolerance("stack"))
    np.testing.assert_allclose(got["class_token"], out.pooler_output, **tolerance("stack"))
    np.testing.assert_allclose(got["embedding"], embedding, **tolerance("stack"))


@pytest.mark.parametrize("setup", SETUPS)
def test_parameters_are_those_of_the_checkpoint(setup: str) -> None:
    found = flatten(our_params(setup)["params"])
    assert {path: leaf.shape for path, leaf in found.items()} == shapes(ClipVision(**SETUPS[setup]))


def test_default_is_vit_b_16() -> None:
    model = ClipVision()
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 86_192_640
    out = jax.eval_shape(model.apply, params, jnp.zeros((3, 224, 224, 3)))
    assert out["tokens"].shape == (3, 196, 512)


def loss(params: dict, remat: str) -> jax.Array:
    model = ClipVision(**SETUPS["small"], remat=remat)
    return (model.apply(params, pixels_for(model))["tokens"] ** 2).mean()


@functools.cache
def gradient(remat: str) -> dict[str, jax.Array]:
    grad = jax.jit(jax.grad(loss), static_argnums=1)
    return flatten(grad(our_params("small"), remat))


def saved(remat: str) -> int:
    """How many numbers the forward pass keeps for the backward pass."""
    params = our_params("small")
    backward = jax.eval_shape(lambda p: jax.vjp(lambda q: loss(q, remat), p)[1], params)
    return sum(leaf.size for leaf in jax.tree.leaves(backward))


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_remat_leaves_the_gradient_as_it_is(remat: str) -> None:
    for path, leaf in gradient("none").items():
        got = gradient(remat)[path]
        np.testing.assert_allclose(got, leaf, err_msg=path, **tolerance("gradient"))


def test_remat_saves_memory() -> None:
    assert saved("full") < saved("weights") < saved("dots") < saved("none")


def test_tokens_are_patches_row_by_row() -> None:
    size, patch = 48, 8
    pixels = np.zeros((1, size, size, 3), np.float32)
    pixels[0, 2 * patch : 3 * patch, 5 * patch : 6 * patch] = 1  # row 2, column 5 of 6
    touched = np.flatnonzero(np.asarray(patchify(jnp.asarray(pixels), patch)).any(-1))
    assert touched.tolist() == [2 * 6 + 5]

    model, params = ClipVision(**SETUPS["small"]), our_params("small")
    out = jax.jit(model.apply)(params, np.concatenate([np.zeros_like(pixels), pixels]))
    dark, lit = np.asarray(out["embedded"])
    changed = np.flatnonzero(np.abs(lit - dark).max(-1))
    assert changed.tolist() == [1 + 2 * 6 + 5]  # one behind, for the class token


def test_bfloat16_stays_near_float32() -> None:
    params = our_params("small")
    exact, rough = (
        ClipVision(**SETUPS["small"], dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)
    )
    pixels = pixels_for(exact)
    expected = np.asarray(jax.jit(exact.apply)(params, pixels)["tokens"])
    got = jax.jit(rough.apply)(params, pixels)["tokens"]
    assert got.dtype == jnp.bfloat16
    error = np.linalg.norm(np.asarray(got, np.float32) - expected) / np.linalg.norm(expected)
    assert error < tolerance("bfloat16 tower")["rtol"]


@pytest.mark.parametrize(
    ("fields", "side", "message"),
    [
        ({"image_size": 50}, 50, "use 48"),
        ({"heads": 5}, 48, "multiple of heads 5"),
        ({"remat": "some"}, 48, "none, full, weights, dots"),
        ({}, 64, r"\(1, 64, 64, 3\)"),
    ],
)
def test_what_does_not_fit_is_one_clear_error(fields: dict, side: int, message: str) -> None:
    model = ClipVision(**{**SETUPS["small"], **fields})
    with pytest.raises(UserError, match=message):
        model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))
