"""An abstract training step: its inputs and outputs as ShapeDtypeStructs with shardings.

Made of the same parts, in the same order, as in `train.py`. `preflight` compiles it for machines
that are not here, and tests fill it with numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from meerkat_jax.build import Assembly
from meerkat_jax.core import trees
from meerkat_jax.data.dataset import name_ids
from meerkat_jax.data.tokenizer import Tokenizer
from meerkat_jax.from_config import build_model
from meerkat_jax.mini.tokenizer import token_values
from meerkat_jax.parallel import placement
from meerkat_jax.parallel.quantise import quantise_tree
from meerkat_jax.training import losses
from meerkat_jax.training.step import make_optimizer, new_state, phase_step


@dataclasses.dataclass(frozen=True)
class Plan:
    """`step(state, frozen, batch)` of one phase; the three as trees of ShapeDtypeStructs.

    `initialise(key) -> (state, frozen)` makes them, as described, for whoever wants numbers.
    """

    assembly: Assembly
    step: Callable
    initialise: Callable
    state: Any
    frozen: Any
    batch: Any

    def trace(self) -> jax.stages.Traced:
        """The step as train.py runs it; `.lower().compile()` is for the mesh's devices."""
        places = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        run = jax.jit(self.step, donate_argnums=0, out_shardings=(places, None))
        return run.trace(self.state, self.frozen, self.batch)


def plan(
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    mesh: Mesh,
    batch: int | None = None,
    phase: int = -1,
    classes: Sequence[str] = ("dog",),
    narrow: Callable[[str], Any] = lambda path: None,
) -> Plan:
    """The step of `config.phases[phase]` over `mesh`, `batch` examples (default: the phase's).

    narrow(path) -> dtype of a frozen leaf, None: float32. Raises UserError where `train.py` would.
    """
    phase_config = config["phases"][phase]
    model = build_model(config, tokenizer)
    optimizer = make_optimizer(config)

    def initialise(key: jax.Array) -> tuple[dict, dict]:
        halves = trees.split(model.init(key), config["trainable"])
        flat = trees.flatten(halves["frozen"])
        flat = {path: leaf.astype(narrow(path) or leaf.dtype) for path, leaf in flat.items()}
        frozen = quantise_tree(trees.unflatten(flat), config["quantise"])
        return new_state(halves["trainable"], optimizer, config["seed"]), frozen

    shapes = jax.eval_shape(initialise, jax.random.key(0))
    places = placement.param_shardings(mesh, shapes)
    state, frozen = jax.tree.map(placement.placed, shapes, places)
    soft_targets = losses.number_soft_targets(
        token_values(tokenizer), **config.get("number_soft_targets", {})
    )
    laid = model.with_sharding(placement.placement(mesh, config))
    names = name_ids(tokenizer, classes)
    step = phase_step(
        config, phase_config, laid, optimizer, names, soft_targets, config["accumulate"]
    )
    rows = batch or phase_config.get("batch", config["batch"])
    inputs = jax.tree.map(
        lambda leaf: placement.placed(leaf, placement.batch_sharding(mesh)), inputs_of(model, rows)
    )
    return Plan(laid, step, initialise, state, frozen, inputs)


def inputs_of(assembly: Assembly, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch, as `training/step.py` lists them."""
    shapes = assembly.shapes
    text = (batch, shapes.num_packs, shapes.pack_length)
    side, samples = shapes.image_size, round(shapes.seconds * shapes.sample_rate)
    described = {
        "image": ((batch, side, side, 3), np.uint8),
        "audio": ((batch, samples), np.float32),
        "tokens": (text, np.int32),
        "segment_ids": (text, np.int32),
        "loss_mask": (text, np.float32),
        "boxes": ((batch, shapes.max_boxes, 4), np.float32),
        "matched": ((batch,), bool),
        "image_labels": ((batch, shapes.max_labels), np.int32),
        "audio_labels": ((batch, shapes.max_labels), np.int32),
    }
    return {key: jax.ShapeDtypeStruct(*two) for key, two in described.items()}
