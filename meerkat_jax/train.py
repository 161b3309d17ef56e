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
import math
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from meerkat_jax.core import cli
from meerkat_jax.core import config as configs
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import default_cache
from meerkat_jax.core.workdir import prepare_workdir, read_config, write_config, write_versions
from meerkat_jax.data.prompt import style_note
from meerkat_jax.from_config import HELD_OUT, build_model, check_needed, open_data
from meerkat_jax.mini.tokenizer import token_values
from meerkat_jax.parallel import hosts, placement
from meerkat_jax.training import flops, losses, preemption
from meerkat_jax.training.checks import check, check_names
from meerkat_jax.training.metrics import Clock, MetricsWriter, nonfinite
from meerkat_jax.training.phases import Phase, Run, held_out_batches
from meerkat_jax.training.profile import Profile
from meerkat_jax.training.start import start
from meerkat_jax.training.step import learning_rate, make_optimizer
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
    workdir = Path(FLAGS.workdir)
    profile = Profile.parse(FLAGS.profile, workdir / "profile", config["phases"], FLAGS.stop_after)
    base = Base.open(config)  # published weights, if the config names a store of them
    config = base.resolve(config)
    hosts.initialize(FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.host_timeout)
    notice = preemption.Notice()
    mesh = placement.make_mesh(config["mesh"])
    check_batches(config, mesh.shape)

    # The work directory and the data ------------------------------------------------------------
    prepare(config, workdir)
    cache = Path(FLAGS.data_dir).expanduser() if FLAGS.data_dir else default_cache()
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    data = open_data(config["data"], cache, base.tokenizer)
    check_names(config["phases"], data.classes)
    if hosts.is_first():
        data.tokenizer.save(workdir)
    say(f"data: {data.folder}, {len(data.classes)} classes, {data.tokenizer.vocab_size} tokens")

    # The model and its state --------------------------------------------------------------------
    model = build_model(config, data.tokenizer)
    optimizer = make_optimizer(config)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config["keep_checkpoints"])
    origin = {"data": data.folder.name, "tokenizer": data.tokenizer.sha256} | base.origin
    hosts.barrier("data and weights", origin | {"config": config}, FLAGS.host_timeout)
    if base.store:
        say(base.describe())
        if (note := style_note(data.tokenizer, config["prompt"])) is not None:
            say(note)
    begin = start(config, base, model, data.classes, mesh, optimizer, checkpoints, origin, say)

    # The phases: the same step with other data and loss weights ---------------------------------
    soft_targets = losses.number_soft_targets(
        token_values(data.tokenizer), **config.get("number_soft_targets", {})
    )
    run = Run(
        config=config,
        workdir=workdir,
        cache=cache,
        data=data,
        model=model.with_sharding(placement.placement(mesh, config)),
        mesh=mesh,
        optimizer=optimizer,
        class_names=jax.tree.map(jnp.asarray, data.name_ids()),
        soft_targets=jax.tree.map(jnp.asarray, soft_targets),
        start=begin,
        origin=origin,
        host_timeout=FLAGS.host_timeout,
        say=say,
    )
    phases = [Phase(run, number) for number in range(len(config["phases"]))]
    held_out = held_out_batches(run, phases, HELD_OUT[config["data"]["kind"]])

    # The loop and the end -----------------------------------------------------------------------
    total = phases[-1].end
    writer = MetricsWriter(workdir, total, resume_step=begin.step)
    step, leave = train(run, phases, held_out, checkpoints, writer, notice, profile)
    checkpoints.close()
    writer.close()
    if hosts.is_first():
        shutil.rmtree(workdir / "features", ignore_errors=True)
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


def check_batches(config: dict, mesh: Mapping[str, int]) -> None:
    """UserError unless all batch sizes divide over the mesh."""
    for batch in {config["batch"], *(p.get("batch", config["batch"]) for p in config["phases"])}:
        if batch // config["accumulate"] % (mesh["data"] * mesh["fsdp"]):
            raise UserError(
                f"batch={batch} in {config['accumulate']} parts does not divide over the mesh "
                f"{dict(mesh)} of {jax.process_count()} hosts"
            )


def prepare(config: dict, workdir: Path) -> None:
    """Make or accept the work directory, and write what runs into it."""

    def write() -> dict:
        prepare_workdir(workdir, FLAGS.overwrite, FLAGS.resume)
        if (workdir / "config.json").exists():
            configs.check_changes(read_config(workdir).to_dict(), config, FREE)
        write_config(workdir, config)
        return write_versions(workdir)

    if versions := hosts.run_on_first_process("work directory", write, FLAGS.host_timeout):
        devices = versions["devices"]
        say(f"{config['name']} on {devices['count']} x {devices['kind']}, work directory {workdir}")
        say(flops.describe(devices["kind"]))


def train(
    run: Run,
    phases: list[Phase],
    held_out: list[dict],
    checkpoints: Checkpoints,
    writer: MetricsWriter,
    notice: preemption.Notice,
    profile: Profile,
) -> tuple[int, bool]:
    """Steps to the end, to --stop_after or to SIGTERM; the last step, and whether it was SIGTERM.

    The host waits for the devices only where a row is logged, scores are computed or a checkpoint
    is saved.
    """
    config, rate, clock = run.config, learning_rate(run.config), Clock()
    state, frozen, step = run.start.state, run.start.frozen, run.start.step
    total = phases[-1].end
    stop = min(total, FLAGS.stop_after or total)
    meta = run.origin | {"config": config, "classes": list(run.data.classes)}
    pending, batches, leave = run.start.pending, None, False
    atexit.register(lambda: batches and batches.close())  # shared memory, however the run ends
    while step < stop and not leave:
        phase = next(phase for phase in phases if step < phase.end)
        if batches is None or step == phase.first:
            if batches is not None:
                batches.close()
            batches = phase.batches(step, state, frozen, clock)
        with clock.waiting(pending[-1:]):
            batch = next(batches)
        batch = hosts.place(batch, run.on_device, phase.batch_size)
        program = phase.program(state, frozen, batch, clock)
        profile.before(step + 1, state)
        with jax.transfer_guard("disallow"):
            state, metrics = program(state, frozen, batch)
        profile.after(step + 1, state)
        pending.append(metrics)
        step += 1

        log = step % config["log_every"] == 0 or step == phase.end
        evaluate = step % config["evaluate_every"] == 0 or step == total
        leave = notice.reached()
        save = step % config["checkpoint_every"] == 0 or step == stop or leave
        if log or evaluate or save:
            pending = jax.tree.map(float, jax.device_get(pending))
            check_finite(pending, step, writer, checkpoints, f"phase {phase.name!r}")
        if log:
            row = mean(pending) | {"phase": phase.name, "learning_rate": float(rate(step - 1))}
            writer.write(step, row | clock.row())
            pending = []
        if evaluate and held_out:
            with clock.paused():
                row = {"eval": mean(phase.evaluate(state, frozen, held_out))}
                split = HELD_OUT[config["data"]["kind"]]
                check_finite([row["eval"]], step, writer, checkpoints, f"{split} scores")
                writer.write(step, row, progress=False)
        if save:
            with clock.paused():
                writer.sync()
                checkpoints.save(step, state, {"pending": pending}, meta)
    return step, leave


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Key by key."""
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}


def check_finite(rows, step: int, writer, checkpoints: Checkpoints, where: str) -> None:
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
    cli.run_command(main, required=("config", "workdir"))
