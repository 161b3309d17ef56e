"""Own data: each of three models truly trains on it, and docs/own_data.md is a tour that works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from meerkat_jax.aot.abstract_config import stand_in
from meerkat_jax.core import config as configs
from meerkat_jax.core.errors import UserError
from meerkat_jax.data.dataset import name_ids
from meerkat_jax.data.image import load_image
from meerkat_jax.data.pipeline import Encode, affordable, cores, numbers, train_batches
from meerkat_jax.data.prompt import make_prompt
from meerkat_jax.data.shapes import Shapes
from meerkat_jax.data.split import Split, open_split, read_manifest
from meerkat_jax.from_config import check_needed, open_data
from meerkat_jax.mini import templates
from meerkat_jax.mini.tokenizer import build_mini_tokenizer
from meerkat_jax.training.checks import check, check_names
from meerkat_jax.training.metrics import read_metrics
from tests.conftest import ROOT, cli_environment
from tests.data.sources.built import build
from tests.own import write_own

PAGE = (ROOT / "docs" / "own_data.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
SHORT = {"evaluate": ["--limit=2", "--diagnosed=0"]}  # flags that make a command one of a test


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Path:
    """A built folder of 24 scenes, the last four for testing."""
    folder = tmp_path_factory.mktemp("own")
    write_own(folder / "my_data", 24, 4)
    build("jsonl", folder / "my_data", folder / "avfit" / "mine", max_skipped=0.0)
    return folder / "avfit" / "mine"


def forkme(arg: str) -> dict:
    return configs.to_json(configs.load_config(f"{ROOT}/experiments/forkme.py:{arg}"))


@pytest.mark.parametrize("model", ["mini", "small", "7b"])
def test_each_model_reads_own_data_alone(mine, model):
    config = forkme(f"{mine},{model}")
    check(config)
    data = config["data"]
    assert (data["kind"], data["root"], data["sources"]) == ("avfit", str(mine.parent), {"mine": 1})
    assert "mini" not in data and config["name"] == f"{model}-mine"
    for phase in config["phases"]:
        split = Split(mine, phase["split"])
        assert len(split.open()) == 20 and "cache_features" not in phase  # all that there is
        assert {record.id.split("-")[0] for record in split.open()} == {"jsonl"}


def test_batches_of_the_mini_hold_own_examples_and_every_name(mine, tmp_path):
    config = forkme(f"{mine},mini")
    data = open_data(config["data"], tmp_path)
    assert list(data.classes) == read_manifest(mine)["classes"] and len(data.classes) == 8
    assert all(len(data.tokenizer.encode(name)) == 1 for name in data.classes)
    check_names(config["phases"], data.classes)
    section, image_size = config["data"], config["model"]["image"]["image_size"]
    names = (
        "sample_rate",
        "seconds",
        "num_packs",
        "pack_length",
        "max_target_tokens",
        "max_answer_tokens",
        "max_boxes",
        "max_labels",
    )
    shapes = Shapes(image_size=image_size, **{name: section[name] for name in names})
    prompt = make_prompt(data.tokenizer, config["prompt"])
    encode = Encode(shapes, prompt, data.classes, section["task_weights"])
    split, records = Split(data.folder, "train"), open_split(mine, "train")
    assert data.needed(split, prompt, shapes, {}) is None  # and nothing has no room
    batches = train_batches(split, encode, 4, 0)
    order, met = numbers(split, 0), set()
    for number in range(3):
        batch = next(batches)
        for row in range(4):
            record = records[int(order[4 * number + row])]
            met.add(record.id)
            assert np.array_equal(batch["image"][row], load_image(record.image, image_size))
            seen = batch["image_labels"][row]
            assert {data.classes[i] for i in seen if i >= 0} == set(record.image_labels)
            assert batch["loss_mask"][row].sum() > 0
    batches.close()
    assert len(met) == 12 and all(ident.startswith("jsonl-train-scene") for ident in met)


@pytest.mark.parametrize(
    ("arg", "told"),
    [
        ("avfit/mine", "expected FOLDER,MODEL"),
        (",mini", "expected FOLDER,MODEL"),
        ("avfit/mine,mni", "'mni' is unknown; did you mean 'mini'"),
        ("avfit/mine,8b", "did you mean '7b'"),
        ("avfit/mine,", "expected FOLDER,MODEL"),
    ],
)
def test_an_argument_that_cannot_be_meant(arg, told):
    with pytest.raises(UserError, match=told):
        forkme(arg)


def test_whether_the_7b_on_own_data_fits_can_be_asked_without_its_store():
    filled, tokenizer = stand_in(forkme("avfit/mine,7b"))
    assert filled["model"]["image"]["image_size"] == 224 and tokenizer.vocab_size > 32000


def test_names_are_those_of_boxes_and_segments_where_none_are_told(tmp_path):
    write_own(tmp_path / "tree", 6, 0)
    lines = (tmp_path / "tree" / "annotations.jsonl").read_text()
    bare = re.sub(r'"(image_labels|audio_labels)": \[[^]]*\], ', "", lines)
    (tmp_path / "tree" / "annotations.jsonl").write_text(bare)
    build("jsonl", tmp_path / "tree", tmp_path / "out")
    for record in open_split(tmp_path / "out", "train"):
        spots = {s.label for q in record.questions for s in (*q.boxes, *q.segments)}
        spots |= {box.label for box in record.boxes}
        assert set(record.image_labels) == set(record.audio_labels) == spots


def test_data_without_names_is_refused_where_names_are_to_be_learned():
    config = forkme("avfit/mine,mini")
    with pytest.raises(
        UserError, match="'image_naming': image_names learns class names.*\"image_labels\""
    ):
        check_names(config["phases"], ())
    check_names(forkme("avfit/mine,7b")["phases"], ())
    tokenizer = build_mini_tokenizer(["I see a cat."], (), templates.PHRASES)
    assert name_ids(tokenizer, ())[0].shape == (0, 1)


@pytest.mark.parametrize(
    ("spec", "changes", "told"),
    [
        ("7b", {"data": {"kind": "mini"}}, "data.kind is 'mini', which needs config.data.mini"),
        ("mini", {"data": {"kind": "avfit"}}, "needs config.data.root and config.data.sources"),
        ("7b", {"base": None}, "base is None, which needs config.model.image.image_size"),
        ("7b", {"model": {"llama": {"dtype": "bf16"}}}, "model.llama.dtype is 'bf16'; expected"),
    ],
)
def test_a_value_that_asks_for_other_keys_names_them(spec, changes, told):
    config = configs.to_json(configs.load_config(f"{ROOT}/experiments/avfit.py:{spec}"))
    check_needed(config)
    for key, value in changes.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    with pytest.raises(UserError, match=told):
        check_needed(config)
        check(config)


def test_no_more_workers_than_cores_and_it_is_told():
    said = []
    assert affordable(cores() + 3, said.append) == cores() and affordable(0, said.append) == 0
    assert said == [
        f"data.workers is {cores() + 3}, this process may use {cores()} cores: {cores()} workers"
    ]


@pytest.mark.slow
def test_the_page_is_a_tour_that_works(tmp_path):
    """Its commands as they are, but for the size of the model and a few limits."""
    write_own(tmp_path / "my_data")
    env = cli_environment(tmp_path / "cache")
    for line in COMMANDS:
        name = re.search(r"meerkat_jax\.(?:data\.)?(\w+)", line)[1]
        words = shlex.split(line.replace("experiments/forkme.py", f"{ROOT}/tests/own.py"))
        done = subprocess.run(
            [sys.executable, *words[1:], *SHORT.get(name, ())],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert "leaked" not in done.stderr
    rows = read_metrics(tmp_path / "runs" / "mine")
    assert rows[-1]["step"] == 8
    assert (tmp_path / "avfit" / "mine" / "browse.html").is_file()
    assert "mine/arig" in (tmp_path / "runs" / "mine" / "benchmark.json").read_text()
