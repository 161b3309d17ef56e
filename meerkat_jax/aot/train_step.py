"""A training step compiled for a named topology: its memory, and a bound on its speed.

The bounds, in seconds a step, each as if nothing else took time: products at the chip's peak rate,
recomputed ones included; collectives at one way of all its links; weights through its memory, as
often as they are used. MFU is bounded by the largest of them: FLOPs that the step needs
(training/flops.py) over what the chips could do in that time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from meerkat_jax.aot import program
from meerkat_jax.aot.plan import Plan
from meerkat_jax.aot.topology import GIB, Chip
from meerkat_jax.core.errors import UserError
from meerkat_jax.training.flops import count, step_flops

USES = 3  # of a frozen weight in a step: forward, recomputed forward, backward


def compile_step(made: Plan, mesh: Mesh, chip: Chip, quick: bool = False) -> dict[str, Any]:
    """Compile the plan's step -> what it needs; {"fits": False, "reason"} if it is too large.

    quick: without the compiler's optimisations, sooner; memory comes out up to 6 % low.
    """
    begun = time.monotonic()
    traced = made.trace()
    report: dict[str, Any] = {
        "mesh": dict(mesh.shape),
        "devices": mesh.size,
        "batch": made.batch["tokens"].shape[0],
        "quick": quick,
        "memory_gib": chip.memory and chip.memory / GIB,
        "gib": {
            "frozen weights": program.bytes_of(made.frozen) / GIB,
            "trained weights": program.bytes_of(made.state["trainable"]) / GIB,
            "optimizer": program.bytes_of(made.state["opt"]) / GIB,
            "batch": program.bytes_of(made.batch) / GIB,
        },
    }
    compiled, reason = compile_for(traced, quick)
    if compiled is None:
        return report | {"fits": False, "reason": reason}
    report["compile_seconds"] = time.monotonic() - begun
    needs = program.memory(compiled, planned=chip.flops is not None)
    report["gib"] |= {"temporaries": needs["temporaries"] / GIB, "peak": needs["peak"] / GIB}
    found = program.collectives(compiled.as_text())
    report["collectives"] = {c.kind: {"calls": c.calls, "gb": c.bytes / 1e9} for c in found}
    report |= bounds(made, traced, sum(c.bytes for c in found), mesh.size, chip)
    return report | {"fits": chip.memory is None or needs["peak"] <= chip.memory}


def compile_for(traced: jax.stages.Traced, quick: bool) -> tuple[jax.stages.Compiled | None, str]:
    """(the program, ""), or (None, what the compiler says) where it finds no room for it."""
    jax.config.update("jax_optimization_level", "O0" if quick else "UNKNOWN")
    try:
        return traced.lower().compile(), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, _line(error)


def bounds(
    made: Plan, traced: jax.stages.Traced, moved: int, devices: int, chip: Chip
) -> dict[str, Any]:
    """FLOPs, and for a chip that is known the bounds of the module's docstring.

    moved: bytes that a device receives in collectives.
    """
    needed, executed = step_flops(traced), count(traced.jaxpr, again=True)
    report: dict[str, Any] = {"tflop": {"needed": needed / 1e12, "executed": executed / 1e12}}
    if chip.flops is None:
        return report
    read = USES * program.bytes_of(made.frozen)
    seconds = {
        "products": executed / devices / chip.flops,
        "links": moved / chip.links,
        "memory": read / chip.bandwidth,
    }
    longest = max(seconds.values())
    mfu = needed / devices / chip.flops / longest
    return report | {"seconds": seconds, "step_seconds": longest, "mfu": mfu}


def largest(
    compiled_step: Callable[[int, bool], dict[str, Any]],
    unit: int,
    quick: bool,
    first: int = 1,
    most: int = 4096,
) -> dict[str, Any]:
    """The report of the largest batch, a multiple of `unit`, that fits, to about a twelfth.

    flight(batch, quick) compiles; `first` is the batch that is tried first. Memory grows with the
    batch along a line, so two peaks say where to look; while there are none, batches are doubled
    and halved between. Quick compilations do; unless `quick` the full one decides, and takes a
    twelfth less until it fits. Raises UserError if not even `unit` fits.
    """
    fits, misses = 0, most // unit + 1
    trial, peaks = min(max(1, first // unit), misses - 1), {}
    while misses - fits > max(1, fits // 12):
        report = compiled_step(trial * unit, True)
        if report["fits"]:
            fits = trial
        else:
            misses = trial
        if report.get("memory_gib") and "peak" in report.get("gib", {}):
            peaks[trial] = report["gib"]["peak"] / report["memory_gib"]
        guess = _where_full(peaks) or min(max(1, 2 * fits), (fits + misses) // 2)
        trial = min(max(guess, fits + max(1, fits // 12)), misses - 1)
    while fits:
        report = compiled_step(fits * unit, quick)
        if report["fits"]:
            return report
        fits -= max(1, fits // 12)
    raise UserError(f"not even a batch of {unit} fits; use more chips, fsdp or tensor, or int8")


def _where_full(peaks: Mapping[int, float]) -> int:
    """Where a line through the last two {size: share of the memory} reaches 1; 0 without two."""
    if len(peaks) < 2:
        return 0
    (one, low), (two, high) = list(peaks.items())[-2:]
    slope = (high - low) / (two - one)
    return int(two + (1 - high) / slope) if slope > 0 else 0


def format_report(report: Mapping[str, Any]) -> str:
    """The report as lines for people."""
    lines = [
        f"{report['config']} on {report['topology']}: {report['devices']} devices, "
        + ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
        + f"; batch {report['batch']}",
        *(f"note: {note}" for note in report["notes"]),
    ]
    lines += [f"{name:<18}{size:9.3f} GiB a device" for name, size in report["gib"].items()]
    if report["memory_gib"]:
        lines.append(f"{'usable':<18}{report['memory_gib']:9.3f} GiB")
    for kind, found in report.get("collectives", {}).items():
        lines.append(f"{kind:<18}{found['gb']:9.3f} GB a device, {found['calls']} calls")
    if "tflop" in report:
        needed, executed = report["tflop"]["needed"], report["tflop"]["executed"]
        lines.append(f"products: {needed:.2f} TFLOP needed, {executed:.2f} executed, all devices")
    if "seconds" in report:
        each = ", ".join(f"{name} {1e3 * s:.1f}" for name, s in report["seconds"].items())
        lines.append(f"a step takes at least, ms: {each}; MFU at most {100 * report['mfu']:.0f} %")
    if "token_seconds" in report:
        rate = f"{report['tokens_per_second']:.0f} in a second, all rows"
        lines.append(f"a token takes at least {1e3 * report['token_seconds']:.1f} ms: {rate}")
    if "compile_seconds" in report:
        lines.append(f"compiled in {report['compile_seconds']:.0f} s")
    lines.append("fits" if report["fits"] else f"DOES NOT FIT: {report.get('reason', 'peak')}")
    return "\n".join(lines)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
