"""The phases of a run: each has a split of the data, loss weights, batches and a compiled step.

A phase is an entry of `config.phases`; its steps follow those of the phase before it.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from meerkat_jax.build import Assembly
from meerkat_jax.core import trees
from meerkat_jax.data.dataset import DataSet
from meerkat_jax.data.pipeline import Encode, affordable, fixed_batches, train_batches
from meerkat_jax.data.split import Split, has_split
from meerkat_jax.parallel import hosts, placement
from meerkat_jax.training import feature_cache, flops, losses
from meerkat_jax.training.metrics import Clock
from meerkat_jax.training.start import Start
from meerkat_jax.training.step import phase_step


@dataclasses.dataclass(frozen=True)
class Run:
    """What all phases share. `model` is the model with its shardings."""

    config: Mapping
    workdir: Path
    cache: Path
    data: DataSet
    model: Assembly
    mesh: Mesh
    optimizer: optax.GradientTransformation
    class_names: tuple[jax.Array, jax.Array]
    soft_targets: losses.SoftTargets | None
    start: Start
    origin: Mapping[str, str]
    host_timeout: int
    say: Callable[[str], Any]

    @property
    def on_device(self) -> jax.sharding.NamedSharding:
        """The sharding of a batch."""
        return placement.batch_sharding(self.mesh)

    @functools.cached_property
    def encode(self) -> Callable[[dict, dict], tuple[jax.Array, jax.Array]]:
        """(parameters, batch) -> image and audio tokens of the towers, compiled."""
        model = self.model
        return jax.jit(lambda params, batch: model.encode(model.gather_for_use(params), batch))


class Phase:
    """Phase `number` of a run: steps first + 1 to end."""

    def __init__(self, run: Run, number: int):
        """Raises UserError for a split that is not there and for texts that do not fit a batch."""
        phases = run.config["phases"]
        self.run, self.number, self.config = run, number, phases[number]
        self.name, self.weights = self.config["name"], self.config["weights"]
        self.batch_size = self.config.get("batch", run.config["batch"])
        self.first = sum(phase["steps"] for phase in phases[:number])
        self.end = self.first + self.config["steps"]
        self.needs = losses.needs(self.weights)
        self.task_weights = self.config.get("task_weights", run.config["data"]["task_weights"])
        self.split = Split(run.data.folder, self.config["split"], self.config.get("sources"))
        self.split.open()  # a wrong name is found now, not after an hour
        feature_cache.check_phase(self.config, run.start.trainable)
        self._strata = self.split.strata()  # so that batches have their share of pairs
        self._needed = None  # the pack length that each record needs
        if self.needs["needs_text"]:
            model = run.model
            self._needed = run.data.needed(
                self.split, model.prompt, model.shapes, self.task_weights
            )
        self._programs: dict[int, tuple[jax.stages.Compiled, float]] = {}
        outputs = (run.start.shardings, None)
        step = self._step(run.config["accumulate"])
        self._train = jax.jit(step, donate_argnums=0, out_shardings=outputs)
        self._evaluate = jax.jit(_without_update(self._step(1)))

    def encode(self, *others: Phase, features: feature_cache.FeatureCache | None = None) -> Encode:
        """Examples to arrays: what this phase's losses read, and those of the `others`."""
        model, classes = self.run.model, self.run.data.classes
        needs = losses.needs({term for phase in (self, *others) for term in phase.weights})
        return Encode(
            model.shapes, model.prompt, classes, self.task_weights, **needs, features=features
        )

    def batches(self, step: int, state: dict, frozen: dict, clock: Clock) -> Iterator:
        """Batches from global step `step` on; features are cached first if the phase asks for it.

        Each process reads its own rows.
        """
        run = self.run
        with clock.paused():
            features = self._cache_features(trees.merge(state["trainable"], frozen))
        workers = self.config.get("workers", run.config["data"]["workers"])
        return train_batches(
            self.split,
            self.encode(features=features),
            self.batch_size,
            run.config["seed"] + self.number,
            (step - self.first) * self.batch_size,
            affordable(workers, run.say),
            self.config.get("cache_features"),
            hosts.rows(run.on_device, self.batch_size),
            self._needed,
            self._strata,
        )

    def program(self, state: dict, frozen: dict, batch: dict, clock: Clock) -> Callable:
        """The compiled step for batches of this pack length; it is counted by the `clock`."""
        length = batch["tokens"].shape[-1]
        if length not in self._programs:
            with clock.paused():
                self._programs[length] = self._compile(state, frozen, batch)
        program, work = self._programs[length]
        model = self.run.model
        text = model.shapes.num_packs * length
        prefix = model.model.prefix_length
        tokens = prefix * self.needs["needs_image"] + text * self.needs["needs_text"]
        clock.count(self.batch_size, tokens, work)
        return program

    def evaluate(self, state: dict, frozen: dict, batches: list[dict]) -> list[dict[str, float]]:
        """The metrics of a step on each of `batches`, without its update."""
        run = self.run
        placed = (hosts.place(one, run.on_device, run.config["batch"]) for one in batches)
        found = [self._evaluate(state, frozen, one) for one in placed]
        return jax.tree.map(float, jax.device_get(found))

    def _step(self, accumulate: int) -> Callable:
        run = self.run
        return phase_step(
            run.config, self.config, run.model, run.optimizer, run.class_names, run.soft_targets,
            accumulate,
        )  # fmt: skip

    def _compile(self, state: dict, frozen: dict, batch: dict):
        begun, shapes = time.monotonic(), self.run.model.shapes
        what = f"phase {self.name!r}"
        what += f", packs of {batch['tokens'].shape[-1]} tokens" if shapes.pack_lengths else ""
        self.run.say(f"{what}: compiling, a minute at most; the result is cached")
        traced = self._train.trace(state, frozen, batch)
        program, work = traced.lower().compile(), flops.step_flops(traced)
        took = f"{time.monotonic() - begun:.1f} s"
        self.run.say(f"{what}: compiled in {took}, {work:.3g} FLOPs a step")
        return program, work

    def _cache_features(self, params: dict) -> feature_cache.FeatureCache | None:
        """Tower tokens of the phase's examples, if it says `cache_features`."""
        if "cache_features" not in self.config:
            return None
        run, count = self.run, self.config["cache_features"]

        def encode(batch: dict) -> tuple[jax.Array, jax.Array]:
            batch = {key: hosts.put(value, run.on_device) for key, value in batch.items()}
            return hosts.allgather(run.encode(params, batch))

        here, shared = run.workdir / "features" / str(self.number), run.cache / "features"
        facts = run.origin | {"config": [run.config[key] for key in ("model", "data", "seed")]}
        facts |= {"records": [self.config["split"], count]}
        folder = feature_cache.cache_folder(here, shared, facts, run.start.trainable)
        features = feature_cache.cache_features(
            folder, self.split.open()[:count], run.model.shapes, encode, self.batch_size
        )
        hosts.barrier(f"features of {self.name}", {}, run.host_timeout)
        return features


def held_out_batches(run: Run, phases: list[Phase], split: str) -> list[dict[str, np.ndarray]]:
    """The first `config.evaluate_batches` batches of `split`, with what all phases read."""
    count, size, last = run.config["evaluate_batches"], run.config["batch"], phases[-1]
    found, model = [], run.model
    if count and has_split(run.data.folder, split):
        found = fixed_batches(
            Split(run.data.folder, split),
            last.encode(*phases),
            size,
            count,
            hosts.rows(run.on_device, size),
            run.data.fitting(split, model.prompt, model.shapes, last.task_weights, run.say),
        )
    if count and not found:
        few = f"the data has no batch of {size} examples of split {split!r}"
        run.say(f"nothing is scored during training: {few}")
    return found


def _without_update(step: Callable) -> Callable:
    """The metrics of `step` alone: the compiler removes gradients that nothing uses."""

    def evaluate(state: dict, frozen: dict, batch: dict) -> dict:
        _, metrics = step(state, frozen, batch)
        return {name: value for name, value in metrics.items() if name != "grad_norm"}

    return evaluate
