"""Metrics of a run: metrics.jsonl, TensorBoard and a progress line, one call per log step.

metrics.jsonl holds one JSON object per row, `{"step": 20, "loss": 1.25, ...}`. JSON has no NaN, so
a value that is not finite is written as null and named under "nonfinite": `{"loss": null,
"nonfinite": {"loss": "nan"}}`; `read_metrics` puts the float back.

**Resume.** The rows of a step are written before its checkpoint is saved, so the file never lacks a
step that the checkpoint has; on resume at step k the rows after k are dropped, and are written anew
when their steps are repeated. The file of an interrupted run is then equal to that of an
uninterrupted one but for the fields in `TIMING`. With several processes, the first one writes.
"""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from meerkat_jax.core.errors import UserError
from meerkat_jax.core.files import write_text
from meerkat_jax.training.flops import peak

# Fields that say how fast, not what: the only ones that differ between equal runs.
TIMING = frozenset(
    "seconds examples_per_second tokens_per_second step_seconds data_wait_seconds tflops mfu"
    " peak_memory_mib".split()
)


class MetricsWriter:
    """Appends rows to `workdir`/metrics.jsonl and TensorBoard, and prints progress.

    `total` is the number of steps of the run (None: no time left is shown). `resume_step` None
    starts an empty file; k keeps the rows up to step k of the one that is there.
    """

    def __init__(
        self, workdir: str | Path, total: int | None = None, resume_step: int | None = None
    ):
        """Open the files; raises UserError if the metrics.jsonl to go on with is damaged."""
        self.path = Path(workdir) / "metrics.jsonl"
        self._total, self._first = total, resume_step or 0
        self._start = time.monotonic()
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _cut(self.path, resume_step)
        purge = None if resume_step is None else resume_step + 1
        # Imported here: it takes torch along where that is installed, 3 s of every command.
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=purge)
        self._file = self.path.open("a")

    def write(self, step: int, values: Mapping[str, Any], progress: bool = True) -> dict[str, Any]:
        """Write one row and return it; `values` are scalars (nested dicts get keys "a/b").

        `progress` prints the line "step 20/100  12.3 examples/s  loss 1.250  0:35 left".
        """
        row = {"step": int(step)} | _scalars(values)
        if self._active:
            self._file.write(json.dumps(_encode(row), allow_nan=False) + "\n")
            self._file.flush()  # now a killed process loses no row
            self._to_board(row)
            if progress:
                print(self._progress(row), flush=True)
        return row

    def _to_board(self, row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._board.add_scalar(name, value, row["step"])
        self._board.flush()

    def _progress(self, row: Mapping[str, Any]) -> str:
        step, spent = row["step"], time.monotonic() - self._start
        rate = (step - self._first) / max(spent, 1e-9)
        if "step_seconds" in row:  # without what came before the first step
            rate = 1 / max(row["step_seconds"], 1e-9)
        parts = [f"step {step}" if self._total is None else f"step {step}/{self._total}"]
        if "examples_per_second" in row:
            parts.append(f"{row['examples_per_second']:.1f} examples/s")
        elif rate > 0:
            parts.append(f"{rate:.2f} steps/s")
        if "loss" in row:
            parts.append(f"loss {row['loss']:.4f}")
        if self._total is not None and rate > 0:
            left = max(0, self._total - step) / rate
            parts.append(f"{int(left // 60)}:{int(left % 60):02d} left")
        return "  ".join(parts)

    def sync(self) -> None:
        """Have the rows on disk (or in the bucket that is mounted), before a checkpoint is."""
        if self._active:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close both files."""
        if self._active:
            self._file.close()
            self._board.close()

    def __enter__(self) -> MetricsWriter:
        """Use as `with MetricsWriter(...) as writer`."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close both files."""
        self.close()


class Clock:
    """Wall time of the steps since the last row; without compiling, evaluating and saving."""

    def __init__(self):
        """Begin now."""
        self._start, self._waited, self._steps = time.monotonic(), 0.0, 0
        self._examples, self._tokens, self._flops = 0, 0, 0.0

    @contextlib.contextmanager
    def waiting(self, running: Any = ()) -> Iterator[None]:
        """Around the wait for one step's batch; `running` is what the step before gives.

        It costs nothing while the devices still work on that. If they do not when the batch is
        here, all of the wait counts, so that it is the most that they can have stood still.
        """
        begun = time.monotonic()
        yield
        arrays = (leaf for leaf in jax.tree.leaves(running) if isinstance(leaf, jax.Array))
        if all(array.is_ready() for array in arrays):
            self._waited += time.monotonic() - begun
        self._steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of the block."""
        begun = time.monotonic()
        yield
        self._start += time.monotonic() - begun

    def count(self, examples: int, length: int, flops: float = 0.0) -> None:
        """Count a dispatched step of `examples` with `length` tokens each.

        `flops` of it by flops.py: with them the row has tflops (10^12 FLOP/s of each device, on
        the mean), and where the peak of such devices is known, mfu (0 to 1).
        """
        self._examples += examples
        self._tokens += examples * length
        self._flops += flops

    def row(self) -> dict[str, float]:
        """Fields of `TIMING` since the last call.

        Call it when the steps' results are here, else it tells how fast they were asked for.
        """
        spent, steps = max(time.monotonic() - self._start, 1e-9), max(self._steps, 1)
        row = {
            "examples_per_second": self._examples / spent,
            "tokens_per_second": self._tokens / spent,
            "step_seconds": spent / steps,
            "data_wait_seconds": self._waited / steps,
            "peak_memory_mib": peak_memory_mib(),
        }
        if self._flops:
            rate, most = self._flops / spent / jax.device_count(), device_peak()
            row |= {"tflops": rate / 1e12} | ({"mfu": rate / most} if most else {})
        self.__init__()
        return row


def device_peak() -> float | None:
    """FLOP/s of one of the run's devices at its best (flops.py); None where that is not known."""
    return peak(jax.devices()[0].device_kind)


def peak_memory_mib() -> float:
    """Peak memory of this process and its living workers, summed (Linux), MiB.

    On an accelerator: the most that any device of this host has held.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    held = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    if held:
        return max(held) / 2**20
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    return sum(map(peak_kib, pids)) / 2**10


def peak_kib(pid: int) -> int:
    """The most memory that a process has held (VmHWM), KiB; 0 without /proc, or when it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def _scalars(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten and turn array scalars into Python numbers; UserError for anything else."""
    row = flatten_dict(values, sep="/")
    for name, value in row.items():
        if value is None or isinstance(value, str | bool | int | float):
            continue
        if np.ndim(value):
            raise UserError(f"metric {name!r} has shape {np.shape(value)}, not a scalar")
        row[name] = np.asarray(value).item()
    return row


def _encode(row: Mapping[str, Any]) -> dict[str, Any]:
    bad = {k: str(v) for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)}
    return {k: None if k in bad else v for k, v in row.items()} | (
        {"nonfinite": bad} if bad else {}
    )


def _decode(row: dict[str, Any]) -> dict[str, Any]:
    bad = row.pop("nonfinite", {})
    return row | {name: float(kind) for name, kind in bad.items()}


def nonfinite(row: Mapping[str, float], before: Mapping[str, float] | None = None) -> str:
    """Which metrics of a step are not finite, their last values, and what to check.

    row and before, that of the step before it, as a step returns them: "loss", "loss/NAME",
    perhaps "grad_norm". A learning rate is only spoken of where every term is at fault: a term that
    is finite clears the parameters that it has in common with the others.
    """
    terms = [key for key in row if key.startswith("loss/")]
    bad = [key for key in terms if not math.isfinite(row[key])]
    fine = [key for key in terms if key not in bad]
    named = bad or [key for key in row if not math.isfinite(row[key])]
    said = ", ".join(f"{key} is {row[key]}" for key in named)
    if fine:
        said += f" ({', '.join(f'{key} is {row[key]:.4g}' for key in fine)})"
    if before is not None:
        seen = [f"{key} {before[key]:.4g}" for key in ("loss", "grad_norm") if key in before]
        said += f"; the step before had {' and '.join(seen)}"
    if bad and not fine:
        return f"{said}; if these had risen, lower the learning rate; if not, look at its data"
    if bad:
        return f"{said}; look at what {' and '.join(bad)} alone read of the step's data"
    return f"{said}; look at the step's data"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl (or of the one in a work directory), in order.

    A last line without its end, which a killed process leaves, is passed over. Raises UserError
    if the file is absent, or naming the line that is no row.
    """
    path = Path(path)
    path = path / "metrics.jsonl" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{path} is not there; train writes it")
    rows = []
    for number, line in enumerate(path.read_text(errors="replace").split("\n")[:-1], 1):
        try:
            row = _decode(json.loads(line))
            row["step"] = int(row["step"])
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{path} line {number} is no row of metrics: {line[:60]!r}") from None
        rows.append(row)
    return rows


def _cut(path: Path, step: int | None) -> None:
    """Keep the rows up to `step` (None: no row) in one atomic rewrite."""
    keep: Iterable[dict] = []
    if step is not None and path.exists():
        keep = (row for row in read_metrics(path) if row["step"] <= step)
    write_text(path, "".join(json.dumps(_encode(row), allow_nan=False) + "\n" for row in keep))


def without_timing(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the fields in `TIMING` (also as the last part of "a/b"), to compare runs."""
    return [{k: v for k, v in row.items() if k.split("/")[-1] not in TIMING} for row in rows]
