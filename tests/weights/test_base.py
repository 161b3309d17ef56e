"""What a config takes from a store: sizes, leaves, positions for another image size."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from meerkat_jax import train
from meerkat_jax.core import config as configs
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten, selected, split, unflatten
from meerkat_jax.from_config import build_model
from meerkat_jax.training.metrics import read_metrics
from meerkat_jax.weights.base import POSITIONS, Base
from meerkat_jax.weights.clip import resize_positions
from meerkat_jax.weights.convert import convert
from tests.conftest import ROOT
from tests.data.sources import built
from tests.weights import published


def quiet(line: str) -> None:
    """Say nothing."""


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    home = tmp_path_factory.mktemp("towers")
    published.clip(home / "clip")
    published.clap(home / "clap")
    return convert({"clip": home / "clip", "clap": home / "clap"}, home / "store", say=quiet)


@pytest.fixture(scope="module")
def whole(towers):
    """A store of all three parts."""
    home = towers.folder.parent
    published.llama(home / "llama")
    kinds = {kind: home / kind for kind in ("clip", "clap", "llama")}
    return convert(kinds, home / "whole", say=quiet)


def filled(store, shapes):
    """The store's leaves in a tree of these shapes, on one device."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    places = dict.fromkeys(shapes, here)
    return flatten(Base(store).fill({}, unflatten(shapes), unflatten(places)))


def test_sections_get_the_sizes_of_their_parts(towers):
    config = {"data": {"sample_rate": 48000}, "model": {"image": {"remat": "full"}}}
    model = Base(towers).resolve(config)["model"]
    assert model["image"]["width"] == 24 and model["image"]["remat"] == "full"
    assert model["audio"]["depths"] == [1, 2, 1, 1] and model["audio"]["fused"]
    assert model["mel"]["variant"] == "htk"


def test_a_sound_at_another_rate_is_refused(towers):
    with pytest.raises(UserError, match="sample_rate is 16000.*48000"):
        Base(towers).resolve({"data": {"sample_rate": 16000}, "model": {}})


def test_another_picture_size_interpolates_positions_and_says_so(towers, capsys):
    config = {"data": {"sample_rate": 48000}, "model": {"image": {"image_size": 48}}}
    assert Base(towers).resolve(config)["model"]["image"]["image_size"] == 48
    got = filled(towers, {POSITIONS: (1 + 36, 24)})[POSITIONS]
    np.testing.assert_array_equal(got, resize_positions(towers.read(POSITIONS), 6))
    assert "16 patches interpolated to 36" in capsys.readouterr().out


def test_what_the_model_lacks_or_has_otherwise_is_told_at_once(towers):
    shapes = {path: jax.ShapeDtypeStruct(leaf.shape, np.float32) for path, leaf in
              towers.leaves.items()}  # fmt: skip
    Base(towers).check(unflatten(shapes))
    gone = shapes.pop("image_tower/class_embedding")
    shapes["audio_tower/norm/scale"] = jax.ShapeDtypeStruct((7,), np.float32)
    with pytest.raises(UserError) as error:
        Base(towers).check(unflatten(shapes))
    assert f"class_embedding: the store has {list(gone.shape)}, the model has none" in str(error)
    assert "audio_tower/norm/scale: the store has [128], the model has [7]" in str(error)


@pytest.mark.parametrize("arg", ["small", "7b", "two_stage", "release"])
def test_an_experiment_fits_its_weights(arg, whole):
    config = configs.to_json(configs.load_config(f"experiments/avfit.py:{arg}"))
    config["base"] = str(whole.folder)
    if arg == "small":  # its towers are fresh: only their words are published
        config["base"] = str(convert({"llama": whole.folder.parent / "llama"},
                                     whole.folder.parent / "words", say=quiet).folder)  # fmt: skip
    if arg == "release":
        config["model"]["conv_align"] = {"heads": 4}  # of 32 features
    base = Base.open(config)
    config = base.resolve(config)
    train.check(config)
    assembly = build_model(config, base.tokenizer)
    shapes = jax.eval_shape(assembly.init, jax.random.key(0))
    base.check(shapes)
    halves = split(shapes, config["trainable"])
    assert not [path for path in flatten(halves["trainable"]) if path in base.store.leaves]
    for phase in config["phases"]:
        selected(phase.get("freeze", ()), flatten(halves["trainable"]))
    assert assembly.prompt.question_ids("Where is it?")


def test_without_a_base_nothing_changes():
    base = Base.open({"base": None})
    config = {"model": {"image": {"width": 3}}}
    assert base.resolve(config) == config and base.origin == {} and base.tokenizer is None
    tree = {"a": {"b": 1}}
    assert base.rest(tree) == tree and base.fill(tree, {}, {}) == tree


@pytest.mark.slow
def test_forkme_trains_on_own_data(whole, cli, tmp_path):
    """From rows of JSON to steps of `7b`, at the sizes of a small store."""
    built.build("jsonl", built.write_tree("jsonl", tmp_path / "trees"), tmp_path / "avfit" / "mine")
    config = f"{ROOT}/experiments/forkme.py:{tmp_path}/avfit/mine,7b"
    done = cli(
        "train", f"--workdir={tmp_path}/run", f"--config={config}",
        f"--config.base={whole.folder}", "--stop_after=2", "--config.batch=1",
        "--config.data.workers=0", "--config.data.pack_length=400",
        "--config.data.max_target_tokens=400", "--config.data.max_answer_tokens=200",
        "--config.evaluate_every=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["step"] == 2 and all(np.isfinite(row.get("loss", 0.0)) for row in rows)
