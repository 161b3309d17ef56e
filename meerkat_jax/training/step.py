"""One training step: gradients of the trainable tree, accumulated over microbatches, one update.

Only the trainable tree meets `grad` and the optimizer; the frozen one is an argument. A phase says
by its weights which loss terms there are: one step function serves them all. A batch holds

    image uint8[B, H, W, 3]  audio float32[B, samples]  tokens int32[B, R, T]
    boxes float32[B, N, 4]   matched bool[B]            segment_ids int32[B, R, T]
    image_labels int32[B, M] audio_labels int32[B, M]   loss_mask float32[B, R, T]

(labels are class indices, -1 on padding)

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
NAMING = {"image_names", "audio_names"}  # loss terms that need the class names


def make_optimizer(config: Mapping) -> optax.GradientTransformation:
    """`config.optimizer` behind clipping by the global norm.

    "adamw", or "muon" (Jordan et al. 2024): orthogonalised steps for matrices, scaled to the size
    of AdamW's (Liu et al. 2025, section 2.2), and AdamW for all other leaves.
    """
    for key, known in (("optimizer", OPTIMIZERS), ("decay", DECAYS)):
        if config[key] not in known:
            raise UserError(f"config.{key} {config[key]!r}: expected one of {known}")
    rate = learning_rate(config)
    if config["optimizer"] == "adamw":
        optimizer = optax.adamw(
            rate,
            b2=config["b2"],
            weight_decay=config["weight_decay"],
            mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
        )
    else:
        optimizer = optax.contrib.muon(
            rate,
            weight_decay=config["weight_decay"],
            adam_b2=config["b2"],
            muon_weight_dimension_numbers=matrices,
            consistent_rms=MUON_RMS,
        )
    return optax.chain(optax.clip_by_global_norm(config["clip_norm"]), optimizer)


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


def learning_rate(config: Mapping) -> optax.Schedule:
    """The phases' schedules in a row: warm-up to the phase's rate, then `config.decay` to 0.

    "cosine", or "linear" (Bergsma et al. 2025, "Straight to Zero").
    """
    schedules, ends, total = [], [], 0
    for phase in config["phases"]:
        peak, steps, warmup = phase["learning_rate"], phase["steps"], phase["warmup"]
        rise = optax.linear_schedule(0.0, peak, warmup)
        if config["decay"] == "cosine":
            fall = optax.cosine_decay_schedule(peak, steps - warmup)
        else:
            fall = optax.linear_schedule(peak, 0.0, steps - warmup)
        schedules.append(optax.join_schedules([rise, fall], [warmup]))
        total += steps
        ends.append(total)
    return optax.join_schedules(schedules, ends[:-1])


def map_selected(tree: dict, patterns: Sequence[str], change: Callable) -> dict:
    """The tree with `change` applied to the leaves whose path matches one of `patterns`."""
    flat = flatten(tree)
    paths = selected(patterns, flat)
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
    class_names: tuple[jax.Array, jax.Array],
    soft_targets: losses.SoftTargets | None,
    accumulate: int,
) -> Callable[[State, dict, dict], tuple[State, dict]]:
    """`make_step` of one of `config.phases`, with what the config says of all of them."""
    return make_step(
        assembly, optimizer, phase["weights"], class_names, config.get("naming_loss", {}),
        config["avace_loss"], soft_targets,
        accumulate, phase.get("freeze", ()), config["loss_pieces"],
    )  # fmt: skip


def make_step(
    assembly: Assembly,
    optimizer: optax.GradientTransformation,
    weights: Mapping[str, float],
    class_names: tuple[jax.Array, jax.Array],
    naming_loss: Mapping[str, Any],
    avace_loss: Mapping[str, float],
    soft_targets: losses.SoftTargets | None = None,
    accumulate: int = 1,
    freeze: Sequence[str] = (),
    pieces: int = 1,
) -> Callable[[State, dict, dict], tuple[State, dict]]:
    """`step(state, frozen, batch) -> (state, metrics)` for one phase's `weights`.

    Parameters whose path matches a pattern of `freeze` stay as they are and cost no backward pass.
    Logits are computed in `pieces` equal pieces of the answer tokens.
    """
    model, weights = assembly.model, dict(weights)
    unknown = set(weights) - set(losses.TERMS)
    if unknown:
        raise UserError(f"unknown loss terms {sorted(unknown)}; there are {losses.TERMS}")

    def sum_terms(params, batch, key):
        """The terms' sums over a microbatch, and what is logged beside them."""
        params = assembly.gather_for_use(params)
        apply = functools.partial(model.apply, {"params": params})
        count = min(assembly.shapes.max_target_tokens, batch["loss_mask"].shape[-1])
        positions, loss_mask = losses.answer_positions(batch["loss_mask"], count)
        text = (batch["tokens"], batch["segment_ids"], positions)
        dropout = {"deterministic": False, "rngs": {"dropout": key}}

        def answer_loss(hidden, answers, loss_mask):
            logits = apply(hidden, method="logits")
            return losses.answer_loss(logits, answers, loss_mask, soft_targets)

        def language_model_loss(hidden):
            answers = jnp.take_along_axis(batch["tokens"], positions + 1, axis=-1)
            hidden = losses.mask_hidden(hidden, loss_mask)
            return losses.sum_pieces(answer_loss, pieces, hidden, answers, loss_mask)

        terms, extra = {}, {}
        if "language" in weights:
            hidden = apply(*text, method="forward_text", **dropout)["hidden"]
            terms["language"], extra["correct"] = language_model_loss(hidden)
        if losses.needs(weights)["needs_image"]:
            if "image_tokens" in batch:
                features = batch["image_tokens"], batch["audio_tokens"]
            else:
                features = assembly.encode(params, batch)
            pairs = {"matched": batch["matched"]}
            if "answer" in weights:
                out = apply(*features, *text, method="forward_from_features", **pairs, **dropout)
                terms["answer"], extra["correct"] = language_model_loss(out["hidden"])
            else:
                out = apply(*features, method="align", **pairs)
            terms |= losses.alignment_terms(out, batch, model.image_grid, avace_loss)
        if NAMING & set(weights):
            vectors = apply(*class_names, method="embed_class_names")
            terms |= losses.naming_terms(out, vectors, batch, **naming_loss)
        # The compiler removes unused results: a phase of naming losses runs no decoder.
        return {name: terms[name] for name in weights}, extra

    def objective(trainable, frozen, batch, items, key):
        trainable = map_selected(trainable, freeze, jax.lax.stop_gradient)
        term_sums, extra = sum_terms(merge(trainable, frozen), batch, key)
        terms = {name: value / items[name] for name, value in term_sums.items()}
        return losses.total(terms, weights), (terms, extra)

    gradient = jax.value_and_grad(objective, has_aux=True)

    def accumulated(trainable, frozen, batch, items, key):
        """Loss, terms and gradients of the whole batch, one microbatch in memory at a time."""
        # [B, ...] -> [accumulate, B / accumulate, ...]
        microbatches = jax.tree.map(
            lambda x: x.reshape(accumulate, len(x) // accumulate, *x.shape[1:]), batch
        )
        keys = jax.random.split(key, accumulate)

        def add(total, microbatch):
            one = gradient(trainable, frozen, microbatch[0], items, microbatch[1])
            return jax.tree.map(jnp.add, total, one), None

        first = jax.tree.map(lambda x: x[0], microbatches)
        first = gradient(trainable, frozen, first, items, keys[0])
        rest = jax.tree.map(lambda x: x[1:], (microbatches, keys))
        return jax.lax.scan(add, first, rest)[0]

    def step(state: State, frozen: dict, batch: dict) -> tuple[State, dict]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state["key"]), state["step"])
        items = losses.counts(batch)
        (loss, (terms, extra)), grads = accumulated(state["trainable"], frozen, batch, items, key)
        updates, opt = optimizer.update(grads, state["opt"], state["trainable"])
        updates = map_selected(
            updates, freeze, jnp.zeros_like
        )  # momentum and decay would move them
        new = {
            "trainable": optax.apply_updates(state["trainable"], updates),
            "opt": opt,
            "step": state["step"] + 1,
            "key": state["key"],
        }
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads)}
        metrics |= {f"loss/{name}": value for name, value in terms.items()}
        if "correct" in extra:
            metrics["token_accuracy"] = extra["correct"] / items["answer"]
        return new, metrics

    return step
