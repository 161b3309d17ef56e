"""Train Meerkat: config, data, mesh, model, steps, checkpoints. Reads from top to bottom.

    python -m meerkat_jax.train --config=experiments/avfit.py --workdir=runs/mini

The same command with --resume goes on where a run was stopped or killed, and ends with the same
numbers, bit for bit, as a run that was not. What is written: config.json, versions.json,
tokenizer.json, metrics.jsonl, tensorboard/ and checkpoints/ in the work directory.

Several hosts run the same command, with a work directory that all of them see; on a TPU pod or
under SLURM they find each other, elsewhere --coordinator, --processes and --process say who they
are. SIGTERM saves and ends with code 75 (training/preemption.py).
"""

from __future__ import annotations

import atexit
import bisect
import itertools
import math
import shutil
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from meerkat_jax.core import cli, trees
from meerkat_jax.core import config as configs
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import default_cache
from meerkat_jax.core.workdir import prepare_workdir, read_config, write_config, write_versions
from meerkat_jax.data.pipeline import Encode, affordable, fixed_batches, train_batches
from meerkat_jax.data.prompt import style_note
from meerkat_jax.data.split import Split, has_split
from meerkat_jax.from_config import HELD_OUT, build_model, check_needed, open_data
from meerkat_jax.mini.tokenizer import token_values
from meerkat_jax.parallel import hosts, placement
from meerkat_jax.parallel.quantise import quantise_tree
from meerkat_jax.training import feature_cache, flops, losses, preemption
from meerkat_jax.training.checks import check, check_names
from meerkat_jax.training.metrics import Clock, MetricsWriter, nonfinite
from meerkat_jax.training.profile import Profile
from meerkat_jax.training.step import learning_rate, make_optimizer, new_state, phase_step
from meerkat_jax.weights.base import Base
from meerkat_jax.weights.checkpoints import Checkpoints

config_flags.DEFINE_config_file("config", None, "FILE.py:ARG; --config.key=value changes a leaf.")
flags.DEFINE_string("workdir", None, "Folder for everything that this run writes.")
flags.DEFINE_bool("resume", False, "Go on with the run in --workdir; starts one if it is empty.")
flags.DEFINE_bool("overwrite", False, "Delete the run in --workdir and start anew.")
flags.DEFINE_integer("stop_after", None, "Save and stop after this step; schedules do not change.")
flags.DEFINE_string("data_dir", None, "Cache of data and compiled programs; else $MEERKAT_CACHE.")
flags.DEFINE_string("profile", None, "FIRST:COUNT; trace these steps into WORKDIR/profile/.")
hosts.define_flags(timeout=300)
FLAGS = flags.FLAGS

# What may change when a run is resumed: how it runs and what it shows, not what it learns.
FREE = ("log_every", "checkpoint_every", "evaluate_every", "keep_checkpoints", "data.workers")
FREE += ("name", "mesh.data", "mesh.fsdp", "mesh.tensor", "loss_pieces")


def main(_: list[str]) -> None:
    """Everything, in order."""
    # The config, the hosts and the mesh ---------------------------------------------------------
    config = configs.to_json(FLAGS.config)
    check_needed(config)
    check(config)
    traces = Path(FLAGS.workdir) / "profile"
    profile = Profile.parse(FLAGS.profile, traces, config["phases"], FLAGS.stop_after)
    base = Base.open(config)  # published weights, if the config names a store of them
    config = base.resolve(config)
    hosts.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.host_timeout)
    notice = preemption.Notice()
    mesh = placement.make_mesh(config["mesh"])
    phases = config["phases"]

    def size(phase: dict) -> int:
        return phase.get("batch", config["batch"])

    for examples in {config["batch"], *map(size, phases)}:
        if examples // config["accumulate"] % (mesh.shape["data"] * mesh.shape["fsdp"]):
            raise UserError(
                f"batch={examples} in {config['accumulate']} parts does not divide over the mesh "
                f"{dict(mesh.shape)} of {jax.process_count()} hosts"
            )

    # The work directory -------------------------------------------------------------------------
    workdir = Path(FLAGS.workdir)

    def prepare() -> dict:
        """The work directory as this run needs it; gives what runs."""
        prepare_workdir(workdir, FLAGS.overwrite, FLAGS.resume)
        if (workdir / "config.json").exists():
            configs.refuse_changes(read_config(workdir).to_dict(), config, FREE)
        write_config(workdir, config)
        return write_versions(workdir)

    versions = hosts.run_on_first_process("work directory", prepare, FLAGS.host_timeout)
    cache = Path(FLAGS.data_dir).expanduser() if FLAGS.data_dir else default_cache()
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if versions:
        devices = versions["devices"]
        say(f"{config['name']} on {devices['count']} x {devices['kind']}, work directory {workdir}")
        say(flops.describe(devices["kind"]))

    # Data and tokenizer -------------------------------------------------------------------------
    data = open_data(config["data"], cache, base.tokenizer)
    check_names(phases, data.classes)
    if hosts.is_first():
        data.tokenizer.save(workdir)
    say(f"data: {data.folder}, {len(data.classes)} classes, {data.tokenizer.vocab_size} tokens")

    # Model, optimizer ---------------------------------------------------------------------------
    model = build_model(config, data.tokenizer)
    laid_model = model.laid(placement.placement(mesh, config))
    optimizer = make_optimizer(config)

    def initialise(key: jax.Array) -> tuple[dict, dict]:
        halves = trees.split(model.init(key, data.classes), config["trainable"])
        trainable = base.blank(halves["trainable"])
        frozen = quantise_tree(halves["frozen"], config["quantise"])
        return new_state(trainable, optimizer, config["seed"]), frozen

    key = jax.random.key(config["seed"])
    shapes = jax.eval_shape(initialise, key)
    places = placement.param_shardings(mesh, shapes)
    halves = {"trainable": shapes[0]["trainable"], "frozen": shapes[1]}
    base.check(jax.eval_shape(lambda key: model.init(key, data.classes), key))
    if base.store:
        say(base.describe())
        if (note := style_note(data.tokenizer, config["prompt"])) is not None:
            say(note)
    say(trees.describe(halves, config["trainable"]))

    # A new state, or the one of the last checkpoint ---------------------------------------------
    def begin(key: jax.Array) -> tuple[dict, dict]:
        """What no store gives."""
        state, frozen = initialise(key)
        return state, base.rest(frozen)

    laid = (places[0], base.rest(places[1]))
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config["keep_checkpoints"])
    origin = {"data": data.folder.name, "tokenizer": data.tokenizer.sha256} | base.origin
    meta = origin | {"config": config, "classes": list(data.classes)}
    hosts.barrier("data and weights", origin | {"config": config}, FLAGS.host_timeout)
    step, pending = 0, []  # steps done, and metrics of those that no row has yet
    if checkpoints.latest() is None:
        state, frozen = jax.jit(begin, out_shardings=laid)(key)
        trained, laid_out = state["trainable"], places[0]["trainable"]
        trained = base.fill(trained, shapes[0]["trainable"], laid_out, "float32")
        adapter, allowed = config.get("adapter"), config.get("adapter_base")
        llama = model.model.llama
        trained = base.adapt(trained, laid_out, llama, adapter, allowed, frozen, say)
        state["trainable"] = trained
    else:
        frozen = jax.jit(lambda key: begin(key)[1], out_shardings=laid[1])(key)
        abstract = jax.tree.map(placement.placed, shapes[0], places[0])
        state, seen, meta_then = checkpoints.restore(abstract, expect=origin)
        step, pending = meta_then["step"], seen["pending"]
        say(f"going on from step {step}")
    frozen = base.fill(frozen, shapes[1], places[1])

    # Phases: the same step with other loss weights ----------------------------------------------
    def odds(phase: dict) -> dict:
        return phase.get("task_weights", config["data"]["task_weights"])

    splits = [Split(data.folder, phase["split"], phase.get("sources")) for phase in phases]
    needed = []  # by each record's texts, where batches differ in length
    for phase, split in zip(phases, splits, strict=True):
        split.open()  # a wrong name is found now, not after an hour
        feature_cache.check_kept(phase, shapes[0]["trainable"])
        asks = losses.needs(phase["weights"])["ask"]
        found = data.needed(split, model.prompt, model.shapes, odds(phase)) if asks else None
        needed.append(found)
    strata = [split.strata() for split in splits]  # so that batches have their share of pairs
    ends = list(itertools.accumulate(phase["steps"] for phase in phases))
    total, rate = ends[-1], learning_rate(config)
    stop = min(total, FLAGS.stop_after or total)
    names = jax.tree.map(jnp.asarray, data.name_ids())
    soft_targets = losses.number_soft_targets(
        token_values(data.tokenizer), **config.get("number_soft_targets", {})
    )
    soft_targets = jax.tree.map(jnp.asarray, soft_targets)

    def make(phase: dict, accumulate: int):
        return phase_step(config, phase, laid_model, optimizer, names, soft_targets, accumulate)

    outputs = (places[0], None)
    runs = [
        jax.jit(make(phase, config["accumulate"]), donate_argnums=0, out_shardings=outputs)
        for phase in phases
    ]
    scores = [jax.jit(scored(make(phase, 1))) for phase in phases]

    # Batches ------------------------------------------------------------------------------------
    def encode(phase: dict, *others: dict, kept: feature_cache.Senses | None = None) -> Encode:
        """What a phase asks of its scenes, with what the losses of the others need too."""
        needs = losses.needs({term for one in (phase, *others) for term in one["weights"]})
        return Encode(model.shapes, model.prompt, data.classes, odds(phase), **needs, kept=kept)

    def keep(phase: dict) -> feature_cache.Senses | None:
        """What the towers, at rest from now on, make of the phase's scenes, if it says so."""
        if "kept" not in phase:
            return None
        both = trees.merge(state["trainable"], frozen)

        def sense(batch: dict) -> tuple[jax.Array, jax.Array]:
            batch = {key: hosts.put(value, on_device) for key, value in batch.items()}
            return hosts.allgather(sensed(both, batch))

        records = splits[phases.index(phase)].open()[: phase["kept"]]
        here, shared = workdir / "senses" / str(phases.index(phase)), cache / "senses"
        facts = origin | {"config": [config[key] for key in ("model", "data", "seed")]}
        facts |= {"records": [phase["split"], phase["kept"]]}
        folder = feature_cache.folder_of(here, shared, facts, shapes[0]["trainable"])
        kept = feature_cache.keep(folder, records, model.shapes, sense, size(phase))
        hosts.barrier(f"senses of {phase['name']}", {}, FLAGS.host_timeout)
        return kept

    sensed = jax.jit(lambda params, batch: laid_model.sense(laid_model.used(params), batch))
    on_device = placement.batch_sharding(mesh)
    scored_split = HELD_OUT[config["data"]["kind"]]  # of which a few fixed batches are scored
    held_out = []
    if config["evaluate_batches"] and has_split(data.folder, scored_split):
        held_out = fixed_batches(
            Split(data.folder, scored_split), encode(phases[-1], *phases), config["batch"],
            config["evaluate_batches"], hosts.rows(on_device, config["batch"]),
            data.fitting(scored_split, model.prompt, model.shapes, odds(phases[-1]), say),
        )  # fmt: skip
    if config["evaluate_batches"] and not held_out:
        few = f"the data has no batch of {config['batch']} examples of split {scored_split!r}"
        say(f"nothing is scored during training: {few}")

    # The loop: nothing waits for the device but rows, scores and checkpoints ----------------------
    writer, clock = MetricsWriter(workdir, total, resume_step=step), Clock()
    batches, leave = None, False
    atexit.register(lambda: batches and batches.close())  # shared memory, however the run ends
    while step < stop:
        number = bisect.bisect_right(ends, step)
        phase = phases[number]
        if batches is None or step == ends[number] - phase["steps"]:  # each phase reads its split
            if batches is not None:
                batches.close()
            done = (step - ends[number] + phase["steps"]) * size(phase)
            with clock.apart():
                kept = keep(phase)
            workers = affordable(phase.get("workers", config["data"]["workers"]), say)
            batches = train_batches(
                splits[number], encode(phase, kept=kept), size(phase), config["seed"] + number,
                done, workers, phase.get("kept"),
                hosts.rows(on_device, size(phase)), needed[number], strata[number],
            )  # fmt: skip
            compiled, needs = {}, losses.needs(phase["weights"])  # a program for each length
        with clock.waiting(pending[-1:]):
            batch = next(batches)
        batch = hosts.place(batch, on_device, size(phase))
        length = batch["tokens"].shape[-1]
        if length not in compiled:
            with clock.apart():
                begun = time.monotonic()
                what = f"phase {phase['name']!r}"
                what += f", runs of {length} tokens" if model.shapes.lengths else ""
                say(f"{what}: compiling, a minute at most; the result is cached")
                traced = runs[number].trace(state, frozen, batch)
                compiled[length] = traced.lower().compile(), flops.step_flops(traced)
                took = f"{time.monotonic() - begun:.1f} s"
                say(f"{what}: compiled in {took}, {compiled[length][1]:.3g} FLOPs a step")
        program, work = compiled[length]
        text = model.shapes.runs * length
        tokens = model.model.prefix_length * needs["look"] + text * needs["ask"]
        clock.count(size(phase), tokens, work)
        profile.before(step + 1, state)
        state, found = program(state, frozen, batch)
        profile.after(step + 1, state)
        pending.append(found)
        step += 1

        log = step % config["log_every"] == 0 or step == ends[number]
        evaluate = step % config["evaluate_every"] == 0 or step == total
        leave = notice.reached()
        save = step % config["checkpoint_every"] == 0 or step == stop or leave
        if log or evaluate or save:
            pending = jax.tree.map(float, jax.device_get(pending))
            refuse_nonfinite(pending, step, writer, checkpoints, f"phase {phase['name']!r}")
        if log:
            row = mean(pending) | {"phase": phase["name"], "learning_rate": float(rate(step - 1))}
            writer.write(step, row | clock.row())
            pending = []
        if evaluate and held_out:
            with clock.apart():
                examples = (hosts.place(one, on_device, config["batch"]) for one in held_out)
                found = [scores[number](state, frozen, one) for one in examples]
                row = {"eval": mean(jax.tree.map(float, jax.device_get(found)))}
                refuse_nonfinite([row["eval"]], step, writer, checkpoints, f"{scored_split} scores")
                writer.write(step, row, progress=False)
        if save:
            with clock.apart():
                writer.sync()
                seen = {"pending": pending}
                checkpoints.save(step, state, seen, meta)
        if leave:
            break

    # The end --------------------------------------------------------------------------------------
    checkpoints.close()
    writer.close()
    if hosts.is_first():
        shutil.rmtree(workdir / "senses", ignore_errors=True)
    say(f"step {step} of {total}; checkpoint {workdir / 'checkpoints' / str(step)}")
    if FLAGS.profile:
        say(profile.describe())
    if leave and step < total:
        say(f"stopped by SIGTERM, code {preemption.EXIT}; the same command with --resume goes on")
        sys.exit(preemption.EXIT)
    if step < total:
        say("stopped as asked; the same command with --resume goes on")
    else:
        say(f"next: python -m meerkat_jax.evaluate --workdir={workdir}")


def scored(step):
    """What `step` would log, and no step: the compiler drops the gradients that nobody reads."""

    def score(state: dict, frozen: dict, batch: dict) -> dict:
        _, found = step(state, frozen, batch)
        return {name: value for name, value in found.items() if name != "grad_norm"}

    return score


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Key by key."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def refuse_nonfinite(rows, step: int, writer, checkpoints: Checkpoints, where: str) -> None:
    """End the run at the first row that is not finite; `step` is that of the last row.

    The loss of a step is that of the parameters before it: a checkpoint of those is set aside.
    """
    for i, row in enumerate(rows):
        if all(map(math.isfinite, row.values())):
            continue
        at = step - len(rows) + 1 + i
        writer.write(at, row, progress=False)
        writer.close()
        if not math.isfinite(row["loss"]):
            checkpoints.set_aside(at - 1)
        good = checkpoints.latest()
        checkpoints.close()
        kept = f"the last good checkpoint, step {good}, is kept; " if good is not None else ""
        raise UserError(
            f"step {at} ({where}): {nonfinite(row, rows[i - 1] if i else None)}; {kept}"
            "then train anew in another --workdir"
        )


def say(text: str) -> None:
    """Print at once, in one process."""
    if hosts.is_first():
        print(text, flush=True)


if __name__ == "__main__":
    cli.run_door(main, required=("config", "workdir"))
