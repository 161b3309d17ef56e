import jax
import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten, unflatten
from meerkat_jax.models.llama import Llama
from meerkat_jax.parallel import placement
from meerkat_jax.parallel import quantise as q
from tests.tolerances import tolerance

# The levels as QLoRA's appendix E prints them (arXiv 2305.14314), to the digits of float32.
PRINTED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


def kernel(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_levels_of_nf4_are_those_of_its_paper():
    np.testing.assert_allclose(q.nf4_levels(), PRINTED, **tolerance("nf4 levels"))


def test_int8_is_off_by_half_a_step_of_its_column_at_most():
    w = kernel(2, 48, 5) * np.geomspace(0.01, 100, 5, dtype=np.float32)  # columns of all sizes
    parts = q.quantise(jnp.asarray(w), "int8")
    assert parts["int8"].dtype == jnp.int8 and parts["scale"].shape == (2, 1, 5)
    step = np.abs(w).max(axis=1, keepdims=True) / 127
    assert (np.abs(q.restore(parts, jnp.float32) - w) <= 0.501 * step).all()


def test_nf4_takes_the_nearest_level_of_its_tile():
    w = kernel(2, 256, 3)
    parts = q.quantise(jnp.asarray(w), "nf4")
    assert parts["nf4"].shape == (2, 128, 3) and parts["scale"].shape == (2, 2, 3)
    tiles = w.reshape(2, 2, 128, 3)
    size = np.abs(tiles).max(axis=2, keepdims=True)
    far = np.abs(tiles[..., None] / size[..., None] - q.nf4_levels())
    nearest = q.nf4_levels()[far.argmin(-1)] * size
    found = np.asarray(q.restore(parts, jnp.float32)).reshape(nearest.shape)
    np.testing.assert_allclose(found, nearest, **tolerance("module"))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_what_is_on_the_levels_is_kept(kind):
    if kind == "int8":
        numbers = np.random.default_rng(0).integers(-127, 128, (1, 128, 4))
        numbers[:, 0] = 127
        w = numbers * np.float32(0.5)
    else:
        codes = np.random.default_rng(0).integers(0, 16, (1, 128, 4))
        codes[:, 0] = 15
        w = q.nf4_levels()[codes] * np.float32(0.5)
    found = q.restore(q.quantise(jnp.asarray(w), kind), jnp.float32)
    np.testing.assert_array_equal(found, w)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_column_of_zeros_stays_zero(kind):
    found = q.restore(q.quantise(jnp.zeros((1, 128, 2)), kind), jnp.float32)
    np.testing.assert_array_equal(found, np.zeros((1, 128, 2)))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("name", ["numbers", "scale"])
def test_each_device_reads_its_part_alone(kind, name):
    w = kernel(3, 256, 8)
    name = kind if name == "numbers" else name
    whole = np.asarray(q.quantise(jnp.asarray(w), kind)[name])
    part = q.reader(w, name, kind)
    rows = slice(0, whole.shape[1] // 2 or 1)
    for index in ((slice(None), rows, slice(2, 6)), (slice(1, 2), slice(None), slice(None))):
        np.testing.assert_array_equal(part(index), whole[index])


def tree(width=128):
    model = Llama(vocab_size=32, width=width, depth=2, heads=4, kv_heads=2, mlp_dim=256)
    ids = jnp.arange(6)[None]

    def logits(llama, ids):
        return llama.logits(llama(llama.embed(ids), jnp.arange(6)[None])["hidden"])

    params = model.init(jax.random.key(0), ids, method=logits)["params"]
    return (
        model,
        {"llama": params},
        lambda model, params: model.apply({"params": params}, ids, method=logits),
    )


def restored(tree):
    """The tree with whole kernels, in float32."""
    if not isinstance(tree, dict):
        return tree
    if tree.keys() in ({"int8", "scale"}, {"nf4", "scale"}):
        return q.restore(tree, jnp.float32)
    return {name: restored(child) for name, child in tree.items()}


@pytest.mark.parametrize("kind", ["int8", pytest.param("nf4", marks=pytest.mark.slow)])
def test_a_decoder_computes_with_the_restored_kernels(kind):
    model, params, logits = tree()
    few = q.quantise_tree(params, kind)
    assert {p.split("/")[-1] for p in flatten(few) if "/q/" in p} == {kind, "scale"}
    mesh = placement.make_mesh({"data": 1}, jax.devices()[:1])
    found = logits(model.clone(placement=placement.Placement(mesh)), few["llama"])
    whole = restored(few)
    np.testing.assert_allclose(found, logits(model, whole["llama"]), **tolerance("stack"))
    assert np.abs(found - logits(model, params["llama"])).max() > 1e-3  # it was not for nothing


def test_gradients_pass_through_to_what_comes_before():
    model, params, logits = tree()
    few = q.quantise_tree(params, "int8")["llama"]
    mesh = placement.make_mesh({"data": 1}, jax.devices()[:1])
    laid = model.clone(placement=placement.Placement(mesh), remat="full")
    whole = restored(few)

    def loss(model, params):
        return lambda table: logits(model, params | {"embedding": table}).std()

    found = jax.grad(loss(laid, few))(few["embedding"])
    wanted = jax.grad(loss(model, whole))(few["embedding"])
    np.testing.assert_allclose(found, wanted, **tolerance("gradient"))


def test_a_decoder_that_is_trained_is_refused():
    _, params, _ = tree()
    flat = flatten(params)
    del flat["llama/layers/q/kernel"]  # as if it were among what is trained
    with pytest.raises(UserError, match="quantise is 'int8'.*config.trainable"):
        q.quantise_tree(unflatten(flat), "int8")


def test_nf4_needs_whole_tiles():
    with pytest.raises(UserError, match="96 inputs.*tiles of 128.*int8"):
        q.quantise(jnp.zeros((96, 4)), "nf4")


def test_leaves_know_their_kernel():
    assert q.source("llama/layers/q/kernel/int8") == "llama/layers/q/kernel"
    assert q.source("llama/layers/q/kernel/scale") == "llama/layers/q/kernel"
    assert q.source("llama/norm/scale") == "llama/norm/scale"
