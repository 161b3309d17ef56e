"""The converted towers beside transformers' torch ones, timed in turns in one process.

    python -m benchmarks.towers --out=towers.json
    python -m benchmarks.towers --device=gpu --dtype=bfloat16 --only=lora,lora7b_512

Both sides have the same weights (random, in the hub's layout, through our conversion's tables), and
their results are compared before any timing; the 7B-shaped step alone has weights of its own. On
the CPU all runs in float32 on --threads cores. Writes JSON to --out, and prints a Markdown table.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from benchmarks import measure
from meerkat_jax.core.errors import UserError

CASES = ("clip", "clap", "clap_fused", "lora", "generate")
LARGE = ("lora7b_512", "lora7b_1024")  # always bfloat16

Say = Callable[[str], Any]


def run(
    only: Sequence[str] = (),
    device: str = "cpu",
    dtype: str = "float32",
    size: str = "real",
    repeats: int = 10,
    threads: int = 2,
    tokens: int | None = None,
    say: Say = print,
    keep: Callable[[dict], Any] = lambda report: None,
) -> dict[str, Any]:
    """Measure the cases `only` (none: all of the device) -> the report, {"setting", "cases"}.

    say prints a line; keep is given the report after each case. A case that fails is told as
    {"error": ...}, and the others go on. Raises UserError for a device that is not there, a dtype
    that it does not take, and an unknown case.
    """
    for name in only:
        if name not in CASES + LARGE:
            raise UserError(f"--only={name}: expected some of {', '.join(CASES + LARGE)}")
    prepare(device, dtype, threads)
    report: dict[str, Any] = {
        "setting": measure.setting(*machine(device, threads)),
        "dtype": dtype,
        "size": size,
        "repeats": repeats,
        "cases": {},
    }
    for name, make in chosen(only, device, dtype, size, tokens, say).items():
        say(f"{name} ...")
        try:
            case = measure.in_turns(make(), repeats)
        except Exception as error:  # of one case; an hour of others should not be lost
            say(traceback.format_exc())
            case = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        report["cases"][name] = case
        say(measure.table(report).splitlines()[-1])
        keep(report)
    return report


def prepare(device: str, dtype: str, threads: int) -> None:
    """Choose device, cores and exactness on both sides, before any of them starts."""
    import torch

    if device == "cpu" and dtype != "float32":
        raise UserError(f"--dtype={dtype} with --device=cpu: the CPU is measured in float32 alone")
    if device == "gpu" and not torch.cuda.is_available():
        raise UserError("--device=gpu: torch finds no GPU here; use --device=cpu")
    if device == "gpu":
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")  # torch needs the rest
    else:
        jax.config.update("jax_platforms", "cpu")
        if hasattr(os, "sched_setaffinity"):  # XLA starts a thread for each core that it may use
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        torch.set_num_threads(threads)
    # In float32 both sides compute in float32, not in the GPU's shorter format of it.
    jax.config.update("jax_default_matmul_precision", "highest" if dtype == "float32" else None)
    if device == "gpu" and jax.default_backend() != "gpu":
        raise UserError("--device=gpu: jax finds no GPU here; install jax[cuda13]")


def chosen(only, device, dtype, size, tokens, say) -> dict[str, Any]:
    """{case: function that makes its pair}; nothing is imported for cases not asked for."""
    wanted = list(only) or ([*CASES, *LARGE] if dtype == "bfloat16" else CASES)
    every: dict[str, Any] = {}
    if set(wanted) & set(CASES):
        from benchmarks import pairs

        every |= pairs.cases(size, device, dtype)
    if set(wanted) & set(LARGE):
        from benchmarks import large

        every |= large.cases(size, device, tokens, say)
    return {name: every[name] for name in [*CASES, *LARGE] if name in wanted}


def machine(device: str, threads: int) -> tuple[str, int | None]:
    """What the figures are measured on, and how many cores either side has (None: all)."""
    return ("CPU", threads) if device == "cpu" else (jax.devices()[0].device_kind, None)


def define_flags() -> None:
    """The flags of the command line."""
    flags.DEFINE_list("only", [], f"Cases: {', '.join([*CASES, *LARGE])}.")
    flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where both sides run.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What they compute in.")
    flags.DEFINE_enum("size", "real", ["real", "tiny"], "Published sizes, or tiny ones for tests.")
    flags.DEFINE_integer("repeats", 10, "Pairs of calls that are timed.", lower_bound=1)
    flags.DEFINE_integer("threads", 2, "Cores of either side on a CPU.", lower_bound=1)
    flags.DEFINE_integer("tokens", None, "Tokens of a 7B-shaped step.", lower_bound=1)
    flags.DEFINE_string("out", None, "Where the JSON goes; default: nowhere.")


def main(_: list[str]) -> None:
    """Read the flags, measure, write."""
    given = flags.FLAGS
    out = Path(given.out).expanduser() if given.out else None
    try:
        if out and not out.parent.is_dir():
            raise UserError(f"--out={out}: there is no folder {out.parent}; make it first")
        report = run(
            given.only,
            given.device,
            given.dtype,
            given.size,
            given.repeats,
            given.threads,
            given.tokens,
            lambda line: print(line, flush=True),
            lambda report: out and out.write_text(json.dumps(report, indent=1) + "\n"),
        )
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    print("\n" + measure.table(report), flush=True)
    if any("error" in case for case in report["cases"].values()):
        sys.exit(1)


if __name__ == "__main__":
    define_flags()
    app.run(main)
