"""Tower tokens that are made once: those that the towers give, to the scenes that they are of."""

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

COUNT = 6  # scenes that are kept, in batches of four: the last one is not full


@pytest.fixture(scope="module")
def parts(cache):
    """(assembly, data, parameters) of the tiny config."""
    config = to_json(tiny.get_config())
    data = open_data(config["data"], cache)
    assembly = build_model(config, data.tokenizer)
    return assembly, data, assembly.init(jax.random.key(0))


@pytest.fixture(scope="module")
def sense(parts):
    assembly, _, fresh = parts
    return jax.jit(lambda batch: assembly.sense(fresh, batch))


@pytest.fixture(scope="module")
def kept(parts, sense, tmp_path_factory):
    """What is kept of the first scenes of the split `compositions`, as another process gets it."""
    assembly, data, _ = parts
    folder = tmp_path_factory.mktemp("senses") / "new"
    records = open_split(data.folder, "compositions")[:COUNT]
    found = feature_cache.keep(folder, records, assembly.shapes, sense, 4)
    found.of(records[0].id)
    return pickle.loads(pickle.dumps(found))


def test_what_is_whole_is_not_made_again(parts, kept):
    assembly, data, _ = parts
    records = open_split(data.folder, "compositions")[:COUNT]
    again = feature_cache.keep(kept.folder, records, assembly.shapes, None, 4)
    assert again.rows == kept.rows
    for name, tokens in again.of(records[3].id).items():
        np.testing.assert_array_equal(tokens, kept.of(records[3].id)[name])


def test_tokens_of_published_towers_at_rest_are_shared_by_all_they_depend_on(tmp_path):
    here, shared = tmp_path / "run" / "senses", tmp_path / "cache"
    facts, still = {"base": "abc", "data": "mini-1"}, {"llama": {"lora_a": np.zeros(1)}}
    folder = feature_cache.folder_of(here, shared, facts, still)
    assert folder.parent == shared
    assert folder == feature_cache.folder_of(tmp_path / "other", shared, dict(facts), still)
    assert folder != feature_cache.folder_of(here, shared, facts | {"base": "abd"}, still)
    trained = still | {"image_tower": {"kernel": np.zeros(1)}}
    assert feature_cache.folder_of(here, shared, facts, trained) == here
    assert feature_cache.folder_of(here, shared, {"data": "mini-1"}, still) == here


def batches(parts, count, **options):
    assembly, data, _ = parts
    encode = Encode(assembly.shapes, assembly.prompt, data.classes, {}, **options)
    return fixed_batches(Split(data.folder, "compositions"), encode, 2, count)


def test_what_is_kept_is_what_the_towers_give(parts, kept, sense):
    told = batches(parts, COUNT // 2, kept=kept)
    for shown, given in zip(batches(parts, COUNT // 2), told, strict=True):
        np.testing.assert_array_equal(shown["tokens"], given["tokens"])
        assert not {"image", "audio"} & given.keys()
        for name, tokens in zip(feature_cache.NAMES, sense(shown), strict=True):
            np.testing.assert_allclose(given[name], tokens, **tolerance("kept"))


@pytest.mark.slow
def test_many_threads_may_look_up_at_once(kept):
    """As those of a worker do; two that open the arrays at a time fail once in some tries."""
    scene, interval = next(iter(kept.rows)), sys.getswitchinterval()
    expected = kept.of(scene)
    sys.setswitchinterval(1e-6)
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for _ in range(150):
                fresh = pickle.loads(pickle.dumps(kept))
                for found in pool.map(fresh.of, [scene] * 8):
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
    step = make_step(assembly, optimizer, *terms, still=["_tower/"])
    return step, new_state(fresh, optimizer, 0)


def test_a_step_on_kept_senses_is_that_on_media(parts, kept):
    step, state = sgd_step(parts)
    media, features = (
        jax.jit(step)(state, {}, batches(parts, 1, **options)[0])
        for options in ({}, {"kept": kept})
    )
    chex.assert_trees_all_close(features, media, **tolerance("kept"))


def test_a_step_is_traced_once_in_a_phase(parts, kept):
    step, state = sgd_step(parts)
    step = jax.jit(chex.assert_max_traces(step, n=1))
    for batch in batches(parts, 3, kept=kept):
        state, metrics = step(state, {}, batch)
        chex.assert_tree_all_finite(metrics)


def test_a_phase_reads_only_the_scenes_that_are_kept(parts, kept):
    assembly, data, _ = parts
    encode = Encode(assembly.shapes, assembly.prompt, data.classes, {}, kept=kept)
    stream = train_batches(Split(data.folder, "compositions"), encode, 2, 0, scenes=COUNT)
    images = np.load(kept.folder / "image_tokens.npy")
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

    def sense(batch):
        return np.zeros((4, 2, 3), np.float32), np.zeros((4, 5, 3), np.float32)

    many = Many(open_split(data.folder, "compositions")[:4])
    with pytest.raises(UserError, match=r"image_tokens\.npy: 10{12} scenes need .* MiB are free"):
        feature_cache.keep(tmp_path / "senses", many, assembly.shapes, sense, 4)


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        ({"kept": 8}, "image_tower/patch/kernel"),
        ({"kept": 8, "still": ["image_tower/"]}, "audio_tower/"),
        ({"kept": 0, "still": ["_tower/"]}, "kept 0"),
        ({"kept": True, "still": ["_tower/"]}, "kept True"),
    ],
    ids=["both", "audio", "none", "bool"],
)
def test_moving_towers_are_refused(phase, said):
    leaf = np.zeros(1)
    tree = {"image_tower": {"patch": {"kernel": leaf}}, "audio_tower": {"bias": leaf}}
    with pytest.raises(UserError, match="'answers'") as caught:
        feature_cache.check_kept({"name": "answers"} | phase, tree | {"llama": {"bias": leaf}})
    assert said in str(caught.value)


def test_towers_at_rest_or_frozen_are_kept():
    phase = {"name": "answers", "kept": 8, "still": ["_tower/"]}
    feature_cache.check_kept(phase, {"image_tower": {"bias": np.zeros(1)}})
    feature_cache.check_kept({"name": "answers", "kept": 8}, {"llama": {"bias": np.zeros(1)}})
    feature_cache.check_kept({"name": "names"}, {"image_tower": {"bias": np.zeros(1)}})
