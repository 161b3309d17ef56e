"""The train command: whole runs in real processes, and what one step does to the parameters."""

import functools
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from meerkat_jax.core import trees
from meerkat_jax.core.config import to_json
from meerkat_jax.core.trees import STATISTICS
from meerkat_jax.core.workdir import read_config
from meerkat_jax.data.pipeline import Encode, fixed_batches
from meerkat_jax.data.split import Split
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.from_config import build_model, open_data
from meerkat_jax.training.losses import TERMS
from meerkat_jax.training.metrics import TIMING, read_metrics
from meerkat_jax.training.step import make_step, new_state
from meerkat_jax.weights.checkpoints import Checkpoints
from tests import tiny
from tests.conftest import TINY
from tests.tolerances import tolerance

STEPS = (
    8  # of the tiny config: 1 of phase "lm_warmup", 2 of "image_naming", 5 of "instruction_tuning"
)
CONTRAST = {"temperature": 0.1, "threshold": 0.9, "sharpness": {"image": 10.0, "audio": 10.0}}
BOX = {"inside_weight": 0.5, "outside_weight": 0.5, "kl_weight": 1.0}
FAST = {"xla_backend_optimization_level": 0}  # compile in a third of the time


def refusal(done):
    """The one line in which a command refuses; asserts that it is one, and the exit code."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


# Whole runs --------------------------------------------------------------------------------------


def test_work_directory_holds_the_run(finished):
    names = {path.name for path in finished.iterdir()}
    assert names >= {
        "config.json", "versions.json", "tokenizer.json", "metrics.jsonl", "tensorboard",
        "checkpoints",
    }  # fmt: skip
    assert read_config(finished).to_dict() == to_json(tiny.get_config())
    assert json.loads((finished / "versions.json").read_text())["packages"]["jax"]
    assert any((finished / "tensorboard").iterdir())


def test_metrics_hold_every_term_and_rate(finished):
    rows = read_metrics(finished)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 6, 8]  # each second, and a phase's last
    assert [row["phase"] for row in steps] == ["lm_warmup"] + ["image_naming"] * 2 + [
        "instruction_tuning"
    ] * 3
    phases = {phase["name"]: phase for phase in tiny.get_config().to_dict()["phases"]}
    for row in steps:
        terms = {f"loss/{term}" for term in phases[row["phase"]]["weights"]}
        assert {key for key in row if key.startswith("loss/")} == terms
    fields = {"grad_norm", "learning_rate", "token_accuracy", *terms}
    fields |= TIMING - {"seconds", "tflops", "mfu"}
    assert steps[-1].keys() >= fields
    assert all(math.isfinite(steps[-1][field]) for field in fields)
    weights = tiny.get_config().phases[-1]["weights"]
    summed = sum(weight * steps[-1][f"loss/{term}"] for term, weight in weights.items())
    assert steps[-1]["loss"] == pytest.approx(summed, rel=1e-5)


def test_held_out_scenes_are_scored_during_training(finished):
    rows = [row for row in read_metrics(finished) if "eval/loss" in row]
    assert [row["step"] for row in rows] == [4, 8]
    assert all(math.isfinite(row["eval/loss/answer"]) for row in rows)
    assert 0 <= rows[-1]["eval/token_accuracy"] <= 1


def test_checkpoint_says_what_it_is_and_holds_what_is_trained(finished):
    checkpoints = Checkpoints(finished / "checkpoints", read_only=True)
    assert checkpoints.latest() == STEPS
    meta = checkpoints.read_meta()
    assert meta["tokenizer"] == Tokenizer.load(finished).sha256
    assert meta["config"] == to_json(tiny.get_config())
    assert len(meta["classes"]) == 5
    config = meta["config"]
    shapes = jax.eval_shape(build_model(config, Tokenizer.load(finished)).init, jax.random.key(0))
    halves = trees.split(shapes, config["trainable"])
    trained, _ = checkpoints.restore_params(halves["trainable"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained))
    frozen = {path.rsplit("/", 1)[-1] for path in trees.flatten(halves["frozen"])}
    assert frozen == set(STATISTICS)


def test_output_tells_how_far_it_is_and_what_comes_next(finished):
    said = (finished / "output.txt").read_text()
    assert re.search(r"trainable params: [\d,]+ \|\| all params: [\d,]+ \|\| trainable%: 9\d", said)
    assert re.search(r"step 6/8  [\d.]+ examples/s  loss \d+\.\d{4}  \d+:\d\d left", said)
    assert f"python -m meerkat_jax.evaluate --workdir={finished}" in said


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, parts",
    [
        ([], ["is not empty", "--resume", "--overwrite"]),
        (
            ["--resume", "--config.batch=4", "--config.phases[2].steps=9"],
            ["batch: 2 then, 4 now", "phases[2].steps: 5 then, 9 now"],
        ),
        (["--resume", "--config.bach=4"], ["--config.bach", "did you mean --config.batch?"]),
        (["--resume", "--config.accumulate=3"], ["batch=2", "accumulate=3"]),
        (["--resume", "--data_dir=/proc/nowhere"], ["/proc/nowhere", "--data_dir"]),
    ],
    ids=["exists", "changed", "typo", "accumulate", "cache"],
)
def test_refusals_name_the_thing_and_keep_the_run(finished, train, flags, parts):
    before = (finished / "metrics.jsonl").read_bytes(), (finished / "config.json").read_bytes()
    said = refusal(train(finished, *flags))
    assert all(part in said for part in parts), said
    assert Checkpoints(finished / "checkpoints", read_only=True).latest() == STEPS
    assert before == (
        (finished / "metrics.jsonl").read_bytes(),
        (finished / "config.json").read_bytes(),
    )


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.mesh.tensor=3"], "tensor=3 does not multiply to the 1 devices"),
        (["--config.mesh.fsdp=0"], "fsdp=0, tensor=1: sizes must be positive"),
        (["--workdir=/proc/run"], "--workdir=/proc/run cannot be used"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_made(cli, tmp_path, flags, message):
    given = [f"--config={TINY}", f"--workdir={tmp_path / 'run'}", f"--data_dir={tmp_path / 'data'}"]
    assert message in refusal(cli("train", *given, *flags))
    assert not list(tmp_path.iterdir())


def test_missing_flags(cli):
    assert "missing --config and --workdir" in refusal(cli("train"))


@pytest.mark.parametrize(
    "change, parts",
    [
        ('config.model.image.widht = 8', ["model.image.widht", "model.image.width"]),
        ('config.model.image_pool = 3', ["model.image_pool 3", "8 x 8 patches"]),
        ('config.data.mini.tran = 8', ["data.mini.tran", "data.mini.train"]),
        ('config.data.kind = "maxi"', ["maxi", "mini"]),
        ('config.phases[0]["weights"] = {"avot": 1.0}', ["avot", "avopt"]),
        ('config.phases[1]["warmup"] = 2', ["'image_naming'", "warmup 2 of 2 steps"]),
        ('config.trainable = ("lora_a$",)', ["lora_a$"]),
        ('del config.log_every', ["log_every"]),
    ],
    ids=["model", "pool", "data", "kind", "term", "warmup", "trainable", "missing"],
)  # fmt: skip
def test_faults_in_a_config_file(cli, tmp_path, change, parts):
    file = tmp_path / "mine.py"
    file.write_text(
        "from tests import tiny\n\n\ndef get_config():\n    config = tiny.get_config().unlock()\n"
        f"    {change}\n    return config\n"
    )
    said = refusal(cli("train", f"--config={file}", f"--workdir={tmp_path / 'run'}"))
    assert all(part in said for part in parts), said


@pytest.mark.parametrize("fault", ["arrays", "foreign"])
def test_unusable_checkpoints(finished, train, tmp_path, fault):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    if fault == "foreign":
        (run / "checkpoints" / "model.bin").write_bytes(b"weights of another program")
    else:
        (run / "checkpoints" / "5").mkdir()
        (run / "checkpoints" / "5" / "rubbish").write_bytes(b"?")
    said = refusal(train(run, "--resume"))
    assert str(run / "checkpoints") in said


def test_overwrite_starts_anew(finished, train, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "benchmark.json").write_text("{}")
    done = train(run, "--overwrite", "--stop_after=1")
    assert done.returncode == 0, done.stderr
    assert not (run / "benchmark.json").exists()
    assert Checkpoints(run / "checkpoints", read_only=True).latest() == 1


@pytest.mark.slow
def test_nonfinite_loss_ends_the_run_and_keeps_the_last_good_checkpoint(train, tmp_path):
    """The first step of "image_naming" has rate 0, the second diverges; the next one shows it."""
    run = tmp_path / "run"
    flags = ["--config.phases[1].learning_rate=1e30", "--config.phases[1].steps=3"]
    said = refusal(train(run, *flags, "--config.checkpoint_every=1"))
    assert re.search(r"step 4 \(phase 'image_naming'\): loss/image_names is (nan|inf)", said), said
    assert re.search(r"had loss [\d.e+]+ and grad_norm [\d.e+]+; if these had risen", said), said
    assert "step 2, is kept" in said
    assert read_metrics(run)[-1]["step"] == 4
    assert not math.isfinite(read_metrics(run)[-1]["loss"])
    checkpoints = Checkpoints(run / "checkpoints", read_only=True)
    assert checkpoints.latest() == 2
    assert checkpoints.read_meta()["step"] == 2
    assert (run / "checkpoints" / "damaged-3").is_dir()


# One step ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parts(cache):
    """(assembly, parameters, names, a batch of four) of the tiny config."""
    config = to_json(tiny.get_config())
    data = open_data(config["data"], cache)
    assembly = build_model(config, data.tokenizer)
    encode = Encode(assembly.shapes, assembly.prompt, data.classes, {})
    (batch,) = fixed_batches(Split(data.folder, "compositions"), encode, 4, 1)
    fresh = assembly.init(jax.random.key(0))
    return assembly, fresh, jax.tree.map(jnp.asarray, data.name_ids()), batch


@pytest.fixture(scope="module")
def changed(parts):
    """changed(term): paths of the leaves that a step with this loss term alone has changed."""
    assembly, fresh, names, batch = parts
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    # Away from the beginning, where what starts at zero lets no gradient through to what is below.
    moved = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(next(keys), x.shape), fresh)
    halves = trees.split(moved, [".*"])
    optimizer = optax.sgd(1.0)

    @functools.partial(jax.jit, compiler_options=FAST)
    def step(weights):
        state = new_state(halves["trainable"], optimizer, 0)
        return make_step(assembly, optimizer, weights, names, CONTRAST, BOX)(
            state, halves["frozen"], batch
        )

    @functools.cache
    def paths(term):
        state, found = step({name: float(name == term) for name in TERMS})
        assert found["loss"] == found[f"loss/{term}"] > 0
        after, before = trees.flatten(state["trainable"]), trees.flatten(halves["trainable"])
        return {path for path in before if not np.array_equal(before[path], after[path])}

    return paths


TOWERS = ("image_tower", "audio_tower")
REACHES = {  # term -> parts that it must train; no other part may change
    "language": ("llama",),
    "answer": (*TOWERS, "avace", "image_connector", "audio_connector", "llama", "_position/"),
    "avopt": (*TOWERS, "avopt"),
    "avace": (*TOWERS, "avace", "_connector", "_position/norm"),
    "image_names": ("image_tower", "image_connector", "llama/embedding", "image_position/norm"),
    "audio_names": ("audio_tower", "audio_connector", "llama/embedding", "audio_position/norm"),
}


@pytest.mark.parametrize("term", TERMS)
def test_each_term_trains_what_it_should(changed, term):
    """Fault 1 and 2 of the release: transport and attention losses that train nothing."""
    paths = changed(term)
    for part in REACHES[term]:
        assert any(part in path for path in paths), f"{term} does not reach {part}"
    strays = [path for path in paths if not any(part in path for part in REACHES[term])]
    assert not strays, f"{term} changes {strays}"


def test_alignment_terms_train_projections_and_towers_deeply(parts, changed):
    """Not a bias here and there: nearly every kernel below the loss moves."""
    flat = trees.flatten(parts[1])
    for term, own in (("avopt", "avopt/"), ("avace", "image_tower/")):
        kernels = [path for path in flat if path.startswith((own, "image_tower/"))]
        kernels = [path for path in kernels if path.endswith("kernel")]
        assert len(set(kernels) & changed(term)) >= 0.9 * len(kernels)


def test_what_is_still_in_a_phase_stays_and_the_rest_learns(parts):
    assembly, fresh, names, batch = parts
    halves = trees.split(fresh, [".*"])
    optimizer = optax.adamw(1e-2, weight_decay=0.1)
    weights = tiny.get_config().phases[-1]["weights"]
    step = make_step(assembly, optimizer, weights, names, CONTRAST, BOX, freeze=["^audio_tower/"])
    state = new_state(halves["trainable"], optimizer, 0)
    state, _ = jax.jit(step, compiler_options=FAST)(state, halves["frozen"], batch)
    after, before = trees.flatten(state["trainable"]), trees.flatten(halves["trainable"])
    for path, leaf in before.items():
        same = np.array_equal(after[path], leaf)
        assert same == path.startswith("audio_tower/") or not leaf.any(), path


def test_the_forward_pass_uses_the_parameters_that_it_is_given(parts):
    """Fault 3 of the release: loaded weights that are thrown away."""
    assembly, fresh, _, batch = parts
    inputs = (*assembly.inputs(batch), jnp.asarray(batch["tokens"]))

    @functools.partial(jax.jit, compiler_options=FAST)
    def forward(weights):
        return assembly.model.apply({"params": weights}, *inputs)["logits"]

    before = forward(fresh)
    for part in ("image_tower", "audio_tower", "llama"):
        other = jax.tree.map(lambda leaf: leaf * 1.5, fresh[part])
        assert not np.allclose(before, forward(fresh | {part: other}), atol=1e-4), part


def test_accumulation_gives_the_step_of_the_whole_batch(parts):
    assembly, fresh, names, batch = parts
    # In digital silence all moments weigh the same to the bit, and which of them gets the gradient
    # of AVACE's peak is a matter of rounding.
    noise = np.random.default_rng(0).normal(size=batch["audio"].shape).astype(np.float32)
    batch = batch | {"audio": batch["audio"] + 1e-3 * noise}
    halves = trees.split(fresh, [".*"])
    optimizer = optax.sgd(0.1)
    weights = tiny.get_config().phases[-1]["weights"]

    def after(accumulate):
        step = make_step(assembly, optimizer, weights, names, CONTRAST, BOX, accumulate=accumulate)
        step = jax.jit(step, compiler_options=FAST)
        return step(new_state(halves["trainable"], optimizer, 0), halves["frozen"], batch)

    (whole, found), (parted, found_parted) = after(1), after(2)
    for key, value in found.items():
        np.testing.assert_allclose(found_parted[key], value, err_msg=key, **tolerance("accumulate"))
    theirs = trees.flatten(parted["trainable"])
    for path, leaf in trees.flatten(whole["trainable"]).items():
        np.testing.assert_allclose(theirs[path], leaf, err_msg=path, **tolerance("accumulate"))
