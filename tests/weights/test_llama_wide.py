"""Llama-2-7B's own sizes (4096 wide, 32 heads, MLP of 11008), two layers, against transformers."""

from __future__ import annotations

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from meerkat_jax.models.llama import Block, Mode
from meerkat_jax.nn.dense import LoraConfig
from meerkat_jax.nn.rotary import rotary
from meerkat_jax.weights.llama import PROJECTIONS
from tests.tolerances import tolerance
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

LORA = LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=tuple(PROJECTIONS))
RATE = 1e-4  # of the size that such adapters are trained with
IDS = np.random.default_rng(0).integers(0, 500, (2, 8))
WATCHED = {  # a module of Block -> torch's
    "attention_norm": "input_layernorm",
    "o": "self_attn",
    "mlp_norm": "post_attention_layernorm",
    "down": "mlp",
    **{name: PROJECTIONS[name] for name in ("q", "k", "v", "gate", "up")},
}


def checkpoint(folder):
    """A random model of these sizes, kept in the hub's layout."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=500, num_hidden_layers=2, rms_norm_eps=1e-5, attn_implementation="eager"
    )
    with torch.device("meta"):  # its own random start takes seconds
        model = transformers.LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    for name, weight in model.named_parameters():
        low, high = (0.5, 1.5) if "norm" in name else (-0.025, 0.025)
        torch.nn.init.uniform_(weight, low, high)
    model.save_pretrained(folder)
    return model


def seen_by(model, layer: int) -> dict[str, np.ndarray]:
    """Outputs of the modules of a layer by our names, its input "x" and its output "y"."""
    block, seen = model.model.layers[layer], {}

    def keep(name):
        def hook(_, inputs, output):
            seen[name] = (output[0] if isinstance(output, tuple) else output).numpy()
            if name == "y":
                seen["x"] = inputs[0].numpy()

        return hook

    modules = {"y": block} | {ours: block.get_submodule(name) for ours, name in WATCHED.items()}
    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    with torch.no_grad():
        model(torch.tensor(IDS))
    for handle in handles:
        handle.remove()
    return seen


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """(torch's numbers, ours, its parameters, an adapter); torch's model is gone by then."""
    folder = tmp_path_factory.mktemp("wide")
    theirs = checkpoint(folder)
    ids = torch.tensor(IDS)
    with torch.no_grad():
        out = theirs(ids, labels=ids, output_hidden_states=True)
    gold = {
        "weight": theirs.model.layers[1].mlp.up_proj.weight.detach().numpy().T.copy(),
        "modules": seen_by(theirs, 1),
        "layers": [state.numpy() for state in out.hidden_states],
        "logits": out.logits.numpy(),
        "loss": out.loss.numpy(),
    }
    theirs = adapted(theirs, LORA, folder / "adapter")
    theirs(ids, labels=ids).loss.backward()
    grads = {k: v.grad.clone() for k, v in theirs.named_parameters() if v.grad is not None}
    gold["losses"] = their_ten_steps(theirs, IDS, RATE)
    del theirs
    gc.collect()
    model, params = read(folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()  # 1.6 GB
    adapter = read_adapter(model.clone(lora=LORA), folder / "adapter")
    gold["gradients"] = adapter_like(model.clone(lora=LORA), grads)
    return gold, model, params, adapter


def test_a_weight_is_the_same_bits(wide):
    gold, _, params, _ = wide
    close(params["layers"]["up"]["kernel"][1], gold["weight"], "bitwise")


def test_every_module_equals_transformers(wide):
    gold, model, params, _ = wide
    sizes = (model.heads, model.kv_heads, model.head_width, model.mlp_dim, model.norm_eps)
    block = Block(*sizes, None, jnp.float32)
    cosine, sine = rotary(jnp.arange(IDS.shape[1])[None], model.head_width, model.rope_theta)
    row = {"cosine": cosine, "sine": sine, "valid": None, "segment_ids": None, "seen": None}

    @jax.jit
    def outputs(layers, x):
        layer = jax.tree.map(lambda leaf: leaf[1], layers)
        (y, _), seen = block.apply(
            {"params": layer}, x, row, None, Mode(),
            capture_intermediates=True, mutable="intermediates",
        )  # fmt: skip
        return {name: seen["intermediates"][name]["__call__"][0] for name in WATCHED} | {"y": y}

    seen = gold["modules"]
    for name, ours in outputs(params["layers"], seen["x"]).items():
        close(ours, seen[name], "module")


def test_the_whole_equals_transformers(wide):
    gold, model, params, _ = wide
    out = run(model, params, IDS)
    close(out["layers"][0], gold["layers"][1], "stack")
    close(out["hidden"], gold["layers"][2], "stack")
    close(out["logits"], gold["logits"], "logits")
    assert divergence(out["logits"], gold["logits"]) < 1e-6
    close(loss_of(out["logits"], IDS), gold["loss"], "stack")


def test_adapter_gradients_equal_peft(wide):
    gold, model, params, adapter = wide
    _, grads = adapter_gradient(model.clone(lora=LORA), adapter, params, IDS)
    close_gradients(grads, gold["gradients"])


def test_ten_steps_equal_peft_and_adamw(wide):
    gold, model, params, adapter = wide
    found = ten_steps(model.clone(lora=LORA), adapter, params, IDS, RATE)
    assert found[-1] < found[0] - 0.1  # they lead somewhere
    np.testing.assert_allclose(found, gold["losses"], **tolerance("ten losses"))


def test_bfloat16_stays_near(wide):
    gold, model, params, _ = wide
    logits = run(model.clone(dtype=jnp.bfloat16), params, IDS)["logits"]
    error = np.abs(np.asarray(logits) - gold["logits"]) / gold["logits"].std()
    assert np.quantile(error, 0.99) < tolerance("bfloat16 most")["atol"]
    assert error.max() < tolerance("bfloat16 all")["atol"]
