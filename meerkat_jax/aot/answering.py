"""Inference compiled for a named chip: its memory, and a bound on its token rate.

Answers are made on one device: looking and listening, and then the words, are two programs, beside
all weights. Each token reads every weight of the decoder and the whole cache once, which bounds the
rate of tokens.
"""

from __future__ import annotations

import time
from typing import Any

from meerkat_jax.aot import program
from meerkat_jax.aot.plan import Plan
from meerkat_jax.aot.topology import GIB, Chip
from meerkat_jax.aot.train_step import compile_for
from meerkat_jax.core.trees import merge
from meerkat_jax.inference.sampling import Sampler


def compile_answers(made: Plan, chip: Chip, quick: bool = False) -> dict[str, Any]:
    """Compile the answers to the plan's batch of pairs, one question each -> what they need.

    made: of one device. quick: as in `flight.fly`.
    """
    begun = time.monotonic()
    params = merge(made.state["trainable"], made.frozen)
    sampler = Sampler(made.assembly, params, made.assembly.shapes.max_answer_tokens)
    held = {name: leaf for name, leaf in made.batch.items() if name in ("image", "audio")}
    traced, cache = sampler.trace(held)
    weights, kept = program.bytes_of(params), program.bytes_of(cache)
    pairs = made.batch["image"].shape[0]
    report: dict[str, Any] = {
        "batch": pairs,
        "quick": quick,
        "memory_gib": chip.memory and chip.memory / GIB,
        "gib": {"weights": weights / GIB, "cache": kept / GIB},
    }
    for name, one in traced.items():
        done, reason = compile_for(one, quick)
        if done is None:
            return report | {"fits": False, "reason": f"{name}: {reason}"}
        needs = program.memory(done, planned=chip.flops is not None)
        report["gib"][f"{name}: more"] = needs["temporaries"] / GIB
    report["compile_seconds"] = time.monotonic() - begun
    if chip.bandwidth:
        read = program.bytes_of(params["llama"]) + kept
        report["token_seconds"] = read / chip.bandwidth
        report["tokens_per_second"] = pairs / report["token_seconds"]
    more = max(report["gib"][f"{name}: more"] for name in traced)
    peak = report["gib"]["peak"] = report["gib"]["weights"] + more
    return report | {"fits": chip.memory is None or peak * GIB <= chip.memory}
