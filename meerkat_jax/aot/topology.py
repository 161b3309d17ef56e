"""Topologies by name: a TPU slice, simulated devices, or the GPUs of this machine.

"v5e:4x4" is 16 TPU v5e chips, "v5e:4x4:2" two such slices, "cpu:8" eight simulated devices, "gpu"
what jax finds.

Slices are those that can be had. v5e and v6e are flat tori, of the sizes that Google lists, up to a
pod of 256 chips. v4 and v5p have three axes: below a cube of 4 x 4 x 4 the sizes listed, above it
cubes side by side, axes in rising order, up to a pod of v4 (4,096 chips) and the largest slice of
v5p (6,144). Sources: cloud.google.com/tpu/docs/v4, v5e, v5p, v6e (tables of configurations).

The TPU's own compiler comes with the package `libtpu` and runs on any CPU, without a TPU. Sources:
Google's pages on each TPU's architecture; usable memory is what the compiler allows.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from meerkat_jax.core.errors import UserError
from meerkat_jax.parallel.devices import find_devices
from meerkat_jax.training.flops import peak

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip: usable memory in bytes, bfloat16 FLOP/s, bytes/s of memory and, one way, of links.

    None: not known.
    """

    memory: float | None = None
    flops: float | None = None
    bandwidth: float | None = None
    links: float | None = None


CHIPS = {
    "v4": Chip(30.75 * GIB, peak("TPU v4"), 1228e9, 300e9),
    "v5e": Chip(15.75 * GIB, peak("TPU v5e"), 819e9, 200e9),
    "v5p": Chip(95.73 * GIB, peak("TPU v5p"), 2765e9, 600e9),
    "v6e": Chip(31.24 * GIB, peak("TPU v6e"), 1638e9, 400e9),
}
FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # parts of a cube
CUBES = {"v4": 4096, "v5p": 6144}  # chips of the largest slice
SIMULATED = 1024  # devices; each is a thread and a share of one memory
EXAMPLES = "v5e:4x4, v4:2x2x1, v5e:4x4:2 (two slices), cpu:8 or gpu"


def devices_of(name: str) -> tuple[list[Any], Chip]:
    """(devices, chip) of a topology by name; call it before anything else asks jax for devices.

    Raises UserError for a name that is none, a slice that does not exist, and without libtpu.
    """
    kind, _, shape = name.partition(":")
    if kind in CHIPS and (slice_ := re.fullmatch(r"(\d+(?:x\d+){1,2})(?::([1-9]\d*))?", shape)):
        check_slice(kind, slice_[1])
        return _tpu(kind, slice_[1], int(slice_[2] or 1)), CHIPS[kind]
    if kind == "cpu" and re.fullmatch(r"[1-9]\d*", shape):
        return _cpu(int(shape)), Chip()
    if name == "gpu":
        return _gpu()
    known = f"{', '.join(CHIPS)} with a shape, cpu with a number, or gpu"
    raise UserError(f"--topology={name}: expected {known}, as {EXAMPLES}")


def check_slice(kind: str, shape: str) -> None:
    """UserError unless Google has slices of `kind` in this `shape`, naming those that it has."""
    if kind not in CUBES:
        there, said = shape in FLAT, ", ".join(FLAT)
    else:
        axes = [int(side) for side in shape.split("x")]
        cubes = len(axes) == 3 and all(side and side % 4 == 0 for side in axes)
        cubes = cubes and sorted(axes) == axes and math.prod(axes) <= CUBES[kind]
        there = shape in SMALL or cubes
        said = f"{', '.join(SMALL)}, and three rising multiples of 4 (4x4x4, 4x4x8, 8x16x16) of "
        said += f"at most {CUBES[kind]} chips"
    if not there:
        raise UserError(
            f"--topology={kind}:{shape}: there is no such slice; {kind} has {said} "
            f"(several slices: {kind}:{FLAT[3] if kind not in CUBES else SMALL[0]}:2)"
        )


def _tpu(kind: str, shape: str, slices: int) -> list[Any]:
    name = f"{kind}:{shape}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no machine to ask
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.config.update("jax_platforms", "cpu")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"--topology={name} needs the TPU's compiler: pip install 'meerkat_jax[tpu]'"
        )
    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if kind == "v4":
        more["chip_config_name"] = "megacore"
    if shape == "1x1":
        more["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **more)
    except Exception as error:  # of many kinds, from within the library
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--topology={name}: there is no such slice ({reason})") from None
    return list(found.devices)


def _cpu(count: int) -> list[Any]:
    if count > SIMULATED:
        raise UserError(f"--topology=cpu:{count}: expected at most {SIMULATED} simulated devices")
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}"
    jax.config.update("jax_platforms", "cpu")
    found = jax.devices()
    if len(found) != count:
        raise UserError(f"--topology=cpu:{count}: jax has {len(found)} devices already; ask first")
    return found


def _gpu() -> tuple[list[Any], Chip]:
    found = [device for device in find_devices() if device.platform == "gpu"]
    if not found:
        raise UserError("--topology=gpu: jax finds no GPU here; install jax[cuda12] or jax[cuda13]")
    stats = found[0].memory_stats() or {}
    return found, Chip(memory=stats.get("bytes_limit"))
