"""The release's connector against torch, and the model around it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from meerkat_jax.alignment.avace import AVACE
from meerkat_jax.alignment.avopt import AVOpT
from meerkat_jax.build import assemble
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten, split, unflatten
from meerkat_jax.meerkat import Meerkat
from meerkat_jax.mini.tokenizer import build_mini_tokenizer
from meerkat_jax.models.clap import ClapAudio
from meerkat_jax.models.clip import ClipVision
from meerkat_jax.models.connectors import AlignConfig, Connector, ConvAlign, output_length
from meerkat_jax.models.llama import Llama
from meerkat_jax.nn.dense import LoraConfig
from tests.tiny import get_config
from tests.tolerances import tolerance

SIZES = AlignConfig(image=(6, 2), audio=(5, 3), heads=4)


class Reference(torch.nn.Module):
    """What the release is said to do, in torch: convolve, project, attend to the whole table."""

    def __init__(self, width, out, kernel, stride, heads):
        super().__init__()
        self.conv = torch.nn.Conv1d(width, width, kernel, stride)
        self.linear = torch.nn.Linear(width, out)
        self.attention = torch.nn.MultiheadAttention(
            out, heads, dropout=0.1, add_bias_kv=True, add_zero_attn=True
        )
        for bias in (self.attention.in_proj_bias, self.attention.out_proj.bias):
            torch.nn.init.normal_(bias)  # they start as zeros, which would test nothing

    def forward(self, tokens, table):
        fewer = self.linear(self.conv(tokens.mT).mT).swapaxes(0, 1)
        words = table[:, None].expand(-1, len(tokens), -1)
        return self.attention(fewer, words, words)[0].swapaxes(0, 1)


def converted(theirs: Reference) -> dict:
    """Parameters of ours."""
    state = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    conv = state["conv.weight"]
    params = {
        "conv": {
            "kernel": conv.transpose(2, 1, 0).reshape(-1, len(conv)),
            "bias": state["conv.bias"],
        },
        "linear": {"kernel": state["linear.weight"].T, "bias": state["linear.bias"]},
        "o": {
            "kernel": state["attention.out_proj.weight"].T,
            "bias": state["attention.out_proj.bias"],
        },
        "bias_k": state["attention.bias_k"][0, 0],
        "bias_v": state["attention.bias_v"][0, 0],
    }
    weights = np.split(state["attention.in_proj_weight"], 3)
    biases = np.split(state["attention.in_proj_bias"], 3)
    for name, weight, bias in zip("qkv", weights, biases, strict=True):
        params[name] = {"kernel": weight.T, "bias": bias}
    return params


@pytest.mark.parametrize(
    "count, width, window, words",
    [(196, 24, (6, 2), 61), (64, 40, (12, 9), 7), (5, 8, (5, 1), 1)],
    ids=["image", "sound", "one token output_length"],
)
def test_conv_align_is_torchs(count, width, window, words):
    torch.manual_seed(0)
    theirs = Reference(width, 32, *window, heads=8).eval()
    tokens = torch.randn(2, count, width, requires_grad=True)
    table = torch.randn(words, 32, requires_grad=True)
    gold, direction = theirs(tokens, table), torch.randn(2, output_length(count, *window), 32)
    gold.backward(direction)
    assert gold.shape == direction.shape

    ours = ConvAlign(32, *window, heads=8)
    params = converted(theirs)

    def run(params, tokens, table):
        return ours.apply({"params": params}, tokens, table)

    numbers = params, tokens.detach().numpy(), table.detach().numpy()
    out, back = jax.vjp(jax.jit(run), *numbers)
    np.testing.assert_allclose(out, gold.detach().numpy(), **tolerance("module"))

    grads, to_tokens, to_table = back(direction.numpy())
    slopes = {name: value.grad for name, value in theirs.named_parameters()}
    for name, value in theirs.named_parameters():
        value.data = slopes[name]
    golds = converted(theirs) | {"tokens": tokens.grad.numpy(), "table": table.grad.numpy()}
    found = grads | {"tokens": to_tokens, "table": to_table}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **tolerance("stack_gradient")), found, golds
    )


def test_at_the_releases_own_sizes():
    torch.manual_seed(0)
    sizes = AlignConfig()
    theirs = Reference(512, 4096, *sizes.image, sizes.heads).eval()
    tokens, table = torch.randn(1, 196, 512), torch.randn(50, 4096)
    with torch.no_grad():
        gold = theirs(tokens, table).numpy()
    assert gold.shape == (1, 96, 4096)
    ours = ConvAlign(4096, *sizes.image, sizes.heads)
    out = jax.jit(ours.apply)({"params": converted(theirs)}, tokens.numpy(), table.numpy())
    np.testing.assert_allclose(out, gold, **tolerance("module"))


def test_it_has_just_the_parameters_that_the_release_has():
    tokens, table = jnp.zeros((1, 9, 12)), jnp.ones((3, 32))
    ours = jax.eval_shape(ConvAlign(32, 6, 2, heads=8).init, jax.random.key(0), tokens, table)
    found = {path: leaf.shape for path, leaf in flatten(ours["params"]).items()}
    theirs = flatten(converted(Reference(12, 32, 6, 2, 8)))
    assert found == {path: np.shape(leaf) for path, leaf in theirs.items()}


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"image": (6,)}, r"model.conv_align.image is \(6,\); expected a kernel and a stride"),
        ({"audio": (12, 0)}, r"model.conv_align.audio is \(12, 0\)"),
        ({"image": 96}, "model.conv_align.image is 96"),
        ({"heads": 0}, "model.conv_align.heads is 0"),
    ],
)
def test_wrong_sizes_are_named(fields, said):
    with pytest.raises(UserError, match=said):
        AlignConfig(**fields)


def test_sizes_that_do_not_fit_the_model_are_named():
    tokens, table = jnp.zeros((1, 5, 8)), jnp.zeros((3, 32))
    with pytest.raises(UserError, match="heads is 5, which does not divide .* width 32"):
        ConvAlign(32, 2, 1, heads=5).init(jax.random.key(0), tokens, table)
    with pytest.raises(UserError, match="kernel of 6 tokens does not fit 5 of them"):
        ConvAlign(32, 6, 1, heads=8).init(jax.random.key(0), tokens, table)
    with pytest.raises(UserError, match="connector 'conv' is unknown; choose from .*conv_align"):
        Connector(32, "conv").init(jax.random.key(0), tokens)


# In the model -------------------------------------------------------------------------------------


def model(connector="conv_align"):
    """A model of 36 patches and 16 sounds, of which the release's connector leaves 16 and 4."""
    return Meerkat(
        image_tower=ClipVision(48, 8, width=16, depth=1, heads=2, mlp_dim=24, projection_dim=12),
        audio_tower=ClapAudio(
            spec_size=64, mel_bins=32, patch_size=8, width=8, depths=(1, 1), heads=(1, 2),
            window_size=2, fused=False,
        ),
        llama=Llama(vocab_size=64, width=16, depth=1, heads=2, kv_heads=1, mlp_dim=24),
        avopt=AVOpT(8, solver="ipot", iterations=1),
        avace=AVACE(8, 2),
        prefix=((1, 2), "image", (3,), "audio", (4,)),
        connector=connector,
        conv_align=SIZES,
        words=50,
    )  # fmt: skip


@pytest.fixture(scope="module")
def senses():
    """What the towers would give, at other sizes: all that is tested here comes behind them."""
    image = jax.random.normal(jax.random.key(1), (2, 36, 12))
    return image, jax.random.normal(jax.random.key(2), (2, 16, 16))


def shapes(model, senses):
    init = functools.partial(model.init, method="forward_from_features")
    tokens = jnp.zeros((2, 1, 4), jnp.int32)
    return flatten(jax.eval_shape(init, jax.random.key(0), *senses, tokens)["params"])


@pytest.fixture(scope="module")
def params(senses):
    """Random numbers everywhere."""
    rng = np.random.default_rng(0)
    leaves = shapes(model(), senses).items()
    return unflatten({path: rng.normal(0, 0.3, leaf.shape).astype("f") for path, leaf in leaves})


@jax.jit
def align(params, senses):
    return model().apply({"params": params}, *senses, method="align")


def test_fewer_tokens_reach_the_language_model(params, senses):
    ours, out = model(), align(params, senses)
    assert out["image"].shape == out["image_alone"].shape == (2, 16, 16)
    assert out["audio"].shape == out["audio_alone"].shape == (2, 4, 16)
    # What is said of places is said of all patches: the loss of the box and the views work on it.
    assert out["attention"].shape == (2, 36) and ours.image_grid == (6, 6)
    assert out["map"].shape == (2, 16, 36) and out["plan"].shape == (2, 36, 16)
    row = ours.apply({"params": params}, out["image"], out["audio"], method="embed_prefix")
    assert row.shape[1] == ours.prefix_length == 16 + 4 + 4
    assert model("linear").prefix_length == 36 + 16 + 4


def test_no_places_are_added_and_the_other_kinds_have_no_other_leaves(params, senses):
    assert not [path for path in flatten(params) if "_position" in path]
    linear = shapes(model("linear"), senses)
    connectors = {path for path in linear if "_connector" in path or "_position" in path}
    assert connectors == {
        f"{kind}_{leaf}"
        for kind in ("image", "audio")
        for leaf in ("connector/outer/kernel", "connector/outer/bias")
    }


def test_without_marks_an_exchange_of_nothing_leaves_the_tokens_alone(params, senses):
    """As AVACE is at its start; so a model that was trained without it goes on as it was."""
    flat = flatten(params)
    still = {path: 0 * leaf if "_o/" in path else leaf for path, leaf in flat.items()}
    out = align(unflatten(still), senses)
    for kind in ("image", "audio"):
        np.testing.assert_array_equal(out[kind], out[f"{kind}_alone"])


def test_what_is_heard_reaches_the_picture_through_avace_only(params, senses):
    out = align(params, senses)
    silent = align(params, (senses[0], 0 * senses[1]))
    assert np.abs(out["image"] - silent["image"]).max() > 1e-4
    np.testing.assert_array_equal(out["image_alone"], silent["image_alone"])


def test_rows_that_are_no_words_are_not_looked_up(params, senses):
    """The table is filled up to a multiple of 64; what stands there must not matter."""

    def seen(row):
        table = params["llama"]["embedding"].copy()
        table[row] = 9.0
        return align(params | {"llama": params["llama"] | {"embedding": table}}, senses)["image"]

    before = align(params, senses)["image"]
    np.testing.assert_array_equal(before, seen(50))
    assert np.abs(before - seen(49)).max() > 1e-4


def test_every_connector_leaf_learns_from_answers(params, senses):
    halves = split(params, ["_connector/"])
    tokens = jnp.arange(8).reshape(2, 1, 4)

    def loss(trainable):
        whole = halves["frozen"] | trainable
        logits = model().apply({"params": whole}, *senses, tokens, method="forward_from_features")[
            "logits"
        ]
        return -jax.nn.log_softmax(logits)[..., 0].sum()

    slopes = flatten(jax.jit(jax.grad(loss))(halves["trainable"]))
    still = {path for path, slope in slopes.items() if not np.abs(slope).max() > 1e-6}
    assert len(slopes) == 2 * 14 and not still


# By the config alone ------------------------------------------------------------------------------

RELEASE = {
    "connector": "conv_align",
    "conv_align": {"image": [6, 2], "audio": [12, 9], "heads": 4},
    "avopt": {"solver": "ipot", "beta": 0.5, "iterations": 30},
    "avace": {"attention_embedding": False},
    "llama": {"lora": {"rank": 32, "alpha": 32.0, "dropout": 0.1, "targets": ["q", "k", "v", "o"]}},
}


def test_the_releases_options_are_chosen_by_the_config():
    config = get_config().to_dict()
    config["prompt"] = "release"
    for name, value in RELEASE.items():
        old = config["model"].get(name)
        config["model"][name] = old | value if isinstance(old, dict) else value
    tokenizer = build_mini_tokenizer(["Where is it?"], ["dog"])
    made = assemble(config, tokenizer).model
    assert made.llama.lora == LoraConfig()
    assert made.avopt == AVOpT(config["model"]["avopt"]["width"], solver="ipot", iterations=30)
    assert not made.avace.attention_embedding and made.words == tokenizer.vocab_size
    assert made.conv_align == AlignConfig(heads=4)  # of the other fields the release's are defaults
    assert [part for part in made.prefix if isinstance(part, str)] == ["audio", "image"]
    with pytest.raises(UserError, match=r"model.conv_align.head is unknown.*conv_align.heads"):
        config["model"]["conv_align"] = {"head": 4}
        assemble(config, tokenizer)
