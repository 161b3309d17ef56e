"""Meta's layout: made from a transformers model by the inverse, read back to the same bits."""

import json

import pytest
import torch
import transformers

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights import llama
from meerkat_jax.weights.meta import feed_forward
from meerkat_jax.weights.open import open_source
from tests.weights.checks import assert_same, neighbours, refusal
from tests.weights.published import randomised

DIM, HEADS, KV_HEADS, VOCABULARY = 48, 4, 2, 64
PARAMS = {
    "dim": DIM, "n_layers": 2, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "norm_eps": 1e-5,
    "multiple_of": 16, "ffn_dim_multiplier": 1.3, "vocab_size": -1,
}  # fmt: skip
MLP = 176  # 8/3 of 48 is 128, times 1.3 is 166, up to a multiple of 16
THEIRS = {  # the hub's layer -> Meta's, the axis that tensor parallelism cuts
    "self_attn.q_proj": ("attention.wq", 0),
    "self_attn.k_proj": ("attention.wk", 0),
    "self_attn.v_proj": ("attention.wv", 0),
    "self_attn.o_proj": ("attention.wo", 1),
    "mlp.gate_proj": ("feed_forward.w1", 0),
    "mlp.up_proj": ("feed_forward.w3", 0),
    "mlp.down_proj": ("feed_forward.w2", 1),
    "input_layernorm": ("attention_norm", None),
    "post_attention_layernorm": ("ffn_norm", None),
}


def model(dtype=torch.float32, tied=False):
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=DIM, intermediate_size=MLP, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, tie_word_embeddings=tied,
    )  # fmt: skip
    return randomised(transformers.LlamaForCausalLM(config)).to(dtype)


def meta_state(state, embedding_axis):
    """{Meta's name: (whole tensor, axis)} of a hub state dict."""
    found = {"rope.freqs": (torch.arange(6.0), None)}
    whole = {
        "model.embed_tokens.weight": ("tok_embeddings.weight", embedding_axis),
        "model.norm.weight": ("norm.weight", None),
        "lm_head.weight": ("output.weight", 0),
    }
    for name, value in state.items():
        if name in whole:
            target, axis = whole[name]
        else:
            _, _, layer, *inner, kind = name.split(".")
            theirs, axis = THEIRS[".".join(inner)]
            target = f"layers.{layer}.{theirs}.{kind}"
            if theirs in ("attention.wq", "attention.wk"):
                value = neighbours(value, HEADS if theirs.endswith("q") else KV_HEADS)
        found[target] = (value, axis)
    return found


def write(folder, state, shards, embedding_axis=1, **changes):
    """Write params.json and the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = meta_state(state, embedding_axis)
    for i in range(shards):
        part = {
            name: value if axis is None else value.chunk(shards, axis)[i].clone()
            for name, (value, axis) in whole.items()
        }
        torch.save(part, folder / f"consolidated.{i:02}.pth")
    (folder / "params.json").write_text(json.dumps(PARAMS | changes))
    return folder


# ---- what is there ----


@pytest.mark.parametrize(
    ("shards", "axis", "dtype"),
    [(1, 1, torch.float32), (2, 1, torch.bfloat16), (2, 0, torch.float32)],
)
def test_shards_are_joined_and_rows_in_the_hubs_order(shards, axis, dtype, tmp_path):
    state = model(dtype).state_dict()
    source = open_source(write(tmp_path, state, shards, axis), "llama")
    assert_same(source, state | {"model.rotary_emb.inv_freq": torch.arange(6.0)})
    assert len(source.files) == shards


def test_config_is_that_of_the_model(tmp_path):
    theirs = model()
    found = open_source(write(tmp_path, theirs.state_dict(), 2), "llama").config
    ours = transformers.LlamaConfig(**found)
    for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
        "num_attention_heads", "num_key_value_heads", "hidden_act", "tie_word_embeddings",
        "attention_bias", "mlp_bias",
    ):  # fmt: skip
        assert getattr(ours, key) == getattr(theirs.config, key), key
    stated = theirs.config.to_dict() | {"rms_norm_eps": 1e-5}
    assert llama.fields(found, "") == llama.fields(stated, "")
    assert found["rms_norm_eps"] == 1e-5 and found["rope_theta"] == 10000.0
    assert found["rope_scaling"] is None


def test_no_output_is_a_tied_head(tmp_path):
    state = model(tied=True).state_dict()
    state.pop("lm_head.weight")
    source = open_source(write(tmp_path, state, 1), "llama")
    assert_same(source, state | {"model.rotary_emb.inv_freq": torch.arange(6.0)})
    assert source.config["tie_word_embeddings"] is True


@pytest.mark.parametrize(
    ("params", "width"),
    [
        ({"dim": 4096, "multiple_of": 256}, 11008),  # Llama 2 7B
        ({"dim": 5120, "multiple_of": 256}, 13824),  # 13B
        ({"dim": 8192, "multiple_of": 4096, "ffn_dim_multiplier": 1.3}, 28672),  # 70B
        ({"dim": 4096, "multiple_of": 1024, "ffn_dim_multiplier": 1.3}, 14336),  # Llama 3 8B
        ({"dim": 2048, "multiple_of": 256, "ffn_dim_multiplier": 1.5}, 8192),  # Llama 3.2 1B
    ],
)
def test_feed_forward_of_the_published_models(params, width):
    assert feed_forward(params) == width


@pytest.mark.parametrize(("given", "factor"), [({}, 32.0), ({"rope_scaling_factor": 16}, 16)])
def test_stretched_positions(given, factor, tmp_path):
    state = model().state_dict()
    changes = {"use_scaled_rope": True, "rope_theta": 500000.0, **given}
    config = open_source(write(tmp_path, state, 1, **changes), "llama").config
    assert config["rope_theta"] == 500000.0
    assert config["rope_scaling"] == {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


# ---- what is broken ----


def test_all_problems_of_the_files_in_one_error(tmp_path):
    write(tmp_path, model().state_dict(), 3)
    params = {key: value for key, value in PARAMS.items() if key != "norm_eps"}
    (tmp_path / "params.json").write_text(json.dumps(params | {"moe_args": {}}))
    (tmp_path / "consolidated.01.pth").unlink()
    file = tmp_path / "consolidated.02.pth"
    file.write_bytes(file.read_bytes()[:5000])
    text = refusal(tmp_path, "llama")
    assert "params.json has no norm_eps" in text
    assert "params.json: moe_args is not supported" in text
    assert "consolidated.01.pth is missing" in text
    assert "consolidated.02.pth cannot be read by torch (the end of the zip archive" in text


def test_the_last_shard_is_missing(tmp_path):
    write(tmp_path, model().state_dict(), 2)
    (tmp_path / "consolidated.01.pth").unlink()
    text = refusal(tmp_path, "llama")
    assert "hold 24 query rows, params.json says dim 48: expected 2 files" in text


def test_params_without_files(tmp_path):
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    assert "consolidated.00.pth is missing" in refusal(tmp_path, "llama")


def test_shards_that_differ_and_tensors_of_others(tmp_path):
    write(tmp_path, model().state_dict(), 2)
    for i, name in enumerate(["layers.0.attention.wq.lora_a", "layers.0.extra.weight"]):
        file = tmp_path / f"consolidated.{i:02}.pth"
        torch.save(torch.load(file, weights_only=True) | {name: torch.zeros(2)}, file)
    text = refusal(tmp_path, "llama")
    assert "consolidated.01.pth has tensor layers.0.extra.weight, consolidated.00.pth has" in text
    assert "tensor layers.0.attention.wq.lora_a of consolidated.00.pth is unknown" in text


def test_vocabulary_that_is_not_the_stated_one(tmp_path):
    write(tmp_path, model().state_dict(), 1, vocab_size=100)
    assert "vocab_size is 100, tok_embeddings has 64 rows" in refusal(tmp_path, "llama")


def test_heads_that_do_not_divide_the_rows(tmp_path):
    write(tmp_path, model().state_dict(), 1, n_kv_heads=5)
    text = refusal(tmp_path, "llama")
    assert "k_proj.weight has 24 rows, params.json says 5 heads" in text


def test_params_that_are_no_numbers(tmp_path):
    write(tmp_path, model().state_dict(), 1, dim="48", n_heads=0)
    text = refusal(tmp_path, "llama")
    assert "dim is '48', expected a number above 0; " in text and "n_heads is 0" in text


def test_only_a_llama_is_looked_for_there(tmp_path):
    write(tmp_path, model().state_dict(), 1)
    with pytest.raises(UserError, match=r"no checkpoint of clip: found consolidated.00.pth"):
        open_source(tmp_path, "clip")
