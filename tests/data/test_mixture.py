"""Several built folders as one data set: shares, repeats, resumption, hosts, and a run on them."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from meerkat_jax.data.mixture import mix
from meerkat_jax.data.pipeline import Rows, endless, has_split, open_split, read_manifest
from meerkat_jax.data.sources.registry import SOURCES
from meerkat_jax.errors import UserError
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
    records = endless(mixed, "train", 0)
    drawn = Counter(records[i].id for i in range(total))
    for name in sizes:
        for example in open_split(root / name, "train"):
            assert abs(drawn[example.id] - REPEATS[name]) <= 1
    by_source = Counter(records[i].source for i in range(total))
    assert all(abs(by_source[name] - size * REPEATS[name]) <= 1 for name, size in sizes.items())


def test_no_example_comes_again_before_all_of_its_source_have_come(mixed, root):
    records = endless(mixed, "train", 3)
    size = len(open_split(root / "openimages_strong", "train"))
    ids = [records[i].id for i in range(8 * size) if records[i].source == "openimages_strong"]
    assert len(set(ids[:size])) == size and ids[:size] != ids[size : 2 * size]


def test_the_order_is_that_of_the_seed_from_any_place_and_on_any_number_of_hosts(mixed):
    whole = [endless(mixed, "train", 1)[i].id for i in range(24)]
    assert [endless(mixed, "train", 1)[8:][i].id for i in range(16)] == whole[8:]
    assert [endless(mixed, "train", 2)[i].id for i in range(24)] != whole
    halves = [Rows(endless(mixed, "train", 1), 4, rows) for rows in ((0, 1), (2, 3))]
    rows = [[half[i].id for i in range(12)] for half in halves]
    assert [rows[h][2 * b + r] for b in range(6) for h in (0, 1) for r in (0, 1)] == whole


def test_parts_and_test_splits_are_read_over_all_sources(mixed, root):
    assert {q.task for e in open_split(mixed, "train/avc") for q in e.questions} == {"avc"}
    tested = [open_split(root / name, "test") for name in REPEATS if has_split(root / name, "test")]
    assert len(open_split(mixed, "test")) == sum(map(len, tested))
    with pytest.raises(UserError, match="no split 'trian'"):
        open_split(mixed, "trian")


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
    with pytest.raises(UserError, match=r"video:.*build a with --exclude=.*c"):
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
        "from meerkat_jax.training.config import load_config\n"
        "import ml_collections\n"
        "def get_config():\n"
        f"    config = load_config({str(ROOT / 'tests' / 'tiny.py')!r}).to_dict()\n"
        f"    config['data'] |= dict(kind='avfit', root={str(root)!r}, sources={chosen!r},\n"
        "        boxes=16, names=16, runs=1, length=260, room=200, answer=200, task_weights={})\n"
        "    phase = config['phases'][-1]\n"
        "    phase.pop('kept', None)\n"
        "    config['phases'] = [phase | dict(split='train', steps=4, task_weights={}"
        ", weights={'answer': 1.0})]\n"
        "    return ml_collections.ConfigDict(config)\n"
    )
    done = train(tmp_path / "run", f"--config={config}")
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["step"] == 4 and any(key.startswith("eval") for row in rows for key in row)
    meta = json.loads((tmp_path / "run" / "config.json").read_text())
    assert meta["data"]["sources"] == chosen
