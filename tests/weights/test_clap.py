"""CLAP from the hub's layout on disk against transformers, whole and at the published sizes."""

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
from meerkat_jax.models.clap import BatchNorm, ClapAudio, FusionGate
from meerkat_jax.models.swin import PatchMerging, SwinBlock
from meerkat_jax.weights import clap
from meerkat_jax.weights.table import plan, published
from tests.weights import towers
from tests.weights.towers import close, mostly_close, run

LONGER = np.array([True, False])
LARGER = {  # larger_clap_general and its like
    "patch_embeds_hidden_size": 128, "hidden_size": 1024, "depths": [2, 2, 12, 2],
}  # fmt: skip
BASE = {
    "spec_size": 256, "mel_bins": 64, "patch_size": 4, "width": 96, "depths": (2, 2, 6, 2),
    "heads": (4, 8, 16, 32), "window_size": 8, "mlp_ratio": 4.0, "gate_ratio": 4,
}  # fmt: skip
ENCODER = "audio_model.audio_encoder."
# Half of the compiler's time, of the same program.
QUICK = {"xla_backend_optimization_level": 0}


def whole_config(audio: dict) -> transformers.ClapConfig:
    return transformers.ClapConfig(text_config=towers.TEXT, audio_config=audio)


def tokens_of(last_hidden_state: torch.Tensor) -> torch.Tensor:
    return last_hidden_state.flatten(2).mT


class Pair:
    """A checkpoint that was kept in `folder`, in torch and ours, and what both say of sounds."""

    def __init__(self, folder: Path, audio: dict):
        self.theirs = towers.randomise(transformers.ClapModel(whole_config(audio)))
        self.theirs.save_pretrained(folder)
        self.ours, variables, self.state = towers.read(folder, ClapAudio)
        shutil.rmtree(folder)
        self.params = variables["params"]
        views = 4 if self.ours.fused else 1
        rng = np.random.default_rng(1)
        self.mel = rng.normal(-40, 15, (2, views, 1001, 64)).astype(np.float32)
        self.encoder = self.theirs.audio_model.audio_encoder
        with towers.watched(self._modules()) as self.seen, torch.no_grad():
            self.out = self.encoder(
                torch.from_numpy(self.mel), is_longer=torch.from_numpy(LONGER[:, None])
            )
        self.got = self.say(self.ours)

    def _modules(self) -> dict[str, torch.nn.Module]:
        """torch's modules by the path of ours."""
        encoder = self.encoder
        found = {"mel_norm": encoder.batch_norm, "patch_embed": encoder.patch_embed}
        for s, stage in enumerate(encoder.layers):
            found |= {f"stage_{s}/block_{b}": block for b, block in enumerate(stage.blocks)}
            if stage.downsample is not None:
                found[f"merge_{s}"] = stage.downsample
        return found

    def say(self, ours: ClapAudio) -> dict:
        inputs = (self.mel, LONGER) if ours.fused else (self.mel[:, 0],)
        program = jax.jit(ours.apply).lower({"params": self.params}, *inputs)
        return program.compile(QUICK)({"params": self.params}, *inputs)

    def leaves(self, path: str) -> dict:
        node = self.params
        for name in path.split("/"):
            node = node[name]
        return node


@pytest.fixture(scope="module", params=[True, False], ids=["fused", "unfused"])
def whole(request, tmp_path_factory) -> Pair:
    """clap-htsat-fused and clap-htsat-unfused."""
    return Pair(tmp_path_factory.mktemp("clap"), {"enable_fusion": request.param})


# ---- weights ----


def test_weights_are_the_same_bits(whole):
    own = whole.theirs.state_dict()
    query = own[f"{ENCODER}layers.2.blocks.5.attention.self.query.weight"]
    np.testing.assert_array_equal(whole.leaves("stage_2/block_5/attention/q/kernel"), query.T)
    patch = own[f"{ENCODER}patch_embed.proj.weight"].permute(2, 3, 1, 0)
    np.testing.assert_array_equal(whole.leaves("patch_embed/projection/kernel"), patch)
    variance = own[f"{ENCODER}batch_norm.running_var"]
    np.testing.assert_array_equal(whole.leaves("mel_norm/bn_var"), variance)


def test_the_way_back_gives_every_tensor_of_the_tower(whole):
    back = published(clap.rows({"window_size": 8}), flatten(whole.params))
    follows = ("relative_position_index", "num_batches_tracked")  # from sizes, or has no use
    names = {name for name in whole.state if name.startswith(ENCODER)}
    assert len(names) == (266 if whole.ours.fused else 236)
    assert back.keys() == {name for name in names if not name.endswith(follows)}
    for name, value in back.items():
        np.testing.assert_array_equal(value, whole.state[name], err_msg=name)


# ---- what is computed ----


def test_mel_norm(whole):
    x, y = (value.swapaxes(1, 3) for value in whole.seen["mel_norm"])  # torch has bins second
    close(run(BatchNorm(), whole.leaves("mel_norm"), x), y, "module")


def test_patch_embedding_and_fusion(whole):
    expected = whole.seen["patch_embed"][1]
    close(np.reshape(whole.got["patches"], expected.shape), expected, "module")


def test_every_block_and_merging(whole):
    for path, (x, y) in whole.seen.items():
        if not path.startswith(("stage", "merge")):
            continue
        side = int(x.shape[1] ** 0.5)
        stage = int(path.split("/")[0].split("_")[1])
        shift = 4 if path.endswith(("1", "3", "5")) and side > 8 else 0
        block = SwinBlock(whole.ours.heads[stage], 8, shift)
        module = PatchMerging() if path.startswith("merge") else block
        got = run(module, whole.leaves(path), x.reshape(len(x), side, side, -1))
        close(np.reshape(got, y.shape), y, "module", path)


def test_stack(whole):
    for s, stage in enumerate(whole.got["stages"]):
        expected = whole.seen[f"stage_{s}/block_{whole.ours.depths[s] - 1}"][1]
        close(np.reshape(stage, expected.shape), expected, "stack", f"stage {s}")
    close(whole.got["tokens"], tokens_of(whole.out.last_hidden_state), "stack", "tokens")
    close(whole.got["pooled"], whole.out.pooler_output, "stack", "pooled")
    assert whole.got["tokens"].shape == (2, 64, 768)


def test_bfloat16(whole):
    if not whole.ours.fused:
        pytest.skip("the fused tower holds all of the other")
    got = whole.say(whole.ours.clone(dtype=jnp.bfloat16))
    assert got["tokens"].dtype == jnp.bfloat16
    mostly_close(got["tokens"], tokens_of(whole.out.last_hidden_state), "bfloat16 tower")
    mostly_close(got["pooled"], whole.out.pooler_output, "bfloat16 tower")


def test_fusion_gate(tmp_path):
    """The gate alone, of another width and ratio."""
    config = transformers.ClapAudioConfig(
        enable_fusion=True, patch_embeds_hidden_size=24, aff_block_r=3, depths=[1],
        num_attention_heads=[2], hidden_size=24,
    )  # fmt: skip
    theirs = towers.randomise(transformers.ClapAudioModel(config))
    theirs.save_pretrained(tmp_path)
    ours, variables, _ = towers.read(tmp_path, ClapAudio)  # names without audio_model.
    x, y = np.random.default_rng(0).normal(size=(2, 2, 5, 7, 24)).astype(np.float32)
    got = run(FusionGate(ours.gate_ratio), variables["params"]["patch_embed"]["fusion"], x, y)
    with torch.no_grad():
        inputs = (torch.from_numpy(value).permute(0, 3, 1, 2) for value in (x, y))
        expected = theirs.audio_encoder.patch_embed.fusion_model(*inputs)
    close(got, expected.permute(0, 2, 3, 1), "module")


def test_larger_widths(tmp_path):
    shallow = {"depths": [1, 1], "num_attention_heads": [4, 8], "hidden_size": 256}
    pair = Pair(tmp_path / "clap", LARGER | shallow)
    assert pair.ours.width == 128
    close(pair.got["tokens"], tokens_of(pair.out.last_hidden_state), "stack")


# ---- configs ----


@pytest.mark.parametrize(
    ("audio", "expected"),
    [
        ({}, BASE | {"fused": False}),
        ({"enable_fusion": True, "fusion_type": "aff_2d"}, BASE | {"fused": True}),
        (LARGER, BASE | {"fused": False, "width": 128, "depths": (2, 2, 12, 2)}),
        ({"patch_size": [8, 8], "patch_stride": [8, 8], "depths": [2, 2, 6], "aff_block_r": 2,
          "num_attention_heads": [4, 8, 16], "mlp_ratio": 2.0},
         BASE | {"fused": False, "patch_size": 8, "depths": (2, 2, 6), "heads": (4, 8, 16),
                 "mlp_ratio": 2.0, "gate_ratio": 2}),
    ],
    ids=["unfused", "fused", "larger", "coarse"],
)  # fmt: skip
def test_fields_are_those_of_the_config(audio, expected):
    assert clap.fields(whole_config(audio).to_dict(), "x") == expected
    assert clap.fields(transformers.ClapAudioConfig(**audio).to_dict(), "x") == expected
    # class defaults fill what is not there
    assert clap.fields({"model_type": "clap", "audio_config": audio}, "x") == expected


@pytest.mark.parametrize("audio", [LARGER, LARGER | {"enable_fusion": True}])
def test_every_tensor_of_the_larger_towers_has_its_place(audio):
    with torch.device("meta"):
        state = transformers.ClapModel(whole_config(audio)).state_dict()
    ours = ClapAudio(**clap.fields(whole_config(audio).to_dict(), "x"))
    found = {name: tuple(value.shape) for name, value in state.items()}
    assert len(plan(clap.rows({"window_size": 8}), found, towers.shapes(ours), "x")) == len(
        towers.shapes(ours)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, "audio_config.hidden_act is 'relu', supported: 'gelu'"),
        ({"layer_norm_eps": 1e-12}, "audio_config.layer_norm_eps is 1e-12, supported: 1e-05"),
        ({"qkv_bias": False}, "audio_config.qkv_bias is False, supported: True"),
        ({"enable_patch_layer_norm": False}, "audio_config.enable_patch_layer_norm is False"),
        ({"flatten_patch_embeds": False}, "audio_config.flatten_patch_embeds is False"),
        ({"patch_embed_input_channels": 4}, "audio_config.patch_embed_input_channels is 4"),
        ({"fusion_type": "channel_map"}, "audio_config.fusion_type is 'channel_map', supported"),
        ({"enable_fusion": "yes"}, "audio_config.enable_fusion is 'yes', supported: False or True"),
        ({"patch_stride": [4, 2]}, "audio_config.patch_stride is [4, 2], expected a whole number"),
        ({"patch_stride": 2}, "audio_config.patch_stride is 2, supported: patch_size, which is 4"),
        ({"patch_size": 0}, "audio_config.patch_size is 0, expected a whole number above 0"),
        ({"depths": []}, "audio_config.depths is [], expected a list of whole numbers"),
        ({"depths": 12}, "audio_config.depths is 12, expected a list"),
        ({"num_attention_heads": [4, 8]}, "num_attention_heads is [4, 8], expected 4 numbers"),
        ({"num_attention_heads": [4, 8, 16, 5]}, "multiple of num_attention_heads[3], which is 5"),
        ({"mlp_ratio": 0}, "audio_config.mlp_ratio is 0, expected a number above 0"),
        ({"num_mel_bins": 80}, "spec_size is 256, expected a multiple of num_mel_bins"),
        ({"spec_size": 128, "num_mel_bins": 16}, "num_mel_bins is 16, expected a multiple of"),
        ({"window_size": 16}, "spec_size is 256, expected a multiple of the last stage's window"),
    ],
)
def test_a_config_that_is_not_supported_is_refused_by_name(change, message):
    config = {"model_type": "clap", "audio_config": change}
    with pytest.raises(UserError) as error:
        clap.fields(config, "some/config.json")
    assert str(error.value).startswith("some/config.json: audio_config.")
    assert message in str(error.value)


def test_a_config_of_something_else_is_refused():
    with pytest.raises(UserError, match="x: model_type is 'clip', expected 'clap' or"):
        clap.fields({"model_type": "clip"}, "x")
