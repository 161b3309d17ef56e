"""CLIP from the hub's layout on disk against transformers, whole and at the published sizes."""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten
from meerkat_jax.models.clip import ClipLayer, ClipVision
from meerkat_jax.weights import clip
from meerkat_jax.weights.table import published
from tests.weights import towers
from tests.weights.towers import close, mostly_close, run

B_16 = {"patch_size": 16}
B_32 = {"patch_size": 32}
L_14 = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
L_14_336 = L_14 | {"image_size": 336}
SMALL = {
    "image_size": 32, "patch_size": 8, "hidden_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 40, "projection_dim": 20,
}  # fmt: skip
SIZES = {  # as published: image, patch, width, depth, heads, MLP, projection
    "B/32": (B_32, (224, 32, 768, 12, 12, 3072, 512)),
    "B/16": (B_16, (224, 16, 768, 12, 12, 3072, 512)),
    "L/14": (L_14, (224, 14, 1024, 24, 16, 4096, 768)),
    "L/14-336": (L_14_336, (336, 14, 1024, 24, 16, 4096, 768)),
}
LAYERS = "vision_model.encoder.layers"


def whole_config(vision: dict) -> transformers.CLIPConfig:
    return transformers.CLIPConfig(
        text_config=towers.TEXT,
        vision_config=vision,
        projection_dim=vision.get("projection_dim", 512),
    )


class Pair:
    """A checkpoint that was kept in `folder`, in torch and ours, and what both say of images."""

    def __init__(self, folder: Path, vision: dict, batch: int = 2):
        self.theirs = towers.randomise(transformers.CLIPModel(whole_config(vision)))
        self.theirs.save_pretrained(folder)
        self.ours, variables, self.state = towers.read(folder, ClipVision)
        shutil.rmtree(folder)  # up to 350 MB
        self.params = variables["params"]
        shape = (batch, self.ours.image_size, self.ours.image_size, 3)
        self.pixels = np.random.default_rng(1).standard_normal(shape, np.float32)
        tower = self.theirs.vision_model
        layers = {f"layer {i}": layer for i, layer in enumerate(tower.encoder.layers)}
        with towers.watched({"embedded": tower.pre_layrnorm, **layers}) as seen, torch.no_grad():
            out = tower(torch.from_numpy(self.pixels.transpose(0, 3, 1, 2)))
            tokens = self.theirs.visual_projection(out.last_hidden_state[:, 1:])
            embedding = self.theirs.visual_projection(out.pooler_output)
        self.seen = seen
        self.expected = {
            "hidden": out.last_hidden_state, "class_token": out.pooler_output,
            "tokens": tokens, "embedding": embedding,
        }  # fmt: skip
        self.got = jax.device_get(run(self.ours, self.params, self.pixels))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Pair:
    """CLIP-B/16."""
    return Pair(tmp_path_factory.mktemp("clip"), B_16)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Pair:
    return Pair(tmp_path_factory.mktemp("clip"), SMALL)


# ---- weights ----


def test_weights_are_the_same_bits(whole):
    own = whole.theirs.state_dict()
    query = own[f"{LAYERS}.7.self_attn.q_proj.weight"].T
    np.testing.assert_array_equal(whole.params["layers"]["q"]["kernel"][7], query)
    patch = own["vision_model.embeddings.patch_embedding.weight"].permute(2, 3, 1, 0)
    kernel = whole.params["patch_embedding"]["kernel"]
    np.testing.assert_array_equal(kernel, patch.reshape(-1, 768))


def test_the_way_back_gives_every_tensor_of_the_tower(whole):
    back = published(clip.rows({"patch_size": 16, "image_size": 224}), flatten(whole.params))
    kept = {name for name in whole.state if name.startswith("vis")}
    assert back.keys() == kept and len(kept) == 200
    for name, value in back.items():
        np.testing.assert_array_equal(value, whole.state[name], err_msg=name)


def test_old_files_with_position_ids(small):
    old = {
        "vision_model.embeddings.position_ids": np.arange(17)[None],
        "text_model.embeddings.position_ids": np.arange(10)[None],
    }
    config = whole_config(SMALL).to_dict()
    got = flatten(towers.converted(small.ours, config, small.state | old)["params"])
    assert got.keys() == flatten(small.params).keys()


# ---- what is computed ----


def test_patch_embedding(whole):
    close(whole.got["embedded"], whole.seen["embedded"][1], "module")


def test_every_layer(whole):
    layer = ClipLayer(whole.ours.heads, whole.ours.mlp_dim)
    for i in range(12):
        params = jax.tree.map(lambda leaf, i=i: leaf[i], whole.params["layers"])
        x, y = whole.seen[f"layer {i}"]
        close(run(layer, params, x)[0], y, "module", f"layer {i}")


def test_last_norm_and_projection(whole):
    """Torch's modules on our hidden states."""
    hidden = torch.tensor(whole.got["hidden"])
    with torch.no_grad():
        class_token = whole.theirs.vision_model.post_layernorm(hidden[:, 0])
        close(whole.got["class_token"], class_token, "module")
        close(whole.got["tokens"], whole.theirs.visual_projection(hidden[:, 1:]), "module")
        close(whole.got["embedding"], whole.theirs.visual_projection(class_token), "module")


def test_stack(whole):
    for name, expected in whole.expected.items():
        close(whole.got[name], expected, "stack", name)


def test_bfloat16(whole):
    got = run(whole.ours.clone(dtype=jnp.bfloat16), whole.params, whole.pixels)
    for name, expected in whole.expected.items():
        assert got[name].dtype == jnp.bfloat16
        mostly_close(got[name], expected, "bfloat16 tower")


@pytest.mark.parametrize("vision", [B_32, L_14_336], ids=["B/32", "L/14-336"])
def test_other_sizes(vision, tmp_path):
    pair = Pair(tmp_path / "clip", vision | {"num_hidden_layers": 1}, batch=1)
    close(pair.got["embedded"], pair.seen["embedded"][1], "module")
    for name, expected in pair.expected.items():
        close(pair.got[name], expected, "stack", name)


def test_gradients(small):
    weight = np.random.default_rng(2).standard_normal(small.got["tokens"].shape, np.float32)

    def loss(params, pixels):
        return (run(small.ours, params, pixels)["tokens"] * weight).sum()

    grads, by_pixels = jax.jit(jax.grad(loss, (0, 1)))(small.params, small.pixels)
    pixels = torch.from_numpy(small.pixels.transpose(0, 3, 1, 2)).requires_grad_()
    hidden = small.theirs.vision_model(pixels).last_hidden_state
    (small.theirs.visual_projection(hidden[:, 1:]) * torch.from_numpy(weight)).sum().backward()
    size = float(pixels.grad.abs().max())
    close(by_pixels.transpose(0, 3, 1, 2) / size, pixels.grad / size, "leaf gradient")
    theirs = dict(small.theirs.named_parameters())
    for name, grad in published(
        clip.rows({"patch_size": 8, "image_size": 32}), jax.device_get(flatten(grads))
    ).items():
        if "post_layernorm" in name:  # of the class token alone
            assert theirs[name].grad is None and not grad.any()
            continue
        # A constant on every key moves all scores alike: the key bias has no gradient but noise.
        size = float(theirs[name.replace("k_proj.bias", "q_proj.bias")].grad.abs().max())
        close(grad / size, theirs[name].grad / size, "leaf gradient", name)


# ---- positions ----


@pytest.mark.parametrize("side", [48, 24])
def test_pictures_of_another_size(side, small):
    places = clip.resize_positions(small.params["position_embedding"], side // 8)
    pixels = np.random.default_rng(1).standard_normal((2, side, side, 3), np.float32)
    ours = small.ours.clone(image_size=side)
    got = run(ours, small.params | {"position_embedding": places}, pixels)
    with torch.no_grad():
        expected = small.theirs.vision_model(
            torch.from_numpy(pixels.transpose(0, 3, 1, 2)), interpolate_pos_encoding=True
        )
    close(got["hidden"], expected.last_hidden_state, "stack")


@pytest.mark.parametrize(("grid", "side"), [(24, 16), (14, 24), (7, 14), (16, 24)])
def test_positions_are_those_of_torch(grid, side):
    table = np.random.default_rng(0).standard_normal((1 + grid**2, 8), np.float32)
    square = torch.from_numpy(table[1:]).T.reshape(1, 8, grid, grid)
    expected = torch.nn.functional.interpolate(square, (side, side), mode="bicubic")
    got = clip.resize_positions(table, side)
    np.testing.assert_array_equal(got[0], table[0])
    close(got[1:], expected[0].flatten(1).T, "module")


def test_positions_of_the_same_size_stay():
    table = np.random.default_rng(0).standard_normal((17, 8)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(clip.resize_positions(table, 4), table)
    assert clip.resize_positions(table, 6).dtype == jnp.bfloat16
    with pytest.raises(UserError, match="18 rows"):
        clip.resize_positions(np.zeros((18, 8)), 4)


# ---- configs ----


@pytest.mark.parametrize("name", SIZES)
def test_fields_are_those_of_the_config(name):
    vision, sizes = SIZES[name]
    names = ("image_size", "patch_size", "width", "depth", "heads", "mlp_dim", "projection_dim")
    expected = dict(zip(names, sizes, strict=True))
    whole = whole_config(vision).to_dict()
    assert clip.fields(whole, "x") == expected
    alone = transformers.CLIPVisionConfig(**vision).to_dict()
    assert clip.fields(alone, "x") == expected
    shortened = {"model_type": "clip", "vision_config": vision} | {
        key: vision[key] for key in ("projection_dim",) if key in vision
    }
    assert clip.fields(shortened, "x") == expected  # class defaults fill what is not there
    old = whole | {"vision_config_dict": vision, "vision_config": {"patch_size": 99}}
    assert clip.fields(old, "x") == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "vision_config.hidden_act is 'gelu', supported: 'quick_gelu'"),
        ({"layer_norm_eps": 1e-6}, "vision_config.layer_norm_eps is 1e-06, supported: 1e-05"),
        ({"num_channels": 4}, "vision_config.num_channels is 4, supported: 3"),
        ({"hidden_size": 0}, "vision_config.hidden_size is 0, expected a whole number"),
        ({"image_size": [224, 224]}, "vision_config.image_size is [224, 224], expected a whole"),
        ({"num_hidden_layers": None}, "vision_config.num_hidden_layers is None, expected a whole"),
        ({"patch_size": 15}, "vision_config.image_size is 224, expected a multiple of patch_size"),
        ({"num_attention_heads": 7}, "a multiple of num_attention_heads, which is 7"),
    ],
)
def test_a_config_that_is_not_supported_is_refused_by_name(change, message):
    config = {"model_type": "clip", "vision_config": B_16 | change}
    with pytest.raises(UserError) as error:
        clip.fields(config, "some/config.json")
    assert str(error.value).startswith("some/config.json: ") and message in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "siglip"}, "model_type is 'siglip', expected 'clip' or"),
        ({"vision_config": {}}, "model_type is None"),
        ({"model_type": "clip", "vision_config": 3}, "vision_config is 3, expected an object"),
        ({"model_type": "clip", "projection_dim": "x"}, "x: projection_dim is 'x'"),
    ],
)
def test_a_config_of_something_else_is_refused(config, message):
    with pytest.raises(UserError) as error:
        clip.fields(config, "x")
    assert message in str(error.value)


def test_all_refusals_come_at_once():
    config = {"model_type": "clip_vision_model", "hidden_act": "gelu", "num_channels": 1}
    with pytest.raises(UserError, match="hidden_act.*num_channels"):
        clip.fields(config, "x")
