"""Several built folders as one data set: shares, repeats, resumption, hosts, and a run on them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meerkat_jax.core.errors import UserError
from meerkat_jax.data.dataset import DataSet
from meerkat_jax.data.lengths import Lengths
from meerkat_jax.data.mixture import mix
from meerkat_jax.data.order import BalancedBatches
from meerkat_jax.data.pipeline import Encode, Rows, numbers, train_batches
from meerkat_jax.data.prompt import make_prompt
from meerkat_jax.data.shapes import Shapes
from meerkat_jax.data.sources.registry import SOURCES
from meerkat_jax.data.split import Split, has_split, open_split, read_manifest
from meerkat_jax.mini.tokenizer import build_mini_tokenizer
from meerkat_jax.training.metrics import read_metrics
from tests.conftest import ROOT
from tests.data.sources.built import build, write_tree

# Built in the order of docs/data.md: what tests first. The trees share clips, as the real sets do.
REPEATS = {"openimages_audioset": 1.0, "openimages_strong": 2.0, "valor": 3.0, "vggss": 1.0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    trees, root = tmp_path_factory.mktemp("trees"), tmp_path_factory.mktemp("avfit")
    for source in SOURCES:
        build(source, write_tree(source, trees), root / source)
    return root


@pytest.fixture(scope="module")
def mixed(root, tmp_path_factory):
    return mix(root, REPEATS, tmp_path_factory.mktemp("cache"))


def test_an_epoch_has_every_example_as_often_as_its_source_repeats(mixed, root):
    sizes = {name: len(open_split(root / name, "train"))
             for name in REPEATS if has_split(root / name, "train")}  # fmt: skip
    assert sizes.keys() == REPEATS.keys() - {"vggss"}  # which only tests
    total = round(sum(size * REPEATS[name] for name, size in sizes.items()))
    records, order = open_split(mixed, "train"), numbers(Split(mixed, "train"), 0)
    drawn = Counter(records[order[i]].id for i in range(total))
    for name in sizes:
        for example in open_split(root / name, "train"):
            assert abs(drawn[example.id] - REPEATS[name]) <= 1
    by_source = Counter(records[order[i]].source for i in range(total))
    assert all(abs(by_source[name] - size * REPEATS[name]) <= 1 for name, size in sizes.items())


def test_no_example_comes_again_before_all_of_its_source_have_come(mixed, root):
    records, order = open_split(mixed, "train"), numbers(Split(mixed, "train"), 3)
    size = len(open_split(root / "openimages_strong", "train"))
    drawn = [records[order[i]] for i in range(8 * size)]
    ids = [record.id for record in drawn if record.source == "openimages_strong"]
    assert len(set(ids[:size])) == size and ids[:size] != ids[size : 2 * size]


def test_the_order_is_that_of_the_seed_from_any_place_and_on_any_number_of_hosts(mixed):
    split = Split(mixed, "train")
    whole = [numbers(split, 1)[i] for i in range(24)]
    assert [numbers(split, 1)[8:][i] for i in range(16)] == whole[8:]
    assert [numbers(split, 2)[i] for i in range(24)] != whole
    halves = [Rows(numbers(split, 1), 4, rows) for rows in ((0, 1), (2, 3))]
    rows = [[half[i] for i in range(12)] for half in halves]
    assert [rows[h][2 * b + r] for b in range(6) for h in (0, 1) for r in (0, 1)] == whole


def test_parts_and_test_splits_are_read_over_all_sources(mixed, root):
    assert {q.task for e in open_split(mixed, "train/avc") for q in e.questions} == {"avc"}
    tested = [open_split(root / name, "test") for name in REPEATS if has_split(root / name, "test")]
    assert len(open_split(mixed, "test")) == sum(map(len, tested))
    with pytest.raises(UserError, match="no split 'trian'"):
        open_split(mixed, "trian")


def test_a_phase_can_read_some_sources_with_repeats_of_its_own(mixed, root):
    split = Split(mixed, "train", {"openimages_strong": 2.0, "valor": 1.0})
    records, order = split.open(), numbers(split, 0)
    sizes = {name: len(open_split(root / name, "train")) for name in split.repeats}
    total = 2 * sizes["openimages_strong"] + sizes["valor"]
    drawn = Counter(records[order[i]].source for i in range(total))
    assert abs(drawn["valor"] - sizes["valor"]) <= 1 and drawn.total() == total
    assert drawn.keys() == split.repeats.keys()
    with pytest.raises(UserError, match="'valour' is none of the mixture's.*valor"):
        Split(mixed, "train", {"valour": 1.0}).open()


# ---- lengths ----


@pytest.fixture(scope="module")
def prompt(mixed):
    texts = [t for e in open_split(mixed, "train") for q in e.questions
             for t in (q.instruction, q.response)]  # fmt: skip
    return make_prompt(build_mini_tokenizer(texts, read_manifest(mixed)["classes"]), "llama2")


def test_lengths_are_those_of_the_questions_in_the_records(mixed, prompt, tmp_path):
    for name in ("train", "train/igatl"):
        split = Split(mixed, name)
        found = split.lengths(prompt, tmp_path)
        asked = [list(e.questions) for e in split.open()]
        assert np.diff(found.first).tolist() == [len(questions) for questions in asked]
        every = [q for questions in asked for q in questions]
        assert found.answer.tolist() == [len(prompt.answer_ids(q.response)) for q in every]
        assert found.question.tolist() == [len(prompt.question_ids(q.instruction)) for q in every]
        kinds = [found.kinds[kind] for kind in found.kind]
        assert kinds == [f"{q.task}/{q.truth['kind']}" for q in every]
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    Split(mixed, "train").lengths(prompt, tmp_path)  # measured once
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=6), min_size=1),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
def test_all_questions_find_a_place_in_the_length_that_they_need(asked, runs, random):
    first = np.cumsum([0, *map(len, asked)])
    question, answer = np.array([q for one in asked for q in one], int).reshape(-1, 2).T
    lengths = Lengths(first, question, answer, np.zeros(len(question), int), ("avqa/word",))
    for sizes, needed in zip(asked, lengths.needed({}, runs), strict=True):
        used = [0] * runs
        for size in random.sample([q + a for q, a in sizes], len(sizes)):  # as prompt.pack does
            used[next(r for r in range(runs) if used[r] + size <= needed)] += size
    assert not lengths.needed({"avqa": 0.0}, runs).any()


def test_batches_are_as_long_as_their_texts_and_nothing_is_lost(mixed, prompt, tmp_path):
    """As without lengths: every example as often, all of its questions, from any place on."""
    split = Split(mixed, "train")
    shapes = Shapes(
        8,
        8000,
        0.1,
        num_packs=2,
        pack_length=260,
        max_target_tokens=200,
        max_answer_tokens=200,
        max_boxes=16,
        max_labels=16,
    )
    needed = split.lengths(prompt, tmp_path).needed({}, 2)
    shapes = dataclasses.replace(
        shapes, pack_lengths=tuple(sorted({int(np.quantile(needed, q)) for q in (0.6, 0.85)}))
    )
    encode = Encode(shapes, prompt, (), {}, needs_image=False, needs_audio=False)
    strata = split.strata()
    order = BalancedBatches(numbers(split, 5), strata, needed, (*shapes.pack_lengths, 260), 4, 5)
    window = [order[i] for i in range(4 * order.batches)]
    plain = [numbers(split, 5)[i] for i in range(4 * order.batches)]
    assert Counter(number for number, _ in window) == Counter(plain)
    assert len({length for _, length in window}) == 3
    spent = sum(length for _, length in window)
    assert spent < 0.9 * 260 * len(window)
    records = split.open()
    known = {"needed": needed, "strata": strata}
    found = list(itertools.islice(train_batches(split, encode, 4, 5, **known), 24))
    for batch, start in zip(found, range(0, 96, 4), strict=True):
        numbers_, lengths = zip(*window[start : start + 4], strict=True)
        assert set(lengths) == {batch["tokens"].shape[-1]}
        counts = [len(records[number].questions) for number in numbers_]
        assert (batch["segment_ids"].max(axis=(1, 2)) + 1).tolist() == counts
        for number, segment_ids in zip(numbers_, batch["segment_ids"], strict=True):
            assert len(np.unique(segment_ids[segment_ids >= 0])) == len(records[number].questions)
    halves = [train_batches(split, encode, 4, 5, 32, rows=rows, **known)
              for rows in ((0, 1), (2, 3))]  # fmt: skip
    for batch in found[8:]:
        parts = [next(half)["tokens"] for half in halves]
        assert np.array_equal(np.concatenate(parts), batch["tokens"])


def test_questions_without_room_are_refused_by_name_and_not_scored(mixed, prompt, tmp_path):
    shapes = Shapes(
        8, 8000, 0.1, num_packs=1, pack_length=60, max_target_tokens=30, max_answer_tokens=8
    )
    data = DataSet(mixed, (), prompt.tokenizer, tmp_path)
    with pytest.raises(UserError, match=r"questions of split 'train/avc'.*first in valor-train-.*"
                                        r"data.max_answer_tokens is 8"):  # fmt: skip
        data.needed(Split(mixed, "train/avc"), prompt, shapes, {})
    wide = dataclasses.replace(
        shapes, pack_length=900, max_target_tokens=900, max_answer_tokens=900
    )
    assert data.needed(Split(mixed, "train/avc"), prompt, wide, {}) is None  # all of one length
    assert data.needed(Split(mixed, "train/avc"), prompt, shapes, {"avc": 0.0}) is None
    said = []
    some = data.fitting("test", prompt, shapes, {}, said.append)
    every = range(len(open_split(mixed, "test")))
    assert 0 < len(some) < len(every) and f"{len(every) - len(some)} of {len(every)}" in said[0]
    lengths = Split(mixed, "test").lengths(prompt, tmp_path)
    for number in every:
        room = lengths.of(np.array([number])).answer.max() <= 8
        size = lengths.of(np.array([number]))
        assert (number in some) == (room and (size.question + size.answer).max() <= 60)
    assert len(data.fitting("test", prompt, wide, {}, said.append)) == len(every)


def test_the_name_of_a_mixture_is_of_what_is_in_it(root, mixed, tmp_path):
    assert mix(root, REPEATS, tmp_path).name == mixed.name
    assert mix(root, REPEATS | {"valor": 1.0}, tmp_path).name != mixed.name
    assert {"dog", "cat"} <= set(read_manifest(mixed)["classes"])


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({}, "data.sources is empty"),
        ({"valour": 1.0}, "did you mean 'valor'"),
        ({"valor": -1.0}, "repeats from 0 up"),
    ],
)
def test_what_is_refused(root, tmp_path, sources, words):
    with pytest.raises(UserError, match=words):
        mix(root, sources, tmp_path)


def test_a_leak_is_refused_by_name(root, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(root / "valor")
    (tmp_path / "c").mkdir()
    for path in (root / "valor").iterdir():
        if path.name != "keys":
            (tmp_path / "c" / path.name).symlink_to(path)
    (tmp_path / "c" / "keys").mkdir()
    keys = (root / "valor" / "keys" / "train.npy").read_bytes()
    (tmp_path / "c" / "keys" / "test.npy").write_bytes(keys)
    with pytest.raises(UserError, match=r"video:.*build a anew .*--exclude=.*c"):
        mix(tmp_path, {"a": 1.0, "c": 1.0}, tmp_path / "cache")


TRAINED = [name for name in SOURCES if name not in ("avfit", "jsonl")]


def test_a_run_streams_all_sources(root, train, tmp_path):
    """Of the trees, whose videos are one data set's test and another's training, those that fit."""
    chosen = {}
    for name in TRAINED:
        try:
            mix(root, chosen | {name: 1.0}, tmp_path / "cache")
        except UserError as error:
            assert "--exclude" in str(error)
        else:
            chosen[name] = 1.0
    assert len(chosen) >= 8, chosen
    config = tmp_path / "config.py"
    config.write_text(
        "from meerkat_jax.core.config import load_config\n"
        "import ml_collections\n"
        "def get_config():\n"
        f"    config = load_config({str(ROOT / 'tests' / 'tiny.py')!r}).to_dict()\n"
        f"    config['data'] |= dict(kind='avfit', root={str(root)!r}, sources={chosen!r},\n"
        "        max_boxes=16, max_labels=16, num_packs=1, pack_length=260, pack_lengths=[96],"
        "        max_target_tokens=200, max_answer_tokens=200,"
        " task_weights={})\n"
        "    phase = config['phases'][-1]\n"
        "    phase.pop('cache_features', None)\n"
        "    config['phases'] = [phase | dict(split='train', steps=4, task_weights={}"
        f", sources={dict.fromkeys(chosen, 2.0)!r}, weights={{'answer': 1.0}})]\n"
        "    return ml_collections.ConfigDict(config)\n"
    )
    done = train(tmp_path / "run", f"--config={config}")
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["step"] == 4 and any(key.startswith("eval") for row in rows for key in row)
    assert re.search(r"packs of (96|260) tokens: compiled", done.stdout)
    meta = json.loads((tmp_path / "run" / "config.json").read_text())
    assert meta["data"]["sources"] == chosen
