"""The table of Llama, and models that it fills, against transformers and peft."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten
from meerkat_jax.models.llama import ROWS, Llama
from meerkat_jax.nn.dense import LoraConfig
from meerkat_jax.nn.rotary import RopeScaling, rotary
from meerkat_jax.weights import llama, table
from meerkat_jax.weights.adapters import shapes
from tests.tolerances import tolerance
from tests.weights import published
from tests.weights.llamas import (
    adapted,
    adapter_gradient,
    adapter_like,
    close,
    close_gradients,
    divergence,
    loss_of,
    read,
    read_adapter,
    run,
    ten_steps,
    their_ten_steps,
)

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
    "rope_theta": 100.0,
}
CONFIGS = {  # all with two queries to a key and a vocabulary that is no multiple of 64, unless said
    "grouped": {"rms_norm_eps": 1e-5},
    "ungrouped": {"num_key_value_heads": 4, "vocab_size": 2 * ROWS},
    "tied": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "wide heads": {"head_dim": 12, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}},
    "linear": {"rope_parameters": LINEAR},
    "llama3": {"rope_parameters": LLAMA3, "hidden_size": 64},
}
LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.0, targets=tuple(llama.PROJECTIONS))
LLAMA_31 = {  # of the published config.json
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 131072,
    "pretraining_tp": 1,
    "head_dim": None,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def ids_of(model, length=21):
    return np.random.default_rng(0).integers(0, model.pretrained, (2, length))


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """Ours, its parameters, and transformers' model, of one checkpoint."""
    folder = tmp_path_factory.mktemp("llama")
    theirs = published.llama(folder, **CONFIGS[request.param])
    return *read(folder), theirs


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a checkpoint."""
    folder = tmp_path_factory.mktemp("base")
    published.llama(folder)
    return folder


# ---- the same numbers ----


def test_forward_equals_transformers(pair):
    model, params, theirs = pair
    ids = ids_of(model)
    with torch.no_grad():
        gold = theirs(torch.tensor(ids), labels=torch.tensor(ids), output_hidden_states=True)
    out = run(model, params, ids)
    close(model.apply({"params": params}, ids, method="embed"), gold.hidden_states[0], "bitwise")
    close(out["layers"][0], gold.hidden_states[1], "module")
    for ours, layer in zip(out["layers"][:-1], gold.hidden_states[1:-1], strict=True):
        close(ours, layer, "stack")
    close(out["hidden"], gold.hidden_states[-1], "stack")
    close(out["logits"], gold.logits, "logits")
    assert divergence(out["logits"], gold.logits) < 1e-6
    close(loss_of(out["logits"], ids), gold.loss, "stack")


def test_input_gradient_equals_torch(base):
    theirs = transformers.LlamaForCausalLM.from_pretrained(base)
    model, params = read(base)
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((2, 2, 9, model.width), np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    (theirs.model(inputs_embeds=leaf)[0] * torch.tensor(weight)).sum().backward()

    @jax.jit
    def ours(x):
        return (model.apply({"params": params}, x, jnp.arange(9)[None])["hidden"] * weight).sum()

    close(jax.grad(ours)(x), leaf.grad, "stack_gradient")


def test_turns_equal_transformers_at_published_sizes():
    """All three parts of Llama 3.1's rule: kept, between, divided."""
    model = Llama(**llama.as_module(llama.fields(LLAMA_31, "config")))
    config = transformers.LlamaConfig(**{**LLAMA_31, "num_hidden_layers": 1})
    places = torch.arange(0, 1000, 7)[None]
    gold = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float32), places)
    ours = rotary(places.numpy(), model.head_width, model.rope_theta, model.rope_scaling)
    plain = rotary(places.numpy(), model.head_width, model.rope_theta)
    for turned, theirs, unscaled in zip(ours, gold, plain, strict=True):
        close(turned[:, :, 0], theirs[..., : model.head_width // 2], "turns")
        assert np.abs(turned - unscaled).max() > 0.5


# ---- LoRA ----


def test_adapter_equals_peft_in_loss_and_gradient(base, tmp_path):
    theirs = adapted(transformers.LlamaForCausalLM.from_pretrained(base), LORA, tmp_path)
    model, params = read(base, lora=LORA)
    ids = ids_of(model)
    gold = theirs(torch.tensor(ids), labels=torch.tensor(ids)).loss
    gold.backward()
    grads = {k: v.grad for k, v in theirs.named_parameters() if v.grad is not None}
    adapter = read_adapter(model, tmp_path)
    loss, ours = adapter_gradient(model, adapter, params, ids)
    close(loss, gold, "stack")
    close_gradients(ours, adapter_like(model, grads))


def test_ten_steps_equal_peft_and_adamw(base, tmp_path):
    """From peft's own start (lora_b zero); everything else is frozen."""
    theirs = transformers.LlamaForCausalLM.from_pretrained(base)
    theirs = adapted(theirs, LORA, tmp_path, random=False).train()
    model, params = read(base, lora=LORA)
    ids = ids_of(model)
    found = ten_steps(model, read_adapter(model, tmp_path), params, ids, rate=1e-2)
    wanted = their_ten_steps(theirs, ids, rate=1e-2)
    np.testing.assert_allclose(found, wanted, **tolerance("ten losses"))
    assert wanted[-1] < wanted[0] - 0.5


def test_adapter_goes_back_under_peft_names(base, tmp_path):
    theirs = adapted(transformers.LlamaForCausalLM.from_pretrained(base), LORA, tmp_path)
    adapter = flatten(read_adapter(read(base, lora=LORA)[0], tmp_path))
    back = table.published(llama.adapter_rows(LORA.targets), adapter)
    state = {k.replace(".default", ""): v for k, v in theirs.state_dict().items() if "lora_" in k}
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        close(back[name], tensor, "bitwise")


def test_adapter_of_another_layer_is_named():
    with pytest.raises(UserError, match="'lm_head' is unknown; choose from q, k, v, o, gate"):
        llama.adapter_rows(["q", "lm_head"])


# ---- the table ----


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_round_trip_is_bitwise(tied, dtype):
    """Published names -> our leaves -> published names, the filled up rows being zeros."""
    fields = llama.fields(LLAMA_31 | SMALL | {"tie_word_embeddings": tied}, "config")
    model, rows = Llama(**llama.as_module(fields)), llama.rows(fields)
    rng = np.random.default_rng(0)
    state = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**LLAMA_31 | SMALL | {"tie_word_embeddings": tied})
    ).state_dict()
    state = {k: rng.standard_normal(v.shape).astype(dtype) for k, v in state.items()}
    kept = dict(state)
    if tied:
        del kept["lm_head.weight"]
    pieces = table.plan(rows, {k: v.shape for k, v in state.items()}, shapes(model), "test")
    leaves = table.assembled(pieces, state.__getitem__)
    assert leaves["embedding"].shape == (ROWS, 32) and not leaves["embedding"][61:].any()
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype(dtype)}
    back = table.published(rows, leaves)
    assert back.keys() == kept.keys()
    for name, tensor in kept.items():
        np.testing.assert_array_equal(back[name], tensor)


def test_what_old_files_hold_besides_is_dropped():
    fields = llama.fields(LLAMA_31 | SMALL | {"tie_word_embeddings": True}, "config")
    model, rows = Llama(**llama.as_module(fields)), llama.rows(fields)
    names = {piece.source for piece in table.pieces_of(rows, shapes(model))[0]}
    besides = {"lm_head.weight": (61, 32), "model.rotary_emb.inv_freq": (4,)}
    besides |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": (4,) for i in range(2)}
    back = table.published(rows, {k: np.zeros(v) for k, v in shapes(model).items()})
    found = {name: tensor.shape for name, tensor in back.items()}
    pieces = table.plan(rows, found | besides, shapes(model), "test")
    assert {piece.source for piece in pieces} == names


def test_rows_beyond_the_vocabulary_are_refused():
    """Padding is by a fixed number of rows: a table of another size does not slip through."""
    fields = llama.fields(LLAMA_31 | SMALL, "config")
    model = Llama(**llama.as_module(fields))
    leaves = {k: np.zeros(v) for k, v in shapes(model).items()}
    found = {k: v.shape for k, v in table.published(llama.rows(fields), leaves).items()}
    found["model.embed_tokens.weight"] = (63, 32)
    with pytest.raises(UserError, match=r"embed_tokens.weight \[63, 32\], as \[66, 32\]"):
        table.plan(llama.rows(fields), found, shapes(model), "test")


# ---- the config ----


def test_published_configs_give_our_fields():
    """Llama 3.1's as the hub has it, through JSON and back to the module."""
    found = json.loads(json.dumps(llama.fields(LLAMA_31, "config")))
    model = Llama(**llama.as_module(found))
    assert model == Llama(
        vocab_size=128256, pretrained=128256, width=4096, depth=32, heads=32, kv_heads=8,
        head_dim=128, mlp_dim=14336, rope_theta=5e5, norm_eps=1e-5,
        rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
    )  # fmt: skip
    hash(model)  # a module is a static argument


def test_absent_fields_are_those_of_transformers():
    found, config = llama.fields({"model_type": "llama"}, "config"), transformers.LlamaConfig()
    assert found == llama.fields(config.to_dict(), "config")
    assert (found["norm_eps"], found["kv_heads"], found["head_dim"]) == (1e-6, 32, 128)
    assert (found["rope_theta"], found["tied"], found["rope_scaling"]) == (1e4, False, None)


@pytest.mark.parametrize(
    "old",
    [
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA_31["rope_scaling"]},
        {"rope_scaling": {k: v for k, v in LLAMA3.items() if k != llama.LENGTH}},
        {"rope_scaling": LLAMA3, llama.LENGTH: 4096},
    ],
)
def test_old_and_new_words_for_rotation_agree(old):
    """transformers rewrites the old keys as its `rope_parameters`; both are read alike."""
    config = {"model_type": "llama", "max_position_embeddings": 512} | old
    new = transformers.LlamaConfig(**json.loads(json.dumps(config))).to_dict()
    assert new["rope_parameters"] and "rope_scaling" not in new
    assert llama.fields(config, "config") == llama.fields(new, "config")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral', supported: 'llama'"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', supported: 'silu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
        ({"hidden_size": "4096"}, "hidden_size is '4096', expected a whole number"),
        ({"num_key_value_heads": 5}, "num_attention_heads is 32, expected a multiple of num_key"),
        ({"hidden_size": 4100}, "hidden_size is 4100, expected a multiple of num_attention_heads"),
        ({"head_dim": 127}, "head_dim is 127"),
        ({"rms_norm_eps": 0}, "rms_norm_eps is 0, expected a number above 0"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic', supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling.factor is None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, "factor must be 1 or more"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "low_freq_factor is None"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', expected an object"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_parameters": {"full": {"rope_theta": 1e4}}}, "rope_parameters.full is"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_field(change, words):
    config = {k: v for k, v in LLAMA_31.items() if k not in ("rope_scaling", "rope_theta")}
    with pytest.raises(UserError, match="FOLDER: ") as error:
        llama.fields(config | change, "FOLDER")
    assert words in str(error.value)
