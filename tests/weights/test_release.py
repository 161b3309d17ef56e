"""A model as the authors' code saves it, made here at a small size: read, it computes the same."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from meerkat_jax.alignment.avace import AVACE
from meerkat_jax.alignment.avopt import AVOpT
from meerkat_jax.core.errors import UserError, construct
from meerkat_jax.core.trees import flatten, merge, unflatten
from meerkat_jax.meerkat import Meerkat
from meerkat_jax.models.clap import ClapAudio
from meerkat_jax.models.clip import ClipVision
from meerkat_jax.models.connectors import AlignConfig, ConvAlign
from meerkat_jax.models.llama import Llama
from meerkat_jax.nn.dense import LoraConfig
from meerkat_jax.weights import (
    clap,
    clip,
    convert,
    import_release,
    llama,
    read_release,
    store,
    table,
)
from meerkat_jax.weights.base import Base
from meerkat_jax.weights.open import open_source
from tests.tolerances import tolerance
from tests.weights.released import HEADS, OURS, PIECES, TEXT, THEIRS, WIDTH, Release, save

LAYER = "llm.base_model.model.model.layers.0.self_attn."


@pytest.fixture(scope="module")
def theirs():
    return Release(lora=True)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    return save(tmp_path_factory.mktemp("release"), theirs.state_dict(), theirs.sizes)


@pytest.fixture(scope="module")
def parts(folder):
    return read_release.read_release(folder)


def built(parts) -> Meerkat:
    """Our model of a release, as its options say."""
    found = {
        "clip": clip.fields(parts["clip"].config, "clip"),
        "clap": clap.fields(parts["clap"].config, "clap"),
        "llama": llama.as_module(llama.fields(parts["llama"].config, "llama")),
    }
    options = read_release.options(parts)
    lora = options.get("llama", {}).get("lora")
    spoken = found["llama"] | {
        "vocab_size": found["llama"]["pretrained"] + 64,
        "lora": construct(LoraConfig, lora, "lora") if lora else None,
    }
    return Meerkat(
        ClipVision(**found["clip"]), ClapAudio(**found["clap"]), Llama(**spoken),
        AVOpT(8, solver="ipot", iterations=1), AVACE(8, 2),
        prefix=((1, OURS["audio"][0]), "audio", (OURS["audio"][1], OURS["image"][0]), "image",
                (OURS["image"][1],)),
        connector=options["connector"],
        conv_align=construct(AlignConfig, options["conv_align"], "conv_align"),
        words=PIECES + len(read_release.ADDED),
    )  # fmt: skip


@pytest.fixture(scope="module")
def ours(parts):
    return built(parts)


def shapes(model: Meerkat) -> dict:
    pixels, mel = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1, 200, 16))
    tokens = jnp.zeros((1, 1, 2), jnp.int32)
    init = functools.partial(model.init, jax.random.key(0))
    return flatten(jax.eval_shape(init, pixels, mel, tokens)["params"])


@pytest.fixture(scope="module")
def wanted(ours):
    return {path: leaf.shape for path, leaf in shapes(ours).items()}


def whole(parts) -> dict:
    """All leaves of towers and language model, by the tables of the other modules."""
    found = {}
    for kind, (name, module) in convert.KINDS.items():
        source = parts[kind]
        own = module.fields(source.config, kind)
        tensors = {name: tensor.shape for name, tensor in source.tensors.items()}
        pieces = table.plan(module.rows(own), tensors, convert.shapes(kind, own), kind)
        leaves = table.assembled(pieces, lambda name, source=source: source.tensors[name].read())
        found |= {f"{name}/{path}": leaf for path, leaf in leaves.items()}
    return found


# Equal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ours_, theirs_, width, count", [("image", "video", 20, 16),
                                                          ("audio", "audio", 16, 64)])  # fmt: skip
def test_a_connector_computes_the_same(theirs, parts, wanted, ours_, theirs_, width, count):
    leaves = unflatten(read_release.leaves(parts, wanted))[f"{ours_}_connector"]
    fields = read_release.fields(parts["modules"].config, "config")
    torch.manual_seed(1)
    tokens = torch.randn(2, count, width)
    gold = theirs.connect(theirs_, tokens).detach()
    words = theirs.decoder[0].get_input_embeddings().weight.detach().numpy()
    module = ConvAlign(WIDTH, *fields[ours_], fields["heads"])
    out = module.apply({"params": leaves}, tokens.numpy(), words)
    np.testing.assert_allclose(out, gold.numpy(), **tolerance("module"))


def test_the_whole_model_says_the_same(theirs, parts, ours, wanted):
    torch.manual_seed(2)
    pixels, mel = torch.randn(2, 3, 32, 32), torch.randn(2, 1, 200, 16)
    with torch.no_grad():
        connected, gold = theirs(pixels, mel, TEXT)

    def run(params, fresh):
        params = merge(trainable=params, frozen=fresh)
        seen, heard = (
            jnp.asarray(pixels.permute(0, 2, 3, 1).numpy()),
            jnp.asarray(mel[:, 0].numpy()),
        )
        tokens = jnp.asarray(TEXT[:, None, 1:].numpy())
        return ours.apply({"params": params}, seen, heard, tokens)

    leaves = whole(parts) | read_release.leaves(parts, wanted)
    fresh = {path: shape for path, shape in wanted.items() if path not in leaves}
    assert {path.split("/")[0] for path in fresh} == {"avopt", "avace"}  # all else is theirs
    # An exchange that adds nothing, as AVACE's at its start: its last projections are zero.
    fresh = {
        path: np.zeros(shape, np.float32) if "_o/" in path else np.full(shape, 0.1, np.float32)
        for path, shape in fresh.items()
    }
    out = jax.jit(run)(unflatten(leaves), unflatten(fresh))
    for mine, own in (("image", "video"), ("audio", "audio")):
        np.testing.assert_allclose(out[mine], connected[own].numpy(), **tolerance("stack"))
    answer = gold[:, -(TEXT.shape[1] - 1) :, :PIECES].numpy()
    np.testing.assert_allclose(out["logits"][:, 0, :, :PIECES], answer, **tolerance("logits"))


def test_the_parts_have_the_names_and_configs_of_the_hub(parts, folder):
    assert {kind: len(source.tensors) > 0 for kind, source in parts.items()} == dict.fromkeys(
        ("clip", "clap", "llama", "peft", "modules"), True
    )
    assert "vision_model.pre_layrnorm.weight" in parts["clip"].tensors
    assert "audio_model.audio_encoder.batch_norm.weight" in parts["clap"].tensors
    assert parts["llama"].tensors["lm_head.weight"].shape == (PIECES, WIDTH)
    assert parts["llama"].config["vocab_size"] == PIECES
    assert parts["peft"].config["r"] == 3
    assert "base_model.model.model.layers.1.self_attn.o_proj.lora_B.weight" in parts["peft"].tensors
    assert {source.files for source in parts.values()} == {tuple(sorted(folder.glob("*.bin")))}


@pytest.mark.parametrize("kind", convert.KINDS)
def test_a_part_is_had_by_naming_the_folder(parts, folder, kind):
    source = open_source(folder, kind)
    assert set(source.tensors) == set(parts[kind].tensors)
    assert source.config == parts[kind].config


def test_options_are_the_releases(parts):
    assert read_release.options(parts) == {
        "connector": "conv_align",
        "conv_align": {"image": (6, 2), "audio": (12, 9), "heads": HEADS},
        "llama": {
            "lora": {"rank": 3, "alpha": 32.0, "dropout": 0.1, "targets": ("q", "k", "v", "o")}
        },
    }


def test_pictures_get_the_marker_that_they_had_as_videos(theirs, parts, wanted):
    added = read_release.leaves(parts, wanted)["llama/added"]
    rows = theirs.decoder[0].get_input_embeddings().weight.detach().numpy()
    for name in ("image", "audio"):
        own = np.array(OURS[name]) - PIECES
        np.testing.assert_array_equal(added[own], rows[np.array(THEIRS[name])])
    np.testing.assert_array_equal(added[6], rows[PIECES + 6])  # padding
    assert added.shape == (64, WIDTH) and not added[7:].any()


# Other ways of saving the same --------------------------------------------------------------------


def old_peft(name: str) -> str:
    return name.replace(".base_layer.", ".")


def wrapped(name: str) -> str:
    return f"module.{name}"


@pytest.mark.parametrize("renamed", [old_peft, wrapped])
def test_other_names_of_the_same(theirs, parts, wanted, tmp_path, renamed):
    state = {renamed(name): value for name, value in theirs.state_dict().items()}
    again = read_release.read_release(save(tmp_path / "again", state, theirs.sizes))
    assert {k: set(s.tensors) for k, s in again.items()} == {
        k: set(s.tensors) for k, s in parts.items()
    }
    for path, leaf in read_release.leaves(parts, wanted).items():
        np.testing.assert_array_equal(read_release.leaves(again, wanted)[path], leaf)


def test_without_lora_the_language_model_is_whole_by_itself(tmp_path):
    plain = Release(lora=False)
    parts = read_release.read_release(save(tmp_path / "plain", plain.state_dict(), plain.sizes))
    assert not parts["peft"].tensors and "llama" not in read_release.options(parts)
    model = built(parts)
    leaves = read_release.leaves(parts, {path: leaf.shape for path, leaf in shapes(model).items()})
    assert not [path for path in leaves if "lora" in path]
    query = whole(parts)["llama/layers/q/kernel"][1]
    gold = plain.state_dict()["llm.model.layers.1.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(query, gold.numpy().T)


def test_half_precision_stays_as_it_was_saved(theirs, wanted, tmp_path):
    state = {
        name: value.half() if value.is_floating_point() else value
        for name, value in theirs.state_dict().items()
    }
    parts = read_release.read_release(save(tmp_path / "half", state, theirs.sizes))
    kernel = read_release.leaves(parts, wanted)["audio_connector/v/kernel"]
    gold = state["audio_align_attention.in_proj_weight"][2 * WIDTH :].numpy().T
    assert kernel.dtype == np.float16
    np.testing.assert_array_equal(kernel, gold)


def test_what_the_authors_trained_becomes_a_part_of_the_store(folder, parts, wanted, tmp_path):
    planned = convert.plan_parts(dict.fromkeys(convert.KINDS, folder), None)
    rows = PIECES + 64  # of the tokenizer, its padding included
    towers = {kind: convert.build(kind, part.fields, rows) for kind, part in planned.items()}
    options, leaves, files = import_release.import_release(folder, towers)
    assert leaves.keys() == read_release.leaves(parts, wanted).keys()
    with store.staged(tmp_path / "store") as home:
        writer, told = convert.write_extra(home, options, leaves, files)
        store.write_record(home, [writer], {import_release.NAME: told}, [])
    made = store.Store.open(tmp_path / "store")
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(made.read(path), leaf, err_msg=path)
    model = Base(made).resolve({"model": {"llama": {"width": WIDTH}}})["model"]
    assert model["connector"] == "conv_align" and model["conv_align"]["heads"] == HEADS
    assert model["llama"]["width"] == WIDTH and model["llama"]["lora"]["rank"] == 3
    with pytest.raises(UserError, match="config.model.connector is 'linear'.*'conv_align'"):
        Base(made).resolve({"model": {"connector": "linear"}})


# Wrong --------------------------------------------------------------------------------------------


def without(name):
    return lambda state: state.pop(name)


def renamed(old, new):
    return lambda state: state.update({new: state.pop(old)})


def extra(name, *shape):
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    "change, said",
    [
        (
            without("project_video.weight"),
            r"missing: project_video.weight \(for image_connector/conv/kernel\)",
        ),
        (without("audio_align_attention.bias_k"), "missing: audio_align_attention.bias_k"),
        (
            without("video_align_attention.in_proj_weight"),
            "missing: .*in_proj_weight.k .*in_proj_weight.q .*in_proj_weight.v",
        ),
        (
            renamed("project_audio.bias", "project_sound.bias"),
            r"missing: project_audio.bias .*unknown: project_sound.bias \[16\] "
            r"\(is it project_audio.bias\?\)",
        ),
        (extra("video_gate.weight", 3), r"unknown: video_gate.weight \[3\]"),
        (extra("module.project_video.bias", 20), "unknown: module.project_video.bias"),
        (
            extra("project_video.weight", 20, 20, 5),
            r"project_video.weight \[20, 20, 5\], as \[100, 20\] .* takes \[120, 20\]",
        ),
        (
            extra("video_align_attention.in_proj_weight", 95, WIDTH),
            r"in_proj_weight.v \[31, 32\], as \[32, 31\] .* takes \[32, 32\]",
        ),
        (extra("image_align_attention.gate", 3), "unknown: image_align_attention.gate"),
        (
            without(f"{LAYER}v_proj.lora_B.default.weight"),
            "missing: .*layers.0.self_attn.v_proj.lora_B.weight",
        ),
        (
            extra(f"{LAYER}q_proj.lora_A.default.weight".replace("0", "7"), 3, WIDTH),
            "unknown: .*layers.7.self_attn.q_proj.lora_A.weight",
        ),
    ],
)
def test_a_wrong_tensor_is_named(theirs, wanted, tmp_path, change, said):
    state = theirs.state_dict()
    change(state)
    parts = read_release.read_release(save(tmp_path / "wrong", state, theirs.sizes))
    with pytest.raises(UserError, match=said):
        read_release.leaves(parts, wanted)


@pytest.mark.parametrize(
    "change, said",
    [
        (without("video_encoder.visual_projection.weight"), "missing: visual_projection.weight"),
        (extra("video_encoder.vision_model.gate", 3), "unknown: vision_model.gate"),
        (extra("audio_encoder.audio_encoder.gate", 3), "unknown: audio_model.audio_encoder.gate"),
        (extra(f"{LAYER}q_proj.bias", WIDTH), "unknown: model.layers.0.self_attn.q_proj.bias"),
        (extra(f"{LAYER}q_proj.lora_A.other.weight", 3, WIDTH), "unknown: .*lora_A.other.weight"),
        (without("llm.base_model.model.lm_head.weight"), "missing: lm_head.weight"),
    ],
)
def test_a_wrong_tensor_of_a_published_part_is_named(theirs, tmp_path, change, said):
    state = theirs.state_dict()
    change(state)
    with pytest.raises(UserError, match=said):
        whole(read_release.read_release(save(tmp_path / "wrong", state, theirs.sizes)))


def test_a_tensor_that_is_there_twice_is_named(theirs, tmp_path):
    state = theirs.state_dict() | {f"{LAYER}q_proj.weight": torch.zeros(WIDTH, WIDTH)}
    with pytest.raises(UserError, match="self_attn.q_proj.* is there twice"):
        read_release.read_release(save(tmp_path / "twice", state, theirs.sizes))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"n_frames": 6}, "n_frames is 6, supported: 1"),
        ({"video_conv_stride": None}, "video_conv_stride is None, expected a whole number above 0"),
        ({"attention_heads": "2"}, "attention_heads is '2', expected a whole number"),
        ({"audio_config": None}, "audio_config is NoneType, expected an object of fields"),
        ({"model_type": "llama"}, "model_type is 'llama', expected 'mm_llms'"),
        ({"llm_config": {"vocab_size": 61}}, "embed_tokens.weight has 68 rows, .*vocab_size is 61"),
    ],
)
def test_a_wrong_config_is_told_by_field(theirs, folder, tmp_path, change, said):
    config = json.loads((folder / "config.json").read_text()) | change
    with pytest.raises(UserError, match=said):
        read_release.read_release(save(tmp_path / "config", theirs.state_dict(), config))


def test_what_is_a_release(folder, tmp_path):
    assert read_release.is_release(folder)
    assert not read_release.is_release(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert not read_release.is_release(tmp_path)


def test_the_table_leads_back(parts, wanted):
    fields = read_release.fields(parts["modules"].config, "config")
    rows = [row for row in read_release.rows(fields, 64) if row.target]
    leaves = read_release.leaves(parts, wanted)
    mine = {path: leaf for path, leaf in leaves.items() if "lora" not in path}
    for name, tensor in table.published(rows, mine).items():
        np.testing.assert_array_equal(tensor, parts["modules"].tensors[name].read())
