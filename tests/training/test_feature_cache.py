"""The feature cache: the towers' tokens, computed once and looked up by example."""

from __future__ import annotations

import concurrent.futures
import pickle
import sys

import chex
import jax
import numpy as np
import optax
import pytest

from meerkat_jax.core.config import to_json
from meerkat_jax.core.errors import UserError
from meerkat_jax.data.pipeline import Encode, fixed_batches, train_batches
from meerkat_jax.data.split import Split, open_split
from meerkat_jax.from_config import build_model, open_data
from meerkat_jax.training import feature_cache
from meerkat_jax.training.step import make_step, new_state
from tests import tiny
from tests.tolerances import tolerance

COUNT = 6  # examples that are cached, in batches of four: the last one is not full


@pytest.fixture(scope="module")
def parts(cache):
    """(assembly, data, parameters) of the tiny config."""
    config = to_json(tiny.get_config())
    data = open_data(config["data"], cache)
    assembly = build_model(config, data.tokenizer)
    return assembly, data, assembly.init(jax.random.key(0))


@pytest.fixture(scope="module")
def encode(parts):
    assembly, _, fresh = parts
    return jax.jit(lambda batch: assembly.encode(fresh, batch))


@pytest.fixture(scope="module")
def cached(parts, encode, tmp_path_factory):
    """The cache of the first examples of `compositions`, as another process gets it."""
    assembly, data, _ = parts
    folder = tmp_path_factory.mktemp("features") / "new"
    records = open_split(data.folder, "compositions")[:COUNT]
    found = feature_cache.cache_features(folder, records, assembly.shapes, encode, 4)
    found.lookup(records[0].id)
    return pickle.loads(pickle.dumps(found))


def test_a_complete_cache_is_reused(parts, cached):
    assembly, data, _ = parts
    records = open_split(data.folder, "compositions")[:COUNT]
    again = feature_cache.cache_features(cached.folder, records, assembly.shapes, None, 4)
    assert again.rows == cached.rows
    for name, tokens in again.lookup(records[3].id).items():
        np.testing.assert_array_equal(tokens, cached.lookup(records[3].id)[name])


def test_the_shared_cache_is_keyed_by_all_that_tokens_depend_on(tmp_path):
    here, shared = tmp_path / "run" / "features", tmp_path / "cache"
    facts, still = {"base": "abc", "data": "mini-1"}, {"llama": {"lora_a": np.zeros(1)}}
    folder = feature_cache.cache_folder(here, shared, facts, still)
    assert folder.parent == shared
    assert folder == feature_cache.cache_folder(tmp_path / "other", shared, dict(facts), still)
    assert folder != feature_cache.cache_folder(here, shared, facts | {"base": "abd"}, still)
    trained = still | {"image_tower": {"kernel": np.zeros(1)}}
    assert feature_cache.cache_folder(here, shared, facts, trained) == here
    assert feature_cache.cache_folder(here, shared, {"data": "mini-1"}, still) == here


def batches(parts, count, **options):
    assembly, data, _ = parts
    encode = Encode(assembly.shapes, assembly.prompt, data.classes, {}, **options)
    return fixed_batches(Split(data.folder, "compositions"), encode, 2, count)


def test_cached_tokens_equal_those_of_the_towers(parts, cached, encode):
    told = batches(parts, COUNT // 2, features=cached)
    for shown, given in zip(batches(parts, COUNT // 2), told, strict=True):
        np.testing.assert_array_equal(shown["tokens"], given["tokens"])
        assert not {"image", "audio"} & given.keys()
        for name, tokens in zip(feature_cache.NAMES, encode(shown), strict=True):
            np.testing.assert_allclose(given[name], tokens, **tolerance("kept"))


@pytest.mark.slow
def test_many_threads_may_look_up_at_once(cached):
    """As those of a worker do; two that open the arrays at a time fail once in some tries."""
    scene, interval = next(iter(cached.rows)), sys.getswitchinterval()
    expected = cached.lookup(scene)
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for _ in range(150):
                fresh = pickle.loads(pickle.dumps(cached))
                for found in pool.map(fresh.lookup, [scene] * 8):
                    np.testing.assert_array_equal(found["image_tokens"], expected["image_tokens"])
    finally:
        sys.setswitchinterval(interval)


def sgd_step(parts):
    """A step of the last phase, and the state before the first."""
    assembly, data, fresh = parts
    config, optimizer = to_json(tiny.get_config()), optax.sgd(0.1)
    terms = (
        config["phases"][-1]["weights"],
        data.name_ids(),
        config.get("naming_loss", {}),
        config["avace_loss"],
    )
    step = make_step(assembly, optimizer, *terms, freeze=["_tower/"])
    return step, new_state(fresh, optimizer, 0)


def test_a_step_on_cached_features_equals_a_step_on_media(parts, cached):
    step, state = sgd_step(parts)
    media, features = (
        jax.jit(step)(state, {}, batches(parts, 1, **options)[0])
        for options in ({}, {"features": cached})
    )
    chex.assert_trees_all_close(features, media, **tolerance("kept"))


def test_a_step_is_traced_once_in_a_phase(parts, cached):
    step, state = sgd_step(parts)
    step = jax.jit(chex.assert_max_traces(step, n=1))
    for batch in batches(parts, 3, features=cached):
        state, metrics = step(state, {}, batch)
        chex.assert_tree_all_finite(metrics)


def test_a_phase_reads_only_cached_examples(parts, cached):
    assembly, data, _ = parts
    encode = Encode(assembly.shapes, assembly.prompt, data.classes, {}, features=cached)
    stream = train_batches(Split(data.folder, "compositions"), encode, 2, 0, scenes=COUNT)
    images = np.load(cached.folder / "image_tokens.npy")
    found = [next(stream)["image_tokens"] for _ in range(COUNT)]  # twice over all of them
    rows = [int(np.flatnonzero((images == one).all((1, 2)))[0]) for one in np.concatenate(found)]
    assert sorted(rows) == sorted([*range(COUNT)] * 2)


def test_a_disk_without_room_is_named(parts, tmp_path):
    assembly, data, _ = parts

    class Many:
        """As many scenes as no disk has room for; only the first batch is ever asked for."""

        def __init__(self, records):
            self.records = records

        def __len__(self):
            return 10**12

        def map(self, change):
            return self.records.map(change)

    def encode(batch):
        return np.zeros((4, 2, 3), np.float32), np.zeros((4, 5, 3), np.float32)

    many = Many(open_split(data.folder, "compositions")[:4])
    with pytest.raises(UserError, match=r"image_tokens\.npy: 10{12} examples need .* MiB are free"):
        feature_cache.cache_features(tmp_path / "features", many, assembly.shapes, encode, 4)


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ({"cache_features": 8}, "image_tower/patch/kernel"),
        ({"cache_features": 8, "freeze": ["image_tower/"]}, "audio_tower/"),
        ({"cache_features": 0, "freeze": ["_tower/"]}, "cache_features 0"),
        ({"cache_features": True, "freeze": ["_tower/"]}, "cache_features True"),
    ],
    ids=["both", "audio", "none", "bool"],
)
def test_trained_towers_are_refused(phase, said):
    leaf = np.zeros(1)
    tree = {"image_tower": {"patch": {"kernel": leaf}}, "audio_tower": {"bias": leaf}}
    with pytest.raises(UserError, match="'instruction_tuning'") as caught:
        feature_cache.check_phase(
            {"name": "instruction_tuning"} | phase, tree | {"llama": {"bias": leaf}}
        )
    assert said in str(caught.value)


def test_frozen_towers_are_accepted():
    phase = {"name": "instruction_tuning", "cache_features": 8, "freeze": ["_tower/"]}
    feature_cache.check_phase(phase, {"image_tower": {"bias": np.zeros(1)}})
    feature_cache.check_phase(
        {"name": "instruction_tuning", "cache_features": 8}, {"llama": {"bias": np.zeros(1)}}
    )
    feature_cache.check_phase({"name": "names"}, {"image_tower": {"bias": np.zeros(1)}})
