"""Every batch has its share of matched and boxed pairs, and no example comes more or less often."""

from __future__ import annotations

import itertools
import json
import pickle
from collections import Counter

import numpy as np
import pytest
import soundfile
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.build.shards import Settings, build
from meerkat_jax.data.mixture import mix
from meerkat_jax.data.order import BATCHES, BOXED, MATCHED, BalancedBatches, endless
from meerkat_jax.data.pipeline import Encode, train_batches
from meerkat_jax.data.prompt import make_prompt
from meerkat_jax.data.shapes import Shapes
from meerkat_jax.data.sources.entry import Options
from meerkat_jax.data.sources.jsonl import plan
from meerkat_jax.data.split import Split, open_split, read_manifest
from meerkat_jax.mini.tokenizer import build_mini_tokenizer

LENGTHS = (8, 16, 32)


@st.composite
def data_sets(draw):
    """Records of any mixture, their lengths as unlike between the strata as can be."""
    count, batch = draw(st.integers(1, 90)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    shares = rng.dirichlet(np.full(4, draw(st.sampled_from([0.1, 1.0, 10.0]))))
    strata = rng.choice(4, count, p=shares).astype(np.uint8)
    needed = rng.integers(1, 40, count)
    if draw(st.booleans()):
        needed = 4 + 8 * strata.astype(int)
    return strata, needed, batch


def shuffled(count: int, total: int, seed: int) -> list[int]:
    """As `endless` has them, epoch after epoch, in less time."""
    rng = np.random.default_rng(seed)
    epochs = [rng.permutation(count) for _ in range(-(-total // count))]
    return np.concatenate(epochs)[:total].tolist()


def windows(order: BalancedBatches, count: int) -> list[list[tuple[int, int]]]:
    size = order.batches * order.batch
    return [[order[w * size + i] for i in range(size)] for w in range(count)]


@settings(max_examples=60, deadline=None)
@given(data_sets(), st.integers(0, 5))
def test_each_batch_has_the_share_of_its_window_and_the_window_keeps_its_examples(data, seed):
    strata, needed, batch = data
    plain = shuffled(len(strata), 3 * max(len(strata), batch), seed)
    order = BalancedBatches(plain, strata, needed, LENGTHS, batch, seed)
    assert order.batches * batch <= max(len(strata), batch) and order.batches <= BATCHES
    for number, window in enumerate(windows(order, 3)):
        start = number * len(window)
        numbers_ = np.array([record for record, _ in window])
        assert Counter(numbers_.tolist()) == Counter(plain[start + i] for i in range(len(window)))
        for trait in (MATCHED, BOXED):
            held = ((strata[numbers_] & trait) > 0).reshape(order.batches, batch).sum(axis=1)
            assert np.abs(held - held.mean()).max() < 1
        lengths = np.array([length for _, length in window]).reshape(order.batches, batch)
        longest = np.minimum(needed[numbers_].reshape(lengths.shape).max(axis=1), LENGTHS[-1])
        assert (lengths == lengths[:, :1]).all() and (lengths[:, 0] >= longest).all()
        smaller = np.array([0, *LENGTHS[:-1]])[np.searchsorted(LENGTHS, lengths[:, 0])]
        assert (longest > smaller).all()  # and no longer than they must be


@settings(max_examples=20, deadline=None)
@given(data_sets(), st.integers(1, 4))
def test_every_example_comes_as_often_as_any_other(data, epochs):
    """Up to one, however far one reads: at most an epoch is rearranged."""
    strata, needed, batch = data
    plain = endless([len(strata)], [1.0], 0)
    order = BalancedBatches(plain, strata, needed, LENGTHS, batch, 0)
    whole = [order[i][0] for i in range(epochs * order.batches * batch)]
    drawn = np.bincount(whole, minlength=len(strata))
    assert drawn.max() - drawn.min() <= 1
    if len(strata) % batch == 0 and len(strata) // batch <= BATCHES:
        assert (drawn == epochs).all()


@settings(max_examples=20, deadline=None)
@given(data_sets(), st.integers(0, 200))
def test_the_order_is_the_same_from_anywhere_and_in_another_process(data, start):
    strata, needed, batch = data
    plain = shuffled(len(strata), start + 20 + max(len(strata), batch), 1)
    order = BalancedBatches(plain, strata, needed, LENGTHS, batch, 1)
    found = [order[i] for i in range(start + 20)]
    other = pickle.loads(pickle.dumps(order))  # as a worker gets it
    assert [other[i] for i in range(start, start + 20)] == found[start:]


def test_like_lengths_stay_together_within_the_shares():
    """Half of the matched pairs need twice the length: half of the batches have it."""
    strata = np.repeat([MATCHED | BOXED, 0], 128).astype(np.uint8)
    needed = np.tile([16, 8], 128)
    order = BalancedBatches(endless([256], [1.0], 0), strata, needed, LENGTHS, 4, 0)
    (window,) = windows(order, 1)
    assert Counter(length for _, length in window) == {8: 128, 16: 128}


# ---- data of a user's own ----


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Twenty pairs that match and have a box; twenty that do not, with one short question each."""
    if not flags.FLAGS.is_parsed():  # Grain's worker processes read them
        flags.FLAGS.mark_as_parsed()
    home = tmp_path_factory.mktemp("own")
    tree, rng = home / "tree", np.random.default_rng(0)
    tree.mkdir()
    rows = []
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tree / f"{i}.png")
        soundfile.write(tree / f"{i}.wav", 0.1 * rng.normal(size=1600), 16000)
        row = {"image": f"{i}.png", "audio": f"{i}.wav", "image_labels": ["dog"]}
        if i % 2:
            row |= {"matched": False, "questions": [{"task": "avfact2", "answer": False}]}
        else:
            box = {"boxes": [["dog", 0.1, 0.2, 0.6, 0.8]]}
            asked = [{"task": "arig", **box}, {"task": "avfact1", **box, "answer": True}]
            row |= {"audio_labels": ["dog"], "questions": asked}
        rows.append(json.dumps(row))
    (tree / "annotations.jsonl").write_text("\n".join(rows))
    options = Options()
    build(
        "jsonl", plan(tree, options), tree, home / "root" / "mine", options,
        Settings(shard=16), 1, 0.0, say=lambda line: None,
    )  # fmt: skip
    return mix(home / "root", {"mine": 1.0}, home / "cache")


@pytest.fixture(scope="module")
def reader(own, tmp_path_factory):
    """`train_batches` of them, in batches of 4 that have one of two lengths."""
    split = Split(own, "train")
    texts = [t for e in split.open() for q in e.questions for t in (q.instruction, q.response)]
    prompt = make_prompt(build_mini_tokenizer(texts, read_manifest(own)["classes"]), "llama2")
    needed = split.lengths(prompt, tmp_path_factory.mktemp("lengths")).needed({}, 1)
    shapes = Shapes(
        8,
        16000,
        0.1,
        num_packs=1,
        pack_length=200,
        max_target_tokens=160,
        max_answer_tokens=160,
        pack_lengths=(40,),
    )
    encode = Encode(shapes, prompt, (), {}, needs_image=False, needs_audio=False)

    def read(**settings):
        return train_batches(
            split, encode, 4, seed=0, needed=needed, strata=split.strata(), **settings
        )

    return read


def test_what_a_record_is_stands_beside_it(own):
    for name in ("train", "train/avfact1"):
        examples = open_split(own, name)
        wanted = [MATCHED * e.matched | BOXED * bool(e.boxes) for e in examples]
        assert Split(own, name).strata().tolist() == wanted


def test_unmatched_pairs_with_short_texts_are_not_gathered(reader):
    """By length alone, half of the batches had neither a matched nor a boxed pair."""
    for batch in itertools.islice(reader(), 20):
        assert batch["matched"].sum() == 2
        assert (batch["boxes"][..., 2] > 0).any(axis=1).sum() == 2


def test_batches_go_on_from_any_example_with_any_workers_and_hosts(own, reader):
    whole = list(itertools.islice(reader(), 12))
    for start, workers in ((4, 0), (20, 1), (44, 0)):
        batches = reader(start=start, workers=workers)
        for wanted in whole[start // 4 :]:
            found = next(batches)
            assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
        batches.close()
    halves = [reader(rows=rows) for rows in ((0, 1), (2, 3))]
    for wanted in whole:
        parts = [next(half)["tokens"] for half in halves]
        assert np.array_equal(np.concatenate(parts), wanted["tokens"])


def test_a_folder_of_an_earlier_version_is_to_be_built_again(own, tmp_path):
    (place, _), = Split(own, "train").sources()  # fmt: skip
    for path in place.iterdir():
        if path.name != "parts":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(UserError, match="no part 'matched'.*build it again"):
        Split(tmp_path, "train").strata()


def test_a_part_without_records_is_named(own):
    (place, _), = Split(own, "train").sources()  # fmt: skip
    np.save(place / "parts" / "train-empty.npy", np.zeros(0, np.int64))
    with pytest.raises(UserError, match="no record of split 'train' is in its part 'empty'"):
        Split(own, "train/empty").open()
