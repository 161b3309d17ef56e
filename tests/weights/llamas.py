"""Llama checkpoints on disk, read by the table, and what tests ask of both sides."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import torch
from safetensors.numpy import load_file

from meerkat_jax.core.trees import flatten, merge, unflatten
from meerkat_jax.models.llama import Llama
from meerkat_jax.nn.dense import LoraConfig
from meerkat_jax.training.losses import answer_loss
from meerkat_jax.weights import llama, table
from meerkat_jax.weights.adapters import WEIGHTS, is_lora, shapes
from meerkat_jax.weights.open import open_source
from tests.tolerances import tolerance


def everything(model: Llama, ids: jax.Array) -> dict[str, jax.Array]:
    """What `Llama.__call__` gives of int[B, S], with all layers, and the logits."""
    out = model(model.embed(ids), jnp.arange(ids.shape[1])[None], keep_layers=True)
    return out | {"logits": model.logits(out["hidden"])}


@functools.partial(jax.jit, static_argnames="model")
def run(model: Llama, params: dict, ids) -> dict[str, jax.Array]:
    """`everything` of a model."""
    return model.apply({"params": params}, ids, method=everything)


def loss_of(logits: jax.Array, ids: jax.Array) -> jax.Array:
    """Mean cross-entropy of every next token, as transformers has it."""
    targets = jnp.ones((len(ids), 1, ids.shape[1] - 1))
    total, _ = answer_loss(logits[:, None, :-1], ids[:, None, 1:], targets)
    return total / targets.sum()


@functools.partial(jax.jit, static_argnames="model")
def adapter_gradient(model: Llama, adapter: dict, base: dict, ids) -> tuple[jax.Array, dict]:
    """Loss, and its gradient by the adapter."""

    def loss(adapter):
        params = merge(trainable=adapter, frozen=base)
        return loss_of(model.apply({"params": params}, ids, method=everything)["logits"], ids)

    return jax.value_and_grad(loss)(adapter)


def read(folder: Path, **changes) -> tuple[Llama, dict]:
    """Ours of a checkpoint, and its parameters; the fields go through JSON."""
    source = open_source(folder, "llama")
    fields = json.loads(json.dumps(llama.fields(source.config, str(folder))))
    model = Llama(**llama.as_module(fields))
    found = {name: tensor.shape for name, tensor in source.tensors.items()}
    pieces = table.plan(llama.rows(fields), found, shapes(model), str(folder))
    leaves = {}
    for path in shapes(model):  # one by one: two copies of a large model are too many
        own = [piece for piece in pieces if piece.target == path]
        leaf = table.assembled(own, lambda name: source.tensors[name].read())[path]
        leaves[path] = jnp.asarray(leaf)
    return model.clone(**changes), unflatten(leaves)


def adapted(theirs, lora: LoraConfig, folder: Path, random: bool = True) -> peft.PeftModel:
    """peft's model on theirs, with a new adapter that is kept in `folder`.

    random: both halves of it, rather than peft's own start.
    """
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=[llama.PROJECTIONS[name].split(".")[-1] for name in lora.targets],
        init_lora_weights=not random,
    )
    model = peft.get_peft_model(theirs, config)
    model.save_pretrained(folder)
    return model


def read_adapter(model: Llama, folder: Path) -> dict:
    """LoRA leaves of ours from the tensors that peft kept."""
    tensors = load_file(folder / WEIGHTS)
    return unflatten(_by_table(model, tensors))


def adapter_like(model: Llama, theirs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """{path: leaf} of LoRA tensors by peft's names in a running model: gradients, for example."""
    tensors = {
        name.replace(".default", ""): value.numpy()
        for name, value in theirs.items()
        if "lora_" in name
    }
    return _by_table(model, tensors)


def _by_table(model: Llama, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    wanted = {path: shape for path, shape in shapes(model).items() if is_lora(path)}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    pieces = table.plan(llama.adapter_rows(model.lora.targets), found, wanted, "the adapter")
    return table.assembled(pieces, tensors.__getitem__)


RATES = {"weight_decay": 0.01, "eps": 1e-8}  # of AdamW, where the two libraries' own differ


def ten_steps(model: Llama, adapter: dict, base: dict, ids, rate: float) -> list[float]:
    """Losses of ten steps of AdamW on one batch, each before its step."""
    optimizer, losses = optax.adamw(rate, **RATES), []
    state = optimizer.init(adapter)
    for _ in range(10):
        loss, grads = adapter_gradient(model, adapter, base, ids)
        updates, state = optimizer.update(grads, state, adapter)
        adapter = optax.apply_updates(adapter, updates)
        losses.append(float(loss))
    return losses


def their_ten_steps(theirs: peft.PeftModel, ids, rate: float) -> list[float]:
    """The same of peft's model under torch's AdamW; it is changed."""
    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.AdamW(trained, lr=rate, **RATES), []
    ids = torch.tensor(ids)
    for _ in range(10):
        optimizer.zero_grad()
        loss = theirs(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def close(ours, theirs, name: str) -> None:
    """Compare arrays or tensors, to a named tolerance."""
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach().numpy()
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), **tolerance(name))


def close_gradients(ours: dict, theirs: dict[str, np.ndarray]) -> None:
    """Every leaf to 1e-4 of its largest number: small ones are sums of large ones that cancel."""
    ours = flatten(ours)
    assert ours.keys() == theirs.keys()
    for path, gold in theirs.items():
        size = np.abs(gold).max()
        assert size > 0, path
        close(ours[path] / size, gold / size, "leaf gradient")


def divergence(ours, theirs: np.ndarray) -> float:
    """The largest Kullback-Leibler divergence of a token's distribution, in float64."""
    p, q = (
        x - np.log(np.exp(x).sum(-1, keepdims=True))
        for x in (np.asarray(y, np.float64) for y in (theirs, ours))
    )
    return float((np.exp(p) * (p - q)).sum(-1).max())
