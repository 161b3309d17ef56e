"""`7b` and `release` are what docs/decisions.md says of them, setting by setting, with a source."""

from __future__ import annotations

import json
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from meerkat_jax.alignment.avace import in_box_loss
from meerkat_jax.core import config as configs
from meerkat_jax.mini.tokenizer import build_mini_tokenizer, token_values
from meerkat_jax.training.losses import number_soft_targets
from tests.conftest import ROOT

HEAD = "| setting | `7b` | `release` | published | source | why |"
ARGS = ("7b", "release")
SOURCE = re.compile(r"\[[FC]\][^|]*|ours")
LOSSES = {"answer", "avopt", "avace"}  # the paper's


def load(arg: str) -> dict:
    return configs.to_json(configs.load_config(f"experiments/{arg}"))


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Path, as on the command line -> value; an empty dict or list is a value."""
    if node and isinstance(node, dict):
        below = {f"{path}.{key}" if path else key: value for key, value in node.items()}
    elif node and isinstance(node, list):
        below = {f"{path}[{i}]": value for i, value in enumerate(node)}
    else:
        return {path: node}
    return {key: leaf for name, value in below.items() for key, leaf in leaves(value, name).items()}


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    """The cells of the table's rows."""
    lines = (ROOT / "docs" / "decisions.md").read_text().splitlines()
    start = lines.index(HEAD) + 2
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[start:end]]


@pytest.mark.parametrize("arg", ARGS)
def test_every_setting_has_its_row_and_every_row_its_setting(rows, arg):
    told = {}
    for row in rows:
        assert len(row) == 6, row
        said = row[1 + ARGS.index(arg)]
        if said != "-":
            told[row[0].strip("`")] = json.loads(said.strip("`"))
    assert told == leaves(load(f"avfit.py:{arg}"))


def test_every_row_has_a_source_and_a_reason(rows):
    names = [row[0] for row in rows]
    assert len(set(names)) == len(names) > 80
    for name, seven, release, published, source, why in rows:
        assert SOURCE.fullmatch(source), name
        assert (published == "-") <= (source == "ours" or source.startswith("[C]")), name
        assert why and (seven, release) != ("-", "-"), name


@pytest.mark.parametrize(
    "arg",
    [f"avfit.py:{arg}" for arg in ("small", "7b", "release", "two_stage")]
    + ["forkme.py:avfit/mine,7b"],
)
def test_attention_within_the_box_costs_nothing_outside_of_the_mini(arg):
    """The paper's optimum: all on one patch of the box. The mini's KL term asks 16.2 for it."""
    attention, coverage = np.zeros((1, 196), np.float32), np.zeros((1, 196), np.float32)
    attention[0, 30], coverage[0, 28:168] = 1.0, 1.0
    loss = in_box_loss(jnp.asarray(attention), jnp.asarray(coverage), **load(arg)["avace_loss"])
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    mini = in_box_loss(
        jnp.asarray(attention), jnp.asarray(coverage), **load("avfit.py:mini")["avace_loss"]
    )
    assert mini[0] > 10


@pytest.mark.parametrize(
    "arg", [f"avfit.py:{a}" for a in (*ARGS, "two_stage")] + ["forkme.py:avfit/mine,7b"]
)
def test_no_loss_of_the_mini_reaches_the_papers_model(arg):
    config = load(arg)
    assert config["initialisers"] == "plain" and "naming_loss" not in config
    assert not {"position_embedding", "image_pool"} & config["model"].keys()
    assert "attention_embedding" not in config["model"]["avace"]
    for phase in config["phases"]:
        assert set(phase["weights"]) == LOSSES
        assert phase.keys() <= {"name", "split", "steps", "learning_rate", "warmup", "weights",
                                "sources"}  # fmt: skip
    # numbers as single tokens, as the mini spells them: their targets are hard all the same
    values = token_values(build_mini_tokenizer(["a dog"], ("dog",)))
    assert any(np.isfinite(value).any() for value in values.values())
    assert number_soft_targets(values, **config.get("number_soft_targets", {})) is None


def test_two_stages_are_the_papers_model_in_two_phases():
    one, two = load("avfit.py:7b"), load("avfit.py:two_stage")
    for config in (one, two):
        del config["name"]
    (whole,), stages = one.pop("phases"), two.pop("phases")
    assert one == two
    assert sum(stage["steps"] for stage in stages) == whole["steps"]
    for stage in stages:
        differing = {key for key in stage | whole if stage.get(key) != whole.get(key)}
        assert differing <= {"name", "steps", "sources"}
