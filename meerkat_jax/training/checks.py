"""Numbers of a config that cannot be meant, found before anything is read or compiled."""

from __future__ import annotations

from meerkat_jax.data.example import TASKS
from meerkat_jax.errors import UserError, nearest
from meerkat_jax.training.quantise import check_kind

NUMBERS = ("batch", "accumulate", "loss_pieces", "log_every", "checkpoint_every", "evaluate_every")


def check(config: dict) -> None:
    """UserError for numbers that cannot be meant."""
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
    lengths = [*data.get("lengths", ()), data["length"]]
    if any(not isinstance(n, int) or n < 1 for n in lengths) or sorted({*lengths}) != lengths:
        raise UserError(
            f"config.data.lengths is {lengths[:-1]}; expected rising whole numbers below "
            f"data.length={data['length']}"
        )
    for room in (min(data["room"], length) for length in lengths):
        if room % config["loss_pieces"]:
            raise UserError(
                f"config.loss_pieces is {config['loss_pieces']}, which does not divide {room}, the "
                "answer tokens of a run (data.room, data.lengths)"
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
