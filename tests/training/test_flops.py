"""The count of needed FLOPs: by hand, against XLA's own, and whatever the step does beside that."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

from benchmarks import large, lora
from meerkat_jax.core.trees import merge, split
from meerkat_jax.models.clip import ClipVision
from meerkat_jax.models.llama import REMAT, Llama
from meerkat_jax.nn.attention import Layout, attend_fused, attend_layout
from meerkat_jax.nn.dense import Dense, LoraConfig
from meerkat_jax.training import flops
from tests.tolerances import tolerance

B, IN, OUT, RANK = 6, 10, 14, 3
SIZES = {"width": 32, "depth": 3, "heads": 4, "kv_heads": 2, "mlp_dim": 48, "vocab_size": 64}


def counted(function, *arguments):
    return flops.count(jax.jit(function).trace(*arguments).jaxpr)


def gradient(model, params, trainable, *inputs):
    """Loss and gradient of the trained half of a model's parameters, as a function of both."""
    halves = split(params, trainable)

    def loss(trained, frozen, *inputs):
        return jnp.sum(model.apply({"params": merge(trained, frozen)}, *inputs) ** 2)

    return jax.value_and_grad(loss), halves["trainable"], halves["frozen"], *inputs


def shapes(model, *inputs):
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


# By hand -----------------------------------------------------------------------------------------


class Two(nn.Module):
    """A layer on a layer."""

    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, x):
        return Dense(OUT, name="upper", lora=self.lora)(Dense(IN, name="lower")(x))


@pytest.mark.parametrize(
    ("trainable", "lower", "upper"),
    [
        ([".*"], 4, 6),  # nothing below the lower one asks for its input's gradient
        (["^upper"], 2, 4),  # a frozen tower under a trained layer: 2 for its weights
        (["^lower"], 4, 4),
        (["^upper/bias"], 2, 2),
        (["^lower/bias"], 2, 4),
    ],
)
def test_two_layers(trainable, lower, upper):
    x = jnp.zeros((B, IN))
    found = counted(*gradient(Two(), shapes(Two(), x), trainable, x))
    assert found == B * (lower * IN * IN + upper * IN * OUT)


def test_a_frozen_layer_under_lora_costs_four_a_weight():
    model, x = Two(LoraConfig(rank=RANK, dropout=0.0, targets=())), jnp.zeros((B, IN))
    found = counted(*gradient(model, shapes(model, x), ["lora_[ab]$", "^lower/bias"], x))
    adapters = RANK * (IN + OUT)
    assert found == B * (2 * IN * IN + 4 * IN * OUT + 6 * adapters)


def test_a_strided_convolution_and_its_gradients():
    """Patches of 4 x 4 that do not overlap: each weight meets each patch once, each way."""
    model, x = nn.Conv(OUT, (4, 4), (4, 4), padding="VALID"), jnp.zeros((B, 8, 12, 3))
    params = shapes(model, x)

    def loss(params, x):
        return model.apply({"params": params}, x).sum()

    once = 2 * B * (2 * 3) * (4 * 4 * 3 * OUT)
    assert counted(loss, params, x) == once
    assert counted(lambda p, x: jax.grad(lambda p: loss(p, x) ** 2)(p), params, x) == 2 * once
    assert counted(jax.grad(lambda x, p: loss(p, x) ** 2), x, params) == 2 * once


def test_a_llama_of_lora_agrees_with_the_formula():
    """4 a frozen weight and token, 6 a trained one, half of attention's square, three times."""
    sizes = SIZES | {"kv_heads": SIZES["heads"]}
    model, ids = Llama(**sizes, lora=lora.LORA), jnp.zeros((2, 6), jnp.int32)
    params = large.weights(model)
    start, step = lora.our_step(model)
    state = jax.eval_shape(start, params["trainable"])
    expected = large.step_flops(params, sizes, tokens=12, sequence=6)
    assert flops.count(step.trace(state, params["frozen"], ids).jaxpr) == expected


# What does not change it -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    """(a function that traces a LoRA step of a model, its count without any lever)."""

    def traced(**fields):
        model = Llama(**SIZES, lora=lora.LORA, **fields)
        ids = jnp.zeros((2, 8), jnp.int32)
        params = split(shapes_of(model, ids), [lora.ADAPTED])
        start, step = lora.our_step(model)
        return step.trace(jax.eval_shape(start, params["trainable"]), params["frozen"], ids)

    return traced, flops.count(traced().jaxpr)


def shapes_of(model, ids):
    make = functools.partial(model.init, method=lora.logits)
    return jax.eval_shape(make, jax.random.key(0), ids)["params"]


@pytest.mark.parametrize("remat", REMAT)
def test_what_is_computed_again_does_not_count(plain, remat):
    traced, expected = plain
    assert expected > 0
    assert flops.count(traced(remat=remat).jaxpr) == expected


def test_the_optimizer_does_not_count():
    """Muon turns matrices by products of its own."""
    params, x = {"kernel": jnp.zeros((IN, OUT))}, jnp.zeros((B, IN))
    optimizer = optax.contrib.muon(0.1)

    def step(state, x):
        loss, grads = jax.value_and_grad(lambda p: jnp.sum((x @ p["kernel"]) ** 2))(state[0])
        updates, opt = optimizer.update(grads, state[1], state[0])
        found = {"loss": loss, "grad_norm": optax.global_norm(grads)}
        return (optax.apply_updates(state[0], updates), opt), found

    traced = jax.jit(step).trace((params, optimizer.init(params)), x)
    assert flops.step_flops(traced) == 4 * B * IN * OUT
    assert flops.count(traced.jaxpr) > 4 * B * IN * OUT


def test_what_nobody_reads_does_not_count():
    def function(x):
        _ = x @ x.T, jax.jit(lambda x: x.T @ x)(x)
        return x.sum()

    assert counted(function, jnp.zeros((B, IN))) == 0


def test_loops_branches_and_devices():
    x = jnp.zeros((B, B))
    once = 2 * B**3

    def scanned(x):
        return jax.lax.scan(lambda c, _: (c @ x, None), x, length=5)[0]

    def chosen(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert counted(scanned, x) == 5 * once
    assert counted(chosen, x) == 2 * once
    mesh = Mesh(np.array(jax.devices()[:1]), "d")
    spec = PartitionSpec("d")
    spread = jax.shard_map(lambda x: x @ x, mesh=mesh, in_specs=spec, out_specs=spec)
    assert counted(spread, x) == once


# Against XLA -------------------------------------------------------------------------------------


def compiled_flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


class Features(nn.Module):
    """A tower of one layer, of which XLA counts the body of the scan as often as it runs."""

    @nn.compact
    def __call__(self, pixels):
        sizes = {"image_size": 32, "patch_size": 8, "width": 128, "heads": 2, "mlp_dim": 512}
        return ClipVision(**sizes, depth=1, projection_dim=128, name="tower")(pixels)["tokens"]


@pytest.mark.parametrize("trainable", [[".*"], ["layer_norm1/scale"], ["patch_embedding"]])
def test_a_tower_agrees_with_xla(trainable):
    """XLA adds what is elementwise, which is little beside products as wide as these."""
    pixels = jnp.zeros((4, 32, 32, 3))
    call = gradient(Features(), shapes(Features(), pixels), trainable, pixels)
    ours, theirs = counted(*call), compiled_flops(*call)
    np.testing.assert_allclose(ours, theirs, **tolerance("xla flops"))


# Peaks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "rate"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5e", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 PCIe", None),
        ("TPU v4 lite", None),
        ("cpu", None),
    ],
)
def test_peaks_by_device_kind(kind, rate):
    assert flops.peak(kind) == rate


def test_fused_attention_counts_as_plain_does(monkeypatch):
    """Traced as on a GPU: cuDNN's kernels are opaque, and see the whole square of scores."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 92000)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    layout = Layout(6, 2, 5)
    q = jnp.zeros((2, 2, layout.size, 3, 64), jnp.bfloat16)
    kv, segment_ids = jnp.zeros((2, 2, layout.size, 64), jnp.bfloat16), jnp.zeros((2, 2, 5), int)

    def counted(attend):
        def loss(q, k, v):
            return attend(q, k, v, layout, segment_ids=segment_ids).astype(jnp.float32).sum()

        return flops.count(jax.make_jaxpr(jax.value_and_grad(loss, (0, 1, 2)))(q, kv, kv))

    assert counted(attend_fused) == pytest.approx(counted(attend_layout), rel=1e-6)
