"""One training step: gradients of the trainable tree, accumulated over microbatches, one update.

Only the trainable tree meets `grad` and the optimizer; the frozen one is an argument. A phase says
by its weights which loss terms there are: one step function serves them all. A batch holds

    image uint8[B, H, W, 3]  audio float32[B, samples]  tokens, owners int32[B, R, T]
    boxes float32[B, N, 4]   matched bool[B]            targets float32[B, R, T]
    seen int32[B, M]         heard int32[B, M]          (class indices, -1 padding)

or, with cached features (training/feature_cache.py), image_tokens float32[B, V, I] and
audio_tokens float32[B, A, J] in place of image and audio.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from meerkat_jax.build import Assembly
from meerkat_jax.core.errors import UserError
from meerkat_jax.core.trees import flatten, merge, selected, unflatten
from meerkat_jax.training import losses

State = dict  # trainable tree, opt state, step int32[], key
OPTIMIZERS = ("adamw", "muon")
DECAYS = ("linear", "cosine")
MUON_RMS = 0.4  # root mean square of a kernel's step, in learning rates; .8 learns far worse
NAMING = {"image_names", "audio_names"}  # losses that need names of what is seen and heard


def make_optimizer(config: Mapping) -> optax.GradientTransformation:
    """`config.optimizer` with clipping, in two groups: the paths that `slow` finds, and the rest.

    "adamw", or "muon" (Jordan et al. 2024): matrices take steps whose singular values are all
    alike, scaled to the size of AdamW's (Liu et al. 2025, section 2.2); all else takes AdamW's.
    """
    slow = tuple(config["slow"])
    for key, known in (("optimizer", OPTIMIZERS), ("decay", DECAYS)):
        if config[key] not in known:
            raise UserError(f"config.{key} {config[key]!r}: expected one of {known}")

    def adamw(key: str) -> optax.GradientTransformation:
        return optax.adamw(
            learning_rate(config, key),
            b2=config["b2"],
            weight_decay=config["weight_decay"],
            mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
        )

    def muon(key: str) -> optax.GradientTransformation:
        return optax.contrib.muon(
            learning_rate(config, key),
            weight_decay=config["weight_decay"],
            adam_b2=config["b2"],
            muon_weight_dimension_numbers=matrices,
            consistent_rms=MUON_RMS,
        )

    def groups(params: dict) -> dict:
        flat = flatten(params)
        chosen = selected(slow, flat)
        return unflatten({path: "slow" if path in chosen else "rest" for path in flat})

    make = {"adamw": adamw, "muon": muon}[config["optimizer"]]
    return optax.chain(
        optax.clip_by_global_norm(config["clip_norm"]),
        optax.multi_transform({"rest": make("learning_rate"), "slow": make("slow_rate")}, groups),
    )


def matrices(params: dict) -> dict:
    """Which leaves are matrices to Muon, and how: kernels [I, O], [L, I, O] and [h, w, 1, O].

    Not that of the language model's head: its columns are words, each with a step of its own.
    """

    def how(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        names = [getattr(part, "key", "") for part in path]
        if names[-1] != "kernel" or "lm_head" in names:
            return None
        last = leaf.ndim - 1
        inputs = tuple(range(last)) if leaf.ndim == 4 else last - 1  # 3 axes: stacked layers
        return optax.contrib.MuonDimensionNumbers(inputs, last)

    return jax.tree_util.tree_map_with_path(how, params)


def learning_rate(config: Mapping, key: str = "learning_rate") -> optax.Schedule:
    """The phases' schedules one after another: warm-up to phase[key], then `config.decay` to 0.

    "cosine", or "linear" (Bergsma et al. 2025, "Straight to Zero"; docs/decisions.md).
    """
    decay = {"linear": _straight, "cosine": optax.cosine_decay_schedule}[config["decay"]]
    schedules, ends, total = [], [], 0
    for phase in config["phases"]:
        peak, steps = phase.get(key, phase["learning_rate"]), phase["steps"]
        warmup = phase["warmup"]
        rise = optax.linear_schedule(0.0, peak, warmup)
        fall = decay(peak, steps - warmup)
        schedules.append(optax.join_schedules([rise, fall], [warmup]))
        total += steps
        ends.append(total)
    return optax.join_schedules(schedules, ends[:-1])


def _straight(peak: float, steps: int) -> optax.Schedule:
    return optax.linear_schedule(peak, 0.0, steps)


def at_rest(tree: dict, still: Sequence[str], change: Callable) -> dict:
    """The tree with `change` done to the leaves whose path a pattern of `still` finds."""
    flat = flatten(tree)
    paths = selected(still, flat)
    return unflatten({k: change(leaf) if k in paths else leaf for k, leaf in flat.items()})


def new_state(trainable: dict, optimizer: optax.GradientTransformation, seed: int) -> State:
    """The state before the first step."""
    return {
        "trainable": trainable,
        "opt": optimizer.init(trainable),
        "step": jnp.zeros((), jnp.int32),
        "key": jax.random.key_data(jax.random.key(seed)),
    }


def phase_step(
    config: Mapping,
    phase: Mapping,
    assembly: Assembly,
    optimizer: optax.GradientTransformation,
    names: tuple[jax.Array, jax.Array],
    soft_targets: losses.SoftTargets | None,
    accumulate: int,
) -> Callable[[State, dict, dict], tuple[State, dict]]:
    """`make_step` of one of `config.phases`, with what the config says of all of them."""
    return make_step(
        assembly, optimizer, phase["weights"], names, config.get("naming_loss", {}),
        config["avace_loss"], soft_targets,
        accumulate, phase.get("still", ()), config["loss_pieces"],
    )  # fmt: skip


def make_step(
    assembly: Assembly,
    optimizer: optax.GradientTransformation,
    weights: Mapping[str, float],
    names: tuple[jax.Array, jax.Array],
    naming_loss: Mapping[str, Any],
    avace_loss: Mapping[str, float],
    soft_targets: losses.SoftTargets | None = None,
    accumulate: int = 1,
    still: Sequence[str] = (),
    pieces: int = 1,
) -> Callable[[State, dict, dict], tuple[State, dict]]:
    """`step(state, frozen, batch) -> (state, metrics)` for one phase's `weights`.

    Parameters whose path a pattern of `still` finds stay as they are, and cost no backward pass.
    Logits are made in so many `pieces` of the answer tokens.
    """
    model, weights = assembly.model, dict(weights)
    unknown = set(weights) - set(losses.TERMS)
    if unknown:
        raise UserError(f"unknown loss terms {sorted(unknown)}; there are {losses.TERMS}")

    def sums(params, batch, key):
        """The terms' sums over a microbatch, and what is logged beside them."""
        params = assembly.used(params)
        apply = functools.partial(model.apply, {"params": params})
        room = min(assembly.shapes.room, batch["targets"].shape[-1])
        places, targets = losses.answer_places(batch["targets"], room)
        text = (batch["tokens"], batch["owners"], places)
        chance = {"deterministic": False, "rngs": {"dropout": key}}

        def said(hidden, answers, targets):
            logits = apply(hidden, method="logits")
            return losses.answer_loss(logits, answers, targets, soft_targets)

        def answered(hidden):
            answers = jnp.take_along_axis(batch["tokens"], places + 1, axis=-1)
            hidden = losses.counted(hidden, targets)
            return losses.by_pieces(said, pieces, hidden, answers, targets)

        terms, extra = {}, {}
        if "language" in weights:
            hidden = apply(*text, method="speak", **chance)["hidden"]
            terms["language"], extra["right"] = answered(hidden)
        if losses.needs(weights)["look"]:
            if "image_tokens" in batch:
                senses = batch["image_tokens"], batch["audio_tokens"]
            else:
                senses = assembly.sense(params, batch)
            pairs = {"matched": batch["matched"]}
            if "answer" in weights:
                out = apply(*senses, *text, method="respond", **pairs, **chance)
                terms["answer"], extra["right"] = answered(out["hidden"])
            else:
                out = apply(*senses, method="meet", **pairs)
            terms |= losses.alignment_terms(out, batch, model.image_grid, avace_loss)
        if NAMING & set(weights):
            vectors = apply(*names, method="names")
            terms |= losses.name_terms(out, vectors, batch, **naming_loss)
        # The compiler drops what nobody reads: a phase of names runs no decoder.
        return {name: terms[name] for name in weights}, extra

    def objective(trainable, frozen, batch, items, key):
        trainable = at_rest(trainable, still, jax.lax.stop_gradient)
        found, extra = sums(merge(trainable, frozen), batch, key)
        terms = {name: value / items[name] for name, value in found.items()}
        return losses.total(terms, weights), (terms, extra)

    gradient = jax.value_and_grad(objective, has_aux=True)

    def accumulated(trainable, frozen, batch, items, key):
        """Loss, terms and gradients of the whole batch, one microbatch in memory at a time."""
        pieces = jax.tree.map(
            lambda x: x.reshape(accumulate, len(x) // accumulate, *x.shape[1:]), batch
        )
        keys = jax.random.split(key, accumulate)

        def micro(found, piece):
            more = gradient(trainable, frozen, piece[0], items, piece[1])
            return jax.tree.map(jnp.add, found, more), None

        first = gradient(trainable, frozen, jax.tree.map(lambda x: x[0], pieces), items, keys[0])
        rest = jax.tree.map(lambda x: x[1:], (pieces, keys))
        return jax.lax.scan(micro, first, rest)[0]

    def step(state: State, frozen: dict, batch: dict) -> tuple[State, dict]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        items = losses.counts(batch)
        found = accumulated(state["trainable"], frozen, batch, items, key)
        (loss, (terms, extra)), grads = found
        updates, opt = optimizer.update(grads, state["opt"], state["trainable"])
        updates = at_rest(updates, still, jnp.zeros_like)  # momentum and decay would move them
        new = {
            "trainable": optax.apply_updates(state["trainable"], updates),
            "opt": opt,
            "step": state["step"] + 1,
            "key": state["key"],
        }
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads)}
        metrics |= {f"loss/{name}": value for name, value in terms.items()}
        if "right" in extra:
            metrics["token_accuracy"] = extra["right"] / items["answer"]
        return new, metrics

    return step
