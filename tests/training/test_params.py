"""Splitting, merging, counting and comparing parameter trees."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meerkat_jax.core import trees as trees
from meerkat_jax.core.errors import UserError

KEYS = st.text(st.characters(exclude_characters="/", exclude_categories=("Cs",)), min_size=1)
LEAVES = st.lists(st.integers(1, 3), max_size=2).map(lambda shape: np.zeros(shape, np.float32))
TREES = st.recursive(
    LEAVES, lambda inner: st.dictionaries(KEYS, inner, min_size=1, max_size=3), max_leaves=9
).filter(lambda tree: isinstance(tree, dict))
TREE = {
    "llama": {"layers": {"q": {"kernel": np.zeros((2, 4, 8)), "lora_a": np.zeros((2, 4, 3))}}},
    "avace": {"q": {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)}},
}


def same(a, b):
    """Equal structure and the very same leaves."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a is b


@given(TREES)
def test_unflatten_inverts_flatten(tree):
    assert same(trees.unflatten(trees.flatten(tree)), tree)


@given(TREES, st.data())
def test_merge_inverts_split_and_halves_are_disjoint(tree, data):
    flat = trees.flatten(tree)
    chosen = data.draw(st.sets(st.sampled_from(sorted(flat))))

    halves = trees.split(tree, [f"^{re.escape(path)}$" for path in chosen])
    assert trees.flatten(halves["trainable"]).keys() == chosen
    assert trees.flatten(halves["frozen"]).keys() == flat.keys() - chosen
    assert trees.flatten(trees.merge(**halves)).keys() == flat.keys()
    assert same(trees.unflatten({k: trees.flatten(trees.merge(**halves))[k] for k in flat}), tree)
    assert sum(trees.count(half) for half in halves.values()) == trees.count(tree)


def test_patterns_are_searched_in_the_path():
    halves = trees.split(TREE, ["lora_[ab]$", "^avace/"])
    assert set(trees.flatten(halves["trainable"])) == {
        "llama/layers/q/lora_a", "avace/q/kernel", "avace/q/bias",
    }  # fmt: skip


def test_no_pattern_freezes_everything():
    assert trees.split(TREE, [])["trainable"] == {}


def test_a_pattern_that_matches_nothing_names_itself_and_the_nearest():
    with pytest.raises(UserError, match=r"'layers/q/lora_c\$'.*nearest.*llama/layers/q/lora_a"):
        trees.split(TREE, ["^avace/", "layers/q/lora_c$"])


def test_a_malformed_pattern_is_named():
    with pytest.raises(UserError, match=r"'lora_\('.*not a regular expression"):
        trees.split(TREE, ["lora_("])


@pytest.mark.parametrize(
    "trainable, frozen",
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}),
        ({"a": {"b": 1}}, {"a": 2}),
        ({"a": 1}, {"a": {"b": {"c": 2}}}),
    ],
)
def test_merge_refuses_overlap(trainable, frozen):
    with pytest.raises(UserError, match="'a"):
        trees.merge(trainable, frozen)


@pytest.mark.parametrize("key", ["a/b", "", 3])
def test_flatten_refuses_keys_that_are_no_path(key):
    with pytest.raises(UserError, match=repr(key)):
        trees.flatten({"top": {key: 1}})


def test_describe_counts_as_peft_does():
    patterns = ["lora_a$", "bias$"]
    first, lora, bias = trees.describe(trees.split(TREE, patterns), patterns).split("\n")
    assert first == "trainable params: 28 || all params: 108 || trainable%: 25.9259"
    assert "lora_a$: 1 leaves, 24 numbers (22.2222 %), as llama/layers/q/lora_a" in lora
    assert "as avace/q/bias" in bias


def test_differences_name_path_and_both_sides():
    ours, theirs = {"a/b": "int8[4]", "c": "1"}, {"a/b": "int8[5]", "d": "2"}
    assert trees.compare(ours, ours) == []
    assert trees.compare(ours, theirs) == [
        "a/b: expected int8[4], found int8[5]",
        "c: expected 1, found nothing",
        "d: expected nothing, found 2",
    ]


def test_running_statistics_stay_frozen_whatever_the_patterns_say():
    tree = {"audio_tower": {"mel_norm": {"bn_mean": 0, "bn_var": 1, "scale": 2}}}
    halves = trees.split(tree, [".*", "bn_"])
    assert halves["trainable"] == {"audio_tower": {"mel_norm": {"scale": 2}}}
    assert trees.merge(**halves) == tree
