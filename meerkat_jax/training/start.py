"""The state that a run begins with: fresh or published weights, or the last checkpoint.

Parameters are initialised, read and restored shard by shard, straight to their devices: no host
ever holds the whole model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from meerkat_jax.build import Assembly
from meerkat_jax.core import trees
from meerkat_jax.parallel import placement
from meerkat_jax.parallel.quantise import quantise_tree
from meerkat_jax.training.step import State, new_state
from meerkat_jax.weights.base import Base
from meerkat_jax.weights.checkpoints import Checkpoints


@dataclasses.dataclass
class Start:
    """`state` and `frozen` parameters after `step` steps.

    `pending` are the metrics of steps that no row has yet, `trainable` the shapes of the trainable
    tree, `shardings` those of `state`.
    """

    state: State
    frozen: dict
    step: int
    pending: list[dict]
    trainable: dict
    shardings: Any


def start(
    config: Mapping,
    base: Base,
    model: Assembly,
    classes: tuple[str, ...],
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    origin: Mapping[str, str],
    say: Callable[[str], Any],
) -> Start:
    """The newest checkpoint's state, or a new one from the weights of `base` and the config's seed.

    Raises UserError for a checkpoint of another `origin`, and for weights that do not fit.
    """

    def initialise(key: jax.Array) -> tuple[dict, dict]:
        halves = trees.split(model.init(key, classes), config["trainable"])
        trainable = base.blank(halves["trainable"])
        frozen = quantise_tree(halves["frozen"], config["quantise"])
        return new_state(trainable, optimizer, config["seed"]), frozen

    def without_store(key: jax.Array) -> tuple[dict, dict]:
        """What the store does not hold."""
        state, frozen = initialise(key)
        return state, base.rest(frozen)

    key = jax.random.key(config["seed"])
    shapes = jax.eval_shape(initialise, key)
    shardings = placement.param_shardings(mesh, shapes)
    base.check(jax.eval_shape(lambda key: model.init(key, classes), key))
    halves = {"trainable": shapes[0]["trainable"], "frozen": shapes[1]}
    say(trees.describe(halves, config["trainable"]))
    own = (shardings[0], base.rest(shardings[1]))
    step, pending = 0, []
    if checkpoints.latest() is None:
        state, frozen = jax.jit(without_store, out_shardings=own)(key)
        here = shardings[0]["trainable"]
        trainable = base.fill(state["trainable"], shapes[0]["trainable"], here, "float32")
        adapter, allowed = config.get("adapter"), config.get("adapter_base")
        state["trainable"] = base.adapt(
            trainable, here, model.model.llama, adapter, allowed, frozen, say
        )
    else:
        frozen = jax.jit(lambda key: without_store(key)[1], out_shardings=own[1])(key)
        abstract = jax.tree.map(placement.placed, shapes[0], shardings[0])
        state, saved, meta = checkpoints.restore(abstract, expect=origin)
        step, pending = meta["step"], saved["pending"]
        say(f"going on from step {step}")
    frozen = base.fill(frozen, shapes[1], shardings[1])
    return Start(state, frozen, step, pending, shapes[0]["trainable"], shardings[0])
