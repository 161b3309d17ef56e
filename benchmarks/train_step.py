"""What a training step's time goes to, part by part; of the 7B model what its work goes to.

    python -m benchmarks.train_step --config=experiments/avfit.py:mini
    python -m benchmarks.train_step --config=experiments/avfit.py:7b --shares

Each part is timed alone, with the gradients that the phase asks of it (towers at rest run forwards
only), so parts need not add up to the whole step, which is timed too. With --shares nothing is run
and no weight is made: the work is counted in the traced programs (benchmarks/work.py), and told as
bounds that are more than the true shares. Weights are random; their sizes are those of the config's
store, or without it the published ones.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from benchmarks import measure, records, stream, towers, work
from meerkat_jax.aot.abstract_config import sized
from meerkat_jax.aot.plan import Plan, plan
from meerkat_jax.core import config as configs
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten, merge, selected, unflatten
from meerkat_jax.data.pipeline import Encode
from meerkat_jax.parallel import placement
from meerkat_jax.training import flops, losses
from meerkat_jax.training.step import make_optimizer

TOWERS = ("image_tower", "audio_tower")
BELOW = (*TOWERS, "image_connector", "audio_connector", "image_position", "audio_position")
MODULES = ("AVOpT", "AVACE")  # what Meerkat adds to its three models


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of the step: `call(*arguments)`, of arrays or of shapes alone."""

    call: Callable
    arguments: tuple


def planned(config: Mapping[str, Any], batch: int | None = None) -> tuple[dict, Plan]:
    """The config with all sizes, and the plan of its last phase's step on one device."""
    config, tokenizer, *_ = sized(config)
    mesh = placement.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    return config, plan(config, tokenizer, mesh, batch)


def parts(config: Mapping[str, Any], made: Plan) -> dict[str, Part]:
    """The pieces by name, with the gradients that the last phase asks of each."""
    leaves = flatten(merge(made.state["trainable"], made.frozen))
    moving = flatten(made.state["trainable"])
    moving = set(moving) - selected(config["phases"][-1].get("freeze", ()), moving)
    model, batch = made.assembly.model, made.batch

    def below(names: Sequence[str]) -> bool:
        return any(path.startswith(tuple(names)) for path in moving)

    def part(names: Sequence[str], method: Callable, inputs: tuple, fixed: tuple, more: bool):
        """Gradients of the moving leaves of `names`, and of `inputs` if there is `more` below."""
        mine = {path: leaves[path] for path in moving if path.startswith(tuple(names))}
        rest = {path: leaf for path, leaf in leaves.items() if path not in mine}

        def total(mine: dict, inputs: tuple, rest: dict, fixed: tuple) -> jax.Array:
            whole = {"params": unflatten({**rest, **mine})}
            out = model.apply(
                whole, *inputs, *fixed, method=method, rngs={"dropout": jax.random.key(0)}
            )
            return sum(jnp.sum(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(out))

        wanted = ((0,) if mine else ()) + ((1,) if more else ())
        call = jax.value_and_grad(total, wanted) if wanted else total
        return Part(call, (mine, inputs, rest, fixed))

    media = jax.eval_shape(made.assembly.inputs, batch)
    whole = unflatten(leaves)
    senses = jax.eval_shape(made.assembly.encode, whole, batch)
    align = functools.partial(model.apply, method="align")
    met = jax.eval_shape(align, {"params": whole}, *senses)
    joined = senses if model.uses_conv_align else (met["image"], met["audio"])
    text = (batch["tokens"], batch["segment_ids"], batch["loss_mask"])
    room = made.assembly.shapes.max_target_tokens
    found = {
        "image tower": part(TOWERS[:1], _seen, (), media[:1], False),
        "audio tower": part(TOWERS[1:], _heard, (), media[1:], False),
        "AVOpT": part(["avopt"], _avopt, senses, (), below(TOWERS)),
        "AVACE": part(["avace"], lambda m, *x: m.avace(*x), joined, (), below(BELOW)),
        "LLM": part(
            ["llama"], lambda m, *x: _answers(m, room, *x), (met["image"], met["audio"]), text,
            below((*BELOW, "avace")),
        ),
    }  # fmt: skip
    optimizer = make_optimizer(config)

    def update(grads: dict, state: dict) -> tuple[dict, Any]:
        updates, opt = optimizer.update(grads, state["opt"], state["trainable"])
        return optax.apply_updates(state["trainable"], updates), opt

    return found | {"optimizer": Part(update, (made.state["trainable"], made.state))}


def _seen(model: Any, pixels: jax.Array) -> jax.Array:
    return model.image_tower(pixels)["tokens"]


def _heard(model: Any, mel: jax.Array) -> jax.Array:
    return model.audio_tower(mel)["tokens"]


def _avopt(model: Any, image: jax.Array, audio: jax.Array) -> jax.Array:
    return model.avopt(image, audio)["distance"]


def _answers(model: Any, room: int, image, audio, tokens, segment_ids, loss_mask) -> jax.Array:
    """The language model's part of the loss, behind connected tokens."""
    places, wanted = losses.answer_positions(loss_mask, room)
    prefix = model.embed_prefix(image, audio)
    logits = model._decode_text(prefix, tokens, segment_ids, places, False)["logits"]
    answers = jnp.take_along_axis(tokens, places + 1, axis=-1)
    return losses.answer_loss(logits, answers, wanted)[0]


def shares(made: Plan, pieces: Mapping[str, Part]) -> dict[str, Any]:
    """Work of the modules and of the whole step, and upper bounds of their shares."""
    whole = jax.jit(made.step).trace(made.state, made.frozen, made.batch)
    found = {name: work.count(pieces[name].call, *pieces[name].arguments) for name in MODULES}
    needed = flops.step_flops(whole)
    least = work.of(whole.jaxpr, products_only=True).bytes
    return {
        "step_flops": needed,
        "step_bytes_at_least": least,
        "modules": {name: dataclasses.asdict(each) for name, each in found.items()},
        "flops_share": sum(each.flops for each in found.values()) / needed,
        "bytes_share_at_most": sum(each.bytes for each in found.values()) / least,
    }


def filled(tree: Any, seed: int = 0) -> Any:
    """Arrays for shapes: small random numbers, whole ones 0, answers wherever there is room."""
    rng = np.random.default_rng(seed)

    def fill(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32), leaf.dtype)

    return jax.tree.map(fill, tree)


def timed(call: Callable, arguments: tuple, repeats: int) -> dict[str, float]:
    """Seconds of a compiled call, after one that is not timed."""
    run = jax.jit(call).lower(*arguments).compile()
    jax.block_until_ready(run(*arguments))
    found = [measure.seconds(lambda: jax.block_until_ready(run(*arguments)))
             for _ in range(repeats)]  # fmt: skip
    return measure.spread(found)


def feeding_time(config: Mapping[str, Any], made: Plan, batches: int) -> dict[str, float]:
    """Seconds that a batch of such media is waited for when nothing else is done."""
    shapes, assembly = made.assembly.shapes, made.assembly
    encode = Encode(shapes, assembly.prompt, ("dog",), {})
    with tempfile.TemporaryDirectory() as folder:
        records.write_split(Path(folder), 64, shapes.seconds, shapes.image_size, shapes.sample_rate)
        batch, workers = len(made.batch["image"]), config["data"]["workers"]
        found = stream.feed(stream.ours(Path(folder), encode, batch, workers), batch, batches)
        return found["batch_seconds"]


def times(config: Mapping[str, Any], made: Plan, pieces: Mapping[str, Part], repeats: int) -> dict:
    """Seconds of the whole step, and of its parts with their share of it."""
    state, frozen = jax.jit(made.initialise)(jax.random.key(0))
    whole = timed(made.step, (state, frozen, filled(made.batch)), repeats)
    found = {}
    for name, piece in pieces.items():
        found[name] = timed(piece.call, filled(piece.arguments), repeats)
    found["input"] = feeding_time(config, made, max(repeats, 2))
    told = {
        name: {"seconds": each, "share": each["median"] / whole["median"]}
        for name, each in found.items()
    }
    return {"step_seconds": whole, "parts": told}


def run(config: Mapping[str, Any], only_shares: bool, repeats: int, threads: int) -> dict[str, Any]:
    """The report of a config's last phase."""
    towers.prepare("cpu", "float32", threads)
    config, made = planned(config)
    pieces = parts(config, made)
    about = {
        "setting": measure.setting("CPU", threads),
        "config": config["name"],
        "phase": config["phases"][-1]["name"],
        "batch": len(made.batch["image"]) if "image" in made.batch else None,
    }
    return about | (shares(made, pieces) if only_shares else times(config, made, pieces, repeats))


def table(report: Mapping[str, Any]) -> str:
    """The report in lines for people."""
    head = f"{report['config']}, phase {report['phase']!r}, batch {report['batch']}"
    if "parts" not in report:
        return (
            f"{head}: {report['step_flops'] / 1e12:.3g} TFLOP a step; AVOpT and AVACE: "
            f"{100 * report['flops_share']:.2f} % of FLOPs, at most "
            f"{100 * report['bytes_share_at_most']:.2f} % of bytes"
        )
    lines = [f"{head}: step {1e3 * report['step_seconds']['median']:.1f} ms", ""]
    lines += ["| part | ms: median (quartiles) | of the step |", "|---|---|---|"]
    for name, part in report["parts"].items():
        low, middle, high = (1e3 * part["seconds"][key] for key in ("q1", "median", "q3"))
        spread = f"{middle:.1f} ({low:.1f} to {high:.1f})"
        lines.append(f"| {name} | {spread} | {100 * part['share']:.1f} % |")
    return "\n".join(lines)


def main(_: list[str]) -> None:
    """Read the flags, measure, write."""
    given = flags.FLAGS
    try:
        config = configs.to_json(configs.load_config(given.config))
        report = run(config, given.shares, given.repeats, given.threads)
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    if given.out:
        Path(given.out).write_text(json.dumps(report, indent=1) + "\n")
    print(table(report), flush=True)


if __name__ == "__main__":
    flags.DEFINE_string("config", "experiments/avfit.py:mini", "FILE.py:ARG; its last phase.")
    flags.DEFINE_bool("shares", False, "Count work, and run nothing.")
    flags.DEFINE_integer("repeats", 10, "Calls that are timed.", lower_bound=1)
    flags.DEFINE_integer("threads", 2, "Cores.", lower_bound=1)
    flags.DEFINE_string("out", None, "Where the JSON goes; default: nowhere.")
    app.run(main)
