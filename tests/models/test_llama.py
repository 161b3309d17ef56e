"""The Llama decoder against itself; against transformers and peft: tests/weights/test_llama.py."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.models.llama import (
    REMAT,
    Llama,
    init_cache,
)
from meerkat_jax.nn.attention import NEGATIVE, Layout, attend_fused, attend_layout, attend_row
from meerkat_jax.nn.dense import LoraConfig
from meerkat_jax.nn.rotary import RopeScaling, rotary
from tests.tolerances import tolerance

SMALL = {"vocab_size": 61, "width": 32, "depth": 3, "heads": 4, "kv_heads": 2, "mlp_dim": 44}
LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.5)


@functools.partial(jax.jit, static_argnames=("model", "layout", "deterministic", "keep_layers"))
def run(model: Llama, params: dict, x, positions=None, **kwargs) -> dict:
    """The model on embeddings float[B, S, D], by default at positions 0 ... S - 1."""
    positions = jnp.arange(x.shape[1])[None] if positions is None else positions
    return model.apply({"params": params}, x, positions, **kwargs)


def initial(model: Llama) -> dict:
    """Initial parameters of everything, the logits included."""

    def everything(self, x, positions):
        return self.logits(self(x, positions)["hidden"])

    x, positions = jnp.zeros((1, 2, model.width)), jnp.arange(2)[None]
    return model.init(jax.random.key(0), x, positions, method=everything)["params"]


@functools.cache
def random_params(model: Llama) -> dict:
    """Initial parameters, with LoRA's zero half made random so that it does something."""
    rng = np.random.default_rng(0)

    def disturb(path, leaf):
        noise = 0.2 * rng.standard_normal(leaf.shape, np.float32)
        return noise if path[-1].key == "lora_b" else np.asarray(leaf)

    params = jax.jit(lambda: initial(model))()
    return jax.tree_util.tree_map_with_path(disturb, params)


def tokens(*shape: int, width: int = SMALL["width"], seed: int = 3) -> np.ndarray:
    """Random embeddings."""
    return np.random.default_rng(seed).standard_normal((*shape, width), np.float32)


def close(ours, theirs, name: str) -> None:
    """Compare arrays, to a named tolerance."""
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), **tolerance(name))


@pytest.mark.parametrize("targets", [("q", "k", "v", "o"), ("up", "down")])
def test_lora_starts_as_the_base_and_merges(targets):
    lora = LoraConfig(rank=3, alpha=6.0, targets=targets)
    base, model = Llama(**SMALL), Llama(**SMALL, lora=lora)
    params, x = random_params(model), tokens(2, 9)
    adapted = {name for name, leaves in params["layers"].items() if "lora_a" in leaves}
    assert adapted == set(targets)

    plain, merged = {}, {}
    for name, leaves in params["layers"].items():
        plain[name] = {k: v for k, v in leaves.items() if not k.startswith("lora")}
        merged[name] = dict(plain[name])
        if name in targets:
            delta = 2.0 * leaves["lora_a"] @ leaves["lora_b"]
            merged[name]["kernel"] = leaves["kernel"] + delta
    start = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.zeros_like(leaf) if path[-1].key == "lora_b" else leaf, params
    )
    unadapted = run(base, params | {"layers": plain}, x)["hidden"]
    adapted = run(model, params, x)["hidden"]
    close(run(model, start, x)["hidden"], unadapted, "bitwise")
    close(run(base, params | {"layers": merged}, x)["hidden"], adapted, "stack")
    assert np.abs(adapted - unadapted).max() > 0.1


def test_dropout_only_when_not_deterministic():
    model = Llama(**SMALL, lora=LORA)
    params, x = random_params(model), tokens(2, 9)
    still = run(model, params, x)["hidden"]

    def dropped(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return run(model, params, x, deterministic=False, rngs=rngs)["hidden"]

    close(run(model, params, x, rngs={"dropout": jax.random.key(0)})["hidden"], still, "bitwise")
    close(dropped(0), dropped(0), "bitwise")
    assert np.abs(dropped(0) - still).max() > 0.01
    assert np.abs(dropped(0) - dropped(1)).max() > 0.01


@functools.cache
def remat_gradient(remat: str) -> dict:
    """Gradient of all parameters, with dropout, which must fall alike when run again."""
    plain = Llama(**SMALL, lora=LoraConfig(rank=3, dropout=0.5, targets=("q",)))
    model, rngs = plain.clone(remat=remat), {"dropout": jax.random.key(0)}

    def loss(params):
        out = run(model, params, tokens(2, 9), deterministic=False, rngs=rngs)
        return (out["hidden"] * tokens(2, 9, seed=4)).sum()

    return jax.jit(jax.grad(loss))(random_params(plain))


@pytest.mark.parametrize("remat", REMAT)
def test_remat_gives_equal_gradients(remat):
    saved, ours = remat_gradient("none"), remat_gradient(remat)
    jax.tree.map(lambda a, b: close(a, b, "stack_gradient"), ours, saved)


def test_layout_mask_and_positions_by_hand():
    """Two questions in the first run, one in the second."""
    layout, segment_ids = (
        Layout(prefix=2, num_packs=2, pack_length=2),
        jnp.array([[[0, 1], [2, 2]]]),
    )
    assert layout.positions(segment_ids).tolist() == [[0, 1, 2, 2, 2, 3]]
    assert layout.mask(segment_ids)[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]


def owners_of(layout, batch=2):
    """Every run holds questions of 1, 2, 3 ... tokens; no two share a number."""
    own = np.repeat(np.arange(layout.pack_length), np.arange(1, layout.pack_length + 1))[
        : layout.pack_length
    ]
    runs = own + layout.pack_length * np.arange(layout.num_packs)[:, None]
    return jnp.asarray(np.broadcast_to(runs, (batch, *runs.shape)))


@pytest.mark.parametrize("layout", [Layout(17, 3, 29), Layout(29, 1, 17), Layout(3, 5, 1)])
@pytest.mark.parametrize("padded", [False, True])
def test_layout_equals_the_masked_square(layout, padded):
    """Values and gradients of the two blocks are those of one S x S attention."""
    s, valid, segment_ids = layout.size, np.ones((2, layout.size), bool), owners_of(layout)
    if padded:
        valid[0, layout.prefix - 1] = valid[1, -1] = False
    q, weight = tokens(2, 2, s, 3, width=8), tokens(2, 2, s, 3, width=8, seed=4)
    k, v = tokens(2, 2, s, width=8, seed=5), tokens(2, 2, s, width=8, seed=6)
    # a padding token sees nothing, or the whole prefix: nobody reads it, so compare the others
    weight *= valid[:, None, :, None, None]

    def square(q, k, v):
        allowed = layout.mask(segment_ids) & valid[:, None] | np.eye(s, dtype=bool)
        scores = jnp.einsum("bktgd,bksd->bktgs", q, k)
        scores = jnp.where(allowed[:, None, :, None], scores, -jnp.inf)
        return weight * jnp.einsum("bktgs,bksd->bktgd", jax.nn.softmax(scores), v)

    def blocks(q, k, v):
        return weight * attend_layout(q, k, v, layout, valid if padded else None, segment_ids)

    def fused(q, k, v):
        mask = valid if padded else None
        return weight * attend_fused(q, k, v, layout, mask, segment_ids, implementation="xla")

    gold, gold_back = jax.vjp(jax.jit(square), q, k, v)
    for form in (blocks, fused):
        ours, back = jax.vjp(jax.jit(form), q, k, v)
        close(ours, gold, "stack")
        for a, b in zip(back(weight), gold_back(weight), strict=True):
            close(a, b, "stack_gradient")


@pytest.mark.parametrize("padded", [False, True])
def test_fused_attention_of_a_row_is_attention(padded):
    q, k, v = (
        tokens(2, 2, 9, 3, width=8),
        tokens(2, 2, 9, width=8),
        tokens(2, 2, 9, width=8, seed=6),
    )
    valid = np.ones((2, 9), bool)
    valid[0, 2] = valid[1, 0] = not padded
    fused = attend_fused(q, k, v, valid=valid if padded else None, implementation="xla")
    ours = attend_row(q, k, v, valid if padded else None)
    read = valid[:, None, :, None, None]  # nobody reads a padding token, which may see nothing
    close(np.where(read, fused, 0), np.where(read, ours, 0), "module")


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_fused_attention_without_a_gpu_is_refused_by_name():
    model = Llama(**SMALL, attention="cudnn", dtype=jnp.bfloat16)
    with pytest.raises(UserError, match="cudnn.* needs an NVIDIA GPU, this is a cpu"):
        run(model, random_params(Llama(**SMALL)), tokens(2, 9))


def test_questions_do_not_see_each_other():
    """Each question of a shared prefix is answered as if it were alone, also in one run."""
    model, layout = Llama(**SMALL), Layout(17, 3, 5)
    params, x, segment_ids = random_params(model), tokens(2, layout.size), owners_of(layout)
    positions = layout.positions(segment_ids)
    shared = run(model, params, x, positions, layout=layout, segment_ids=segment_ids)["hidden"]
    flat = np.asarray(segment_ids[0]).reshape(-1)
    for owner in np.unique(flat):
        own = 17 + np.flatnonzero(flat == owner)
        alone = run(model, params, np.concatenate([x[:, :17], x[:, own]], 1))["hidden"]
        close(shared[:, own], alone[:, 17:], "stack")


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    model = Llama(**SMALL)
    params, x, junk = random_params(model), tokens(2, 9), 100.0 * tokens(2, 4, seed=5)
    valid, order = np.ones((2, 13), bool), [junk, x] if side == "left" else [x, junk]
    place = slice(4, None) if side == "left" else slice(0, 9)
    valid[:] = False
    valid[:, place] = True
    positions = np.arange(13)[None] - (4 if side == "left" else 0)
    padded = run(model, params, np.concatenate(order, 1), positions, valid=valid)["hidden"]
    close(padded[:, place], run(model, params, x)["hidden"], "stack")
    assert np.isfinite(padded).all()


def test_cached_steps_equal_the_full_forward():
    """Prefix once, shared by two questions each of its own length, then single steps."""
    model = Llama(**SMALL, lora=LORA)
    params = random_params(model)
    prefixes, lengths = [7, 5], [[4, 2], [1, 3]]
    prefix, question, steps = tokens(2, 7), tokens(4, 4, seed=5), tokens(4, 3, seed=6)
    valid = np.arange(7) < np.array(prefixes)[:, None]
    start, length = np.repeat(prefixes, 2), np.ravel(lengths)

    def extend(x, positions, valid, cache, slot):
        return run(model, params, x, positions, valid=valid, cache=cache, slot=slot)

    out = extend(prefix, np.arange(7)[None], valid, init_cache(model, 2, 16), 0)
    axes = {"k": 1, "v": 1, "valid": 0}
    cache = {name: jnp.repeat(x, 2, axes[name]) for name, x in out["cache"].items()}
    valid = np.arange(4) < length[:, None]
    out = extend(question, start[:, None] + np.arange(4), valid, cache, 7)
    found = [[out["hidden"][i, : length[i]]] for i in range(4)]
    for step in range(3):
        positions = (start + length + step)[:, None]
        x = steps[:, step : step + 1]
        out = extend(x, positions, np.ones((4, 1), bool), out["cache"], 11 + step)
        for i in range(4):
            found[i].append(out["hidden"][i])
    for i in range(4):
        row = [prefix[i // 2, : start[i]], question[i, : length[i]], steps[i]]
        full = run(model, params, np.concatenate(row)[None])["hidden"][0]
        close(np.concatenate(found[i]), full[start[i] :], "stack")


def test_slots_may_be_written_in_any_order_and_those_that_are_not_valid_hide():
    """Forgotten tokens are still in the cache; later ones may take slots before older ones."""
    model = Llama(**SMALL)
    params, x = random_params(model), tokens(1, 6)
    cache = run(model, params, x[:, :2], cache=init_cache(model, 1, 8), slot=6)["cache"]
    cache = run(model, params, tokens(1, 5, seed=1), cache=cache, slot=1)["cache"]
    cache["valid"] = cache["valid"] & (jnp.arange(8) >= 6)
    again = run(model, params, x[:, 2:3], np.array([[2]]), cache=cache, slot=0)["hidden"]
    close(again[0, 0], run(model, params, x)["hidden"][0, 2], "stack")


# ---- a published vocabulary, and what is added to it ----

PUBLISHED = SMALL | {"pretrained": 61, "vocab_size": 128}


@pytest.mark.parametrize("tied", [False, True])
def test_published_pieces_are_read_and_said_as_from_one_table(tied):
    model = Llama(**PUBLISHED, tied=tied)
    params, ids = random_params(model), np.arange(61).reshape(1, -1)
    assert params["embedding"].shape == (64, 32) and params["added"].shape == (67, 32)
    plain = Llama(**SMALL, tied=tied)
    one = {name: tree for name, tree in params.items() if name != "added"}
    one["embedding"] = params["embedding"][:61]
    if not tied:
        one["lm_head"] = {"kernel": params["lm_head"]["kernel"][:, :61]}
    embedded = plain.apply({"params": one}, ids, method="embed")
    close(model.apply({"params": params}, ids, method="embed"), embedded, "bitwise")
    x = tokens(2, 3)
    logits = model.apply({"params": params}, x, method="logits")
    close(logits[..., :61], plain.apply({"params": one}, x, method="logits"), "module")
    assert logits.shape == (2, 3, 128) and (logits[..., 61:] == NEGATIVE).all()


def test_added_tokens_have_rows_of_their_own():
    model = Llama(**PUBLISHED)
    params, ids = random_params(model), jnp.array([[60, 61, 127, 0]])

    def read(params):
        return model.apply({"params": params}, ids, method="embed")

    close(read(params)[0, 1:3], params["added"][np.array([0, 66])], "bitwise")
    grads = jax.grad(lambda params: read(params).sum())(params)
    assert np.flatnonzero(grads["added"].any(axis=1)).tolist() == [0, 66]
    assert np.flatnonzero(grads["embedding"].any(axis=1)).tolist() == [0, 60]


def test_without_added_tokens_there_is_no_such_leaf():
    """And the rows that fill the table up are never said."""
    model = Llama(**SMALL, pretrained=61)
    params = random_params(model)
    assert "added" not in params and params["embedding"].shape == (64, 32)
    assert model.apply({"params": params}, tokens(1, 2), method="logits").shape == (1, 2, 61)


def test_bfloat16_computes_narrow_and_scores_wide():
    narrow, wide = Llama(**SMALL, dtype=jnp.bfloat16), Llama(**SMALL)
    params, x = random_params(wide), tokens(2, 9)
    hidden = run(narrow, params, x)["hidden"]
    logits = narrow.apply({"params": params}, hidden, method="logits")
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    assert init_cache(narrow, 1, 4)["k"].dtype == jnp.bfloat16
    close(hidden.astype(jnp.float32), run(wide, params, x)["hidden"], "bfloat16")


@pytest.mark.parametrize(("std", "expected"), [(None, 64**-0.5), (0.02, 0.02)])
def test_embedding_spread(std, expected):
    model = Llama(**SMALL | {"vocab_size": 500, "width": 64}, embed_std=std)
    params = model.init(jax.random.key(0), np.arange(3), method="embed")["params"]
    assert np.std(params["embedding"]) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("change", "call", "words"),
    [
        ({"kv_heads": 3}, {}, "kv_heads 3"),
        ({"width": 30}, {}, "width 30"),
        ({"head_dim": 7}, {}, "head_dim 7"),
        ({"head_dim": 0}, {}, "head_dim 0"),
        ({"remat": "some"}, {}, "choose one of none, full"),
        ({"attention": "flash"}, {}, "'flash' is unknown"),
        ({"attention": "cudnn"}, {}, "computes in bfloat16"),
        ({"pretrained": 62}, {}, "62 pieces, the tokenizer 61"),
        ({}, {"layout": Layout(2, 2, 2)}, "6 tokens, the row has 5"),
        ({}, {"slot": 2, "cache": 6}, "5 tokens at slot 2 do not fit a cache of 6"),
        ({}, {"layout": Layout(1, 2, 2), "cache": 6}, "exclude each other"),
    ],
)
def test_bad_input_is_named(change, call, words):
    model = Llama(**SMALL | change)
    if "cache" in call:
        call = call | {"cache": init_cache(model, 1, call["cache"])}
    with pytest.raises(UserError, match=words):
        model.init(jax.random.key(0), tokens(1, 5, width=model.width), np.arange(5)[None], **call)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "yarn"}, "kind 'yarn' is unknown"),
        ({"factor": 0.5}, "factor must be 1 or more"),
        ({"low": 4.0}, "low above 0 and below high"),
        ({"length": 0}, "length above 0"),
    ],
)
def test_bad_scaling_is_named(fields, words):
    with pytest.raises(UserError, match=words):
        RopeScaling(**{"kind": "llama3", "factor": 8.0} | fields)


def test_linear_scaling_is_that_of_slower_positions():
    scaling = RopeScaling("linear", 4.0)
    for slow, plain in zip(
        rotary(jnp.arange(0, 40, 4)[None], 16, 1e4, scaling),
        rotary(jnp.arange(10)[None], 16, 1e4),
        strict=True,
    ):
        close(slow, plain, "module")
