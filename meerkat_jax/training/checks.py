"""Numbers of a config that cannot be meant, found before anything is read or compiled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meerkat_jax.core.errors import UserError, nearest
from meerkat_jax.data.example import TASKS
from meerkat_jax.parallel.quantise import check_kind
from meerkat_jax.training.step import NAMING

DTYPES = ("float32", "bfloat16", "float16")
NUMBERS = ("batch", "accumulate", "loss_pieces", "log_every", "checkpoint_every", "evaluate_every")


def check(config: dict) -> None:
    """UserError for values that cannot be meant, or that other keys do not go with."""
    check_dtypes(config)
    for key in NUMBERS:
        if key not in config or not isinstance(config[key], int) or config[key] < 1:
            raise UserError(f"config.{key} is {config.get(key)!r}; expected a whole number above 0")
    check_kind(config["quantise"], "config.quantise")
    for batch in (config["batch"], *(p["batch"] for p in config["phases"] if "batch" in p)):
        if not isinstance(batch, int) or batch < 1 or batch % config["accumulate"]:
            raise UserError(f"batch={batch!r} is no multiple of accumulate={config['accumulate']}")
    data = config["data"]
    for odds in (data["task_weights"], *(p.get("task_weights", {}) for p in config["phases"])):
        for key in odds:
            if key.split("/")[0] not in TASKS:
                near = nearest(key, TASKS, 1)[0]
                raise UserError(f"task_weights: {key!r} names no task; did you mean {near!r}?")
    lengths = [*data.get("pack_lengths", ()), data["pack_length"]]
    if any(not isinstance(n, int) or n < 1 for n in lengths) or sorted({*lengths}) != lengths:
        raise UserError(
            f"config.data.pack_lengths is {lengths[:-1]}; expected rising whole numbers below "
            f"data.pack_length={data['pack_length']}"
        )
    for targets in (min(data["max_target_tokens"], length) for length in lengths):
        if targets % config["loss_pieces"]:
            raise UserError(
                f"config.loss_pieces is {config['loss_pieces']}, which does not divide {targets}, "
                "the answer tokens of a pack (data.max_target_tokens, data.pack_lengths)"
            )
    if not config["phases"] or any(phase["steps"] < 1 for phase in config["phases"]):
        raise UserError("config.phases: expected at least one phase, each of at least one step")
    for phase in config["phases"]:
        warmup = phase.get("warmup")
        if not isinstance(warmup, int) or not 0 <= warmup < phase["steps"]:
            raise UserError(
                f"config.phases, {phase.get('name')!r}: warmup {warmup} of {phase['steps']} steps; "
                "expected a whole number, 0 or more and fewer than the steps"
            )


def check_dtypes(config: Mapping[str, Any]) -> None:
    """UserError for a dtype of a part of the model that is none we compute in."""
    for part, section in config["model"].items():
        dtype = section.get("dtype", "float32") if isinstance(section, Mapping) else "float32"
        if dtype not in DTYPES:
            raise UserError(
                f"config.model.{part}.dtype is {dtype!r}; expected one of {', '.join(DTYPES)}"
            )


def check_names(phases: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> None:
    """UserError when a phase is to learn names, and the data set has none."""
    for phase in phases:
        naming = [term for term in sorted(NAMING) if phase["weights"].get(term)]
        if naming and not classes:
            raise UserError(
                f"config.phases, {phase['name']!r}: {naming[0]} learns class names, and no example of "
                'the data has labels; give "image_labels" and "audio_labels" '
                "(docs/own_data.md), or leave that phase out"
            )
