"""Does a training run fit machines that are not here, and how fast can it be at best?

    python -m meerkat_jax.preflight --config=experiments/avfit.py:7b --topology=v5e:4x4
    python -m meerkat_jax.preflight --config=... --topology=v5e:1x1 --search
    python -m meerkat_jax.preflight --config=... --topology=v5e:1x1 --answers

Compiles the very training step (with --answers: the making of answers, on one device) for a TPU
slice, on any CPU, and tells what the compiler tells: bytes that a device needs, collectives, and by
them a bound on the time of a step and on MFU (FLOPs as training/flops.py defines them). Nothing is
trained, and no weights are needed: where the config's store is not there, published sizes stand in
for it. Exit code 1: it does not fit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh
from ml_collections import config_flags

from meerkat_jax.aot.abstract_config import sized
from meerkat_jax.aot.answering import compile_answers
from meerkat_jax.aot.plan import plan
from meerkat_jax.aot.topology import devices_of
from meerkat_jax.aot.train_step import compile_step, format_report, largest
from meerkat_jax.core import cli
from meerkat_jax.core import config as configs
from meerkat_jax.core.errors import UserError
from meerkat_jax.from_config import check_needed
from meerkat_jax.parallel import placement
from meerkat_jax.parallel.devices import check_x64
from meerkat_jax.training.checks import check
from meerkat_jax.weights.base import Base

config_flags.DEFINE_config_file("config", None, "FILE.py:ARG; --config.key=value changes a leaf.")
flags.DEFINE_string("topology", None, "v4, v5e, v5p or v6e with a shape, as v5e:4x4; cpu:8; gpu.")
flags.DEFINE_integer("batch", None, "Examples of a step; default: the config's.", lower_bound=1)
flags.DEFINE_integer("phase", -1, "Which of config.phases; default: the last.")
flags.DEFINE_bool("answers", False, "Answers to --batch pairs on one device, not a step.")
flags.DEFINE_bool("search", False, "Find the largest batch that fits; --batch is tried first.")
flags.DEFINE_bool("quick", False, "Compile unoptimised: sooner; memory comes out up to 6 % low.")
flags.DEFINE_bool("json", False, "Print one JSON object.")
FLAGS = flags.FLAGS


def main(_: list[str]) -> None:
    """Everything, in order."""
    check_x64()
    devices, chip = devices_of(FLAGS.topology)
    jax.config.update("jax_enable_compilation_cache", False)
    config = configs.to_json(FLAGS.config)
    check_needed(config)
    check(config)
    if not -len(config["phases"]) <= FLAGS.phase < len(config["phases"]):
        raise UserError(f"--phase={FLAGS.phase}: the config has {len(config['phases'])} phases")
    config, tokenizer, base, notes = sized(config)
    if FLAGS.answers:  # by the whole weights, on one device
        devices, config = devices[:1], config | {"mesh": {}, "quantise": "none", "accumulate": 1}
    mesh = placement.make_mesh(config["mesh"], devices)
    rows = unit(config, mesh)
    batch = FLAGS.batch or config["phases"][FLAGS.phase].get("batch", config["batch"])
    if batch % rows:
        raise UserError(
            f"batch {batch} does not divide over the mesh {dict(mesh.shape)} and "
            f"accumulate={config['accumulate']}; give a --batch that is a multiple of {rows}"
        )

    def compiled_step(batch: int, quick: bool) -> dict[str, Any]:
        made = plan(config, tokenizer, mesh, batch, FLAGS.phase, narrow=narrow(base, config))
        if FLAGS.answers:
            report = {"mesh": dict(mesh.shape), "devices": 1} | compile_answers(made, chip, quick)
        else:
            report = compile_step(made, mesh, chip, quick)
        if FLAGS.search:
            print(f"batch {batch}: {'fits' if report['fits'] else 'too large'}", file=sys.stderr)
        return report

    if FLAGS.search:
        report = largest(compiled_step, rows, FLAGS.quick, batch)
    else:
        report = compiled_step(batch, FLAGS.quick)
    report = {"config": config["name"], "topology": FLAGS.topology, "notes": notes} | report
    print(json.dumps(report, indent=1) if FLAGS.json else format_report(report), flush=True)
    if not report["fits"]:
        sys.exit(1)


def narrow(base: Base, config: Mapping[str, Any]) -> Callable[[str], Any]:
    """dtype of a frozen leaf: as the store has it, or in what its part computes."""
    parts = {"image_tower": "image", "audio_tower": "audio", "llama": "llama"}

    def dtype(path: str) -> Any:
        if base.store:
            leaf = base.store.leaves.get(path)
            return leaf and leaf.dtype
        section = config["model"].get(parts.get(path.split("/")[0]), {})
        return jnp.dtype(section.get("dtype", "float32")) if config["base"] else None

    return dtype


def unit(config: Mapping[str, Any], mesh: Mesh) -> int:
    """The smallest batch that divides over the mesh and into microbatches."""
    return mesh.shape["data"] * mesh.shape["fsdp"] * config["accumulate"]


if __name__ == "__main__":
    cli.run_command(main, required=("config", "topology"))
