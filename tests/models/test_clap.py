"""CLAP's audio tower against transformers' ClapAudioModel with random weights, piece by piece."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import ClapAudioConfig, ClapAudioModel

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import STATISTICS, flatten
from meerkat_jax.models.clap import BatchNorm, ClapAudio, mel_to_image, resize_frames
from meerkat_jax.models.swin import (
    PatchMerging,
    SwinBlock,
    SwinStage,
    join_windows,
    shift_mask,
    split_windows,
)
from meerkat_jax.weights import clap
from meerkat_jax.weights.table import published
from tests.tolerances import tolerance
from tests.weights.towers import as_numpy, converted, randomise, shapes

SMALL = {"patch_size": 8, "width": 32, "heads": (2, 4, 8)}
# Published widths, heads and token grids. Depths are cut (6 blocks to 2, and to 1 where the other
# real tower has the block): the published depths would spend half a minute in the compiler.
SETUPS = {
    "small": {**SMALL, "depths": (2, 2, 2), "fused": False},
    "small-fused": {**SMALL, "depths": (2, 1, 1), "fused": True},
    "real": {"depths": (1, 1, 1, 1), "fused": False},
    "real-fused": {"depths": (2, 2, 2, 2), "fused": True},
}
LONGER = np.array([True, False, True])
WHOLE = "audio_model."  # before names in a whole CLAP


def published_config(ours: ClapAudio) -> ClapAudioConfig:
    return ClapAudioConfig(
        spec_size=ours.spec_size,
        patch_size=ours.patch_size,
        patch_stride=[ours.patch_size] * 2,
        patch_embeds_hidden_size=ours.width,
        hidden_size=ours.features,
        depths=list(ours.depths),
        num_attention_heads=list(ours.heads),
        enable_fusion=ours.fused,
    )


@functools.cache
def pair(name: str) -> tuple[ClapAudio, dict, ClapAudioModel]:
    """(our module, its parameters, transformers' model), with weights large enough to matter."""
    ours = ClapAudio(**SETUPS[name])
    theirs = randomise(ClapAudioModel(published_config(ours)))
    state = as_numpy(theirs.state_dict(), WHOLE)
    return ours, converted(ours, theirs.config.to_dict(), state), theirs


def log_mel(name: str, frames: int = 1001) -> np.ndarray:
    """Random log-mels in dB, float32[3, views, frames, 64]."""
    views = 4 if SETUPS[name]["fused"] else 1
    rng = np.random.default_rng(1)
    return rng.normal(-40, 15, (3, views, frames, 64)).astype(np.float32)


def our_input(mel: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    return (mel, LONGER) if mel.shape[1] == 4 else (mel[:, 0], None)


@functools.cache
def our_run(name: str) -> dict[str, np.ndarray]:
    ours, params, _ = pair(name)
    return jax.device_get(jax.jit(ours.apply)(params, *our_input(log_mel(name))))


def their_tokens(last_hidden_state: torch.Tensor) -> torch.Tensor:
    return last_hidden_state.flatten(2).mT


@functools.cache
def their_run(name: str) -> dict[str, np.ndarray]:
    """transformers' intermediates for `log_mel(name)`."""
    _, _, theirs = pair(name)
    with torch.no_grad():
        encoder = theirs.audio_encoder
        out = encoder(
            torch.tensor(log_mel(name)),
            is_longer=torch.tensor(LONGER)[:, None],
            output_hidden_states=True,
            output_hidden_states_before_downsampling=True,
        )
    maps = [h.permute(0, 2, 3, 1).numpy() for h in out.hidden_states]
    return {
        "patches": maps[0],
        "stages": maps[1:],
        "tokens": their_tokens(out.last_hidden_state).numpy(),
        "pooled": out.pooler_output.numpy(),
    }


@pytest.mark.parametrize("fused", [True, False])
def test_tree_has_one_leaf_per_published_tensor(fused: bool) -> None:
    ours = ClapAudio(fused=fused)
    with torch.device("meta"):
        theirs = ClapAudioModel(published_config(ours))
    state = {WHOLE + name: np.empty(value.shape) for name, value in theirs.state_dict().items()}
    found = flatten(converted(ours, theirs.config.to_dict(), state)["params"])
    assert {path: leaf.shape for path, leaf in found.items()} == shapes(ours)


@pytest.mark.parametrize("source,target", [(1001, 1024), (501, 1024), (7, 20), (2, 5), (1, 3)])
def test_resize_is_torch_bicubic(source: int, target: int) -> None:
    mel = np.random.default_rng(0).normal(-40, 15, (2, 1, source, 8)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.tensor(mel), (target, 8), mode="bicubic", align_corners=True
    )
    got = jax.jit(resize_frames, static_argnums=1)(mel, target)
    np.testing.assert_allclose(got, expected, **tolerance("resize"))


def test_resize_keeps_a_full_input() -> None:
    mel = np.random.default_rng(0).normal(size=(2, 16, 8)).astype(np.float32)
    np.testing.assert_array_equal(resize_frames(mel, 16), mel)


@pytest.mark.parametrize("name", ["small", "small-fused"])
def test_image_is_the_published_fold(name: str) -> None:
    ours, _, theirs = pair(name)
    mel = log_mel(name, ours.frames)
    expected = theirs.audio_encoder.reshape_mel2img(torch.tensor(mel))
    np.testing.assert_array_equal(mel_to_image(mel, ours.fold), expected)


@pytest.mark.parametrize("name", SETUPS)
def test_tower(name: str) -> None:
    ours, _, _ = pair(name)
    got, expected = our_run(name), their_run(name)
    np.testing.assert_allclose(got["patches"], expected["patches"], **tolerance("module"))
    for mine, theirs in zip(got["stages"], expected["stages"], strict=True):
        np.testing.assert_allclose(mine, theirs, **tolerance("stack"))
    np.testing.assert_allclose(got["tokens"], expected["tokens"], **tolerance("stack"))
    np.testing.assert_allclose(got["pooled"], expected["pooled"], **tolerance("stack"))
    assert tuple(map(int, got["grid"])) == ours.grid == (2, 32)
    assert got["tokens"].shape == (3, 64, ours.features)


@pytest.mark.parametrize("block", [0, 1], ids=["plain", "shifted"])
@pytest.mark.parametrize("stage,side", [(0, 64), (3, 8)], ids=["windows", "one-window"])
def test_block(stage: int, side: int, block: int) -> None:
    ours, params, theirs = pair("real-fused")
    heads, width = ours.heads[stage], ours.width * 2**stage
    x = np.random.default_rng(2).normal(size=(2, side, side, width)).astype(np.float32)
    shift = 4 if block and side > 8 else 0
    module = SwinBlock(heads, 8, shift)
    got = module.apply({"params": params["params"][f"stage_{stage}"][f"block_{block}"]}, x)
    layer = theirs.audio_encoder.layers[stage].blocks[block]
    with torch.no_grad():
        expected = layer(torch.tensor(x).flatten(1, 2), (side, side))[0]
    np.testing.assert_allclose(got, expected.reshape(x.shape), **tolerance("block"))


def test_stage_and_merging() -> None:
    ours, params, theirs = pair("real-fused")
    x = np.random.default_rng(3).normal(size=(2, 32, 32, 192)).astype(np.float32)
    stage = SwinStage(2, ours.heads[1], 8).apply({"params": params["params"]["stage_1"]}, x)
    merged = PatchMerging().apply({"params": params["params"]["merge_1"]}, stage)
    with torch.no_grad():
        out = theirs.audio_encoder.layers[1](torch.tensor(x).flatten(1, 2), (32, 32))
    np.testing.assert_allclose(stage, out[1].reshape(x.shape), **tolerance("stack"))
    np.testing.assert_allclose(merged, out[0].reshape(merged.shape), **tolerance("stack"))


def test_gradients() -> None:
    ours, params, theirs = pair("small-fused")
    mel = log_mel("small-fused")
    weight = np.random.default_rng(4).normal(size=(3, 64, ours.features)).astype(np.float32)

    def loss(params: dict, mel: jax.Array) -> jax.Array:
        return (ours.apply(params, *our_input(mel))["tokens"] * weight).mean()

    # A constant on every key moves all scores alike, so the key bias has no gradient but noise.
    by_params, by_mel = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, mel)
    x = torch.tensor(mel, requires_grad=True)
    out = theirs(x, is_longer=torch.tensor(LONGER)[:, None]).last_hidden_state
    theirs.zero_grad()
    (their_tokens(out) * torch.tensor(weight)).mean().backward()
    grads = {k: p.grad for k, p in theirs.named_parameters() if p.grad is not None}
    expected = as_numpy(grads, WHOLE)
    got = published(clap.rows({"window_size": 8}), jax.device_get(flatten(by_params["params"])))
    statistics = {name for name in got if "running_" in name}
    assert got.keys() - statistics == expected.keys()
    for name, value in expected.items():
        size = np.abs(expected[name.replace("key.bias", "query.bias")]).max()
        np.testing.assert_allclose(
            got[name] / size, value / size, **tolerance("tower gradient"), err_msg=name
        )
    size = float(x.grad.abs().max())
    np.testing.assert_allclose(by_mel / size, x.grad / size, **tolerance("tower gradient"))
    assert not any(np.any(got[name]) for name in statistics)


def test_crops_count_only_for_longer_clips() -> None:
    ours, params, _ = pair("small-fused")
    mel = log_mel("small-fused")
    other = mel.copy()
    other[:, 1:] += 10.0

    @jax.jit
    def embed(mel: jax.Array, longer: jax.Array | None = None) -> jax.Array:
        return ours.apply(params, mel, longer)["patches"]

    a, b = np.asarray(embed(mel, LONGER)), np.asarray(embed(other, LONGER))
    changed = np.abs(a - b).max(axis=(1, 2, 3)) > 1e-3
    np.testing.assert_array_equal(changed, LONGER)
    plain = embed(mel[:, 0])  # one view: no clip is longer
    np.testing.assert_allclose(plain[1], a[1], **tolerance("module"))
    assert np.abs(plain[0] - a[0]).max() > 1e-3


def test_statistics_start_where_told() -> None:
    x = np.random.default_rng(0).normal(-40, 15, (2000, 8))
    y, params = BatchNorm(mean=-40.0, var=225.0).init_with_output(jax.random.key(0), x)
    assert set(params["params"]) == {"scale", "bias", *STATISTICS}
    np.testing.assert_allclose(y, (x + 40) / 15, **tolerance("module"))


def test_bfloat16_follows_float32() -> None:
    ours, params, _ = pair("small")
    half = ours.clone(dtype=jnp.bfloat16)
    got = jax.jit(half.apply)(params, log_mel("small")[:, 0])["tokens"]
    assert got.dtype == jnp.bfloat16
    expected = their_run("small")["tokens"]
    error = np.linalg.norm(np.asarray(got, np.float32) - expected) / np.linalg.norm(expected)
    assert error < tolerance("bfloat16 tower")["rtol"]


@pytest.mark.parametrize("height,width,window", [(8, 8, 4), (8, 12, 4), (6, 6, 2)])
def test_windows_come_back(height: int, width: int, window: int) -> None:
    x = np.arange(2 * height * width * 3).reshape(2, height, width, 3)
    windows = split_windows(x, window)
    np.testing.assert_array_equal(windows[0, 1], x[0, :window, window : 2 * window].reshape(-1, 3))
    np.testing.assert_array_equal(join_windows(windows, height, width), x)


def test_shift_mask_keeps_old_neighbours() -> None:
    """After the roll two tokens may attend exactly if less than a window apart before it."""
    size, window, shift = 8, 4, 2
    place = np.stack(np.meshgrid(*[np.arange(size)] * 2, indexing="ij"), -1)
    rolled = np.roll(place, (-shift, -shift), axis=(0, 1))
    windows = split_windows(rolled[None], window)[0]
    apart = np.abs(windows[:, :, None] - windows[:, None]).max(-1)
    np.testing.assert_array_equal(shift_mask(size, size, window, shift) == 0, apart < window)


@pytest.mark.parametrize(
    "sizes",
    [
        {
            "spec_size": 128,
            "mel_bins": 64,
            "patch_size": 8,
            "depths": (1, 1),
            "heads": (2, 4),
        },
        {
            "spec_size": 64,
            "mel_bins": 32,
            "patch_size": 8,
            "depths": (1, 1),
            "heads": (2, 4),
        },
    ],
    ids=["two-folds", "grid-below-window"],
)
def test_other_sizes(sizes: dict) -> None:
    ours = ClapAudio(**sizes, width=16, fused=False)
    mel = jnp.ones((2, ours.frames // 2, ours.mel_bins))
    out, _ = jax.eval_shape(ours.init_with_output, jax.random.key(0), mel)
    assert out["tokens"].shape == (2, ours.grid[0] * ours.grid[1], ours.features)


def test_grid_below_the_window_is_one_window() -> None:
    x = np.random.default_rng(5).normal(size=(1, 4, 4, 8)).astype(np.float32)
    got, params = SwinStage(2, 2, window=8).init_with_output(jax.random.key(0), x)
    assert params["params"]["block_1"]["attention"]["relative_bias"].shape == (49, 2)
    np.testing.assert_array_equal(got, SwinStage(2, 2, window=4).apply(params, x))


@pytest.mark.parametrize(
    "sizes,shape,words",
    [
        ({}, (1, 1001, 80), "80"),
        ({}, (1, 1025, 64), "1024"),
        ({}, (1, 4, 1001, 64), "expected"),
        ({"fused": True}, (1, 4, 1001, 64), "longer"),
        ({"fused": True}, (1, 1, 1001, 64), "4"),
        ({"spec_size": 250}, (1, 1001, 64), "spec_size=250"),
        ({"window_size": 7}, (1, 1001, 64), "window_size=7"),
        ({"heads": (2, 4)}, (1, 1001, 64), "heads"),
        ({"heads": (2, 5, 8)}, (1, 1001, 64), "heads"),
    ],
)
def test_misfits_are_named(sizes: dict, shape: tuple[int, ...], words: str) -> None:
    ours = ClapAudio(**{**SETUPS["small"], **sizes})
    with pytest.raises(UserError, match=re.escape(words)):
        jax.eval_shape(ours.init, jax.random.key(0), jnp.zeros(shape))
