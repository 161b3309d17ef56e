"""LAION's CLAP files: made from a transformers model by the inverse, read back to the same bits."""

import re

import numpy as np
import pytest
import torch
import transformers

from meerkat_jax.weights import clap
from meerkat_jax.weights.open import open_source
from tests.weights import published
from tests.weights.checks import assert_same, refusal

ENCODER = "audio_model.audio_encoder."
KEPT = (ENCODER, "audio_projection.")
THEIRS = (  # the hub's part of a name -> LAION's
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".attention.output.dense.", ".attn.proj."),
    (".attention.self.", ".attn."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    (".batch_norm.", ".bn0."),
    (".linear1.", ".0."),
    (".linear2.", ".2."),
)


def laion_state(state):
    """LAION's state dict of a hub ClapModel's, with all that is to be dropped."""
    found = {
        "text_branch.embeddings.position_ids": torch.arange(4),
        "text_transform.sequential.0.weight": torch.ones(2, 2),
        "audio_transform.sequential.0.weight": torch.ones(2, 2),
        "text_projection.0.weight": torch.ones(2, 2),
        "logit_scale_a": torch.tensor(1.0),
        "audio_branch.spectrogram_extractor.stft.conv_real.weight": torch.ones(2, 1, 4),
        "audio_branch.logmel_extractor.melW": torch.ones(2, 3),
        "audio_branch.tscam_conv.weight": torch.ones(2, 2, 2, 3),
        "audio_branch.head.weight": torch.ones(2, 2),
        "audio_branch.layers.0.blocks.1.attn_mask": torch.zeros(4, 4, 4),
    }
    for name, value in state.items():
        if not name.startswith(KEPT):
            continue
        for ours, theirs in THEIRS:
            name = name.replace(ours, theirs)
        name = name.replace("audio_model.audio_encoder.", "audio_branch.")
        if ".attn.query." in name:
            parts = [_part(state, name, part) for part in ("query", "key", "value")]
            found[name.replace(".query.", ".qkv.")] = torch.cat(parts)
        elif not re.search(r"\.attn\.(key|value)\.", name):
            found[name] = value
    return found


def _part(state, name, part):
    name = name.replace("audio_branch.", ENCODER).replace(
        ".attn.query.", f".attention.self.{part}."
    )
    return state[name]


def kept(state):
    return {name: value for name, value in state.items() if name.startswith(KEPT)}


def write(file, state):
    """A training checkpoint as LAION's trainer saves it, numpy's learning rate included."""
    groups = [{"lr": np.float64(1e-4), "params": [0]}]
    inner = {f"module.{name}": value for name, value in laion_state(state).items()}
    torch.save({"epoch": 45, "name": "x", "state_dict": inner, "optimizer": groups}, file)
    return file


@pytest.mark.parametrize("fused", [True, False])
def test_names_and_numbers_are_those_of_the_hub(fused, tmp_path):
    model = published.clap(tmp_path / "hub", fused)
    source = open_source(write(tmp_path / "630k-best.pt", model.state_dict()), "clap")
    assert_same(source, kept(model.state_dict()))
    theirs, found = model.config, source.config
    assert (found["model_type"], found["projection_dim"]) == ("clap", theirs.projection_dim)
    for key, value in found["audio_config"].items():
        expected = getattr(theirs.audio_config, key)
        expected = list(expected) if isinstance(value, list) else expected
        if key == "fusion_type":  # a hub config may leave it out; a fused model is always of aff_2d
            expected = "aff_2d" if fused else None
        assert value == expected, key
    hub = open_source(tmp_path / "hub", "clap").config
    assert clap.fields(found, "") == clap.fields(hub, "")


@pytest.mark.parametrize(("width", "depths"), [(96, [2, 2, 6, 2]), (128, [2, 2, 12, 2])])
def test_size_is_read_off_the_shapes(width, depths, tmp_path):
    config = transformers.ClapAudioConfig(
        patch_embeds_hidden_size=width, depths=depths, hidden_size=width * 8
    )
    with torch.device("meta"):
        state = transformers.ClapAudioModel(config).state_dict()
    zero = torch.zeros((), dtype=torch.uint8)  # shapes without the megabytes
    state = {f"audio_model.{name}": zero.expand(value.shape) for name, value in state.items()}
    torch.save({"state_dict": laion_state(state)}, tmp_path / "clap.pt")
    audio = open_source(tmp_path, "clap").config["audio_config"]  # the folder holds just that file
    assert (audio["patch_embeds_hidden_size"], audio["depths"]) == (width, depths)
    assert audio["hidden_size"] == 8 * width and audio["num_attention_heads"] == [4, 8, 16, 32]
    assert audio["enable_fusion"] is False and audio["window_size"] == 8


def test_a_bare_state_dict(tmp_path):
    state = published.clap(tmp_path / "hub").state_dict()
    torch.save(laion_state(state), tmp_path / "bare.pt")
    assert_same(open_source(tmp_path / "bare.pt", "clap"), kept(state))


def test_another_audio_branch(tmp_path):
    torch.save({"module.audio_branch.conv_block1.conv1.weight": torch.ones(1)}, tmp_path / "p.pt")
    text = refusal(tmp_path / "p.pt", "clap")
    assert "p.pt" in text and "expected LAION's CLAP" in text and "conv_block1" in text


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("patch_embed.fusion_model.local_att2.0.weight", "local_att2.0.weight: of the ways to"),
        ("mel_conv1d.0.weight", "mel_conv1d.0.weight: of the ways to fuse only aff_2d"),
    ],
)
def test_other_ways_to_fuse(extra, said, tmp_path):
    state = laion_state(published.clap(tmp_path / "hub").state_dict())
    torch.save(state | {f"audio_branch.{extra}": torch.ones(1)}, tmp_path / "c.pt")
    assert said in refusal(tmp_path / "c.pt", "clap")


def test_cut_short(tmp_path):
    file = write(tmp_path / "c.pt", published.clap(tmp_path / "hub").state_dict())
    file.write_bytes(file.read_bytes()[:-100])
    assert "c.pt cannot be read by torch (the end of the zip archive" in refusal(file, "clap")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_newer_pickle_protocol_is_named(tmp_path):
    state = laion_state(published.clap(tmp_path / "hub").state_dict())
    torch.save(state, tmp_path / "c.pt", pickle_protocol=4)
    assert "newer pickle protocol than 2" in refusal(tmp_path / "c.pt", "clap")
