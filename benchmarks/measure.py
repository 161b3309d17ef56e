"""Two programs timed in turns, and what is told of it: ratios, spread, machine, versions.

A shared machine is faster in one minute than in the next. So the two are called by turns (ours,
theirs, ours, theirs, ...) and compared pair by pair: what slows both falls out of the ratio.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PACKAGES = ("jax", "flax", "optax", "torch", "transformers", "peft")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Our program and the peer's, which do the same; each call returns when all is computed.

    agreement: largest differences between their results, seen before any timing; "within" is the
    bound that they were held to. facts: what else the report tells (sizes, tokens per call). `rate`
    turns the seconds of a call into figures of its own, as {"tokens_per_second": ...}.
    """

    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    agreement: Mapping[str, float] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate: Callable[[float], Mapping[str, float]] = lambda seconds: {}


def seconds(call: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turns(pair: Pair, repeats: int, warm: int = 1) -> dict[str, Any]:
    """Time `repeats` pairs of calls after `warm` untimed ones; what the report says of the pair."""
    for _ in range(warm):
        pair.ours()
        pair.theirs()
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        times["ours"].append(seconds(pair.ours))
        times["theirs"].append(seconds(pair.theirs))
    ratios = [t / o for o, t in zip(times["ours"], times["theirs"], strict=True)]
    sides = {
        side: spread(found) | dict(pair.rate(statistics.median(found)))
        for side, found in times.items()
    }
    return {
        **sides,
        "ratio": spread(ratios),
        "agreement": dict(pair.agreement),
        "facts": dict(pair.facts),
        "seconds": times,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and ends of the values."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1
        else [values[0]] * 3
    )
    return {"median": middle, "q1": low, "q3": high, "min": min(values), "max": max(values)}


def told(ratio: Mapping[str, float]) -> str:
    """A `spread` in words: median (quartiles; ends)."""
    return (
        f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f}; "
        f"{ratio['min']:.2f} to {ratio['max']:.2f})"
    )


def setting(device: str, threads: int | None) -> dict[str, Any]:
    """Machine, date, versions and command: what a figure is worth nothing without."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "processor": processor(),
        "threads": threads,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
    }


def _module() -> str:
    """The benchmark that runs, as it is named on the command line."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else "benchmarks.towers"


def processor() -> str:
    """The CPU's name, if the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def version(package: str) -> str:
    """The installed version, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def table(report: Mapping[str, Any]) -> str:
    """The report in Markdown: a line on the setting, one row per case."""
    about = report["setting"]
    cores = f"{about['threads']} threads" if about["threads"] else "all cores"
    names = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    lines = [
        f"{about['date']}, {about['device']}, {about['processor']}, {cores}; "
        f"Python {about['python']}, {names}.",
        f"`{about['command']}`",
        "",
        "| case | ours | theirs | theirs / ours: median (quartiles; ends) | relative error |",
        "|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_row(name, case) for name, case in report["cases"].items()])


def _row(name: str, case: Mapping[str, Any]) -> str:
    if "error" in case:
        return f"| {name} | {case['error']} | | | |"
    share = told(case["ratio"])
    agreement = ", ".join(f"{what} {value:.1e}" for what, value in case["agreement"].items())
    return f"| {name} | {_side(case['ours'])} | {_side(case['theirs'])} | {share} | {agreement} |"


def _side(side: Mapping[str, float]) -> str:
    known = ("median", "q1", "q3", "min", "max")
    more = [f"{value:,.4g} {what.replace('_', ' ')}" for what, value in side.items()
            if what not in known]  # fmt: skip
    return ", ".join([f"{1e3 * side['median']:,.1f} ms", *more])
