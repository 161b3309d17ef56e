"""The experiments' configs build their models; the table over an ablation's arms and seeds."""

from __future__ import annotations

import json
import sys

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from experiments.ablations.summary import ROWS, collect, table
from meerkat_jax import train
from meerkat_jax.core import config as configs
from meerkat_jax.core.errors import UserError
from meerkat_jax.from_config import build_model
from meerkat_jax.mini import templates
from meerkat_jax.mini.tokenizer import build_mini_tokenizer


def write(folder, arm, seed, score):
    entries = {}
    for tasks, metric in ROWS.values():
        for task in tasks:
            entries.setdefault(f"compositions/{task}", {})[metric] = score
    (folder / f"{arm}-{seed}").mkdir()
    (folder / f"{arm}-{seed}" / "benchmark.json").write_text(json.dumps(entries))


def test_cells_are_mean_lowest_and_highest_over_the_seeds(tmp_path):
    for seed, score in enumerate((0.2, 0.4, 0.9)):
        write(tmp_path, "full", seed, score)
        write(tmp_path, "no_avace", seed, 0.1)
    lines = table(collect(tmp_path)).splitlines()
    assert lines[0] == "| compositions | full | no_avace |"
    assert len(lines) == 2 + len(ROWS)
    assert all(line.endswith("| 0.500 (0.20-0.90) | 0.100 (0.10-0.10) |") for line in lines[2:])


def test_arms_with_different_seeds_are_not_compared(tmp_path):
    write(tmp_path, "full", 0, 0.5)
    write(tmp_path, "no_avace", 1, 0.5)
    with pytest.raises(ValueError, match="different seeds"):
        collect(tmp_path)


def test_a_folder_without_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluate first"):
        collect(tmp_path)


EXPERIMENTS = [
    "avfit.py:mini",
    *(f"ablations/alignment.py:{arm}" for arm in ("full", "no_avopt", "no_avace", "neither")),
]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_is_accepted_by_train_and_builds_its_model(experiment):
    config = configs.to_json(configs.load_config(f"experiments/{experiment}"))
    train.check(config)
    tokenizer = build_mini_tokenizer(["I see a cat."], ("cat", "dog"), templates.PHRASES)
    assembly = build_model(config, tokenizer)
    shapes = jax.eval_shape(assembly.init, jax.random.key(0))
    rows, columns = assembly.model.image_grid
    assert shapes["image_position"]["position_embedding"].shape[0] == rows * columns


SPECS = [
    *(f"experiments/avfit.py:{arg}" for arg in ("mini", "small", "7b", "two_stage", "release")),
    *(f"experiments/forkme.py:avfit/mine,{model}" for model in ("mini", "small", "7b")),
    "experiments/ablations/alignment.py",
    "tests/tiny.py",
    "tests/own.py:avfit/mine,mini",
]


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_none_can_be_given_on_the_command_line(spec, monkeypatch):
    leaves = configs._leaves(configs.load_config(spec).to_dict())
    keys = [key for key, value in leaves.items() if value is None]
    assert {"adapter", "adapter_base"} <= set(keys)
    argv = ["train", f"--config={spec}", *(f"--config.{key}=given" for key in keys)]
    monkeypatch.setattr(sys, "argv", argv)  # config_flags looks there for the keys
    found = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=found)
    found(argv)
    changed = configs._leaves(found.config.to_dict())
    assert changed == leaves | dict.fromkeys(keys, "given")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"task_weights": {"igatll": 4.0}}, "'igatll' names no task; did you mean 'igatl'"),
        (
            {"pack_lengths": [64, 32]},
            r"data.pack_lengths is \[64, 32\]; expected rising whole numbers below",
        ),
        ({"pack_lengths": [192]}, "below data.pack_length=192"),
        ({"pack_lengths": [60]}, "loss_pieces is 8, which does not divide 60"),
    ],
)
def test_numbers_of_texts_that_cannot_be_meant(data, words):
    config = configs.to_json(configs.load_config("experiments/avfit.py:7b"))
    train.check(config)
    with pytest.raises(UserError, match=words):
        train.check(config | {"data": config["data"] | data})
